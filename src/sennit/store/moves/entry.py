"""May these tasks enter? Cached results, busy threads and full queues, decided before anything is stored.

specs ─► found by key or cache? drop out ─► busy thread: refuse | cancel what is there ─► full queue: refuse | shed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence

import msgspec

from sennit.errors import QueueFull, ThreadBusy
from sennit.model.admission import RECENT_ENDS, Bounds, Entry, retry_after_s
from sennit.model.lifecycle import ENDED_CODES, State
from sennit.model.task import ErrorInfo, TaskSpec, WorkerInfo, encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import state
from sennit.store.moves.end import stop
from sennit.store.moves.key import exists
from sennit.store.moves.lane import PLAIN, lanes_of
from sennit.store.moves.provider import Pools
from sennit.store.moves.turn import open_tasks
from sennit.store.routes import is_rival
from sennit.store.sql import statements

(
    _WAITING, _LEAST, _RECENT, _CACHED, _CACHE, _UNTAG, _TAG, _TAGGED, _UNCACHE,
    BLOCK, UNBLOCK, ANY_BLOCKED, _PRESSED, _TURN, _BEFORE_IN_THREAD, _PLACE, _BEFORE_IN_LANE, _NOTE_BOUNDS, _BOUNDS,
) = statements("entry")  # fmt: skip
_ALL = 10**9
_SUCCEEDED = ENDED_CODES[State.SUCCEEDED]


def admit(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Return those of `specs` that are to be stored; the others have the id of the task that stands for them.

    Raises:
        ThreadBusy, QueueFull, DuplicateKey: the caller rolls back.
    """
    ids = {spec.ref.id for spec in specs}
    # A cached result that is under way may be a task that this very batch interrupts, so threads are cleared first.
    _clear_threads(connection, effects, [s for s in specs if not _found(connection, effects, s)])
    new = [spec for spec in specs if _is_new(connection, effects, spec, ids)]
    _make_room(connection, effects, new)
    return new


def _found(connection: Connection, effects: Effects, spec: TaskSpec) -> bool:
    """True when a stored task stands for this one, as things are; changes nothing."""
    if _replaces(spec):
        return False
    return exists(connection, effects, spec) or _cached(connection, effects, spec) is not None


def _is_new(connection: Connection, effects: Effects, spec: TaskSpec, batch: set[int]) -> bool:
    """False when another task stands for this one; else it takes what it is known by: its key, its place in the cache."""
    return not exists(connection, effects, spec) and not _stands(connection, effects, spec, batch)


def _replaces(spec: TaskSpec) -> bool:
    return spec.key is not None and spec.on_conflict == "replace"


# ---------------------------------------------------------------- cached results


def _cached(connection: Connection, effects: Effects, spec: TaskSpec, batch: Container[int] = ()) -> int | None:
    """Return the task whose result, there or under way, is to be used for `spec`."""
    entry = spec.entry
    if entry is None or not entry.cache_us or _replaces(spec):
        return None
    row = connection.execute(_CACHED, (spec.handler, entry.cache_key)).fetchone()
    if row is None:
        return None
    task_id, ended, done_us = row
    fresh = ended == _SUCCEEDED and done_us > effects.now_us - entry.cache_us
    known: int = task_id
    return known if fresh or ended == 0 or (ended is None and known in batch) else None


def _stands(connection: Connection, effects: Effects, spec: TaskSpec, batch: Container[int]) -> bool:
    """True, with the Ref set, when a cached result or one that is under way stands for this task; else it takes the place."""
    task_id = _cached(connection, effects, spec, batch)
    if task_id is not None:
        spec.ref.id = task_id
        return True
    entry = spec.entry
    if entry is not None and entry.cache_us:
        connection.execute(_CACHE, (spec.handler, entry.cache_key, spec.ref.id))
        connection.execute(_UNTAG, (spec.handler, entry.cache_key))
        connection.executemany(_TAG, [(tag, spec.handler, entry.cache_key) for tag in entry.cache_tags])
    return False


def invalidate(connection: Connection, *, tags: Sequence[str], keys: Sequence[tuple[str, str]]) -> int:
    """Forget cached results; return how many."""
    found = dict.fromkeys(keys)
    for tag in tags:
        found |= dict.fromkeys(connection.execute(_TAGGED, (tag,)).fetchall())
    connection.executemany(_UNTAG, list(found))
    return sum(connection.execute(_UNCACHE, pair).rowcount for pair in found)


# ---------------------------------------------------------------- busy threads


def _clear_threads(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> None:
    """Deal with threads that have open tasks, as the strictest of the batch for each of them says."""
    wishes: dict[str, dict[str, TaskSpec]] = {}
    for spec in specs:
        if spec.thread_id is not None and spec.entry is not None:
            wishes.setdefault(spec.thread_id, {}).setdefault(spec.entry.on_busy, spec)
    for thread_id, by_policy in wishes.items():
        policy = next(p for p in ("reject", "rollback", "interrupt", "enqueue") if p in by_policy)
        busy = [] if policy == "enqueue" else open_tasks(connection, thread_id)
        if not busy:
            continue
        if policy == "reject":
            raise ThreadBusy(thread_id, busy[0])
        message = f"task {by_policy[policy].ref.id} of the same thread took its place"
        stop(connection, effects, busy, State.CANCELLED, ErrorInfo(kind="interrupted", message=message))
        if policy == "rollback":
            state.roll_back(connection, effects, thread_id, busy)


# ---------------------------------------------------------------- full queues


def _make_room(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> None:
    """Hold each task of the batch against the bound of its queue, those before it counted.

    Who is shed is chosen for all of the batch among what waits now, and ends after that: what their end makes ready was
    in nobody's way.
    """
    waits = Counter[str]()  # queue → of this batch, those that will wait
    loads: dict[str, int] = {}
    threads: set[str] = set()
    shed: set[int] = set()
    ends: list[tuple[list[int], ErrorInfo]] = []
    for spec in specs:
        entry, queue = spec.entry, spec.queue
        if entry is not None and entry.queue_max and not spec.parents and spec.parent_id is None:
            if queue not in loads:
                loads[queue] = waiting(connection, queue, _ALL if entry.on_full == "shed" else entry.queue_max)
            over = loads[queue] + waits[queue] - entry.queue_max + 1
            if over > 0:
                ends.append(_to_shed(connection, effects, spec, over, shed))
                loads[queue] -= over
        waits[queue] += _will_wait(connection, spec, threads, shed)
        if spec.thread_id is not None:
            threads.add(spec.thread_id)
    for task_ids, error in ends:
        stop(connection, effects, task_ids, State.CANCELLED, error)


def _will_wait(connection: Connection, spec: TaskSpec, threads: Container[str], shed: set[int]) -> bool:
    """True for a new task that will wait for a slot or for its turn, and not for its parents or its delay."""
    thread_id = spec.thread_id
    if thread_id is not None and (thread_id in threads or not shed.issuperset(open_tasks(connection, thread_id))):
        return True
    states = [
        connection.execute("SELECT state FROM sennit_task WHERE id = ?", (p.id,)).fetchone() for p in spec.parents
    ]
    return not spec.delay_us and all(row is not None and row[0] for row in states)


def _to_shed(
    connection: Connection, effects: Effects, spec: TaskSpec, n: int, gone: set[int]
) -> tuple[list[int], ErrorInfo]:
    """Choose `n` waiting tasks that are less urgent than `spec`, beside those that are `gone` already; say why they end.

    Raises:
        QueueFull: there are not so many, or `spec` does not want it.
    """
    entry = spec.entry or Entry()
    least: list[int] = []
    if entry.on_full == "shed":
        wanted = {"queue": spec.queue, "priority": spec.priority, "n": n + len(gone)}
        lanes = [PLAIN, *lanes_of(connection, spec.queue)]
        last = [row for lane in lanes for row in connection.execute(_LEAST, wanted | lane._asdict()).fetchall()]
        least = [task_id for _, task_id in sorted(last, reverse=True) if task_id not in gone][:n]
    if len(least) < n:
        after_s = _retry_after_s(connection, effects, spec.queue)
        raise QueueFull(spec.queue, queue_max=entry.queue_max, retry_after_s=after_s)
    gone.update(least)
    error = ErrorInfo(kind="shed", message=f"queue {spec.queue!r} was full and task {spec.ref.id} is more urgent")
    return least, error


def waiting(connection: Connection, queue: str, most: int) -> int:
    """Return how many tasks of a queue wait for a slot, their turn or room; counts each kind up to `most`."""
    found: int = connection.execute(_WAITING, {"queue": queue, "n": most}).fetchone()[0]
    return found


def _retry_after_s(connection: Connection, effects: Effects, queue: str) -> float:
    wanted = {"queue": queue, "looked_at": 10 * RECENT_ENDS, "n": RECENT_ENDS}
    ends, oldest_us = connection.execute(_RECENT, wanted).fetchone()
    return retry_after_s(ends, effects.now_us - (oldest_us or effects.now_us))


def pressed_routes(connection: Connection, queue: str, pools: Callable[[], Pools]) -> set[str]:
    """Return the routes of urgent tasks of `queue` that lack only a slot: their provider, if they have one, has room."""
    lanes = [PLAIN, *lanes_of(connection, queue)]
    urgent = [lane for lane in lanes if connection.execute(_PRESSED, (queue, *lane)).fetchone()[0]]
    return {lane.route for lane in urgent if not lane.provider or pools().offer(lane.provider).pool is not None}


def note_bounds(connection: Connection, bounds: Bounds) -> None:
    """Note what a worker enforces, for processes that come only to look and to answer."""
    connection.execute(_NOTE_BOUNDS, (encode(bounds),))


def known_bounds(connection: Connection) -> Bounds:
    """Return what the worker enforces that joined last."""
    row = connection.execute(_BOUNDS).fetchone()
    return Bounds() if row is None else msgspec.json.decode(row[0], type=Bounds)


def position(connection: Connection, task_id: int, workers: Callable[[], Sequence[WorkerInfo]]) -> int | None:
    """Return how many go before a task that is ready or waits for its turn."""
    turn = connection.execute(_TURN, (task_id,)).fetchone()
    if turn is not None and not turn[1]:
        before: int = connection.execute(_BEFORE_IN_THREAD, (turn[0], task_id)).fetchone()[0]
        return before
    place = connection.execute(_PLACE, (task_id,)).fetchone()
    if place is None:
        return None
    lanes = [PLAIN, *lanes_of(connection, place[0])]
    if any(lane.route for lane in lanes):
        (route,) = connection.execute("SELECT route FROM sennit_task WHERE id = ?", (task_id,)).fetchone()
        living = workers()
        lanes = [lane for lane in lanes if is_rival(lane.route, route, place[0], living)]
    ahead: list[int] = [connection.execute(_BEFORE_IN_LANE, (*place, *lane)).fetchone()[0] for lane in lanes]
    return sum(ahead)

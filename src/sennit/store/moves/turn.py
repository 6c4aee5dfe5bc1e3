"""The open tasks of a thread take turns; with a bound on threads, those that have theirs may have to wait for room.

enter ─► waits for its turn ─► holds it ──(room?)──► ready … running ─► left: the next holds it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sennit.model.task import TaskSpec, encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.sql import statements

(
    _LAST, _ENTER, _FIRST, _LEAVE, _HOLD, _MOVE, _ALL,
    _GATE, _IDLE, _ANY_GATED, _ADMIT, _ADMITTED,
) = statements("turn")  # fmt: skip
_READY = statements("place")[0]
_WAIT = "INSERT INTO sennit_waiting (id, need, attempt, failures, crashes, free) VALUES (?, 1, ?, ?, ?, 1)"
_WAIT_MORE = "UPDATE sennit_waiting SET need = need + 1 WHERE id = ? AND free = 0"
_UNWAIT = "DELETE FROM sennit_waiting WHERE id = ?"

PassOn = Callable[[Connection, Effects, int], None]


def enter(connection: Connection, specs: Sequence[TaskSpec]) -> list[int]:
    """Queue new tasks in their threads; return for each 1 if it waits for its turn, else 0."""
    waits, last_seqs, rows = [], dict[str, int](), []
    for spec in specs:
        thread_id = spec.thread_id
        if thread_id is None:
            waits.append(0)
            continue
        last = last_seqs.get(thread_id)
        if last is None:
            row = connection.execute(_LAST, (thread_id,)).fetchone()
            last = None if row is None else row[0]
        waits.append(0 if last is None else 1)
        seq = last_seqs[thread_id] = 1 if last is None else last + 1
        rows.append((thread_id, seq, spec.ref.id, spec.queue, last is None))
    connection.executemany(_ENTER, rows)
    return waits


def leave(connection: Connection, effects: Effects, ended: Sequence[int], pass_on: PassOn) -> None:
    """Take ended tasks out of their threads; `pass_on` is told of each task whose turn has come."""
    left = connection.execute(_LEAVE, (encode(ended),)).fetchall()
    for thread_id in dict.fromkeys(thread_id for thread_id, held in left if held):
        first = connection.execute(_FIRST, (thread_id,)).fetchone()
        if first is not None and not first[2]:
            connection.execute(_HOLD, (1, first[1]))
            pass_on(connection, effects, first[1])
    if left:
        effects.room = True


def reenter(
    connection: Connection, thread_id: str, tasks: Sequence[tuple[int, str, tuple[int, int, int]]]
) -> int | None:
    """Put revived tasks (id, queue, counts) into their thread, next in line, in this order; return who has the turn.

    The others wait for it, and so do all of them, and None is returned, behind a holder that has started. One that only
    waits for its parents gives the turn up: one of these may be the very task that comes back.
    """
    first = connection.execute(_FIRST, (thread_id,)).fetchone()
    takes_turn, begin = True, 1
    if first is not None:
        seq, holder_id, _, gated = first
        begin = seq - len(tasks)
        takes_turn = not gated and bool(connection.execute(_WAIT_MORE, (holder_id,)).rowcount)
        if takes_turn:
            connection.execute(_HOLD, (0, holder_id))
        else:
            connection.execute(_MOVE, (begin, holder_id))
            begin += 1
    for n, (task_id, queue, counts) in enumerate(tasks):
        held = takes_turn and not n
        connection.execute(_ENTER, (thread_id, begin + n, task_id, queue, held))
        if not held:
            connection.execute(_WAIT, (task_id, *counts))
    return tasks[0][0] if takes_turn else None


def has_room(
    connection: Connection, effects: Effects, task_id: int, *, place_us: int, counts: tuple[int, int, int]
) -> bool:
    """True when a task that has its turn may be ready; else it waits for room, at this place among those that do.

    Who gets the room there is is decided at the end of the transaction, among all that want it then.
    """
    if not effects.bounds.threads_max:
        return True
    connection.execute(_GATE, (place_us, task_id))
    connection.execute(_WAIT, (task_id, *counts))
    effects.room = True
    return False


def rest(connection: Connection, effects: Effects, task_id: int) -> None:
    """A task keeps its turn but runs no more for now (retry, sleep, suspension): its room is free."""
    if connection.execute(_IDLE, (task_id,)).rowcount:
        effects.room = True


def admit(connection: Connection, effects: Effects) -> None:
    """Give the room there is to those who wait for it, in order."""
    if not connection.execute(_ANY_GATED).fetchone()[0]:
        return
    for task_id, place_us, attempt, failures, crashes, queue, priority, provider, route in connection.execute(
        _ADMIT, {"n": effects.bounds.threads_max}
    ).fetchall():
        connection.execute(_ADMITTED, (task_id,))
        connection.execute(_UNWAIT, (task_id,))
        connection.execute(_READY, (queue, provider, route, place_us, task_id, attempt, failures, crashes))
        effects.became_ready(queue, priority, route)


def open_tasks(connection: Connection, thread_id: str) -> list[int]:
    """Return the open tasks of a thread, the holder first."""
    return [task_id for (task_id,) in connection.execute(_ALL, (thread_id,))]

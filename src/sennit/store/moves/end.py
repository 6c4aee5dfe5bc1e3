"""Tasks end, and what depends on them follows in the same transaction.

stop | end ─► each task ends, its limits and questions go, its thread's turn passes on
          ─► dependants: released, or ended by their policy, transitively
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from sennit.model.lifecycle import ENDED_CODES, State
from sennit.model.task import Claim, ErrorInfo, encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves.limit import lift
from sennit.store.moves.over import free
from sennit.store.moves.place import Place, make_ready, schedule
from sennit.store.moves.turn import leave
from sennit.store.sql import statements

_EDGES, _COUNT_DOWN, _TURN_CAME, _DROP_WAITING, _PLACE, _DEPENDANTS = statements("release")
_END, _HAD, _ATTEMPT = statements("end")
_PULLS = statements("pull")
_VOID, _REVISE = statements("void")


def stop(connection: Connection, effects: Effects, task_ids: Sequence[int], state: State, error: ErrorInfo) -> None:
    """End open tasks wherever they are; running attempts are told to stop.

    All of them end before any dependant is looked at: one that is itself in `task_ids` ends as its parent did. And
    all leave their threads before any turn is passed on: none becomes ready only to be ended.
    """
    for task_id in task_ids:
        attempt, failures, crashes, worker_id, started_us = _pull(connection, task_id)
        if worker_id is not None:
            effects.stops.setdefault(worker_id, []).append(Claim(task_id, attempt))
            note(connection, effects, Claim(task_id, attempt), str(state), history=(worker_id, started_us), error=error)
        counts, history = (attempt, failures, crashes), (worker_id, started_us)
        _end_one(connection, effects, task_id, state, error, counts=counts, history=history)
    _settle(connection, effects, task_ids)
    _cascade(connection, effects, [(task_id, state) for task_id in task_ids])


def _pull(connection: Connection, task_id: int) -> tuple[int, int, int, int | None, int | None]:
    """Take an open task out of its narrow table; return attempt, failures, crashes, worker id, started_us."""
    for statement in _PULLS:
        rows = connection.execute(statement, (task_id,)).fetchall()
        if rows:
            row: tuple[int, int, int, int | None, int | None] = rows[0]
            return row
    raise AssertionError(f"open task {task_id} is in no narrow table")


def end(
    connection: Connection,
    effects: Effects,
    task_id: int,
    state: State,
    error: ErrorInfo,
    *,
    counts: tuple[int, int, int],
    history: tuple[int | None, int | None],
) -> None:
    """End a task that is in no narrow table as failed or cancelled, and all that depends on it, transitively."""
    _end_one(connection, effects, task_id, state, error, counts=counts, history=history)
    _settle(connection, effects, [task_id])
    _cascade(connection, effects, [(task_id, state)])


def _end_one(
    connection: Connection,
    effects: Effects,
    task_id: int,
    state: State,
    error: ErrorInfo,
    *,
    counts: tuple[int, int, int],
    history: tuple[int | None, int | None],
) -> None:
    connection.execute(_END, (ENDED_CODES[state], encode(error), effects.now_us, *counts, *history, task_id))
    effects.ended.append(task_id)
    effects.counts[str(state)] += 1


def _settle(connection: Connection, effects: Effects, ended: Sequence[int]) -> None:
    """Let go of what ended tasks had: time limits, open questions, the turn in their thread, permits."""
    limits, asks, turns, permits = connection.execute(_HAD).fetchone()
    if limits:
        lift(connection, ended)
    if asks:
        _void(connection, effects, ended)
    if turns:
        leave(connection, effects, ended, _turn_came)
    if permits:
        free(connection, effects, ended)


def _void(connection: Connection, effects: Effects, ended: Sequence[int]) -> None:
    kinds = [kind for (kind,) in connection.execute(_VOID, (effects.now_us, encode(ended))).fetchall()]
    if "ask" in kinds:
        connection.execute(_REVISE)
        effects.inbox = True


def _cascade(connection: Connection, effects: Effects, ended: list[tuple[int, State]]) -> None:
    """Release or end the dependants of tasks that did not succeed, and theirs. A loop: chains are deeper than stacks."""
    todo = deque(ended)
    while todo:
        parent, state = todo.popleft()
        because = ErrorInfo(
            kind=f"parent_{state}",
            message=f"its parent task {parent} {'has failed' if state is State.FAILED else 'was cancelled'}",
            fix=f"see `sennit tasks get {parent}`; on_parent_failed says what a dependant does",
        )
        for child, policy in dict(connection.execute(_DEPENDANTS, (parent,)).fetchall()).items():
            if policy == "run":
                _count_down(connection, effects, child)
                continue
            ((*counts, _),) = connection.execute(_DROP_WAITING, (child,)).fetchall()
            child_state = State.FAILED if policy == "fail" else State.CANCELLED
            _end_one(connection, effects, child, child_state, because, counts=tuple(counts), history=(None, None))
            _settle(connection, effects, [child])
            todo.append((child, child_state))


def release(connection: Connection, effects: Effects, ended: Sequence[int]) -> None:
    """Settle tasks that succeeded; count their dependants' open parents down; place those with none left."""
    _settle(connection, effects, ended)
    edges = connection.execute(_EDGES, (encode(ended),)).fetchall()
    if edges:
        for child, parents in sorted(Counter(child for _, child in set(edges)).items()):
            _count_down(connection, effects, child, parents)


def _count_down(connection: Connection, effects: Effects, child: int, parents: int = 1) -> None:
    """Count the open parents of a waiting task down; place it when it waits for nothing more."""
    rows = connection.execute(_COUNT_DOWN, (parents, child)).fetchall()
    if rows and not rows[0][0]:  # no row: the child has ended already, or does not wait for its parents
        _go_on(connection, effects, child)


def _turn_came(connection: Connection, effects: Effects, task_id: int) -> None:
    """Count down what a task waits for, because it has its thread's turn; place it when that was all."""
    if not connection.execute(_TURN_CAME, (task_id,)).fetchall()[0][0]:
        _go_on(connection, effects, task_id)


def _go_on(connection: Connection, effects: Effects, task_id: int) -> None:
    """Take a task that waits for nothing more out of `waiting`; its delay comes next, unless it has had that before."""
    ((*counts, free),) = connection.execute(_DROP_WAITING, (task_id,)).fetchall()
    queue, priority, thread_id, provider, route, delay_us = connection.execute(_PLACE, (task_id,)).fetchone()
    if delay_us and not free:
        schedule(connection, effects, task_id, due_us=effects.now_us + delay_us, reason="delay")
    else:
        place = Place(queue, priority, thread_id, provider, route)
        make_ready(connection, effects, task_id, place, counts=tuple(counts))


def note(
    connection: Connection,
    effects: Effects,
    claim: Claim,
    outcome: str,
    *,
    history: tuple[int | None, int | None],
    error: ErrorInfo,
) -> None:
    """Keep an attempt that did not succeed in the history."""
    connection.execute(_ATTEMPT, (*claim, outcome, *history, effects.now_us, encode(error)))

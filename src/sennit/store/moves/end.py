"""Tasks end, and what depends on them follows in the same transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from sennit.model.lifecycle import ENDED_CODES, State
from sennit.model.task import Claim, ErrorInfo, encode
from sennit.store.effects import Effects
from sennit.store.moves.place import make_ready, schedule
from sennit.store.sql import statements

_CHILDREN, _COUNT_DOWN, _DROP_WAITING, _PLACE, _DEPENDANTS = statements("sqlite", "release")
_END, _ATTEMPT = statements("sqlite", "end")
_PULLS = statements("sqlite", "pull")


def pull_and_end(
    connection: sqlite3.Connection, effects: Effects, task_id: int, state: State, error: ErrorInfo
) -> None:
    """End an open task wherever it is; a running attempt is told to stop."""
    attempt, failures, crashes, worker_id, started_us = pull(connection, task_id)
    if worker_id is not None:
        effects.stops.setdefault(worker_id, []).append(Claim(task_id, attempt))
        note(connection, effects, Claim(task_id, attempt), str(state), (worker_id, started_us), error)
    end(connection, effects, task_id, state, error, (attempt, failures, crashes), (worker_id, started_us))


def pull(connection: sqlite3.Connection, task_id: int) -> tuple[int, int, int, int | None, int | None]:
    """Take an open task out of its narrow table; return attempt, failures, crashes, worker id, started_us."""
    for statement in _PULLS:
        rows = connection.execute(statement, (task_id,)).fetchall()
        if rows:
            row: tuple[int, int, int, int | None, int | None] = rows[0]
            return row
    raise AssertionError(f"open task {task_id} is in no narrow table")


def end(
    connection: sqlite3.Connection,
    effects: Effects,
    task_id: int,
    state: State,
    error: ErrorInfo,
    counts: tuple[int, int, int],
    history: tuple[int | None, int | None],
) -> None:
    """End a task that is in no narrow table as failed or cancelled, and all that depends on it, transitively."""
    todo = [(task_id, state, error, counts, history)]
    while todo:
        ended_id, state, error, counts, history = todo.pop()
        connection.execute(_END, (ENDED_CODES[state], encode(error), effects.now_us, *counts, *history, ended_id))
        effects.ended.append(ended_id)
        effects.counts[str(state)] += 1
        because = ErrorInfo(
            kind=f"parent_{state}",
            message=f"its parent task {ended_id} {'has failed' if state is State.FAILED else 'was cancelled'}",
            fix=f"see `sennit tasks get {ended_id}`; on_parent_failed says what a dependant does",
        )
        for child, edges, policy in connection.execute(_DEPENDANTS, (ended_id,)).fetchall():
            if policy == "run":
                _count_down(connection, effects, child, edges)
                continue
            connection.execute(_DROP_WAITING, (child,))
            child_state = State.FAILED if policy == "fail" else State.CANCELLED
            todo.append((child, child_state, because, (0, 0, 0), (None, None)))


def release(connection: sqlite3.Connection, effects: Effects, ended: Iterable[int]) -> None:
    """Count the open parents of all dependants down; place those that have none left."""
    for child, edges in connection.execute(_CHILDREN, (msgspec.json.encode(list(ended)),)).fetchall():
        _count_down(connection, effects, child, edges)


def _count_down(connection: sqlite3.Connection, effects: Effects, child: int, edges: int) -> None:
    rows = connection.execute(_COUNT_DOWN, (edges, child)).fetchall()
    if not rows or rows[0][0] > 0:  # no row: the child has ended already
        return
    connection.execute(_DROP_WAITING, (child,))
    queue, priority, thread_id, delay_us = connection.execute(_PLACE, (child,)).fetchone()
    if delay_us:
        schedule(connection, effects, child, due_us=effects.now_us + delay_us, reason="delay")
    else:
        make_ready(connection, effects, child, queue=queue, priority=priority, thread_id=thread_id)


def note(
    connection: sqlite3.Connection,
    effects: Effects,
    claim: Claim,
    outcome: str,
    history: tuple[int | None, int | None],
    error: ErrorInfo,
) -> None:
    """Keep an attempt that did not succeed in the history."""
    connection.execute(_ATTEMPT, (*claim, outcome, *history, effects.now_us, encode(error)))

"""ready ─► running: the next tasks of a queue, with all a worker needs to run them."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from sennit.model.lifecycle import ENDED_CODES, State
from sennit.model.task import Claimed
from sennit.store.effects import Effects
from sennit.store.moves.limit import started
from sennit.store.sql import statements

_NEXT, _TAKE, _DROP, _PARENTS, _STEPS = statements("sqlite", "claim")
_SUCCEEDED = ENDED_CODES[State.SUCCEEDED]


class Taken(NamedTuple):
    """What was claimed, and whether the worker has a lease for it: it may have been taken for dead."""

    tasks: list[Claimed]
    leased: bool


def claim(connection: sqlite3.Connection, effects: Effects, *, worker_id: int, queue: str, n: int) -> Taken:
    """Take at most `n` ready tasks of `queue`, in order."""
    rows = connection.execute(_NEXT, {"queue": queue, "n": n, "worker_id": worker_id}).fetchall()
    if not rows:
        return Taken([], leased=True)
    *_, leased, limited = rows[0]
    last = {"queue": queue, "order_us": rows[-1][1], "id": rows[-1][0]}
    connection.execute(_TAKE, {**last, "worker_id": worker_id, "now_us": effects.now_us})
    connection.execute(_DROP, last)
    effects.claimed = True
    if limited:
        started(connection, [row[0] for row in rows])
    return Taken([_claimed(connection, queue, row) for row in rows], leased=bool(leased))


def _claimed(connection: sqlite3.Connection, queue: str, row: tuple[Any, ...]) -> Claimed:
    (
        task_id, _, attempt, failures, crashes, handler, payload, options, thread_id, created_us, deadline_us, parents,
        priority, *_,
    ) = row  # fmt: skip
    task = Claimed(
        id=task_id, attempt=attempt, failures=failures, crashes=crashes, handler=handler, queue=queue, payload=payload,
        options=options, thread_id=thread_id, created_us=created_us, deadline_us=deadline_us,
        priority=priority,
    )  # fmt: skip
    if parents:
        found = connection.execute(_PARENTS, (task_id,)).fetchall()
        task.parents = tuple(result if state == _SUCCEEDED else None for state, result in found)
    if task.attempt > 1:
        task.steps = dict(connection.execute(_STEPS, (task_id,)).fetchall())
    return task

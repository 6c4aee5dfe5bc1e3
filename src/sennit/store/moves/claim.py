"""ready ─► running: the next tasks of a queue, with all a worker needs to run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sennit.model.lifecycle import ENDED_CODES, State
from sennit.model.order import ready_us
from sennit.model.task import Claimed
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import lane
from sennit.store.moves.limit import started
from sennit.store.moves.provider import Pools
from sennit.store.sql import statements

_NEXT, _TAKE, _DROP, _PARENTS, _STEPS, _FACTS = statements("claim")
_SUCCEEDED = ENDED_CODES[State.SUCCEEDED]


class Taken(NamedTuple):
    """What was claimed, and whether the worker has a lease for it: it may have been taken for dead."""

    tasks: list[Claimed]
    leased: bool


def claim(
    connection: Connection,
    effects: Effects,
    *,
    worker_id: int,
    queue: str,
    n: int,
    pools: Callable[[Connection, Effects], Pools] | None = None,
) -> Taken:
    """Take at most `n` ready tasks of `queue`, in order.

    Args:
        pools: returns the providers, which the caller will flush; called only when tasks of the queue need permits.
    """
    rows = connection.execute(_NEXT, {"queue": queue, "n": n, "worker_id": worker_id}).fetchall()
    if rows:
        *_, leased, limited, has_lanes = rows[0]
    else:
        leased, has_lanes = connection.execute(_FACTS, {"queue": queue, "worker_id": worker_id}).fetchone()
    lanes = lane.lanes_for(connection, queue, worker_id) if has_lanes else []
    if lanes:
        known = Pools(connection, effects.now_us, effects.bounds) if pools is None else pools(connection, effects)
        chosen = lane.claim(connection, effects, known, lanes, worker_id=worker_id, queue=queue, n=n)
        if pools is None:
            known.flush(effects)
        return Taken(_claimed_with_permits(connection, effects, queue, chosen), leased=bool(leased))
    if not rows:
        return Taken([], leased=bool(leased))
    last = {"queue": queue, "order_us": rows[-1][1], "id": rows[-1][0]}
    connection.execute(_TAKE, {**last, "worker_id": worker_id, "now_us": effects.now_us})
    connection.execute(_DROP, last)
    effects.claimed = True
    if limited:
        started(connection, [row[0] for row in rows])
    return Taken([_claimed(connection, queue, row) for row in rows], leased=bool(leased))


def _claimed_with_permits(
    connection: Connection, effects: Effects, queue: str, chosen: Sequence[lane.Chosen]
) -> list[Claimed]:
    tasks = []
    for row, permit, spent in chosen:
        task = _claimed(connection, queue, row)
        task.permit, task.spent = permit, spent
        tasks.append(task)
    if tasks:
        effects.claimed = True
        started(connection, [task.id for task in tasks])
    return tasks


def _claimed(connection: Connection, queue: str, row: tuple[Any, ...]) -> Claimed:
    (
        task_id, order_us, attempt, failures, crashes, handler, payload, options, thread_id, created_us, deadline_us,
        parents, priority, *_,
    ) = row  # fmt: skip
    task = Claimed(
        id=task_id, attempt=attempt, failures=failures, crashes=crashes, handler=handler, queue=queue, payload=payload,
        options=options, thread_id=thread_id, created_us=created_us, deadline_us=deadline_us,
        priority=priority, ready_us=ready_us(priority, order_us=order_us),
    )  # fmt: skip
    if parents:
        found = connection.execute(_PARENTS, (task_id,)).fetchall()
        task.parents = tuple(result if state == _SUCCEEDED else None for state, result in found)
    if task.attempt > 1:
        task.steps = dict(connection.execute(_STEPS, (task_id,)).fetchall())
    return task

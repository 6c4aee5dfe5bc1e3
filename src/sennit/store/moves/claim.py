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
    """What was claimed.

    Attributes:
        leased: the worker has a lease for it: it may have been taken for dead.
        any_ahead: somebody has claimed tasks of the queue ahead.
    """

    tasks: list[Claimed]
    leased: bool
    any_ahead: bool = False


def claim(
    connection: Connection,
    effects: Effects,
    *,
    worker_id: int,
    queue: str,
    n: int,
    pools: Callable[[Connection, Effects], Pools] | None = None,
    is_ahead: bool = False,
) -> Taken:
    """Take at most `n` ready tasks of `queue`, in order.

    Args:
        is_ahead: they are not begun yet (`ahead`), for which they must all be plain.
        pools: returns the providers, which the caller will flush; called only when tasks of the queue need permits.
    """
    rows = connection.execute(_NEXT, {"queue": queue, "n": n, "worker_id": worker_id}).fetchall()
    if rows:
        *_, leased, limited, has_lanes, any_ahead = rows[0]
    else:
        leased, has_lanes, any_ahead = connection.execute(_FACTS, {"queue": queue, "worker_id": worker_id}).fetchone()
    lanes = lane.lanes_for(connection, queue, worker_id) if has_lanes else []
    if lanes:
        known = Pools(connection, effects.now_us, effects.bounds) if pools is None else pools(connection, effects)
        chosen = lane.claim(connection, effects, known, lanes, worker_id=worker_id, queue=queue, n=n)
        if pools is None:
            known.flush(effects)
        tasks = _claimed_with_permits(connection, effects, queue, chosen)
        return Taken(tasks, leased=bool(leased), any_ahead=bool(any_ahead))
    if not rows:
        return Taken([], leased=bool(leased), any_ahead=bool(any_ahead))
    last = {"queue": queue, "order_us": rows[-1][1], "id": rows[-1][0]}
    connection.execute(_TAKE, {**last, "worker_id": worker_id, "now_us": effects.now_us, "is_ahead": int(is_ahead)})
    connection.execute(_DROP, last)
    effects.claimed = True
    if limited and not is_ahead:
        started(connection, [row[0] for row in rows])
    return Taken([claimed(connection, queue, row) for row in rows], leased=bool(leased), any_ahead=bool(any_ahead))


def _claimed_with_permits(
    connection: Connection, effects: Effects, queue: str, chosen: Sequence[lane.Chosen]
) -> list[Claimed]:
    tasks = []
    for row, permit, spent in chosen:
        task = claimed(connection, queue, row)
        task.permit, task.spent = permit, spent
        tasks.append(task)
    if tasks:
        effects.claimed = True
        started(connection, [task.id for task in tasks])
    return tasks


def claimed(connection: Connection, queue: str, row: tuple[Any, ...]) -> Claimed:
    """Return an attempt as its worker gets it, from a row of the first statement."""
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

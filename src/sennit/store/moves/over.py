"""Calls are over: given back, or gone with the attempt, the process or the store object that had them.

The provider is told at once, so that what follows in the same transaction finds it as it is: a fire behind a report of an
empty quota lets nobody through. Who waited and is gone is told that its permit is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sennit.errors import PermitLost
from sennit.model.provider import CallReport
from sennit.model.task import encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import lock
from sennit.store.moves.provider import Over, Pools
from sennit.store.sql import statements

_RETURN, _FREE, _FREE_WORKER, _FREE_STORE, _MOVE, _HAS_CALLS = statements("over")


class Gone(NamedTuple):
    """The row that a permit, or a request for one, had."""

    id: int
    worker_id: int
    provider: str
    model: str
    task_id: int | None
    granted_us: int | None
    mark: bytes | None


def returned(
    connection: Connection,
    effects: Effects,
    permit_id: int,
    report: CallReport | None,
    *,
    worker_ids: Collection[int],
) -> Gone | None:
    """A process gives a permit back, or no longer wants one; None when it has no such."""
    rows = connection.execute(_RETURN, (permit_id, encode(list(worker_ids)))).fetchall()
    return _gone(connection, effects, rows, report)[0] if rows else None


def free(connection: Connection, effects: Effects, task_ids: Sequence[int]) -> None:
    """The attempts of these tasks are over."""
    _gone(connection, effects, connection.execute(_FREE, (encode(task_ids),)).fetchall())


def free_worker(connection: Connection, effects: Effects, worker_id: int) -> None:
    """A process has died."""
    _gone(connection, effects, connection.execute(_FREE_WORKER, (worker_id,)).fetchall())


def free_store(connection: Connection, effects: Effects, worker_ids: Collection[int]) -> None:
    """A store object is closed. What its attempts have goes with those: somebody may still end them."""
    _gone(connection, effects, connection.execute(_FREE_STORE, (encode(list(worker_ids)),)).fetchall())


def has_calls(connection: Connection, worker_ids: Collection[int]) -> bool:
    """Return whether a process has calls that wait or are on their way, beside those that came with an attempt."""
    return bool(connection.execute(_HAS_CALLS, (encode(list(worker_ids)),)).fetchone()[0])


def move(connection: Connection, *, old_id: int, new_id: int) -> None:
    """A process has another id now."""
    connection.execute(_MOVE, (new_id, old_id))
    lock.move(connection, old_id=old_id, new_id=new_id)


def _gone(
    connection: Connection,
    effects: Effects,
    rows: Sequence[tuple[object, ...]],
    report: CallReport | None = None,
) -> list[Gone]:
    gone = [Gone(*row) for row in rows]  # type: ignore[arg-type]  # as the statement returns them
    for row in gone:
        calls = effects.for_calls()
        calls.touched.add(row.provider)
        if row.granted_us is None:
            calls.refused.append((row.worker_id, row.id, PermitLost(row.provider)))
    calls_over = [Over(row.provider, row.model, row.mark, report) for row in gone if row.granted_us is not None]
    if calls_over:
        settle(connection, effects, calls_over)
    return gone


def settle(connection: Connection, effects: Effects, calls: Sequence[Over]) -> None:
    """Tell the providers how calls went."""
    effects.for_calls().touched.update(call.provider for call in calls)
    pools = Pools(connection, effects.now_us, effects.bounds)
    pools.settle(calls)
    pools.flush(effects)

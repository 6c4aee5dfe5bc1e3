"""Thread state: a write makes the next version, if it was made from the present one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sennit.errors import ConcurrentModificationError, ThreadBusy
from sennit.model.task import encode
from sennit.model.thread import STATE, StateView, StateWrite, ThreadView
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import lock
from sennit.store.moves.turn import open_tasks
from sennit.store.sql import statements

(
    _WRITE, _PRESENT, _AT, _BY_OPERATION, _DROP_OLD, _EMPTY_OLD, _HISTORY, _FIRST_BY, _UNDO_OPERATIONS, _FORGET_OLD, _FORGET, _THREADS,
) = statements("state")  # fmt: skip

_ALL = 10**9


def write(
    connection: Connection, effects: Effects, writes: Sequence[StateWrite], *, task_id: int | None
) -> list[StateView]:
    """Write new versions in order; return them.

    Raises:
        ConcurrentModificationError, Fenced: the caller rolls all of them back.
    """
    return [_write(connection, effects, w, task_id=task_id) for w in writes]


def _write(connection: Connection, effects: Effects, write: StateWrite, *, task_id: int | None) -> StateView:
    chain = (write.thread_id, write.name)
    if write.operation_id is not None:
        known = connection.execute(_BY_OPERATION, (*chain, write.operation_id)).fetchone()
        if known is not None:
            return _view(chain, known)
    lock.check(connection, effects, write.fences)
    row = {
        "thread_id": write.thread_id, "name": write.name, "expected": write.expected, "data": write.data,
        "now_us": effects.now_us, "task_id": task_id, "operation_id": write.operation_id,
    }  # fmt: skip
    if not connection.execute(_WRITE, row).rowcount:
        actual = present(connection, *chain).version
        raise ConcurrentModificationError(write.thread_id, expected=write.expected, actual=actual)
    version = write.expected + 1
    old = version - max(1, effects.bounds.state_versions)
    if old > 0 and not connection.execute(_DROP_OLD, (*chain, old)).rowcount:
        connection.execute(_EMPTY_OLD, (*chain, old))
    return StateView(
        thread_id=write.thread_id, name=write.name, version=version, data=write.data, at_us=effects.now_us,
        task_id=task_id, operation_id=write.operation_id,
    )  # fmt: skip


def present(connection: Connection, thread_id: str, name: str) -> StateView:
    """Return the present version; version 0 when there is none."""
    row = connection.execute(_PRESENT, (thread_id, name)).fetchone()
    return StateView(thread_id=thread_id, name=name) if row is None else _view((thread_id, name), row)


def at(connection: Connection, thread_id: str, name: str, version: int) -> StateView:
    """Return one version; version 0 without data when it is not there."""
    row = connection.execute(_AT, (thread_id, name, version)).fetchone()
    return StateView(thread_id=thread_id, name=name) if row is None else _view((thread_id, name), row)


def history(connection: Connection, thread_id: str, name: str, limit: int) -> list[StateView]:
    """Return the versions that have data, newest first."""
    return [_view((thread_id, name), row) for row in connection.execute(_HISTORY, (thread_id, name, limit))]


def roll_back(connection: Connection, effects: Effects, thread_id: str, task_ids: Sequence[int]) -> None:
    """Write a new version with the data from before the first one that any of these tasks wrote."""
    first: int | None = connection.execute(_FIRST_BY, (thread_id, encode(task_ids))).fetchone()[0]
    if first is None:
        return
    back_to = at(connection, thread_id, STATE, first - 1)
    if back_to.data is None and first > 1:  # retention has dropped it: the oldest there is
        back_to = next(reversed(history(connection, thread_id, STATE, _ALL)), back_to)
    # Not the operations whose change is in the data it goes back to.
    connection.execute(_UNDO_OPERATIONS, (thread_id, max(first, back_to.version + 1)))
    now = present(connection, thread_id, STATE)
    data = b"null" if back_to.data is None else back_to.data
    _write(connection, effects, StateWrite(thread_id=thread_id, expected=now.version, data=data), task_id=None)


def forget(connection: Connection, effects: Effects, thread_id: str) -> bool:
    """Delete the data of a thread's state and config; their versions go on from where they were.

    Raises:
        ThreadBusy: it has open tasks.
    """
    busy = open_tasks(connection, thread_id)
    if busy:
        raise ThreadBusy(thread_id, busy[0])
    connection.execute(_FORGET_OLD, (thread_id,))
    return bool(connection.execute(_FORGET, (effects.now_us, thread_id)).rowcount)


def threads(connection: Connection, limit: int) -> list[ThreadView]:
    """Return threads at a glance."""
    return [
        ThreadView(
            thread_id=thread_id, holder_id=holder, open_tasks=open_, asks=asks, version=version, changed_us=changed_us
        )
        for thread_id, holder, open_, asks, version, changed_us in connection.execute(_THREADS, (limit,))
    ]


def _view(chain: tuple[str, str], row: tuple[Any, ...]) -> StateView:
    version, data, at_us, task_id, operation_id = row
    return StateView(
        thread_id=chain[0], name=chain[1], version=version, data=data, at_us=at_us, task_id=task_id,
        operation_id=operation_id,
    )  # fmt: skip

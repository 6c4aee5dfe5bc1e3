"""The half of a store with rows for locks: `store.protocol_locks.LockStore`; its promises are the docstrings there."""

# ruff: noqa: D102 - the promises stand in store/protocol_locks.py, once

from __future__ import annotations

from collections.abc import Callable, Sequence

from sennit.model.lock import LockGrant, LockRequest, LockView
from sennit.store.desk import Desk
from sennit.store.effects import Effects
from sennit.store.moves import lock
from sennit.store.reader import Reader
from sennit.store.writer import Writer
from sennit.sync.ack import Ack


class RowLocks:
    """Locks in tables."""

    now_us: Callable[[], int]
    _writer: Writer[Effects]
    _reader: Reader
    _desk: Desk

    def acquire_lock(self, request: LockRequest) -> Ack[LockGrant]:
        return self._desk.locks.acquire(request)

    def extend_lock(self, name: str, token: int, ttl_us: int) -> Ack[LockGrant]:
        return self._writer.put(lambda c, fx: lock.extend(c, fx, name, token, ttl_us))

    def release_lock(self, name: str, token: int) -> Ack[None]:
        return self._writer.put(lambda c, fx: lock.release(c, fx, name, token))

    def give_up_lock(self, request_id: int) -> Ack[bool]:
        return self._desk.locks.give_up(request_id)

    def locks(self, names: Sequence[str] = ()) -> Ack[list[LockView]]:
        return self._reader.put(lambda c: lock.views(c, names, self.now_us()))

    def seize_lock(self, name: str) -> Ack[int]:
        return self._writer.put(lambda c, fx: lock.seize(c, fx, name))

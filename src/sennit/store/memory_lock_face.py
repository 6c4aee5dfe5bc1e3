"""The locks' part of the memory store, as `store.protocol_locks` promises them."""

from __future__ import annotations

from collections.abc import Sequence

from sennit.model.lock import LockGrant, LockRequest, LockView
from sennit.store.memory_calls import ProviderFace
from sennit.sync.ack import Ack


class LockFace(ProviderFace):
    """What the store promises about locks."""

    def acquire_lock(self, request: LockRequest) -> Ack[LockGrant]:
        """Resolve with a grant as soon as the request is first in line and fits."""

        def watch() -> Ack[LockGrant]:
            return self._database.locks.ask(request, self._seat, now_us=self._database.now_us())

        return self._watch(watch)

    def extend_lock(self, name: str, token: int, ttl_us: int) -> Ack[LockGrant]:
        """Hold it until `ttl_us` from now."""
        return self._do(lambda now_us: self._database.locks.extend(name, token, ttl_us, now_us=now_us))

    def release_lock(self, name: str, token: int) -> Ack[None]:
        """Let go."""
        return self._do(lambda now_us: self._database.locks.release(name, token, now_us=now_us))

    def give_up_lock(self, request_id: int) -> Ack[bool]:
        """Wait no longer."""
        return self._do(lambda now_us: self._database.locks.give_up(request_id, now_us=now_us))

    def locks(self, names: Sequence[str] = ()) -> Ack[list[LockView]]:
        """Return the locks that are held or waited for."""
        return self._do(lambda now_us: self._database.locks.views(names, now_us=now_us))

    def seize_lock(self, name: str) -> Ack[int]:
        """Take a lock away from all who hold it."""
        return self._do(lambda now_us: self._database.locks.seize(name, now_us=now_us))

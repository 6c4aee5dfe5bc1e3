"""What an app offers about locks between processes; the part of `App` that is about them."""

from __future__ import annotations

from sennit.runtime.provider_face import ProviderFace
from sennit.store.leases import Lock, Locks, RWLock

_TTL_S = 30.0


class LockFace(ProviderFace):
    """Makes locks by name. All are first come first served, and nobody polls."""

    _locks: Locks

    def _new_locks(self) -> Locks:
        return Locks(lambda: self.store, lambda: self.settings.lock_url)

    def lock(self, name: str, *, ttl_s: float = _TTL_S, backend: str | None = None, purpose: str = "") -> Lock:
        """Return a lock that one process in the whole fleet holds at a time.

            async with app.lock("deploy") as lease:  # or `with`, in sync code
                await app.thread("release").update(change, fence=lease.fence)

        While the block runs the lease is extended, from an OS thread of its own. An async block whose lease is lost all the
        same is cancelled and ends with LockLost.

        Args:
            ttl_s: how long a holder that has died, or was cut off, keeps the others waiting. On the same host a dead one is
                noticed at once.
            backend: `redis://…`; default: the setting `lock_url`, and without it the store.
            purpose: shown to those who want to know who has it.

        Raises:
            SettingsError: a name or time that cannot be.
        """
        return self._locks.lock(name, ttl_s=ttl_s, backend=backend, purpose=purpose)

    def rwlock(self, name: str, *, ttl_s: float = _TTL_S, backend: str | None = None, purpose: str = "") -> RWLock:
        """Return a lock for many readers or one writer: `async with app.rwlock("index").read():`, or `.write()`.

        A writer that waits lets no later reader pass. Arguments and errors as for `lock`.
        """
        return self._locks.rwlock(name, ttl_s=ttl_s, backend=backend, purpose=purpose)

    def semaphore(
        self, name: str, n: int, *, ttl_s: float = _TTL_S, backend: str | None = None, purpose: str = ""
    ) -> Lock:
        """Return a lock that at most `n` hold at a time: `async with app.semaphore("gpu", 2):`.

        Everybody should name the same `n`: each is let in beside fewer than the number that it names itself. Other arguments
        and errors as for `lock`.
        """
        return self._locks.semaphore(name, n, ttl_s=ttl_s, backend=backend, purpose=purpose)

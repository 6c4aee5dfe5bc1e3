"""Distributed locks as people use them: `async with app.lock("deploy") as lease:`, over any backend.

acquire ─► the backend's line ─► Lease ─► (kept alive) ─► release
                                   └── lost: the block is cancelled, and LockLost raised at its end
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Protocol

from sennit.errors import LockLost, LockTimeout, SettingsError, StoreError, UsageError
from sennit.model.lock import LockRequest, LockView, checked_lock_name, checked_ttl_us
from sennit.store.lease import Lease
from sennit.store.lease_keeper import Keeper
from sennit.store.protocol_locks import LockBackend
from sennit.sync.ack import call_in, in_event_loop
from sennit.sync.clock import uptime_us
from sennit.sync.pending import Flow, Pending, got, run, run_blocking

_log = logging.getLogger("sennit")


class Home(Protocol):
    """Where the leases of one app live."""

    keeper: Keeper

    def backend(self, url: str) -> LockBackend:
        """Return what gives out the locks of this URL; "" is the store."""


class _Block:
    """An `async with` block: cancelled when its lease is lost, in the way of `asyncio.timeout`."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise UsageError("a lock was entered outside of an asyncio task", fix="use it inside a coroutine")
        self._loop = asyncio.get_running_loop()
        self._task = task
        self._before = task.cancelling()
        self._is_inside = True
        self._has_cancelled = False

    def lost(self) -> None:
        """On any OS thread."""
        call_in(self._loop, self._cancel)

    def _cancel(self) -> None:
        if self._is_inside:
            self._has_cancelled = True
            self._task.cancel("the lock was lost")

    async def leave(self, kind: type[BaseException] | None) -> bool:
        """End it; return whether what ends it is our own cancellation, and nobody else's."""
        self._is_inside = False
        if not self._has_cancelled:
            return False
        if kind is None:  # it ended before the cancellation reached it, which would hit the next await
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                kind = asyncio.CancelledError
        return self._task.uncancel() <= self._before and kind is not None and issubclass(kind, asyncio.CancelledError)


class Lock:
    """A lock of all processes on one store, by its name. Not re-entrant: who holds it waits for itself.

    `async with lock as lease:` and `with lock as lease:` hold it, and keep it for as long as the block runs. If it is lost
    meanwhile, an async block is cancelled and LockLost raised at its end; a sync block hears of it by `lease.check()`, and at
    its end.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        *,
        ttl_s: float,
        url: str = "",
        shared: bool = False,
        n_max: int = 0,
        purpose: str = "",
    ) -> None:
        self.name = checked_lock_name(name)
        self._home = home
        self._url = url
        self._ttl_us = checked_ttl_us(ttl_s)
        self._shared = shared
        self._n_max = n_max
        self._owner = f"{os.getpid()} on {socket.gethostname()}{f' ({purpose})' if purpose else ''}"
        self._entered: dict[object, tuple[Lease, _Block | None]] = {}

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}>"

    # ------------------------------------------------------------ by hand

    def acquire(self, *, ttl_s: float | None = None, timeout_s: float | None = None) -> Pending[Lease]:
        """Wait for it, first come first served; `await` it, or `.result()`. Nobody extends it for you: `lease.extend()`.

        Args:
            ttl_s: how long it is held unless it is extended; default: that of the lock.
            timeout_s: give up after this long; 0 does not wait at all; None waits for ever.

        Raises:
            LockTimeout: it was not free in time; says who has it.
            StoreError: the backend failed.
        """
        ttl_us = self._ttl_us if ttl_s is None else checked_ttl_us(ttl_s)
        return Pending.of(partial(self._acquire, ttl_us, timeout_s))

    def view(self) -> Pending[LockView]:
        """Return who holds it and who waits; `await` it, or `.result()`."""

        def flow() -> Flow[LockView]:
            seen = yield from got(self._home.backend(self._url).locks([self.name]))
            return seen[0] if seen else LockView(name=self.name, token=0)

        return Pending.of(flow)

    def _acquire(self, ttl_us: int, timeout_s: float | None) -> Flow[Lease]:
        backend = self._home.backend(self._url)
        end_us = None if timeout_s is None else uptime_us() + round(timeout_s * 1e6)
        while True:
            (request_id,) = backend.take_ids(1)
            request = LockRequest(
                id=request_id, name=self.name, ttl_us=ttl_us, shared=self._shared, n_max=self._n_max,
                wait=timeout_s is None or timeout_s > 0, owner=self._owner,
            )  # fmt: skip
            asked = backend.acquire_lock(request)
            alarm = None
            if end_us is not None and request.wait:
                alarm = self._home.keeper.at(end_us, partial(backend.give_up_lock, request_id))
            try:
                grant = yield from got(asked)
            except LockLost:
                if end_us is not None and uptime_us() >= end_us:
                    raise (yield from self._timeout(backend, timeout_s or 0.0)) from None
                continue  # its turn came and went while this process did not run
            except BaseException:  # a cancellation too: it may have been granted in this very moment
                if not asked.done or asked.succeeded:
                    backend.give_up_lock(request_id)
                raise
            finally:
                if alarm is not None:
                    alarm.cancel()
            prefix: str = getattr(backend, "fence_prefix", "")
            lease = Lease(backend, self._home.keeper, grant, ttl_us=ttl_us, prefix=prefix)
            if not lease.lost:
                return lease

    def _timeout(self, backend: LockBackend, timeout_s: float) -> Flow[LockTimeout]:
        seen = yield from got(backend.locks([self.name]))
        holders = [holder.owner for view in seen for holder in view.holders]
        return LockTimeout(self.name, timeout_s=timeout_s, owner=", ".join(holders) or "nobody any more")

    # ------------------------------------------------------------ as a block

    async def __aenter__(self) -> Lease:
        self._refuse_twice(caller := asyncio.current_task())
        block = _Block()
        lease = await run(self._acquire(self._ttl_us, None))
        self._entered[caller] = lease, block
        lease.keep(block.lost)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del traceback
        lease, block = self._entered.pop(asyncio.current_task())
        released = lease.let_go()
        is_ours = block is not None and await block.leave(kind)
        if lease.was_lost and (is_ours or kind is None):
            raise lease.error() from error
        try:
            await released
        except (LockLost, StoreError):
            if kind is None:
                raise  # what the block has done may have been done without the lock

    def __enter__(self) -> Lease:
        if in_event_loop():
            raise UsageError(f"`with` on the lock {self.name!r} in async code", fix="write `async with`")
        self._refuse_twice(caller := threading.get_ident())
        lease = run_blocking(self._acquire(self._ttl_us, None))
        self._entered[caller] = lease, None
        lease.keep(lambda: _log.error("the lock %r was lost while its block runs", self.name))
        return lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del error, traceback
        lease, _ = self._entered.pop(threading.get_ident())
        released = lease.let_go()
        try:
            released.wait()
        except (LockLost, StoreError):
            if kind is None:
                raise
        if kind is None and lease.was_lost:
            raise lease.error()

    def _refuse_twice(self, caller: object) -> None:
        if caller in self._entered:
            raise UsageError(
                f"the lock {self.name!r} was entered again inside its own block",
                why="it is not re-entrant: this would wait for itself",
                fix="enter it once, further out",
            )


class RWLock:
    """Many readers or one writer, in the order in which they ask: a writer waits for the readers before it only."""

    def __init__(self, make: Callable[[bool], Lock]) -> None:
        self._make = make

    def read(self) -> Lock:
        """Return the lock of a reader."""
        return self._make(True)

    def write(self) -> Lock:
        """Return the lock of a writer."""
        return self._make(False)


class Locks:
    """The locks of one app.

    Args:
        store: opens the store.
        url: of the backend for locks that name none; "" is the store.
    """

    def __init__(self, store: Callable[[], LockBackend], url: Callable[[], str]) -> None:
        self.keeper = Keeper()
        self._store = store
        self._url = url
        self._opening = threading.Lock()
        self._backends: dict[str, LockBackend] = {}

    def backend(self, url: str) -> LockBackend:
        """Return what gives out the locks of this URL; "" is the store.

        Raises:
            SettingsError: the URL names no such thing, or its extra is not installed.
        """
        if not url:
            return self._store()
        with self._opening:
            if url not in self._backends:
                if not url.startswith(("redis://", "rediss://", "unix://")):
                    raise SettingsError(
                        f"{url!r} gives out no locks",
                        fix="use redis://host:6379/0, or leave it out: then the store does",
                    )
                from sennit.store.redis_locks import RedisLocks  # noqa: PLC0415 - an extra

                self._backends[url] = RedisLocks(url)
            return self._backends[url]

    def lock(self, name: str, *, ttl_s: float, backend: str | None, purpose: str) -> Lock:
        """Return a lock that one holds alone."""
        return Lock(self, name, ttl_s=ttl_s, url=self._url_of(backend), purpose=purpose)

    def rwlock(self, name: str, *, ttl_s: float, backend: str | None, purpose: str) -> RWLock:
        """Return a lock for readers and writers."""
        url = self._url_of(backend)
        checked_lock_name(name)
        return RWLock(lambda shared: Lock(self, name, ttl_s=ttl_s, url=url, shared=shared, purpose=purpose))

    def semaphore(self, name: str, n: int, *, ttl_s: float, backend: str | None, purpose: str) -> Lock:
        """Return a lock that `n` hold at once."""
        given: object = n
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise SettingsError(f"a semaphore of {n!r} cannot be", fix="give the number that may hold it, at least 1")
        return Lock(self, name, ttl_s=ttl_s, url=self._url_of(backend), shared=True, n_max=n, purpose=purpose)

    def _url_of(self, backend: str | None) -> str:
        return self._url() if backend is None else backend

    def close(self) -> None:
        """Stop keeping leases; what is held in Redis is given back. Locks of the store go with the store."""
        keeper, self.keeper = self.keeper, Keeper()
        keeper.close()
        with self._opening:
            backends, self._backends = self._backends, {}
        for backend in backends.values():
            backend.close()

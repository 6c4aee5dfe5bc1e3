"""Reservations of files and folders, so that no agent overwrites what another one is working on.

    reserve src/app.py ─►  .        shared      a folder is locked in passing by all who reserve something in it …
                           src      shared
                           src/app.py  alone    … so nobody has the folder alone meanwhile, nor the file

They are locks of the store, in every process of the fleet: first come first served, kept alive, with fences. All who reserve
take their locks in one order, the order of the names, and let go of all together: so nobody waits in a circle.
Source: Gray, Lorie, Putzolu, Traiger, "Granularity of Locks" (1975), intention locks; there is one kind here, "shared".

It is an agreement among those who ask. Nothing keeps a program from writing where it has not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from sennit.errors import LockLost, LockTimeout, SennitError, StoreError, UsageError
from sennit.execute.path_names import PathNames
from sennit.model.lock import Fence, checked_ttl_us
from sennit.store.lease import Lease
from sennit.store.leases import RWLock
from sennit.sync.ack import Ack, call_in
from sennit.sync.clock import monotonic_s

__all__ = ["PathLocks", "Reservation", "lock_paths"]

_log = logging.getLogger("sennit")

TTL_S = 30.0


class MakesLocks(Protocol):
    """An `App`, or the `store.leases.Locks` of one."""

    def rwlock(self, name: str, *, ttl_s: float, backend: str | None, purpose: str) -> RWLock:
        """Return a lock for readers and writers."""


class Reservation:
    """Files and folders that are reserved.

    Attributes:
        id: to release it by, from elsewhere in this process; cannot be guessed.
        paths: as they were understood, relative to the repository; without those inside of others.
        owner, purpose: as given.
    """

    def __init__(self, paths: tuple[str, ...], owner: str, purpose: str) -> None:
        self.id = secrets.token_hex(8)
        self.paths = paths
        self.owner = owner
        self.purpose = purpose
        self._leases: list[tuple[str, bool, Lease]] = []  # path, alone
        self._on_lost: Callable[[], object] | None = None
        self._over: LockLost | None = None
        self._timer: asyncio.TimerHandle | None = None  # of one that is not kept
        self._at_end: Callable[[], object] = self._run_out

    def __repr__(self) -> str:
        return f"<Reservation {self.id} of {', '.join(self.paths)}{', lost' if self.lost else ''}>"

    @property
    def fences(self) -> tuple[Fence, ...]:
        """What a write carries to be refused once any part of it is lost, the folders above included.

        Raises:
            UsageError: the locks are in Redis, which has none for what is shared.
        """
        return tuple(lease.fence for *_, lease in self._leases)

    @property
    def tokens(self) -> dict[str, int]:
        """The token of each path: greater than that of all who had it before."""
        return {path: lease.token for path, alone, lease in self._leases if alone}

    @property
    def lost(self) -> bool:
        """True when a part of it is not surely held any more, though nobody has released it."""
        return self._over is not None or any(lease.lost for *_, lease in self._leases)

    def check(self) -> None:
        """Raise LockLost if it is lost."""
        if self._over is not None:
            raise self._over
        for *_, lease in self._leases:
            lease.check()

    def extend(self, ttl_s: float) -> None:
        """Hold one that is not kept until `ttl_s` from now. On the event loop it was made on.

        Raises:
            LockLost: it, or a part of it, is not held any more.
        """
        self.check()
        if self._timer is not None:
            timer = self._timer
            self._end_in(ttl_s, self._at_end)
            timer.cancel()

    def _end_in(self, ttl_s: float, over: Callable[[], object]) -> None:
        self._at_end = over
        self._timer = asyncio.get_running_loop().call_later(checked_ttl_us(ttl_s) / 1e6, over)

    def _run_out(self) -> None:
        path, _, lease = self._leases[-1]
        self._over = LockLost(path, lease.token, why="its time was over, and it was not extended")
        for released in self._send_releases()[1]:
            released.add_done_callback(_log_failure)

    def _took(self, path: str, lease: Lease, *, alone: bool) -> None:
        self._leases.append((path, alone, lease))
        lease.keep(self._lost)

    def _lost(self) -> None:
        """On any OS thread."""
        if (on_lost := self._on_lost) is not None:
            on_lost()

    def _send_releases(self) -> tuple[LockLost | None, list[Ack[None]]]:
        if self._timer is not None:
            self._timer.cancel()
        self._on_lost = None
        lost = next((lease.error() for *_, lease in self._leases if lease.was_lost), self._over)
        return lost, [lease.let_go() for *_, lease in reversed(self._leases)]

    async def _let_go(self) -> None:
        """Let go of everything, and then say if a part was lost."""
        lost: SennitError | None
        lost, sent = self._send_releases()
        for released in sent:
            try:
                await released
            except (LockLost, StoreError) as error:
                lost = lost or error
        if lost is not None:
            raise lost


class PathLocks:
    """Reservations in one repository.

    Args:
        locks: an `App`, or its `Locks`.
        repository: the folder that paths are relative to. All worktrees of one git repository are one: the same file in two of
            them is reserved once.
        backend: as for `app.lock`.
    """

    def __init__(self, locks: MakesLocks, repository: Path, *, backend: str | None = None) -> None:
        self._locks = locks
        self._names = PathNames(repository)
        self._backend = backend
        self._held: dict[str, Reservation] = {}

    @property
    def held(self) -> tuple[Reservation, ...]:
        """The reservations that were made by this object and not released."""
        return tuple(self._held.values())

    async def acquire(
        self,
        paths: Iterable[str | Path],
        *,
        owner: str = "",
        purpose: str = "",
        ttl_s: float = TTL_S,
        timeout_s: float | None = None,
        keep: bool = True,
    ) -> Reservation:
        """Reserve files and folders, all or none of them; a folder with all that is in it, "." is everything.

        Who has a reservation already and waits for one more can wait in a circle with others: reserve all at once, or give a
        `timeout_s`. They need not exist. Case and the form of accents are not told apart: other machines may not, either.

        Args:
            owner, purpose: shown to those who want the same.
            ttl_s: how long it holds when it is not kept; and, kept, how long others wait when this host is cut off.
            timeout_s: give up after this long; 0 does not wait at all; None waits for ever.
            keep: this process keeps it alive until it is released; else it is over after `ttl_s`, unless it is extended.

        Raises:
            LockTimeout: one of them was not free in time; `owner` says who has what.
            LockLost: it was lost before all of it was got.
            SettingsError: a path that is a pattern, or leads out of the repository.
        """
        wanted = self._names.wanted(paths)
        reservation = Reservation(tuple(wanted.paths), owner, purpose)
        said = f"{owner or 'somebody'}: {', '.join(wanted.paths)}{f', {purpose}' if purpose else ''}"[:200]
        end_s = None if timeout_s is None else monotonic_s() + timeout_s
        lease_s = ttl_s if keep else TTL_S  # then its end is a timer of ours, for all of it at once
        rwlocks = [
            (path, alone, self._locks.rwlock(name, ttl_s=lease_s, backend=self._backend, purpose=said))
            for name, path, alone in wanted.locks
        ]
        try:
            for path, alone, rwlock in rwlocks:
                lock = rwlock.write() if alone else rwlock.read()
                rest_s = None if end_s is None else max(0.0, end_s - monotonic_s())
                try:
                    lease = await lock.acquire(timeout_s=rest_s)
                except LockTimeout:
                    owner = await _holders(rwlocks, reservation.tokens)
                    raise LockTimeout(", ".join(wanted.paths), timeout_s=timeout_s or 0.0, owner=owner) from None
                reservation._took(path, lease, alone=alone)  # noqa: SLF001 - one thing in two classes
            reservation.check()
        except BaseException:
            with contextlib.suppress(LockLost, StoreError):  # what ended it is told
                await reservation._let_go()  # noqa: SLF001
            raise
        self._held[reservation.id] = reservation
        if not keep:
            reservation._end_in(ttl_s, partial(self._time_is_over, reservation))  # noqa: SLF001
        return reservation

    def _time_is_over(self, reservation: Reservation) -> None:
        self._held.pop(reservation.id, None)
        reservation._run_out()  # noqa: SLF001

    async def release(self, reservation: Reservation | str) -> None:
        """Release a reservation, or the one of an id.

        Raises:
            LockLost: a part of it was not held any more.
            UsageError: there is none of this id here; it was released before, perhaps.
        """
        wanted = reservation if isinstance(reservation, str) else reservation.id
        found = self._held.pop(wanted, None)
        if found is None:
            raise UsageError(
                f"there is no reservation {wanted!r} here",
                why="it was released already, or another process has made it",
                fix="release it once, where it was made; a process that ends releases all of its own",
            )
        await found._let_go()  # noqa: SLF001

    def find(self, reservation_id: str) -> Reservation | None:
        """Return the reservation of an id."""
        return self._held.get(reservation_id)


@contextlib.asynccontextmanager
async def lock_paths(
    locks: MakesLocks,
    repository: Path,
    paths: Iterable[str | Path],
    *,
    owner: str = "",
    purpose: str = "",
    ttl_s: float = TTL_S,
    timeout_s: float | None = None,
) -> AsyncIterator[Reservation]:
    """Have files and folders reserved while a block runs.

        async with lock_paths(app, repository, ["src/core", "README.md"], owner="fixer") as reservation: ...

    When a part is lost the block is cancelled, and LockLost raised at its end. Arguments and errors as for `PathLocks.acquire`.
    """
    path_locks = PathLocks(locks, repository)
    reservation = await path_locks.acquire(paths, owner=owner, purpose=purpose, ttl_s=ttl_s, timeout_s=timeout_s)
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)

    def cancel() -> None:
        if reservation._on_lost is not None:  # noqa: SLF001 - the block has not ended
            scope.reschedule(loop.time())

    try:
        async with scope:
            reservation._on_lost = lambda: call_in(loop, cancel)  # noqa: SLF001
            if reservation.lost:  # before anybody listened
                cancel()
            try:
                yield reservation
            finally:
                reservation._on_lost = None  # noqa: SLF001
    except BaseException as error:
        was_lost = isinstance(error, TimeoutError) and scope.expired()
        try:
            await path_locks.release(reservation)
        except (LockLost, StoreError) as told:
            if was_lost:
                raise told from None
        raise  # what ended the block
    await path_locks.release(reservation)


async def _holders(rwlocks: Sequence[tuple[str, bool, RWLock]], mine: Mapping[str, int]) -> str:
    """Return who holds what of that which is wanted, for people."""
    found = []
    for path, alone, rwlock in rwlocks:
        view = await rwlock.write().view()
        held = [holder for holder in view.holders if holder.token != mine.get(path)]
        found += [f"{holder.owner} has {path}" for holder in held if alone or not holder.shared]
        if not held:
            found += [f"{waiting.owner} waits for {path}" for waiting in view.waiting if alone or not waiting.shared]
    return "; ".join(dict.fromkeys(found)) or "nobody any more"


def _log_failure(released: Ack[None]) -> None:
    try:
        released.wait()
    except LockLost:
        pass  # it was over for the store too
    except StoreError as error:
        _log.warning("a reservation whose time is over could not be released: %s", error)

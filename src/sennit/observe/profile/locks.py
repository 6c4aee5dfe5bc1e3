"""Which locks are waited for: every `threading.Lock` and `RLock` of the program counts, by the place that made it.

A lock that is released by another OS thread than the one that took it, or that its holder asks for again, is a signal
and not a lock: whoever waits for it waits for work. Such places are left out.
"""

# ruff: noqa: SLF001 - a stand-in for a lock has to hand on what threading asks of it

from __future__ import annotations

import threading
from _thread import get_ident
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sennit.observe.profile.facts import LockFacts
from sennit.observe.profile.places import caller

if TYPE_CHECKING:
    from types import TracebackType


WAITERS_MAX: Final = 1000
_RESTORE_S: Final = 0.0005  # below it nobody else can have had the lock: a switch between OS threads takes longer


class _Here(threading.local):
    """What this OS thread has waited for locks and conditions, ever."""

    waited_s = 0.0


_here: Final = _Here()


def waited_here_s() -> float:
    """Return how long this OS thread has waited for watched locks and for conditions, ever."""
    return _here.waited_s


@dataclass(slots=True)
class _Site:
    """One place that makes locks. Counted without a lock of its own: under the GIL an addition is hardly ever lost."""

    where: str
    locks: int = 0
    acquisitions: int = 0
    contended: int = 0
    waited_s: float = 0.0
    waited_s_max: float = 0.0
    signals: int = 0
    waiters: set[int] = field(default_factory=set)

    def waited(self, seconds: float) -> None:
        _here.waited_s += seconds
        self.contended += 1
        if len(self.waiters) < WAITERS_MAX:
            self.waiters.add(get_ident())
        self.waited_s += seconds
        self.waited_s_max = max(self.waited_s_max, seconds)


class WatchedLock:
    """A `threading.Lock` that counts; three to four times its cost when nobody else holds it, which is 0.2 µs more."""

    __slots__ = ("__weakref__", "_give", "_inner", "_owner", "_site", "_take")

    def __init__(self, inner: threading.Lock, site: _Site) -> None:
        self._inner = inner
        self._take, self._give = inner.acquire, inner.release
        self._site = site
        self._owner = 0  # known only of one that was acquired without `with`

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as threading's
        """As the lock's own."""
        got = self._take(False) or (blocking and self._wait(timeout))
        if got:
            self._owner = get_ident()
            self._site.acquisitions += 1
        return got

    def release(self) -> None:
        """As the lock's own."""
        if self._owner and self._owner != get_ident():
            self._site.signals += 1
        self._owner = 0
        self._give()

    def _wait(self, timeout: float) -> bool:
        site = self._site
        if self._owner == get_ident():
            site.signals += 1
        began_s = monotonic()
        got = self._take(True, timeout)
        site.waited(monotonic() - began_s)
        return got

    def locked(self) -> bool:
        """As the lock's own."""
        return self._inner.locked()

    # The two above once more: a call less is a third of what they cost, and `with` gives back what it took.

    def __enter__(self) -> bool:
        if not self._take(False):
            self._wait(-1)
        self._site.acquisitions += 1
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner = 0
        self._give()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # what only some versions of Python ask of a lock


class WatchedRLock:
    """A `threading.RLock` that counts; taking it again counts as well."""

    __slots__ = ("__weakref__", "_inner", "_site")

    def __init__(self, inner: Any, site: _Site) -> None:
        self._inner = inner
        self._site = site

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as threading's
        """As the lock's own."""
        inner = self._inner
        if inner.acquire(False):
            self._site.acquisitions += 1  # also those of its holder, which are free
            return True
        if not blocking:
            return False
        began_s = monotonic()
        got = bool(inner.acquire(True, timeout))
        self._site.waited(monotonic() - began_s)
        self._site.acquisitions += got
        return got

    def release(self) -> None:
        """As the lock's own."""
        self._inner.release()

    def __enter__(self) -> bool:
        if not self._inner.acquire(False):
            return self.acquire()
        self._site.acquisitions += 1
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inner.release()

    # What threading.Condition asks of a lock that can be taken again.

    def _is_owned(self) -> bool:
        return bool(self._inner._is_owned())

    def _release_save(self) -> Any:
        return self._inner._release_save()

    def _acquire_restore(self, state: Any) -> None:
        began_s = monotonic()
        self._inner._acquire_restore(state)
        if (waited_s := monotonic() - began_s) > _RESTORE_S:
            self._site.waited(waited_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class LockWatch:
    """Makes `threading.Lock()` and `threading.RLock()` return locks that count. Those made before are not seen.

    A wait for a condition (so for an event, a semaphore, a `queue.Queue`) is no finding, but counts as waiting of the OS
    thread: more OS threads in its pool would wait there, too.
    """

    def __init__(self) -> None:
        self._sites: dict[str, _Site] = {}
        self._module: Any = threading  # whose names stand for other things for a while
        self._lock: Callable[[], threading.Lock] = threading.Lock
        self._rlock: Callable[[], Any] = threading.RLock
        self._wait = threading.Condition.wait

    def start(self) -> None:
        """From now on."""
        make_lock, make_rlock, site = self._lock, self._rlock, self._site
        self._module.Lock = lambda: WatchedLock(make_lock(), site())
        self._module.RLock = lambda: WatchedRLock(make_rlock(), site())
        wait = self._wait

        def watched(condition: threading.Condition, timeout: float | None = None) -> bool:
            before_s, began_s = _here.waited_s, monotonic()
            try:
                return wait(condition, timeout)
            finally:  # with the lock that it takes again
                _here.waited_s = before_s + monotonic() - began_s

        self._module.Condition.wait = watched

    def stop(self) -> list[LockFacts]:
        """Make plain locks again and return what was seen, most waited for first."""
        self._module.Lock = self._lock
        self._module.RLock = self._rlock
        self._module.Condition.wait = self._wait
        sites = [site for site in self._sites.values() if site.acquisitions and not site.signals]
        return [
            LockFacts(s.where, s.locks, s.acquisitions, s.contended, s.waited_s, s.waited_s_max, len(s.waiters))
            for s in sorted(sites, key=lambda site: site.waited_s, reverse=True)
        ]

    def _site(self) -> _Site:
        where = caller()
        site = self._sites.get(where)
        if site is None:
            site = self._sites.setdefault(where, _Site(where))
        site.locks += 1
        return site

"""Tells listeners of commits: each once, in version order per key, and never inside the lock of what they listen to.

    commit (in the lock): post ──► a queue per key        (lock released): deliver ──► listeners, one change at a time

Whoever comes to deliver first empties the queue; others that commit to the same key meanwhile leave their change in it
and go on. So order needs no lock around the listeners, and a listener may commit itself. The price: an OS thread that
delivers the changes of a busy key may carry those of others along.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Change", "Changes", "Subscription"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_log = logging.getLogger("sennit")


@dataclass(frozen=True, slots=True)
class Change(Generic[K, V]):
    """One commit. `value` is None when `deleted`; a deletion has a version of its own."""

    key: K
    value: V | None
    version: int
    deleted: bool = False


class Subscription(Generic[K, V]):
    """One listener, until it is no longer `active`."""

    __slots__ = ("active", "callback")

    def __init__(self, callback: Callable[[Change[K, V]], object]) -> None:
        self.callback = callback
        self.active = True

    def call(self, change: Change[K, V]) -> BaseException | None:
        """Deliver. What is not an error but wants to stop the program is returned: others hear of the change first."""
        if self.active:
            try:
                self.callback(change)
            except Exception:  # noqa: BLE001 - logged; the bug of one listener is not the problem of who commits
                _log.exception("a subscriber failed on %r", change.key)
            except BaseException as stop:  # noqa: BLE001 - raised by `deliver`
                return stop
        return None


class Changes(Generic[K, V]):
    """The listeners of one map and what they have not heard yet. `lock` is the map's."""

    __slots__ = ("_all", "_delivering", "_lock", "_of_key", "_undelivered")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._all: tuple[Subscription[K, V], ...] = ()
        self._of_key: dict[K, tuple[Subscription[K, V], ...]] = {}
        self._undelivered: dict[K, deque[tuple[Change[K, V], tuple[Subscription[K, V], ...]]]] = {}
        self._delivering: set[K] = set()

    def add(self, listener: Subscription[K, V]) -> None:
        """Have it called for every later commit."""
        with self._lock:
            self._all = (*self._all, listener)

    def remove(self, listener: Subscription[K, V]) -> None:
        """Have it called no more, also not for what it has missed so far."""
        listener.active = False
        with self._lock:
            self._all = tuple(s for s in self._all if s is not listener)

    def add_to(self, key: K, listener: Subscription[K, V]) -> None:
        """Have it called for every later commit of one key; the caller holds the lock."""
        self._of_key[key] = (*self._of_key.get(key, ()), listener)

    def remove_from(self, key: K, listener: Subscription[K, V]) -> None:
        """Undo `add_to`."""
        listener.active = False
        with self._lock:
            left = tuple(s for s in self._of_key[key] if s is not listener)
            if left:
                self._of_key[key] = left
            else:
                del self._of_key[key]

    def post(self, key: K, value: V | None, version: int, *, deleted: bool = False) -> None:
        """Put a commit into the queue of its key; the caller holds the lock, and calls `deliver` after it."""
        listeners = self._all + self._of_key.get(key, ())
        if listeners:
            change = Change(key, value, version, deleted)
            self._undelivered.setdefault(key, deque()).append((change, listeners))

    def deliver(self, key: K) -> None:
        """Tell the listeners, unless there is nothing to tell or another OS thread is at it."""
        if key not in self._undelivered:
            return
        with self._lock:
            if key in self._delivering:
                return
            self._delivering.add(key)
        stopped: BaseException | None = None
        try:
            while (due := self._next(key)) is not None:
                change, listeners = due
                for listener in listeners:
                    stopped = listener.call(change) or stopped
        except BaseException:
            with self._lock:  # a Ctrl-C between two calls: what is left goes out with the next commit of the key
                self._delivering.discard(key)
            raise
        if stopped is not None:
            raise stopped

    def _next(self, key: K) -> tuple[Change[K, V], tuple[Subscription[K, V], ...]] | None:
        """Return what to deliver next; None, and the delivery is over, if there is nothing."""
        with self._lock:
            if queue := self._undelivered.get(key):
                return queue.popleft()
            self._undelivered.pop(key, None)
            self._delivering.discard(key)
            return None

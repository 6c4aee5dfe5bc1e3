"""Values with versions: read, compute, commit only if nobody else has committed meanwhile.

    get ──► fn(value), outside the lock ──► version still the same? ──yes──► commit, version + 1 ──► tell subscribers
     ▲                                              │ no: somebody was faster
     └──────────────────────────────────────────────┘ a bounded number of times

The in-process twin of durable thread state, usable alone. Nobody waits for somebody else's `fn`: a slow one only risks
running again. Reads take no lock. A version is never used twice for a key, not even after a `delete`, so a
`compare_and_set` cannot mistake a new life of a key for the old one.

Values belong to the caller and are not copied: `fn` must return a new value and leave the one it was given alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar, cast, overload

from sennit.errors import ConcurrentModificationError
from sennit.sync.changes import Change, Changes, Subscription

if TYPE_CHECKING:
    from sennit.sync.ack import Ack

__all__ = ["Change", "Versioned", "VersionedMap", "VersionedMapStatistics", "Wait"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

ATTEMPTS_MAX: Final = 1000
"""How often `update` and `apply` try. One of the competitors always wins: this many defeats mean an `fn` that takes far
longer than the pause between the commits of others."""

OPERATIONS_MAX: Final = 1000
"""How many `operation_id`s one key remembers; the oldest is forgotten first. About 100 bytes each."""

_MISSING: Final[Any] = object()


class Versioned(NamedTuple, Generic[V]):
    """A value and the number of its commit; version 0 is a key that is not there."""

    value: V
    version: int


@dataclass(frozen=True, slots=True)
class VersionedMapStatistics:
    """Keys now; commits and conflicts (an attempt that came too late) since the map was made."""

    keys: int
    commits: int
    conflicts: int


class _Entry(Generic[V]):
    __slots__ = ("operations", "state")

    def __init__(self, state: Versioned[V]) -> None:
        self.state = state
        self.operations: dict[str, None] | None = None  # a dict for its order: the oldest leaves first

    def has_done(self, operation_id: str | None) -> bool:
        return self.operations is not None and operation_id in self.operations

    def remember(self, operation_id: str, operations_max: int) -> None:
        if self.operations is None:
            self.operations = {}
        self.operations[operation_id] = None
        while len(self.operations) > operations_max:
            del self.operations[next(iter(self.operations))]


class VersionedMap(Generic[K, V]):
    """A dict of versioned values for any number of OS threads and event loops.

    No method waits but those of the `Wait` that `wait_for` returns; all may be called on an event loop.
    """

    def __init__(self, *, attempts_max: int = ATTEMPTS_MAX, operations_max: int = OPERATIONS_MAX) -> None:
        self._attempts_max = attempts_max
        self._operations_max = operations_max
        self._lock = threading.Lock()  # held for a comparison and a store, never while code of the caller runs
        self._entries: dict[K, _Entry[V]] = {}
        self._version_floor = 0  # the highest version that a deletion has ended; a new key starts above it
        self._commits = 0
        self._conflicts = 0
        self._changes: Changes[K, V] = Changes(self._lock)

    # ------------------------------------------------------------ reading

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: D | None = None) -> V | D | None:
        """Return the value, or `default`. Takes no lock."""
        entry = self._entries.get(key)
        return default if entry is None else entry.state.value

    def get_versioned(self, key: K) -> Versioned[V | None]:
        """Return value and version of the same commit; `(None, 0)` when the key is not there. Takes no lock."""
        entry = self._entries.get(key)
        return Versioned(None, 0) if entry is None else cast("Versioned[V | None]", entry.state)

    def items(self) -> list[tuple[K, Versioned[V]]]:
        """Return all keys as they were at one moment."""
        with self._lock:
            return [(key, entry.state) for key, entry in self._entries.items()]

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def statistics(self) -> VersionedMapStatistics:
        """Return the counts since this map was made."""
        with self._lock:
            return VersionedMapStatistics(len(self._entries), self._commits, self._conflicts)

    # ------------------------------------------------------------ writing

    def set(self, key: K, value: V) -> int:
        """Store `value` whatever was there and return its version."""
        with self._lock:
            version, _replaced = self._commit(key, value)
        self._changes.deliver(key)
        return version

    def compare_and_set(self, key: K, expected_version: int, value: V) -> bool:
        """Store `value` if the key still has this version (0: is not there). False, and no change, otherwise."""
        with self._lock:
            if self._version(key) != expected_version:
                self._conflicts += 1
                return False
            _version, _replaced = self._commit(key, value)
        self._changes.deliver(key)
        return True

    def update(self, key: K, fn: Callable[[V], V], *, default: V = _MISSING, operation_id: str | None = None) -> V:
        """Replace the value by `fn(value)` and return the new one.

        `fn` runs outside the lock, and again when another commit came first; it should have no other effects. If it
        raises, nothing changes.

        Args:
            default: what `fn` gets when the key is not there.
            operation_id: makes a repeat harmless: a second update of the key with this id changes nothing and returns
                the value as it is then. The last `operations_max` ids of a key are remembered, until it is deleted.

        Raises:
            KeyError: the key is not there and no `default` is given.
            ConcurrentModificationError: another commit came first `attempts_max` times in a row.
        """
        return self.apply(key, (fn,), default=default, operation_id=operation_id)

    def update_if(self, key: K, expected_version: int, fn: Callable[[V], V], *, default: V = _MISSING) -> bool:
        """Replace the value by `fn(value)` if the key has this version now and still has it when `fn` is done.

        Raises:
            KeyError: `expected_version` is 0, the key is not there, and no `default` is given.
        """
        entry = self._entries.get(key)
        state = Versioned(default, 0) if entry is None else entry.state
        if state.version != expected_version:
            with self._lock:
                self._conflicts += 1
            return False
        if state.value is _MISSING:
            raise KeyError(key)
        return self.compare_and_set(key, expected_version, fn(state.value))

    def apply(
        self, key: K, fns: Iterable[Callable[[V], V]], *, default: V = _MISSING, operation_id: str | None = None
    ) -> V:
        """Run the value through all `fns`, in order, as one commit with one version: all or nothing.

        Raises:
            KeyError, ConcurrentModificationError: as `update`.
        """
        steps = tuple(fns)
        expected = actual = 0
        for _ in range(self._attempts_max):
            entry = self._entries.get(key)
            if entry is not None and entry.has_done(operation_id):
                return entry.state.value
            if entry is None and default is _MISSING:
                raise KeyError(key)
            value, expected = Versioned(default, 0) if entry is None else entry.state
            for fn in steps:
                value = fn(value)
            with self._lock:
                entry = self._entries.get(key)
                if entry is not None and entry.has_done(operation_id):
                    return entry.state.value
                actual = self._version(key)
                if actual == expected:
                    _version, _replaced = self._commit(key, value, operation_id)
                    break
                self._conflicts += 1
        else:
            raise ConcurrentModificationError(str(key), expected, actual)
        self._changes.deliver(key)
        return value

    def delete(self, key: K) -> bool:
        """Remove the key and the operation ids it remembers. False if it is not there."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                return False
            version = entry.state.version + 1
            self._version_floor = max(self._version_floor, version)
            self._commits += 1
            self._changes.post(key, None, version, deleted=True)
        self._changes.deliver(key)
        return True

    # ------------------------------------------------------------ being told

    def subscribe(self, callback: Callable[[Change[K, V]], object]) -> Callable[[], None]:
        """Call `callback(change)` after every later commit and return what ends that.

        It runs outside the lock in an OS thread that commits, once per commit and in version order per key. While one
        OS thread delivers the changes of a key, others leave theirs to it and do not wait. What a callback raises is
        logged; it may write to this map.
        """
        subscription = Subscription(callback)
        self._changes.add(subscription)
        return lambda: self._changes.remove(subscription)

    def wait_for(
        self, key: K, predicate: Callable[[V], bool] | None = None, *, version: int | None = None
    ) -> Wait[K, V]:
        """Wait until the key is there, has at least `version`, and `predicate(value)` holds.

        `await` what this returns, or call its `result(timeout_s)`. From then on every commit is looked at, so a value
        that is soon replaced is not missed. `predicate` runs in the OS thread that commits; what it raises, the
        waiter gets.
        """
        return Wait(self._watch, self._changes, key, predicate=predicate, version_min=version or 1)

    # ------------------------------------------------------------ inside

    def _version(self, key: K) -> int:
        entry = self._entries.get(key)
        return 0 if entry is None else entry.state.version

    def _commit(self, key: K, value: V, operation_id: str | None = None) -> tuple[int, Versioned[V] | None]:
        """Store a value and enqueue the news; the lock is held.

        Returns:
            The new version, and what was replaced: the caller keeps it until the lock is released, because dropping
            the last reference to a value may run code of its owner (`__del__`).
        """
        entry = self._entries.get(key)
        replaced = None if entry is None else entry.state
        state = Versioned(value, (self._version_floor if replaced is None else replaced.version) + 1)
        if entry is None:
            entry = self._entries[key] = _Entry(state)
        else:
            entry.state = state
        if operation_id is not None:
            entry.remember(operation_id, self._operations_max)
        self._commits += 1
        self._changes.post(key, value, state.version)
        return state.version, replaced

    def _watch(self, key: K, listener: Subscription[K, V]) -> Versioned[V] | None:
        """Add a listener of one key and return what is there at that moment."""
        with self._lock:
            self._changes.add_to(key, listener)
            entry = self._entries.get(key)
            return None if entry is None else entry.state


class Wait(Generic[K, V]):
    """A wait for one key: `await` it, or call `result()`; both give the `Versioned` that was waited for."""

    __slots__ = ("_changes", "_key", "_predicate", "_version_min", "_watch")

    def __init__(
        self,
        watch: Callable[[K, Subscription[K, V]], Versioned[V] | None],
        changes: Changes[K, V],
        key: K,
        *,
        predicate: Callable[[V], bool] | None,
        version_min: int,
    ) -> None:
        self._watch = watch
        self._changes = changes
        self._key = key
        self._predicate = predicate
        self._version_min = version_min

    def __await__(self) -> Generator[Any, None, Versioned[V]]:
        ack, listener = self._begin()
        try:
            return (yield from ack.__await__())
        finally:
            self._changes.remove_from(self._key, listener)

    def result(self, timeout_s: float | None = None) -> Versioned[V]:
        """Block this OS thread until it is so.

        Raises:
            UsageError: called on an event loop's OS thread, which it would block; use `await`.
            TimeoutError: it is not so within `timeout_s`.
        """
        ack, listener = self._begin()
        try:
            return ack.result(timeout_s)
        finally:
            self._changes.remove_from(self._key, listener)

    def _begin(self) -> tuple[Ack[Versioned[V]], Subscription[K, V]]:
        from sennit.sync.ack import Ack  # noqa: PLC0415 - asyncio is paid for by those who wait

        ack: Ack[Versioned[V]] = Ack()

        def look(value: V, version: int) -> None:
            if ack.done or version < self._version_min:
                return
            try:
                if self._predicate is None or self._predicate(value):
                    ack.resolve(Versioned(value, version))
            except Exception as error:  # noqa: BLE001 - the waiter raises it
                ack.reject(error)

        def heard(change: Change[K, V]) -> None:
            if not change.deleted:
                look(cast("V", change.value), change.version)

        listener = Subscription(heard)
        state = self._watch(self._key, listener)
        if state is not None:
            look(*state)
        return ack, listener

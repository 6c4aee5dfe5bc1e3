"""Names and what they stand for: read all the time, written now and then, read as a whole at one moment.

    get ──► dict.get on the current dict                              no lock, no copy
    snapshot ──► the current dict itself, marked as given away        no copy
    register ──► given away? copy, change the copy, swap the reference (one store)
                 else change it in place

So a snapshot never changes once somebody has it, a thousand registrations with no snapshot between them cost O(n)
together, and `register_all` is seen by readers as a whole or not at all. Reads are lock-free in the sense of `shards`:
no Python-level lock. Snapshots, kinds and labels take the lock for a moment.

A read costs a third of one under a lock (8 OS threads, CPython 3.11: 3.0 times as many per CPU-second), as much as one of
a dict in a class. When to use what: a plain dict is as good while nobody reads it as a whole and nobody wants to be told. `ShardedMap` is
for values that are written as often as they are read; here every write in between two snapshots copies all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, overload

from sennit.errors import UsageError
from sennit.sync.changes import Change, Changes, Subscription

__all__ = ["Registration", "Registry", "RegistryStatistics"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

_ALL: Final = ""  # the one key of `Changes`, whose order is per key: so it is the order of all
_MISSING: Final[Any] = object()
_NO_LABELS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Registration(Generic[K, V]):
    """What `register_all` takes, one each."""

    key: K
    value: V
    kind: str = ""
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryStatistics:
    """Keys now; since it was made: changes (registered and unregistered), snapshots given, copies made because of them."""

    keys: int
    changes: int
    snapshots: int
    copies: int


class Registry(Generic[K, V]):
    """See the module. For any number of OS threads and event loops; nothing waits but for other writers."""

    __slots__ = (
        "__weakref__", "_changes", "_copies", "_given", "_kinds", "_labels", "_listeners", "_lock", "_marks", "_snapshots",
        "_values", "_version",
    )  # fmt: skip

    def __init__(self) -> None:
        self._values: dict[K, V] = {}  # read without the lock; changed in place only while `_given` is False
        self._lock = threading.Lock()
        self._given = False
        self._marks: dict[K, tuple[str, frozenset[str]]] = {}  # kind and labels, for those that have any
        self._kinds: dict[str, dict[K, None]] = {}
        self._labels: dict[str, dict[K, None]] = {}
        self._version = 0
        self._snapshots = 0
        self._copies = 0
        self._listeners = 0
        self._changes: Changes[str, tuple[Change[K, V], ...]] = Changes(self._lock)

    # ------------------------------------------------------------ reading, without a lock

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:
        """Return the value, or `default`."""
        return self._values.get(key, default)

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    # ------------------------------------------------------------ reading all, or some

    def snapshot(self) -> Mapping[K, V]:
        """Return all as they are at this moment, in the order they came. It never changes; O(1)."""
        with self._lock:
            self._given = True
            self._snapshots += 1
            return MappingProxyType(self._values)

    def items(self) -> Iterable[tuple[K, V]]:
        """Return keys and values of one moment."""
        return self.snapshot().items()

    def __iter__(self) -> Iterator[K]:
        """Yield the keys of the moment this is called."""
        return iter(self.snapshot())

    def by_kind(self, kind: str) -> list[tuple[K, V]]:
        """Return those that were registered with this kind, in the order they came; O(of the answer)."""
        with self._lock:
            return [(key, self._values[key]) for key in self._kinds.get(kind, ())]

    def by_label(self, label: str) -> list[tuple[K, V]]:
        """Return those that were registered with this label, in the order they came; O(of the answer)."""
        with self._lock:
            return [(key, self._values[key]) for key in self._labels.get(label, ())]

    def statistics(self) -> RegistryStatistics:
        """Return the figures so far."""
        with self._lock:
            return RegistryStatistics(
                keys=len(self._values), changes=self._version, snapshots=self._snapshots, copies=self._copies
            )

    # ------------------------------------------------------------ writing

    def register(self, key: K, value: V, *, kind: str = "", labels: Iterable[str] = (), replace: bool = False) -> None:
        """Add one; subscribers are told before this returns, unless another OS thread is telling them.

        Args:
            replace: put it in the place of what is registered under this key.

        Raises:
            UsageError: the key is registered, and `replace` is False.
        """
        marks = frozenset(labels) if labels else _NO_LABELS
        with self._lock:
            values = self._writable() if self._given else self._values
            replaced = values.get(
                key, _MISSING
            )  # kept until the lock is released: dropping it may run its owner's code
            if replaced is not _MISSING and not replace:
                raise self._known(key)
            if kind or marks or key in self._marks:
                self._mark(key, kind, marks)
            values[key] = value
            self._version = version = self._version + 1
            if self._given:
                self._values, self._given = values, False
            heard = self._listeners
            if heard:
                self._changes.post(_ALL, (Change(key, value, version),), version)
        if heard:
            self._changes.deliver(_ALL)

    def register_all(self, registrations: Iterable[Registration[K, V]], *, replace: bool = False) -> None:
        """Add many: readers and subscribers see all of them or none; O(n) for n of them, and the copy of what is there.

        Raises:
            UsageError: a key is registered or comes twice, and `replace` is False; nothing was added.
        """
        new = tuple(registrations)
        with self._lock:
            if not replace:
                self._refuse_known(new)
            values = dict(self._values)
            self._copies += 1
            replaced = [values.get(one.key) for one in new]  # as above
            before = self._version
            for one in new:
                self._mark(one.key, one.kind, one.labels)
                values[one.key] = one.value
            self._version += len(new)
            self._values, self._given = values, False
            if self._listeners and new:
                news = tuple(Change(one.key, one.value, before + n) for n, one in enumerate(new, start=1))
                self._changes.post(_ALL, news, self._version)
        del replaced
        self._changes.deliver(_ALL)

    def unregister(self, key: K) -> bool:
        """Remove one. False if it is not there."""
        with self._lock:
            if key not in self._values:
                return False
            values = self._writable()
            removed = values.pop(key)  # kept until the lock is released, as above
            self._values, self._given = values, False
            self._mark(key, "", _NO_LABELS)
            self._version += 1
            if self._listeners:
                self._changes.post(_ALL, (Change(key, None, self._version, deleted=True),), self._version)
        del removed
        if self._listeners:
            self._changes.deliver(_ALL)
        return True

    def subscribe(self, callback: Callable[[Change[K, V]], object]) -> Callable[[], None]:
        """Call `callback(change)` for every later change, in the order of versions, and return what ends that.

        It runs outside of the lock, in an OS thread that writes: whoever is telling already takes the changes of others
        along, and they do not wait. What a callback raises is logged; it may write to this registry.
        """
        single: Subscription[K, V] = Subscription(callback)

        def heard(batch: Change[str, tuple[Change[K, V], ...]]) -> None:
            for change in batch.value or ():
                if (stop := single.call(change)) is not None:
                    raise stop

        subscription = Subscription(heard)
        self._changes.add(subscription)
        with self._lock:
            self._listeners += 1

        def end() -> None:
            with self._lock:
                self._listeners -= single.active
                single.active = False
            self._changes.remove(subscription)

        return end

    # ------------------------------------------------------------ inside; the lock is held

    def _writable(self) -> dict[K, V]:
        """Return a dict to change: the current one, or a copy of it if somebody has a snapshot."""
        if not self._given:
            return self._values
        self._copies += 1
        return dict(self._values)

    def _mark(self, key: K, kind: str, labels: frozenset[str]) -> None:
        """Note kind and labels, in the place of those it had."""
        if key in self._marks:
            self._unmark(key)
        if kind or labels:
            self._marks[key] = (kind, labels)
            if kind:
                self._kinds.setdefault(kind, {})[key] = None
            for label in labels:
                self._labels.setdefault(label, {})[key] = None

    def _refuse_known(self, new: tuple[Registration[K, V], ...]) -> None:
        seen: set[K] = set()
        for one in new:
            if one.key in self._values or one.key in seen:
                raise self._known(one.key)
            seen.add(one.key)

    def _known(self, key: K) -> UsageError:
        return UsageError(
            f"{key!r} is registered already" if key in self._values else f"{key!r} comes twice",
            fix="unregister it first, pass replace=True, or choose another key",
        )

    def _unmark(self, key: K) -> None:
        kind, labels = self._marks.pop(key)
        for index, name in [(self._kinds, kind)] * bool(kind) + [(self._labels, label) for label in labels]:
            del index[name][key]
            if not index[name]:
                del index[name]

    def __repr__(self) -> str:
        return f"<Registry of {len(self)}>"

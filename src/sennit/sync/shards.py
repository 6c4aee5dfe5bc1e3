"""A dict for many OS threads: reads take no lock, writes lock one shard of sixteen.

    get(key) ──► shard = hash(key) mod 16 ──► one dict read                  no lock
    set(key) ──► the same shard, under its lock                              writers of other shards go on

Reads are lock-free in the sense that no Python-level lock is taken: one `dict` operation is atomic under the GIL, and
documented to be lock-free in free-threaded builds (python.org, "Python support for free threading", thread safety of
built-in containers). Python has no compare-and-swap: `compare_and_set` is made of a lock, and so is every write.

When to use what (8 OS threads, 90 % reads, 1,000 keys, CPython 3.11, operations per CPU-second against one lock around a
dict): a plain `dict` behind the same two methods 2.7 times, this map 1.3 times, a `Registry` 1.8 times. So take a plain
`dict` where single gets and sets are all there is; a dict and one `Lock` is nearly as good as this map when operations
are that small, because under the GIL only one OS thread computes at a time and shards save little. This map pays when
writers hold the lock for longer (`update` with a function that does something), and on free-threaded builds.
`Registry`: rarely written, read as a whole. `VersionedMap`: when a writer has to know that nothing has changed since it
read, or somebody waits for a change.
"""

from __future__ import annotations

import threading
from _thread import get_ident
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, overload

from sennit.errors import SettingsError, UsageError

__all__ = ["SHARDS", "ShardStatistics", "ShardedMap", "ShardedMapStatistics"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

SHARDS: Final = 16
"""More than the OS threads that write at one time is enough; the default executors have at most 64, few of them here."""

_MISSING: Final[Any] = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatistics:
    """One shard: keys now; writes, and those that had to wait for its lock, since the map was made."""

    keys: int
    writes: int
    contended: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedMapStatistics:
    """All shards, and their sums. `imbalance` is the fullest shard over the average one; 1.0 is even."""

    keys: int
    writes: int
    contended: int
    imbalance: float
    shards: tuple[ShardStatistics, ...]


class _Shard(Generic[K, V]):
    __slots__ = ("contended", "lock", "updating", "values", "writes")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[K, V] = {}
        self.writes = 0  # both under the lock
        self.contended = 0
        self.updating = 0  # the OS thread whose `update` runs code of the caller

    def __enter__(self) -> dict[K, V]:
        self.take()
        self.writes += 1
        return self.values

    def take(self) -> None:
        """Acquire the lock, but do not wait for oneself."""
        if not self.lock.acquire(False):
            if self.updating == get_ident():
                raise UsageError(
                    "the function given to ShardedMap.update uses the map",
                    why="it runs under the lock of its shard, and would wait for itself",
                    fix="read and write other keys before or after, or use VersionedMap.update",
                )
            self.lock.acquire()
            self.contended += 1

    def __exit__(self, *exc: object) -> None:
        self.lock.release()


class ShardedMap(Generic[K, V]):
    """See the module. Values belong to the caller and are not copied.

    Args:
        shards: a power of two.

    Raises:
        SettingsError: `shards` is not a power of two.
    """

    __slots__ = ("__weakref__", "_mask", "_shards", "_values")

    def __init__(self, *, shards: int = SHARDS) -> None:
        if shards < 1 or shards & (shards - 1):
            raise SettingsError(f"shards={shards!r} is not a power of two", fix="use 1, 2, 4, 8, 16 …")
        self._mask = shards - 1
        self._shards: tuple[_Shard[K, V], ...] = tuple(_Shard() for _ in range(shards))
        self._values = tuple(shard.values for shard in self._shards)  # one attribute less on the way of a read

    # ------------------------------------------------------------ reading, without a lock

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:
        """Return the value, or `default`."""
        return self._values[hash(key) & self._mask].get(key, default)

    def __getitem__(self, key: K) -> V:
        return self._values[hash(key) & self._mask][key]

    def __contains__(self, key: object) -> bool:
        return key in self._values[hash(key) & self._mask]

    def __len__(self) -> int:
        """Return the number of keys: each shard's at its own moment."""
        return sum(map(len, self._values))

    def __iter__(self) -> Iterator[K]:
        """Yield every key that is there from beginning to end, once; one that comes or goes meanwhile, perhaps."""
        for shard in self._shards:
            shard.take()
            try:
                keys = tuple(shard.values)
            finally:
                shard.lock.release()
            yield from keys

    # ------------------------------------------------------------ reading all

    def items(self) -> list[tuple[K, V]]:
        """Return all keys and values as they were at one moment; all shards are locked for it, O(n)."""
        taken = 0
        try:
            for shard in self._shards:  # always in this order, so two of these cannot wait for each other
                shard.take()
                taken += 1
            return [item for values in self._values for item in values.items()]
        finally:
            for shard in self._shards[:taken]:
                shard.lock.release()

    def statistics(self) -> ShardedMapStatistics:
        """Return the figures of all shards, each at its own moment."""
        shards = []
        for shard in self._shards:
            with shard.lock:
                shards.append(
                    ShardStatistics(keys=len(shard.values), writes=shard.writes, contended=shard.contended),
                )
        keys = sum(shard.keys for shard in shards)
        fullest = max(shard.keys for shard in shards)
        return ShardedMapStatistics(
            keys=keys,
            writes=sum(shard.writes for shard in shards),
            contended=sum(shard.contended for shard in shards),
            imbalance=fullest * len(shards) / keys if keys else 1.0,
            shards=tuple(shards),
        )

    # ------------------------------------------------------------ writing, under the lock of one shard

    def set(self, key: K, value: V) -> None:
        """Store `value`, whatever was there."""
        with self._shard(key) as values:
            _replaced = values.get(key)  # kept until the lock is released: dropping it may run code of its owner
            values[key] = value

    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    def setdefault(self, key: K, value: V) -> V:
        """Return what is there; store `value` and return it if nothing is."""
        with self._shard(key) as values:
            return values.setdefault(key, value)

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V | D) -> V | D: ...
    def pop(self, key: K, default: Any = _MISSING) -> Any:
        """Remove the key and return its value, or `default`.

        Raises:
            KeyError: it is not there and no `default` is given.
        """
        with self._shard(key) as values:
            return values.pop(key) if default is _MISSING else values.pop(key, default)

    def __delitem__(self, key: K) -> None:
        self.pop(key)

    def compare_and_set(self, key: K, expected: V | None, new: V) -> bool:
        """Store `new` if the value is `expected`: the same object, or an equal one. False, and no change, otherwise.

        `expected=None` stands for a key that is not there, too. Values that are equal again after a change and back are
        not told from values that never changed; `VersionedMap.compare_and_set` does. Values are compared outside of the
        lock, and once more if another one has been written meanwhile.
        """
        shard = self._shard(key)
        while True:
            value = shard.values.get(key)  # ours until the end, so that no other object can pass for it
            if value is not expected and value != expected:
                return False
            with shard as values:
                if values.get(key) is value:
                    values[key] = new
                    return True
                shard.writes -= 1

    def update(self, key: K, fn: Callable[[V], V], *, default: V = _MISSING) -> V:
        """Replace the value by `fn(value)` and return the new one. If `fn` raises, nothing changes.

        `fn` runs once, under the lock of the shard: it must not write to this map, and everybody who writes to one key
        of sixteen waits for it. `VersionedMap.update` runs it outside of the lock, perhaps more than once.

        Args:
            default: what `fn` gets when the key is not there.

        Raises:
            KeyError: the key is not there and no `default` is given.
            UsageError: `fn` writes to the same shard, or asks for all items.
        """
        shard = self._shard(key)
        with shard as values:
            value = values.get(key, default)
            if value is _MISSING:
                raise KeyError(key)
            shard.updating = get_ident()
            try:
                new = values[key] = fn(value)
            finally:
                shard.updating = 0
            return new

    def clear(self) -> None:
        """Remove all keys, shard by shard."""
        for shard in self._shards:
            with shard as values:
                removed = dict(values)
                values.clear()
            removed.clear()  # outside of the lock: this may run code of the values' owners

    def _shard(self, key: K) -> _Shard[K, V]:
        return self._shards[hash(key) & self._mask]

    def __repr__(self) -> str:
        return f"<ShardedMap of {len(self)} keys in {len(self._shards)} shards>"

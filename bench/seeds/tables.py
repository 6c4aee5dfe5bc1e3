"""The registry that was called lock-free: 16 dicts, each behind a lock that its own OS thread may take again."""

from __future__ import annotations

import threading
from typing import Any, Final

SHARDS: Final = 16


class SeedRegistry:
    """Every operation works out its shard, takes the shard's RLock and returns copies of what is asked for in bulk."""

    def __init__(self) -> None:
        self._shards: list[dict[str, Any]] = [{} for _ in range(SHARDS)]
        self._locks = [threading.RLock() for _ in range(SHARDS)]

    def _shard_of(self, key: str) -> int:
        return hash(key) % SHARDS

    def register(self, key: str, value: Any) -> bool:
        """Set a value."""
        shard = self._shard_of(key)
        with self._locks[shard]:
            self._shards[shard][key] = value
            return True

    def get(self, key: str) -> Any:
        """Return a value, or None."""
        shard = self._shard_of(key)
        with self._locks[shard]:
            return self._shards[shard].get(key)

    def remove(self, key: str) -> bool:
        """Forget a value."""
        shard = self._shard_of(key)
        with self._locks[shard]:
            return self._shards[shard].pop(key, None) is not None

    def get_all(self) -> list[Any]:
        """Return all values, shard by shard: not those of one moment."""
        found: list[Any] = []
        for shard, lock in zip(self._shards, self._locks, strict=True):
            with lock:
                found += shard.values()
        return found

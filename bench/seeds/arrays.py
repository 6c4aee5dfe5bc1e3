"""The pool that was called shared memory: arrays of this process only, handed out again as they were left."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SeedArrayPool:
    """Up to `size` arrays of one shape."""

    def __init__(self, shape: tuple[int, ...], size: int = 100) -> None:
        self._shape = shape
        self._size = size
        self._made = 0
        self._free: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def acquire(self) -> NDArray[Any]:
        """Return an array."""
        with self._lock:
            if self._free:
                return self._free.pop()  # with what was in it
            if self._made < self._size:
                self._made += 1
        return np.zeros(self._shape)  # also when it is exhausted: one more of this process's own, and nobody is told

    def release(self, array: NDArray[Any]) -> None:
        """Take an array back; twice, and two will get it."""
        with self._lock:
            self._free.append(array)

"""How long waits took, in at most 164 whole numbers: four buckets per doubling, so a quantile is at most 25 % too high.

`limit/timeouts.LatencySketch` is another thing: it forgets, is stored as JSON, and begins at 1 ms; lock waits are mostly
shorter. This one begins at 1 µs, counts since it was made, and takes 0.3 µs per sample. The buckets are those of
HdrHistogram (Gil Tene) with two significant bits.
"""

from __future__ import annotations

from typing import Final

__all__ = ["WaitHistogram"]

_BITS: Final = 2  # of a number that tell its bucket, after the highest one
_FIRST: Final = 1 << _BITS
_INDEX_MAX: Final = 163  # about 50 days; longer waits count as that


class WaitHistogram:
    """Counts waits by length. Not locked: whoever notes holds a lock of its own."""

    __slots__ = ("_counts", "samples", "total_s")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.samples = 0
        self.total_s = 0.0

    def note(self, wait_s: float) -> None:
        """Count one wait."""
        index = _index(int(wait_s * 1e6))
        self._counts[index] = self._counts.get(index, 0) + 1
        self.samples += 1
        self.total_s += wait_s

    def quantile_s(self, quantile: float) -> float:
        """Return the upper end of the bucket in which the quantile lies, in seconds; 0 without samples."""
        wanted = quantile * self.samples
        seen = 0
        counts = dict(self._counts)
        for index in sorted(counts):
            seen += counts[index]
            if seen >= wanted:
                return _end_us(index) / 1e6
        return 0.0


def _index(us: int) -> int:
    if us < _FIRST:
        return max(us, 0)
    length = us.bit_length()
    return min((length - _BITS) * _FIRST + (us >> (length - _BITS - 1)) % _FIRST, _INDEX_MAX)


def _end_us(index: int) -> int:
    """Return where the bucket ends, µs."""
    if index < _FIRST:
        return index + 1
    shift = index // _FIRST - 1
    return (_FIRST + index % _FIRST + 1) << shift

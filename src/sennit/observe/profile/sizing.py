"""How much more a pool of n OS threads would do: the bounds that follow from what one call needs.

    one call = c seconds of a core + b seconds of waiting

    X(n) = min( n / (c + b),  cores / c )       and 1 / c when its computing holds the GIL

Asymptotic bounds of operational analysis: P. J. Denning, J. P. Buzen, "The operational analysis of queueing network
models", ACM Computing Surveys 10 (1978). They are the best case: switching and caches only take away.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SIZES", "knee", "rate"]

SIZES: Final = (1, 2, 4, 8, 16, 32)


def rate(size: int, *, cpu_s: float, blocked_s: float, cores: int, holds_gil: bool) -> float:
    """Return the calls per second that a pool of `size` OS threads can do at most."""
    alone = size / max(cpu_s + blocked_s, 1e-9)
    return min(alone, (1 if holds_gil else cores) / cpu_s) if cpu_s > 0 else alone


def knee(*, cpu_s: float, blocked_s: float, cores: int, holds_gil: bool, size_max: int = 32) -> int:
    """Return the smallest size that does what `size_max` would."""
    best = rate(size_max, cpu_s=cpu_s, blocked_s=blocked_s, cores=cores, holds_gil=holds_gil)
    return next(
        n
        for n in range(1, size_max + 1)
        if rate(n, cpu_s=cpu_s, blocked_s=blocked_s, cores=cores, holds_gil=holds_gil) >= best * 0.999
    )

"""The work itself: bodies that a worker process can import by name.

nothing, nap (waits), spin (computes in Python and holds the GIL), heavy_tail (how long each of many jobs takes)
"""

from __future__ import annotations

import random
from time import perf_counter, sleep
from typing import Final

# Bounded Pareto: most jobs are short, and the few long ones are a third of all the work. 1.1 is the tail of job sizes that
# Harchol-Balter and Downey found (Exploiting Process Lifetime Distributions for Dynamic Load Balancing, 1997: 1.0 to 1.3).
ALPHA: Final = 1.1
SPREAD: Final = 100.0


def nothing() -> None:
    """Do nothing: all the time it takes is the pool's."""


def nap(seconds: float) -> None:
    """Wait, as for an answer of a server."""
    # sleep: it is the work
    sleep(seconds)


def spin(rounds: int) -> int:
    """Compute in Python; hold the GIL."""
    total = 0
    for n in range(rounds):
        total += n * n & 7
    return total


def spin_rounds(seconds: float) -> int:
    """Return how many rounds of `spin` take about so long on this machine; the best of three looks."""
    look = 20_000
    took_s = min(_took_s(look) for _ in range(3))
    return max(1, round(look * seconds / took_s))


def _took_s(rounds: int) -> float:
    began_s = perf_counter()
    spin(rounds)
    return perf_counter() - began_s


def heavy_tail(n: int, *, mean: float, seed: int) -> list[float]:
    """Return `n` sizes whose mean is `mean`, bounded Pareto, the same for the same seed."""
    chance = random.Random(seed)
    low_share = SPREAD**-ALPHA
    sizes = [(1.0 - chance.random() * (1.0 - low_share)) ** (-1.0 / ALPHA) for _ in range(n)]
    unit = mean * n / sum(sizes)
    return [size * unit for size in sizes]

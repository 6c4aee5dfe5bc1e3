"""What a limiter says of itself: counts since it was made, and what is so now."""

from __future__ import annotations

from dataclasses import dataclass

from sennit.model.provider import CallOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterStatistics:
    """How a limiter is doing. Counts are since it was made.

    Attributes:
        limit: permits that may be out now. ceiling: the most it may become. in_flight: permits that are out.
        waiting: how many wait, by the name of the priority.
        granted, rejected: permits given out; `try_acquire` refused.
        outcomes: how the calls went, those that happened.
        waited: permits that had to be waited for. waited_s: how long all of them together.
        waited_p50_s, waited_p99_s: quantiles of the wait over all permits, each rounded up to a power of two of µs.
    """

    limit: int
    ceiling: int
    in_flight: int
    waiting: dict[str, int]
    granted: int
    rejected: int
    outcomes: dict[CallOutcome, int]
    waited: int
    waited_s: float
    waited_p50_s: float
    waited_p99_s: float


def quantile_s(waits: list[int], share: float) -> float:
    """Return the upper end of the bucket in which this share of all waits ends.

    Args:
        waits: how many, by the length of the wait: none at all, then by the bits of its µs.
    """
    wanted = share * sum(waits)
    below = 0
    for index, count in enumerate(waits):
        below += count
        if below >= wanted and below:
            return 0.0 if index == 0 else (1 << (index - 1)) / 1e6
    return 0.0

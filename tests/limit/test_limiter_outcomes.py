"""How a block ends is how the call went, and that moves the limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sennit.errors import AttemptCancelled
from sennit.limit.borrowers import outcome_of
from sennit.limit.limiter import AdaptiveLimiter, Permit


class ProviderError(Exception):
    """As the SDKs raise it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code


class Clock:
    def __init__(self) -> None:
        self.now_us = 10**12

    def __call__(self) -> int:
        return self.now_us

    def go(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


def full(limiter: AdaptiveLimiter) -> list[Permit]:
    """Take all the permits there are."""
    permits = []
    while permit := limiter.try_acquire():
        permits.append(permit)
    return permits


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (ProviderError(429), "throttled"),
        (ProviderError(503), "overloaded"),
        (ProviderError(529), "overloaded"),
        (TimeoutError(), "timeout"),
        (ProviderError(400), "refused"),
        (ProviderError(401), "refused"),
        (ProviderError(500), "error"),
        (ValueError("a bug of the caller"), "error"),
        (KeyboardInterrupt(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (AttemptCancelled(), "cancelled"),
    ],
)
def test_how_a_block_ends_is_how_the_call_went(error: BaseException | None, outcome: str) -> None:
    limiter = AdaptiveLimiter(8, strategy="aimd")

    async def in_async() -> None:
        async with limiter.slot():
            if error is not None:
                raise error

    if error is None:
        in_sync(limiter, error)
        stepped(in_async())
    else:
        with pytest.raises(type(error)):
            in_sync(limiter, error)
        with pytest.raises(type(error)):
            stepped(in_async())

    assert outcome_of(error) == outcome
    assert limiter.statistics().outcomes == {outcome: 2}


def in_sync(limiter: AdaptiveLimiter, error: BaseException | None) -> None:
    with limiter.slot():
        if error is not None:
            raise error


def stepped(coroutine: Any) -> None:
    """Run a coroutine that never waits, without a loop that would treat Ctrl-C in its own way."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_what_the_block_says_itself_goes_before_what_the_exception_says() -> None:
    limiter = AdaptiveLimiter(8)

    def call() -> None:
        with limiter.slot() as permit:
            permit.report(outcome="overloaded", tokens=12)
            raise ValueError("not JSON")

    with pytest.raises(ValueError, match="not JSON"):
        call()

    assert limiter.statistics().outcomes == {"overloaded": 1}


def test_429s_lower_the_limit_and_successes_raise_it() -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(50, now_us=clock)
    permits = full(limiter)

    limits = [limiter.limit]
    for error in (None, None, None, ProviderError(429), None, None):
        clock.go(8.0)
        for permit in permits[:]:
            permits.remove(permit)
            limiter.release(permit, outcome=outcome_of(error))
            permits += full(limiter)
        limits.append(limiter.limit)

    assert limits == [4, 8, 16, 32, 27, 28, 29]


def test_tokens_reach_the_strategy() -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(50, strategy="vegas", now_us=clock)

    def round_of(seconds: float) -> None:
        permits = full(limiter)
        clock.go(seconds)
        for permit in permits:
            limiter.release(permit, tokens=400)

    for _ in range(4):
        round_of(8.0)
    before = limiter.limit
    for _ in range(3):
        round_of(40.0)

    assert limiter.limit < before

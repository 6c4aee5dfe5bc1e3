"""AdaptiveLimiter: so many calls at once, and the number finds itself. For coroutines and OS threads together.

    acquire ──room──► Permit ──► the call ──► release(outcome, tokens) ──► sample: the limit moves
       └─no room─► line ◄────────── grants as many as there is room for ◄──────┘

    limiter = AdaptiveLimiter(40)
    async with limiter.slot() as permit:                 # `with` in an OS thread
        permit.tokens = (await call_the_model()).usage.output_tokens

Everything is decided under one lock that is held for about a microsecond and never while something is woken. What must
hold, at each moment at which the lock is free: **somebody waits only while there is no room**, and a permit is granted
only while fewer than `limit` are out. A permit knows its limiter and is given back once; a waiter that is cancelled just
as it is granted passes its permit on.

It knows how many, not how often: for requests and tokens per minute there is a rate budget, for pauses a governor.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from types import TracebackType
from typing import Final

from sennit.errors import SettingsError, UsageError
from sennit.limit.borrowers import Permit, Waiter, WaitLines, outcome_of
from sennit.limit.limiter_statistics import LimiterStatistics, quantile_s
from sennit.limit.rejected import Rejected
from sennit.limit.strategies import DEFAULT, LimitState, Tuning, allowed, new_state, sample
from sennit.model.order import Priority
from sennit.model.provider import STRATEGIES, CallOutcome, Strategy
from sennit.sync.ack import in_event_loop
from sennit.sync.clock import NowUs, uptime_us

__all__ = ["AdaptiveLimiter", "LimiterStatistics", "Permit", "Rejected"]

RETRY_AFTER_S: Final = 1.0  # said while no call has ended yet, and it is not known how long one takes
HELD_WEIGHT: Final = 1 / 8  # of a new value in the mean time that a permit is held; TCP's SRTT, RFC 6298
WAIT_BUCKETS: Final = 44  # of doubling µs: the last is half a year


class AdaptiveLimiter:
    """Grants permits, at most `limit` at a time; the limit moves by how the calls go.

    Args:
        ceiling: the limit is never higher.
        strategy: `fixed` (the limit is the ceiling), `aimd`, `gradient` or `vegas`; see `limit.strategies`.
        floor: the limit is never lower, unless the ceiling is.
        tuning: of the strategy.
        now_us: a clock in µs; it should not step, but may.

    Raises:
        SettingsError: a bound below 1, a floor above the ceiling, or an unknown strategy.
    """

    def __init__(
        self,
        ceiling: int,
        *,
        strategy: Strategy = "aimd",
        floor: int = 1,
        tuning: Tuning = DEFAULT,
        now_us: NowUs = uptime_us,
    ) -> None:
        if strategy not in STRATEGIES:
            raise SettingsError(f"there is no strategy {strategy!r}", fix=f"one of {', '.join(STRATEGIES)}")
        _check_bound("ceiling", ceiling)
        _check_bound("floor", floor)
        if floor > ceiling:
            raise SettingsError(f"floor is {floor} and the ceiling is {ceiling}", fix="a floor of at most the ceiling")
        self._strategy: Strategy = strategy
        self._ceiling = ceiling
        self._floor = floor
        self._tuning = tuning
        self._now_us = now_us
        self._lock = threading.Lock()
        self._state: LimitState = new_state(strategy, ceiling=ceiling, floor=floor)
        self._limit = allowed(self._state, strategy=strategy, ceiling=ceiling, floor=floor)
        self._in_flight = 0
        self._lines = WaitLines()
        self._granted = 0
        self._rejected = 0
        self._held_us = 0.0
        self._outcomes: dict[CallOutcome, int] = {}
        self._waits = [0] * WAIT_BUCKETS
        self._waited_us = 0

    # ------------------------------------------------------------ borrowing

    def slot(self, *, priority: Priority | str = Priority.NORMAL, timeout_s: float | None = None) -> Slot:
        """Return a block that holds one permit: `async with`, or `with` in an OS thread.

        It is given back with how the block ended: an exception with a status 429 is `throttled`, 503 and 529 are
        `overloaded`, a time-out is one, a cancellation moves nothing, and neither do other errors.

        Args:
            timeout_s: how long to wait for it; None is for ever.

        Raises:
            TimeoutError: none was free in time.
            UsageError: `with` in async code, which would block its event loop.
        """
        return Slot(self, _parse(priority), timeout_s)

    def acquire(self, *, priority: Priority | str = Priority.NORMAL, timeout_s: float | None = None) -> Acquiring:
        """Wait for a permit: `await` it in async code, `.result()` it in an OS thread. Raises as `slot` does."""
        return Acquiring(self, _parse(priority), timeout_s)

    def try_acquire(self) -> Permit | Rejected:
        """Return a permit if there is one now; or a `Rejected`, which is false, and says about when one should be free."""
        with self._lock:
            if self._in_flight < self._limit:  # then nobody waits
                return self._grant(self._now_us(), 0)
            self._rejected += 1
            held_s = self._held_us / 1e6
            ahead = self._lines.count + 1 + max(0, self._in_flight - self._limit)
            return Rejected(held_s * ahead / self._limit if held_s else RETRY_AFTER_S, "limit")

    def release(self, permit: Permit, *, outcome: CallOutcome | None = None, tokens: int | None = None) -> None:
        """Give a permit back and say how the call went; from any OS thread.

        Args:
            outcome: `permit.outcome` by default, and "ok" when that was not set either.
            tokens: units of work that the call came to; `permit.tokens` by default.

        Raises:
            UsageError: it is another limiter's, or was given back before.
        """
        if outcome is None:
            outcome = permit.outcome or "ok"
        work = permit.tokens if tokens is None else tokens
        with self._lock:
            if permit.limiter is not self or not permit.is_held:
                raise _not_held(permit, self)
            permit.is_held = False
            now_us = self._now_us()
            held_us = now_us - permit.granted_us
            in_flight = self._in_flight
            self._in_flight = in_flight - 1
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
            if held_us > 0 and outcome == "ok":
                self._held_us += (held_us - self._held_us) * (HELD_WEIGHT if self._held_us else 1.0)
            if self._strategy != "fixed":
                before = self._state.limit
                sample(
                    self._state, strategy=self._strategy, ceiling=self._ceiling, floor=self._floor, tuning=self._tuning,
                    in_flight=in_flight, outcome=outcome, duration_us=held_us, work=work, now_us=now_us,
                )  # fmt: skip
                if self._state.limit != before:
                    self._limit = self._allowed()
            granted = self._grant_waiting(now_us) if self._lines.count else ()
        self._wake(granted)

    def resize(self, ceiling: int) -> None:
        """Set the ceiling; with the strategy `fixed` that is the limit.

        Below what is in flight, nothing is taken away and nothing granted until enough has been given back.

        Raises:
            SettingsError: below 1.
        """
        _check_bound("ceiling", ceiling)
        with self._lock:
            self._ceiling = ceiling
            self._limit = self._allowed()
            granted = self._grant_waiting(self._now_us())
        self._wake(granted)

    # ------------------------------------------------------------ looking

    @property
    def limit(self) -> int:
        """How many permits may be out now."""
        return self._limit

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._in_flight

    def statistics(self) -> LimiterStatistics:
        """Return how it is doing, all of one moment."""
        with self._lock:
            waits = [self._granted - sum(self._waits), *self._waits]  # the first: no wait at all
            return LimiterStatistics(
                limit=self._limit,
                ceiling=self._ceiling,
                in_flight=self._in_flight,
                waiting=self._lines.counts(),
                granted=self._granted,
                rejected=self._rejected,
                outcomes=dict(self._outcomes),
                waited=sum(self._waits),
                waited_s=self._waited_us / 1e6,
                waited_p50_s=quantile_s(waits, 0.5),
                waited_p99_s=quantile_s(waits, 0.99),
            )

    # ------------------------------------------------------------ inside the lock

    def _allowed(self) -> int:
        return allowed(self._state, strategy=self._strategy, ceiling=self._ceiling, floor=self._floor)

    def _grant(self, now_us: int, waited_us: int) -> Permit:
        self._in_flight += 1
        self._granted += 1
        return Permit(self, now_us, waited_us)

    def _grant_waiting(self, now_us: int) -> list[Waiter]:
        granted = []
        while self._lines.count and self._in_flight < self._limit:
            waiter = self._lines.pop()
            waited_us = max(0, now_us - waiter.since_us)
            self._waits[min(waited_us.bit_length(), WAIT_BUCKETS - 1)] += 1
            self._waited_us += waited_us
            waiter.permit = self._grant(now_us, waited_us)
            granted.append(waiter)
        return granted

    def _enter(self, priority: int, *, in_async: bool) -> Permit | Waiter:
        """Return a permit, or a place in line. RuntimeError when there is no event loop to wait on."""
        with self._lock:
            now_us = self._now_us()
            if self._in_flight < self._limit:
                self._in_flight += 1  # `_grant`, spelled out: this is the fast path
                self._granted += 1
                return Permit(self, now_us, 0)
            waiter = Waiter(priority, now_us, asyncio.get_running_loop() if in_async else None)
            self._lines.join(waiter)
            return waiter

    # ------------------------------------------------------------ outside of it

    def _wake(self, granted: list[Waiter] | tuple[()]) -> None:
        while granted:
            here = asyncio._get_running_loop()  # noqa: SLF001 - as in sync/ack.py
            dead = [waiter for waiter in granted if not waiter.wake(here)]
            granted = self._pass_on(dead) if dead else ()

    def _abandon(self, waiter: Waiter) -> None:
        """This waiter will not use a permit: it leaves the line, or passes on what it was granted meanwhile."""
        self._wake(self._pass_on([waiter]))

    def _pass_on(self, waiters: list[Waiter]) -> list[Waiter]:
        """Return who is granted a permit instead of these, and is to be woken."""
        with self._lock:
            for waiter in waiters:
                permit = waiter.permit
                if permit is None:
                    self._lines.leave(waiter)
                elif permit.is_held:  # else it was found dead before, and then its coroutine was closed
                    permit.is_held = False
                    self._in_flight -= 1
                    self._outcomes["cancelled"] = self._outcomes.get("cancelled", 0) + 1
            return self._grant_waiting(self._now_us())


class Acquiring:
    """A permit to be waited for, begun by the wait: `await` it, or `.result()` it. One wait each."""

    __slots__ = ("_limiter", "_priority", "_timeout_s")

    def __init__(self, limiter: AdaptiveLimiter, priority: int, timeout_s: float | None) -> None:
        self._limiter = limiter
        self._priority = priority
        self._timeout_s = timeout_s

    def __await__(self) -> Generator[object, None, Permit]:
        entered = self._limiter._enter(self._priority, in_async=True)  # noqa: SLF001 - same module
        if isinstance(entered, Permit):
            return entered
        return (yield from self._wait(entered).__await__())

    async def _wait(self, waiter: Waiter) -> Permit:
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter.future
        except BaseException:  # cancelled, or too late
            self._limiter._abandon(waiter)  # noqa: SLF001
            raise
        return _granted(waiter)

    def result(self) -> Permit:
        """Block this OS thread until there is a permit.

        Raises:
            UsageError: on an event loop, also when there is room: it would work until the limit is reached.
            TimeoutError: none was free in time.
        """
        if in_event_loop():
            raise UsageError(
                "a limiter was waited for without `await` inside a running event loop",
                why="it would block every other coroutine of this loop, those that hold the permits too",
                fix="write `async with limiter.slot()` or `await limiter.acquire()`",
            )
        entered = self._limiter._enter(self._priority, in_async=False)  # noqa: SLF001
        if isinstance(entered, Permit):
            return entered
        seconds = -1.0 if self._timeout_s is None else min(max(self._timeout_s, 0.0), threading.TIMEOUT_MAX)
        try:
            is_granted = entered.gate.acquire(timeout=seconds)
        except BaseException:  # Ctrl-C
            self._limiter._abandon(entered)  # noqa: SLF001
            raise
        if not is_granted:
            self._limiter._abandon(entered)  # noqa: SLF001
            raise TimeoutError(f"no permit was free within {self._timeout_s} s")
        return _granted(entered)


class Slot(Acquiring):
    """A block that holds one permit; made by `AdaptiveLimiter.slot`, used once."""

    __slots__ = ("_permit",)

    async def __aenter__(self) -> Permit:
        entered = self._limiter._enter(self._priority, in_async=True)  # noqa: SLF001 - same module
        self._permit = permit = entered if isinstance(entered, Permit) else await self._wait(entered)
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __enter__(self) -> Permit:
        self._permit = permit = self.result()
        return permit

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        permit = self._permit
        if permit.is_held:  # the block may have given it back itself
            outcome = permit.outcome
            self._limiter.release(
                permit, outcome=outcome_of(error) if outcome is None and error is not None else outcome
            )


def _not_held(permit: Permit, limiter: AdaptiveLimiter) -> UsageError:
    whose = "was granted by another limiter" if permit.limiter is not limiter else "has been given back already"
    return UsageError(
        f"this permit {whose}",
        why="giving it back here would let one call too many through",
        fix="release each permit once, on `permit.limiter`; or use `limiter.slot()`, which does",
    )


def _granted(waiter: Waiter) -> Permit:
    if waiter.permit is None:
        raise UsageError("a limiter woke somebody to whom it had granted nothing")  # a fault of ours
    return waiter.permit


def _parse(priority: Priority | str) -> Priority:
    return priority if type(priority) is Priority else Priority.parse(priority)


def _check_bound(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"{name} is {value!r}", why="it is how many calls may be out at once", fix="1 or more")

"""Requests and tokens per minute for one process, from any OS thread and any event loop: `rate` with a line to wait in.

    budget = RateBudget(rpm=1000, tpm=400_000)

    async with budget.reserve(tokens=2_000) as reservation:        # or `with`
        answer = await call(…)
        reservation.settle(answer.usage.total_tokens)

First come, first served, whatever the size: a large call is not overtaken by small ones for ever. Nobody polls: who
stands in front has the one timer, set to the moment its tokens are there; the others sleep until they stand in front.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal, NamedTuple, final

from sennit.errors import SettingsError, UsageError
from sennit.limit import rate as pure
from sennit.limit.rate import BURST_S, RateState
from sennit.limit.rejected import Rejected
from sennit.model.provider import RateFeedback
from sennit.sync.ack import call_in, in_event_loop
from sennit.sync.clock import NowUs, uptime_us

if TYPE_CHECKING:
    from types import TracebackType


class RateStatistics(NamedTuple):
    """A snapshot. `requests` and `tokens` are what is free now, None without a bound; `waiting` is who stands in line."""

    requests: int | None
    tokens: int | None
    waiting: int


class _Waiter:
    __slots__ = ("due_us", "is_granted", "tokens", "wake")

    def __init__(self, tokens: int, wake: Callable[[], object]) -> None:
        self.tokens = tokens
        self.wake = wake
        self.is_granted = False
        self.due_us: int | None = None  # when its timer is set to; None while it has none


class RateBudget:
    """Bounds per minute; 0 is none.

    Args:
        rpm, tpm: requests and tokens per minute.
        burst_s: how many seconds' worth may be sent at once after a rest.
        now_us: a clock in µs; the default never steps.

    Raises:
        SettingsError: a bound is below 0, or `burst_s` not above it.
    """

    def __init__(self, *, rpm: int = 0, tpm: int = 0, burst_s: float = BURST_S, now_us: NowUs = uptime_us) -> None:
        if rpm < 0 or tpm < 0 or not 0 < burst_s <= 60:
            raise SettingsError(
                f"a rate budget cannot be rpm={rpm!r}, tpm={tpm!r}, burst_s={burst_s!r}",
                why="bounds are per minute, 0 is none; the burst is more than 0 and at most 60 seconds' worth",
            )
        self.rpm = rpm
        self.tpm = tpm
        self.burst_s = burst_s
        self._now_us = now_us
        self._requests = RateState()
        self._tokens = RateState()
        self._line: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    def reserve(self, tokens: int = 0) -> RateReservation:
        """Return what waits for one request and `tokens`: `async with budget.reserve(500) as r:` or `with`.

        Without `r.settle(…)` inside, what was reserved counts as used.

        Raises:
            SettingsError: `tokens` is below 0.
            UsageError: on entering with `with` on an event loop's OS thread, when it would have to wait.
        """
        return RateReservation(self, _checked(tokens))

    def try_reserve(self, tokens: int = 0) -> RateReservation | Rejected:
        """Reserve now and return the reservation; or a `Rejected`, which is false, when somebody must wait."""
        reservation = RateReservation(self, _checked(tokens))
        with self._lock:
            now_us = self._now_us()
            due_us = self._due_us(tokens, now_us)
            if due_us is None and not self._line:
                self._take(tokens, now_us)
                reservation._is_held = True  # noqa: SLF001 - same module
                return reservation
            if self._line:  # behind them: not before the first of them
                due_us = max(due_us or now_us, self._due_us(self._line[0].tokens, now_us) or now_us)
        return Rejected(max(0, (due_us or now_us) - now_us) / 1e6, "rate")

    def feedback(self, *, requests: RateFeedback | None = None, tokens: RateFeedback | None = None) -> None:
        """Take note of what a response says is left. It only ever makes it less."""
        with self._lock:
            now_us = self._now_us()
            if requests is not None:
                pure.feedback(self.rpm, self._requests, requests, now_us, burst_s=self.burst_s)
            if tokens is not None:
                pure.feedback(self.tpm, self._tokens, tokens, now_us, burst_s=self.burst_s)

    def statistics(self) -> RateStatistics:
        """Return a snapshot."""
        with self._lock:
            now_us = self._now_us()
            requests, _ = pure.room(self.rpm, self._requests, now_us, burst_s=self.burst_s)
            tokens, _ = pure.room(self.tpm, self._tokens, now_us, burst_s=self.burst_s)
            return RateStatistics(requests, tokens, len(self._line))

    # ------------------------------------------------------------ waiting

    async def _wait(self, tokens: int) -> None:
        loop = asyncio.get_running_loop()
        gate = loop.create_future()
        waiter = self._enter(tokens, partial(_open, loop, gate), may_wait=True)
        if waiter.is_granted:
            return
        try:
            while (delay_s := self._look(waiter)) is not True:
                timer = None if delay_s is None else loop.call_later(delay_s, _set, gate)
                try:
                    await gate
                finally:
                    if timer is not None:
                        timer.cancel()
                gate = loop.create_future()
                waiter.wake = partial(_open, loop, gate)
        except BaseException:
            self._leave(waiter)
            raise

    def _wait_blocking(self, tokens: int) -> None:
        gate: SimpleQueue[None] = SimpleQueue()
        waiter = self._enter(tokens, partial(gate.put, None), may_wait=not in_event_loop())
        if waiter.is_granted:
            return
        try:
            while (delay_s := self._look(waiter)) is not True:
                try:
                    gate.get(timeout=None if delay_s is None else min(delay_s, threading.TIMEOUT_MAX))
                except Empty:
                    continue
        except BaseException:
            self._leave(waiter)
            raise

    def _enter(self, tokens: int, wake: Callable[[], object], *, may_wait: bool) -> _Waiter:
        """Take it at once, or stand at the end of the line."""
        waiter = _Waiter(tokens, wake)
        with self._lock:
            now_us = self._now_us()
            if not self._line and self._due_us(tokens, now_us) is None:
                self._take(tokens, now_us)
                waiter.is_granted = True
                return waiter
            if may_wait:
                self._line.append(waiter)
                return waiter
        raise UsageError(
            "this rate budget has no room now, and waiting would block a running event loop",
            fix="write `async with budget.reserve(…)`",
        )

    def _look(self, waiter: _Waiter) -> float | Literal[True] | None:
        """Return True when it is ours; else in how many seconds to look again, None: when we are woken."""
        with self._lock:
            wakes = self._grant(waiter)
            delay_s = None if waiter.due_us is None else max(0, waiter.due_us - self._now_us()) / 1e6
        _wake_all(wakes)
        return True if waiter.is_granted else delay_s

    def _leave(self, waiter: _Waiter) -> None:
        """The wait is over without a call: give back what came meanwhile."""
        with self._lock:
            if waiter.is_granted:
                self._correct(waiter.tokens, 0, requests=1)
            else:
                self._line.remove(waiter)
            wakes = self._grant()
        _wake_all(wakes)

    def _grant(self, asking: _Waiter | None = None) -> list[Callable[[], object]]:
        """Serve the line from its front, and return whom to wake: those served, and the first that is not, to time it."""
        wakes = []
        now_us = self._now_us()
        while self._line:
            first = self._line[0]
            due_us = self._due_us(first.tokens, now_us)
            if due_us is None:
                self._take(first.tokens, now_us)
                first.is_granted = True
                self._line.popleft()
            elif first is asking:
                first.due_us = due_us
                break
            elif first.due_us is None or due_us < first.due_us:
                wakes.append(first.wake)
                break
            else:
                break
            if first is not asking:
                wakes.append(first.wake)
        return wakes

    # ------------------------------------------------------------ with the lock held

    def _due_us(self, tokens: int, now_us: int) -> int | None:
        _, requests_us = pure.room(self.rpm, self._requests, now_us, burst_s=self.burst_s)
        _, tokens_us = pure.room(self.tpm, self._tokens, now_us, units=tokens, burst_s=self.burst_s)
        if requests_us is None or tokens_us is None:
            return requests_us or tokens_us
        return max(requests_us, tokens_us)

    def _take(self, tokens: int, now_us: int) -> None:
        pure.reserve(self.rpm, self._requests, 1, now_us, burst_s=self.burst_s)
        pure.reserve(self.tpm, self._tokens, tokens, now_us, burst_s=self.burst_s)

    def _correct(self, reserved: int, actual: int, *, requests: int = 0) -> None:
        now_us = self._now_us()
        pure.settle(self.tpm, self._tokens, reserved=reserved, actual=actual, now_us=now_us, burst_s=self.burst_s)
        pure.settle(self.rpm, self._requests, reserved=requests, actual=0, now_us=now_us, burst_s=self.burst_s)

    def _settle(self, reservation: RateReservation, actual: int, *, requests: int = 0) -> None:
        with self._lock:
            if not reservation._is_held:  # noqa: SLF001 - same module
                raise UsageError(
                    "this reservation is not held: not yet, or it is settled already",
                    fix="call settle() or give_back() once, inside `with budget.reserve(…)`",
                )
            reservation._is_held = False  # noqa: SLF001
            self._correct(reservation.tokens, actual, requests=requests)
            wakes = self._grant()
        _wake_all(wakes)


@final
class RateReservation:
    """One request and so many tokens; made by `RateBudget.reserve` or `try_reserve`. True, unlike a `Rejected`."""

    __slots__ = ("_budget", "_is_held", "tokens")

    def __init__(self, budget: RateBudget, tokens: int) -> None:
        self._budget = budget
        self._is_held = False
        self.tokens = tokens

    def __bool__(self) -> Literal[True]:
        return True

    def settle(self, actual: int) -> None:
        """Correct it to the tokens that were used: what is left over comes back, what is missing is owed.

        Raises:
            UsageError: it is settled already, or not held yet.
        """
        self._budget._settle(self, actual)  # noqa: SLF001 - same module

    def give_back(self) -> None:
        """The call was not made: its tokens and its request come back.

        Raises:
            UsageError: as `settle`.
        """
        self._budget._settle(self, 0, requests=1)  # noqa: SLF001

    def __enter__(self) -> RateReservation:
        self._check_new()
        self._budget._wait_blocking(self.tokens)  # noqa: SLF001
        self._is_held = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_held = False

    async def __aenter__(self) -> RateReservation:
        self._check_new()
        await self._budget._wait(self.tokens)  # noqa: SLF001
        self._is_held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_held = False

    def _check_new(self) -> None:
        if self._is_held:
            raise UsageError("this reservation is held already", fix="write `with budget.reserve(…)` for each call")


def _checked(tokens: int) -> int:
    if tokens < 0:
        raise SettingsError(f"{tokens} tokens cannot be reserved", fix="0 is unknown")
    return tokens


def _wake_all(wakes: list[Callable[[], object]]) -> None:
    for wake in wakes:
        wake()


def _open(loop: asyncio.AbstractEventLoop, gate: asyncio.Future[None]) -> None:
    if asyncio._get_running_loop() is loop:  # noqa: SLF001 - documented for this use; get_running_loop raises
        _set(gate)
    else:
        call_in(loop, _set, gate)


def _set(gate: asyncio.Future[None]) -> None:
    if not gate.done():  # the waiter may have been cancelled
        gate.set_result(None)

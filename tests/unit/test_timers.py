"""Deadlines: the heap against a model, and one loop timer that never wakes up for nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sennit.schedule.timers import WAIT_US_MAX, Alarm, Timers

KEYS = st.integers(0, 20)
TIMES = st.integers(0, 100)


class TimersBehaveLikeASortedDictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.timers: Timers[int] = Timers()
        self.model: dict[int, tuple[int, int]] = {}
        self.serial = 0

    @rule(key=KEYS, at_us=TIMES)
    def set_one(self, key: int, at_us: int) -> None:
        self.serial += 1
        self.timers.set(key, at_us)
        self.model[key] = (at_us, self.serial)

    @rule(key=KEYS, times=st.lists(TIMES, min_size=50, max_size=200))
    def set_one_again_and_again(self, key: int, times: list[int]) -> None:
        for at_us in times:
            self.set_one(key, at_us)

    @rule(key=KEYS)
    def cancel(self, key: int) -> None:
        assert self.timers.cancel(key) is (self.model.pop(key, None) is not None)

    @rule(now_us=TIMES)
    def pop_due(self, now_us: int) -> None:
        due = sorted((key for key, (at_us, _) in self.model.items() if at_us <= now_us), key=self.model.__getitem__)

        assert self.timers.pop_due(now_us) == due
        for key in due:
            del self.model[key]

    @invariant()
    def the_next_deadline_is_the_earliest(self) -> None:
        assert self.timers.next_us() == min((at_us for at_us, _ in self.model.values()), default=None)

    @invariant()
    def it_knows_its_keys(self) -> None:
        assert len(self.timers) == len(self.model)
        assert all(key in self.timers for key in self.model)

    @invariant()
    def the_heap_follows_the_live_keys(self) -> None:
        assert len(self.timers._heap) <= 2 * len(self.model) + 64


test_timers_behave_like_a_sorted_dictionary = TimersBehaveLikeASortedDictionary.TestCase


def test_an_hour_passes_without_waiting() -> None:
    timers: Timers[str] = Timers()
    timers.set("retry", 3_600_000_000)

    assert timers.pop_due(3_599_999_999) == []
    assert timers.pop_due(3_600_000_000) == ["retry"]
    assert timers.next_us() is None


class Clock:
    """A running clock in µs that can be stepped."""

    def __init__(self) -> None:
        self.step_us = 0

    def __call__(self) -> int:
        return time.monotonic_ns() // 1000 + self.step_us


def with_alarm(scenario: Callable[[Alarm[str], Clock, asyncio.Queue[list[str]]], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        clock = Clock()
        due: asyncio.Queue[list[str]] = asyncio.Queue()
        alarm = Alarm(Timers[str](), now_us=clock, on_due=due.put_nowait, loop=asyncio.get_running_loop())
        try:
            return await scenario(alarm, clock, due)
        finally:
            alarm.close()

    return asyncio.run(run())


def test_an_alarm_rings_in_the_order_of_the_deadlines() -> None:
    async def scenario(alarm: Alarm[str], clock: Clock, due: asyncio.Queue[list[str]]) -> None:
        now_us = clock()
        alarm.set("late", now_us + 20_000)
        alarm.set("early", now_us + 1_000)
        alarm.set("past", now_us - 1_000)
        alarm.set("moved", now_us - 5_000)
        alarm.set("moved", now_us + 10_000)

        rung: list[str] = []
        while len(rung) < 4:
            rung += await due.get()  # several at once, if this process was kept waiting
        assert rung == ["past", "early", "moved", "late"]
        assert clock() >= now_us + 20_000

    with_alarm(scenario)


def test_without_a_deadline_nothing_is_armed() -> None:
    async def scenario(alarm: Alarm[str], clock: Clock, due: asyncio.Queue[list[str]]) -> None:
        loop: Any = asyncio.get_running_loop()
        alarm.set("a", clock() + 50_000_000)
        assert alarm.armed_us is not None
        assert alarm.cancel("a") is True
        assert alarm.cancel("a") is False

        assert alarm.armed_us is None
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []

    with_alarm(scenario)


def test_the_alarm_follows_the_earliest_deadline_with_one_timer() -> None:
    async def scenario(alarm: Alarm[str], clock: Clock, due: asyncio.Queue[list[str]]) -> None:
        loop: Any = asyncio.get_running_loop()
        now_us = clock()
        armed = []
        for key, wait_us in (("b", 60_000_000), ("a", 30_000_000), ("c", 90_000_000)):
            alarm.set(key, now_us + wait_us)
            armed.append(alarm.armed_us)
        alarm.cancel("a")
        armed.append(alarm.armed_us)

        assert armed == [now_us + wait_us for wait_us in (60_000_000, 30_000_000, 30_000_000, 60_000_000)]
        assert len([handle for handle in loop._scheduled if not handle.cancelled()]) == 1

    with_alarm(scenario)


@pytest.mark.parametrize("years", [1, 300_000])
def test_a_far_deadline_costs_one_look_a_day(years: int) -> None:
    async def scenario(alarm: Alarm[str], clock: Clock, due: asyncio.Queue[list[str]]) -> None:
        loop: Any = asyncio.get_running_loop()
        alarm.set("far", clock() + years * 365 * WAIT_US_MAX)

        (handle,) = (handle for handle in loop._scheduled if not handle.cancelled())
        assert 86_399 < handle.when() - loop.time() <= 86_400

    with_alarm(scenario)


def test_a_clock_that_went_back_makes_it_wait_for_the_rest() -> None:
    async def scenario(alarm: Alarm[str], clock: Clock, due: asyncio.Queue[list[str]]) -> None:
        deadline_us = clock() + 1_000
        alarm.set("a", deadline_us)
        clock.step_us = -20_000

        assert await due.get() == ["a"]
        assert clock() >= deadline_us

    with_alarm(scenario)


def test_a_clock_that_went_forward_is_made_up_for_by_rearm() -> None:
    async def scenario(alarm: Alarm[str], clock: Clock, due: asyncio.Queue[list[str]]) -> None:
        alarm.set("a", clock() + 3_600_000_000)
        clock.step_us = 3_600_000_000
        alarm.rearm()

        assert await due.get() == ["a"]

    with_alarm(scenario)


def test_a_callback_that_raises_does_not_stop_the_clockwork() -> None:
    async def run() -> tuple[list[str], list[str]]:
        loop = asyncio.get_running_loop()
        reported: list[str] = []
        loop.set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
        second = loop.create_future()

        def on_due(keys: list[str]) -> None:
            if keys == ["first"]:
                raise ValueError("first failed")
            second.set_result(keys)

        now_us = time.monotonic_ns() // 1000
        alarm = Alarm(Timers[str](), now_us=lambda: time.monotonic_ns() // 1000, on_due=on_due, loop=loop)
        alarm.set("first", now_us)
        alarm.set("second", now_us + 5_000)
        return await second, reported

    assert asyncio.run(run()) == (["second"], ["first failed"])

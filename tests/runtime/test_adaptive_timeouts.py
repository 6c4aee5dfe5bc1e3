"""Time-outs that a handler learns from its own attempts: what counts, what teaches, and what the error says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from sennit import AdaptiveTimeout, App, RetryPolicy, Task, TaskFailed, sleep, step
from sennit.errors import SettingsError
from sennit.execute.latency import Latencies, Watch
from sennit.model.lifecycle import State

WAIT_S = 30.0
NEVER_S = 1000.0
# Enough after five attempts; bodies of 20 ms then have far more time than they need, and less than a tenth of WAIT_S.
QUICK_S = 0.02
LEARNT = AdaptiveTimeout(floor_s=0.01, ceiling_s=NEVER_S, factor=20.0, samples_min=5)


async def on_the_loop(seconds: float) -> None:
    await asyncio.sleep(seconds)  # sleep: the body's own time


def in_a_thread(seconds: float) -> None:
    tick, end_s = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < end_s:
        tick.wait(0.005)  # between two of these it can be interrupted


BODIES = pytest.mark.parametrize("body", [on_the_loop, in_a_thread], ids=["async", "sync"])


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(TaskFailed) as caught:
        call()
    assert caught.value.kind == "TimeoutError"
    return caught.value.message


# ---------------------------------------------------------------- in a running app


@pytest.mark.parametrize("kind", ["async", "sync", "cpu"])
def test_an_attempt_that_takes_much_longer_than_others_did_is_given_up(any_app: App, kind: str) -> None:
    """The ceiling is far off: this test would run into its own time-out."""
    body: Any = on_the_loop if kind == "async" else in_a_thread
    task: Task[[float], None] = any_app.task(adaptive_timeout=LEARNT, cpu=kind == "cpu")(body)

    with any_app:
        task.options(timeout_s=NEVER_S).submit(0.0).result(WAIT_S)  # starts the process of a cpu body; is not counted
        for _ in range(5):
            task.submit(QUICK_S).result(WAIT_S)
        message = message_of(lambda: task.submit(NEVER_S).result(WAIT_S))

    assert message.startswith("the attempt ran longer than 20 × its p99 (")


def test_until_enough_is_known_the_ceiling_holds(app: App) -> None:
    how = AdaptiveTimeout(floor_s=0.01, ceiling_s=0.5, samples_min=3)
    task = app.task(adaptive_timeout=how)(on_the_loop)

    with app:
        task.submit(0.0).result(WAIT_S)
        message = message_of(lambda: task.submit(NEVER_S).result(WAIT_S))

    assert message == "the attempt ran longer than ceiling_s=0.5; of 3 attempts to learn from, 1 are known here"


def test_the_floor_holds_however_quick_the_others_were(app: App) -> None:
    how = AdaptiveTimeout(floor_s=1.0, ceiling_s=NEVER_S, factor=1.0, samples_min=3)
    task = app.task(adaptive_timeout=how)(on_the_loop)

    with app:
        for _ in range(3):
            task.submit(0.0).result(WAIT_S)
        task.submit(0.3).result(WAIT_S)
        message = message_of(lambda: task.submit(NEVER_S).result(WAIT_S))

    assert message.startswith("the attempt ran longer than floor_s=1; 1 × its p99 is only 0.")


def test_a_plain_time_out_is_the_ceiling(app: App) -> None:
    task = app.task(timeout_s=0.3, adaptive_timeout=AdaptiveTimeout(floor_s=0.01))(on_the_loop)

    with app:
        message = message_of(lambda: task.submit(NEVER_S).result(WAIT_S))

    assert message == "the attempt ran longer than timeout_s=0.3"


@BODIES
def test_a_time_out_of_the_call_overrides_what_was_learnt_and_teaches_nothing(app: App, body: Any) -> None:
    task: Task[[float], None] = app.task(adaptive_timeout=LEARNT)(body)
    own = task.options(timeout_s=NEVER_S)

    with app:
        for _ in range(8):
            own.submit(0.0).result(WAIT_S)
        for _ in range(5):
            task.submit(QUICK_S).result(WAIT_S)
        own.submit(2.0).result(WAIT_S)
        message = message_of(lambda: task.submit(NEVER_S).result(WAIT_S))

    assert "20 × its p99" in message
    assert float(message.rpartition("which is ")[2].removesuffix(" s")) < 20 * 2.0


def test_attempts_that_fail_teach_nothing(app: App) -> None:
    @app.task(adaptive_timeout=AdaptiveTimeout(floor_s=0.01, ceiling_s=0.5, samples_min=3), idle_timeout_s=0.2)
    async def work(how: str) -> None:
        if how == "raise":
            raise OSError("no network")
        await asyncio.Event().wait()

    with app:
        for _ in range(5):
            with pytest.raises(TaskFailed, match="no network"):
                work.submit("raise").result(WAIT_S)
        with pytest.raises(TaskFailed, match="no sign of life"):
            work.submit("hang").result(WAIT_S)
        message = message_of(lambda: work.options(idle_timeout_s=NEVER_S).submit("hang").result(WAIT_S))

    assert message.endswith("of 3 attempts to learn from, 0 are known here")


def test_an_attempt_that_skips_finished_steps_teaches_nothing(app: App) -> None:
    """What is left after a sleep is quick; were it to count, the first half would soon be given up."""

    @app.task(adaptive_timeout=AdaptiveTimeout(floor_s=0.01, ceiling_s=0.5, samples_min=3))
    async def halves(seconds: float) -> None:
        await step(on_the_loop, seconds)
        await sleep(0.001)

    with app:
        for _ in range(4):
            handle = halves.submit(QUICK_S)
            handle.result(WAIT_S)
            assert handle.view().result().attempt == 2
        message = message_of(lambda: halves.submit(NEVER_S).result(WAIT_S))

    assert message.endswith("of 3 attempts to learn from, 0 are known here")


def test_time_outs_make_room_when_all_attempts_become_slower(app: App) -> None:
    """What was right is too short now. Each time-out says so, and a retry gets more."""
    how = AdaptiveTimeout(floor_s=0.01, ceiling_s=NEVER_S, samples_min=5)
    policy = RetryPolicy(retries=10, delay_s=0.0)
    task = app.task(adaptive_timeout=how, retries=policy)(on_the_loop)

    with app:
        for _ in range(5):
            task.submit(QUICK_S).result(WAIT_S)
        slow = task.submit(1.0)
        slow.result(WAIT_S)
        failures = slow.view().result().failures
        after = task.submit(1.0)
        after.result(WAIT_S)

    assert 0 < failures < 10
    assert after.view().result().failures == 0


def test_handlers_do_not_learn_from_each_other(app: App) -> None:
    quick = app.task(name="quick", adaptive_timeout=LEARNT)(on_the_loop)
    how = AdaptiveTimeout(floor_s=0.01, ceiling_s=0.3, samples_min=5)
    other = app.task(name="other", adaptive_timeout=how)(on_the_loop)

    with app:
        for _ in range(6):
            quick.submit(QUICK_S).result(WAIT_S)
        message = message_of(lambda: other.submit(NEVER_S).result(WAIT_S))

    assert message.endswith("of 5 attempts to learn from, 0 are known here")


# ---------------------------------------------------------------- time that is not its own


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_waiting_for_other_tasks_is_no_work_of_its_own(any_app: App, kind: str) -> None:
    how = AdaptiveTimeout(floor_s=0.5, ceiling_s=NEVER_S, factor=1.0, samples_min=3)
    child = any_app.task(name="child")(on_the_loop)

    async def parent(seconds: float) -> str:
        await child.submit(seconds)
        return "done"

    def sync_parent(seconds: float) -> str:
        child.submit(seconds).result()
        return "done"

    body: Any = parent if kind == "async" else sync_parent
    task: Task[[float], str] = any_app.task(name="parent", adaptive_timeout=how)(body)

    with any_app:
        for _ in range(3):
            assert task.submit(0.0).result(WAIT_S) == "done"
        handle = task.submit(1.5)

        assert handle.result(WAIT_S) == "done"
        assert handle.view().result().attempt == 1


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_after_the_wait_its_time_goes_on(app: App, kind: str) -> None:
    how = AdaptiveTimeout(floor_s=0.5, ceiling_s=NEVER_S, factor=1.0, samples_min=3)
    child = app.task(name="child")(on_the_loop)

    async def parent(seconds: float) -> None:
        await child.submit(0.0)
        await on_the_loop(seconds)

    def sync_parent(seconds: float) -> None:
        child.submit(0.0).result()
        in_a_thread(seconds)

    body: Any = parent if kind == "async" else sync_parent
    task: Task[[float], None] = app.task(name="parent", adaptive_timeout=how)(body)

    with app:
        for _ in range(3):
            task.submit(0.0).result(WAIT_S)
        message = message_of(lambda: task.submit(NEVER_S).result(WAIT_S))

    assert message.startswith("the attempt ran longer than floor_s=0.5; 1 × its p99 is only 0.")


def test_standing_in_line_for_a_provider_is_no_work_of_its_own(app: App) -> None:
    anthropic = app.provider("anthropic", parallel=1)
    how = AdaptiveTimeout(floor_s=0.5, ceiling_s=NEVER_S, factor=1.0, samples_min=3)
    has_slot, may_end = threading.Event(), threading.Event()

    @app.task
    async def hold() -> None:
        async with anthropic.slot():
            has_slot.set()
            await asyncio.to_thread(may_end.wait, WAIT_S)

    @app.task(adaptive_timeout=how)
    async def call() -> str:
        async with anthropic.slot():
            return "called"

    with app:
        for _ in range(3):
            assert call.submit().result(WAIT_S) == "called"
        first = hold.submit()
        assert has_slot.wait(WAIT_S)
        handle = call.submit()
        with pytest.raises(TimeoutError):
            handle.result(1.5)
        assert handle.view().result().state is State.RUNNING
        may_end.set()

        assert handle.result(WAIT_S) == "called"
        assert handle.view().result().attempt == 1
        first.result(WAIT_S)


# ---------------------------------------------------------------- the watch alone, in a time of its own


class Timer:
    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Rig:
    """The two things that are asked of an event loop, and what was given up."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[Timer] = []
        self.reasons: list[str] = []
        self.latencies = Latencies(cast("asyncio.AbstractEventLoop", self))

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(self.now_s + delay_s, lambda: call(*args)))
        return self.timers[-1]

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for timer in self.armed:
            if timer.at_s <= self.now_s:
                timer.cancel()
                timer.call()

    def watch(self, *, is_whole: bool = True) -> Watch:
        how = AdaptiveTimeout(floor_s=1.0, ceiling_s=60.0, samples_min=2)
        return self.latencies.watch("work", how, give_up=self.reasons.append, is_whole=is_whole)

    @property
    def samples(self) -> int:
        return self.latencies._sketches["work"].samples


def test_a_watch_that_stands_still_arms_nothing_and_goes_on_with_what_is_left() -> None:
    rig = Rig()
    watch = rig.watch()
    rig.pass_time(50.0)

    watch.stand_still()
    assert rig.armed == []
    rig.pass_time(1000.0)
    watch.go_on()

    rig.pass_time(9.0)
    assert rig.reasons == []
    rig.pass_time(1.5)
    assert len(rig.reasons) == 1


def test_it_is_the_time_of_work_that_is_learnt() -> None:
    rig = Rig()
    for _ in range(2):
        watch = rig.watch()
        rig.pass_time(1.0)
        watch.stand_still()
        rig.pass_time(1000.0)
        watch.go_on()
        rig.pass_time(1.0)
        watch.ended(succeeded=True)

    rig.watch()
    rig.pass_time(3 * 2.0 - 0.1)
    assert rig.reasons == []
    rig.pass_time(3 * 2.0 * 0.1 + 0.2)
    assert rig.reasons[0].startswith("the attempt ran longer than 3 × its p99 (")


def test_a_ceiling_reached_while_it_only_waits_teaches_nothing() -> None:
    rig = Rig()
    waits, works = rig.watch(), rig.watch()
    rig.pass_time(2.0)
    waits.stand_still()

    waits.timed_out()
    assert rig.samples == 0
    works.timed_out()
    works.timed_out()

    assert rig.samples == 1


def test_an_ended_attempt_leaves_no_timer() -> None:
    rig = Rig()

    rig.watch().ended(succeeded=False)
    rig.watch(is_whole=False).ended(succeeded=True)

    assert (rig.armed, rig.samples) == ([], 0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "bad",
    [
        {"floor_s": 0.0},
        {"floor_s": -1.0},
        {"floor_s": float("nan")},
        {"floor_s": "5"},
        {"floor_s": 10.0, "ceiling_s": 9.0},
        {"floor_s": 1.0, "ceiling_s": float("inf")},
        {"floor_s": 1.0, "quantile": 1.0},
        {"floor_s": 1.0, "quantile": 0.0},
        {"floor_s": 1.0, "factor": 0.5},
        {"floor_s": 1.0, "samples_min": 0},
        {"floor_s": True},
    ],
)
def test_bounds_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        AdaptiveTimeout(**bad)


def test_without_a_ceiling_it_is_refused(app: App) -> None:
    with pytest.raises(SettingsError, match="has no ceiling"):
        app.task(adaptive_timeout=AdaptiveTimeout(floor_s=1.0))(on_the_loop)


def test_a_plain_time_out_below_the_floor_is_refused(app: App) -> None:
    with pytest.raises(SettingsError, match="is no time-out"):
        app.task(timeout_s=1.0, adaptive_timeout=AdaptiveTimeout(floor_s=2.0, ceiling_s=3.0))(on_the_loop)


@pytest.mark.parametrize(("timeout_s", "ceiling_s", "in_force_s"), [(5.0, 9.0, 5.0), (9.0, 5.0, 5.0), (5.0, None, 5.0)])
def test_the_lower_of_both_ceilings_holds(timeout_s: float, ceiling_s: float | None, in_force_s: float) -> None:
    assert AdaptiveTimeout(floor_s=1.0, ceiling_s=ceiling_s).within(timeout_s).ceiling_s == in_force_s

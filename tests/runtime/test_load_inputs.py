"""What a running process tells its load manager: for how long bodies keep the loop, and how long started work has waited."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from sennit import App
from sennit.limit.load import LOOK_EVERY_US
from sennit.limit.shedding import Decision
from sennit.model.order import Priority
from tests.crash.fleet import WAIT_S
from tests.runtime.test_load_runtime import DEAF, wait_until

PRIORITIES = ("urgent", "high", "normal", "low")


def make(url: str, **settings: Any) -> App:
    return App(url, **{"durability": "normal", "load_control": True, **DEAF, **settings})


def test_a_step_that_blocks_the_loop_counts_though_no_attempt_starts_or_ends(url: str) -> None:
    """Long after the last attempt has started nothing times the loop; the body itself does."""
    app = make(url, loop_lag_notice_s=0.25)
    started, may_block, may_end = threading.Event(), asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> str:
        started.set()
        await may_block.wait()
        time.sleep(0.6)  # noqa: ASYNC251 - it blocks the loop: that is what this is about
        await may_end.wait()
        return "done"

    with app:
        engine = app._engine
        assert engine is not None
        assert app.load is not None
        handle = work.submit()
        assert started.wait(WAIT_S)
        wait_until(lambda: app.load is not None and app.load._probe is None)
        looked_us = app.load._looked_us
        wait_until(lambda: app.load is not None and app.load._now_us() - looked_us > LOOK_EVERY_US)
        engine._loop.call_soon_threadsafe(may_block.set)
        wait_until(lambda: app.load is not None and bool(app.load.decisions))
        decisions = list(app.load.decisions)
        engine._loop.call_soon_threadsafe(may_end.set)
        assert handle.result(WAIT_S) == "done"

    first: Decision = decisions[0]
    assert first.reasons == ("lag",)
    assert first.inputs.lag_s >= 0.6


@pytest.mark.parametrize("load_control", [True, False])
def test_app_load_is_there_while_the_app_works_with_the_setting(url: str, *, load_control: bool) -> None:
    app = App(url, durability="normal", load_control=load_control)
    before = app.load
    with app:
        during = app.load
        assert (during is not None) is load_control
        if during is not None:
            assert during.recommend_concurrency(8) in range(1, 9)

    assert before is None
    assert app.load is None


@pytest.fixture(params=["memory", "sqlite"])
def store_url(request: pytest.FixtureRequest, url: str) -> str:
    return "memory://" if request.param == "memory" else url


def test_a_claimed_task_says_since_when_it_is_ready(store_url: str) -> None:
    """Also one that goes straight to a free slot, and one whose priority gives it a later place."""
    app = make(store_url, slots=1)
    claimed: dict[str, int | None] = {}
    may_end = threading.Event()

    @app.task
    def work(name: str) -> str:
        assert may_end.wait(WAIT_S)
        return name

    with app:
        engine = app._engine
        assert engine is not None
        engine._worker._on_start = lambda task: claimed.update({PRIORITIES[task.priority]: task.ready_us})
        handles = [work.options(priority=priority).submit(priority) for priority in PRIORITIES]
        may_end.set()
        for handle in handles:
            handle.result(WAIT_S)
        created = {p: handle.view().result().created_us for p, handle in zip(PRIORITIES, handles, strict=True)}

    assert claimed == created


def test_work_that_has_waited_too_long_for_a_slot_asks_for_patience_and_lowers_nothing(store_url: str) -> None:
    app = make(store_url, slots=1, load_queue_age_s_max=0.2)
    may_end = threading.Semaphore(0)
    running: list[int] = []

    @app.task
    def work(n: int) -> int:
        running.append(n)
        assert may_end.acquire(timeout=WAIT_S)
        return n

    with app:
        load, engine = app.load, app._engine
        assert load is not None
        assert engine is not None
        handles = work.map(range(3))
        wait_until(lambda: running == [0])
        assert not load.should_throttle(Priority.LOW)
        time.sleep(0.3)  # sleep: it is the age of the work behind it that this is about
        may_end.release()
        wait_until(lambda: running == [0, 1])
        load._looked_us -= 2 * LOOK_EVERY_US
        may_end.release()
        wait_until(lambda: load.state.is_late)
        asked = [load.should_throttle(priority) for priority in (Priority.LOW, Priority.NORMAL)]
        multiplier, age_s = load.multiplier, load.statistics().inputs.queue_age_s
        may_end.release()
        assert handles.result(WAIT_S) == [0, 1, 2]
        wait_until(lambda: engine._queue_age_s() == 0)  # a slot is free: nothing waits

    assert (asked, multiplier) == ([True, False], 1.0)
    assert age_s is not None
    assert 0.3 <= age_s < WAIT_S

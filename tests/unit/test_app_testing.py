"""`app.testing()` runs the real runtime in memory, and time passes only when the test says so."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from sennit import App, NotRetryable, RetryPolicy, Snooze, TaskFailed, sleep, step
from sennit.errors import UsageError
from sennit.model.lifecycle import State
from sennit.runtime.harness import AsyncHarness, SyncHarness
from sennit.sync.virtual import VirtualClock
from sennit.testing import clock as clock_for_tests

HOUR_S = 3600.0


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(f"sqlite:///{tmp_path}/never-opened.db")


def test_nothing_runs_before_the_drain(app: App) -> None:
    ran: list[str] = []

    @app.task
    def review(path: str, depth: int = 1) -> str:
        ran.append(path)
        return path.upper()

    with app.testing() as t:
        handle = review.submit("a.py", depth=2)

        assert [view.state for view in t.tasks] == [State.READY]
        assert ran == []

        ledger = t.drain()

        assert ran == ["a.py"]
        assert handle.result() == "A.PY"
        assert (ledger.succeeded, ledger.live) == (1, 0)


def test_what_was_submitted_is_found_by_its_arguments(app: App) -> None:
    @app.task
    def review(path: str, depth: int = 1) -> None: ...

    @app.task
    def other(path: str) -> None: ...

    with app.testing() as t:
        review.submit("a.py", depth=2)

        assert t.submitted(review)
        assert t.submitted(review, path="a.py", depth=2)
        assert t.submitted(review.name, path="a.py")
        assert not t.submitted(review, path="b.py")
        assert not t.submitted(other, path="a.py")


def test_async_bodies_run_on_the_loop_of_the_test(app: App) -> None:
    @app.task
    async def where() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    async def main() -> None:
        async with app.testing() as t:
            assert isinstance(t, AsyncHarness)
            handle = where.submit()
            await t.drain()
            assert await handle == threading.get_ident()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_hour_of_retries_passes_at_once(app: App, kind: str) -> None:
    attempts: list[float] = []
    policy = RetryPolicy(retries=4, delay_s=900, factor=1, jitter=0)

    def fails_for_an_hour() -> str:
        attempts.append(t.clock.now_us() / 1e6)
        if len(attempts) < 5:
            raise ConnectionError("not yet")
        return "there"

    async def fails_for_an_hour_async() -> str:
        return fails_for_an_hour()

    task = app.task(retries=policy)(fails_for_an_hour if kind == "sync" else fails_for_an_hour_async)
    with app.testing() as t:
        handle = task.submit()
        ledger = t.drain()

        assert handle.result() == "there"
        assert [round(at - attempts[0]) for at in attempts] == [0, 900, 1800, 2700, 3600]
        assert (ledger.retried, ledger.crashed, ledger.refused) == (4, 0, 0)


def test_delays_snoozes_and_sleeps_pass_at_once_and_steps_are_not_repeated(app: App) -> None:
    paid: list[str] = []

    def pay() -> str:
        paid.append("once")
        return "receipt"

    @app.task
    async def tired() -> str:
        receipt = await step(pay)
        await sleep(6 * HOUR_S)
        if not t.tasks[1:]:
            later.options(delay_s=HOUR_S).submit()
        return receipt

    @app.task
    def later() -> Snooze | str:
        return Snooze(60) if t.tasks[1].attempt < 3 else "done"

    with app.testing() as t:
        handle = tired.submit()
        t.drain()

        assert handle.result() == "receipt"
        assert paid == ["once"]
        assert [view.state for view in t.tasks] == [State.SUCCEEDED, State.SUCCEEDED]
        assert t.tasks[1].attempt == 3


def test_a_drain_stops_where_it_was_told(app: App) -> None:
    @app.task
    def hourly() -> Snooze:
        return Snooze(HOUR_S)

    with app.testing() as t:
        hourly.submit()
        began_us = t.clock.now_us()
        t.drain(until_s=2.5 * HOUR_S)

        assert t.tasks[0].attempt == 3
        assert t.clock.now_us() - began_us == 2 * HOUR_S * 1_000_000


def test_advance_passes_exactly_so_much_time(app: App) -> None:
    @app.task
    def soon() -> str:
        return "ran"

    with app.testing() as t:
        soon.options(delay_s=90).submit()
        began_us = t.clock.now_us()

        t.advance(60)
        assert [view.state for view in t.tasks] == [State.SCHEDULED]

        t.advance(60)
        assert [view.state for view in t.tasks] == [State.SUCCEEDED]
        assert t.clock.now_us() - began_us == 120_000_000


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_body_may_wait_for_a_child_that_takes_hours(app: App, kind: str) -> None:
    @app.task(retries=RetryPolicy(retries=3, delay_s=5 * HOUR_S, factor=1, jitter=0))
    def child(n: int) -> int:
        if t.tasks[-1].failures < 2:
            raise ConnectionError("not yet")
        return n * 10

    @app.task
    def sync_parent(n: int) -> int:
        return child.submit(n).result() + 1

    @app.task
    async def async_parent(n: int) -> int:
        return await child.submit(n) + 1

    parent = sync_parent if kind == "sync" else async_parent
    with app.testing() as t:
        handle = parent.submit(4)
        ledger = t.drain()

        assert handle.result() == 41
        assert (ledger.crashed, ledger.refused) == (0, 0)
        assert t.tasks[0].attempt == 1


def test_dependants_and_fan_outs_run_in_one_drain(app: App) -> None:
    @app.task
    async def square(n: int) -> int:
        return n * n

    @app.task
    def total(parts: list[int]) -> int:
        return sum(parts)

    with app.testing() as t:
        handle = total.submit(square.map(range(20)).as_argument())
        t.drain()

        assert handle.result() == sum(n * n for n in range(20))


def test_a_failure_is_raised_by_its_handle(app: App) -> None:
    @app.task(retries=5)
    def fails() -> None:
        raise NotRetryable("no such user")

    with app.testing() as t:
        handle = fails.submit()
        ledger = t.drain()

        assert ledger.failed == 1
        with pytest.raises(TaskFailed, match="no such user"):
            handle.result()


def test_the_apps_own_store_is_not_touched_and_comes_back(app: App, tmp_path: Path) -> None:
    @app.task
    def quick() -> int:
        return 1

    with app.testing() as t:
        quick.submit()
        t.drain()
    assert list(tmp_path.iterdir()) == []

    with app:
        assert quick.submit().result(10) == 1
        assert app.ledger().result().submitted == 1


def test_each_testing_starts_empty(app: App) -> None:
    @app.task
    def quick() -> int:
        return 1

    for _ in range(2):
        with app.testing() as t:
            assert isinstance(t, SyncHarness)
            assert t.tasks == []
            quick.submit()
            assert t.drain().submitted == 1


def test_an_app_that_works_cannot_be_tested(app: App) -> None:
    with app, pytest.raises(UsageError, match="working already"):
        app.testing()


def test_one_testing_is_entered_once(app: App) -> None:
    testing = app.testing()
    with testing, pytest.raises(UsageError, match="entered already"):
        testing.__enter__()


def test_the_virtual_clock_has_its_old_name_in_testing() -> None:
    assert clock_for_tests.VirtualClock is VirtualClock

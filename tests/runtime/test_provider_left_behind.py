"""Permits when a body does what it should not: leaves coroutines behind, gives up waiting, fails in a TaskGroup."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest

from sennit import App, Handle, RetryPolicy, step
from sennit.errors import AnswerInvalid, AttemptCancelled, BudgetExceeded, ResultTimeout
from sennit.model.lifecycle import State
from sennit.model.provider import NANO
from sennit.model.task import TaskView
from sennit.submit.limits import Provider
from tests.runtime.provider_facts import WAIT_S, on_a_loop, seen


def fixed(app: App, name: str = "p", parallel: int = 1) -> Provider:
    return app.provider(name, parallel=parallel, strategy="fixed", breaker=None)


async def come_to_rest(handle: Handle[Any]) -> TaskView:
    """Wait until a task is suspended or has ended."""
    async with asyncio.timeout(WAIT_S):
        while True:
            view = await handle.view()
            if view.state not in {State.READY, State.RUNNING}:
                return view
            await asyncio.sleep(0)


@on_a_loop
async def test_a_call_that_outlives_its_attempt_does_not_return_the_permit_of_the_next_attempt(any_app: App) -> None:
    provider = fixed(any_app)
    left: list[asyncio.Task[None]] = []
    called, leave, second_runs, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def call() -> None:
        async with provider.slot():
            called.set()
            await leave.wait()

    @any_app.task(provider=provider, retries=RetryPolicy(retries=1, delay_s=0.0))
    async def work() -> None:
        if not left:
            left.append(asyncio.create_task(call()))
            await called.wait()
            raise ValueError("again")
        second_runs.set()
        await go_on.wait()

    async with any_app:
        handle = work.submit()
        await asyncio.wait_for(second_runs.wait(), WAIT_S)
        leave.set()
        await left[0]
        (view,) = await provider.view()
        assert view.in_use == 1
        go_on.set()
        await handle


@on_a_loop
async def test_a_coroutine_that_outlives_its_attempt_can_still_make_calls(any_app: App) -> None:
    provider = fixed(any_app)
    left: list[asyncio.Task[str]] = []
    go_on = asyncio.Event()

    async def call() -> str:
        await go_on.wait()
        async with provider.slot() as made:
            return made.provider

    @any_app.task(provider=provider)
    async def work() -> None:
        left.append(asyncio.create_task(call()))

    async with any_app:
        await work.submit()
        hold = provider.slot()
        await hold.__aenter__()
        go_on.set()
        await seen(provider, lambda v: v.waiting == 1)
        await hold.__aexit__(None, None, None)
        assert await asyncio.wait_for(left[0], WAIT_S) == "p"
        await seen(provider, lambda v: not v.in_use and not v.waiting)


@on_a_loop
async def test_a_body_that_gives_up_waiting_for_a_child_holds_its_permit_again_at_its_next_step(any_app: App) -> None:
    provider, go_on, stepping = fixed(any_app), asyncio.Event(), asyncio.Event()
    late = asyncio.Event()

    @any_app.task
    async def child() -> None:
        await go_on.wait()

    async def call() -> None:
        stepping.set()
        await late.wait()

    @any_app.task(provider=provider)
    async def parent() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.submit(), 0.05)
        await step(call)

    async with any_app:
        handle = parent.submit()
        await asyncio.wait_for(stepping.wait(), WAIT_S)
        (view,) = await provider.view()
        late.set()
        go_on.set()
        await handle
        assert view.in_use == 1


def test_a_sync_body_that_gives_up_waiting_for_a_child_holds_its_permit_again_at_its_next_step(
    any_app: App,
) -> None:
    provider = fixed(any_app)

    @any_app.task
    async def child() -> None:
        await asyncio.sleep(0.5)  # sleep: longer than its parent waits for it

    @any_app.task(provider=provider)
    def parent() -> int:
        with pytest.raises(ResultTimeout):
            child.submit().result(0.05)
        return step(in_use).result()

    def in_use() -> int:
        return provider.view().result()[0].in_use

    with any_app:
        assert parent.submit().result(WAIT_S) == 1


def test_a_sync_body_that_was_given_up_does_not_return_the_permit_of_the_next_attempt(
    any_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sennit.execute.worker.ABANDON_S", 0.05)
    provider = fixed(any_app)
    leave, left, second_runs, go_on = (threading.Event() for _ in range(4))
    begun: list[int] = []

    @any_app.task(provider=provider, timeout_s=0.1, retries=RetryPolicy(retries=1, delay_s=0.0))
    def first_hangs() -> None:
        begun.append(1)
        if len(begun) == 2:
            second_runs.set()
            with suppress(AttemptCancelled):
                go_on.wait(WAIT_S)
            return
        with provider.slot(), suppress(AttemptCancelled):
            leave.wait(WAIT_S)  # an interrupt is raised when this returns
        left.set()

    with any_app:
        handle = first_hangs.options(timeout_s=0.1).submit()
        assert second_runs.wait(WAIT_S)
        leave.set()
        assert left.wait(WAIT_S)
        assert provider.view().result()[0].in_use == 1
        go_on.set()
        handle.cancel().result()


@on_a_loop
async def test_a_spent_budget_in_a_task_group_asks_as_it_would_outside_of_one(any_app: App) -> None:
    provider = fixed(any_app, parallel=3)
    any_app.budget(tokens=10, on_exceeded="ask")

    async def call() -> None:
        async with provider.slot() as made:
            made.used(input_tokens=10)

    @any_app.task
    async def work() -> None:
        await call()
        async with asyncio.TaskGroup() as group:
            group.create_task(call())
            group.create_task(call())

    async with any_app:
        handle = work.submit()
        view = await come_to_rest(handle)
    assert view.state is State.SUSPENDED


@on_a_loop
async def test_a_client_that_wraps_a_spent_budget_in_an_error_of_its_own_does_not_hide_it(any_app: App) -> None:
    provider = fixed(any_app, parallel=3)
    any_app.budget(tokens=10, on_exceeded="ask")

    @any_app.task
    async def work() -> None:
        async with provider.slot() as made:
            made.used(input_tokens=10)
        try:
            async with provider.slot():
                pass
        except BudgetExceeded as error:
            raise RuntimeError("Connection error.") from error

    async with any_app:
        handle = work.submit()
        view = await come_to_rest(handle)
    assert view.state is State.SUSPENDED


def cpu_work() -> int:
    return 1


def test_a_cpu_body_is_one_call_as_well(app: App) -> None:
    provider = fixed(app)
    work = app.task(cpu=True, provider=provider)(cpu_work)

    with app:
        assert work.submit().result(WAIT_S) == 1
        while (view := provider.view().result()[0]).in_use:
            pass
    assert (view.granted, view.succeeded) == (1, 1)


@pytest.mark.parametrize("claimed_for", ["", "other"])
@on_a_loop
async def test_an_answer_raises_the_bound_of_a_task_that_was_not_claimed_for_that_provider(
    any_app: App, claimed_for: str
) -> None:
    provider, _ = fixed(any_app, parallel=3), fixed(any_app, "other", parallel=3)
    any_app.budget("provider", "p", tokens=10, usd=500, on_exceeded="ask")
    begun: list[int] = []

    @any_app.task
    async def work() -> str:
        begun.append(1)
        for _ in range(2):
            async with provider.slot() as made:
                made.used(input_tokens=10)
        return "done"

    async with any_app:
        handle = work.options(provider=claimed_for or None).submit()
        assert (await come_to_rest(handle)).state is State.SUSPENDED
        (asked,) = await any_app.inbox().list()
        with pytest.raises(AnswerInvalid):
            await asked.respond(10.5)
        with pytest.raises(AnswerInvalid):
            await asked.respond(10**30)
        await asked.respond(1000)
        async with asyncio.timeout(WAIT_S):
            assert await handle == "done"
        (view,) = await any_app.budgets()

    assert len(begun) == 3  # asked, raised, done
    assert (view.budget.tokens_max, view.budget.cost_nano_max) == (1000, 500 * NANO)


@on_a_loop
async def test_bodies_of_many_calls_come_to_an_end_while_a_fallback_with_little_room_stands_in(any_app: App) -> None:
    stand_in = fixed(any_app, "stand-in")
    provider = any_app.provider("p", parallel=1, strategy="fixed", breaker=None, fallbacks=[stand_in])
    begun: list[int] = []

    @any_app.task(provider=provider)
    async def work() -> list[str]:
        begun.append(1)
        made = []
        for _ in range(3):
            async with provider.slot() as call:
                made.append(call.provider)
        return made

    async with any_app:
        await provider.pause(600)
        async with asyncio.timeout(WAIT_S):
            handles = [work.submit() for _ in range(4)]
            assert [await handle for handle in handles] == [["stand-in"] * 3] * 4

    assert len(begun) == 4

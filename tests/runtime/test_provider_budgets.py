"""Budgets through an app: a spent one fails what would spend more, or asks a person, at the claim and in mid-run."""

from __future__ import annotations

import asyncio

import pytest

from sennit import App, TaskFailed, step
from sennit.errors import BudgetExceeded, SettingsError
from sennit.model.lifecycle import State
from sennit.submit.limits import Provider
from sennit.threads.inbox import Question
from tests.runtime.provider_facts import WAIT_S, on_a_loop

PRICES = {"m": (1.0, 2.0)}  # USD per million tokens, in and out


@pytest.fixture
def provider(any_app: App) -> Provider:
    return any_app.provider("p", parallel=3, prices=PRICES)


async def spend(provider: Provider, tokens: int) -> None:
    async with provider.slot() as call:
        call.used(input_tokens=tokens, output_tokens=tokens, model="m")


async def spent_tokens(app: App) -> dict[tuple[str, str], int]:
    return {(view.budget.scope, view.budget.key): view.tokens for view in await app.budgets()}


async def question(app: App) -> Question:
    """Wait for the one open question."""
    async with asyncio.timeout(WAIT_S):
        async for ask in app.inbox().watch():
            if ask.state == "open":
                return await app.inbox().show(ask.id)
    raise AssertionError("the inbox has ended")


# ---------------------------------------------------------------- fail


@on_a_loop
async def test_an_attempt_that_would_spend_more_fails_at_once_and_not_again(any_app: App, provider: Provider) -> None:
    made: list[int] = []

    async def call(n: int) -> None:
        await spend(provider, 50)
        made.append(n)

    @any_app.task(provider=provider, retries=5)
    async def work() -> None:
        for n in range(5):
            await step(call, n)

    await any_app.budget("fleet", tokens=150)
    async with any_app:
        with pytest.raises(TaskFailed, match="150 tokens") as failed:
            await work.submit()
        view = await any_app.store.task(failed.value.task_id)

    assert made == [0, 1]  # 200 tokens: the last call that was begun below the bound goes over it
    assert view.attempt == 1
    assert view.error is not None
    assert view.error.kind == "BudgetExceeded"
    assert "sennit tasks retry" in view.error.fix


@on_a_loop
async def test_a_task_whose_budget_is_spent_fails_when_it_is_claimed_and_its_body_never_runs(
    any_app: App, provider: Provider
) -> None:
    ran: list[int] = []

    @any_app.task(provider=provider)
    async def work(n: int) -> None:
        ran.append(n)

    @any_app.task
    async def plain() -> str:
        return "costs nothing"

    await any_app.budget("provider", provider, tokens=10)
    await spend(provider, 10)
    async with any_app:
        with pytest.raises(TaskFailed, match="budget"):
            await work.submit(1)
        assert await plain.submit() == "costs nothing"
        await any_app.budget("provider", provider, tokens=100)
        await work.submit(2)

    assert ran == [2]


@on_a_loop
async def test_a_call_outside_of_a_body_is_held_against_no_budget_of_tasks(any_app: App, provider: Provider) -> None:
    await any_app.budget("task", tokens=10)
    for _ in range(3):
        await spend(provider, 10)

    assert await spent_tokens(any_app) == {("task", ""): 0}


@on_a_loop
async def test_each_scope_counts_what_is_its_own(any_app: App, provider: Provider) -> None:
    @any_app.task(provider=provider)
    async def work(tokens: int) -> None:
        await spend(provider, tokens)

    await any_app.budget("fleet", usd=1)
    await any_app.budget("handler", work, tokens=1000)
    await any_app.budget("thread", tokens=1000)
    await any_app.budget("task", tokens=1000)
    async with any_app:
        first = work.options(thread_id="a").submit(10)
        second = work.options(thread_id="b").submit(20)
        await first
        await second
        counted = await spent_tokens(any_app)
        (fleet,) = [view for view in await any_app.budgets() if view.budget.scope == "fleet"]

    assert counted == {
        ("fleet", ""): 60,
        ("handler", work.name): 60,
        ("thread", ""): counted["thread", ""],
        ("thread", "a"): 20,
        ("thread", "b"): 40,
        ("task", ""): counted["task", ""],
        ("task", str(first.id)): 20,
        ("task", str(second.id)): 40,
    }
    assert fleet.cost_nano == 30 * 1_000 + 30 * 2_000


@on_a_loop
async def test_a_body_may_catch_it_and_do_without(any_app: App, provider: Provider) -> None:
    @any_app.task(provider=provider)
    async def work() -> str:
        await spend(provider, 50)
        try:
            await spend(provider, 50)
        except BudgetExceeded as error:
            return f"{error.scope}: {error.spent:g} of {error.allowed:g} {error.unit}"
        return "all"

    await any_app.budget("fleet", usd=0.0001)
    async with any_app:
        assert await work.submit() == "fleet: 0.00015 of 0.0001 USD"


# ---------------------------------------------------------------- ask


@on_a_loop
async def test_a_person_who_allows_more_lets_the_task_go_on_from_its_finished_steps(
    any_app: App, provider: Provider
) -> None:
    made: list[int] = []

    async def call(n: int) -> None:
        await spend(provider, 50)
        made.append(n)

    @any_app.task(provider=provider)
    async def work() -> str:
        for n in range(3):
            await step(call, n)
        return "done"

    await any_app.budget("fleet", tokens=150, on_exceeded="ask")
    async with any_app:
        handle = work.submit()
        asked = await question(any_app)
        assert "150 tokens" in asked.text
        assert (await handle.view()).state is State.SUSPENDED
        assert asked.proposal == 400
        await asked.edit(1000, by="lee")
        assert await asyncio.wait_for(handle, WAIT_S) == "done"
        (budget,) = await any_app.budgets()

    assert made == [0, 1, 2]
    assert (budget.budget.tokens_max, budget.tokens) == (1000, 300)


@on_a_loop
async def test_what_is_proposed_is_more_than_what_is_spent_so_that_approving_it_is_enough(
    any_app: App, provider: Provider
) -> None:
    @any_app.task(provider=provider)
    async def work() -> None:
        await spend(provider, 10)

    await any_app.budget("provider", provider, usd=0.00001, on_exceeded="ask")
    await spend(provider, 10)
    async with any_app:
        handle = work.submit()
        asked = await question(any_app)
        assert "0.00003 of 0.00001 USD" in asked.text
        await asked.approve()
        await asyncio.wait_for(handle, WAIT_S)
        (budget,) = await any_app.budgets()

    assert budget.budget.cost_nano_max == 60_000


@on_a_loop
async def test_a_person_who_says_no_fails_the_task(any_app: App, provider: Provider) -> None:
    @any_app.task(provider=provider, retries=3)
    async def work() -> None: ...

    await any_app.budget("fleet", tokens=10, on_exceeded="ask")
    await spend(provider, 10)
    async with any_app:
        handle = work.submit()
        await (await question(any_app)).reject("enough", by="lee")
        with pytest.raises(TaskFailed, match="budget of the fleet is spent"):
            await asyncio.wait_for(handle, WAIT_S)


@on_a_loop
async def test_a_budget_that_is_raised_by_hand_lets_all_go_on_that_asked_for_it_and_leaves_no_question(
    any_app: App, provider: Provider
) -> None:
    @any_app.task(provider=provider)
    async def work(n: int) -> int:
        return n

    await any_app.budget("fleet", tokens=10, on_exceeded="ask")
    await spend(provider, 10)
    async with any_app:
        handles = work.map(range(3))
        async with asyncio.timeout(WAIT_S):
            async for _ in any_app.inbox().watch():
                if len(await any_app.inbox().list()) == 3:
                    break
        await any_app.budget("fleet", tokens=1000, on_exceeded="ask")
        assert await asyncio.wait_for(handles, WAIT_S) == [0, 1, 2]
        assert await any_app.inbox().list() == []


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": "planet"},
        {"tokens": -1},
        {"usd": float("nan")},
        {"usd": float("inf")},
        {"tokens": 10**30},
        {"on_exceeded": "shrug"},
        {"scope": "fleet", "key": "k"},
        {"scope": "provider", "key": ""},
    ],
)
def test_a_budget_that_cannot_be_is_refused(any_app: App, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        any_app.budget(**({"scope": "fleet", "tokens": 5} | wrong))  # type: ignore[arg-type]  # that is the case

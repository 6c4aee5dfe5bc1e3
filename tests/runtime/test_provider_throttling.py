"""429s of a real server through a real client: the attempt is given back, the fleet holds back once, and nothing is used up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from sennit import App, TaskFailed, step
from sennit.model.lifecycle import State
from sennit.submit.limits import Provider
from sennit.testing.provider import FakeProvider
from tests.runtime.provider_facts import WAIT_S, Refused, on_a_loop, seen

RESET_S = 2.0


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


def openai_at(app: App, fake: FakeProvider) -> Provider:
    def client() -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="any", max_retries=0)

    return app.provider("openai", parallel=5, client=client)


async def answer(client: openai.AsyncOpenAI) -> Any:
    return await client.chat.completions.create(model="fake-model", messages=[{"role": "user", "content": "hi"}])


@on_a_loop
async def test_a_window_that_is_used_up_uses_up_no_attempt_and_the_tasks_go_on_at_its_reset(
    any_app: App, fake: FakeProvider
) -> None:
    provider = openai_at(any_app, fake)
    ran: list[int] = []

    @any_app.task(provider=provider)
    async def ask_model(n: int) -> int:
        ran.append(n)
        async with provider.slot() as call, provider.client() as client:
            used = (await answer(client)).usage
            call.used(input_tokens=used.prompt_tokens, output_tokens=used.completion_tokens)
            return n

    fake.exhaust(RESET_S, at_next_call=True)
    async with any_app:
        handles = ask_model.map(range(20))
        paused = await seen(provider, lambda v: v.reason == "pause")
        assert paused.pause == "window"
        waiting = await seen(provider, lambda v: v.ready == 20)  # none of them holds a slot or a permit
        assert waiting.in_use == 0
        assert await handles == list(range(20))
        views = [await handle.view() for handle in handles]
        last = await seen(provider, lambda v: not v.in_use)

    assert {(view.failures, view.crashes) for view in views} == {(0, 0)}
    statistics = fake.statistics()
    # Those that were under way with the first refusal; none was sent after that was known.
    assert statistics.requests_during_pause <= 5
    assert statistics.requests == last.granted == len(ran)
    assert (last.succeeded, last.throttled) == (20, len(ran) - 20)
    assert last.output_tokens > 0


@on_a_loop
async def test_steps_that_were_done_before_a_refusal_are_not_done_again(any_app: App, fake: FakeProvider) -> None:
    provider = openai_at(any_app, fake)
    done: list[str] = []

    def prepare() -> str:
        done.append("prepared")
        return "prompt"

    async def call_model() -> str:
        async with provider.slot(), provider.client() as client:
            return str((await answer(client)).choices[0].message.content)

    @any_app.task(provider=provider)
    async def work() -> str:
        prompt = await step(prepare)
        done.append("attempt")
        return f"{prompt}: {await step(call_model)}"

    fake.configure(answer="fine")
    fake.exhaust(RESET_S, at_next_call=True)
    async with any_app:
        assert await work.submit() == "prompt: fine"

    assert done == ["prepared", "attempt", "attempt"]


@on_a_loop
async def test_a_call_in_a_body_gives_the_attempt_back_when_a_pause_has_begun_since_the_claim(any_app: App) -> None:
    provider = any_app.provider("p", parallel=2)
    first_is_done, paused = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def first_call() -> int:
        async with provider.slot():
            done.append("first")
            return 1

    async def second_call() -> int:
        async with provider.slot():
            done.append("second")
            return 1

    @any_app.task(provider=provider)
    async def work() -> int:
        total = await step(first_call)
        first_is_done.set()
        await paused.wait()
        return total + await step(second_call)

    async with any_app:
        handle = work.submit()
        await first_is_done.wait()
        await provider.pause(60)
        paused.set()
        view = await seen(provider, lambda v: v.ready == 1)
        assert (view.in_use, view.waiting) == (0, 0)
        assert (await handle.view()).state is State.READY
        await provider.reset()
        assert await handle == 2
        assert (await handle.view()).failures == 0

    assert done == ["first", "second"]


@on_a_loop
async def test_an_isolated_provider_takes_attempts_back_as_well(any_app: App) -> None:
    provider = any_app.provider("p", parallel=2)
    isolated = asyncio.Event()

    @any_app.task(provider=provider)
    async def work() -> int:
        async with provider.slot():
            pass
        await isolated.wait()
        async with provider.slot():
            return 1

    async with any_app:
        handle = work.submit()
        await seen(provider, lambda v: v.succeeded == 1)
        await provider.isolate()
        isolated.set()
        await seen(provider, lambda v: v.ready == 1)
        await provider.reset()
        assert await handle == 1


@pytest.mark.parametrize("how", ["as it is", "from", "while", "group", "from in a group"])
@on_a_loop
async def test_a_refusal_gives_the_attempt_back_however_the_body_ends_with_it(any_app: App, how: str) -> None:
    provider = any_app.provider("p", parallel=1)
    attempts: list[int] = []

    async def call() -> None:
        async with provider.slot():
            if len(attempts) == 1:
                raise Refused(retry_after="0.05")

    @any_app.task(provider=provider)
    async def work() -> str:
        attempts.append(1)
        match how:
            case "as it is":
                await call()
            case "from":
                try:
                    await call()
                except Refused as error:
                    raise OSError("no answer") from error
            case "while":
                try:
                    await call()
                except Refused:
                    raise OSError("no answer")  # noqa: B904 - that is the case
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(call())
            case _:
                async with asyncio.TaskGroup() as group:
                    group.create_task(wrapped())
        return "done"

    async def wrapped() -> None:
        try:
            await call()
        except Refused as error:
            raise OSError("no answer") from error

    async with any_app:
        handle = work.submit()
        assert await handle == "done"
        assert (await handle.view()).failures == 0

    assert len(attempts) == 2


@on_a_loop
async def test_a_body_that_is_one_call_is_given_back_as_well(any_app: App) -> None:
    provider = any_app.provider("p", parallel=1)
    attempts: list[int] = []

    @any_app.task(provider=provider)
    async def work() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise Refused(retry_after="0.05")
        return "done"

    async with any_app:
        handle = work.submit()
        assert await handle == "done"
        assert (await handle.view()).failures == 0
        view = await seen(provider, lambda v: not v.in_use)

    assert (view.throttled, view.succeeded) == (1, 1)


@pytest.mark.parametrize("how", ["after it", "with it", "not from it"])
@on_a_loop
async def test_a_body_that_fails_by_itself_has_failed_though_it_was_refused_before(any_app: App, how: str) -> None:
    provider = any_app.provider("p", parallel=2)

    async def call() -> None:
        async with provider.slot():
            raise Refused(retry_after="0.05")

    async def fail() -> None:
        raise ValueError("by itself")

    @any_app.task(provider=provider)
    async def work() -> None:
        match how:
            case "with it":
                async with asyncio.TaskGroup() as group:
                    group.create_task(call())
                    group.create_task(fail())
            case "after it":
                with pytest.raises(Refused):
                    await call()
                await fail()
            case _:
                try:
                    await call()
                except Refused:
                    raise ValueError("by itself") from None

    async with any_app:
        with pytest.raises(TaskFailed, match=r"by itself|unhandled errors"):
            await asyncio.wait_for(work.submit(), WAIT_S)


@on_a_loop
async def test_an_error_of_the_server_is_the_failure_of_the_attempt_and_counts_for_the_breaker(
    any_app: App, fake: FakeProvider
) -> None:
    provider = openai_at(any_app, fake)

    @any_app.task(provider=provider, retries=0)
    async def ask_model() -> None:
        async with provider.slot(), provider.client() as client:
            await answer(client)

    fake.inject("status_500", count=5)
    async with any_app:
        for _ in range(5):
            with pytest.raises(TaskFailed, match="500"):
                await ask_model.submit()
        view = await seen(provider, lambda v: v.breaker == "open")

    assert (view.failed, view.reason) == (5, "breaker")


@on_a_loop
async def test_a_fallback_stands_in_for_tasks_while_their_provider_is_paused(any_app: App) -> None:
    other = any_app.provider("other", parallel=2)
    provider = any_app.provider("p", parallel=2, fallbacks=[other])
    any_app.provider("third", parallel=1)

    @any_app.task(provider=provider)
    async def work() -> tuple[str, str]:
        async with provider.slot() as call:
            asked, stood_in = call.provider, call.permit.fallback_for
        async with any_app.limits.slot("third") as call:
            assert call.provider == "third"
        return asked, stood_in

    @any_app.task(provider=provider)
    async def calls_the_third_first() -> str:
        async with any_app.limits.slot("third") as call:
            return call.provider

    async with any_app:
        await provider.pause(60)
        assert await work.submit() == ("other", "p")
        assert await calls_the_third_first.submit() == "third"
        view = await seen(other, lambda v: not v.in_use)

    assert view.granted >= 2

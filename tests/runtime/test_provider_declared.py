"""What an app declares: once for all processes, its clients, its models, and how it is tested without waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sennit import App, step
from sennit.errors import ProviderNotFound, SettingsError, UsageError
from sennit.model.lifecycle import State
from sennit.model.provider import CallReport
from tests.runtime.provider_facts import WAIT_S, Refused, on_a_loop, seen


class Client:
    """Anything that can be closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


# ---------------------------------------------------------------- declaring


def test_what_is_declared_before_the_store_is_open_is_known_as_soon_as_it_is(any_app: App) -> None:
    provider = any_app.provider("p", parallel=7, rpm=9, strategy="fixed")

    (view,) = provider.view().result()

    assert (view.spec.parallel, view.spec.rates.rpm, view.limit) == (7, 9, 7)


def test_a_later_declaration_holds_at_once(any_app: App) -> None:
    provider = any_app.provider("p", parallel=7)
    provider.view().result()

    any_app.provider("p", parallel=3)

    assert provider.view().result()[0].spec.parallel == 3


def test_without_a_number_the_ceiling_is_the_setting(url: str) -> None:
    app = App(url, provider_parallel=6)
    app.provider("p")

    with app.limits.slot("never declared"):
        views = {view.spec.name: view.spec.parallel for view in app.limits.providers().result()}

    assert views == {"p": 6, "never declared": 6}
    app.close()


def test_a_provider_that_nobody_has_declared_is_not_found(any_app: App) -> None:
    with pytest.raises(ProviderNotFound, match="typo"):
        any_app.limits.providers("typo").result()


def test_a_task_takes_a_provider_by_name_and_a_submit_another_one(any_app: App) -> None:
    any_app.provider("p", parallel=1)

    @any_app.task(provider="p/opus")
    async def work() -> None: ...

    handles = [work.submit(), work.options(provider="q").submit(), work.options(provider=None).submit()]

    assert [handle.view().result().provider for handle in handles] == ["p/opus", "q", ""]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": 3},
        {"parallel": 0},
        {"parallel": -1},
        {"parallel": True},
        {"parallel": 10**30},
        {"parallel": "5"},
        {"rpm": -1},
        {"models": {"m": {"rpm": -1}}},
        {"models": {"m": {"speed": 3}}},
        {"strategy": "hope"},
        {"fallbacks": ["p"]},
        {"fallbacks": ["p/m"]},
        {"fallbacks": [""]},
        {"fallbacks": "other"},
        {"prices": {"m": (-1.0, 1.0)}},
    ],
    ids=str,
)
def test_what_cannot_be_declared_is_refused_and_changes_nothing(any_app: App, wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"name": "p", "parallel": 5}
    with pytest.raises(SettingsError):
        any_app.provider(**given | wrong)

    assert any_app.limits.providers().result() == []


# ---------------------------------------------------------------- calls


@on_a_loop
async def test_a_call_for_which_there_is_room_has_not_waited(any_app: App) -> None:
    provider = any_app.provider("p", parallel=2)

    for _ in range(3):
        async with provider.slot() as call:
            assert (call.permit.waited_us, call.permit.reason) == (0, "")


@on_a_loop
async def test_a_task_that_found_room_for_all_its_calls_has_waited_for_no_limit(any_app: App) -> None:
    provider = any_app.provider("p", parallel=2)

    @any_app.task(provider=provider)
    async def work() -> None:
        for _ in range(3):
            async with provider.slot():
                pass

    async with any_app:
        handle = work.submit()
        await handle
        assert (await any_app.store.waits(handle.id)).keys() <= {"queue"}


@on_a_loop
async def test_the_last_report_of_a_call_is_what_counts_and_an_exception_speaks_for_itself(any_app: App) -> None:
    provider = any_app.provider("p", parallel=2, breaker=None)

    async def call(error: Exception | None, report: CallReport | None = None) -> None:
        async with provider.slot() as made:
            made.used(input_tokens=7)
            if report is not None:
                made.report(report)
            if error is not None:
                raise error

    async with any_app:
        await call(None, CallReport(outcome="error"))
        for error in (ConnectionError(), Refused(503), KeyError("the caller's own")):
            with pytest.raises(type(error)):
                await call(error)
        view = await seen(provider, lambda v: v.input_tokens == 21)

    assert (view.granted, view.succeeded, view.failed, view.throttled) == (4, 0, 2, 1)


# ---------------------------------------------------------------- clients


@on_a_loop
async def test_all_calls_share_one_client_that_is_closed_with_the_app_and_made_anew_with_the_next(any_app: App) -> None:
    made: list[Client] = []

    def client() -> Client:
        made.append(Client())
        return made[-1]

    provider = any_app.provider("p", parallel=9, client=client)

    @any_app.task(provider=provider)
    async def work() -> int:
        async with provider.model("opus").slot(), provider.client() as mine:
            await step(asyncio.sleep, 0)
            return made.index(mine)

    for turn in range(2):
        async with any_app:
            assert await work.map([]) == []
            assert set(await asyncio.gather(*[work.submit() for _ in range(5)])) == {turn}
            assert made[turn].closed == 0
        assert [one.closed for one in made] == [1] * (turn + 1)


def test_a_client_of_sync_code_is_closed_with_the_app(any_app: App) -> None:
    closed: list[int] = []

    class Blocking:
        def close(self) -> None:
            closed.append(1)

    provider = any_app.provider("p", client=Blocking)
    with provider.client() as mine:  # type: ignore[attr-defined]  # both faces
        assert isinstance(mine, Blocking)

    any_app.close()

    assert closed == [1]


def test_a_provider_without_a_client_says_how_to_declare_one(any_app: App) -> None:
    with pytest.raises(UsageError, match="has no client"):
        any_app.provider("p").client()


# ---------------------------------------------------------------- in tests


def test_in_a_test_hours_of_a_pause_pass_at_once(any_app: App) -> None:
    provider = any_app.provider("p", parallel=2)
    attempts: list[int] = []

    @any_app.task(provider=provider)
    async def work(n: int) -> int:
        attempts.append(n)
        async with provider.slot():
            if len(attempts) == 1:
                raise Refused(retry_after="7200")
            return n

    with any_app.testing() as t:
        handles = work.map([1, 2, 3])
        began_us = t.clock.now_us()
        t.drain()
        assert [handle.view().result().state for handle in handles] == [State.SUCCEEDED] * 3
        assert t.clock.now_us() - began_us >= 7_200_000_000
        assert all(handle.view().result().failures == 0 for handle in handles)


def test_in_a_test_a_call_that_waits_for_its_rate_is_waited_for(any_app: App) -> None:
    provider = any_app.provider("p", parallel=5, rpm=2)

    @any_app.task(provider=provider)
    async def work() -> int:
        done = 0
        for _ in range(6):
            async with provider.slot():
                done += 1
        return done

    with any_app.testing() as t:
        handle = work.submit()
        began_us = t.clock.now_us()
        t.drain()
        assert handle.result(WAIT_S) == 6
        assert t.clock.now_us() - began_us >= 60_000_000


def test_in_a_test_what_is_held_back_for_good_ends_the_drain(any_app: App) -> None:
    provider = any_app.provider("p", parallel=5)

    @any_app.task(provider=provider)
    async def work() -> None: ...

    with any_app.testing() as t:
        provider.isolate().result()
        handle = work.submit()
        t.drain()
        assert handle.view().result().state is State.READY
        provider.reset().result()
        t.drain()
        assert handle.view().result().state is State.SUCCEEDED

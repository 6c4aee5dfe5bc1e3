"""Whose fault is it? A provider that says "later" is to blame; one that is broken, or a body that decides, is the attempt's failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sennit import App, NotRetryable, TaskFailed
from sennit.model.provider import CallReport
from sennit.submit import permits
from sennit.submit.permits import is_not_to_blame
from tests.runtime.provider_facts import Refused, on_a_loop, seen


@pytest.mark.parametrize(
    ("report", "is_excused"),
    [
        (CallReport(outcome="throttled", status=429), True),
        (CallReport(outcome="throttled", status=429, pause="window", retry_after_s=3600), True),
        (CallReport(outcome="overloaded", status=529), True),
        (CallReport(outcome="overloaded", status=503, retry_after_s=2), True),
        (CallReport(outcome="overloaded", status=503), False),
        (CallReport(outcome="error", status=500), False),
        (CallReport(outcome="timeout"), False),
        (CallReport(outcome="refused", status=401), False),
        (CallReport(), False),
    ],
)
def test_only_a_provider_that_says_later_excuses_an_attempt(report: CallReport, is_excused: bool) -> None:  # noqa: FBT001 - parametrized
    assert is_not_to_blame(report) is is_excused


@on_a_loop
async def test_a_server_that_is_gone_for_good_fails_the_task_instead_of_giving_it_back_for_ever(any_app: App) -> None:
    provider = any_app.provider("dead", parallel=2)
    attempts: list[int] = []

    @any_app.task(provider=provider)
    async def ask_model() -> None:
        attempts.append(1)
        async with provider.slot():
            raise Refused(503)

    async with any_app:
        with pytest.raises(TaskFailed):
            await ask_model.submit()
        await seen(provider, lambda v: not v.in_use)

    assert len(attempts) == 1


@on_a_loop
async def test_a_body_that_says_not_retryable_has_failed_whatever_the_provider_said(any_app: App) -> None:
    provider = any_app.provider("strict", parallel=2)

    async def call() -> None:
        async with provider.slot():
            raise Refused(429)

    @any_app.task(provider=provider, retries=3)
    async def ask_model() -> Any:
        try:
            await call()
        except Refused as error:
            raise NotRetryable("this prompt is not worth a second try") from error

    async with any_app:
        with pytest.raises(TaskFailed) as failed:
            await ask_model.submit()

    assert failed.value.attempts == 1


@on_a_loop
async def test_a_volley_of_refusals_is_one_line_in_the_log(
    any_app: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permits, "_paused_s", {})
    provider = any_app.provider("volley", parallel=4, strategy="fixed")

    together = asyncio.Barrier(4)

    async def call() -> None:
        async with provider.slot() as permit:
            await together.wait()  # all are under way before the first is refused
            permit.report(CallReport(outcome="throttled", status=429, pause="window", retry_after_s=30))

    async with any_app:
        await asyncio.gather(call(), call(), call(), call())

    lines = [record.getMessage() for record in caplog.records if "volley" in record.getMessage()]
    assert lines == ["volley is used up (429, window): the fleet holds back for 30 s"]

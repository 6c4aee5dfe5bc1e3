"""What makes no sense is refused where it is said, and never spoils what is stored of a provider for everybody."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sennit import App
from sennit.errors import SettingsError, UsageError
from sennit.model.provider import CallReport, RateFeedback, Usage

ABSURD = 10**30


def works(app: App, name: str = "p") -> bool:
    """Return whether a provider takes a call, once the one before is over."""
    app.limits.providers(name).result()
    with app.limits.slot(name) as call:
        return call.provider == name


@pytest.mark.parametrize(
    "how",
    [
        {"idle_s": math.nan},
        {"idle_s": math.inf},
        {"idle_s": -1},
        {"idle_s": "5"},
        {"breaker": True},
        {"client": 5},
        {"fallbacks": [1]},
        {"models": {"": {}}},
        {"models": {5: {"rpm": 1}}},
        {"models": ["opus"]},
        {"models": {"opus": 5}},
    ],
    ids=str,
)
def test_a_declaration_that_cannot_be_is_refused_and_nothing_of_it_is_stored(any_app: App, how: Any) -> None:
    any_app.provider("p", parallel=2)
    any_app.store.now_us()

    with pytest.raises(SettingsError):
        any_app.provider("p", **how)

    assert works(any_app)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, 1e300, "10", None])
def test_a_pause_that_is_no_time_is_refused(any_app: App, seconds: Any) -> None:
    provider = any_app.provider("p", parallel=2)

    with pytest.raises(SettingsError):
        provider.pause(seconds)

    assert works(any_app)


@pytest.mark.parametrize("name", ["", "/model", "n" * 201, None, 5])
def test_a_slot_of_a_name_that_no_provider_can_have_declares_none(any_app: App, name: Any) -> None:
    with pytest.raises(SettingsError):
        any_app.limits.slot(name)

    assert any_app.limits.providers().result() == []


@pytest.mark.parametrize("tokens", [-1, 1.5, ABSURD, "5", True])
def test_a_slot_that_reserves_no_number_of_tokens_is_refused(any_app: App, tokens: Any) -> None:
    with pytest.raises(SettingsError):
        any_app.limits.slot("p", tokens=tokens)


@pytest.mark.parametrize(
    "report",
    [
        CallReport(outcome="throttled", status=429, retry_after_s=math.nan),
        CallReport(outcome="throttled", status=429, retry_after_s=math.inf),
        CallReport(usage=Usage(input_tokens=ABSURD)),
        CallReport(usage=Usage(input_tokens=-5, cost_nano=-5)),
        CallReport(usage=Usage(input_tokens=2.5)),  # type: ignore[arg-type]
        CallReport(usage=Usage(input_tokens=None)),  # type: ignore[arg-type]
        CallReport(usage=Usage(cost_nano=ABSURD)),
        CallReport(duration_us=ABSURD),
        CallReport(model=None),  # type: ignore[arg-type]
        CallReport(model="n" * 5000),
        CallReport(requests=RateFeedback(limit=-1, remaining=ABSURD, reset_s=math.nan)),
    ],
)
def test_a_report_that_makes_no_sense_returns_its_permit_and_leaves_its_provider_in_order(
    any_app: App, report: CallReport
) -> None:
    provider = any_app.provider("p", parallel=1, strategy="fixed", breaker=None)
    any_app.budget(tokens=10**15)

    with provider.slot() as call:
        call.report(report)
    provider.reset().result()

    assert works(any_app)
    (budget,) = any_app.budgets().result()
    assert 0 <= budget.tokens <= 10**12
    assert budget.cost_nano >= 0


def test_a_model_whose_name_cannot_be_stored_does_not_keep_its_permit(any_app: App) -> None:
    provider = any_app.provider("p", parallel=1, strategy="fixed", breaker=None)

    with provider.slot() as call:
        call.report(CallReport(model="\ud800", usage=Usage(input_tokens=1)))

    assert works(any_app)


def test_what_is_no_report_is_an_error_of_the_body_and_the_permit_is_free(any_app: App) -> None:
    provider = any_app.provider("p", parallel=1, strategy="fixed", breaker=None)

    with pytest.raises(UsageError, match="CallReport"), provider.slot() as call:
        call.report({"outcome": "ok"})  # type: ignore[arg-type]

    assert works(any_app)


@pytest.mark.parametrize(
    "bounds", [{"tokens": 1.5}, {"tokens": "5"}, {"usd": "5"}, {"tokens": None}, {"usd": math.nan}]
)
def test_a_budget_that_is_no_number_is_refused(any_app: App, bounds: Any) -> None:
    with pytest.raises(SettingsError):
        any_app.budget(**bounds)


def test_a_budget_of_next_to_nothing_is_not_one_without_bounds(any_app: App) -> None:
    assert any_app.budget(usd=1e-10).result().budget.cost_nano_max == 1
    assert len(any_app.budgets().result()) == 1

"""What people read of providers: counts that add up, costs without a price, refusals as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit import App
from sennit.errors import BudgetExceeded, CircuitOpen, ProviderBusy
from tests.unit.command_line import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("SENNIT_DB", url := f"sqlite:///{tmp_path / 'fleet.db'}")
    with App(url) as app:
        yield app


def test_a_budget_in_usd_whose_calls_have_no_price_says_so(app: App, run: Run) -> None:
    provider = app.provider("model", prices={"m": (10.0, 10.0)})
    app.budget("fleet", usd=1).result()
    with provider.slot() as call:
        call.used(input_tokens=2_000)

    assert "$0.00 of $1.00 (no prices)" in run("providers", "budget")
    assert "fleet  $0.00 of $1.00 (no prices), 2,000 tokens" in run("status")
    assert "2,000 tokens in, 0 out, $0.00 (no prices)" in run("providers", "get", "model")

    with provider.slot() as call:
        call.used(input_tokens=2_000, model="m")
    assert "(no prices)" not in run("providers", "budget") + run("status") + run("providers", "get", "model")


def test_calls_that_ended_without_a_word_are_counted_so_that_the_sum_is_right(app: App, run: Run) -> None:
    app.provider("model").view().result()
    run("providers", "test", "model")

    assert "1 let through, 0 succeeded, 0 throttled (429), 0 failed, 1 without a report" in run(
        "providers", "get", "model"
    )


def test_a_provider_that_takes_nothing_has_no_limit_in_its_line(app: App, run: Run) -> None:
    provider = app.provider("model", parallel=3, strategy="fixed")
    provider.view().result()
    assert "provider model  0 of 3 in use, 0 waiting  open" in run("status")

    with provider.slot():
        provider.isolate().result()
        assert "provider model  1 in use, 0 waiting  isolated until it is reset" in run("status")
    assert "provider model  none in use, 0 waiting  isolated until it is reset" in run("status")


def test_refusals_say_why_in_words_and_amounts_are_round() -> None:
    assert "as many are under way as it bears (limit)" in str(ProviderBusy("p", reason="limit", retry_after_s=5.18899))
    assert "likely to change in 5.2 s" in str(ProviderBusy("p", reason="pause", retry_after_s=5.18899))
    assert "open for another 0.1 s" in str(CircuitOpen("p", retry_after_s=0.004))
    for spent, words in (
        (0.0511625, "0.0512 of 0.05 USD"),
        (3e-05, "0.00003 of 0.05 USD"),
        (1234.5, "1,234.5 of 0.05 USD"),
    ):
        error = BudgetExceeded("p", scope="fleet", key="", unit="USD", spent=spent, allowed=0.05)
        assert error.what == f"the budget of the fleet is spent: {words}"

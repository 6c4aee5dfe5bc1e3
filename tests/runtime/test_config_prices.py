"""`[prices]` of the configuration file: where it may stand, which price wins, and that it reaches the budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sennit import App
from sennit.errors import SettingsError
from sennit.model.provider import CallReport, Usage
from sennit.runtime.config import load


def prices(folder: Path, environ: dict[str, str] | None = None, **keywords: Any) -> dict[str, tuple[float, float]]:
    return load(keywords, environ=environ or {}, folder=folder).prices.table


def test_prices_of_a_file_are_no_setting_and_leave_the_settings_alone(tmp_path: Path) -> None:
    (tmp_path / "sennit.toml").write_text('slots = 7\n[prices]\n"gpt-5" = { input = 1.25, output = 10 }\n')

    loaded = load({}, environ={}, folder=tmp_path)

    assert loaded.prices.table == {"gpt-5": (1.25, 10.0)}
    assert loaded.settings.slots == 7
    assert "prices" not in loaded.origins


def test_a_stronger_source_changes_the_price_of_a_model_and_keeps_the_others(tmp_path: Path) -> None:
    table = "{m}\na = {{ input = {n}, output = {n} }}\n"
    (tmp_path / "pyproject.toml").write_text(
        table.format(m="[tool.sennit.prices]", n=1) + "b = { input = 5, output = 5 }\n"
    )
    (tmp_path / "sennit.toml").write_text(table.format(m="[prices]", n=2))

    assert prices(tmp_path) == {"a": (2.0, 2.0), "b": (5.0, 5.0)}
    assert prices(tmp_path, prices={"b": {"input": 9, "output": 9}}) == {"a": (2.0, 2.0), "b": (9.0, 9.0)}


@pytest.mark.parametrize("text", ["prices = 3\n", "[prices]\nm = 3\n", "[prices]\nm = { input = -1, output = 1 }\n"])
def test_prices_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sennit.toml").write_text(text)

    with pytest.raises(SettingsError, match="price"):
        prices(tmp_path)


def test_prices_cannot_stand_in_the_environment(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="environment"):
        prices(tmp_path, {"SENNIT_PRICES": "3"})


def test_calls_are_charged_by_the_file_by_the_declaration_and_by_what_use_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sennit.toml").write_text("[prices]\nfiled = { input = 1, output = 1 }\n")
    app = App("memory://")
    app.use(prices={"used": {"input": 100, "output": 100}})
    provider = app.provider("p", prices={"declared": (10.0, 10.0)})
    app.budget("fleet", usd=5).result()

    for model in ("filed-2026", "declared", "used", "unknown"):
        with provider.slot() as call:
            call.used(input_tokens=1, model=model)

    (budget,) = app.budgets().result()
    assert (budget.cost_nano, budget.tokens) == (1_000 + 10_000 + 100_000, 4)
    app.close()


def test_a_cost_that_the_caller_knows_is_taken_as_it_is() -> None:
    app = App("memory://")
    provider = app.provider("p", prices={"m": (10.0, 10.0)})
    app.budget("fleet", usd=5).result()

    with provider.slot() as call:
        call.report(CallReport(usage=Usage(input_tokens=1, cost_nano=77), model="m"))

    assert app.budgets().result()[0].cost_nano == 77
    app.close()

"""Prices: what a call costs by its model, as whole nano-dollars, and tables that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import SettingsError
from sennit.limit.prices import Prices
from sennit.model.provider import Usage

MILLION = 1_000_000
NANO = 1_000_000_000


def test_a_million_tokens_cost_what_the_table_says() -> None:
    prices = Prices({"m": (3.0, 15.0)})

    assert prices.cost_nano("m", Usage(input_tokens=MILLION)) == 3 * NANO
    assert prices.cost_nano("m", Usage(output_tokens=MILLION)) == 15 * NANO
    assert prices.cost_nano("m", Usage(input_tokens=1, output_tokens=1)) == 18_000


def test_a_model_without_a_price_costs_nothing() -> None:
    assert Prices({"m": (3.0, 15.0)}).cost_nano("other", Usage(input_tokens=5)) == 0
    assert Prices().cost_nano("", Usage(input_tokens=5)) == 0


def test_a_dated_model_has_the_price_of_the_longest_name_that_it_begins_with() -> None:
    prices = Prices({"gpt": (1.0, 1.0), "gpt-5": (2.0, 2.0), "gpt-5-mini": (4.0, 4.0)})

    costs = [prices.cost_nano(model, Usage(input_tokens=1)) for model in ("gpt-4", "gpt-5-2026", "gpt-5-mini-1", "gp")]

    assert costs == [1000, 2000, 4000, 0]


def test_a_later_price_of_a_model_replaces_the_first() -> None:
    prices = Prices({"m": (1.0, 1.0), "n": (7.0, 7.0)})

    prices.add({"m": (2.0, 2.0)})

    assert [prices.cost_nano(model, Usage(input_tokens=1)) for model in "mn"] == [2000, 7000]


@given(
    price=st.tuples(st.floats(0, 1000), st.floats(0, 1000)),
    calls=st.lists(st.tuples(st.integers(0, MILLION), st.integers(0, MILLION)), max_size=20),
)
def test_costs_are_whole_at_least_0_and_a_sum_does_not_depend_on_its_order(
    price: tuple[float, float], calls: list[tuple[int, int]]
) -> None:
    prices = Prices({"m": price})

    costs = [prices.cost_nano("m", Usage(input_tokens=i, output_tokens=o)) for i, o in calls]

    assert {type(cost) for cost in costs} <= {int}
    assert min(costs, default=0) >= 0
    assert sum(costs) == sum(reversed(costs))


@pytest.mark.parametrize(
    "price",
    [
        (1.0,),
        (1.0, 2.0, 3.0),
        (-1.0, 2.0),
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        ("1", "2"),
        (True, 1.0),
        None,
        3.0,
    ],
)
def test_a_price_that_cannot_be_is_refused_with_the_model_it_is_of(price: object) -> None:
    with pytest.raises(SettingsError, match="price of 'm'"):
        Prices({"m": price})  # type: ignore[dict-item]  # that is the case


def test_a_table_of_a_file_names_input_and_output() -> None:
    prices = Prices.of_config({"m": {"input": 3, "output": 15.0}})

    assert prices.cost_nano("m", Usage(input_tokens=2, output_tokens=1)) == 21_000


@pytest.mark.parametrize("entry", [3.0, [3.0, 15.0], {"input": 3.0}, {"input": 3.0, "output": 15.0, "cached": 1.0}])
def test_an_entry_of_another_form_is_refused_with_the_line_to_write(entry: object) -> None:
    with pytest.raises(SettingsError) as refused:
        Prices.of_config({"m": entry})

    assert refused.value.fix == 'write "m" = { input = 3.0, output = 15.0 }'


def test_a_model_without_a_price_is_named_once_when_there_are_prices(caplog: pytest.LogCaptureFixture) -> None:
    priced, unpriced = Prices({"gpt": (1.0, 2.0)}), Prices()

    for _ in range(3):
        assert priced.cost_nano("claude", Usage(input_tokens=5)) == 0
        assert priced.cost_nano("", Usage(input_tokens=5)) == 0
        assert unpriced.cost_nano("claude", Usage(input_tokens=5)) == 0

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "model 'claude' has no price", "a call was reported without its model",
    ]  # fmt: skip

"""What calls cost: a price table by model.

Prices are in US dollars per million tokens, as providers publish them; costs are whole nano-dollars (1e-9 USD), so that
sums are exact and do not depend on their order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from sennit.errors import SettingsError
from sennit.model.provider import Usage

_log = logging.getLogger("sennit")

# USD per million tokens → nano-dollars per token.
_NANO_PER_TOKEN: Final = 1_000


class Prices:
    """A price table.

    Args:
        table: model → (input, output), USD per million tokens. A model that is not in it has the price of the longest name
            in it that it begins with, so that `claude-opus-4` prices `claude-opus-4-20260101` as well.

    Raises:
        SettingsError: a price is no number of at least 0.
    """

    def __init__(self, table: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.table: dict[str, tuple[float, float]] = {}
        self._noted: set[str] = set()
        self.add(table or {})

    def add(self, table: Mapping[str, tuple[float, float]]) -> None:
        """Add prices; a model that is known gets the new one."""
        for model, price in table.items():
            self.table[model] = _checked(model, price)

    @classmethod
    def of_config(cls, table: Mapping[str, Any]) -> Prices:
        """Read `[prices]` of a configuration file: `"gpt-5" = { input = 1.25, output = 10.0 }`.

        Raises:
            SettingsError: an entry is of another form.
        """
        prices = {}
        for model, entry in table.items():
            if not isinstance(entry, Mapping) or set(entry) != {"input", "output"}:
                raise SettingsError(
                    f"the price of {model!r} is {entry!r}",
                    why="it takes what a million tokens of input and of output cost, in US dollars",
                    fix=f'write "{model}" = {{ input = 3.0, output = 15.0 }}',
                )
            prices[model] = (entry["input"], entry["output"])
        return cls(prices)

    def cost_nano(self, model: str, usage: Usage) -> int:
        """Return what a call has cost, in nano-dollars; 0 when the model has no price."""
        price = self.table.get(model)
        if price is None:
            known = max((name for name in self.table if model.startswith(name)), key=len, default=None)
            if known is None:
                self._note_unpriced(model)
                return 0
            price = self.table[known]
        return round((usage.input_tokens * price[0] + usage.output_tokens * price[1]) * _NANO_PER_TOKEN)

    def _note_unpriced(self, model: str) -> None:
        """Say once that such calls cost nothing though there are prices: a budget in dollars would never end."""
        if self.table and model not in self._noted:
            self._noted.add(model)
            what = f"model {model!r} has no price" if model else "a call was reported without its model"
            _log.warning("%s: it costs nothing in budgets; call used(model=…), or add it to [prices]", what)


def _checked(model: str, price: object) -> tuple[float, float]:
    if isinstance(price, (tuple, list)) and len(price) == len(("input", "output")) and all(_is_price(p) for p in price):
        return float(price[0]), float(price[1])
    raise SettingsError(
        f"the price of {model!r} is {price!r}", fix="give (input, output) in US dollars per million tokens, at least 0"
    )


def _is_price(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value >= 0

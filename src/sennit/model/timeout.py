"""A time-out that a handler learns from its own attempts, and the bounds within which it may."""

from __future__ import annotations

from math import isfinite

import msgspec

from sennit.errors import SettingsError


class AdaptiveTimeout(msgspec.Struct, kw_only=True, frozen=True):
    """Give an attempt up when it takes much longer than others of its handler did.

    The limit is `factor` × the `quantile` of the handler's attempts, at least `floor_s`, at most `ceiling_s`. Until
    `samples_min` attempts are known it is `ceiling_s`.

    Attributes:
        floor_s: never give up earlier, in seconds: the longest that a rare but good attempt takes.
        ceiling_s: never later; None is the handler's `timeout_s`.
        quantile: of the time that whole attempts took, between 0 and 1.
        factor: how much longer than that is too long, at least 1. So fast the limit grows when attempts become slower.
        samples_min: the 0.99 quantile of fewer than 100 is only their maximum.

    Raises:
        SettingsError: a value out of these bounds, or the floor above the ceiling.
    """

    floor_s: float
    ceiling_s: float | None = None
    quantile: float = 0.99
    factor: float = 3.0
    samples_min: int = 100

    def __post_init__(self) -> None:
        ceiling_s = self.floor_s if self.ceiling_s is None else self.ceiling_s
        numbers: tuple[object, ...] = (self.floor_s, ceiling_s, self.quantile, self.factor, self.samples_min)
        if not all(_is_number(n) for n in numbers):
            raise SettingsError(f"{self} holds something that is no number")
        if not (0 < self.floor_s <= ceiling_s and 0 < self.quantile < 1 and self.factor >= 1 and self.samples_min >= 1):
            raise SettingsError(
                f"{self} is no time-out",
                why="it needs 0 < floor_s <= ceiling_s, 0 < quantile < 1, factor >= 1 and samples_min >= 1",
            )

    def within(self, timeout_s: float | None) -> AdaptiveTimeout:
        """Return this with the lower of both ceilings, its own and the handler's `timeout_s`.

        Raises:
            SettingsError: there is none, or it is below the floor.
        """
        ceilings = [s for s in (self.ceiling_s, timeout_s) if s is not None]
        if not ceilings:
            raise SettingsError(
                "adaptive_timeout= has no ceiling",
                why="until enough attempts have ended, nothing else bounds them",
                fix="give the handler timeout_s=, or AdaptiveTimeout(…, ceiling_s=…)",
            )
        return msgspec.structs.replace(self, ceiling_s=min(ceilings))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)

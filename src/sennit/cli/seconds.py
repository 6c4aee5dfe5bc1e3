"""Seconds as an option: a finite number. `nan` passes every comparison of a range, and is kept out by name."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

import click

SECONDS_MAX: Final = 366 * 86_400.0


class Seconds(click.FloatRange):
    """Above 0 (or from 0), at most a year."""

    name = "seconds"

    def __init__(self, *, or_zero: bool = False) -> None:
        super().__init__(0, SECONDS_MAX, min_open=not or_zero)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        seconds = float(super().convert(value, param, ctx))
        if not isfinite(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds

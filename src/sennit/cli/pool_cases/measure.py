"""How a case is measured and judged: sides by turns in every round, ratios within a round, bounds that hold or do not.

    round 1   A B C      a slow minute of the machine hits all sides of that round,
    round 2   B C A      so a ratio is taken inside of a round, and the figure is the median of the ratios
    round 3   C A B

A bound is judged by that median; whether all rounds agree is said beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeAlias

Side: TypeAlias = Callable[[], float]
Sides: TypeAlias = Mapping[str, "Side | str"]  # a text says why this side is not measured

ROUNDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A number that a side has to reach, alone or beside others of the same round.

    Attributes:
        side: whose figure.
        against: names of the others, `fixed*` is all that begin so; of several the one with the best median. Empty: the
            figure itself is bounded.
        at_most, at_least: of the ratio, or of the figure in its unit; exactly one of them.
    """

    what: str
    side: str
    against: tuple[str, ...] = ()
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What became of a bound.

    Attributes:
        value: median over the rounds; None when it could not be measured.
        lowest, highest: of the rounds.
        against: the side that it was compared with.
        rounds_held: in how many rounds it held.
    """

    what: str
    bound: str
    value: float | None
    lowest: float = 0.0
    highest: float = 0.0
    against: str = ""
    holds: bool | None = None
    rounds: int = 0
    rounds_held: int = 0

    @property
    def verdict(self) -> str:
        """Return it in words: rounds that disagree make a figure doubtful, whichever way the median lies."""
        if self.holds is None:
            return "not measured"
        word = "holds" if self.holds else "misses"
        agree = self.rounds_held if self.holds else self.rounds - self.rounds_held
        return word if agree == self.rounds else f"{word}, in {agree} of {self.rounds} rounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        unit: of all figures: `s`, `us` … less is better, `per s` more is better.
        units: of sides that say something else.
        sides: makes what is measured, once per case, with what it must close again; the second argument scales sizes.
            A side may return its figure, or be a text that says why there is none.
        remark: a sentence that a reader of the table needs.
    """

    name: str
    what: str
    unit: str
    sides: Callable[[ExitStack, float], Sides]
    bounds: tuple[Bound, ...] = ()
    rounds: int = ROUNDS
    units: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def more_is_better(self) -> bool:
        """True for rates."""
        return self.unit.startswith("per ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The figures of a case, per side and round, and what became of its bounds."""

    name: str
    what: str
    unit: str
    units: Mapping[str, str]
    remark: str
    figures: Mapping[str, Sequence[float]]
    missing: Mapping[str, str]
    failed: Mapping[str, str]
    checks: Sequence[Check]
    took_s: float

    def middle(self, side: str) -> float | None:
        """Return the median of a side."""
        values = self.figures.get(side)
        return median(values) if values else None

    def unit_of(self, side: str) -> str:
        """Return the unit of a side."""
        return self.units.get(side, self.unit)

    def facts(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "case": self.name,
            "what": self.what,
            "remark": self.remark,
            "figures": [
                {"side": side, "unit": self.unit_of(side), "median": median(values), "rounds": list(values)}
                for side, values in self.figures.items()
            ],
            "missing": dict(self.missing),
            "failed": dict(self.failed),
            "bounds": [{**asdict(check), "verdict": check.verdict} for check in self.checks],
            "took_s": self.took_s,
        }


def measure(case: Case, *, scale: float = 1.0, rounds: int | None = None) -> Outcome:
    """Run a case; a side that raises is left out from then on, and its error is part of the outcome."""
    began_s = perf_counter()
    figures: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        sides = case.sides(stack, scale)
        names = list(sides)
        for _ in range(rounds or case.rounds):
            for name in names:
                side = sides[name]
                if isinstance(side, str) or name in failed:
                    continue
                gc.collect(1)  # what the side before has left is not this one's work
                try:
                    figures.setdefault(name, []).append(side())
                except Exception as error:  # noqa: BLE001 - it is in the outcome, and the others still have theirs
                    failed[name] = f"{type(error).__name__}: {error}"
                    figures.pop(name, None)
            names = names[1:] + names[:1]
    shown = {name: figures[name] for name in sides if name in figures}
    return Outcome(
        name=case.name,
        what=case.what,
        unit=case.unit,
        units=case.units,
        remark=case.remark,
        figures=shown,
        missing={name: side for name, side in sides.items() if isinstance(side, str)},
        failed=failed,
        checks=[judge(bound, shown, more_is_better=case.more_is_better) for bound in case.bounds],
        took_s=perf_counter() - began_s,
    )


def judge(bound: Bound, figures: Mapping[str, Sequence[float]], *, more_is_better: bool) -> Check:
    """Return what became of a bound."""
    limit = bound.at_most if bound.at_most is not None else bound.at_least
    assert limit is not None, bound  # noqa: S101 - a bound without a number is a mistake in our own table
    sign = "≤" if bound.at_most is not None else "≥"
    text = f"{sign} {limit:g}{' ×' if bound.against else ''}"
    ours = figures.get(bound.side)
    others = [name for name in figures if name != bound.side and any(_fits(name, one) for one in bound.against)]
    if not ours or (bound.against and not others):
        return Check(what=bound.what, bound=text, value=None)
    best = ""
    values = list(ours)
    if others:
        best = (max if more_is_better else min)(others, key=lambda name: median(figures[name]))
        values = [_ratio(our, their) for our, their in zip(ours, figures[best], strict=True)]
    held = [value <= limit if bound.at_most is not None else value >= limit for value in values]
    middle = median(values)
    return Check(
        what=bound.what,
        bound=text,
        value=middle,
        lowest=min(values),
        highest=max(values),
        against=best,
        holds=middle <= limit if bound.at_most is not None else middle >= limit,
        rounds=len(values),
        rounds_held=sum(held),
    )


def _ratio(our: float, their: float) -> float:
    return our / their if their else float("inf") if our else 1.0


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def timed_s(work: Callable[[], object]) -> float:
    """Return how long it took."""
    began_s = perf_counter()
    work()
    return perf_counter() - began_s


def scaled(n: int, scale: float, *, least: int = 2) -> int:
    """Return a size in another scale."""
    return max(least, round(n * scale))


def shown(value: float | None) -> str:
    """Return a figure with three significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"

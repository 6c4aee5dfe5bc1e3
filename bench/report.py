"""What a run says, as values and as Markdown: machine, targets, one row per figure, how disturbed each case was.

A ratio is the median of the ratios within the rounds, never a ratio of medians: what slows one minute of the machine
slows all sides of that round.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec
from cases import CASES
from targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cases import Case

# Which way is better, by the end of a figure's name; the rest are counts and have no ratio.
BETTER_UP: Final = ("_per_s",)
BETTER_DOWN: Final = ("_us", "_ms", "_s", "_mb", "_percent")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures come from."""

    cpu: str
    cores: int
    kernel: str
    python: str
    sqlite: str
    postgres: str = ""
    versions: dict[str, str]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one side said to one case in one round.

    Attributes:
        load_before, load_after: the load average over one minute; it includes what ran before the case.
        others_percent: CPU that programs outside of the benchmark used meanwhile, in percent of one core.
    """

    round_: int
    case: str
    side: str
    figures: dict[str, float] = {}
    error: str = ""
    load_before: float = 0.0
    load_after: float = 0.0
    others_percent: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a line of the history file."""

    at: str
    command: str
    machine: Machine
    answers: list[Answer]


def values_by_round(answers: Iterable[Answer], case: str, side: str, figure: str) -> dict[int, float]:
    """Return the figure of each round that has it."""
    mine = (answer for answer in answers if (answer.case, answer.side) == (case, side))
    return {answer.round_: answer.figures[figure] for answer in mine if figure in answer.figures}


def middle(values: Iterable[float]) -> float | None:
    """Return the median, or None of nothing."""
    known = list(values)
    return median(known) if known else None


def times_as_good(figure: str, ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """Return how many times as good we are, above 1 = better: the median of the ratios of the shared rounds."""
    both = [(ours[round_], theirs[round_]) for round_ in ours.keys() & theirs.keys()]
    if figure.endswith(BETTER_UP):
        return middle(our / their for our, their in both if their)
    if figure.endswith(BETTER_DOWN):
        return middle(their / our for our, their in both if our)
    return None


def shown(value: float | None) -> str:
    """Return a number with three significant digits, or a dash."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.4f}"
    return f"{value:.3g}"


def drawn(rows: list[list[str]]) -> str:
    """Return rows, the first of them the heading, as a Markdown table that also reads well as plain text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def figures_table(answers: list[Answer], sides: list[str], cases: Sequence[Case] = CASES) -> str:
    """Return the medians and ratios of every figure."""
    others = [side for side in sides if side != "sennit"]
    rows = [["case", "figure", "sennit", *(cell for side in others for cell in (side, f"sennit / {side}"))]]
    for case in cases:
        figures = dict.fromkeys(name for answer in answers if answer.case == case.name for name in answer.figures)
        for figure in figures:
            ours = values_by_round(answers, case.name, "sennit", figure)
            row = [case.name, figure, shown(middle(ours.values()))]
            for side in others:
                theirs = values_by_round(answers, case.name, side, figure)
                row += [shown(middle(theirs.values())), shown(times_as_good(figure, ours, theirs))]
            rows.append(row)
    return drawn(rows)


def measured(target: Target, answers: list[Answer]) -> float | None:
    """Return what a target is compared with; None when the run has not measured it."""
    ours = values_by_round(answers, target.case, "sennit", target.figure)
    if target.times_as_good_as is None:
        return middle(ours.values())
    return times_as_good(
        target.figure, ours, values_by_round(answers, target.case, target.times_as_good_as, target.figure)
    )


def limit_of(target: Target, answers: list[Answer]) -> float:
    """Return the bound, with the fsync of the same run where the target allows for it."""
    fsync_ms = middle(values_by_round(answers, "fsync", "raw", "fsync_p50_ms").values())
    return target.bound + (fsync_ms or 0.0) * target.fsyncs


def targets_table(answers: list[Answer], targets: Sequence[Target] = TARGETS) -> str:
    """Return each target that the run has measured, and whether it is met; "" when there is none."""
    rows = [["target", "case, figure", "bound", "measured", "met"]]
    for target in targets:
        value, limit = measured(target, answers), limit_of(target, answers)
        if value is None:
            continue
        met = value >= limit if target.at_least else value <= limit
        figure = f"{target.case}, {target.figure}"
        if target.times_as_good_as:
            figure += f", ratio to {target.times_as_good_as}"
        rows.append(
            [
                target.what,
                figure,
                f"{'≥' if target.at_least else '≤'} {shown(limit)}",
                shown(value),
                "yes" if met else "NO",
            ]
        )
    return drawn(rows) if len(rows) > 1 else ""


def disturbance_table(answers: list[Answer], cases: Sequence[Case] = CASES) -> str:
    """Return, for each case, the load around it and what other programs took, each the worst of all rounds."""
    rows = [["case", "load before", "load after", "others, % of a core"]]
    for case in cases:
        mine = [answer for answer in answers if answer.case == case.name]
        if mine:
            rows.append(
                [
                    case.name,
                    f"{max(answer.load_before for answer in mine):.2f}",
                    f"{max(answer.load_after for answer in mine):.2f}",
                    f"{max(answer.others_percent for answer in mine):.0f}",
                ]
            )
    return drawn(rows)


def page(report: Report, cases: Sequence[Case] = CASES, targets: Sequence[Target] = TARGETS) -> str:
    """Return the whole output: machine, targets, figures, disturbance, errors."""
    machine, answers = report.machine, report.answers
    fsync_ms = values_by_round(answers, "fsync", "raw", "fsync_p50_ms").values()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rounds = max((answer.round_ for answer in answers), default=0)
    goals = targets_table(answers, targets)
    lines = [
        f"`{report.command}`, {report.at}, {rounds} round(s), medians. A ratio says how many times as good sennit is.",
        "",
        f"- {machine.cpu}, {machine.cores} cores, Linux {machine.kernel}",
        f"- Python {machine.python}, {machine.postgres or f'SQLite {machine.sqlite}'}, {versions}",
        f"- fsync p50 {shown(middle(fsync_ms))} ms",
        "",
        *(["## Targets", "", goals, ""] if goals else []),
        "## Figures",
        "",
        figures_table(answers, list(dict.fromkeys(answer.side for answer in answers)), cases),
        "",
        "## Disturbance",
        "",
        "The worst of all rounds and sides. The load includes the benchmark itself; `others` does not.",
        "",
        disturbance_table(answers, cases),
    ]
    errors = [f"- {a.case} of {a.side}, round {a.round_}:\n\n```\n{a.error}\n```" for a in answers if a.error]
    return "\n".join([*lines, *(["", "## Errors", "", *errors] if errors else [])])


def reference_page(report: Report) -> str:
    """Return the page for docs/reference."""
    return f"""# Benchmarks

What Sennit costs and gives on one machine, beside raw SQLite and beside two queues that also keep their tasks in SQLite.
One command makes every figure on this page, on your machine, and writes the page:

```text
python3 dev.py bench --peers --markdown docs/reference/benchmarks.md
```

What each case does, and how a figure is taken, is in [bench/README.md](../../bench/README.md). Read ratios, not absolute
values: those depend on the disk's fsync and on what else runs. No figure here is written by hand.

{page(report)}
"""

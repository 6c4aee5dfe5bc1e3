"""`sennit bench limits`: what each strategy makes of providers whose limits nobody has told it, simulated.

It is the governor itself that runs, with its pauses, rates and breaker, as the store calls it; only the provider and the
clock are made up. So the table is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final

import click

from sennit.cli.output import emit, table
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import UsageError
from sennit.model.provider import STRATEGIES, Strategy

if TYPE_CHECKING:
    from sennit.testing.governorsim import GovernedRun, Scenario

WARM_UP_MINUTES: Final = 5.0
NAMES: Final = ("constant", "lognormal", "step", "uncapped", "local", "window")  # governorsim.SCENARIOS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one strategy makes of one provider: means over the seeds, without the warm-up.

    Attributes:
        oracle: calls that somebody would have done who knows the provider.
        throttled: 429s.  sent_in_pause: calls that were sent into a used up window though that was known.
    """

    scenario: Scenario
    strategy: Strategy
    done: float
    oracle: float
    throttled: float
    timeouts: float
    sent_in_pause: float
    median_limit: float

    @property
    def of_oracle(self) -> float:
        """Share of what could be done."""
        return self.done / self.oracle

    @property
    def throttled_share(self) -> float:
        """429s among all that was answered."""
        return self.throttled / max(1.0, self.done + self.throttled + self.timeouts)


def row_of(scenario: Scenario, strategy: Strategy, runs: Sequence[GovernedRun], oracles: Sequence[GovernedRun]) -> Row:
    """Return the means of some runs and their oracles."""
    return Row(
        scenario=scenario,
        strategy=strategy,
        done=fmean(run.done for run in runs),
        oracle=fmean(run.done for run in oracles),
        throttled=fmean(run.throttled for run in runs),
        timeouts=fmean(run.timeouts for run in runs),
        sent_in_pause=fmean(run.sent_in_pause for run in runs),
        median_limit=median(run.median_limit for run in runs),
    )


@click.command(epilog=examples("sennit bench limits", "sennit bench limits --provider window --plot plots"))
@click.option(
    "--minutes",
    type=click.FloatRange(WARM_UP_MINUTES + 1, 600),
    default=40.0,
    show_default=True,
    help="Simulated time; the first 5 minutes do not count.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs, of which the mean is told."
)
@click.option(
    "--ceiling", type=click.IntRange(1, 1000), default=200, show_default=True, help="`parallel` as it is declared."
)
@click.option("--provider", "names", type=click.Choice(NAMES), multiple=True, help="Only this one; may be repeated.")
@click.option(
    "--plot",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw the first run of each as a PNG; needs sennit[plot].",
)
@shared_options()
@pass_shared
def limits(
    shared: Shared, *, minutes: float, seeds: int, ceiling: int, names: tuple[str, ...], folder: Path | None
) -> None:
    """Simulate the limits of six providers under each strategy, beside an oracle that knows them.

    The caps, windows and speeds of the providers are unknown to the strategies; there is always another call waiting.
    """
    from sennit.testing.governorsim import SCENARIOS, govern, oracle

    draw = None if folder is None else _drawing()
    rows: list[Row] = []
    how: dict[str, Any] = {"ceiling": ceiling, "seconds": minutes * 60, "warm_up_s": WARM_UP_MINUTES * 60}
    for scenario in SCENARIOS:
        if names and scenario.slug not in names:
            continue
        oracles = [oracle(scenario, seed=seed, **how) for seed in range(1, seeds + 1)]
        panels = []
        for strategy in STRATEGIES:
            runs = [govern(scenario, strategy, seed=seed, **how) for seed in range(1, seeds + 1)]
            row = row_of(scenario, strategy, runs, oracles)
            rows.append(row)
            panels.append((row_of(scenario, strategy, runs[:1], oracles[:1]), runs[0]))
            if shared.json:
                emit(_json(row, minutes=minutes, seeds=seeds, ceiling=ceiling))
        if draw is not None and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            draw(scenario, panels, ceiling, folder / f"limits-{scenario.slug}.png")
    if not shared.json:
        _print(rows)
        plural = "" if seeds == 1 else "s"
        click.echo(
            f"\nsimulated: {minutes:g} minutes without the first {WARM_UP_MINUTES:g}, {seeds} seed{plural}, ceiling {ceiling}"
        )


def _drawing() -> Any:
    try:
        from sennit.cli.bench_plots import draw
    except ImportError as error:
        raise UsageError(
            "the plots cannot be drawn",
            why=f"matplotlib is not installed ({error})",
            fix='pip install "sennit[plot]", or leave --plot out for the table alone',
        ) from error
    return draw


def _print(rows: Sequence[Row]) -> None:
    head = ["provider", "strategy", "done", "of oracle", "429s", "time-outs", "median limit"]
    lines = [
        [
            row.scenario.provider.name,
            row.strategy,
            f"{row.done:,.0f}",
            f"{row.of_oracle:.0%}",
            f"{row.throttled_share:.1%}",
            f"{row.timeouts:,.0f}",
            f"{row.median_limit:g}",
        ]
        for row in rows
    ]
    table(head, lines, right=frozenset(head[2:]))


def _json(row: Row, **how: float) -> dict[str, Any]:
    return {
        "schema": "sennit.limits/1",
        "provider": row.scenario.slug,
        "what": row.scenario.provider.name,
        "strategy": row.strategy,
        "done": row.done,
        "oracle": row.oracle,
        "of_oracle": row.of_oracle,
        "throttled": row.throttled,
        "throttled_share": row.throttled_share,
        "timeouts": row.timeouts,
        "sent_in_pause": row.sent_in_pause,
        "median_limit": row.median_limit,
        **how,
    }

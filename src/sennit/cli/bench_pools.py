"""`sennit bench pools`: our pools, arrays, maps and batches beside what else there is, and whether they keep their bounds.

All sides of a case run in this process, by turns, in every round; see `pool_cases.measure` for what a figure is.
The thorough form, with the older designs that these parts replace beside them, is bench/pools.py of the source.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from sennit.cli.output import emit, table
from sennit.cli.shared import Shared, examples, pass_shared, shared_options

if TYPE_CHECKING:
    from sennit.cli.pool_cases.measure import Case, Check, Outcome

# Case → the module that has it: only what is run is imported.
NAMES: Final = {
    "overhead_single": "threads",
    "overhead_burst": "threads",
    "cold_start": "threads",
    "cpu": "threads",
    "heavy_waits": "threads",
    "heavy_cpu": "threads",
    "idle": "threads",
    "process_100us": "processes",
    "process_1ms": "processes",
    "process_10ms": "processes",
    "array_send": "arrays",
    "array_read": "arrays",
    "array_memory": "arrays",
    "registry": "tables",
    "registry_reads": "tables",
    "sharded_map": "tables",
    "batcher": "tables",
    "batch_calls": "tables",
    "batch_matmul": "tables",
}


def cases(names: Sequence[str] = ()) -> Iterator[Case]:
    """Yield the cases of these names, all without any."""
    for name, module in NAMES.items():
        if not names or name in names:
            found: Case = import_module(f"sennit.cli.pool_cases.{module}").CASES[name]
            yield found


@click.command(
    epilog=examples("sennit bench pools", "sennit bench pools --only idle --only cpu", "sennit bench pools --json")
)
@click.option("--only", type=click.Choice(tuple(NAMES)), multiple=True, help="Only this case; may be repeated.")
@click.option("--rounds", type=click.IntRange(1, 1000), help="Instead of those of each case, 2 to 5.")
@click.option(
    "--scale", type=click.FloatRange(0.001, 100), default=1.0, show_default=True, help="Sizes are multiplied by this."
)
@shared_options()
@pass_shared
def pools(shared: Shared, *, only: tuple[str, ...], rounds: int | None, scale: float) -> None:
    """Measure pools, shared arrays, registries and batches beside the standard library and joblib.

    Ends with 1 if a side of ours could not be measured; a bound that does not hold is a finding, not a failure.
    """
    from sennit.cli.pool_cases.measure import measure

    outcomes = []
    for case in cases(only):
        outcomes.append(measure(case, scale=scale, rounds=rounds))
        if shared.json:
            emit({"schema": "sennit.pools/1", **outcomes[-1].facts(), "scale": scale, **machine()})
        else:
            _print(outcomes[-1])
    if not shared.json:
        _print_checks(outcomes)
        facts = machine()
        click.echo(f"\n{facts['cores']} cores, Python {facts['python']}, GIL {'on' if facts['gil'] else 'off'}")
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(1)


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    from sennit.runtime.engine import usable_cores

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()  # new in 3.13
    return {"cores": usable_cores(), "python": platform.python_version(), "system": platform.platform(), "gil": gil}


def _print(outcome: Outcome) -> None:
    from sennit.cli.pool_cases.measure import shown

    click.echo(f"{outcome.name}: {outcome.what}")
    rows = [
        [
            f"  {side}",
            shown(outcome.middle(side)),
            outcome.unit_of(side),
            f"{shown(min(values))} … {shown(max(values))}",
        ]
        for side, values in outcome.figures.items()
    ]
    table(["  side", "median", "unit", "rounds"], rows, right=frozenset({"median"}))
    for side, why in outcome.missing.items():
        click.echo(f"  {side}: not measured, {why}")
    for side, why in outcome.failed.items():
        click.echo(f"  {side}: failed, {why}")
    for check in outcome.checks:
        click.echo(f"  {'✓' if check.holds else '-' if check.holds is None else '✕'} {'  '.join(check_words(check))}")
    click.echo(f"  {outcome.remark}\n" if outcome.remark else "")


def check_words(check: Check) -> list[str]:
    """Return the cells of one bound: what, bound, value, rounds, verdict."""
    from sennit.cli.pool_cases.measure import shown

    if check.value is None:
        return [check.what, check.bound, "-", "", check.verdict]
    beside = f" of {check.against}" if check.against else ""
    return [
        check.what,
        check.bound,
        f"{shown(check.value)}{beside}",
        f"{shown(check.lowest)} … {shown(check.highest)}",
        check.verdict,
    ]


def _print_checks(outcomes: Sequence[Outcome]) -> None:
    rows = [[outcome.name, *check_words(check)] for outcome in outcomes for check in outcome.checks]
    if rows:
        table(["case", "what", "bound", "measured", "rounds", "verdict"], rows)

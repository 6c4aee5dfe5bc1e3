"""`sennit bench ab SWITCH`: one optimisation on and off, by turns, on this machine, and whether it makes a difference.

    round 1  off on      each round gives one ratio; the interval is made of the ratios, by their order alone:
    round 2  on off      with 9 rounds, the median of all rounds there could be lies between the second smallest
    round 3  off on      and the second largest in 96 of 100 cases

Source of the interval: the distribution-free confidence interval of a median (David, Nagaraja, Order Statistics, 3rd ed.,
7.1). It asks nothing of the noise but that rounds are alike, which is why they are taken by turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Final

import click

from sennit.cli.output import emit, table
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import UsageError
from sennit.model.settings import Settings

ROUNDS: Final = 9
SURE: Final = 0.95
SMALL: Final = 0.03  # a difference that nobody should choose by, even when it is real


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One thing that can be turned off.

    Attributes:
        settings: setting → (off, on).
        kind: `optimisation`: the same result for less; `choice`: something else is given up for it.
        workloads: where it shows, of `ab_workloads.WORKLOADS`.
        since: why its default is what it is, with the figure.
    """

    name: str
    settings: Mapping[str, tuple[Any, Any]]
    kind: str
    workloads: tuple[str, ...]
    since: str

    def side(self, *, is_on: bool) -> dict[str, Any]:
        """Return the settings of one side."""
        return {name: values[is_on] for name, values in self.settings.items()}

    @property
    def is_on_by_default(self) -> bool:
        """Whether the defaults are those of `on`."""
        defaults = {knob.name: knob.default for knob in fields(Settings)}
        return all(defaults[name] == on for name, (_, on) in self.settings.items())


SWITCHES: Final = (
    Switch(
        name="group_commit",
        settings={"writer_batch_max": (1, 512)},
        kind="optimisation",
        workloads=("producers", "throughput"),
        since="1,000 submits of 200 producers take 7 commits, each with its fsync, instead of one each",
    ),
    Switch(
        name="hand_over",
        settings={"hand_over": (False, True)},
        kind="optimisation",
        workloads=("latency", "chain", "throughput"),
        since="the commit that makes a task ready also claims it: one commit per start instead of two",
    ),
    Switch(
        name="result_bursts",
        settings={"result_bursts": (False, True)},
        kind="optimisation",
        workloads=("throughput_sync",),
        since="3,000 results of sync bodies reach the event loop by about 33 wake-ups instead of 3,000",
    ),
    Switch(
        name="placement",
        settings={"placement": ("declared", "auto")},
        kind="optimisation",
        workloads=("cpu_unhinted",),
        since="bodies that turn out to compute move to processes: there they have a core each, and the event loop its GIL",
    ),
    Switch(
        name="cpu_prefetch",
        settings={"cpu_prefetch": (0, 8)},
        kind="optimisation",
        workloads=("cpu_short", "cpu_long"),
        since="a busy worker process has its next job already; off, as no consistent gain was measured",
    ),
    Switch(
        name="cpu_affinity",
        settings={"cpu_affinity": ("off", "auto")},
        kind="optimisation",
        workloads=("cpu_long",),
        since="processes stay on their NUMA node; with one node it does nothing",
    ),
    Switch(
        name="claim_ahead",
        settings={"claim_ahead": (0, 64)},
        kind="optimisation",
        workloads=("throughput", "throughput_sync"),
        since="a free slot claims in the commit that ends its last task anyway; between processes: bench/stealing.py",
    ),
    Switch(
        name="durability",
        settings={"durability": ("full", "normal")},
        kind="choice",
        workloads=("producers", "chain"),
        since="off (full): without an fsync per commit a power cut takes the last commits",
    ),
    Switch(
        name="log_capture",
        settings={"log_capture": (True, False)},
        kind="choice",
        workloads=("throughput", "throughput_sync"),
        since="off (logs are kept): without it `sennit tasks logs` has nothing to show",
    ),
)


# ---------------------------------------------------------------- what the figures say


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both sides of a switch on one workload.

    Attributes:
        ratio: how many times as good `on` is, above 1 is better: the median of the rounds.
        low, high: the interval in which the median of all such rounds lies.
        sureness: in how many of 100 such benchmarks it does, as a share.
    """

    switch: str
    workload: str
    unit: str
    off: float
    on: float
    ratio: float
    low: float
    high: float
    sureness: float
    rounds: int

    @property
    def verdict(self) -> str:
        """Return one honest sentence."""
        if self.low <= 1 <= self.high:
            return "no difference beyond noise"
        better = self.ratio > 1
        words = f"{'better' if better else 'worse'} with it, {self.ratio if better else 1 / self.ratio:.2f} ×"
        if self.sureness < SURE:
            return f"looks {words}, but {self.rounds} rounds are too few to say so"
        if abs(self.ratio - 1) < SMALL:
            return f"{words}: a difference, and too small to choose by"
        return words


def compare(switch: str, workload: str, unit: str, off: Sequence[float], on: Sequence[float]) -> Comparison:
    """Return what the figures of the rounds say."""
    more_is_better = unit.startswith("per ")
    ratios = sorted(b / a if more_is_better else a / b for a, b in zip(off, on, strict=True))
    low, high, sureness = interval(ratios)
    return Comparison(
        switch=switch,
        workload=workload,
        unit=unit,
        off=median(off),
        on=median(on),
        ratio=median(ratios),
        low=low,
        high=high,
        sureness=sureness,
        rounds=len(ratios),
    )


def interval(ordered: Sequence[float]) -> tuple[float, float, float]:
    """Return the narrowest interval around the median that is sure enough, and how sure; of few values, all of them."""
    n = len(ordered)
    cut = 1
    while cut < n // 2 and _sureness(n, cut + 1) >= SURE:
        cut += 1
    return ordered[cut - 1], ordered[n - cut], _sureness(n, cut)


def _sureness(n: int, cut: int) -> float:
    """Return how often the median lies between the `cut`th smallest and the `cut`th largest of `n` values."""
    return 1 - 2 * sum(comb(n, k) for k in range(cut)) / (1 << n)


# ---------------------------------------------------------------- the command


def switch_named(name: str) -> Switch:
    """Return the switch of that name.

    Raises:
        UsageError: there is none; says which one is near.
    """
    names = [switch.name for switch in SWITCHES]
    if name in names:
        return SWITCHES[names.index(name)]
    near = get_close_matches(name, names, n=3)
    raise UsageError(
        f"there is no switch {name!r}",
        fix=f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}",
    )


@click.command(
    epilog=examples("sennit bench ab", "sennit bench ab hand_over", "sennit bench ab group_commit --dir /data")
)
@click.argument("switch", required=False)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=ROUNDS,
    show_default=True,
    help="Each is one run with it and one without.",
)
@click.option(
    "--scale", type=click.FloatRange(0.001, 100), default=1.0, show_default=True, help="Sizes are multiplied by this."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the temporary files are.",
)
@shared_options()
@pass_shared
def ab(shared: Shared, *, switch: str | None, rounds: int, scale: float, folder: Path | None) -> None:
    """Measure an optimisation on and off, by turns; without SWITCH, list those there are.

    Settings of this folder and of the environment hold for both sides.
    """
    if switch is None:
        _list(as_json=shared.json)
        return
    chosen = switch_named(switch)
    shared.verbosity = shared.verbosity or -1  # what an app warns of (a handler that computes) is what is measured here
    shared.start_logging()
    from sennit.cli.ab_workloads import WORKLOADS

    found = []
    for name in chosen.workloads:
        if not shared.json:  # it takes a minute where each run starts worker processes
            click.echo(f"{name}: {rounds} rounds with {chosen.name} and without", err=True)
        off, on = _by_turns(chosen, name, rounds=rounds, scale=scale, folder=folder)
        found.append(compare(chosen.name, name, WORKLOADS[name].unit, off, on))
        if shared.json:
            facts = {**asdict(found[-1]), "verdict": found[-1].verdict, "kind": chosen.kind, "scale": scale}
            emit({"schema": "sennit.ab/1", **facts, "rounds_off": off, "rounds_on": on})
    if not shared.json:
        _print(chosen, found)


def _by_turns(
    switch: Switch, workload: str, *, rounds: int, scale: float, folder: Path | None
) -> tuple[list[float], list[float]]:
    """Return the figures of all rounds, without it and with it."""
    from sennit.cli.ab_workloads import figure

    figures: tuple[list[float], list[float]] = ([], [])
    for is_on in (False, True):  # what is imported or opened for the first time is paid for before it counts
        figure(workload, switch.side(is_on=is_on), scale=min(scale, 0.1), folder=folder)
    for n in range(rounds):
        for is_on in (False, True) if n % 2 == 0 else (True, False):
            figures[is_on].append(figure(workload, switch.side(is_on=is_on), scale=scale, folder=folder))
    return figures


def _list(*, as_json: bool) -> None:
    if as_json:
        for switch in SWITCHES:
            emit({"schema": "sennit.switch/1", **asdict(switch), "is_on_by_default": switch.is_on_by_default})
        return
    table(
        ["switch", "settings, off and on", "default", "kind", "workloads", "why"],
        [
            [
                switch.name,
                ", ".join(f"{name} {off} | {on}" for name, (off, on) in switch.settings.items()),
                "on" if switch.is_on_by_default else "off",
                switch.kind,
                " ".join(switch.workloads),
                switch.since,
            ]
            for switch in SWITCHES
        ],
    )


def _print(switch: Switch, found: Sequence[Comparison]) -> None:
    from sennit.cli.ab_workloads import WORKLOADS

    head = ["workload", "off", "on", "unit", "on, times as good", "interval"]
    rows = [
        [
            one.workload,
            f"{one.off:,.4g}",
            f"{one.on:,.4g}",
            one.unit,
            f"{one.ratio:.2f}",
            f"{one.low:.2f} … {one.high:.2f}",
        ]
        for one in found
    ]
    table(head, rows, right=frozenset(head) - {"workload", "unit"})
    click.echo("")
    for one in found:
        click.echo(f"{one.workload} ({WORKLOADS[one.workload].what}): {one.verdict}")
    first = found[0]
    default = "on" if switch.is_on_by_default else "off"
    click.echo(
        f"\n{switch.name} is {default} by default; {switch.since}"
        f"\n{first.rounds} rounds by turns; the interval holds the median with {first.sureness:.0%}"
    )

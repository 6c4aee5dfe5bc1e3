"""The benchmarks of pools, shared arrays, maps and batches: `sennit bench pools` with more rounds, and the old designs.

    python3 dev.py bench pools [--peers] [--rounds N] [--only CASE …] [--quick] [--json FILE] [--markdown FILE]

By hand it is `python bench/run.py pools` with the same options. `--peers` only chooses the Python that has joblib.
The first part are the cases of the command, with the bounds that sennit has set itself; the second (bench/pools_seeds.py) the
tables that the ideas came from. docs/reference/benchmarks-pools.md is made by `--markdown`, in about five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pools_seeds import TABLES, SeedTable, detected, sizes_under_load
from run import Surroundings, end_in_order, machine_facts, progress

from sennit.cli.bench_pools import NAMES, cases, check_words
from sennit.cli.pool_cases.measure import Outcome, measure, shown
from sennit.cli.pool_cases.rivals import part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROUNDS_MORE: Final = 2  # on top of those of the command
QUICK: Final = 0.02
EXTRA: Final = ("detector", "sizes")
EVERYTHING: Final = (*NAMES, *(table.name for table in TABLES), *EXTRA)


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="in the Python of the peers (dev.py chooses it)")
    parser.add_argument("--rounds", type=int, help="of every case, instead of its own number and two more")
    parser.add_argument("--only", nargs="*", metavar="CASE", choices=EVERYTHING, default=[])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: does everything run?")
    parser.add_argument("--json", type=Path, help="append the run to this file, one line of JSON")
    parser.add_argument("--markdown", type=Path, help="write the page for docs/reference to this file")
    return parser.parse_args(argv)


class Run:
    """What one run has found, as lines of Markdown and as facts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._scale = QUICK if options.quick else 1.0
        self._rounds = 1 if options.quick else options.rounds
        self._only = options.only
        self.outcomes: list[Outcome] = []
        self.facts: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def _wanted(self, name: str) -> bool:
        return not self._only or name in self._only

    def cases(self) -> None:
        """Measure the cases of the command."""
        for case in cases(self._only) if not self._only or set(self._only) & set(NAMES) else ():
            progress(case.name)
            self._take(measure(case, scale=self._scale, rounds=self._rounds or case.rounds + ROUNDS_MORE))

    def _take(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.facts.append(outcome.facts())
        self.failed += [f"{outcome.name}: {side}: {why}" for side, why in outcome.failed.items()]

    def tables(self) -> Iterator[str]:
        """Measure the tables of the old designs, and yield their lines."""
        for seed_table in TABLES:
            if self._wanted(seed_table.name):
                progress(seed_table.name)
                found = seed_table.run(scale=self._scale, rounds=self._rounds)
                self.facts += [outcome.facts() for outcome in found]
                self.failed += [f"{one.name}: {side}: {why}" for one in found for side, why in one.failed.items()]
                yield from seed_lines(seed_table, found)
        if self._wanted("detector"):
            rows = detected(scale=self._scale)
            self.facts.append({"case": "detector", "rows": rows})
            yield from ("### What kind of work it is", "", "| work | old detector | ours |", "|---|---|---|")
            yield from (f"| {work} | {old} | {new} |" for work, old, new in rows)
            yield from (
                "",
                "The old detector times submit to done, with the wait in the queue; ours times the body alone.",
                "",
            )
        if self._wanted("sizes"):
            sizes = sizes_under_load(scale=self._scale)
            self.facts.append({"case": "sizes", "rows": sizes})
            yield from ("### Size while 100 agents are busy, step after step", "")
            yield from (f"- {name}: {' → '.join(map(str, of))}" for name, of in sizes)
            yield from (
                "",
                "The old manager looks at its load when its work has just ended; ours while work waits.",
                "",
            )


# ---------------------------------------------------------------- as Markdown


def bound_lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the table of all bounds."""
    yield from ("| case | what | bound | measured | rounds | |", "|---|---|---|--:|---|---|")
    for outcome in outcomes:
        for check in outcome.checks:
            yield f"| `{outcome.name}` | {' | '.join(check_words(check))} |"
    yield ""


def case_lines(outcome: Outcome) -> Iterator[str]:
    """Yield the figures of a case."""
    yield from (f"### `{outcome.name}`: {outcome.what}", "", "| side | median | unit | rounds |", "|---|--:|---|---|")
    for side, values in outcome.figures.items():
        spread = f"{shown(min(values))} … {shown(max(values))}"
        yield f"| {side} | {shown(outcome.middle(side))} | {outcome.unit_of(side)} | {spread} |"
    for side, why in {**outcome.missing, **outcome.failed}.items():
        yield f"| {side} | - | | {why} |"
    yield from ("", outcome.remark, "") if outcome.remark else ("",)


def seed_lines(seed_table: SeedTable, found: Sequence[Outcome]) -> Iterator[str]:
    """Yield one table of the old designs: claim, figures, verdict."""
    yield from (f"### {seed_table.title}", "", f"It was said: {seed_table.claim}", "")
    yield "| | " + " | ".join(f"{one.what}, {one.unit}" for one in found) + " |"
    yield "|---|" + "--:|" * len(found)
    for side in dict.fromkeys(side for one in found for side in (*one.figures, *one.missing, *one.failed)):
        yield f"| {side} | " + " | ".join(shown(one.middle(side)) for one in found) + " |"
    whole = not any(one.failed for one in found)
    yield from ("", seed_table.verdict({one.name: one for one in found}) if whole else "A side failed.", "")


def page(run: Run, tables: Sequence[str], *, command: str, at: str, around: dict[str, float]) -> str:
    """Return the whole report."""
    machine = machine_facts({"sennit": sys.executable})
    joblib, numpy = (part(name, "__version__") for name in ("joblib", "numpy"))
    gil = "on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off"
    lines = [
        f"`{command}`, {at}. {machine.cpu}, {machine.cores} cores, Linux {machine.kernel}, Python {machine.python}, GIL {gil};",
        f"sennit {machine.versions['sennit']}, joblib {joblib}, numpy {numpy}.",
        f"Other programs took {around['others_percent']:.0f} % of a core meanwhile.",
        "",
    ]
    if run.outcomes:
        lines += ["## Bounds", "", *bound_lines(run.outcomes), "## Cases", ""]
        lines += [line for outcome in run.outcomes for line in case_lines(outcome)]
    if tables:
        lines += ["## The tables it began with, made again", "", *tables]
    return "\n".join(lines).rstrip() + "\n"


def reference_page(report: str) -> str:
    """Return the page for docs/reference."""
    return f"""# Benchmarks of pools

What Sennit's pools, shared arrays, maps and batches do beside Python's own and joblib, and beside the older designs that they
began from. One command makes every figure on this page, on your machine, and writes the page:

```text
python3 dev.py bench pools --peers --markdown docs/reference/benchmarks-pools.md
```

The first part is also a command of its own, in about a minute: `sennit bench pools`. All sides of a case take turns in one
process, in every round; a ratio is the median of the ratios within the rounds, and a bound is judged by it. Read ratios, not
absolute values. No figure here is written by hand, and no case was left out because it does not flatter.

{report}"""


def main(argv: list[str]) -> int:
    """Run, print and remember; 1 if a side failed."""
    options = parse(argv)
    end_in_order()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    command = shlex.join(["python", "bench/run.py", "pools", *argv])
    around = Surroundings()
    run = Run(options)
    run.cases()
    tables = list(run.tables())
    progress("")
    report = page(run, tables, command=command, at=at, around=around.facts())
    print(report)
    if options.json:
        with options.json.open("a", encoding="utf-8") as history:
            history.write(json.dumps({"at": at, "command": command, "pid": os.getpid(), "cases": run.facts}) + "\n")
    if options.markdown:
        options.markdown.write_text(reference_page(report), encoding="utf-8")
    for line in run.failed:
        print(f"failed: {line}", file=sys.stderr)
    return int(bool(run.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

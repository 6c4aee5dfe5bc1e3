"""`sennit bench`: what this machine does in half a minute, each figure beside the limit of raw SQLite.

The limit is the same rows through one bare connection: insert, claim and finish without results, dependencies, retries
or leases. The thorough benchmark, with other queues beside it, is the folder bench/ of the source.
"""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import click

from sennit.cli.group import LazyGroup
from sennit.cli.output import emit, table
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.runtime.app import App
from sennit.runtime.engine import usable_cores
from sennit.store.connect import connect
from sennit.submit.context import step

# Sizes at scale 1, chosen so that each workload takes about a second on two cores of 2020.
TASKS: Final = 5_000
BULK: Final = 20_000
SINGLES: Final = 100
CHAIN: Final = 100
FAN: Final = 500
STEPS: Final = 500
RAW_BATCH: Final = 100

_SCHEMA: Final = (
    "CREATE TABLE task (id INTEGER PRIMARY KEY, state INTEGER NOT NULL DEFAULT 0, payload TEXT, result TEXT)"
)
_INSERT: Final = "INSERT INTO task (payload) VALUES ('{}')"
_CLAIM: Final = "UPDATE task SET state = 1 WHERE id BETWEEN ? AND ?"
_FINISH: Final = "UPDATE task SET state = 2, result = 'null' WHERE id BETWEEN ? AND ?"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; `raw` is the limit, in the same unit."""

    workload: str
    value: float
    unit: str
    raw: float

    @property
    def percent_of_raw(self) -> float:
        """How near to the limit: 100 is as fast as bare SQLite."""
        share = self.value / self.raw if self.unit.startswith("per") else self.raw / self.value
        return 100 * share


COMMANDS: Final = {
    "limits": ("sennit.cli.bench_limits:limits", "Simulate the limits of providers, as a table and as plots."),
    "pools": (
        "sennit.cli.bench_pools:pools",
        "Measure pools, shared arrays, registries and batches beside what else there is.",
    ),
    "ab": ("sennit.cli.bench_ab:ab", "Measure one optimisation on and off, by turns."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@click.option(
    "--scale", type=click.FloatRange(0.001, 100), default=1.0, show_default=True, help="Sizes are multiplied by this."
)
@click.option(
    "--durability",
    type=click.Choice(["full", "normal"]),
    default="full",
    show_default=True,
    help="Fsync per commit, or not.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the temporary file is.",
)
@shared_options()
@pass_shared
@click.pass_context
def bench(ctx: click.Context, shared: Shared, *, scale: float, durability: str, folder: Path | None) -> None:
    """Measure throughput, bulk submit, latency, chain, fan-in and step on a temporary file."""
    if ctx.invoked_subcommand is not None:
        given = [n for n in ctx.params if ctx.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options before `{ctx.invoked_subcommand}` are not for it; put its own behind it")
        return
    shared.start_logging()
    with tempfile.TemporaryDirectory(prefix="sennit-bench-", dir=folder) as place:
        raw = _Raw(Path(place) / "raw.db", durability, scale)
        figures = asyncio.run(_Ours(Path(place) / "sennit.db", durability, scale).measure(raw))
    if shared.json:
        machine = {"cores": usable_cores(), "python": platform.python_version(), "system": platform.platform()}
        for figure in figures:
            facts = {**asdict(figure), "percent_of_raw": figure.percent_of_raw}
            emit({"schema": "sennit.bench/1", **facts, "durability": durability, "scale": scale, **machine})
        return
    rows = [[f.workload, f"{f.value:,.4g}", f.unit, f"{f.raw:,.4g}", f"{f.percent_of_raw:.0f} %"] for f in figures]
    table(
        ["workload", "sennit", "unit", "raw sqlite", "of raw"],
        rows,
        right=frozenset({"sennit", "raw sqlite", "of raw"}),
    )
    click.echo(
        f"\n{usable_cores()} cores, Python {platform.python_version()}, durability {durability}, pid {os.getpid()}"
    )


def _scaled(n: int, scale: float) -> int:
    return max(2, round(n * scale))


class _Raw:
    """The same rows without a queue around them."""

    def __init__(self, path: Path, durability: str, scale: float) -> None:
        self._path = path
        self._durability = durability
        self._scale = scale

    def measure(self) -> dict[str, float]:
        """Return tasks/s through insert, claim and finish; rows/s inserted; and ms per commit of one row."""
        with closing(connect(self._path, durability=self._durability)) as connection:
            connection.execute(_SCHEMA)

            def commit(statement: str, rows: Sequence[tuple[int, ...]]) -> None:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(statement, rows)
                connection.execute("COMMIT")

            bulk = _scaled(BULK, self._scale)
            bulk_s = _timed(lambda: commit(_INSERT, [()] * bulk))
            singles_s = [_timed(lambda: commit(_INSERT, [()])) for _ in range(_scaled(SINGLES, self._scale))]
            lives_s = 0.0
            n = _scaled(TASKS, self._scale)
            for first in range(1, n + 1, RAW_BATCH):
                span = [(first, min(first + RAW_BATCH - 1, n))]
                lives_s += _timed(lambda: commit(_INSERT, [()] * RAW_BATCH))
                lives_s += _timed(lambda span=span: commit(_CLAIM, span))  # type: ignore[misc]  # mypy infers no default
                lives_s += _timed(lambda span=span: commit(_FINISH, span))  # type: ignore[misc]
        return {"life_per_s": n / lives_s, "insert_per_s": bulk / bulk_s, "commit_ms": median(singles_s) * 1e3}


def _timed(work: Callable[[], object]) -> float:
    began_s = perf_counter()
    work()
    return perf_counter() - began_s


async def _timed_async(work: Callable[[], Awaitable[Any]]) -> float:
    began_s = perf_counter()
    await work()
    return perf_counter() - began_s


class _Ours:
    """The workloads as a user would write them."""

    def __init__(self, path: Path, durability: str, scale: float) -> None:
        self._app = App(f"sqlite:///{path}", durability=durability, log_capture=False)
        self._scale = scale
        self._started_s = 0.0
        self._noop = self._app.task(name="noop")(self._nothing)
        self._hop = self._app.task(name="hop")(self._next)
        self._join = self._app.task(name="join")(self._count)
        self._steps = self._app.task(name="steps")(self._in_steps)
        self._later = self._app.task(name="bulk", queue="nobody")(self._nothing)

    async def measure(self, raw: _Raw) -> list[Figure]:
        """Run all."""
        limit = raw.measure()
        scaled = [_scaled(n, self._scale) for n in (TASKS, BULK, SINGLES, CHAIN, FAN, STEPS)]
        tasks, bulk, singles, chain, fan, steps = scaled
        async with self._app:
            await self._noop.submit(0)  # the first task pays for what is opened lazily
            latencies_s = [await self._latency_s() for _ in range(singles)]
            return [
                Figure("latency, submit to first line", median(latencies_s) * 1e3, "ms", limit["commit_ms"]),
                Figure(f"chain of {chain}, per hop", await self._chain_ms(chain), "ms", limit["commit_ms"]),
                Figure(f"fan-in of {fan}", await self._fan_per_s(fan), "per s", limit["life_per_s"]),
                Figure("step, in order", await self._step_ms(steps), "ms", limit["commit_ms"]),
                Figure(f"throughput of {tasks:,}", await self._throughput_per_s(tasks), "per s", limit["life_per_s"]),
                Figure(f"bulk submit of {bulk:,}", await self._bulk_per_s(bulk), "per s", limit["insert_per_s"]),
            ]

    # ------------------------------------------------------------ handlers

    async def _nothing(self, n: int) -> int:
        self._started_s = perf_counter()
        return n

    async def _next(self, n: int) -> int:
        return n + 1

    async def _count(self, values: list[int]) -> int:
        return len(values)

    async def _in_steps(self, n: int) -> float:
        async def one(i: int) -> int:
            return i

        began_s = perf_counter()
        for i in range(n):
            await step(one, i)
        return perf_counter() - began_s

    # ------------------------------------------------------------ workloads

    async def _latency_s(self) -> float:
        submitted_s = perf_counter()
        await self._noop.submit(0)
        return self._started_s - submitted_s

    async def _chain_ms(self, n: int) -> float:
        async def whole() -> None:
            last = self._hop.submit(0)
            for _ in range(n - 1):
                last = self._hop.submit(last.as_argument())
            await last

        return 1e3 * await _timed_async(whole) / n

    async def _fan_per_s(self, n: int) -> float:
        async def whole() -> None:
            await self._join.submit(self._noop.map(range(n)).as_argument())

        return (n + 1) / await _timed_async(whole)

    async def _step_ms(self, n: int) -> float:
        return 1e3 * await self._steps.submit(n) / n

    async def _throughput_per_s(self, n: int) -> float:
        return n / await _timed_async(lambda: self._noop.map(range(n)))

    async def _bulk_per_s(self, n: int) -> float:
        async def stored() -> None:
            await self._later.map(range(n))[-1].stored()

        return n / await _timed_async(stored)

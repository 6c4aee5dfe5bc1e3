"""What supervision of agents costs: OS threads, time to the first event, memory, CPU at rest, and that no result is lost.

    python bench/agents.py [--rounds N] [--only CASE …] [--quick]     about two minutes

The agents are small shell programs: what is measured is what stands over them. The rival, where there is one, is a bare
`subprocess.Popen` that reads a pipe: no supervision at all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeVar

import agents_tail

from sennit.cli.pool_cases.measure import Bound, Case, Outcome, Sides, measure, scaled, shown
from sennit.execute.agent_proc import descendants, everybody
from sennit.execute.supervisor import AgentProcess, ProcessSpec, Supervisor, environment

T = TypeVar("T")
OURS: Final = "Supervisor"
BARE: Final = "subprocess.Popen"
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
REST_S: Final = 5.0
QUICK: Final = 0.05


class Bench:
    """A supervisor on an event loop of its own, which runs only while it is measured."""

    def __init__(self, stack: ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sennit-bench-")))
        self._runner = stack.enter_context(asyncio.Runner())
        self._count = 0
        self.supervisor = Supervisor()
        stack.callback(lambda: self.run(self.supervisor.close()))
        self.fifo = self._folder / "said"
        os.mkfifo(self.fifo)
        self._said = os.open(self.fifo, os.O_RDWR)
        stack.callback(os.close, self._said)
        self.run(self.finished("true"))  # the warden is there

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def spec(self, script: str, **more: Any) -> ProcessSpec:
        self._count += 1
        folder = self._folder / f"run{self._count}"
        folder.mkdir()
        given = environment(os.environ, passes=(), added={"SAID": str(self.fifo)})
        return ProcessSpec(argv=("sh", "-c", script), environ=given, cwd=self._folder, folder=folder, **more)

    async def start(self, script: str, **more: Any) -> AgentProcess:
        return await self.supervisor.spawn(self.spec(script, **more))

    async def start_many(self, script: str, count: int) -> list[AgentProcess]:
        return list(await asyncio.gather(*(self.start(script) for _ in range(count))))

    async def end(self, agents: Sequence[AgentProcess]) -> None:
        for agent in agents:
            agent.kill("stopped")
        await asyncio.gather(*(agent.exited for agent in agents))

    async def finished(self, script: str, **more: Any) -> AgentProcess:
        agent = await self.start(script, **more)
        await agent.exited
        return agent

    def wait_said(self) -> None:
        select.select([self._said], [], [])
        os.read(self._said, 4096)


# ---------------------------------------------------------------- what is measured


def os_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


async def threads_for(bench: Bench, count: int) -> float:
    before = os_threads()
    agents = await bench.start_many("sleep 1000", count)
    extra = os_threads() - before
    await bench.end(agents)
    return extra


async def first_event_ms(bench: Bench) -> float:
    """From the call until the first line of the program is in its file."""
    spec = bench.spec("echo event; echo >$SAID")
    begun_s = perf_counter()
    agent = await bench.supervisor.spawn(spec)
    bench.wait_said()
    took_ms = (perf_counter() - begun_s) * 1000
    await agent.exited
    return took_ms


def bare_event_ms(fifo: Path, bench: Bench) -> float:
    """From the call until the first line of the program is in our hands."""
    begun_s = perf_counter()
    argv = ["sh", "-c", f"echo event; echo >{fifo}"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        bench.wait_said()
        return (perf_counter() - begun_s) * 1000


def spawn_sides(stack: ExitStack, scale: float) -> Sides:
    bench = Bench(stack)
    count = scaled(40, scale)

    def overhead() -> float:
        ours, bare = [], []
        for _ in range(count):
            ours.append(bench.run(first_event_ms(bench)))
            bare.append(bare_event_ms(bench.fifo, bench))
        return median(ours) - median(bare)

    return {
        OURS: lambda: median(bench.run(first_event_ms(bench)) for _ in range(count)),
        BARE: lambda: median(bare_event_ms(bench.fifo, bench) for _ in range(count)),
        "overhead": overhead,
    }


def peak_mb(pid: int | str) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def growth_mb(bench: Bench, size: int) -> float:
    """By how much the keeper and we grow while that much output passes."""
    script = f"read _; echo >$SAID; head -c {size} /dev/zero; echo >$SAID; read _"
    agent = await bench.start(script, talks=True, secrets=("sk-this-is-never-printed",))
    agent.write(b"go\n")
    bench.wait_said()
    before_mb = peak_mb(agent.keeper_pid) + peak_mb("self")
    bench.wait_said()
    grown_mb = peak_mb(agent.keeper_pid) + peak_mb("self") - before_mb
    agent.write(b"end\n")
    await agent.exited
    assert (agent.folder / "stdout.log").stat().st_size == size
    (agent.folder / "stdout.log").unlink()
    return grown_mb


def ticks_of(pids: Sequence[int | str]) -> int:
    found = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found += int(words[11]) + int(words[12])
    return found


async def rest_percent(bench: Bench, count: int) -> float:
    """CPU of us, the warden and its keepers while the agents do nothing, in percent of one core."""
    agents = await bench.start_many("exec sleep 1000", count)
    warden = bench.supervisor.statistics().warden_pid
    kept = {agent.pid for agent in agents}
    above: list[int | str] = [
        "self",
        warden,
        *(stat.pid for stat in descendants(warden, everybody()) if stat.pid not in kept),
    ]
    before = ticks_of(above)
    await asyncio.sleep(REST_S)
    used_s = (ticks_of(above) - before) * TICK_S
    await bench.end(agents)
    return 100 * used_s / REST_S


async def missing_results(bench: Bench, count: int) -> float:
    """Run that many agents with nobody reading; return how many results are not in their files afterwards."""
    gate = asyncio.Semaphore(20)

    async def one(number: int) -> AgentProcess:
        async with gate:
            return await bench.finished(f"echo result {number}")

    agents = await asyncio.gather(*(one(number) for number in range(count)))
    said = [(agent.folder / "stdout.log").read_text() for agent in agents]
    return sum(text != f"result {number}\n" for number, text in enumerate(said))


async def kill_ms(bench: Bench, count: int) -> float:
    agents = await bench.start_many("setsid sleep 1000 & exec sleep 1000", count)
    begun_s = perf_counter()
    await bench.end(agents)
    return (perf_counter() - begun_s) * 1000


def alone(work: Callable[[Bench, int], Coroutine[Any, Any, float]], size: int) -> Callable[[ExitStack, float], Sides]:
    """Return the sides of a case that has no rival."""

    def sides(stack: ExitStack, scale: float) -> Sides:
        bench = Bench(stack)
        return {OURS: lambda: float(bench.run(work(bench, scaled(size, scale))))}

    return sides


def bound(what: str, at_most: float, side: str = OURS) -> tuple[Bound, ...]:
    return (Bound(what=what, side=side, at_most=at_most),)


CASES: Final = {
    case.name: case
    for case in (
        Case(
            name="threads",
            what="OS threads more with 100 agents than with none",
            unit="OS threads",
            sides=alone(threads_for, 100),
            bounds=bound("OS threads for watching", 1),
            rounds=2,
        ),
        Case(
            name="spawn",
            what="from spawn to the first event, median",
            unit="ms",
            sides=spawn_sides,
            bounds=bound("above the bare program, ms", 10, "overhead"),
            remark="Popen's output is in our hands, ours in a file; supervised are two forks more, identity on disk first.",
        ),
        Case(
            name="memory",
            what="growth of keeper and supervisor while 100 MB of output pass",
            unit="MB",
            sides=alone(growth_mb, 100_000_000),
            bounds=bound("flat memory, MB", 4),
            rounds=3,
        ),
        Case(
            name="rest",
            what="CPU of supervisor, warden and 100 keepers while the agents do nothing",
            unit="% of a core",
            sides=alone(rest_percent, 100),
            bounds=bound("CPU at rest, %", 2),
            rounds=2,
        ),
        Case(
            name="results",
            what="results of 1,000 agents that nobody read, and that are not there afterwards",
            unit="results",
            sides=alone(missing_results, 1000),
            bounds=bound("lost", 0),
            rounds=1,
        ),
        Case(
            name="kill",
            what="from the wish until 100 agents, each with a child in another session, are gone",
            unit="ms",
            sides=alone(kill_ms, 100),
            bounds=bound("100 trees, ms", 2000),
            rounds=3,
        ),
    )
}


# ---------------------------------------------------------------- the command


def lines_of(outcome: Outcome) -> list[str]:
    """Return what is printed of a case."""
    lines = [f"{outcome.name}: {outcome.what}"]
    for side, values in outcome.figures.items():
        spread = f"{shown(min(values))} … {shown(max(values))}"
        lines.append(f"  {side:<20} {shown(median(values)):>8} {outcome.unit_of(side):<12} {spread}")
    lines += [f"  {side:<20} failed: {why}" for side, why in outcome.failed.items()]
    for check in outcome.checks:
        lines.append(f"  bound: {check.what} {check.bound}: {shown(check.value)} {check.verdict}")
    return lines


def main(argv: list[str]) -> int:
    """Run and print; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="of every case, instead of its own number")
    parser.add_argument("--only", nargs="*", metavar="CASE", choices=CASES, default=[])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: does everything run?")
    options = parser.parse_args(argv)
    runs = [partial(measure, case) for name, case in CASES.items() if not options.only or name in options.only]
    failed = False
    for run in runs:
        outcome = run(scale=QUICK if options.quick else 1.0, rounds=1 if options.quick else options.rounds)
        print(*lines_of(outcome), sep="\n", flush=True)
        failed |= bool(outcome.failed)
    if not options.only:
        print("tail: 100 files of agents, written by another process and followed on one event loop")
        print(*(f"  {what:<40} {figure:>16}   aim {aim}" for what, figure, aim in agents_tail.rows()), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

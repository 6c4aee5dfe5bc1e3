"""What a permit of a store costs, how many there are in a second, and how soon a waiter hears of a released one.

    python bench/permits.py [--dir FOLDER]      half a minute; --dir puts the databases on another disk

Beside the figures of the store stands a bare asyncio.Semaphore: what the same costs that knows of one process only,
forgets everything at its end, and cannot be told of a 429. `cases.py` has the same as cases of the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sennit import App

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from sennit.submit.limits import Provider

    Slot = Callable[[], AbstractAsyncContextManager[object]]

Durability = Literal["full", "normal"]

SECONDS: Final = 2.0
CALLERS: Final = (1, 200)
WAKES: Final = 300
IN_LINE: Final = 3
RELAY_TURNS: Final = 40
RELAY_PAUSE_S: Final = 0.005
RELAY_TIMEOUT_S: Final = 60.0
PROVIDER: Final = "bench"


@asynccontextmanager
async def provider_of(url: str, durability: Durability, parallel: int) -> AsyncIterator[Provider]:
    """Open a store as a process that only calls, with a limit that does not move."""
    app = App(url, durability=durability)
    try:
        yield app.provider(PROVIDER, parallel=parallel, strategy="fixed")
    finally:
        await asyncio.to_thread(app.close)


def semaphore_slots(n: int) -> Slot:
    """Return slots of a bare semaphore."""
    semaphore = asyncio.Semaphore(n)
    return lambda: semaphore


# ------------------------------------------------------------------------------------------------------- throughput


async def slots_per_s(slot: Slot, callers: int, seconds: float) -> float:
    """Return how many slots are taken and left in a second by so many coroutines, none of which has to wait."""
    until_s = time.perf_counter() + seconds

    async def caller() -> int:
        n = 0
        while time.perf_counter() < until_s:
            async with slot():
                n += 1
        return n

    began_s = time.perf_counter()
    total = sum(await asyncio.gather(*(caller() for _ in range(callers))))
    return total / (time.perf_counter() - began_s)


async def permits_per_s(url: str, durability: Durability, callers: int, seconds: float = SECONDS) -> float:
    """The same for permits of a store: each is two commits, which callers share."""
    async with provider_of(url, durability, callers) as provider:
        async with provider.slot():
            pass  # the first call pays for what is opened lazily
        return await slots_per_s(provider.slot, callers, seconds)


# ----------------------------------------------------------------------------------------------- waking, one process


async def waiting(provider: Provider, k: int, *, unless: Callable[[], bool] = lambda: False) -> None:
    """Wait until k calls wait for a permit; looks every half millisecond, which is no part of any figure."""
    while (await provider.view())[0].waiting < k and not unless():  # noqa: ASYNC110 - a fact of the store
        await asyncio.sleep(0.0005)


class Wakes(NamedTuple):
    """Times from the release to the waiter's next line, and how often somebody else than the first in line was woken."""

    times_ns: list[int]
    wrong: int


async def wakes(slot: Slot, in_line: Callable[[int], Awaitable[None]], n: int) -> Wakes:
    """Release n times a slot for which IN_LINE coroutines wait.

    Args:
        slot: of a limit of 1.
        in_line: is awaited until so many wait.
    """
    released_ns = 0
    times_ns: list[int] = []
    order: list[int] = []

    async def waiter(number: int, until: asyncio.Event, inside: asyncio.Event) -> None:
        nonlocal released_ns
        async with slot():
            times_ns.append(time.perf_counter_ns() - released_ns)
            order.append(number)
            inside.set()
            await until.wait()
            released_ns = time.perf_counter_ns()

    line: list[tuple[asyncio.Task[None], asyncio.Event, asyncio.Event]] = []

    def queue_up(number: int) -> None:
        until, inside = asyncio.Event(), asyncio.Event()
        line.append((asyncio.create_task(waiter(number, until, inside)), until, inside))

    queue_up(0)
    await line[0][2].wait()
    for number in range(1, n + 1):
        while len(line) <= IN_LINE:
            queue_up(number + len(line) - 1)
            await in_line(len(line) - 1)
        holder, until, _ = line.pop(0)
        until.set()
        await holder
        entered = [asyncio.create_task(inside.wait()) for _, _, inside in line]
        await asyncio.wait(entered, return_when=asyncio.FIRST_COMPLETED)
        for one in entered:
            one.cancel()
    for task, until, _ in line:
        until.set()
        await task
    wrong = sum(at != number for at, number in enumerate(order))
    return Wakes(times_ns[1 : n + 1], wrong)


async def wakes_of_store(url: str, durability: Durability, n: int = WAKES) -> Wakes:
    """The same, where the slots are permits of a store."""
    async with provider_of(url, durability, 1) as provider:

        async def in_line(k: int) -> None:
            await waiting(provider, k)

        return await wakes(provider.slot, in_line, n)


async def wakes_of_semaphore(n: int = WAKES) -> Wakes:
    """The same for a bare semaphore."""

    async def in_line(_: int) -> None:
        await asyncio.sleep(0)

    return await wakes(semaphore_slots(1), in_line, n)


# ------------------------------------------------------------------------------------------- waking, two processes


class Turn(NamedTuple):
    """One process had the permit. CLOCK_MONOTONIC is the same in all."""

    had_ns: int
    released_ns: int
    process: int


async def relay(url: str, durability: Durability, n: int, pause_s: float, is_over: Callable[[], bool]) -> str:
    """Take the one permit n times by turns with another process; return a line for each, of when.

    It is released when the other one waits in line for it, or is over; `pause_s` later this process stands in line again.
    """
    lines = ""
    async with provider_of(url, durability, 1) as provider:
        for _ in range(n):
            async with provider.slot():
                had_ns = time.monotonic_ns()
                await waiting(provider, 1, unless=is_over)
                await asyncio.sleep(0.002)  # until the other one sleeps
                released_ns = time.monotonic_ns()
            lines += f"{had_ns} {released_ns}\n"
            await asyncio.sleep(pause_s)
    return lines


def relay_process(url: str, durability: Durability, n: str, pause_s: str, mine: str, other: str) -> None:  # noqa: PLR0917 - argv
    """Be one of the two."""
    lines = asyncio.run(relay(url, durability, int(n), float(pause_s), Path(other).exists))
    Path(mine).write_text(lines)


def turns_of_two(url: str, durability: Durability, folder: Path, n: int, pause_s: float) -> list[Turn]:
    """Return the turns of two processes, n each, in their order.

    Raises:
        RuntimeError: one of them failed.
    """
    logs = [folder / f"relay-{time.monotonic_ns()}-{i}.txt" for i in range(2)]
    code = "import permits, sys; permits.relay_process(*sys.argv[1:])"
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url, durability, str(n), str(pause_s), *map(str, order)], env=env)
        for order in (logs, logs[::-1])
    ]
    try:
        codes = [process.wait(RELAY_TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        message = f"the processes ended with {codes}"
        raise RuntimeError(message)
    lines = [(line.split(), i) for i, log in enumerate(logs) for line in log.read_text().splitlines()]
    return sorted(Turn(int(had), int(released), i) for (had, released), i in lines)


def wakes_across(url: str, durability: Durability, folder: Path, n: int = WAKES) -> Wakes:
    """Return the times from a release in one process to the next line of the waiter in another.

    `wrong`: how often, of RELAY_TURNS, the one who had it got it again though the other one stood in line before it.
    """
    times_ns = [
        after.had_ns - before.released_ns
        for before, after in pairwise(turns_of_two(url, durability, folder, n // 2, RELAY_PAUSE_S))
        if before.process != after.process
    ]
    eager = turns_of_two(url, durability, folder, RELAY_TURNS // 2, 0.0)
    last = [max(i for i, turn in enumerate(eager) if turn.process == process) for process in range(2)]
    first = [min(i for i, turn in enumerate(eager) if turn.process == process) for process in range(2)]
    # While both are there: after the one that starts last has waited for the first time, before one of them has ended.
    both = range(min(first), min(last))
    wrong = sum(eager[i].process == eager[i + 1].process for i in both)
    return Wakes(times_ns, wrong)


# ------------------------------------------------------------------------------------------------------ the command


def shown(times_ns: list[int]) -> str:
    cuts = statistics.quantiles(times_ns, n=100)
    return f"{cuts[49] / 1e6:8.3f}{cuts[98] / 1e6:9.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where the databases are; default: the temporary folder")
    folder = parser.parse_args().dir
    with tempfile.TemporaryDirectory(prefix="sennit-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        names = iter(range(1000))

        def url() -> str:
            return f"sqlite:///{place}/{next(names)}.db"

        durabilities: tuple[Durability, ...] = ("normal", "full")
        print(f"{'permits taken and returned per second':44}" + "".join(f"{n:>5} callers" for n in CALLERS))
        for durability in durabilities:
            rates = [asyncio.run(permits_per_s(url(), durability, n)) for n in CALLERS]
            print(f"  {'SQLite, ' + durability.upper():42}" + "".join(f"{rate:13,.0f}" for rate in rates))
        rates = [asyncio.run(slots_per_s(semaphore_slots(n), n, SECONDS)) for n in CALLERS]
        print(f"  {'asyncio.Semaphore':42}" + "".join(f"{rate:13,.0f}" for rate in rates))
        print(f"\n{'ms from a release to the first in line':44}{'p50':>8}{'p99':>9}")
        for durability in durabilities:
            found = asyncio.run(wakes_of_store(url(), durability))
            print(f"  {'SQLite, ' + durability.upper():42}{shown(found.times_ns)}   wrong waiter: {found.wrong}")
        for durability in durabilities:
            found = wakes_across(url(), durability, Path(place))
            what = f"SQLite, {durability.upper()}, another process"
            print(f"  {what:42}{shown(found.times_ns)}   wrong waiter: {found.wrong} of {RELAY_TURNS}")
        print(f"  {'asyncio.Semaphore':42}{shown(asyncio.run(wakes_of_semaphore()).times_ns)}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

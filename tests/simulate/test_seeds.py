"""A fault of one schedule is found, and one line shows it again."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import sennit
from sennit.errors import SeedFailed, UsageError
from sennit.testing.seeds import play, run_seeds
from sennit.testing.simloop import SimLoop

# ---------------------------------------------------------------- scenarios


class Account:
    """A balance with a read, an await and a write in it: the planted race."""

    def __init__(self) -> None:
        self.balance = 0

    async def deposit(self, amount: int, *, before: int) -> None:
        for _ in range(before):
            await asyncio.sleep(0)
        seen = self.balance
        await asyncio.sleep(0)
        self.balance = seen + amount


async def lost_update(random: Random, loop: asyncio.AbstractEventLoop) -> None:
    """First in, first out, the second deposit always starts three turns after the first has ended."""
    account = Account()
    await asyncio.gather(account.deposit(1, before=0), account.deposit(1, before=5))
    assert account.balance == 2


async def busy_fleet(random: Random, loop: SimLoop) -> None:
    """Some 500 steps over three processes, a queue, a lock and timers."""
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=4)
    lock = asyncio.Lock()
    done: set[int] = set()
    finished = asyncio.Event()

    async def work() -> None:
        while True:
            item = await queue.get()
            await asyncio.sleep(random.random())
            async with lock:
                await asyncio.sleep(0)
                done.add(item)
            if len(done) == 100:
                finished.set()

    for name in ("worker-1", "worker-2", "worker-3"):
        with loop.process(name):
            loop.create_task(work(), name="work")
    for item in range(100):
        await queue.put(item)
    await finished.wait()


async def nothing(random: Random, loop: SimLoop) -> None:
    await asyncio.sleep(1)


async def clean(random: Random, loop: SimLoop) -> None:
    """Passes under every seed."""
    account, lock = Account(), asyncio.Lock()

    async def deposit() -> None:
        async with lock:
            await account.deposit(1, before=0)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(deposit())
    assert account.balance == 3


runs_so_far = 0


async def remembers_the_run_before(random: Random, loop: SimLoop) -> None:
    global runs_so_far  # noqa: PLW0603  # the fault that is planted here
    runs_so_far += 1
    for _ in range(runs_so_far):
        await asyncio.sleep(0)
    raise ValueError("as planted")


# ---------------------------------------------------------------- schedules


def test_a_planted_race_is_found_within_500_seeds_and_never_by_the_stock_loop() -> None:
    for _ in range(20):
        asyncio.run(lost_update(Random(0), SimLoop()))

    with pytest.raises(SeedFailed, match="AssertionError") as failure:
        run_seeds(lost_update, range(500))

    assert failure.value.seed < 500
    assert isinstance(failure.value, AssertionError)
    assert "unclear" not in str(failure.value)
    assert any("Account.deposit (test_seeds.py:" in line for line in failure.value.trace)


def test_a_seed_replayed_gives_the_same_trace_and_another_seed_does_not() -> None:
    def trace_of(seed: int) -> list[str]:
        lines: list[str] = []
        run = play(busy_fleet, seed, on_step=lambda step: lines.append(str(step)))
        assert run.error is None
        return lines

    first, again, other = trace_of(11), trace_of(11), trace_of(12)

    assert len(first) > 350
    assert first == again
    assert first != other


def test_seeds_that_pass_are_counted() -> None:
    explored = run_seeds(clean, range(200))

    assert explored.seeds == 200
    assert explored.steps > 200 * 6


def test_a_scenario_that_depends_on_more_than_the_seed_is_told_so() -> None:
    with pytest.raises(SeedFailed, match="something beside it decides"):
        run_seeds(remembers_the_run_before, range(3))


def test_a_scenario_that_no_command_could_name_is_refused() -> None:
    async def local(random: Random, loop: SimLoop) -> None: ...

    with pytest.raises(UsageError, match="not a function of a module"):
        run_seeds(local, range(1))


def test_the_reproduction_line_fails_the_same_way() -> None:
    with pytest.raises(SeedFailed) as failure:
        run_seeds(lost_update, range(500))
    line = failure.value.reproduction
    assert line in str(failure.value)
    argv = [sys.executable, *shlex.split(line.partition("python ")[2])]
    environment = {**os.environ, "PYTHONPATH": str(Path(sennit.__path__[0]).parent)}

    shown = subprocess.run(argv, cwd=Path.cwd(), env=environment, capture_output=True, text=True, check=False)

    assert shown.returncode == 1, shown.stderr
    assert f"seed {failure.value.seed} failed: AssertionError" in shown.stdout
    for step in failure.value.trace:
        assert step in shown.stdout
    assert "assert account.balance == 2" in shown.stderr


def test_an_unknown_scenario_is_explained() -> None:
    argv = [sys.executable, "-m", "sennit.testing.simulate", "nowhere.to_be:found", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(sennit.__path__[0]).parent)}

    shown = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)

    assert shown.returncode == 2
    assert "no scenario 'nowhere.to_be:found'" in shown.stderr
    assert "Traceback" not in shown.stderr

"""bench/killing.py on a store of our choice: three real workers, kill -9, and the counts.

    python -m tests.project.killed_fleet drive KILLS MUTANT     prints the figures as JSON; "" is the sound store
    python -m tests.project.killed_fleet work MUTANT            one of its workers, whose store is broken

BENCH_DIR is the folder of the run. Only the workers are broken: the driver must find it out from outside.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from sennit import App, step
from sennit.submit.context import attempt_here
from tests.project.broken_stores import break_store

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import harness  # noqa: E402 - a script of bench, found by the line above
import killing  # noqa: E402

DATABASE = f"{harness.RUN_DIR}/sennit.db"
app = App(f"sqlite:///{DATABASE}", slots=4)


@app.task(name="nap", options={"crashes_max": 1000})  # the name: driver and workers are both `__main__`
async def nap(ms: float) -> int:
    """Log what `killing.judge` counts, and return the attempt."""
    task = attempt_here("the benchmark").task
    harness.hit(task.id, harness.START, task.attempt)
    await step(paid, task.id)
    harness.hit(task.id, killing.SAVED, task.attempt)
    await asyncio.sleep(ms / 1000)
    harness.hit(task.id, harness.END, task.attempt)
    return task.attempt


async def paid(task_id: int) -> None:
    """Be what must not be paid twice. The attempt is no argument: those of a step say which step it is."""
    harness.hit(task_id, killing.STEP, attempt_here("the benchmark").task.attempt)


class Killed:
    """The queue as `killing.run` sees it."""

    def __init__(self, mutant: str) -> None:
        self.mutant = mutant

    def submit(self, n: int) -> list[int]:
        """Submit n naps of 0 to 40 ms."""
        return [handle.id for handle in nap.map([k * 7 % 40 for k in range(n)])]

    def start_worker(self) -> harness.Worker:
        """Start a worker whose store is the mutant."""
        return harness.Worker([sys.executable, str(Path(__file__).resolve()), "work", self.mutant])


async def work() -> None:
    """Work until killed."""
    async with app:
        await asyncio.Event().wait()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "work":
        (mutant,) = rest
        if mutant:
            break_store(mutant)
        asyncio.run(work())
    else:
        kills, mutant = rest
        killing.OPEN_MIN, killing.FEED = 60, 100  # type: ignore[misc]  # a small day
        sys.stdout.write(json.dumps(killing.run(int(kills), Killed(mutant), app.store, database=DATABASE)))

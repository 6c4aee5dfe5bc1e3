"""Optimisations that are switched off: the same results, by more transactions or wake-ups. Nothing here looks at a clock."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from sennit import App
from sennit.execute.pool import BodyPool

OFF = ({"hand_over": False}, {"writer_batch_max": 1}, {"result_bursts": False})


@pytest.mark.parametrize("off", OFF, ids=lambda off: next(iter(off)))
def test_a_fan_and_a_chain_lose_nothing_with_an_optimisation_off(tmp_path: Path, off: dict[str, Any]) -> None:
    app = App(f"sqlite:///{tmp_path / 'fleet.db'}", durability="normal", slots=3, **off)

    @app.task
    def double(n: int) -> int:
        return 2 * n

    @app.task
    async def add(one: int, other: int) -> int:
        return one + other

    @app.task
    async def total(parts: list[int]) -> int:
        return sum(parts)

    with app:
        last = total.submit(double.map(range(20)).as_argument())
        for _ in range(5):
            last = add.submit(last.as_argument(), 1)
        assert last.result() == 385
        ledger = app.ledger().wait()
    assert (ledger.submitted, ledger.succeeded, ledger.balanced) == (26, 26, True)


@pytest.mark.parametrize(("hand_over", "commits"), [(True, 1), (False, 2)])
def test_handing_over_saves_the_transaction_of_the_claim(tmp_path: Path, *, hand_over: bool, commits: int) -> None:
    async def run() -> int:
        app = App(f"sqlite:///{tmp_path / 'fleet.db'}", durability="normal", lease_s=3600, hand_over=hand_over)
        store: Any = app.store
        at_start = 0

        @app.task
        async def note() -> None:
            nonlocal at_start
            at_start = store._writer.commits

        async with app:
            await note.submit()
            taken: list[int] = []
            for _ in range(8):  # something else may be committed meanwhile: the least is what a start costs
                for _ in range(3):  # what the end of the one before has asked for is over
                    await store._writer.put(lambda connection, effects: None)
                before = int(store._writer.commits)
                await note.submit()
                taken.append(at_start - before)
            return min(taken)

    assert asyncio.run(run()) == commits


@pytest.mark.parametrize(("result_bursts", "wake_ups"), [(True, 1), (False, 3)])
def test_results_that_come_together_wake_the_loop_once_or_each_for_itself(
    *, result_bursts: bool, wake_ups: int
) -> None:
    async def run() -> tuple[list[int | None], int]:
        pool = BodyPool(loop=asyncio.get_running_loop(), threads_max=1, result_bursts=result_bursts)
        came: list[int | None] = []
        last = threading.Event()
        for n in range(3):
            pool.submit(lambda n=n: n, lambda value, error: came.append(value))  # type: ignore[misc]  # mypy infers no default
        pool.submit(last.set, lambda value, error: None)
        last.wait()  # the loop is blocked: all three have ended, and nothing was delivered
        pool.close()
        for _ in range(5):
            await asyncio.sleep(0)
        deliveries = pool.statistics().deliveries
        assert pool.join()
        return came, deliveries

    came, deliveries = asyncio.run(run())

    assert came == [0, 1, 2]
    assert deliveries in {wake_ups, wake_ups + 1}  # the fourth may have been in time

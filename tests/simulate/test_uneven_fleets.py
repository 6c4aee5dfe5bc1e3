"""Fleets in which some hold what others could run: work comes in heaps, processes come late, everybody claims ahead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import pytest

from sennit.errors import SeedFailed
from sennit.model.task import Claimed
from sennit.runtime.engine import Engine
from sennit.store.memory import MemoryStore
from sennit.store.memory_rows import Row, Rows
from sennit.submit.options import SubmitOptions
from sennit.testing.seeds import Scenario, run_seeds
from sennit.testing.simbodies import QUEUES, call
from sennit.testing.simchaos import Chaos
from sennit.testing.simfleet import Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore

SEEDS: Final = 10


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    logger = logging.getLogger("sennit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


class Uneven:
    """One seed: one process gets a heap of work of very different length, others come, die, freeze and stop meanwhile."""

    def __init__(self, random: Random, loop: SimLoop, truth: MemoryStore, *, meddle: Meddle | None = None) -> None:
        self.random = random
        shape = Shape(
            workers=random.randint(2, 4), slots={queue: random.randint(1, 3) for queue in QUEUES} | {"cpu": 1}, schedules=(),
            delay_s_max=random.choice((0.0, 0.01, 0.3)), crash_probability=random.choice((0.0, 0.001)),
            trouble_probability=random.choice((0.0, 0.03)), claim_ahead=random.choice((1, 3, 8, 30)),
        )  # fmt: skip
        self.fleet = Fleet(random, loop, shape, truth=truth, meddle=meddle)

    async def live(self) -> None:
        fleet, random = self.fleet, self.random
        fleet.start("w0")
        for name in fleet.names:
            fleet.loop.crash_points(name, fleet.shape.crash_probability)
        self.heap(random.randint(5, 30))
        await asyncio.sleep(random.choice((0.0, 1.0, 3.0)))
        for name in fleet.names[1:]:
            if random.random() < 0.7:
                fleet.start(name)
        chaos = Chaos(fleet, random)
        for _ in range(random.randint(4, 10)):
            await chaos.next()
            if random.random() < 0.5:
                self.heap(random.randint(1, 8))
        await fleet.calm()
        await fleet.settle()

    def heap(self, n: int) -> None:
        """Hand in tasks, most of them short."""
        calls = [
            call(
                [("work", self.random.choice((0.01, 0.05, 0.2, 20.0)))], is_preemptible=self.random.random() < 0.2,
                **SubmitOptions(
                    queue=self.random.choice(QUEUES), priority=self.random.choice(("low", "normal", "normal", "urgent")),
                    thread_id=self.random.choice((None, None, None, "heap")),
                ),
            )
            for _ in range(n)
        ]  # fmt: skip
        self.fleet.client.submit_calls(calls)


def sound(loop: SimLoop) -> MemoryStore:
    return MemoryStore(now_us=steady_us(loop))


async def uneven_fleet(random: Random, loop: SimLoop) -> None:
    await Uneven(random, loop, sound(loop)).live()


def test_no_process_is_idle_while_another_holds_work_and_nothing_begins_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = [0, 0]
    begin, take_over = Rows.begin, Rows.take_over

    def counted_begin(rows: Rows, row: Row, *, now_us: int) -> Claimed:
        begun[0] += 1
        return begin(rows, row, now_us=now_us)

    def counted_take_over(rows: Rows, row: Row, worker_id: int, *, now_us: int) -> Claimed:
        begun[1] += 1
        return take_over(rows, row, worker_id, now_us=now_us)

    monkeypatch.setattr(Rows, "begin", counted_begin)
    monkeypatch.setattr(Rows, "take_over", counted_take_over)

    run_seeds(uneven_fleet, range(SEEDS))

    assert begun[0] > 5 * SEEDS, "hardly anything was claimed ahead"
    assert begun[1] > SEEDS // 2, "hardly anything was taken over"


# ---------------------------------------------------------------- broken on purpose


async def nobody_takes_over(random: Random, loop: SimLoop) -> None:
    truth = sound(loop)
    truth._database.steal = lambda *_args, **_options: []  # type: ignore[method-assign]
    await Uneven(random, loop, truth).live()


async def what_begins_stays_marked(random: Random, loop: SimLoop) -> None:
    truth = sound(loop)

    def begin(row: Row, *, now_us: int) -> Claimed:
        task = Rows.begin(truth._rows, row, now_us=now_us)
        row.is_ahead = True
        return task

    truth._rows.begin = begin  # type: ignore[method-assign]
    await Uneven(random, loop, truth).live()


async def what_is_held_ahead_is_told_as_begun(random: Random, loop: SimLoop) -> None:
    truth = sound(loop)
    database, claim = truth._database, truth._rows.claim

    def told(worker_id: int, queue: str, n: int, *, is_ahead: bool = False, **options: Any) -> list[Claimed]:
        tasks = claim(worker_id, queue, n, is_ahead=is_ahead, **options)
        for seat in database.seats if is_ahead else ():
            if seat.worker_id == worker_id:
                seat.tell_claimed(tasks)
        return tasks

    truth._rows.claim = told  # type: ignore[method-assign]
    await Uneven(random, loop, truth).live()


async def a_worker_that_stops_keeps_what_it_holds(random: Random, loop: SimLoop) -> None:
    def meddle(_engine: Engine, store: SlowStore) -> None:
        store._seat.cancel_order = store._seat.wants.clear  # type: ignore[method-assign]

    await Uneven(random, loop, sound(loop), meddle=meddle).live()


MUTANTS: dict[Scenario, str] = {
    nobody_takes_over: "has had a slot",
    what_begins_stays_marked: "has begun before",
    what_is_held_ahead_is_told_as_begun: "that is not recorded|bodies in the",
    a_worker_that_stops_keeps_what_it_holds: "has stopped and still holds|has had a slot|for ever",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_exploration_finds_each_broken_rule(mutant: Scenario) -> None:
    with pytest.raises(SeedFailed, match=MUTANTS[mutant]):
        run_seeds(mutant, range(200))

"""Hundreds of simulated crowds: no queue takes more than it may, nobody is left outside, urgent tasks find a slot.

The second half breaks one part at a time and sees that the same exploration finds it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from sennit.errors import SeedFailed
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.task import Ending, Preempted, TaskSpec
from sennit.runtime.engine import Engine
from sennit.store.memory import MemoryStore
from sennit.store.memory_entry import Admission
from sennit.store.memory_rows import Row, Rows
from sennit.store.memory_turns import Turns
from sennit.testing.seeds import Scenario, run_seeds
from sennit.testing.simcrowd import crowd, hurry
from sennit.testing.simfleet import steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore

SEEDS_PER_TEST = 60
SEEN: Counter[str] = Counter()  # counted, and never looked at by a run


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The runtime says what goes wrong in a fleet, and here nearly everything does."""
    logger = logging.getLogger("sennit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def any_crowd(random: Random, loop: SimLoop) -> None:
    SEEN.update(+await crowd(random, loop))


async def any_hurry(random: Random, loop: SimLoop) -> None:
    SEEN.update(await hurry(random, loop))


@pytest.mark.parametrize("part", range(3))
def test_nobody_enters_beyond_a_bound_and_nobody_is_left_outside(part: int) -> None:
    SEEN.clear()

    explored = run_seeds(any_crowd, range(part * SEEDS_PER_TEST, (part + 1) * SEEDS_PER_TEST))

    assert explored.seeds == SEEDS_PER_TEST
    assert not {"full", "shed", "busy", "cached", "room is taken"} - SEEN.keys()


def test_an_urgent_task_need_not_wait_for_tasks_that_make_room_and_those_do_nothing_twice() -> None:
    SEEN.clear()

    explored = run_seeds(any_hurry, range(SEEDS_PER_TEST))

    assert explored.seeds == SEEDS_PER_TEST
    assert SEEN["preempted"] > SEEDS_PER_TEST


# ---------------------------------------------------------------- broken on purpose


def sound_store(loop: SimLoop, *, threads_max: int = 0) -> MemoryStore:
    return MemoryStore(now_us=steady_us(loop), bounds=Bounds(threads_max=threads_max))


async def store_knows_no_bound(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    truth._rows.load = lambda queue: 0  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_is_full_too_early(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    rows = truth._rows
    rows.load = lambda queue: Rows.load(rows, queue) + 1  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_forgets_who_waits_for_room(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    database = truth._database

    def forget() -> list[Any]:
        database.room_watches.clear()
        return []

    database._settle_rooms = forget  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_has_room_for_all_threads(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop, threads_max=1)
    turns = truth._rows.turns
    turns.admit = lambda threads_max: Turns.admit(turns, 0)  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_gives_room_back_to_nobody(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop, threads_max=1)
    truth._rows.turns.rest = lambda row: None  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_finds_nothing_cached(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    truth._rows.cache.find = lambda call: None  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_answers_for_another_call(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    cache = truth._rows.cache
    cache.find = lambda call: next((cached.task_id for cached in cache.calls.values()), None)  # type: ignore[method-assign]
    await crowd(random, loop, truth=truth)


async def store_sheds_whom_it_likes(random: Random, loop: SimLoop) -> None:
    def anybody(admission: Admission, spec: TaskSpec, n: int) -> list[Row]:
        rows = [row for row in admission._rows.tasks.values() if row.spec.queue == spec.queue]
        return [row for row in rows if row.state is State.READY and row.id not in admission._gone][:n]

    sound = Admission._last_below
    Admission._last_below = anybody  # type: ignore[method-assign, assignment]
    try:
        await crowd(random, loop)
    finally:
        Admission._last_below = sound  # type: ignore[method-assign]


async def worker_makes_no_room(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        engine._worker.preempt = lambda queue: False  # type: ignore[method-assign]

    await hurry(random, loop, meddle=meddle)


async def store_forgets_the_steps_of_who_made_room(random: Random, loop: SimLoop) -> None:
    def meddle(_engine: Engine, store: SlowStore) -> None:
        rows = store._rows

        def finish(row: Row, ending: Ending, *, now_us: int) -> None:
            if isinstance(ending, Preempted):
                row.steps.clear()
            Rows.finish(rows, row, ending, now_us=now_us)

        rows.finish = finish  # type: ignore[method-assign]

    await hurry(random, loop, meddle=meddle)


MUTANTS: dict[Scenario, str] = {
    store_knows_no_bound: "wait in queue",
    store_is_full_too_early: "were waiting in it",
    store_forgets_who_waits_for_room: "wait outside|still outside",
    store_has_room_for_all_threads: "have room",
    store_gives_room_back_to_nobody: "for ever",
    store_finds_nothing_cached: "stands for the same call",
    store_answers_for_another_call: "and it is none of",
    store_sheds_whom_it_likes: "was shed for no better one",
    worker_makes_no_room: "have not started",
    store_forgets_the_steps_of_who_made_room: "computes",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_exploration_of_crowds_finds_each_broken_part(mutant: Scenario) -> None:
    with pytest.raises(SeedFailed, match=MUTANTS[mutant]):
        run_seeds(mutant, range(100))

"""Thousands of fleets, each drawn from a seed, killed and frozen at any moment: every promise holds in all of them.

The second half breaks one part of the runtime at a time and sees that the same exploration finds it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import sennit
from sennit.errors import SeedFailed, StoreError, StoreFull
from sennit.model.agent import AgentView
from sennit.model.task import Claim, Claimed, Ending, ErrorInfo, GivenBack
from sennit.runtime.engine import Engine
from sennit.store.memory import MemoryStore
from sennit.store.memory_rows import Row, Rows
from sennit.sync.ack import Ack, in_event_loop
from sennit.testing.seeds import Scenario, run_seeds
from sennit.testing.simchaos import explore
from sennit.testing.simfleet import steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore

SEEDS_PER_TEST = 100
SRC = str(Path(sennit.__file__).parents[1])


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The runtime says what goes wrong in a fleet, and here nearly everything does."""
    logger = logging.getLogger("sennit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def any_fleet(random: Random, loop: SimLoop) -> None:
    await explore(random, loop)


@pytest.mark.parametrize("part", range(8))
def test_no_fleet_loses_repeats_or_holds_up_a_task(part: int) -> None:
    explored = run_seeds(any_fleet, range(part * SEEDS_PER_TEST, (part + 1) * SEEDS_PER_TEST))

    assert explored.seeds == SEEDS_PER_TEST
    assert explored.steps > 100 * SEEDS_PER_TEST


# ---------------------------------------------------------------- broken on purpose


async def store_accepts_stale_endings(random: Random, loop: SimLoop) -> None:
    def holder(rows: Rows, claim: Claim) -> Row | None:
        row = rows.tasks.get(claim.task_id)
        return row if row is not None and row.worker_id is not None else None

    await explore(random, loop, truth=broken_store(loop, holder=holder))


async def store_loses_a_release(random: Random, loop: SimLoop) -> None:
    def cascade(rows: Rows, ended: Any, *, now_us: int) -> None:
        Rows._cascade(rows, [row for row in ended if len(rows.children.get(row.id, ())) != 2], now_us=now_us)

    await explore(random, loop, truth=broken_store(loop, _cascade=cascade))


async def store_lets_dependants_run_early(random: Random, loop: SimLoop) -> None:
    def parents_done(rows: Rows, ended: Any, *, now_us: int) -> None:
        for row in ended:
            for child_id in rows.children.get(row.id, ()):
                rows.tasks[child_id].need = min(rows.tasks[child_id].need, 1)
        Rows._cascade(rows, ended, now_us=now_us)

    await explore(random, loop, truth=broken_store(loop, _cascade=parents_done))


async def store_serves_an_order_twice(random: Random, loop: SimLoop) -> None:
    def meddle(_engine: Engine, store: SlowStore) -> None:
        want = store._seat.want
        store._seat.want = lambda more, **now: want({queue: 2 * n for queue, n in more.items()}, **now)  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def store_forgets_a_step(random: Random, loop: SimLoop) -> None:
    def meddle(_engine: Engine, store: SlowStore) -> None:
        def save_step(claim: Claim, key: str, result: bytes) -> Ack[bool]:
            saved = SlowStore.save_step(store, claim, key, result)

            def forget(_: Ack[bool]) -> None:
                if "compute" in key:
                    store._rows.tasks[claim.task_id].steps.pop(key, None)

            saved.add_done_callback(forget)
            return saved

        store.save_step = save_step  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def store_hears_stale_attempts(random: Random, loop: SimLoop) -> None:
    def note_agent(store: SlowStore, claim: Claim, view: AgentView) -> Ack[bool]:
        store._rows.tasks[claim.task_id].agent = msgspec.structs.replace(view, attempt=claim.attempt)
        return Ack.done_with(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "note_agent", note_agent)
        await explore(random, loop)


async def dispatcher_does_not_hand_back(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        def ended(ending: Ending | None, claim: Claim) -> None:
            engine._dispatcher.ended(None if isinstance(ending, GivenBack) else ending, claim)

        engine._worker._on_ended = ended

    await explore(random, loop, meddle=meddle)


async def dispatcher_loses_the_slot_of_a_cancelled_attempt(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        def ended(ending: Ending | None, claim: Claim) -> None:
            if ending is not None:
                engine._dispatcher.ended(ending, claim)

        engine._worker._on_ended = ended

    await explore(random, loop, meddle=meddle)


async def body_lends_its_slot_once_per_wait(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        scope = engine.scope

        def broken(task: Claimed) -> Any:
            attempt: Any = scope(task)
            attempt.begin_wait, attempt.end_wait = attempt._lend, attempt._take_back
            return attempt

        engine.scope = broken  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def store_forgets_what_the_dead_held(random: Random, loop: SimLoop) -> None:
    truth = MemoryStore(now_us=steady_us(loop))

    def rescue(worker_id: int, why: str, *, now_us: int) -> int:
        truth._database.workers.pop(worker_id, None)
        return 0

    truth._database.rescue = rescue  # type: ignore[method-assign]
    await explore(random, loop, truth=truth)


async def store_knows_no_keys(random: Random, loop: SimLoop) -> None:
    class Forgetful(dict[Any, int]):
        def __contains__(self, key: object) -> bool:
            return False

        def get(self, key: object, default: Any = None) -> Any:
            return default

    truth = MemoryStore(now_us=steady_us(loop))
    truth._rows.keys = Forgetful()
    await explore(random, loop, truth=truth)


async def store_lets_a_replaced_task_live(random: Random, loop: SimLoop) -> None:
    def stop(rows: Rows, stopped: Any, event: Any, error: ErrorInfo, *, now_us: int) -> None:
        if "same key" not in error.message:
            Rows.stop(rows, stopped, event, error, now_us=now_us)

    await explore(random, loop, truth=broken_store(loop, stop=stop))


async def worker_sets_no_time_outs(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        engine._worker._timeouts.arm = lambda running: None  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def worker_does_not_hear_heartbeats(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        scope = engine.scope

        def deaf(task: Claimed) -> Any:
            attempt: Any = scope(task)
            attempt.beat = lambda: None
            return attempt

        engine.scope = deaf  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def store_runs_a_schedule_for_whoever_asks(random: Random, loop: SimLoop) -> None:
    class Whenever(int):
        def __ne__(self, other: object) -> bool:
            return False

    class Schedules(dict[str, int]):
        def get(self, name: str, default: Any = None) -> Any:
            return Whenever(self[name])

    truth = MemoryStore(now_us=steady_us(loop))
    truth._database.schedules = Schedules()
    await explore(random, loop, truth=truth)


async def planner_is_done_after_trouble(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, store: SlowStore) -> None:
        async def guarded(name: str) -> None:
            with suppress(StoreError):
                await engine._planner._run(name)

        def full_once(name: str, **_run: Any) -> Ack[bool]:
            del store.run_schedule
            return Ack.failed_with(StoreFull(f"no room for {name}"))

        engine._planner._guarded = guarded  # type: ignore[method-assign]
        store.run_schedule = full_once  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def planner_leaves_out_a_run(random: Random, loop: SimLoop) -> None:
    def meddle(_engine: Engine, store: SlowStore) -> None:
        run_schedule = store.run_schedule
        store.run_schedule = lambda name, **run: run_schedule(name, **run | {"specs": run["specs"][:1]})  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


async def sync_body_keeps_its_slot_while_it_waits(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        engine._on_loop = lambda method, claim: (lambda: method(claim)) if in_event_loop() else lambda: None  # type: ignore[method-assign]

    await explore(random, loop, meddle=meddle)


def broken_store(loop: SimLoop, **methods: Any) -> MemoryStore:
    """Return a store whose rows have some methods replaced."""
    store = MemoryStore(now_us=steady_us(loop))
    for name, method in methods.items():
        setattr(store._rows, name, method.__get__(store._rows))
    return store


MUTANTS: dict[Scenario, str] = {
    store_accepts_stale_endings: "was accepted, and the attempt is not held",
    store_loses_a_release: "for ever",
    store_lets_dependants_run_early: "started while its parent|started before task",
    store_serves_an_order_twice: "bodies in the",
    store_forgets_a_step: "computes",
    store_hears_stale_attempts: "AgentView.* was accepted, and the attempt is not held",
    dispatcher_does_not_hand_back: "has stopped and still holds",
    dispatcher_loses_the_slot_of_a_cancelled_attempt: "has had a slot|for ever|still runs",
    body_lends_its_slot_once_per_wait: "bodies in the",
    store_forgets_what_the_dead_held: "for ever",
    store_knows_no_keys: "was stored beside|became task",
    store_lets_a_replaced_task_live: "which is still",
    worker_sets_no_time_outs: "and its limit is",
    worker_does_not_hear_heartbeats: "ended as 'no sign of life",
    store_runs_a_schedule_for_whoever_asks: "fires twice",
    planner_is_done_after_trouble: "should have again",
    planner_leaves_out_a_run: "left some out",
    sync_body_keeps_its_slot_while_it_waits: "has had a slot|for ever",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_exploration_finds_each_broken_part(mutant: Scenario) -> None:
    with pytest.raises(SeedFailed, match=MUTANTS[mutant]):
        run_seeds(mutant, range(400))


def test_a_failing_seed_is_one_line_that_shows_it_again() -> None:
    with pytest.raises(SeedFailed) as failed:
        run_seeds(store_forgets_a_step, range(400))

    words = failed.value.reproduction.split()
    command = [sys.executable, *words[words.index("python") + 1 :]]
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": SRC})

    assert again.returncode == 1
    assert f"seed {failed.value.seed} failed" in again.stdout
    assert "computes" in again.stdout

"""Hundreds of simulated fleets whose bodies pay: nothing is paid twice behind anybody's back, whoever is killed or frozen.

The second half breaks one part at a time and sees that the same exploration finds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from random import Random
from typing import Any

import pytest

from sennit.errors import SeedFailed
from sennit.model.task import Claim
from sennit.store.memory import MemoryStore
from sennit.submit.attempt import Attempt
from sennit.submit.effect_ledger import Ledger
from sennit.sync.pending import Flow, got
from sennit.testing.seeds import Scenario, run_seeds
from sennit.testing.simaudit import Audit, Planned
from sennit.testing.simbodies import call
from sennit.testing.simfleet import LEASE_S, Fleet, Shape, steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simmarket import trade

SEEDS = 15
SHAPE = Shape(
    workers=2, slots={"a": 1, "b": 1, "cpu": 1}, schedules=(), delay_s_max=0.005, crash_probability=0.0,
    trouble_probability=0.0,
)  # fmt: skip
Live = Callable[[Random, SimLoop], Awaitable[Any]]
SEEN: Counter[str] = Counter()  # counted, and never looked at by a run


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The runtime says what goes wrong in a fleet, and here nearly everything does."""
    logger = logging.getLogger("sennit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def any_market(random: Random, loop: SimLoop) -> None:
    SEEN.update(+await trade(random, loop))


def test_no_effect_takes_place_twice_and_none_is_missing_when_its_task_has_succeeded() -> None:
    SEEN.clear()

    explored = run_seeds(any_market, range(SEEDS))

    assert explored.seeds == SEEDS
    never = {"told", "unknown", "repeated", "refused", "checked, done"} - SEEN.keys()
    assert not never


async def frozen_at_its_mark(random: Random, loop: SimLoop) -> None:
    """The first process is stopped when the mark is stored and it does not know yet; it wakes when another one has paid."""
    fleet = Fleet(random, loop, SHAPE, truth=MemoryStore(now_us=steady_us(loop)))
    audit, stopped = fleet.audit, asyncio.Event()

    def after_step(claim: Claim, result: bytes, *, held: bool, accepted: bool) -> None:
        Audit.after_step(audit, claim, result, held=held, accepted=accepted)
        if not stopped.is_set():
            stopped.set()
            loop.freeze("w0")
            loop.call_later(4 * LEASE_S, loop.thaw, "w0", context=Context())

    audit.after_step = after_step  # type: ignore[method-assign]
    fleet.start("w0")
    moves = [("pay", 1.0)]  # with a check
    [handle] = fleet.client.submit_calls([call(moves, queue="a", is_sync=random.random() < 0.5)])
    await handle.stored()
    audit.plans[handle.id] = Planned((), "fail", 0)
    await stopped.wait()
    fleet.start("w1")
    await asyncio.sleep(8 * LEASE_S)
    await fleet.settle()
    assert audit.seen["checked, not done"]


def test_an_attempt_that_was_frozen_at_its_mark_does_not_pay_when_others_have() -> None:
    run_seeds(frozen_at_its_mark, range(12))


# ---------------------------------------------------------------- broken on purpose


async def with_ledger(random: Random, loop: SimLoop, live: Live = trade, **methods: Any) -> None:
    """Live through a fleet whose ledgers have some methods replaced."""
    sound = {name: getattr(Ledger, name) for name in methods}
    for name, method in methods.items():
        setattr(Ledger, name, method)
    try:
        await live(random, loop)
    finally:
        for name, method in sound.items():
            setattr(Ledger, name, method)


async def nothing_is_written_before_the_call(random: Random, loop: SimLoop) -> None:
    def begin(_ledger: Ledger) -> Flow[None]:
        yield from ()

    await with_ledger(random, loop, begin=begin)


async def the_call_does_not_wait_for_its_mark(random: Random, loop: SimLoop) -> None:
    def begin(ledger: Ledger) -> Flow[None]:
        flow = SOUND_BEGIN(ledger)
        next(flow)  # it is sent
        flow.close()
        ledger._n += 1
        yield from ()

    await with_ledger(random, loop, begin=begin)


async def what_is_begun_is_begun_again(random: Random, loop: SimLoop) -> None:
    await with_ledger(random, loop, is_open=property(lambda _: False))


async def an_attempt_does_not_look_again_after_a_freeze(random: Random, loop: SimLoop) -> None:
    def look(_ledger: Ledger, _mark: str, _until_us: int) -> Flow[None]:
        yield from ()

    await with_ledger(random, loop, frozen_at_its_mark, _look_again=look)


async def an_attempt_trusts_a_lease_that_was_renewed_since(random: Random, loop: SimLoop) -> None:
    def look(ledger: Ledger, mark: str, _until_us: int) -> Flow[None]:
        yield from SOUND_LOOK(ledger, mark, ledger._lease_until_us())

    await with_ledger(random, loop, frozen_at_its_mark, _look_again=look)


async def results_are_not_committed(random: Random, loop: SimLoop) -> None:
    def commit(ledger: Ledger, value: Any) -> Flow[None]:
        attempt: Attempt = ledger.attempt
        yield from got(attempt.remember(f"elsewhere|{ledger.key}", value, "a result"))

    await with_ledger(random, loop, commit=commit)


SOUND_BEGIN, SOUND_LOOK = Ledger.begin, Ledger._look_again

MUTANTS: dict[Scenario, str] = {
    nothing_is_written_before_the_call: "pays move",
    the_call_does_not_wait_for_its_mark: "pays move",
    what_is_begun_is_begun_again: "pays move",
    an_attempt_does_not_look_again_after_a_freeze: "pays move",
    an_attempt_trusts_a_lease_that_was_renewed_since: "pays move",
    results_are_not_committed: "pays move|was told",
}


# Nothing is found before; it saves two seconds.
FIRST: dict[Scenario, int] = {the_call_does_not_wait_for_its_mark: 24, what_is_begun_is_begun_again: 8}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_exploration_finds_each_broken_part_of_the_ledger(mutant: Scenario) -> None:
    with pytest.raises(SeedFailed, match=MUTANTS[mutant]):
        run_seeds(mutant, range(FIRST.get(mutant, 0), 400))

"""Hundreds of simulated fleets that call providers: no call too many, none in a pause, nobody waits for ever.

The second half breaks one part at a time and sees that the same exploration finds it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from sennit.errors import SeedFailed
from sennit.limit.governor import Room
from sennit.limit.pause import PauseState
from sennit.model.provider import Permit, PermitRequest
from sennit.store.memory import MemoryStore
from sennit.store.memory_permits import Permits, Place, Waiting
from sennit.store.memory_providers import Providers
from sennit.submit.permits import HeldPermit
from sennit.sync.ack import Ack
from sennit.testing.seeds import Scenario, run_seeds
from sennit.testing.simcalls import calls
from sennit.testing.simfleet import steady_us
from sennit.testing.simloop import SimLoop

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


async def any_calls(random: Random, loop: SimLoop) -> None:
    SEEN.update(+await calls(random, loop))


@pytest.mark.parametrize("part", range(3))
def test_no_call_is_made_beyond_a_limit_or_in_a_pause_and_nobody_waits_for_ever(part: int) -> None:
    SEEN.clear()

    explored = run_seeds(any_calls, range(part * SEEDS_PER_TEST, (part + 1) * SEEDS_PER_TEST))

    assert explored.seeds == SEEDS_PER_TEST
    assert not {"answers", "waited", "fallback", "burst", "window", "error", "not used", "probes"} - SEEN.keys()


# ---------------------------------------------------------------- broken on purpose


def sound_store(loop: SimLoop) -> tuple[MemoryStore, Providers]:
    store = MemoryStore(now_us=steady_us(loop))
    return store, store._rows.providers


async def store_counts_no_permits(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)
    providers.permits.in_use = lambda provider, model=None: 0  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_counts_no_permits_of_models(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)

    def in_use(provider: str, model: str | None = None) -> int:
        return 0 if model else Permits.in_use(providers.permits, provider)

    providers.permits.in_use = in_use  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_leaves_the_dead_their_permits(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)
    providers.drop_holder = lambda holder: None  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_lets_the_dead_wait(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)
    providers.abandon = lambda holder, *, is_gone: []  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_looks_only_when_somebody_comes(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)
    serve, line_up = providers.serve, providers.line_up

    def line_up_and_serve(request: PermitRequest, *, holder: int) -> Ack[Permit]:
        providers.serve = serve  # type: ignore[method-assign]
        ack = line_up(request, holder=holder)
        providers.serve = lambda: None  # type: ignore[method-assign]
        return ack

    providers.line_up = line_up_and_serve  # type: ignore[method-assign]
    providers.serve = lambda: None  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_knows_no_pause(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)

    def room(place: Place, tokens: int) -> Room:
        """All other limits hold."""
        known = providers.known.get(place[0])
        if known is None:
            return Providers._room(providers, place, tokens)
        pause, known.state.pause = known.state.pause, PauseState()
        try:
            return Providers._room(providers, place, tokens)
        finally:
            known.state.pause = pause

    providers._room = room  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_sets_no_alarm(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)
    providers.wakes = lambda tasks: iter(())  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_lets_tasks_go_before_calls(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)
    serve = providers.serve

    def serve_and_forget() -> None:
        serve()
        providers.blocked = {}

    providers.serve = serve_and_forget  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def store_serves_the_last_first(random: Random, loop: SimLoop) -> None:
    truth, providers = sound_store(loop)

    def in_line() -> list[Waiting]:
        return Permits.in_line(providers.permits)[::-1]

    providers.permits.in_line = in_line  # type: ignore[method-assign]
    await calls(random, loop, truth=truth)


async def worker_blames_the_attempt(random: Random, loop: SimLoop) -> None:
    sound = HeldPermit.throttled_by
    HeldPermit.throttled_by = lambda self, error: ""  # type: ignore[method-assign]
    try:
        await calls(random, loop)
    finally:
        HeldPermit.throttled_by = sound  # type: ignore[method-assign]


MUTANTS: dict[Scenario, str] = {
    store_counts_no_permits: "are out",
    store_counts_no_permits_of_models: "of its model",
    store_leaves_the_dead_their_permits: "for ever|still|in use",
    store_lets_the_dead_wait: "for ever|in use",
    store_looks_only_when_somebody_comes: "there has been room|for ever|has had a slot|a task, and call",
    store_knows_no_pause: "before the end of a pause|is to find out",
    store_sets_no_alarm: "there has been room|for ever|has had a slot",
    store_lets_tasks_go_before_calls: "to a task, and call",
    store_serves_the_last_first: "before it",
    worker_blames_the_attempt: "of its calls have failed",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_exploration_of_calls_finds_each_broken_part(mutant: Scenario) -> None:
    with pytest.raises(SeedFailed, match=MUTANTS[mutant]):
        run_seeds(mutant, range(300))

"""Hundreds of simulated conversations: turns, state and questions hold, whoever is killed, frozen, late or twice.

The second half breaks one part at a time and sees that the same exploration finds it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from sennit.errors import SeedFailed
from sennit.model.task import Claimed, Ending, Parked
from sennit.model.thread import Answer, StateView, StateWrite
from sennit.runtime.engine import Engine
from sennit.store.memory import MemoryStore
from sennit.store.memory_asks import Ask, Asks
from sennit.store.memory_row import Row
from sennit.store.memory_states import States
from sennit.store.memory_turns import Turns
from sennit.testing.seeds import Scenario, run_seeds
from sennit.testing.simfleet import steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore
from sennit.testing.simtalks import converse

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


async def any_conversation(random: Random, loop: SimLoop) -> None:
    SEEN.update(+await converse(random, loop))


@pytest.mark.parametrize("part", range(4))
def test_no_conversation_forgets_or_repeats_what_was_said_nor_starts_out_of_turn(part: int) -> None:
    SEEN.clear()

    explored = run_seeds(any_conversation, range(part * SEEDS_PER_TEST, (part + 1) * SEEDS_PER_TEST))

    assert explored.seeds == SEEDS_PER_TEST
    never = {
        "conflicts", "saved", "rolled back", "outside updates", "busy", "room is taken", "saw answered", "saw denied",
        "saw expired", "AskClosed", "AskStale", "kept signals heard",
    } - SEEN.keys()  # fmt: skip
    assert not never


# ---------------------------------------------------------------- broken on purpose


def sound_store(loop: SimLoop) -> MemoryStore:
    return MemoryStore(now_us=steady_us(loop))


async def store_gives_everybody_the_turn(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    truth._rows.turns._wait = lambda row: None  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_gives_the_turn_to_the_last(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    turns = truth._rows.turns

    def pass_on() -> Iterator[Row]:
        for thread_id in turns._free:
            able = [row.id for row in turns.line(thread_id) if row.need == 1]  # they wait for nothing but the turn
            if able:
                turns.lines[thread_id].move_to_end(able[-1], last=False)
        return Turns.pass_on(turns)

    turns.pass_on = pass_on  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_loses_a_turn(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    turns = truth._rows.turns

    def pass_on() -> Iterator[Row]:
        turns._free.clear()
        return iter(())

    turns.pass_on = pass_on  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_takes_late_writes(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    states = truth._rows.states

    def plan(writes: Sequence[StateWrite], *, task_id: int | None, now_us: int, check: Any) -> list[StateView]:
        present: dict[tuple[str, str], int] = {}
        taken = []
        for write in writes:
            chain = (write.thread_id, write.name)
            expected = present.get(chain, states.state(*chain).version) if write.expected >= 0 else write.expected
            present[chain] = expected + 1
            taken.append(msgspec.structs.replace(write, expected=expected))
        return States.plan(states, taken, task_id=task_id, now_us=now_us, check=check)

    states.plan = plan  # type: ignore[method-assign, assignment]
    await converse(random, loop, truth=truth)


async def store_records_a_late_success_without_its_writes(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    truth._rows.states.store = lambda planned, **_: list(planned)  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def worker_drops_a_late_success(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        engine._worker.moved = lambda claim, again: None  # type: ignore[method-assign]

    await converse(random, loop, meddle=meddle)


async def body_makes_saved_changes_again(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        scope = engine.scope

        def forgetful(task: Claimed) -> Any:
            attempt: Any = scope(task)
            attempt.home.drafts._may_be_saved = False
            attempt.home.drafts._operation = lambda change: f"attempt {task.attempt} of {task.id}: {change.key}"
            return attempt

        engine.scope = forgetful  # type: ignore[method-assign]

    await converse(random, loop, meddle=meddle)


async def store_leaves_an_ask_open(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    asks = truth._rows.asks

    def close(ask: Ask, row: Row, answer: Answer, *, now_us: int) -> None:
        Asks.close(asks, ask, row, answer, now_us=now_us)
        ask.state = "open" if ask.spec.kind == "ask" else ask.state

    asks.close = close  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_tells_the_body_another_answer(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    asks = truth._rows.asks

    def close(ask: Ask, row: Row, answer: Answer, *, now_us: int) -> None:
        Asks.close(asks, ask, row, answer, now_us=now_us)
        row.steps[ask.spec.key] = msgspec.json.encode(Answer(state="answered", value=msgspec.Raw(b"-5")))

    asks.close = close  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_lets_nothing_expire(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    truth._rows.asks._set_expiry = lambda ask, *, now_us: None  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_tells_nobody_of_the_inbox(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    truth._database._settle_inbox = list  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_hands_out_a_signal_twice(random: Random, loop: SimLoop) -> None:
    truth = sound_store(loop)
    asks = truth._rows.asks

    def take_signal(ask: Ask, row: Row, *, now_us: int) -> None:
        kept = list(asks.signals)
        Asks._take_signal(asks, ask, row, now_us=now_us)
        asks.signals = kept

    asks._take_signal = take_signal  # type: ignore[method-assign]
    await converse(random, loop, truth=truth)


async def store_keeps_no_signal(random: Random, loop: SimLoop) -> None:
    class Leaky(list[Any]):
        def append(self, signal: Any) -> None:
            del signal

    truth = sound_store(loop)
    truth._rows.asks.signals = Leaky()
    await converse(random, loop, truth=truth)


async def dispatcher_keeps_the_slot_of_a_suspended_task(random: Random, loop: SimLoop) -> None:
    def meddle(engine: Engine, _store: SlowStore) -> None:
        dispatcher = engine._dispatcher

        def ended(ending: Ending | None, claim: Any) -> None:
            queue = dispatcher._attempts[claim]
            dispatcher.ended(ending, claim)
            if isinstance(ending, Parked):
                dispatcher._freed[queue] -= 1

        engine._worker._on_ended = ended

    await converse(random, loop, meddle=meddle)


MUTANTS: dict[Scenario, str] = {
    store_gives_everybody_the_turn: "are held at once|started before task",
    store_gives_the_turn_to_the_last: "started before task",
    store_loses_a_turn: "none of them has the turn",
    store_takes_late_writes: "has lost an update",
    store_records_a_late_success_without_its_writes: "are lost",
    worker_drops_a_late_success: "has not tried again",
    body_makes_saved_changes_again: "an update twice",
    store_leaves_an_ask_open: "was decided twice|is recorded",
    store_tells_the_body_another_answer: "is recorded",
    store_lets_nothing_expire: "its ask is|for ever",
    store_tells_nobody_of_the_inbox: "its ask is|for ever",
    store_hands_out_a_signal_twice: "was heard|still kept",
    store_keeps_no_signal: "kept signals are gone",
    dispatcher_keeps_the_slot_of_a_suspended_task: "has had a slot|for ever",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_exploration_of_conversations_finds_each_broken_part(mutant: Scenario) -> None:
    with pytest.raises(SeedFailed, match=MUTANTS[mutant]):
        run_seeds(mutant, range(100))

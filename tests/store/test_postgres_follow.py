"""Who follows on PostgreSQL wakes for each line that is logged and each view of an agent; nobody waits longer for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from sennit.model.agent import AgentView
from sennit.model.task import Claim, LogLine
from sennit.store.operations import NoteAgent, SaveStep
from sennit.store.postgres import PostgresStore
from sennit.store.postgres_hot import HotWriter
from sennit.store.postgres_wire import Wire
from sennit.store.writer import Item
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import TIMEOUT_S, Rig, got, running_loop

VIEW = AgentView(task_id=0, agent="work", status="working")


@pytest.fixture
def new_rig(postgres_url: str) -> Iterator[Callable[..., tuple[PostgresStore, Rig]]]:
    with ExitStack() as stack:
        loop = stack.enter_context(running_loop())

        def opened(**options: Any) -> tuple[PostgresStore, Rig]:
            store = stack.enter_context(closing(PostgresStore(postgres_url, durability="normal", **options)))
            return store, Rig(store, loop)

        yield opened


def log(store: PostgresStore, claim: Claim) -> Ack[None]:
    return store.log([LogLine(task_id=claim.task_id, attempt=1, at_us=1, level="info", text="a line")])


def note(store: PostgresStore, claim: Claim) -> Ack[bool]:
    return store.note_agent(claim, VIEW)


@pytest.mark.parametrize("say", [log, note])
@pytest.mark.parametrize("hand_over", [True, False], ids=["side by side", "alone"])
@pytest.mark.parametrize("sockets", [True, False], ids=["near", "far"])
def test_who_follows_wakes_each_time(
    new_rig: Callable[..., tuple[PostgresStore, Rig]],
    say: Callable[[PostgresStore, Claim], Ack[object]],
    hand_over: bool,  # noqa: FBT001
    sockets: bool,  # noqa: FBT001
) -> None:
    store, rig = new_rig(hand_over=hand_over, sockets=sockets)
    task = rig.start()
    with ThreadPoolExecutor(1) as os_thread, store.follow() as follower:
        follower.wait()  # it is woken once when it has begun to listen
        for _ in range(2):
            woken = os_thread.submit(follower.wait)
            got(say(store, task.claim))
            try:
                woken.result(TIMEOUT_S)
            except TimeoutError:
                follower.wake()  # or its OS thread waits for ever
                raise


def test_a_note_that_nobody_follows_takes_no_round_trip_more_than_a_step(
    new_rig: Callable[..., tuple[PostgresStore, Rig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rig = new_rig()
    task = rig.start()
    awaited: list[Wire] = []
    round_trips: dict[type, int] = {}
    wait_for_answers, do_all = Wire.wait_for_answers, HotWriter._do_all

    def counted(wire: Wire) -> None:
        awaited.append(wire)
        wait_for_answers(wire)

    def noted(writer: HotWriter, connection: Any, todo: list[Item], *rest: Any) -> None:
        before = len(awaited)
        do_all(writer, connection, todo, *rest)
        round_trips.update({type(operation): len(awaited) - before for operation, _ in todo})

    monkeypatch.setattr(Wire, "wait_for_answers", counted)
    monkeypatch.setattr(HotWriter, "_do_all", noted)
    assert got(store.save_step(task.claim, "a step", b"1"))
    assert got(store.note_agent(task.claim, VIEW))

    assert round_trips[NoteAgent] == round_trips[SaveStep] > 0

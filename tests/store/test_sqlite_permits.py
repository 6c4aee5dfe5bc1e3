"""Permits where SQLite does it in its own way: many operations in one transaction, undone ones, lanes, own transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from sennit.errors import AskNotFound, QueueFull, StoreFull
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.provider import CallReport, ProviderSpec, Rates
from sennit.model.task import GivenBack, Parked, Ref, Succeeded
from sennit.model.thread import Answer, AskSpec, Decision
from sennit.store.database import Connection
from sennit.store.migrate import _split, migrate
from sennit.store.sql import migrations
from sennit.store.sqlite import SqliteStore
from sennit.sync.ack import Ack
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got, running_loop


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def open_rig(path: Path, clock: VirtualClock) -> Iterator[Callable[[], Rig]]:
    with ExitStack() as stack:
        loop = stack.enter_context(running_loop())

        def open_() -> Rig:
            store = SqliteStore(path, durability="normal", now_us=clock.now_us)
            return Rig(stack.enter_context(closing(store)), loop)

        yield open_


@pytest.fixture
def rig(open_rig: Callable[[], Rig]) -> Iterator[Rig]:
    rig = open_rig()
    yield rig
    rig.check()


def store_of(rig: Rig) -> SqliteStore:
    assert isinstance(rig.store, SqliteStore)
    return rig.store


def together(rig: Rig, *operations: Callable[[], Ack[Any]]) -> list[Ack[Any]]:
    """Have what these hand in share one transaction."""
    rig.store.take_ids(1)  # now, or the first operation would wait for ids, and these for a transaction of their own
    gate, in_time = threading.Event(), list[bool]()
    held = store_of(rig).put(lambda _c, _e: in_time.append(gate.wait(10)))
    handed_in = [operation() for operation in operations]
    gate.set()
    with suppress(StoreFull):  # what they share may be given up, for one of them
        got(held)
    assert in_time == [True], "an operation has waited for what was to share a transaction with it"
    return handed_in


def number(rig: Rig, table: str) -> int:
    found: int = got(store_of(rig).put(lambda c, _: c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]))
    return found


# ---------------------------------------------------------------- one transaction


def test_what_takes_and_returns_in_one_transaction_is_served_in_order(rig: Rig) -> None:
    rig.provider(parallel=2)
    held = [rig.permit(), rig.permit()]

    first, _, _, second, third = together(
        rig,
        rig.line_up,
        lambda: rig.store.return_permit(held[0].id, CallReport()),
        lambda: rig.store.return_permit(held[1].id, CallReport()),
        rig.line_up,
        rig.line_up,
    )

    assert got(first)
    assert got(second)
    assert rig.waits(third)
    assert (rig.pool().in_use, rig.pool().granted, rig.pool().succeeded) == (2, 4, 2)


def test_an_operation_that_is_undone_leaves_nothing_of_it_with_the_provider(rig: Rig) -> None:
    """The state of a provider is kept over the operations of a transaction; the savepoint of one must hold for it too."""
    rig.provider(parallel=3)
    task = rig.start(provider="p", thread_id="t")
    refused = Entry(on_busy="interrupt", queue_max=1)

    ok, full, also_ok = together(
        rig,
        rig.line_up,
        # Interrupting the task frees its permit; then the batch is refused, and all of that has not happened.
        lambda: rig.store.submit(
            [rig.spec(thread_id="t", entry=refused), rig.spec(entry=refused), rig.spec(entry=refused)]
        ),
        rig.line_up,
    )

    assert got(ok)
    assert got(also_ok)
    with pytest.raises(QueueFull):
        got(full)
    assert rig.state(task.id) is State.RUNNING
    assert (rig.pool().in_use, rig.pool().granted) == (3, 3)
    rig.succeed(task)
    assert rig.pool().in_use == 2


def test_a_success_whose_children_are_refused_frees_its_permit_once(rig: Rig) -> None:
    rig.provider(parallel=1, rates=Rates(tpm=6000))
    task = rig.start(provider="p")
    child = rig.spec(parents=(Ref(10**12),))

    assert rig.finish(Succeeded(task.claim, b"1", children=(child,))) == [True]

    assert rig.state(task.id) is State.FAILED
    assert (rig.pool().in_use, rig.pool().granted) == (0, 1)


def test_an_operation_that_fails_beside_it_takes_no_permit_back(rig: Rig) -> None:
    rig.provider()

    asked, answered = together(
        rig, rig.line_up, lambda: rig.store.answer([Decision(ask_id=99, answer=Answer(state="denied"))])
    )

    assert got(asked)
    with pytest.raises(AskNotFound):
        got(answered)
    assert rig.pool().in_use == 1


def test_a_transaction_that_finds_no_room_on_the_disk_gives_no_permit(rig: Rig) -> None:
    rig.provider(parallel=9)

    def pages(limit: int) -> None:
        got(store_of(rig).put(lambda c, _: c.execute(f"PRAGMA max_page_count = {limit}").fetchall()))

    pages(got(store_of(rig).put(lambda c, _: c.execute("PRAGMA page_count").fetchone()[0])))
    big = rig.spec(payload=b"x" * 100_000)
    asked, stored = together(rig, rig.line_up, lambda: rig.store.submit([big]))
    with pytest.raises(StoreFull):
        got(stored)
    taken = 0
    try:
        got(asked)
        taken = 1
    except StoreFull:
        pass  # the whole transaction was given up
    pages(2**30)

    assert (rig.pool().in_use, rig.pool().waiting) == (taken, 0)
    assert rig.permit().provider == "p"


# ---------------------------------------------------------------- the caller's own transaction


@pytest.mark.parametrize("committed", [True, False])
def test_a_task_that_is_interrupted_in_the_callers_own_transaction_frees_its_permit_with_it(
    rig: Rig, path: Path, *, committed: bool
) -> None:
    rig.provider()
    rig.start(provider="p", thread_id="t")
    call = rig.line_up()
    assert rig.waits(call)

    with closing(sqlite3.connect(path, isolation_level=None)) as mine:
        mine.execute("BEGIN IMMEDIATE")
        store_of(rig).submit_in(mine, [rig.spec(thread_id="t", entry=Entry(on_busy="interrupt"))])
        mine.execute("COMMIT" if committed else "ROLLBACK")

    if committed:
        assert got(call).provider == "p"
    else:
        assert rig.waits(call)
    assert (rig.pool().in_use, rig.pool().waiting) == ((1, 0) if committed else (1, 1))


# ---------------------------------------------------------------- lanes


def test_what_is_shed_is_the_last_of_all_lanes(rig: Rig) -> None:
    rig.provider(parallel=9)
    ids = [rig.put(provider=provider, priority=3) for provider in ("p", "", "p/m", "q", "")]

    rig.put(priority=1, entry=Entry(queue_max=4, on_full="shed"))

    assert rig.states(*ids) == [State.READY] * 3 + [State.CANCELLED] * 2


def test_an_urgent_task_whose_provider_is_full_presses_nobody(rig: Rig) -> None:
    rig.provider()
    rig.permit()
    rig.put(provider="p", priority=Priority.URGENT)
    rig.hear_all()
    assert rig.heard.pressed == []

    rig.put(provider="free", priority=Priority.URGENT)
    rig.heard.wait_for(lambda: rig.heard.pressed == ["q"])


def test_a_fan_out_that_needs_permits_stands_in_its_lane(rig: Rig) -> None:
    rig.provider(parallel=2)
    ids = rig.submit(*(rig.spec(provider="p") for _ in range(50)))

    assert [task.id for task in rig.claim(9)] == ids[:2]
    assert rig.pool().ready == 48


def test_a_task_that_needs_a_permit_never_runs_straight(rig: Rig) -> None:
    rig.provider()
    rig.store.want("q", 2)
    first, second = rig.put(provider="p"), rig.put(provider="p")

    rig.heard.wait_for(lambda: bool(rig.heard.claimed))
    (task,) = rig.heard.claimed
    assert (task.id, task.permit and task.permit.provider) == (first, "p")
    assert rig.state(second) is State.READY


# ---------------------------------------------------------------- waits


def test_waits_are_told_apart(rig: Rig, clock: VirtualClock) -> None:
    rig.provider()
    parent, held = rig.start(), rig.permit()
    task_id = rig.put(after=[parent.id], provider="p")
    clock.advance(1)
    rig.succeed(parent)
    clock.advance(2)  # in the queue: nobody wants it
    assert rig.claim() == []
    clock.advance(4)
    rig.give_back(held)
    task = rig.run(task_id)
    assert (task.permit and task.permit.waited_us, task.permit and task.permit.reason) == (4 * SECOND_US, "limit")
    clock.advance(8)
    rig.park(task, AskSpec(key="k"))
    clock.advance(16)
    got(rig.store.resume([task_id]))
    task = rig.run(task_id)
    got(rig.store.return_permit(task_id))
    held = rig.permit()
    call = rig.line_up(task_id=task_id)
    assert rig.waits(call)
    clock.advance(32)
    rig.give_back(held)
    got(call)
    rig.succeed(task)

    us = {"dependencies": 1, "queue": 2, "limit": 4 + 32, "human": 16}
    assert got(rig.store.waits(task_id)) == {reason: s * SECOND_US for reason, s in us.items()}
    got(rig.store.prune(before_us=clock.now_us() + 1, limit=99))
    assert (number(rig, "sennit_wait"), number(rig, "sennit_begun")) == (0, 0)
    with pytest.raises(LookupError):
        got(rig.store.waits(task_id))


@pytest.mark.parametrize(("reason", "what"), [("budget", "budget"), ("event", "event"), ("", "human")])
def test_a_suspension_waits_for_what_it_says(rig: Rig, clock: VirtualClock, reason: str, what: str) -> None:
    task = rig.start()
    rig.finish(Parked(task.claim, reason))
    clock.advance(5)
    got(rig.store.resume([task.id]))

    assert got(rig.store.waits(task.id)) == {what: 5 * SECOND_US}


def test_the_time_in_which_a_task_ran_before_it_was_given_back_is_no_wait(rig: Rig, clock: VirtualClock) -> None:
    rig.provider()
    task = rig.start(provider="p")
    behind = rig.put(provider="p")
    assert rig.claim() == []  # the lane is held back from now on
    clock.advance(60)
    rig.finish(GivenBack(task.claim))
    clock.advance(3)
    again = rig.run(task.id)

    assert again.permit is not None
    assert again.permit.waited_us == 3 * SECOND_US
    assert got(rig.store.waits(behind)) == {}


# ---------------------------------------------------------------- rows


def test_verify_finds_permits_that_nobody_will_free(open_rig: Callable[[], Rig]) -> None:
    rig = open_rig()
    rig.provider(parallel=3)
    task = rig.start(provider="p")
    permit = rig.permit()

    def break_it(connection: Connection, _: object) -> None:
        connection.execute("DELETE FROM sennit_running WHERE id = ?", (task.id,))
        connection.execute("UPDATE sennit_permit SET worker_id = 4711 WHERE id = ?", (permit.id,))

    got(store_of(rig).put(break_it))

    broken = got(rig.store.verify())
    assert f"task {task.id} has a permit of p, and does not run" in broken
    assert f"permit {permit.id} of p is of process 4711, which is not registered" in broken


def test_what_a_store_of_before_had_ready_is_claimed_in_order_after_the_migration(
    path: Path, open_rig: Callable[[], Rig]
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as before:
        before.execute("PRAGMA journal_mode = WAL")
        for version, _, script in migrations("sqlite"):
            if version < 3:
                for statement in _split(script):
                    before.execute(statement)
        before.execute("PRAGMA user_version = 2")
        for task_id, order_us in ((1, 30), (2, 10), (3, 20)):
            before.execute(
                "INSERT INTO sennit_task (id, handler, queue, priority, parents, on_parent_failed, payload, crashes_max, "
                "delay_us, created_us) VALUES (?, 'work', 'q', 2, 0, 'fail', x'', 3, 0, 1)",
                (task_id,),
            )
            before.execute("INSERT INTO sennit_ready VALUES ('q', ?, ?, 1, 2, 0)", (order_us, task_id))
        before.execute("UPDATE sennit_ledger SET n = 3 WHERE name = 'submitted'")
        before.execute("UPDATE sennit_meta SET value = 4 WHERE name = 'next_id'")
        assert migrate(before, path) == len(migrations("sqlite")) - 2

    rig = open_rig()

    assert rig.view(1).provider == ""
    assert [(task.id, task.attempt, task.failures) for task in rig.claim(9)] == [(2, 2, 2), (3, 2, 2), (1, 2, 2)]
    rig.check()


def test_a_restart_keeps_what_was_learnt_and_who_waits_is_gone(
    open_rig: Callable[[], Rig], clock: VirtualClock
) -> None:
    first = open_rig()
    got(first.store.declare_provider(ProviderSpec(name="p", rates=Rates(parallel=2))))
    first.give_back(first.permit(), CallReport(outcome="throttled", status=429, pause="window", retry_after_s=60))
    first.line_up()
    first.store.close()

    second = open_rig()

    assert (second.pool().reason, second.pool().waiting, second.pool().throttled) == ("pause", 0, 1)
    clock.advance(100)
    assert second.permit().is_probe

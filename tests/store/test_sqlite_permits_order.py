"""Permits of SQLite in bad order: what shares a transaction with a report, and processes that come, go and stay."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from sennit.errors import PermitLost, ProviderNotFound
from sennit.model.admission import Entry
from sennit.model.provider import CallReport
from sennit.store.database import Connection
from sennit.store.liveness import is_alive
from sennit.store.moves import look
from sennit.store.sqlite import SqliteStore
from sennit.sync.ack import Ack
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got, running_loop

HOUR = CallReport(outcome="throttled", status=429, pause="window", retry_after_s=3600)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def open_rig(path: Path, clock: VirtualClock) -> Iterator[Callable[..., Rig]]:
    with ExitStack() as stack:
        loop = stack.enter_context(running_loop())

        def open_(**options: Any) -> Rig:
            store = SqliteStore(path, durability="normal", now_us=clock.now_us)
            return Rig(stack.enter_context(closing(store)), loop, **options)

        yield open_


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
    got(held)
    assert in_time == [True], "an operation has waited for what was to share a transaction with it"
    return handed_in


# ---------------------------------------------------------------- one transaction


def test_a_fire_behind_the_report_of_an_empty_quota_lets_nobody_through(
    open_rig: Callable[..., Rig], clock: VirtualClock
) -> None:
    rig = open_rig()
    rig.provider()
    held, waiting = rig.permit(), rig.line_up()
    got(rig.store.steer_provider("p", "pause", until_us=clock.now_us() + SECOND_US))
    rig.provider(parallel=2)
    assert rig.waits(waiting)
    clock.advance(5)

    returned, _ = together(rig, lambda: rig.store.return_permit(held.id, HOUR), rig.store.fire)

    assert got(returned)
    assert rig.waits(waiting)


def test_a_claim_behind_the_report_of_an_empty_quota_takes_no_task(open_rig: Callable[..., Rig]) -> None:
    rig = open_rig()
    rig.provider()
    held = rig.permit()
    rig.put(provider="p")

    returned, claimed = together(
        rig, lambda: rig.store.return_permit(held.id, HOUR), lambda: rig.store.claim(rig.worker_id, "q", 1)
    )

    assert got(returned)
    assert got(claimed) == []


def test_a_provider_that_is_forgotten_behind_the_return_of_its_last_permit_stays_forgotten(
    open_rig: Callable[..., Rig],
) -> None:
    rig = open_rig()
    rig.provider()
    held = rig.permit()

    returned, forgotten = together(
        rig, lambda: rig.store.return_permit(held.id, CallReport()), lambda: rig.store.forget_provider("p")
    )

    assert (got(returned), got(forgotten)) == (True, True)
    assert got(rig.store.providers()) == []


def test_a_read_of_several_statements_sees_one_moment(open_rig: Callable[..., Rig]) -> None:
    rig = open_rig()
    first, second = threading.Event(), threading.Event()

    def count_twice(connection: Connection) -> list[int]:
        found = [connection.execute("SELECT count(*) FROM sennit_provider").fetchone()[0]]
        first.set()
        assert second.wait(10)
        return [*found, connection.execute("SELECT count(*) FROM sennit_provider").fetchone()[0]]

    counted = store_of(rig)._reader.put(count_twice)
    assert first.wait(10)
    rig.provider()
    second.set()

    assert got(counted) == [0, 0]
    with pytest.raises(ProviderNotFound):
        got(rig.store.providers(["nobody"]))
    assert len(got(rig.store.providers())) == 1  # the next one begins anew


# ---------------------------------------------------------------- several processes


def test_a_call_that_waits_for_an_attempt_that_was_interrupted_in_a_transaction_of_the_callers_own_hears_of_it(
    open_rig: Callable[..., Rig], path: Path
) -> None:
    rig, other = open_rig(), open_rig()
    rig.provider()
    task = other.start(provider="p", thread_id="t")
    lost = other.line_up(task_id=task.id)
    assert other.waits(lost)
    spec = rig.spec(thread_id="t", entry=Entry(on_busy="interrupt"))

    with closing(sqlite3.connect(path, isolation_level=None)) as mine:
        mine.execute("BEGIN IMMEDIATE")
        store_of(rig).submit_in(mine, [spec])
        mine.execute("COMMIT")

    with pytest.raises(PermitLost):
        got(lost)


def test_a_worker_that_leaves_keeps_the_permits_of_its_calls_for_as_long_as_it_lives(
    open_rig: Callable[..., Rig], clock: VirtualClock
) -> None:
    rig, witness = open_rig(lease_s=10), open_rig()
    rig.provider()
    held = rig.permit()

    got(rig.store.leave())
    got(rig.line_up("another"))  # it is known again, by another id
    folder = store_of(rig)._desk.members.folder
    for worker in got(store_of(witness).put(lambda c, _: look.workers(c))):
        if worker.id != witness.worker_id and not is_alive(folder, str(worker.id)):
            got(witness.store.rescue(worker.id))
    clock.advance(60)
    witness.fire()

    assert witness.pool().in_use == 1
    rig.give_back(held)
    assert witness.pool().in_use == 0


def test_a_worker_that_leaves_while_a_call_of_it_waits_gets_its_permit(open_rig: Callable[..., Rig]) -> None:
    rig, leaving = open_rig(), open_rig()
    rig.provider()
    held, waiting = rig.permit(), leaving.line_up()
    assert leaving.waits(waiting)

    got(leaving.store.leave())
    rig.give_back(held)

    assert got(waiting).provider == "p"


def test_a_worker_that_leaves_while_it_waits_for_a_task_hears_of_its_end(open_rig: Callable[..., Rig]) -> None:
    rig, leaving = open_rig(), open_rig()
    task = rig.start()
    outcome = leaving.store.watch(task.id)
    got(leaving.store.waits(task.id))

    got(leaving.store.leave())
    rig.succeed(task)

    assert got(outcome).result == b"1"


def test_a_worker_that_was_taken_for_dead_hears_of_a_task_that_ended_meanwhile(
    open_rig: Callable[..., Rig], clock: VirtualClock
) -> None:
    rig, frozen = open_rig(), open_rig(lease_s=10)
    frozen.start()
    task = rig.start()
    outcome = frozen.store.watch(task.id)
    got(frozen.store.unwant())
    clock.advance(20)
    rig.fire()
    rig.succeed(task)

    got(frozen.store.heartbeat(frozen.worker_id, frozen.lease_us))

    assert got(outcome).result == b"1"

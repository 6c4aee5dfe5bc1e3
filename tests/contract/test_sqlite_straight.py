"""Two short ways of the SQLite store, and that nobody can tell them from the long ones.

A plain task that this process would claim in the very transaction of its submit runs without having been ready. A task
that runs here is watched without a transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from sennit.errors import LeaseLost, StoreFull, StoreUnavailable
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Claimed, ErrorInfo, Failed, GivenBack, Succeeded
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop

BOOM = ErrorInfo(kind="Boom")


@pytest.fixture
def open_rig(tmp_path: Path) -> Iterator[Callable[[], Rig]]:
    with ExitStack() as stack:
        loop = stack.enter_context(running_loop())

        def open_() -> Rig:
            return Rig(stack.enter_context(closing(SqliteStore(tmp_path / "tasks.db", durability="normal"))), loop)

        yield open_


@pytest.fixture
def rig(open_rig: Callable[[], Rig]) -> Rig:
    return open_rig()


def at_once(rig: Rig, **options: object) -> Claimed:
    """Hand in a task for which the order has room; return what the listener is told."""
    n = len(rig.heard.claimed)
    rig.store.want("q", 1)
    task_id = rig.put(**options)
    rig.heard.wait_for(lambda: len(rig.heard.claimed) > n)
    assert rig.heard.claimed[n].id == task_id
    return rig.heard.claimed[n]


def commits(rig: Rig) -> int:
    assert isinstance(rig.store, SqliteStore)
    return rig.store._writer.commits


# ---------------------------------------------------------------- straight to running


def test_what_runs_at_once_is_handed_over_and_stored_as_what_was_ready_before(rig: Rig) -> None:
    options = {"priority": Priority.LOW, "payload": b'[[],{"a":1}]', "options": b'{"retries":1}', "crashes_max": 7}
    ready_before, straight = rig.run(rig.put(**options)), at_once(rig, **options)

    def alike(task: Claimed) -> tuple[Claimed, object, list[object]]:
        view = msgspec.structs.replace(rig.view(task.id), id=0, created_us=0, started_us=0)
        assert isinstance(rig.store, SqliteStore)
        rows = rig.store._reader.put(
            lambda c: [
                *c.execute("SELECT crashes_max, options, on_parent_failed FROM sennit_task WHERE id = ?", (task.id,)),
                *c.execute(
                    "SELECT order_us - started_us, queue, worker_id FROM sennit_running WHERE id = ?", (task.id,)
                ),
            ]
        )
        return msgspec.structs.replace(task, id=0, created_us=0, ready_us=0), view, got(rows)

    (_, _, (wide, running)), (_, _, (straight_wide, straight_running)) = alike(ready_before), alike(straight)
    assert alike(straight)[:2] == alike(ready_before)[:2]
    assert straight_wide == wide
    assert isinstance(running, tuple)
    assert isinstance(straight_running, tuple)
    assert straight_running[1:] == running[1:]
    assert straight_running[0] == abs(straight_running[0]) > 0  # a handicap on top of the moment it was handed in
    rig.check()


def test_given_back_it_has_its_place_in_the_order(rig: Rig) -> None:
    straight = at_once(rig)
    later = rig.put()
    assert rig.finish(GivenBack(straight.claim)) == [True]

    assert [task.id for task in rig.claim(2)] == [straight.id, later]


def test_it_does_not_overtake_what_is_ready(rig: Rig) -> None:
    assert isinstance(rig.store, SqliteStore)
    first = rig.put()
    gate = threading.Event()
    rig.store.put(lambda _c, _e: gate.wait(10))

    rig.store.want("q", 1)  # served by the same commit as the submit
    ack = rig.store.submit([rig.spec()])
    gate.set()
    (second,) = got(ack)

    rig.heard.wait_for(lambda: bool(rig.heard.claimed))
    assert [task.id for task in rig.heard.claimed] == [first]
    assert rig.states(first, second) == [State.RUNNING, State.READY]


def test_submits_of_one_commit_take_no_more_than_was_ordered(rig: Rig) -> None:
    assert isinstance(rig.store, SqliteStore)
    specs = [rig.spec() for _ in range(5)]
    rig.store.want("q", 3)
    gate = threading.Event()
    rig.store.put(lambda _c, _e: gate.wait(10))
    acks = [rig.store.submit([spec]) for spec in specs]
    gate.set()
    ids = [got(ack)[0] for ack in acks]

    rig.heard.wait_for(lambda: len(rig.heard.claimed) == 3)
    assert rig.states(*ids) == [State.RUNNING] * 3 + [State.READY] * 2
    rig.check()


def test_a_worker_that_was_taken_for_dead_has_a_lease_for_what_it_runs_at_once(open_rig: Callable[[], Rig]) -> None:
    rig, other = open_rig(), open_rig()
    got(other.store.rescue(rig.worker_id))

    task = at_once(rig)

    assert rig.worker_id in [w.id for w in got(other.store.workers())]
    assert got(other.store.rescue(rig.worker_id)) == 1
    assert other.state(task.id) is State.READY


def test_a_submit_that_found_no_room_on_the_disk_gives_the_order_back(rig: Rig) -> None:
    assert isinstance(rig.store, SqliteStore)
    rig.store.want("q", 1)

    def pages(limit: str) -> None:
        assert isinstance(rig.store, SqliteStore)
        got(rig.store.put(lambda c, _: c.execute(f"PRAGMA max_page_count = {limit}").fetchall()))

    used = got(rig.store.put(lambda c, _: c.execute("PRAGMA page_count").fetchone()[0]))
    pages(str(used))
    with pytest.raises(StoreFull):
        rig.put(payload=b"x" * 100_000)
    pages(str(2**30))

    first, second = rig.put(), rig.put()
    rig.heard.wait_for(lambda: bool(rig.heard.claimed))
    assert [task.id for task in rig.heard.claimed] == [first]
    assert rig.states(first, second) == [State.RUNNING, State.READY]
    rig.check()


# ---------------------------------------------------------------- watched without a transaction


def test_to_watch_what_runs_here_is_no_commit_and_its_end_is_told(rig: Rig) -> None:
    task = at_once(rig)
    before = commits(rig)

    watches = [rig.store.watch(task.id) for _ in range(3)]
    assert commits(rig) == before
    rig.succeed(task)

    assert {got(watch).state for watch in watches} == {State.SUCCEEDED}
    assert commits(rig) == before + 1


def test_who_watches_after_the_end_was_queued_is_told_too(rig: Rig) -> None:
    assert isinstance(rig.store, SqliteStore)
    task = at_once(rig)
    gate = threading.Event()
    rig.store.put(lambda _c, _e: gate.wait(10))

    ended = rig.store.finish([Failed(task.claim, BOOM)])
    watch = rig.store.watch(task.id)
    gate.set()

    assert got(ended) == [True]
    assert got(watch).state is State.FAILED
    assert got(rig.store.watch(task.id)).state is State.FAILED


def test_an_end_in_another_process_is_told(open_rig: Callable[[], Rig]) -> None:
    rig, other = open_rig(), open_rig()
    before, after = at_once(rig), at_once(rig)
    watch = rig.store.watch(before.id)

    got(other.store.cancel([before.id, after.id]))

    assert got(watch).state is State.CANCELLED
    rig.heard.wait_for(lambda: after.claim in rig.heard.stopped)
    assert got(rig.store.watch(after.id)).state is State.CANCELLED


@pytest.mark.parametrize("write", ["a step", "a child", "a heartbeat"])
def test_once_it_is_known_to_be_lost_a_watch_rides_no_more(open_rig: Callable[[], Rig], write: str) -> None:
    rig, other = open_rig(), open_rig()
    task = at_once(rig)
    got(other.store.rescue(rig.worker_id))  # its row is gone, so nobody rings it
    (again,) = other.claim()
    other.succeed(again)

    match write:
        case "a step":
            assert got(rig.store.save_step(task.claim, "key", b"1")) is False
        case "a child":
            with pytest.raises(LeaseLost):
                got(rig.store.add_children(task.claim, [rig.spec()]))
        case _:
            assert got(rig.store.heartbeat(rig.worker_id, rig.lease_us)) == []

    assert got(rig.store.watch(task.id)).state is State.SUCCEEDED


def test_a_task_that_ran_here_and_is_open_again_is_watched_on(rig: Rig) -> None:
    task = at_once(rig)
    watch = rig.store.watch(task.id)
    rig.finish(GivenBack(task.claim))
    late = rig.store.watch(task.id)

    (again,) = rig.claim()
    assert not watch.done
    rig.succeed(again)

    assert [got(watch).attempt, got(late).attempt] == [2, 2]


def test_close_fails_a_watch_that_rides(rig: Rig) -> None:
    task = at_once(rig)
    watch = rig.store.watch(task.id)

    rig.store.close()

    with pytest.raises(StoreUnavailable):
        got(watch)
    with pytest.raises(StoreUnavailable):
        got(rig.store.watch(task.id))


def test_thousands_of_watches_are_looked_at_in_a_few_commits(rig: Rig) -> None:
    assert isinstance(rig.store, SqliteStore)
    ids = rig.submit(*(rig.spec() for _ in range(2000)))
    gate = threading.Event()
    rig.store.put(lambda _c, _e: gate.wait(10))
    operations = rig.store._writer.operations

    watches = [rig.store.watch(task_id) for task_id in ids]
    unknown = rig.store.watch(10**9)
    gate.set()
    tasks = rig.claim(2000)
    rig.finish(*(Succeeded(task.claim, b"1") for task in tasks))

    assert {got(watch).state for watch in watches} == {State.SUCCEEDED}
    assert rig.store._writer.operations - operations < 20
    with pytest.raises(LookupError):
        got(unknown)

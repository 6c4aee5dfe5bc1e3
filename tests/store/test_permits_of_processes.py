"""Permits of real processes on one file: one limit for all of them, and what happens when nobody there is a worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sennit.errors import ProviderBusy
from sennit.model.provider import CallReport, PermitRequest, ProviderSpec, Rates
from sennit.store.sqlite import SqliteStore
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import Rig, got, running_loop

PROGRAM = Path(__file__).parent / "programs" / "call_until_killed.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """A store object that never joins: this process only calls."""
    with closing(SqliteStore(path, durability="normal")) as store:
        yield store


def declare(store: SqliteStore, parallel: int = 1, *, rpm: int = 0) -> None:
    rates = Rates(parallel=parallel, rpm=rpm)
    got(store.declare_provider(ProviderSpec(name="p", rates=rates, strategy="fixed", breaker=None)))


def ask(store: SqliteStore, **options: object) -> tuple[int, Ack[object]]:
    (permit_id,) = store.take_ids(1)
    request = PermitRequest(**{"id": permit_id, "provider": "p", **options})  # type: ignore[arg-type]
    return permit_id, store.take_permit(request)  # type: ignore[return-value]


def run(path: Path, calls: int, folder: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, str(PROGRAM), str(path), str(calls), str(folder)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_three_processes_that_only_call_never_hold_more_permits_than_there_are(
    store: SqliteStore, path: Path, tmp_path: Path
) -> None:
    declare(store, 5)
    folder = tmp_path / "calls"
    folder.mkdir()

    said = [process.communicate() for process in [run(path, 20, folder) for _ in range(3)]]

    most = [int(out.removeprefix("most ")) for out, _ in said]
    assert max(most) <= 5
    (view,) = got(store.providers())
    assert (view.in_use, view.waiting, view.granted, view.succeeded) == (0, 0, 60, 60)
    assert got(store.verify()) == []


def test_a_process_that_only_calls_and_is_killed_gives_its_permit_to_another_that_only_calls(
    store: SqliteStore, path: Path, tmp_path: Path
) -> None:
    declare(store)
    with run(path, 0, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        _, waiting = ask(store)
        got(store.put(lambda _c, _e: None))
        assert not waiting.done

        holder.kill()

        assert got(waiting)
    assert got(store.verify()) == []


def test_one_that_was_killed_before_anybody_waited_is_found_dead(
    store: SqliteStore, path: Path, tmp_path: Path
) -> None:
    declare(store)
    with run(path, 0, tmp_path) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()

    _, waiting = ask(store)

    assert got(waiting)


def test_one_that_was_killed_is_found_dead_by_calls_that_do_not_wait(
    store: SqliteStore, path: Path, tmp_path: Path
) -> None:
    declare(store)
    with run(path, 0, tmp_path) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    until_s = time.monotonic() + 10

    def is_refused() -> bool:
        try:
            got(ask(store, wait=False)[1])
        except ProviderBusy:
            return True
        return False

    while is_refused():
        assert time.monotonic() < until_s


def test_a_permit_that_is_there_at_once_was_not_waited_for_by_any_clock(store: SqliteStore) -> None:
    declare(store)
    (permit_id,) = store.take_ids(1)

    permit = got(store.take_permit(PermitRequest(id=permit_id, provider="p")))

    assert (permit.waited_us, permit.reason) == (0, "")


def test_a_pause_ends_for_a_process_that_only_calls(store: SqliteStore) -> None:
    declare(store)
    permit_id, asked = ask(store)
    got(asked)
    got(store.return_permit(permit_id, CallReport(outcome="throttled", status=429, pause="window", retry_after_s=0.2)))

    _, waiting = ask(store)

    assert not waiting.done
    assert got(waiting)


def test_a_rate_lets_the_next_call_of_a_process_that_only_calls_through_in_time(store: SqliteStore) -> None:
    declare(store, 1000, rpm=600)
    with suppress(ProviderBusy):
        while True:
            got(ask(store, wait=False)[1])

    _, waiting = ask(store)

    assert got(waiting)


def test_the_caretaker_rests_when_nobody_waits_and_wakes_again(store: SqliteStore) -> None:
    declare(store)
    first_id, asked = ask(store)
    got(asked)
    assert not store._desk.caretaker.is_awake
    for _ in range(2):
        second_id, waiting = ask(store)
        got(store.put(lambda _c, _e: None))
        assert store._desk.caretaker.is_awake
        assert got(store.return_permit(first_id))
        got(waiting)
        got(store.put(lambda _c, _e: None))
        assert not store._desk.caretaker.is_awake
        first_id = second_id


def test_an_idle_worker_hears_of_a_delayed_task_of_a_process_that_only_submits(path: Path, store: SqliteStore) -> None:
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as other:
        rig, caller = Rig(other, loop), Rig.__new__(Rig)
        caller.store = store
        open_id = caller.put()
        store.watch(open_id)  # it has a row from now on, as a client
        got(store.put(lambda _c, _e: None))
        assert store._desk.members.worker is not None
        told = len(rig.heard.dues_us)

        caller.put(delay_us=60_000_000)

        rig.heard.wait_for(lambda: len(rig.heard.dues_us) > told)


def test_a_caller_that_becomes_a_worker_keeps_its_permits(path: Path, store: SqliteStore) -> None:
    declare(store)
    permit_id, asked = ask(store)
    got(asked)
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as other:
        rig = Rig(store, loop)
        client_id = rig.worker_id  # the ids of a rig are not the store's
        assert got(other.providers())[0].in_use == 1
        rig.check()

        assert got(store.return_permit(permit_id))

        assert got(other.providers())[0].in_use == 0
        assert client_id in store._desk.members.ids
        got(store.leave())


def test_a_worker_that_calls_outside_its_tasks_keeps_its_lease_while_it_does(path: Path, store: SqliteStore) -> None:
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as other:
        rig, witness = Rig(store, loop, lease_s=0.3), Rig(other, loop)
        declare(store)
        held = rig.permit()
        waiting = witness.line_up()

        def expire_us() -> int:
            return next(w.expire_us for w in got(other.workers()) if w.id == rig.worker_id)

        first_us = expire_us()
        while expire_us() < first_us + 500_000:  # a beat each 0.1 s; without them its lease would be over by then
            witness.fire()
            assert not waiting.done

        rig.give_back(held)
        assert got(waiting).provider == "p"

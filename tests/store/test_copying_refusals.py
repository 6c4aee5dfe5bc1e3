"""Whom a move refuses, and who is refused after it; nothing is changed by a move that is refused."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sennit import App
from sennit.errors import SchemaMismatch, SennitError, StoreCorrupt, StoreMoved, StoreUnavailable, UsageError
from sennit.model.settings import Settings
from sennit.model.task import Ref, TaskSpec
from sennit.runtime.moving import move_store
from sennit.runtime.stores import open_store
from sennit.store.copying import Copied
from sennit.store.protocol import Store
from tests.store.houses import is_open, ledger_of, tables_of


def move(source: str, target: str, *, keep: bool = False) -> Copied:
    return move_store(source, target, Settings(lock_timeout_s=10.0), keep=keep, say=lambda _step, _n: None)


def hand_in(store: Store) -> int:
    (task_id,) = store.take_ids(1)
    return store.submit([TaskSpec(ref=Ref(task_id), handler="h", queue="q", payload=b"{}")]).result()[0]


@pytest.fixture(params=["file", "server"])
def target(request: pytest.FixtureRequest, tmp_path: Path, fresh_database: Callable[..., str]) -> str:
    """An empty store of either kind."""
    return f"sqlite:///{tmp_path}/there.db" if request.param == "file" else fresh_database()


def test_a_living_worker_is_named_and_nothing_is_touched(here: str, target: str) -> None:
    app = App(here)
    with app:
        with pytest.raises(UsageError, match=f"worker .* on {socket.gethostname()}"):
            move(here, target)
        assert is_open(target)
    move(here, target)


def test_who_has_the_source_open_is_refused_from_then_on(here: str, target: str) -> None:
    with closing(open_store(here, Settings())) as store:
        hand_in(store)

        move(here, target)

        with pytest.raises(StoreMoved, match="has moved to"):
            hand_in(store)
        assert store.ledger().result() == ledger_of(target)[0]


def test_who_has_a_server_open_is_refused_too(here: str, fresh_database: Callable[..., str], tmp_path: Path) -> None:
    server = fresh_database()
    move(here, server)
    with closing(open_store(server, Settings())) as store:
        hand_in(store)

        move(server, f"sqlite:///{tmp_path}/back.db")

        with pytest.raises(StoreMoved, match=r"has moved to sqlite:///.*back\.db"):
            hand_in(store)


def test_who_comes_later_is_told_where_it_is(here: str, target: str) -> None:
    move(here, target)

    with pytest.raises(StoreMoved, match="has moved to") as refused:
        open_store(here, Settings())
    assert refused.value.fix.startswith("use --db ")


def test_a_worker_that_comes_back_to_the_old_place_does_not_start(here: str, target: str) -> None:
    move(here, target)

    async def work() -> None:
        async with App(here):
            pass

    with pytest.raises(StoreMoved):
        asyncio.run(work())


def test_a_target_with_tasks_is_refused_and_stays_open(here: str, target: str) -> None:
    with closing(open_store(target, Settings())) as store:
        hand_in(store)
    before = tables_of(target)

    with pytest.raises(StoreUnavailable, match="is not empty: it has rows in sennit_ready"):
        move(here, target)

    assert tables_of(target) == before
    assert (is_open(here), is_open(target)) == (True, True)


def test_a_store_is_not_copied_into_itself(here: str, fresh_database: Callable[..., str]) -> None:
    server = fresh_database()
    for url, same in ((here, here.replace("here.db", "./here.db")), (server, server + "?connect_timeout=7")):
        with pytest.raises(UsageError, match="into itself"):
            move(url, same)
    assert is_open(here)


def test_a_source_that_breaks_its_promises_is_refused_and_the_target_is_empty_again(here: str, target: str) -> None:
    with closing(sqlite3.connect(here.removeprefix("sqlite:///"))) as file, file:
        file.execute("DELETE FROM sennit_ready")

    with pytest.raises(StoreCorrupt, match="narrow tables"):
        move(here, target)

    assert is_open(target)
    assert all(n == 0 for name, (n, _) in tables_of(target).items() if name != "sennit_ledger")


def test_a_source_of_an_older_schema_is_to_be_migrated_first(here: str, target: str) -> None:
    with closing(sqlite3.connect(here.removeprefix("sqlite:///"))) as file, file:
        file.execute("PRAGMA user_version = 4")

    with pytest.raises(SchemaMismatch, match="has schema 4"):
        move(here, target)


def test_a_missing_source_is_not_made(tmp_path: Path, target: str) -> None:
    with pytest.raises(StoreUnavailable, match="there is no database"):
        move(f"sqlite:///{tmp_path}/none.db", target)

    assert not (tmp_path / "none.db").exists()


def test_a_server_without_our_tables_is_no_source(fresh_database: Callable[..., str], tmp_path: Path) -> None:
    empty = fresh_database(template="template1")

    with pytest.raises(StoreUnavailable, match="has no tables of sennit"):
        move(empty, f"sqlite:///{tmp_path}/there.db")


def test_a_target_that_waits_for_another_source_is_refused(here: str, target: str, tmp_path: Path) -> None:
    """Its rows may be the only ones of a store that is shut already."""

    def stop(step: str, _n: int) -> None:
        if step == "shutting the source":
            raise UsageError("stopped here")

    with closing(open_store(f"sqlite:///{tmp_path}/other.db", Settings())) as store:
        hand_in(store)
    with pytest.raises(UsageError, match="stopped here"):
        move_store(here, target, Settings(), keep=False, say=stop)
    assert (is_open(here), is_open(target)) == (True, False)

    with pytest.raises(StoreMoved, match="is not finished"):
        move(f"sqlite:///{tmp_path}/other.db", target)

    move(here, target)
    assert (is_open(here), is_open(target)) == (False, True)


def test_an_unreachable_target_changes_nothing(here: str) -> None:
    before = tables_of(here)

    with pytest.raises(SennitError, match="cannot connect to"):
        move(here, "postgresql://sennit@127.0.0.1:1/nothing")

    assert tables_of(here) == before


def test_a_failure_in_the_middle_of_a_table_leaves_both_as_they_were(
    here: str, fresh_database: Callable[..., str], tmp_path: Path
) -> None:
    """In both directions: one end has sent a part of the table then, the other has taken it."""

    def fail(step: str, n: int) -> None:
        if step == "sennit_log" and n == 10_000:
            raise UsageError("stopped here")

    with closing(sqlite3.connect(here.removeprefix("sqlite:///"))) as file, file:
        lines = ((1, 1, n, "info", "x") for n in range(25_000))
        file.executemany("INSERT INTO sennit_log (task_id, attempt, at_us, level, text) VALUES (?, ?, ?, ?, ?)", lines)
    server, back = fresh_database(), f"sqlite:///{tmp_path}/back.db"
    for source, target in ((here, server), (server, back)):
        before = tables_of(source)

        with pytest.raises(UsageError, match="stopped here"):
            move_store(source, target, Settings(), keep=False, say=fail)

        assert tables_of(source) == before
        assert (is_open(source), is_open(target)) == (True, True)
        move(source, target)


@pytest.mark.parametrize("same_target", [True, False], ids=["to one target", "to two targets"])
def test_of_two_moves_at_once_one_is_refused(
    here: str, fresh_database: Callable[..., str], *, same_target: bool
) -> None:
    first = fresh_database()
    targets = [first, first if same_target else fresh_database()]
    ledger = ledger_of(here)[0]
    both_may = threading.Barrier(2)
    ends: list[str] = []

    def one(target: str) -> None:
        def together(step: str, _n: int) -> None:
            if step == "reading":  # both have found the source open and the target empty
                both_may.wait(10)

        try:
            move_store(here, target, Settings(lock_timeout_s=20.0), keep=False, say=together)
        except SennitError as error:
            ends.append(error.code)
        else:
            ends.append(target)

    movers = [threading.Thread(target=one, args=(target,)) for target in targets]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()

    refused, moved = sorted(ends)
    assert refused == StoreMoved.code
    assert ledger_of(moved) == (ledger, [])
    for target in {*targets} - {moved}:
        assert is_open(target)
        assert ledger_of(target)[0] != ledger
    assert not is_open(here)

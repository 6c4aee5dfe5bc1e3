"""Moving house: all that is in a store, in every state, into another one of any kind, and back."""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sennit.model.lifecycle import State
from sennit.model.settings import Settings
from sennit.model.task import LogLine, Ref, TaskSpec
from sennit.runtime.moving import move_store, open_side
from sennit.runtime.stores import open_store
from sennit.store.copying import Copied, shared
from sennit.store.postgres import PostgresStore
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, running_loop
from tests.crash.nursery import Nursery
from tests.store.houses import duplicate, fill, is_open, ledger_of, said_by, tables_of

# Rows of these live for less than the moment in which the house is looked at.
MAY_BE_EMPTY = {"sennit_blocked", "sennit_held", "sennit_stop", "sennit_wait"}


def move(source: str, target: str, *, keep: bool = False, **how: Any) -> Copied:
    say: Callable[[str, int], object] = how.get("say", lambda _step, _n: None)
    return move_store(source, target, Settings(lock_timeout_s=10.0), keep=keep, say=say)


def rows(tables: dict[str, tuple[int, str]]) -> set[str]:
    return {name for name, (n, _) in tables.items() if n}


def test_the_house_has_something_in_every_table(here: str) -> None:
    """Or the tests below would prove less than they say."""
    assert set(tables_of(here)) - rows(tables_of(here)) <= MAY_BE_EMPTY


def test_both_kinds_of_store_have_the_same_tables_and_columns(here: str, postgres_url: str) -> None:
    with (
        closing(open_side(here, "read", Settings())) as ours,
        closing(open_side(postgres_url, "read", Settings())) as theirs,
    ):
        tables = shared(ours.tables(), theirs.tables(), "file", "server")

        assert shared(theirs.tables(), ours.tables(), "server", "file").keys() == tables.keys()
    assert len(tables) >= 30


def test_a_fleet_goes_to_a_server_and_back_and_no_row_is_different(
    here: str, fresh_database: Callable[..., str], tmp_path: Path
) -> None:
    server, back = fresh_database(), f"sqlite:///{tmp_path}/back.db"
    ledger = ledger_of(here)[0]

    there = move(here, server)
    settled = tables_of(server)
    again = move(server, back)

    assert there.given_back == 3
    assert again.given_back == 0
    assert {name: (again.rows[name], again.digests[name]) for name in again.rows} == settled
    assert tables_of(back) == settled
    assert ledger_of(back) == (ledger, [])
    assert (is_open(here), is_open(server), is_open(back)) == (False, False, True)


def test_what_is_not_of_processes_is_copied_byte_for_byte(here: str, fresh_database: Callable[..., str]) -> None:
    before, server = tables_of(here), fresh_database()

    copied = move(here, server)

    after = tables_of(server)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "sennit_begun", "sennit_lock_line", "sennit_permit", "sennit_provider", "sennit_ready", "sennit_running", "sennit_worker",
    }  # fmt: skip
    assert {name: (copied.rows[name], copied.digests[name]) for name in before} == before


def test_what_is_held_ahead_is_ready_there_and_counts_as_never_begun(
    fresh_database: Callable[..., str], tmp_path: Path
) -> None:
    with running_loop() as loop, closing(SqliteStore(tmp_path / "full.db", durability="normal")) as store:
        rig = Rig(store, loop)
        begun, *held = rig.submit(*(rig.spec() for _ in range(5)))
        store.want_ahead("q", 8)
        store.want("q", 1)
        rig.heard.wait_for(lambda: bool(rig.heard.claimed))
        here = duplicate(tmp_path / "full.db", tmp_path / "killed.db")  # as after a kill -9
    there = fresh_database()

    assert move(here, there).given_back == 5

    with closing(PostgresStore(there)) as moved, running_loop() as loop:
        rig = Rig(moved, loop)
        assert rig.states(begun, *held) == [State.READY] * 5
        assert tables_of(there)["sennit_begun"][0] == 1
        assert [(task.id, task.attempt, task.crashes) for task in rig.claim(n=5)] == [(i, 2, 0) for i in (begun, *held)]
        rig.check()


def test_workers_go_on_where_it_is_now(
    nursery: Nursery, here: str, fresh_database: Callable[..., str], tmp_path: Path
) -> None:
    server = fresh_database()
    move(here, server)

    done = said_by(nursery, "go_on", server, folder=tmp_path)

    assert sorted(done["begun"]) == ["a", "b"]
    assert done["state"] == {"n": 10}
    assert done["cached"] == 5
    ended = done["ended"]
    assert ended["joins"] == 2
    assert ledger_of(server)[1] == []


def test_a_fleet_that_ran_on_a_server_goes_on_in_a_file(
    nursery: Nursery, fresh_database: Callable[..., str], tmp_path: Path
) -> None:
    server, file = fresh_database(), f"sqlite:///{tmp_path}/file.db"
    fill(server, tmp_path)
    assert set(tables_of(server)) - rows(tables_of(server)) <= MAY_BE_EMPTY

    copied = move(server, file)
    done = said_by(nursery, "go_on", file, folder=tmp_path)

    assert copied.given_back == 3
    assert sorted(done["begun"]) == ["a", "b"]
    assert done["state"] == {"n": 10}
    assert ledger_of(file)[1] == []


def test_an_attempt_that_ran_has_used_nothing_up(here: str, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/there.db"
    move(here, target)

    with closing(SqliteStore(tmp_path / "there.db")) as store:
        (first, *_) = [t for t in store.tasks().result() if t.handler == "runs"]

    assert (str(first.state), first.attempt, first.failures, first.crashes) == ("ready", 1, 0, 0)
    assert ledger_of(target)[1] == []


def test_numbers_go_on_above_those_that_were_given(here: str, fresh_database: Callable[..., str]) -> None:
    with closing(sqlite3.connect(here.removeprefix("sqlite:///"), isolation_level=None)) as file:
        file.execute("UPDATE sqlite_sequence SET seq = 700 WHERE name = 'sennit_ask'")
        (log_seq,) = file.execute("SELECT max(seq) FROM sennit_log").fetchone()
    server = fresh_database()
    move(here, server)

    with closing(open_store(server, Settings())) as store:
        (task_id, *_) = [t.id for t in store.tasks().result()]
        store.log([LogLine(task_id=task_id, attempt=1, at_us=1, level="info", text="new")]).result()
        (ours,) = [line for line in store.logs(task_id).result() if line.text == "new"]
        fresh = store.take_ids(1)[0]

    assert ours.seq > log_seq
    assert fresh > task_id
    with closing(open_side(server, "write", Settings())) as side:
        assert side.floors(side.tables())["sennit_ask"] == 700


def test_text_that_a_server_cannot_keep_is_made_visible_and_counted(
    tmp_path: Path, fresh_database: Callable[..., str]
) -> None:
    server = fresh_database()
    with closing(SqliteStore(tmp_path / "nul.db")) as store:
        (task_id,) = store.submit([TaskSpec(ref=Ref(1), handler="h", queue="q", payload=b"\0{}")]).result()
        store.log([LogLine(task_id=task_id, attempt=1, at_us=1, level="info", text="a\0b")]).result()

    copied = move(f"sqlite:///{tmp_path}/nul.db", server)

    assert copied.replaced == 1
    with closing(open_store(server, Settings())) as moved:
        assert [line.text for line in moved.logs(task_id).result()] == ["a\N{SYMBOL FOR NULL}b"]
        assert moved.task(task_id).result().payload == b"\0{}"


def test_a_fork_leaves_the_source_as_it_is_and_is_of_one_moment(here: str, fresh_database: Callable[..., str]) -> None:
    before, fork = tables_of(here), fresh_database()

    copied = move(here, fork, keep=True)

    assert tables_of(here) == before
    assert (is_open(here), is_open(fork)) == (True, True)
    assert copied.given_back == 3
    assert ledger_of(fork)[1] == []


def test_a_store_that_has_moved_can_still_be_forked(here: str, tmp_path: Path) -> None:
    first = move(here, f"sqlite:///{tmp_path}/there.db")

    second = move(here, f"sqlite:///{tmp_path}/fork.db", keep=True)

    assert second.digests == first.digests
    assert is_open(f"sqlite:///{tmp_path}/fork.db")


def test_rows_are_never_all_in_memory(tmp_path: Path, fresh_database: Callable[..., str]) -> None:
    """50 MB go through; what Python holds at most meanwhile is a fraction of that."""
    path = tmp_path / "large.db"
    with closing(SqliteStore(path)) as store:
        (task_id,) = store.submit([TaskSpec(ref=Ref(1), handler="h", queue="q", payload=b"{}")]).result()
    with closing(sqlite3.connect(path)) as file, file:
        lines = ((task_id, 1, n, "info", "x" * 1000) for n in range(50_000))
        file.executemany("INSERT INTO sennit_log (task_id, attempt, at_us, level, text) VALUES (?, ?, ?, ?, ?)", lines)
    tracemalloc.start()
    try:
        copied = move(f"sqlite:///{path}", fresh_database())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert copied.rows["sennit_log"] == 50_000
    assert peak_bytes < 8_000_000

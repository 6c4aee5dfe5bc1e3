"""A database file that cannot be used: each cause has its own error with what, why and fix, and nothing is lost."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sennit.errors import SchemaMismatch, StoreCorrupt, StoreError, StoreFull, StoreLocked, StoreUnavailable
from sennit.model.lifecycle import State
from sennit.model.task import Ref, Succeeded, TaskSpec
from sennit.store.connect import filesystem_of, refuse_network_filesystem
from sennit.store.database import Connection
from sennit.store.migrate import LATEST
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import TIMEOUT_S, Rig, got, running_loop

PROGRAMS = Path(__file__).parent / "programs"


def put(store: SqliteStore, n: int = 1) -> list[int]:
    """Hand in `n` tasks of 500 bytes; return their ids."""
    specs = [TaskSpec(ref=Ref(i), handler="work", queue="q", payload=b"x" * 500) for i in store.take_ids(n)]
    return got(store.submit(specs))


def assert_clear(error: StoreError, *, names: Path) -> None:
    """An error says what happened to which file, why, and what to do now."""
    assert str(names) in error.what
    assert error.why
    assert error.fix


def limit_pages(connection: Connection, *, spare: int) -> None:
    """Let the database grow by so many pages of 4 KiB and no further."""
    (used,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {used + spare}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def filled(path: Path) -> Path:
    """A closed database with 300 tasks, about 200 KiB."""
    with closing(SqliteStore(path, durability="normal")) as store:
        put(store, 300)
    return path


# ---------------------------------------------------------------- corrupt


def test_a_file_of_random_bytes_is_refused_and_left_as_it_is(path: Path) -> None:
    noise = random.Random(1).randbytes(65_536)
    path.write_bytes(noise)

    with pytest.raises(StoreCorrupt) as refused:
        SqliteStore(path)

    assert_clear(refused.value, names=path)
    assert path.read_bytes() == noise


@pytest.mark.parametrize("kept", [0.0005, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused_and_left_as_it_is(filled: Path, kept: float) -> None:
    os.truncate(filled, int(filled.stat().st_size * kept))
    rest = filled.read_bytes()

    with pytest.raises(StoreCorrupt) as refused:
        SqliteStore(filled)

    assert_clear(refused.value, names=filled)
    assert filled.read_bytes() == rest


def test_a_damaged_page_is_named_by_whoever_reads_it_and_the_writer_lives_on(filled: Path) -> None:
    data = filled.read_bytes()
    pages_of_tasks = [n for n in range(0, len(data), 4096) if b"x" * 500 in data[n : n + 4096]]
    with filled.open("r+b") as file:
        file.seek(pages_of_tasks[len(pages_of_tasks) // 2])
        file.write(random.Random(2).randbytes(4096))

    with closing(SqliteStore(filled, durability="normal")) as store:
        with pytest.raises(StoreCorrupt) as refused:
            got(store.tasks(limit=1000))
        assert_clear(refused.value, names=filled)
        (task_id,) = put(store)
        assert got(store.task(task_id)).id == task_id


# ---------------------------------------------------------------- read-only


@pytest.mark.parametrize("where", ["/proc/tasks.db", "/dev/null/tasks.db"])
def test_a_place_where_no_file_can_be_made_is_unavailable(where: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        SqliteStore(where)

    assert_clear(refused.value, names=Path(where).parent)


def test_a_folder_in_place_of_the_file_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.raises(StoreUnavailable) as refused:
        SqliteStore(folder)

    assert "folder" in refused.value.why


@pytest.mark.parametrize("read_only", ["file", "folder", "both"])
def test_what_this_user_may_not_write_is_unavailable(read_only: str) -> None:
    """Root may write everything, so the program that tries becomes somebody else first."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / "read_only.py", read_only], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.splitlines() == ["S401", "what", "why", "fix", "unchanged"], done


# ---------------------------------------------------------------- locked


@pytest.fixture
def foreign(path: Path) -> Callable[[], closing[sqlite3.Connection]]:
    """Another program's connection, which knows nothing of our pen."""
    return lambda: closing(sqlite3.connect(path, isolation_level=None))


def test_a_lock_held_for_too_long_is_reported_and_the_writer_lives_on(
    path: Path, foreign: Callable[[], closing[sqlite3.Connection]]
) -> None:
    with closing(SqliteStore(path, lock_timeout_s=0.1)) as store, foreign() as browser:
        before = put(store)
        browser.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreLocked) as refused:
            put(store)
        assert_clear(refused.value, names=path)
        assert [view.id for view in got(store.tasks())] == before

        browser.execute("ROLLBACK")
        after = put(store)
        assert [view.id for view in got(store.tasks())] == [*after, *before]


def test_a_lock_released_in_time_is_waited_for(path: Path, foreign: Callable[[], closing[sqlite3.Connection]]) -> None:
    with closing(SqliteStore(path, lock_timeout_s=TIMEOUT_S)) as store, foreign() as browser:
        spec = TaskSpec(ref=Ref(store.take_ids(1)[0]), handler="work", queue="q", payload=b"{}")
        browser.execute("BEGIN IMMEDIATE")
        ack = store.submit([spec])
        assert not ack.done

        browser.execute("ROLLBACK")

        assert got(ack) == [spec.ref.id]


def test_an_order_raised_while_the_store_was_locked_is_served_when_it_is_free_again(
    path: Path, foreign: Callable[[], closing[sqlite3.Connection]]
) -> None:
    with running_loop() as loop, closing(SqliteStore(path, lock_timeout_s=0.05)) as store, foreign() as browser:
        rig = Rig(store, loop)
        task_id = rig.put()
        browser.execute("BEGIN IMMEDIATE")
        store.want("q", 1)
        with pytest.raises(StoreLocked):
            rig.put()

        browser.execute("ROLLBACK")

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [task_id])
        rig.check()


def test_ids_can_be_taken_after_a_lock_although_those_fetched_ahead_were_refused(
    path: Path, foreign: Callable[[], closing[sqlite3.Connection]]
) -> None:
    with closing(SqliteStore(path, lock_timeout_s=0.05)) as store, foreign() as browser:
        ids = [*store.take_ids(700)]
        browser.execute("BEGIN IMMEDIATE")
        ids += store.take_ids(100)  # asks for the next block, in vain
        with pytest.raises(StoreLocked):
            got(store.submit([]))

        browser.execute("ROLLBACK")
        ids += [i for _ in range(5) for i in store.take_ids(500)]

        assert (len(set(ids)), sorted(ids)) == (3300, ids)


def test_a_watch_that_was_refused_while_the_store_was_locked_can_be_set_again(
    path: Path, foreign: Callable[[], closing[sqlite3.Connection]]
) -> None:
    with closing(SqliteStore(path, lock_timeout_s=0.05)) as store, foreign() as browser:
        (task_id,) = put(store)
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLocked):
            got(store.watch(task_id))

        browser.execute("ROLLBACK")
        watch = store.watch(task_id)

        got(store.cancel([task_id]))
        assert got(watch).state is State.CANCELLED


def test_a_watch_that_found_no_room_can_be_set_again(path: Path) -> None:
    """The process registers with its first watch; that registration was rolled back with it."""
    with closing(SqliteStore(path)) as store:
        (task_id,) = put(store)
        got(store.put(lambda connection, _: limit_pages(connection, spare=0)))
        large = TaskSpec(ref=Ref(store.take_ids(1)[0]), handler="work", queue="q", payload=b"x" * 100_000)
        gate = threading.Event()
        store.put(lambda _connection, _: gate.wait(TIMEOUT_S))
        refused, submitted = store.watch(task_id), store.submit([large])  # behind the gate, so in one transaction
        gate.set()
        with pytest.raises(StoreFull):
            got(submitted)
        with pytest.raises(StoreFull):
            got(refused)

        got(store.put(lambda connection, _: limit_pages(connection, spare=1000)))
        watch = store.watch(task_id)

        got(store.cancel([task_id]))
        assert got(watch).state is State.CANCELLED


def test_a_result_that_came_while_the_store_was_locked_is_told_when_it_is_free_again(
    path: Path, foreign: Callable[[], closing[sqlite3.Connection]]
) -> None:
    with (
        running_loop() as loop,
        closing(SqliteStore(path, lock_timeout_s=0.05)) as store,
        closing(SqliteStore(path, lock_timeout_s=0.05)) as other,
        foreign() as browser,
    ):
        rig = Rig(other, loop)
        task = rig.start()
        watch = store.watch(task.id)
        got(store.put(lambda _connection, _effects: None))  # the watch is in place
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLocked):
            put(store)
        # What the bell would have told is written while nobody can hear it: a ring is lost, not the row.
        browser.execute(
            "UPDATE sennit_task SET state = 1, result = X'37', done_us = ? WHERE id = ?", (rig.store.now_us(), task.id)
        )
        browser.execute("DELETE FROM sennit_running WHERE id = ?", (task.id,))
        browser.execute("UPDATE sennit_ledger SET n = n + 1 WHERE name = 'succeeded'")
        browser.execute("COMMIT")

        assert got(watch).result == b"7"
        rig.check()


def test_a_file_that_another_program_holds_for_itself_cannot_be_opened(
    filled: Path, foreign: Callable[[], closing[sqlite3.Connection]]
) -> None:
    with foreign() as browser:
        browser.execute("PRAGMA locking_mode = EXCLUSIVE")
        browser.execute("BEGIN EXCLUSIVE")

        with pytest.raises(StoreLocked) as refused:
            SqliteStore(filled, lock_timeout_s=0.1)

        assert_clear(refused.value, names=filled)
        browser.execute("ROLLBACK")
    with closing(SqliteStore(filled)) as store:
        assert got(store.ledger()).live == 300


# ---------------------------------------------------------------- another schema, another machine


def test_a_newer_schema_is_refused_and_left_as_it_is(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as future:
        future.execute(f"PRAGMA user_version = {LATEST + 1}")
    before = filled.read_bytes()

    with pytest.raises(SchemaMismatch) as refused:
        SqliteStore(filled)

    assert_clear(refused.value, names=filled)
    assert filled.read_bytes() == before


def test_tasks_that_ran_when_the_schema_was_older_are_finished(tmp_path: Path) -> None:
    """The file is as a process left it that was killed before there was `is_ahead`."""
    path = tmp_path / "older.db"
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        rig = Rig(store, loop)
        claimed = rig.start()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DROP TABLE sennit_agent")
        file.execute("DROP INDEX sennit_running_ahead")
        file.execute("ALTER TABLE sennit_running DROP COLUMN is_ahead")
        file.execute("PRAGMA user_version = 5")

    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        rig = Rig(store, loop)
        assert (rig.state(claimed.id), rig.view(claimed.id).reason) == (State.RUNNING, "")
        assert rig.finish(Succeeded(claimed.claim, b"1")) == [True]
        rig.check()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_file_on_a_network_file_system_is_refused(kind: str) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/home /mnt/shared\\040home {kind} rw 0 0\n"

    with pytest.raises(StoreUnavailable) as refused:
        refuse_network_filesystem(Path("/mnt/shared home/tasks.db"), mounts)

    assert kind in refused.value.what
    assert_clear(refused.value, names=Path("/mnt/shared home/tasks.db"))


def test_the_innermost_mount_decides_about_a_file(tmp_path: Path) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/ /mnt nfs rw 0 0\n/dev/vdb /mnt/disk xfs rw 0 0\nh:/ {tmp_path}/far nfs4 rw 0 0\n"
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")

    assert filesystem_of(Path("/mnt/disk/tasks.db"), mounts) == "xfs"
    assert filesystem_of(Path("/mnt/diskette/tasks.db"), mounts) == "nfs"
    assert filesystem_of(Path("/srv/tasks.db"), mounts) == "ext4"
    assert filesystem_of(tmp_path / "near" / "tasks.db", mounts) == "nfs4"
    refuse_network_filesystem(Path("/mnt/disk/tasks.db"), mounts)


def test_processes_that_open_a_new_file_at_once_all_get_one_schema(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.db" for n in range(12)]
    argv = [sys.executable, str(PROGRAMS / "open_and_submit.py"), *map(str, files)]
    processes = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    for _ in files:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "stored\n"
    for process in processes:
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 0

    for file in files:
        with closing(SqliteStore(file)) as store:
            assert (got(store.ledger()).submitted, got(store.verify())) == (4, [])

"""The disk is full, in the middle of a commit: what was acknowledged is there and the rest says StoreFull.

When there is room again the store goes on, without being opened anew. Once with SQLite's own limit on the size of a database, which works everywhere, and once with a real file system of 2 MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sennit.errors import StoreFull
from sennit.model.lifecycle import State
from sennit.model.task import Ref, Succeeded, TaskSpec
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop

PROGRAM = Path(__file__).parent / "programs" / "full_disk.py"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "tasks.db", durability="normal")) as store:
        yield store


def pages_max(store: SqliteStore, spare: int | None) -> None:
    """Let the database grow by `spare` pages of 4 KiB and no further; None is without limit."""

    def operation(connection: object, _effects: object) -> None:
        (used,) = connection.execute("PRAGMA page_count").fetchone()  # type: ignore[attr-defined]
        limit = 2**30 if spare is None else used + spare
        connection.execute(f"PRAGMA max_page_count = {limit}")  # type: ignore[attr-defined]

    got(store.put(operation))


def large(store: SqliteStore) -> TaskSpec:
    """Return a spec that takes three pages."""
    (task_id,) = store.take_ids(1)
    return TaskSpec(ref=Ref(task_id), handler="work", queue="q", payload=b"x" * 12_000)


def submit(store: SqliteStore, specs: list[TaskSpec]) -> tuple[list[int], int]:
    """Hand in tasks, five to a commit; return the ids that were acknowledged and how many tasks found no room."""
    stored: list[int] = []
    for few in batched(specs, 5):
        for ack in [store.submit([spec]) for spec in few]:
            with suppress(StoreFull):
                ids = got(ack)
                stored += ids
    return stored, len(specs) - len(stored)


def batched(specs: list[TaskSpec], n: int) -> Iterator[list[TaskSpec]]:
    return (specs[k : k + n] for k in range(0, len(specs), n))


def test_what_was_acknowledged_is_there_and_the_rest_is_refused(store: SqliteStore) -> None:
    pages_max(store, spare=60)
    specs = [large(store) for _ in range(100)]

    stored, refused = submit(store, specs)

    assert stored
    assert refused
    assert [view.id for view in got(store.tasks(limit=1000))] == stored[::-1]
    assert (got(store.verify()), got(store.ledger()).submitted) == ([], len(stored))


def test_the_writer_works_again_when_there_is_room(store: SqliteStore) -> None:
    pages_max(store, spare=20)
    specs = [large(store) for _ in range(20)]
    stored, refused = submit(store, specs)
    assert refused

    pages_max(store, spare=None)
    missing = [spec for spec in specs if spec.ref.id not in stored]
    again, refused = submit(store, missing)

    assert (len(stored) + len(again), refused) == (20, 0)
    assert (got(store.verify()), got(store.ledger()).live) == ([], 20)


def test_the_error_says_what_why_and_what_to_do(store: SqliteStore) -> None:
    pages_max(store, spare=0)

    with pytest.raises(StoreFull) as refused:
        got(store.submit([large(store) for _ in range(10)]))

    assert str(store.path) in refused.value.what
    assert "full" in refused.value.why
    assert "free space" in refused.value.fix


def test_an_ending_that_found_no_room_is_accepted_later(store: SqliteStore) -> None:
    with running_loop() as loop:
        rig = Rig(store, loop)
        task = rig.start()
        ending = Succeeded(task.claim, b"y" * 400_000)
        pages_max(store, spare=4)

        with pytest.raises(StoreFull):
            rig.finish(ending)
        assert rig.state(task.id) is State.RUNNING

        pages_max(store, spare=None)
        assert rig.finish(ending) == [True]
        rig.check()


def can_mount() -> bool:
    """True when this user may make a mount namespace and mount in it."""
    if os.geteuid() != 0:
        return False
    try:
        argv = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_real_disk_that_fills_up_loses_nothing(tmp_path: Path, durability: str) -> None:
    if not can_mount():
        pytest.skip("needs root and a mount namespace")
    argv = ["unshare", "--mount", sys.executable, str(PROGRAM), str(tmp_path), durability]

    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "nothing lost\n"), done.stderr

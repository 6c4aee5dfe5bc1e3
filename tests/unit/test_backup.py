"""`backup`: of one moment, beside writers, never over another file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sennit.errors import StoreCorrupt, StoreUnavailable
from sennit.model.task import Ref, TaskSpec
from sennit.store.backup import backup
from sennit.store.sqlite import SqliteStore


def hand_in(store: SqliteStore, n: int) -> None:
    specs = [TaskSpec(ref=Ref(i), handler="h", queue="q", payload=b"{}") for i in store.take_ids(n)]
    store.submit(specs).result()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "fleet.db")) as opened:
        hand_in(opened, 100)
        yield opened


def test_a_copy_holds_all_that_was_acknowledged(store: SqliteStore, tmp_path: Path) -> None:
    pages = backup(store.path, tmp_path / "copy.db")

    assert (tmp_path / "copy.db").stat().st_size == 4096 * pages
    with closing(SqliteStore(tmp_path / "copy.db")) as copy:
        assert copy.ledger().result() == store.ledger().result()
        assert copy.verify().result() == []


def test_a_copy_made_beside_a_writer_is_of_one_moment(store: SqliteStore, tmp_path: Path) -> None:
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            hand_in(store, 10)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for n in range(5):
            backup(store.path, tmp_path / f"copy{n}.db")
    finally:
        enough.set()
        writing.join()

    for n in range(5):
        with closing(SqliteStore(tmp_path / f"copy{n}.db")) as copy:
            assert copy.verify().result() == []
            assert copy.ledger().result().balanced


def test_a_copy_is_one_file_that_opens_from_a_read_only_folder(store: SqliteStore, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()

    backup(store.path, shelf / "copy.db")

    assert [file.name for file in shelf.iterdir()] == ["copy.db"]
    with closing(sqlite3.connect(shelf / "copy.db")) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_file_that_is_there_is_never_overwritten(store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine", encoding="utf-8")

    with pytest.raises(StoreUnavailable, match="exists already"):
        backup(store.path, tmp_path / "precious")

    assert (tmp_path / "precious").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_not_there_is_said(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot make"):
        backup(store.path, tmp_path / "nowhere" / "copy.db")


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database, but long enough to look at" * 100)

    with pytest.raises(StoreCorrupt):
        backup(tmp_path / "fleet.db", tmp_path / "copy.db")

    assert [file.name for file in tmp_path.iterdir()] == ["fleet.db"]

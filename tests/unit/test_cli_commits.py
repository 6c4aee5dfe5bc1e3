"""Waking on commits: none is missed, and what was committed is there when the wait returns."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from sennit.cli.commits import Commits
from sennit.errors import UsageError
from sennit.model.task import LogLine, Ref, TaskSpec
from sennit.store.sqlite import SqliteStore

LINES = 300


def test_every_commit_is_seen_by_a_follower_that_only_waits(tmp_path: Path) -> None:
    """A wake-up lost between two commits, or a look before the commit is visible, would hang here for ever."""
    path = tmp_path / "fleet.db"
    with closing(SqliteStore(path)) as writer, closing(SqliteStore(path)) as reader:
        (task_id,) = writer.submit([TaskSpec(ref=Ref(1), handler="h", queue="q", payload=b"{}")]).result()

        def write() -> None:
            for n in range(LINES):
                line = LogLine(task_id=task_id, attempt=1, at_us=n, level="info", text=str(n))
                writer.log([line]).result()

        writing = threading.Thread(target=write)
        seen: list[str] = []
        with Commits(path) as commits:
            writing.start()
            seq = 0
            while len(seen) < LINES:
                new = reader.logs(task_id, after_seq=seq).result()
                seen += [line.text for line in new]
                seq = new[-1].seq if new else seq
                if len(seen) < LINES:
                    commits.wait()
        writing.join()

    assert seen == [str(n) for n in range(LINES)]


def test_a_commit_before_the_wait_ends_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    with closing(SqliteStore(path)) as store, Commits(path) as commits:
        store.submit([TaskSpec(ref=Ref(1), handler="h", queue="q", payload=b"{}")]).result()

        commits.wait()


def test_a_file_without_a_log_cannot_be_watched(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(UsageError, match="cannot watch"), Commits(tmp_path / "nothing.db"):
        pass

    assert len(list(Path("/proc/self/fd").iterdir())) == before

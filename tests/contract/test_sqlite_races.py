"""What tempting simplifications of the core SQL lose, tried between real processes on one file.

A join of edges and states in one snapshot, "no open parent exists" instead of a counter, a `LIMIT` that is evaluated
twice: each leaves children waiting for ever or hands a task out twice, and only when two processes meet.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from sennit.model.lifecycle import State
from sennit.model.task import Succeeded
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def rig(path: Path) -> Iterator[Rig]:
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        rig = Rig(store, loop)
        yield rig
        rig.check()


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    argv = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def test_children_handed_in_by_one_process_while_another_ends_their_parents_are_never_stuck(
    rig: Rig, path: Path
) -> None:
    rig.submit(*(rig.spec() for _ in range(400)))
    parents = rig.claim(400)

    with start("submit_children.py", path) as other:
        assert other.stdin is not None
        for parent in parents:
            other.stdin.write(f"{parent.id}\n")
            rig.finish(Succeeded(parent.claim, b"1"))
        said, _ = other.communicate(timeout=60)

    assert said == "1200\n"
    assert got(rig.store.counts()) == {"children": {State.READY: 1200}}


def test_processes_that_claim_at_once_get_every_task_once(rig: Rig, path: Path) -> None:
    ids = rig.submit(*(rig.spec() for _ in range(3000)))

    with ExitStack() as stack:
        others = [stack.enter_context(start("claim_all.py", path, 10**9 + k)) for k in range(3)]
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == "joined\n"
        for other in others:
            assert other.stdin is not None
            other.stdin.write("go\n")
        claimed = [[int(line) for line in other.communicate(timeout=60)[0].splitlines()] for other in others]

    assert sorted(i for mine in claimed for i in mine) == ids
    assert all(mine == sorted(mine) for mine in claimed)

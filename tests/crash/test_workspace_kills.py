"""kill -9 in the middle of writes, again and again: readers see whole values, and what was acknowledged is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from sennit.threads.workspace import Workspace
from tests.crash.nursery import Nursery

PROCESSES = 4
EACH = 200
KILLS = 30
WAIT_S = 30.0

ADD = """
import asyncio, sys
from sennit.threads.workspace import Workspace
workspace, how, each = Workspace(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if how == "sync":
    for _ in range(each): workspace.update_context("t", "n", lambda n: n + 1, default=0)
elif how == "async":
    async def main():
        for _ in range(each // 4):
            await asyncio.gather(*[workspace.update_context.aio("t", "n", lambda n: n + 1, default=0) for _ in range(4)])
    asyncio.run(main())
"""

# Between reading and setting it waits until it is told to go on.
UNPROTECTED = """
import sys
from sennit.threads.workspace import Workspace
workspace = Workspace(sys.argv[1])
n = workspace.get_context("t", "n", 0)
print("read", flush=True)
sys.stdin.readline()
workspace.set_context("t", "n", n + 1)
"""


def run(code: str, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(programs: list[subprocess.Popen[str]]) -> list[int]:
    for program in programs:
        program.communicate(timeout=WAIT_S)
    return [program.returncode for program in programs]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_processes_that_update_one_value_lose_nothing(tmp_path: Path, how: str) -> None:
    programs = [run(ADD, tmp_path, how, EACH) for _ in range(PROCESSES)]

    assert ended(programs) == [0] * PROCESSES

    assert Workspace(tmp_path).get_context("t", "n") == PROCESSES * EACH


def test_reading_and_then_setting_loses_updates(tmp_path: Path) -> None:
    """What `update_context` is for: shows that the test above can fail."""
    programs = [run(UNPROTECTED, tmp_path) for _ in range(PROCESSES)]
    assert [program.stdout.readline() for program in programs if program.stdout is not None] == ["read\n"] * PROCESSES

    assert ended(programs) == [0] * PROCESSES

    assert Workspace(tmp_path).get_context("t", "n") == 1


def whole(value: dict[str, object]) -> int:
    """Return the number of a value after a look at all of it."""
    n = value["n"]
    assert isinstance(n, int)
    assert value["text"] == chr(97 + n % 26) * 50_000
    return n


def test_kills_in_the_middle_of_writes_leave_whole_values(tmp_path: Path, nursery: Nursery) -> None:
    workspace, random, n = Workspace(tmp_path), Random(), 0
    heard: list[int] = []
    for _ in range(KILLS):
        reader, stdout = os.pipe()
        writer = nursery.start("tests.crash.workspace_writer:main", str(tmp_path), str(n), descriptors={1: stdout})
        os.close(stdout)
        acknowledged = []
        with os.fdopen(reader, encoding="ascii") as said:
            for _ in range(random.randint(1, 5)):
                acknowledged.append(int(said.readline()))
                assert whole(workspace.get_context("t", "k")) >= acknowledged[-1]
                assert whole(workspace.shared("d")) >= acknowledged[-1]
            assert writer.kill() == -signal.SIGKILL
            acknowledged += map(int, said.read().split())

        # What was acknowledged is there; the one after it may have come that far too, or only half the way.
        done = acknowledged[-1]
        outputs = workspace.outputs("t")
        assert [o.sequence for o in outputs] == list(range(1, len(outputs) + 1))
        messages = [whole(message.value) for message in workspace.messages("t")]
        n = whole(workspace.get_context("t", "k"))
        assert n - done in {0, 1}
        assert whole(workspace.shared("d")) - done in {0, 1}
        assert whole(workspace.output("t", len(outputs))) - done in {0, 1}
        assert messages in (acknowledged, [*acknowledged, done + 1])
        heard += messages

    assert len(set(heard)) == len(heard)
    assert (tmp_path / "broadcasts").stat().st_size < 2_600_000
    # The next writer finds its way through whatever was left.
    workspace.delete("gone")
    workspace.set_context("t", "k", 1)
    assert not list((tmp_path / "trash").iterdir())
    assert not [path for path in tmp_path.rglob("context/*") if path.name.endswith("~new")]

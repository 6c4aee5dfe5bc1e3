"""kill -9 in the middle of writes, again and again: readers see whole values, and what was acknowledged is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from sennit.threads.workspace import Workspace

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
else:
    for _ in range(each): workspace.set_context("t", "n", workspace.get_context("t", "n", 0) + 1)
"""

# Writes one value in many places, over and over, and says which it has finished. The value is large and of one letter.
WRITE = """
import sys
from sennit.threads.workspace import Workspace
workspace, n = Workspace(sys.argv[1], broadcasts_bytes_max=2_500_000), int(sys.argv[2])
while True:
    n += 1
    value = {"n": n, "text": chr(97 + n % 26) * 50_000}
    workspace.set_context("t", "k", value)
    workspace.share("d", value)
    workspace.add_output("t", "o", value)
    workspace.broadcast(value)
    workspace.set_context("gone", "k", value)
    workspace.delete("gone")
    print(n, flush=True)
"""


def run(code: str, *argv: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], stdout=subprocess.PIPE, text=True)


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
    programs = [run(ADD, tmp_path, "unprotected", EACH) for _ in range(PROCESSES)]

    assert ended(programs) == [0] * PROCESSES

    assert Workspace(tmp_path).get_context("t", "n") < PROCESSES * EACH


def whole(value: dict[str, object]) -> int:
    """Return the number of a value after a look at all of it."""
    n = value["n"]
    assert isinstance(n, int)
    assert value["text"] == chr(97 + n % 26) * 50_000
    return n


def test_kills_in_the_middle_of_writes_leave_whole_values(tmp_path: Path) -> None:
    workspace, random, n = Workspace(tmp_path), Random(), 0
    heard: list[int] = []
    for _ in range(KILLS):
        writer = run(WRITE, tmp_path, n)
        assert writer.stdout is not None
        acknowledged = []
        for _ in range(random.randint(1, 5)):
            acknowledged.append(int(writer.stdout.readline()))
            assert whole(workspace.get_context("t", "k")) >= acknowledged[-1]
            assert whole(workspace.shared("d")) >= acknowledged[-1]
        writer.send_signal(signal.SIGKILL)
        acknowledged += map(int, writer.stdout.read().split())
        writer.communicate()

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

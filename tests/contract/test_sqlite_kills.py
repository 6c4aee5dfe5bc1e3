"""What was acknowledged survives kill -9, right after the ack, whatever the durability.

FULL and NORMAL differ after a power cut only: what the kernel was given, it keeps when the process dies.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sennit.model.lifecycle import State
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got

PROGRAM = Path(__file__).parent / "programs" / "ack_and_die.py"
KILLS = 30


def acknowledged(argv: list[str], *, lines: int) -> Iterator[tuple[str, int]]:
    """Run the program, kill it right after its `lines`-th word, and give all it said."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, 1):
            if number == lines:
                process.send_signal(signal.SIGKILL)
            what, task_id = line.split()
            yield what, int(task_id)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_what_was_acknowledged_survives_a_kill_right_after_the_ack(tmp_path: Path, durability: str) -> None:
    path = tmp_path / "tasks.db"
    argv = [sys.executable, str(PROGRAM), str(path), durability]
    chance = random.Random(durability)
    stored: set[int] = set()
    ended: set[int] = set()
    for _ in range(KILLS):
        for what, task_id in acknowledged(argv, lines=chance.randint(1, 40)):
            (stored if what == "stored" else ended).add(task_id)

        with closing(SqliteStore(path)) as store:  # the last one out was killed: this one recovers the log
            states = {view.id: view.state for view in got(store.tasks(limit=100_000))}
            assert stored <= states.keys()
            assert {i for i, state in states.items() if state is State.SUCCEEDED} >= ended
            assert got(store.verify()) == []
            assert got(store.ledger()).balanced

    # At most the word that the kill came before is missing from what was said.
    assert len(states) - len(stored) <= KILLS
    assert list(states.values()).count(State.SUCCEEDED) - len(ended) <= KILLS

"""What was acknowledged survives kill -9, right after the ack, whatever the durability.

FULL and NORMAL differ after a power cut only: what the kernel was given, it keeps when the process dies.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sennit.model.lifecycle import State
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got
from tests.crash.nursery import Nursery

KILLS = 30


def acknowledged(nursery: Nursery, *argv: str, lines: int) -> Iterator[tuple[str, int]]:
    """Run the program, kill it right after its `lines`-th word, and give all it said."""
    reader, writer = os.pipe()
    process = nursery.start("tests.contract.programs.ack_and_die:main", *argv, descriptors={1: writer})
    os.close(writer)
    with os.fdopen(reader, encoding="ascii") as said:
        for number, line in enumerate(said, 1):
            if number == lines:
                process.kill()
            what, task_id = line.split()
            yield what, int(task_id)
    assert process.kill() == -signal.SIGKILL


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_what_was_acknowledged_survives_a_kill_right_after_the_ack(
    tmp_path: Path, nursery: Nursery, durability: str
) -> None:
    path = tmp_path / "tasks.db"
    chance = random.Random(durability)
    stored: set[int] = set()
    ended: set[int] = set()
    for _ in range(KILLS):
        for what, task_id in acknowledged(nursery, str(path), durability, lines=chance.randint(1, 40)):
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

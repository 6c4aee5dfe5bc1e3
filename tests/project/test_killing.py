"""The counts of bench/killing.py find what they are there for: each of some broken stores, and nothing in the sound one.

Two processes at one store have a bad day that is written down here (a worker dies, another only seems to and writes
late). What ends up in the rows and in the log is counted by `killing.judge`, as in the benchmark.
"""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from sennit.model.task import Claimed, Succeeded
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop
from tests.project.broken_stores import BROKEN, changes_of

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 50.0

NOTHING = {"lost": 0, "accepted_twice": 0, "token_run_twice": 0, "saved_step_run_again": 0}
FOUND = {
    "finish compares the task only, not the attempt": "accepted_twice",
    "finish asks nobody whether the attempt is held": "accepted_twice",
    "an ended attempt stays held": "accepted_twice",
    "the result is dropped": "accepted_twice",
    "a rescued task goes nowhere": "lost",
    "submit forgets the last of a batch": "lost",
    "an attempt has the number of the one before": "token_run_twice",
    "an attempt does not get the saved steps": "saved_step_run_again",
}


@pytest.fixture
def killing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """bench/killing.py, with a log of its own."""
    monkeypatch.setenv("BENCH_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(ROOT / "bench")
    for name in ("harness", "killing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("killing")
    yield module
    harness = sys.modules.pop("harness")
    del sys.modules["killing"]
    if harness._log_fd >= 0:
        os.close(harness._log_fd)


class Worker:
    """One process at the store, with bodies that log as those of the benchmark do."""

    def __init__(self, rig: Rig, killing: ModuleType) -> None:
        self.rig = rig
        self.killing = killing
        self.hit = sys.modules["harness"].hit

    def claim(self) -> list[Claimed]:
        """Take what is ready and begin it: the log has the start, the step and that the step was saved."""
        tasks = self.rig.claim(100)
        for task in tasks:
            self.hit(task.id, self.killing.START, task.attempt)
            if "paid" not in task.steps:
                self.hit(task.id, self.killing.STEP, task.attempt)
                if not got(self.rig.store.save_step(task.claim, "paid", b"1")):
                    continue
            self.hit(task.id, self.killing.SAVED, task.attempt)
        return tasks

    def end(self, *tasks: Claimed) -> None:
        """Come to the end of bodies and have it recorded, or refused."""
        for task in tasks:
            self.hit(task.id, self.killing.END, task.attempt)
            self.rig.finish(Succeeded(task.claim, b"%d" % task.attempt))


def bad_day(path: Path, killing: ModuleType) -> list[int]:
    """Let two workers run five tasks; return the ids that were acknowledged.

    first    claims all ── ends the 1st ── seems dead ┄┄┄┄┄┄┄┄┄┄┄┄┄┄ ends the 2nd ───────────────── ends the 3rd
    second                                            rescues, claims ───────────── ends all it has

    """
    with (
        running_loop() as loop,
        closing(SqliteStore(path, durability="normal")) as one,
        closing(SqliteStore(path, durability="normal")) as other,
    ):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(killing.JOURNAL)
        first, second = Worker(Rig(one, loop), killing), Worker(Rig(other, loop), killing)
        ids = first.rig.submit(*(first.rig.spec() for _ in range(5)))

        done, early, late, *_ = first.claim()
        first.end(done)
        got(other.rescue(first.rig.worker_id))
        taken_over = second.claim()
        first.end(early)
        second.end(*taken_over)
        first.end(late)
    return ids


def test_the_counts_find_nothing_in_the_sound_store(killing: ModuleType, tmp_path: Path) -> None:
    ids = bad_day(tmp_path / "tasks.db", killing)

    figures = killing.judge(str(tmp_path / "tasks.db"), ids)

    assert figures == NOTHING | {"ended_but_run_again": 2}  # the early and the late one: their ends were refused


@pytest.mark.parametrize("mutant", BROKEN)
def test_the_counts_find_each_broken_store(
    mutant: str, killing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change in changes_of(mutant):
        monkeypatch.setattr(*change)
    ids = bad_day(tmp_path / "tasks.db", killing)

    figures = killing.judge(str(tmp_path / "tasks.db"), ids)

    assert figures[FOUND[mutant]] > 0, figures


def killed_fleet(folder: Path, *, kills: int, mutant: str) -> dict[str, float]:
    argv = [sys.executable, "-m", "tests.project.killed_fleet", "drive", str(kills), mutant]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environ = os.environ | {"BENCH_DIR": str(folder), "PYTHONPATH": path}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, env=environ, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def test_real_kills_find_nothing_in_the_sound_store(tmp_path: Path) -> None:
    figures = killed_fleet(tmp_path, kills=2, mutant="")

    assert {name: figures[name] for name in NOTHING} == NOTHING
    assert figures["promises_broken"] == 0


def test_real_kills_find_ends_that_are_accepted_twice(tmp_path: Path) -> None:
    figures = killed_fleet(tmp_path, kills=1, mutant="an ended attempt stays held")

    assert figures["accepted_twice"] > 0


def test_real_kills_find_saved_steps_that_run_again(tmp_path: Path) -> None:
    figures = killed_fleet(tmp_path, kills=2, mutant="an attempt does not get the saved steps")

    assert figures["saved_step_run_again"] > 0

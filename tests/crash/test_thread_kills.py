"""kill -9 among threads: their tasks run one at a time and in order, their state is exact, answers arrive once.

The workers are real processes that work straight on the store (tests/contract/programs/thread_worker.py); this process
hands in, kills, rescues what the dead held, answers, and looks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from random import Random

import msgspec
import pytest

from sennit.errors import AskClosed
from sennit.model.lifecycle import State
from sennit.model.thread import Answer, AskSpec, Decision
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop
from tests.crash.fleet import ROOT, WAIT_S, Journal

PROGRAM = ROOT / "tests" / "contract" / "programs" / "thread_worker.py"
PROCESSES, KILLS = 3, 12
QUESTIONS = ("colour", "size", "when")


class Crew:
    """Worker processes of one mode that are killed and replaced."""

    def __init__(self, rig: Rig, path: Path, mode: str) -> None:
        self.rig = rig
        self.journal = Journal()
        self._argv = [sys.executable, str(PROGRAM), str(path), mode]
        self._alive: list[subprocess.Popen[bytes]] = []

    def start(self, n: int) -> None:
        for _ in range(n):
            environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "FLEET_JOURNAL": str(self.journal.writer)}
            self._alive.append(subprocess.Popen(self._argv, env=environ, pass_fds=[self.journal.writer]))

    def wait_until_all_are_ready(self) -> None:
        for process in self._alive:
            self.journal.wait_for("ready", where=lambda r, pid=process.pid: r.pid == pid)  # type: ignore[misc]

    def kill(self, which: int = 0) -> None:
        """Kill one, wherever it is, and take back what it held."""
        victim = self._alive.pop(which)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        for worker in got(self.rig.store.workers()):
            if worker.pid == victim.pid:
                got(self.rig.store.rescue(worker.id))

    def kill_at_random_points(self, random: Random, *, until: Callable[[], bool]) -> int:
        """Kill a random one after a random number of events and start another; return how many died."""
        for kill in range(KILLS):
            seen = len(self.journal.records)
            for _ in range(random.randint(1, 12)):
                if until():
                    return kill
                seen = self.journal.wait_for_more(seen)
            self.kill(random.randrange(len(self._alive)))
            self.start(1)
        return KILLS

    def close(self) -> None:
        while self._alive:
            self.kill()
        self.journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def rig(path: Path) -> Iterator[Rig]:
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        rig = Rig(store, loop)
        yield rig
        rig.check()


@pytest.fixture
def crew(rig: Rig, path: Path) -> Iterator[Callable[[str], Crew]]:
    with ExitStack() as stack:

        def start(mode: str) -> Crew:
            crew = Crew(rig, path, mode)
            stack.callback(crew.close)
            return crew

        yield start


def counted(rig: Rig, thread_id: str) -> int:
    return int(rig.remembered(thread_id).data or b"0")


def test_the_state_always_equals_the_number_of_tasks_that_succeeded(rig: Rig, crew: Callable[[str], Crew]) -> None:
    random = Random()
    ids = [rig.put(thread_id=f"t{n % 4}", crashes_max=10**6) for n in range(200)]
    workers, seen = crew("count"), 0
    for _ in range(KILLS):
        workers.start(2)
        workers.wait_until_all_are_ready()
        seen = len(workers.journal.records)
        for _ in range(random.randint(1, 25)):
            if not rig.number(State.READY) + rig.number(State.RUNNING):
                break
            seen = workers.journal.wait_for_more(seen)
        workers.kill()
        workers.kill()

        views = [rig.view(task_id) for task_id in ids]
        succeeded = [view for view in views if view.state is State.SUCCEEDED]
        assert counted(rig, "all") == rig.remembered("all").version == len(succeeded)
        for k in range(4):
            thread_id = f"t{k}"
            assert counted(rig, thread_id) == sum(view.thread_id == thread_id for view in succeeded)

    assert succeeded
    assert workers.journal.of("conflict"), "the two never met on the thread that both write to"


def test_the_tasks_of_a_thread_run_one_at_a_time_and_in_order_while_workers_are_killed(
    rig: Rig, crew: Callable[[str], Crew]
) -> None:
    specs = [rig.spec(thread_id=f"t{n % 5}", priority=n % 4, crashes_max=10**6) for n in range(150)]
    rig.submit(*specs)
    watches = [rig.store.watch(spec.ref.id) for spec in specs]
    workers = crew("count")
    workers.start(PROCESSES)

    kills = workers.kill_at_random_points(Random(), until=lambda: all(watch.done for watch in watches))
    outcomes = [watch.result(timeout_s=WAIT_S) for watch in watches]

    assert {outcome.state for outcome in outcomes} == {State.SUCCEEDED}
    assert kills > KILLS // 2
    assert any(outcome.attempt > 1 for outcome in outcomes)
    thread_of = {spec.ref.id: spec.thread_id for spec in specs}
    for thread_id in dict.fromkeys(thread_of.values()):
        mine = [r for r in workers.journal.records if thread_of.get(r.task_id) == thread_id]
        runs = [(task_id, list(records)) for task_id, records in groupby(mine, key=lambda r: r.task_id)]
        assert [task_id for task_id, _ in runs] == [i for i, t in thread_of.items() if t == thread_id]
        for _, records in runs:
            attempts = [r.attempt for r in records]
            assert attempts == sorted(attempts)
            assert [r.attempt for r in records if r.what == "start"] == sorted(set(attempts))
            assert records[-1].what == "end"
        assert counted(rig, str(thread_id)) == len(runs)


class Answerer:
    """Answers whatever is open, from a store of its own, as fast as it hears of it."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.accepted: dict[tuple[int, str], str] = {}
        self.refused = 0
        self.store = SqliteStore(path, durability="normal")
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.over = threading.Event()
        self.thread.start()

    def _run(self) -> None:
        seen = -1
        while True:
            seen = self.store.watch_inbox(seen).result(timeout_s=WAIT_S)
            if self.over.is_set():
                return
            for ask in got(self.store.asks()):
                said = f"{self.name} says {ask.id}"
                decision = Decision(
                    ask_id=ask.id,
                    answer=Answer(state="answered", value=msgspec.Raw(msgspec.json.encode(said)), by=self.name),
                    version=ask.version,
                )
                for _ in range(2):  # a second time is refused, whoever was first
                    try:
                        got(self.store.answer([decision]))
                    except AskClosed:
                        self.refused += 1
                    else:
                        assert (ask.task_id, ask.spec.key) not in self.accepted
                        self.accepted[ask.task_id, ask.spec.key] = said

    def close(self) -> None:
        self.over.set()
        self.thread.join(WAIT_S)
        self.store.close()


def test_every_question_is_answered_exactly_once_while_workers_are_killed(
    rig: Rig, path: Path, crew: Callable[[str], Crew]
) -> None:
    ids = [rig.put(thread_id=f"t{n % 15}", crashes_max=10**6) for n in range(60)]
    watches = [rig.store.watch(task_id) for task_id in ids]
    workers = crew("ask")
    workers.start(PROCESSES)
    workers.wait_until_all_are_ready()
    answerers = [Answerer(path, name) for name in ("ann", "bob")]

    kills = workers.kill_at_random_points(Random(), until=lambda: all(watch.done for watch in watches))
    outcomes = [watch.result(timeout_s=WAIT_S) for watch in watches]
    for answerer in answerers:
        answerer.over.set()
    rig.put(queue="last")
    rig.park(rig.claim(queue="last")[0], AskSpec(key="last"))  # wakes those who wait for the inbox
    for answerer in answerers:
        answerer.close()

    ann, bob = (answerer.accepted for answerer in answerers)
    assert not ann.keys() & bob.keys()
    everything = ann | bob
    assert everything.keys() == {(task_id, key) for task_id in ids for key in QUESTIONS}
    for task_id, outcome in zip(ids, outcomes, strict=True):
        result = msgspec.json.decode(outcome.result or b"{}")
        assert result == {key: everything[task_id, key] for key in QUESTIONS}
    assert min(len(ann), len(bob), *(answerer.refused for answerer in answerers)) > 0
    assert kills > KILLS // 2

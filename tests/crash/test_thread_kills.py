"""kill -9 among threads: their tasks run one at a time and in order, their state is exact, answers arrive once.

The workers are real processes that work straight on the store (tests/contract/programs/thread_worker.py); this process
hands in, kills, rescues what the dead held, answers, and looks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from random import Random

import msgspec
import pytest

from sennit.errors import AskClosed
from sennit.model.lifecycle import State
from sennit.model.task import TaskSpec
from sennit.model.thread import Answer, AskSpec, Decision
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop
from tests.crash.fleet import WAIT_S, Journal
from tests.crash.nursery import Forked, Nursery

PROCESSES, KILLS = 3, 12
QUESTIONS = ("colour", "size", "when")


class Crew:
    """Worker processes of one mode that are killed and replaced."""

    def __init__(self, rig: Rig, path: Path, mode: str, nursery: Nursery) -> None:
        self.rig = rig
        self.journal = Journal()
        self._argv = ("tests.contract.programs.thread_worker:main", str(path), mode)
        self._nursery = nursery
        self._alive: list[Forked] = []
        self._gate, self._gate_keeper = os.pipe()

    def start(self, n: int) -> None:
        environ = {**os.environ, "FLEET_JOURNAL": str(self.journal.writer), "FLEET_GATE": str(self._gate)}
        given = {fd: fd for fd in (self.journal.writer, self._gate)}
        self._alive += [self._nursery.start(*self._argv, environ=environ, descriptors=given) for _ in range(n)]

    def start_ready(self, n: int) -> None:
        self.start(n)
        self.journal.wait_ready(*self._alive)

    def open_gate(self) -> None:
        """Let all go on that have read a state and have not written it yet."""
        if self._gate_keeper >= 0:
            os.close(self._gate_keeper)
        self._gate_keeper = -1

    def let_all_meet(self) -> None:
        """Have all read the same state, then let them write it: one is first."""
        for process in self._alive:
            self.journal.wait_for("read", where=lambda r, pid=process.pid: r.pid == pid)  # type: ignore[misc]
        self.open_gate()
        self.journal.wait_for("conflict")

    def kill(self, which: int = 0) -> None:
        """Kill one, wherever it is, and take back what it held."""
        victim = self._alive.pop(which)
        victim.kill()
        for worker in got(self.rig.store.workers()):
            if worker.pid == victim.pid:
                got(self.rig.store.rescue(worker.id))

    def hand_in(self, specs: Sequence[TaskSpec]) -> None:
        self.rig.submit(*specs)
        self.journal.say_when_over([self.rig.store.watch(spec.ref.id) for spec in specs])

    def wait_for_some(self, random: Random, *, n_max: int) -> None:
        """Wait for a random number of events, or until everything has ended: then no more may come."""
        seen = len(self.journal.records)
        for _ in range(random.randint(1, n_max)):
            if self.journal.is_over:
                return
            seen = self.journal.wait_for_more(seen)

    def kill_at_random_points(self, portions: Sequence[Sequence[TaskSpec]]) -> None:
        """Hand in a portion, kill a random one after a random number of events and start another, until all is done."""
        random = Random()
        self.open_gate()
        for portion in portions:
            self.hand_in(portion)
            self.wait_for_some(random, n_max=12)
            self.kill(random.randrange(len(self._alive)))
            self.start(1)

    def close(self) -> None:
        while self._alive:
            self.kill()
        self.journal.close()
        self.open_gate()
        os.close(self._gate)


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
def crew(rig: Rig, path: Path, nursery: Nursery) -> Iterator[Callable[[str], Crew]]:
    with ExitStack() as stack:

        def start(mode: str) -> Crew:
            crew = Crew(rig, path, mode, nursery)
            stack.callback(crew.close)
            return crew

        yield start


def portions(specs: Sequence[TaskSpec]) -> list[Sequence[TaskSpec]]:
    """Return as many parts as there are kills: so there is always work when one comes, however late it is."""
    size = len(specs) // KILLS
    return [specs[n : n + size] for n in range(0, size * KILLS, size)]


def counted(rig: Rig, thread_id: str) -> int:
    return int(rig.remembered(thread_id).data or b"0")


def test_the_state_always_equals_the_number_of_tasks_that_succeeded(rig: Rig, crew: Callable[[str], Crew]) -> None:
    random = Random()
    specs = [rig.spec(thread_id=f"t{n % 4}", crashes_max=10**6) for n in range(204)]
    workers, handed_in = crew("count"), list[TaskSpec]()
    for portion in portions(specs):
        workers.hand_in(portion)
        handed_in += portion
        workers.start_ready(2)
        if not workers.journal.of("conflict"):
            workers.let_all_meet()  # on the thread that both write to
        workers.wait_for_some(random, n_max=25)
        workers.kill()
        workers.kill()

        views = [rig.view(spec.ref.id) for spec in handed_in]
        succeeded = [view for view in views if view.state is State.SUCCEEDED]
        assert counted(rig, "all") == rig.remembered("all").version == len(succeeded)
        for k in range(4):
            thread_id = f"t{k}"
            assert counted(rig, thread_id) == sum(view.thread_id == thread_id for view in succeeded)

    assert succeeded


def test_the_tasks_of_a_thread_run_one_at_a_time_and_in_order_while_workers_are_killed(
    rig: Rig, crew: Callable[[str], Crew]
) -> None:
    specs = [rig.spec(thread_id=f"t{n % 5}", priority=n % 4, crashes_max=10**6) for n in range(156)]
    workers = crew("count")
    workers.start(PROCESSES)

    workers.kill_at_random_points(portions(specs))
    outcomes = [rig.store.watch(spec.ref.id).result(timeout_s=WAIT_S) for spec in specs]

    assert {outcome.state for outcome in outcomes} == {State.SUCCEEDED}
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
    """Answers whatever is open, from a store of its own, as fast as it hears of it.

    Args:
        step: 1 or -1: two who begin at different ends both come first somewhere.
    """

    def __init__(self, path: Path, name: str, step: int) -> None:
        self.name = name
        self.step = step
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
            asks = got(self.store.asks())
            if self.over.is_set():  # looked at last: what is asked after it is not for us
                return
            for ask in asks[:: self.step]:
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
    specs = [rig.spec(thread_id=f"t{n % 15}", crashes_max=10**6) for n in range(60)]
    workers = crew("ask")
    workers.start_ready(PROCESSES)
    answerers = [Answerer(path, "ann", 1), Answerer(path, "bob", -1)]

    workers.kill_at_random_points(portions(specs))
    outcomes = [rig.store.watch(spec.ref.id).result(timeout_s=WAIT_S) for spec in specs]
    for answerer in answerers:
        answerer.over.set()
    rig.put(queue="last")
    rig.park(rig.claim(queue="last")[0], AskSpec(key="last"))  # wakes those who wait for the inbox
    for answerer in answerers:
        answerer.close()

    ann, bob = (answerer.accepted for answerer in answerers)
    assert not ann.keys() & bob.keys()
    everything = ann | bob
    assert everything.keys() == {(spec.ref.id, key) for spec in specs for key in QUESTIONS}
    for spec, outcome in zip(specs, outcomes, strict=True):
        result = msgspec.json.decode(outcome.result or b"{}")
        assert result == {key: everything[spec.ref.id, key] for key in QUESTIONS}
    assert min(len(ann), len(bob), *(answerer.refused for answerer in answerers)) > 0

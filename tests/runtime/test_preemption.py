"""Preemption: an urgent task takes the slot of a preemptible one between two of its steps, and no step runs twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sennit import App, Handle, RetryPolicy, step
from sennit.model.lifecycle import State
from sennit.model.task import Ledger
from tests.crash.fleet import ROOT, WAIT_S, Journal
from tests.runtime import preemption_program

STEPS = 5
EITHER_BODY = pytest.mark.parametrize("kind", ["async", "sync"])


class Stage:
    """An app whose bodies write down what they do, and whose steps end when they may."""

    def __init__(self, url: str, *, slots: int) -> None:
        self.app = App(url, durability="normal", slots=slots)
        self.did: list[str] = []
        self._news = threading.Condition()
        self._may_end = Counter[str]()

    def say(self, what: str) -> None:
        with self._news:
            self.did.append(what)
            self._news.notify_all()

    def wait_for(self, what: str, n: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.did.count(what) >= n, WAIT_S), f"no {what!r}: {self.did}"

    def wait_pressed(self) -> None:
        """Wait until an attempt has been asked to make room. Nobody is told, so this looks behind the door."""
        engine, tick = self.app._engine, threading.Event()
        assert engine is not None
        for _ in range(int(WAIT_S * 1000)):
            if engine._worker._pressed:
                return
            tick.wait(0.001)
        raise AssertionError("nobody was asked to make room")

    def let_end(self, what: str) -> None:
        with self._news:
            self._may_end[what] += 1
            self._news.notify_all()

    def piece(self, what: str) -> str:
        """A step: an OS thread waits in it until it may end."""
        self.say(what)
        with self._news:
            assert self._news.wait_for(lambda: self._may_end[what], WAIT_S), what
        return what

    def long(self, kind: str, **how: Any) -> Any:
        """Register a handler of five steps, of which the second waits to be let go."""

        def run(name: str, n: int) -> str:
            what = f"{name}-{n}"
            if n == 2:
                return self.piece(what)
            self.say(what)
            return what

        async def run_async(name: str, n: int) -> str:
            return await asyncio.to_thread(run, name, n)

        async def long_async(name: str) -> list[str]:
            return [await step(run_async, name, n) for n in range(1, STEPS + 1)]

        def long_sync(name: str) -> list[str]:
            return [step(run, name, n).result() for n in range(1, STEPS + 1)]

        return self.app.task(name="long", **how)(long_async if kind == "async" else long_sync)

    def short(self) -> Any:
        def short(name: str) -> str:
            self.say(name)
            return name

        return self.app.task(name="short")(short)


@pytest.fixture(params=["memory", "sqlite"])
def make_stage(request: pytest.FixtureRequest, url: str) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(slots: int = 1) -> Stage:
        made.append(Stage("memory://" if request.param == "memory" else url, slots=slots))
        return made[-1]

    yield make
    for stage in made:
        stage.app.close()


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage()


def steps_of(name: str) -> list[str]:
    return [f"{name}-{n}" for n in range(1, STEPS + 1)]


def attempts_of(handle: Handle[Any]) -> int:
    return handle.view().result().attempt


# ---------------------------------------------------------------- one process


@EITHER_BODY
def test_an_urgent_task_runs_between_two_steps_and_each_step_runs_once(stage: Stage, kind: str) -> None:
    long, short = stage.long(kind, preemptible=True), stage.short()
    with stage.app:
        low = long.options(priority="low").submit("low")
        stage.wait_for("low-2")
        urgent = short.options(priority="urgent").submit("urgent")
        stage.wait_pressed()
        stage.let_end("low-2")

        assert urgent.result(WAIT_S) == "urgent"
        assert low.result(WAIT_S) == steps_of("low")
        assert attempts_of(low) == 2
        view = low.view().result()
        assert (view.failures, view.crashes) == (0, 0)
        ledger: Ledger = stage.app.ledger().result()

    assert stage.did == ["low-1", "low-2", "urgent", "low-3", "low-4", "low-5"]
    assert (ledger.retried, ledger.crashed, ledger.refused) == (0, 0, 0)


@EITHER_BODY
def test_a_body_that_is_not_preemptible_is_left_alone(stage: Stage, kind: str) -> None:
    long, short = stage.long(kind), stage.short()
    with stage.app:
        low = long.options(priority="low").submit("low")
        stage.wait_for("low-2")
        urgent = short.options(priority="urgent").submit("urgent")
        stage.let_end("low-2")

        assert low.result(WAIT_S) == steps_of("low")
        urgent.result(WAIT_S)
        assert attempts_of(low) == 1

    assert stage.did == [*steps_of("low"), "urgent"]


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
def test_only_an_urgent_task_preempts(stage: Stage, priority: str) -> None:
    long, short = stage.long("async", preemptible=True), stage.short()
    with stage.app:
        low = long.options(priority="low").submit("low")
        stage.wait_for("low-2")
        other = short.options(priority=priority).submit("other")
        stage.let_end("low-2")

        other.result(WAIT_S)
        assert low.result(WAIT_S) == steps_of("low")
        assert attempts_of(low) == 1


def test_an_urgent_task_does_not_preempt_an_urgent_one(stage: Stage) -> None:
    long, short = stage.long("async", preemptible=True), stage.short()
    with stage.app:
        first = long.options(priority="urgent").submit("first")
        stage.wait_for("first-2")
        second = short.options(priority="urgent").submit("second")
        stage.let_end("first-2")

        second.result(WAIT_S)
        assert first.result(WAIT_S) == steps_of("first")
        assert attempts_of(first) == 1


def test_of_several_the_one_with_the_lowest_priority_makes_room(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(slots=3)
    long, short = stage.long("async", preemptible=True), stage.short()
    names = ("high", "low", "normal")
    with stage.app:
        handles = {name: long.options(priority=name).submit(name) for name in names}
        for name in names:
            stage.wait_for(f"{name}-2")
        urgent = short.options(priority="urgent").submit("urgent")
        stage.wait_pressed()
        for name in names:
            stage.let_end(f"{name}-2")

        urgent.result(WAIT_S)
        for name in names:
            assert handles[name].result(WAIT_S) == steps_of(name)
        attempts = {name: attempts_of(handle) for name, handle in handles.items()}

    assert sum(attempts.values()) <= 4
    assert attempts["high"] == attempts["normal"] == 1
    assert max(Counter(stage.did).values()) == 1


def test_two_urgent_tasks_of_one_batch_take_two_slots(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(slots=2)
    long = stage.long("async", preemptible=True)

    @stage.app.task(name="meet")
    async def meet(name: str) -> str:
        stage.say(name)
        return await asyncio.to_thread(stage.piece, name)

    with stage.app:
        lows = [long.options(priority="low").submit(name) for name in ("a", "b")]
        for name in ("a", "b"):
            stage.wait_for(f"{name}-2")
        urgent = meet.options(priority="urgent").map(["x", "y"])
        stage.wait_pressed()
        stage.let_end("b-2")  # the last one started is asked first
        stage.wait_for("x")
        stage.wait_pressed()
        stage.let_end("a-2")
        stage.wait_for("y")
        for name in ("x", "y"):
            stage.let_end(name)

        assert urgent.result(WAIT_S) == ["x", "y"]
        assert [low.result(WAIT_S) for low in lows] == [steps_of("a"), steps_of("b")]
        assert [attempts_of(low) for low in lows] == [2, 2]


def test_when_another_slot_comes_free_first_nobody_is_preempted(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(slots=2)
    long, short = stage.long("async", preemptible=True), stage.short()

    @stage.app.task(name="brief")
    def brief() -> str:
        return stage.piece("brief")

    with stage.app:
        low = long.options(priority="low").submit("low")
        beside = brief.submit()
        stage.wait_for("low-2")
        stage.wait_for("brief")
        urgent = short.options(priority="urgent").submit("urgent")
        stage.wait_pressed()
        stage.let_end("brief")  # here is a slot
        urgent.result(WAIT_S)
        beside.result(WAIT_S)
        stage.let_end("low-2")

        assert low.result(WAIT_S) == steps_of("low")
        assert attempts_of(low) == 1


def test_a_step_that_runs_beside_ends_before_the_attempt_does(stage: Stage) -> None:
    short = stage.short()

    @stage.app.task(preemptible=True)
    async def wide() -> list[str]:
        async def slow(what: str) -> str:
            return await asyncio.to_thread(stage.piece, what)

        async def branch(*names: str) -> list[str]:
            return [await step(slow, name) for name in names]

        one, two = await asyncio.gather(branch("a1", "a2"), branch("b1", "b2"))
        return one + two

    with stage.app:
        handle = wide.submit()
        for name in ("a1", "b1"):
            stage.wait_for(name)
        urgent = short.options(priority="urgent").submit("urgent")
        stage.wait_pressed()
        for name in ("a1", "b1", "a2", "b2"):
            stage.let_end(name)

        urgent.result(WAIT_S)
        assert handle.result(WAIT_S) == ["a1", "a2", "b1", "b2"]
        assert attempts_of(handle) == 2

    assert Counter(stage.did) == dict.fromkeys(["a1", "a2", "b1", "b2", "urgent"], 1)
    assert stage.did.index("urgent") == 2


def test_children_and_retries_are_as_without_it(stage: Stage) -> None:
    short, tries = stage.short(), []

    @stage.app.task(preemptible=True, retries=RetryPolicy(retries=1, delay_s=0.0))
    async def parent() -> str:
        child = short.submit("child")
        await step(asyncio.to_thread, stage.piece, "first")
        await step(stage.say, "second")
        tries.append(1)
        if len(tries) == 1:
            raise OSError("once")
        return str(await child)

    with stage.app:
        handle = parent.submit()
        stage.wait_for("first")
        urgent = short.options(priority="urgent").submit("urgent")
        stage.wait_pressed()
        stage.let_end("first")

        urgent.result(WAIT_S)
        assert handle.result(WAIT_S) == "child"
        assert (attempts_of(handle), handle.view().result().failures) == (3, 1)
        children = [t for t in stage.app.store.tasks(limit=100).result() if t.parent_id == handle.id]

    assert [child.state for child in children] == [State.SUCCEEDED]
    assert Counter(stage.did) == dict.fromkeys(["first", "second", "child", "urgent"], 1)


# ---------------------------------------------------------------- two processes


class Processes:
    """Worker processes of one slot each on one database, the journal of their bodies, and the gates these wait at."""

    def __init__(self, url: str, folder: Path) -> None:
        self.journal = Journal()
        self.app = App(url, durability="normal")
        self.long, self.short = preemption_program.handlers(self.app)
        self._url = url
        self._gates = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, n: int) -> None:
        settings = {"SENNIT_DB": self._url, "SENNIT_DURABILITY": "normal", "SENNIT_SLOTS": "1"}
        paths = {
            "GATES": str(self._gates),
            "FLEET_JOURNAL": str(self.journal.writer),
            "PYTHONPATH": f"{ROOT}/src:{ROOT}",
        }
        for _ in range(n):
            argv = [sys.executable, "-m", "tests.runtime.preemption_program"]
            env = {**os.environ, **settings, **paths}
            self._running.append(subprocess.Popen(argv, cwd=ROOT, env=env, pass_fds=[self.journal.writer]))
        self.journal.wait_for("ready", n)

    def gate(self, name: str) -> None:
        os.mkfifo(self._gates / name)

    def open_gate(self, name: str) -> None:
        (self._gates / name).write_bytes(b"")

    def close(self) -> None:
        self.app.close()
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.journal.close()


@pytest.fixture
def processes(url: str, tmp_path: Path) -> Iterator[Processes]:
    some = Processes(url, tmp_path)
    yield some
    some.close()


@pytest.mark.parametrize("n", [1, 2])
def test_in_worker_processes_an_urgent_task_runs_between_two_steps(processes: Processes, n: int) -> None:
    processes.start(n)
    names = ["a", "b"][:n]
    lows = []
    for name in names:
        processes.gate(name)
        lows.append(processes.long.options(priority="low").submit(name))
    processes.journal.wait_for("step", 2 * n)  # each at its second step, each in a process of its own

    urgent = processes.short.options(priority="urgent").submit("now")
    processes.journal.wait_for("pressed", n)
    others = [processes.long.options(priority="low").submit(name) for name in ("c",)]
    processes.gate("c")
    for name in [*names, "c"]:
        processes.open_gate(name)

    assert urgent.result(WAIT_S) == "now"
    assert [low.result(WAIT_S) for low in [*lows, *others]] == [[1, 2, 3, 4, 5]] * (n + 1)
    ran = [record.note for record in processes.journal.of("step")]
    assert Counter(ran) == dict.fromkeys([f"{name}-{k}" for name in [*names, "c"] for k in range(1, 6)], 1)
    # By the claims, in the one order of the store: which of two processes then writes its first line sooner is open.
    urgent_us, other_us = (handle.view().result().started_us for handle in (urgent, *others))
    assert urgent_us is not None
    assert other_us is not None
    assert urgent_us <= other_us
    attempts = [attempts_of(low) for low in lows]
    assert max(attempts) == 2
    assert all(attempt <= 2 for attempt in attempts)
    ledger = processes.app.ledger().result()
    assert (ledger.crashed, ledger.retried, ledger.refused, ledger.live) == (0, 0, 0, 0)
    assert processes.app.store.verify().result() == []

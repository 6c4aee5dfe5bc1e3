"""Load control in a running process: fewer bodies run under load, all again after it, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from sennit import App, Handle, step
from sennit.limit import load as live
from sennit.limit import shedding
from sennit.limit.cgroups import MemoryUse
from sennit.limit.shedding import Decision, LoadBounds
from sennit.model.lifecycle import State
from sennit.runtime.engine import Engine
from tests.busy import busy
from tests.crash.fleet import WAIT_S, client, fleet, values
from tests.runtime.test_processes import IDLE_S, WAKE_UPS_MAX, changed, wake_ups

PSI = Path("/proc/pressure/cpu")
# Bounds that no other program on this machine makes us exceed: what happens is what the test does.
DEAF = {"load_cpu_pressure_max": 1.0, "load_memory_free_min": 0.0, "loop_lag_notice_s": 3600.0}


class Stage:
    """An app whose bodies run until they may end, and say how many ran at once."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = App(url, **{"durability": "normal", "load_control": True, "slots": 10, **DEAF, **settings})
        self.running = 0
        self.names: list[str] = []
        self._news = threading.Condition()
        self._may_end = 0
        self.work = self.app.task(name="work")(self._work)

    def _work(self, name: str) -> str:
        with self._news:
            self.running += 1
            self.names.append(name)
            self._news.notify_all()
            assert self._news.wait_for(lambda: self._may_end > 0, WAIT_S)
            self._may_end -= 1
            self.running -= 1
            self._news.notify_all()
        return name

    def let_end(self, n: int) -> None:
        with self._news:
            self._may_end += n
            self._news.notify_all()

    def wait_for(self, fact: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(fact, WAIT_S), (self.running, self.names)

    def wait_for_names(self, n: int) -> None:
        self.wait_for(lambda: len(self.names) == n)

    @property
    def engine(self) -> Engine:
        engine = self.app._engine
        assert engine is not None
        return engine

    def on_loop(self, call: Callable[[], object]) -> None:
        """Call on the engine's loop, and wait until what follows from it has reached the store."""
        done: Future[None] = Future()

        def run() -> None:
            call()
            self.engine._loop.call_soon(done.set_result, None)

        self.engine._loop.call_soon_threadsafe(run)
        done.result(WAIT_S)
        wait_until(lambda: not self.engine._dispatcher._cancelling)
        self.app.store.counts().result()

    def scale(self, multiplier: float) -> None:
        self.on_loop(lambda: self.engine._dispatcher.scale(multiplier))

    @property
    def succeeded(self) -> int:
        return self.app.ledger().result().succeeded

    @property
    def ready(self) -> int:
        return self.app.store.counts().result().get("default", {}).get(State.READY, 0)


def wait_until(fact: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait for something that nobody announces."""
    tick = threading.Event()
    for _ in range(int(seconds * 1000)):
        if fact():
            return
        tick.wait(0.001)
    raise AssertionError("it did not come about")


@pytest.fixture(params=["memory", "sqlite"])
def make_stage(request: pytest.FixtureRequest, url: str) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(**settings: Any) -> Stage:
        made.append(Stage("memory://" if request.param == "memory" else url, **settings))
        return made[-1]

    yield make
    for stage in made:
        stage.let_end(10_000)
        stage.app.close()


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery takes seconds instead of half a minute."""
    monkeypatch.setattr(shedding, "RISE_EVERY_US", 200_000)
    monkeypatch.setattr(live, "TICK_S", 0.2)


def submitted(stage: Stage, n: int, **options: Any) -> list[Handle[str]]:
    return stage.work.map([str(k) for k in range(n)], **options)


@pytest.mark.parametrize("how", ["hold back", "scale"])
def test_what_is_held_ahead_is_given_back_when_fewer_may_run_and_nothing_of_it_is_lost(
    make_stage: Callable[..., Stage], how: str
) -> None:
    stage = make_stage(slots=2, claim_ahead=8)
    with stage.app:
        handles = submitted(stage, 11)
        stage.wait_for(lambda: stage.running == 2)
        stage.let_end(1)  # what is ready since then is claimed ahead
        stage.wait_for_names(3)
        wait_until(lambda: stage.ready == 0)
        dispatcher = stage.engine._dispatcher

        stage.on_loop(lambda: dispatcher.hold_back(True) if how == "hold back" else dispatcher.scale(0.5))
        assert stage.ready == 8
        assert stage.running == 2

        stage.on_loop(lambda: dispatcher.hold_back(False) if how == "hold back" else dispatcher.scale(1.0))
        stage.let_end(1)
        stage.wait_for_names(4)
        wait_until(lambda: stage.ready == 0)  # held again
        stage.let_end(11)

        assert [handle.result(WAIT_S) for handle in handles] == [str(n) for n in range(11)]
        assert len(stage.names) == 11
        assert stage.app.store.verify().result() == []


# ---------------------------------------------------------------- real load


@pytest.mark.skipif(not PSI.exists(), reason="this kernel has no /proc/pressure (PSI)")
def test_under_real_load_fewer_bodies_run_and_after_it_all_again(
    make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shedding, "RISE_EVERY_US", 1_000_000)
    stage = make_stage(load_cpu_pressure_max=0.6)
    with stage.app:
        handles = submitted(stage, 40)
        stage.wait_for(lambda: stage.running == 10)
        load = stage.engine.load
        assert load is not None
        with busy():
            wait_until(lambda: load.multiplier < 1)
            stage.let_end(6)
            stage.wait_for(lambda: stage.running < 8)
            wait_until(lambda: stage.succeeded == 6)
            assert stage.ready > 24  # not all of the six were replaced
        # From here on only this test's load is to count, and that is over.
        load._bounds = LoadBounds(cpu_pressure_max=1.0, memory_free_min=0.0)
        stage.wait_for(lambda: stage.running == 10)
        stage.let_end(40)

        assert [handle.result(WAIT_S) for handle in handles] == [str(n) for n in range(40)]
        ledger = stage.app.ledger().result()
        assert (ledger.submitted, ledger.succeeded, ledger.balanced) == (40, 40, True)


@pytest.mark.usefixtures("quick")
def test_a_body_that_blocks_the_loop_lowers_the_order_and_it_recovers(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(loop_lag_notice_s=0.25)
    decisions: list[Decision] = []

    @stage.app.task
    async def block() -> None:
        time.sleep(1.0)  # noqa: ASYNC251 - it blocks the loop: that is what this is about

    with stage.app:
        blocked = block.submit()
        blocked.result(WAIT_S)
        wait_until(lambda: bool(stage.engine.load and stage.engine.load.decisions))
        handles = submitted(stage, 30)
        wait_until(lambda: stage.engine.load is not None and stage.engine.load.multiplier == 1.0)
        stage.wait_for(lambda: stage.running == 10)
        assert stage.engine.load is not None
        decisions.extend(stage.engine.load.decisions)
        stage.let_end(30)

        assert len([handle.result(WAIT_S) for handle in handles]) == 30
    assert decisions[0].reasons == ("lag",)
    assert decisions[0].after.multiplier == 0.7
    assert decisions[-1].after.multiplier == 1.0


# ---------------------------------------------------------------- what gives way


def test_what_runs_goes_on_and_is_not_replaced_until_few_enough_run(stage: Stage) -> None:
    with stage.app:
        handles = submitted(stage, 30)
        stage.wait_for(lambda: stage.running == 10)
        stage.scale(0.3)

        stage.let_end(7)
        wait_until(lambda: stage.succeeded == 7)
        assert (stage.running, stage.ready) == (3, 20)
        stage.let_end(5)
        wait_until(lambda: stage.succeeded == 12)
        assert stage.ready == 15
        stage.wait_for(lambda: stage.running == 3)

        stage.scale(1.0)
        stage.wait_for(lambda: stage.running == 10)
        stage.let_end(30)
        assert len([handle.result(WAIT_S) for handle in handles]) == 30


def test_an_idle_process_orders_no_more_than_it_may(stage: Stage) -> None:
    with stage.app:
        stage.scale(0.2)
        handles = submitted(stage, 10)
        stage.wait_for(lambda: stage.running == 2)
        assert stage.ready == 8

        stage.let_end(10)
        assert len([handle.result(WAIT_S) for handle in handles]) == 10


def test_the_slots_that_are_left_go_to_the_more_urgent_work(stage: Stage) -> None:
    with stage.app:
        stage.scale(0.05)
        first = stage.work.submit("first")
        stage.wait_for(lambda: stage.running == 1)
        later = [stage.work.options(priority=priority).submit(priority) for priority in ("low", "normal", "high")]
        for n in range(1, 5):
            stage.wait_for_names(n)
            stage.let_end(1)

        assert [handle.result(WAIT_S) for handle in [first, *later]] == ["first", "low", "normal", "high"]
        assert stage.names == ["first", "high", "normal", "low"]


def test_an_urgent_task_gets_a_slot_that_load_has_taken_away(stage: Stage) -> None:
    with stage.app:
        stage.scale(0.05)
        handles = submitted(stage, 3)
        stage.wait_for(lambda: stage.running == 1)

        handles.append(stage.work.options(priority="urgent").submit("urgent"))

        stage.wait_for(lambda: stage.running == 2)
        assert stage.names == ["0", "urgent"]
        assert stage.ready == 2
        stage.let_end(2)
        stage.wait_for(lambda: len(stage.names) == 3)
        assert stage.running == 1
        stage.let_end(2)
        assert [handle.result(WAIT_S) for handle in handles] == ["0", "1", "2", "urgent"]


def test_shedding_asks_the_preemptible_body_of_the_lowest_priority_to_make_room(stage: Stage) -> None:
    done: list[str] = []

    def piece(name: str) -> str:
        return stage._work(name)

    def after(name: str) -> str:
        done.append(name)
        return name

    @stage.app.task(preemptible=True)
    def long(name: str) -> str:
        step(piece, name).result()
        return step(after, name).result()

    with stage.app:
        handles = {p: long.options(priority=p).submit(p) for p in ("urgent", "high", "low", "normal")}
        stage.wait_for(lambda: stage.running == 4)

        stage.scale(0.2)
        stage.on_loop(stage.engine._dispatcher.shed)
        pressed = [running.task.priority for running in stage.engine._worker._pressed.values()]
        stage.let_end(4)

        assert pressed == [3]
        assert {p: handle.result(WAIT_S) for p, handle in handles.items()} == {p: p for p in handles}
        assert sorted(done) == sorted(handles)
        attempts = {p: handle.view().result().attempt for p, handle in handles.items()}
        assert {p: n for p, n in attempts.items() if p != "low"} == {"urgent": 1, "high": 1, "normal": 1}
        assert handles["low"].view().result().failures == 0


def test_with_too_little_memory_no_task_starts_until_there_is_enough(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(load_memory_free_min=0.1)
    free = 1

    def memory() -> MemoryUse:
        return MemoryUse(100 - free, 100, "host")

    with stage.app:
        load = stage.engine.load
        assert load is not None
        load._memory = memory
        load._looked_us -= 10_000_000
        first = stage.work.submit("first")
        stage.wait_for(lambda: stage.running == 1)
        wait_until(lambda: load.state.is_stopped)
        stage.on_loop(bool)
        waiting = stage.work.options(priority="urgent").submit("urgent")
        assert stage.ready == 1
        stage.on_loop(lambda: stage.engine._hold_back("memory_bytes_max", is_held_back=False))
        assert stage.ready == 1  # the other reason stands

        free = 90
        stage.let_end(2)
        assert [first.result(WAIT_S), waiting.result(WAIT_S)] == ["first", "urgent"]


# ---------------------------------------------------------------- off, and idle


def test_without_the_setting_there_is_no_load_manager(url: str) -> None:
    app = App(url, durability="normal")
    with app:
        assert app._engine is not None
        assert app._engine.load is None


def test_idle_processes_with_load_control_do_not_wake_up(url: str) -> None:
    """After work, and while the machine is busy with something else: an idle process is told of that neither."""
    with fleet(url) as workers:
        processes = workers.start_ready(2, SENNIT_LOAD_CONTROL="true", SENNIT_LEASE_S="1.5")
        at = client(url)
        assert values(at.leaf.map(range(20))) == [20 * n + 3 for n in range(20)]
        at.app.close()
        pids = [process.pid for process in processes]
        with busy(per_core=2):
            threading.Event().wait(live.TICK_S + 2.0)  # the last beat, and the look that finds nothing runs
            before = {pid: wake_ups(pid) for pid in pids}
            threading.Event().wait(IDLE_S + 2.5)  # longer than a trigger's window
            after = {pid: wake_ups(pid) for pid in pids}

    woken = {pid: changed(before[pid], after[pid]) for pid in pids}
    assert [w for w in woken.values() if sum(w.values()) > WAKE_UPS_MAX] == [], woken

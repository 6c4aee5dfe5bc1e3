"""Where a body runs when nobody has said it: learnt from measurements, moved only when it means the same elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sennit import App, Task, TaskCancelled, TaskFailed
from sennit.execute import placement
from sennit.execute.lane import Lane
from sennit.execute.movable import why_not_movable
from sennit.execute.placement import HEAVY_CALLS, Learnt, Place, Placement, cpu_home
from sennit.execute.workload import SAMPLES_MIN, Sample
from sennit.model.lifecycle import State
from sennit.runtime import engine
from sennit.submit.registry import Handler, Registry
from tests.pools import placement_bodies as bodies

CPU_S = 0.012


# ---------------------------------------------------------------- which bodies can be moved


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (bodies.spin, ""),
        (bodies.counts_words, ""),
        (bodies.remembers, "uses SEEN, a list"),
        (bodies.calls_one_that_remembers, "remembers uses SEEN, a list"),
        (bodies.remembers_in_a_lambda, "uses SEEN, a list"),
        (bodies.assigns, "assigns the global COUNT"),
        (bodies.remembers_in_a_default, "uses a default value, a list"),
        (bodies.logs, "uses LOG, a Logger"),
        (bodies.make(), "defined inside another function"),
        (lambda: 1, "defined inside another function"),
        (bodies.first_replaced, "is not this function"),
    ],
)
def test_a_body_is_moved_only_if_nothing_speaks_against_it(function: Callable[..., Any], why: str) -> None:
    found = why_not_movable(function)

    assert why in found
    assert bool(why) == bool(found)


GUARD = "\nif __name__ == '__main__':\n    print(1)\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GUARD, ""),
        ("'''About.'''\nimport os\nfrom math import pi\nX = os.getpid()\ndef f(): print(X)\n" + GUARD, ""),
        ("try:\n    import numpy\nexcept ImportError:\n    numpy = None\n" + GUARD, ""),
        ("def f(): pass\n", "has no `if __name__"),
        ("print('again')\n" + GUARD, "line 1 of the main script would run again"),
        ("X = 1\nfor n in range(3):\n    pass\n" + GUARD, "line 2 of the main script would run again"),
        ("if True:\n    print(1)\n" + GUARD, "line 1 of the main script would run again"),
        ("def f(:\n", "cannot be read"),
    ],
)
def test_nothing_is_moved_if_a_process_would_run_the_main_script_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    script, main = tmp_path / "script.py", ModuleType("__main__")
    script.write_text(text)
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)

    found = why_not_movable(bodies.spin)

    assert why in found
    assert bool(why) == bool(found)


def test_at_a_prompt_handlers_of_modules_can_be_moved_and_those_typed_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(): return 1", typed)
    main.typed = typed["typed"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", main)

    assert why_not_movable(bodies.spin) == ""
    assert "at a prompt" in why_not_movable(typed["typed"])


# ---------------------------------------------------------------- what is learnt


def test_cpu_bodies_go_to_os_threads_only_without_a_gil_and_without_a_cluster() -> None:
    assert cpu_home(has_cluster=False, has_gil=True) == "processes"
    assert cpu_home(has_cluster=False, has_gil=False) == "os_threads"
    assert cpu_home(has_cluster=True, has_gil=False) == "cluster"


def handler(function: Callable[..., Any] = bodies.spin, **how: Any) -> Handler:
    return Registry().register(function, **how)


def learn(
    gil_wait_s: float | None = 0.005,
    *,
    sample: Sample | None = None,
    function: Callable[..., Any] = bodies.spin,
    calls: int = 40,
    is_touched: bool = False,
    mode: str = "auto",
    has_gil: bool = True,
    **how: Any,
) -> Learnt | None:
    """Return what is made of so many attempts, one after the other, each with this sample and this reading of the probe."""

    async def scenario() -> Learnt | None:
        home = cpu_home(has_cluster=False, has_gil=has_gil)
        placed, body = Placement(mode, home=home, cores=2, has_gil=has_gil), handler(function, **how)
        vars(placed)["_gil_wait_s"] = lambda _: gil_wait_s  # what the probe would say
        try:
            for _ in range(calls):
                began = placed.begins(body)
                if began is not None:
                    placed.ended(body, sample or Sample(0.0101, 0.010, 0.0, 0), began, is_touched=is_touched)
            return next(iter(placed.learnt()), None)
        finally:
            placed.close()

    return asyncio.run(scenario())


def test_a_body_that_computes_in_python_moves_after_a_trial(caplog: pytest.LogCaptureFixture) -> None:
    learnt = learn()

    assert learnt is not None
    assert (learnt.place, learnt.calls) == (Place.MOVED, HEAVY_CALLS + SAMPLES_MIN)
    (record,) = caplog.records
    assert "10.0 ms of CPU time each" in record.message
    assert "placement=declared (SENNIT_PLACEMENT)" in record.message


def test_a_body_that_leaves_the_gil_to_others_stays_with_as_many_as_there_are_cores() -> None:
    learnt = learn(0.0001)

    assert learnt is not None
    assert learnt.place is Place.WIDE_LANE


def test_a_body_that_uses_its_attempt_stays_one_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    learnt = learn(is_touched=True)

    assert learnt is not None
    assert learnt.place is Place.LANE
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "it uses its attempt" in caplog.records[0].message


def test_a_body_that_uses_state_stays_and_the_log_says_which(caplog: pytest.LogCaptureFixture) -> None:
    learnt = learn(function=bodies.remembers)

    assert learnt is not None
    assert learnt.place is Place.LANE
    assert "SEEN, a list" in caplog.records[0].message


@pytest.mark.parametrize(
    "sample",
    [Sample(0.0021, 0.002, 0.0, 0), Sample(0.210, 0.010, 0.0, 3), Sample(30.0, 0.100, 0.0, 900)],
    ids=["short", "waits", "waits long"],
)
def test_a_short_body_and_one_that_waits_stay_and_nothing_is_said(
    sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    learnt = learn(0.0005, sample=sample, calls=2000)

    assert learnt is not None
    assert learnt.place is Place.OS_THREAD
    assert learnt.calls < 400  # of 2,000: measured seldom, once it is known
    assert caplog.records == []


@pytest.mark.parametrize(
    "how",
    [
        {"mode": "declared"},
        {"has_gil": False},
        {"cpu": False},
        {"idle_timeout_s": 60.0},
        {"preemptible": True},
    ],
)
def test_who_has_said_something_is_not_measured(how: dict[str, Any]) -> None:
    assert learn(**how) is None


def test_cpu_none_is_as_before_and_false_and_true_are_kept() -> None:
    assert [(h.kind, h.is_movable, h.options.queue) for h in (handler(), handler(cpu=False), handler(cpu=True))] == [
        ("sync", True, "default"),
        ("sync", False, "default"),
        ("cpu", False, "cpu"),
    ]


# ---------------------------------------------------------------- lanes


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario()

    asyncio.run(run())


def test_a_lane_lets_so_many_in_and_the_others_in_their_order() -> None:
    async def scenario() -> None:
        lane, begun = Lane(2), list[int]()
        for n in range(5):
            lane.enter(n, lambda n=n: begun.append(n))  # type: ignore[misc]
        assert begun == [0, 1]
        assert lane.withdraw(2)
        assert not lane.withdraw(0)
        lane.leave(1)
        lane.leave(1)
        assert begun == [0, 1, 3]
        lane.open()
        assert (begun, lane.waiting) == ([0, 1, 3, 4], 0)
        for n in range(5):
            lane.leave(n)

    in_loop(scenario)


def test_a_lane_goes_on_without_one_that_blocks_in_it() -> None:
    """As two bodies that wait for each other by something that nobody else sees: the second must come in."""

    async def scenario() -> None:
        met, lapses = asyncio.Event(), list[int]()
        lane = Lane(1, lapse_s=0.001, on_lapse=lambda: lapses.append(1))
        lane.enter("waits for the other", lambda: None)
        lane.enter("the other", met.set)
        await met.wait()
        lane.leave("the other")
        assert lapses == [1]

    in_loop(scenario)


# ---------------------------------------------------------------- an app


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """Tries again at once: on a busy machine a trial may tell nothing."""
    monkeypatch.setattr(placement, "TRIAL_AGAIN", 1)
    with App("memory://", cpu_slots=1) as app:
        yield app


def learnt_of(app: App, task: Task[Any, Any]) -> Learnt | None:
    running = app._engine
    assert running is not None
    return next((one for one in running.placement.learnt() if one.handler == task.handler.reference), None)


def until(app: App, task: Task[..., int], place: Place, *args: Any, **kwargs: Any) -> list[int]:
    """Run the task until its handler is there; return what the attempts returned."""
    results = []
    while (one := learnt_of(app, task)) is None or one.place is not place:
        results.append(task.submit(*args, **kwargs).result())
    return results


def test_a_handler_that_computes_moves_to_a_process_and_goes_on_there(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    task = app.task(bodies.spin)

    here = until(app, task, Place.MOVED, CPU_S)
    there = [handle.result() for handle in [task.submit(0.0) for _ in range(20)]]

    assert set(here) == {os.getpid()}
    assert len(set(there)) == 1
    assert os.getpid() not in there
    moves = [record for record in caplog.records if "runs in worker processes from now on" in record.message]
    assert len(moves) == 1


def test_without_a_gil_cpu_bodies_run_in_os_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no such interpreter here: what it would say is injected where it is asked, at the start of an engine."""
    monkeypatch.setattr(engine, "gil_enabled", lambda: False)
    with App("memory://", cpu_slots=1) as app:
        task = app.task(cpu=True)(bodies.spin)
        assert task.submit(0.0).result() == os.getpid()


def test_a_handler_that_is_a_closure_stays_here(app: App) -> None:
    task = app.task(bodies.make())

    here = until(app, task, Place.LANE, CPU_S)
    here += [handle.result() for handle in [task.submit(0.0) for _ in range(20)]]

    assert set(here) == {os.getpid()}


def test_a_handler_that_uses_a_step_stays_here(app: App) -> None:
    task = app.task(bodies.spin_and_step)

    assert set(until(app, task, Place.LANE, CPU_S)) == {os.getpid()}
    assert "uses its attempt" in getattr(learnt_of(app, task), "why", "")


@pytest.mark.parametrize("function", [bodies.spin_and_perhaps_step, bodies.eat_and_step])
def test_a_moved_body_that_needs_its_attempt_after_all_comes_back_without_a_failure(
    app: App, function: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    task = app.task(function)
    until(app, task, Place.MOVED, CPU_S, with_step=False)
    assert task.submit(0.0, with_step=False).result() != os.getpid()

    handle = task.submit(0.0, with_step=True)

    assert handle.result() == os.getpid()
    view = handle.view().result()
    assert (view.attempt, view.failures, view.crashes) == (1, 0, 0)
    assert task.submit(0.0, with_step=False).result() == os.getpid()
    assert sum("is back in OS threads" in record.message for record in caplog.records) == 1


def test_a_time_out_and_a_cancel_reach_those_that_stand_in_a_lane(app: App) -> None:
    go = threading.Event()
    task = app.task(bodies.make(go))
    until(app, task, Place.LANE, CPU_S)
    running = app._engine
    assert running is not None
    running.placement._lanes[Place.LANE]._lapse_s = 3600.0

    first = task.submit(0.0, waits=True)
    in_line = [task.submit(0.0) for _ in range(2)]
    late, cancelled = task.options(timeout_s=0.01).submit(0.0), task.submit(0.0)
    with pytest.raises(TaskFailed) as caught:
        late.result()
    assert caught.value.kind == "TimeoutError"
    assert cancelled.cancel().result() is True
    with pytest.raises(TaskCancelled):
        cancelled.result()

    assert {handle.view().result().state for handle in (first, *in_line)} == {State.RUNNING}
    go.set()
    assert {handle.result() for handle in (first, *in_line)} == {os.getpid()}

"""A handler that is moved without being told behaves as before, or is not moved, or comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sennit import App, Task, TaskCancelled, TaskFailed
from sennit.execute import placement
from sennit.execute.movable import movable, why_not_movable
from sennit.execute.placement import Place
from sennit.execute.process_child import Request
from sennit.execute.process_handle import Call
from sennit.execute.process_line import Line
from sennit.runtime import engine
from sennit.sync.meaning import Meaning, meaning_of
from tests.pools import moved_bodies as bodies
from tests.pools import placement_bodies
from tests.pools.test_placement import CPU_S, learnt_of, until


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """Tries again at once: on a busy machine a trial may tell nothing."""
    monkeypatch.setattr(placement, "TRIAL_AGAIN", 1)
    with App("memory://", cpu_slots=1) as app:
        yield app


def why(app: App, task: Task[Any, Any]) -> str:
    return getattr(learnt_of(app, task), "why", "")


# ---------------------------------------------------------------- what it means


@pytest.mark.parametrize(("function", "what"), bodies.STAYS)
def test_what_only_this_process_has_is_found_wherever_it_is_reached_from(
    function: Callable[..., Any], what: str
) -> None:
    assert what in why_not_movable(function)


def test_classes_that_only_define_mean_the_same_anywhere() -> None:
    meaning = movable(bodies.uses_a_class)

    assert isinstance(meaning, Meaning)
    assert "tests.pools.moved_bodies:LIMIT" in meaning.parts  # a method uses it
    assert meaning.changed() == ""


def test_a_value_that_differs_is_named_and_one_assigned_later_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = meaning_of(bodies.limited)

    monkeypatch.setattr(bodies, "LIMIT", 2)

    assert before.changed() == "LIMIT"
    assert meaning_of(bodies.limited).differs(before.parts) == "tests.pools.moved_bodies:LIMIT"
    assert meaning_of(bodies.limited).digest() != before.digest()


def test_a_function_that_is_replaced_or_reloaded_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = meaning_of(bodies.limited)
    monkeypatch.setattr(bodies, "spin", placement_bodies.counts_words)
    assert before.changed() == "spin"
    monkeypatch.undo()
    assert before.changed() == ""

    monkeypatch.setattr(placement_bodies.spin, "__code__", placement_bodies.replaced.__code__)  # as autoreload does
    assert before.changed() == "spin"


def test_a_module_that_does_more_than_define_is_not_imported_again(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "does_more.py").write_text("def f(x):\n    return x\n\nf(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import does_more  # type: ignore[import-not-found]

    assert "line 4 of does_more would run again" in why_not_movable(does_more.f)


# ---------------------------------------------------------------- an app


def test_a_handler_whose_global_was_assigned_here_is_not_moved(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LIMIT", 7)
    task = app.task(bodies.limited)

    while not why(app, task):
        assert task.submit(CPU_S).result() == 7

    assert "moved_bodies:LIMIT is not the same in a worker process" in why(app, task)


def test_a_moved_handler_comes_back_when_what_it_uses_is_assigned_here(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = app.task(bodies.limited)
    until(app, task, Place.MOVED, CPU_S)
    assert task.submit(0.0).result() == 1

    monkeypatch.setattr(bodies, "LIMIT", 7)

    assert task.submit(0.0).result() == 7
    assert why(app, task) == "LIMIT was changed in this process"


@pytest.mark.parametrize("how", ["cancel", "time-out"])
def test_a_moved_body_unwinds_when_it_is_interrupted_and_its_process_goes_on(
    app: App, tmp_path: Path, how: str
) -> None:
    task, path = app.task(bodies.either), tmp_path / "unwound"
    until(app, task, Place.MOVED, CPU_S)
    pid = task.submit(0.0).result()

    if how == "cancel":
        handle = task.submit(0.0, how="endless", path=str(path))
        while not path.with_suffix(".began").exists():
            os.sched_yield()
        assert handle.cancel().result() is True
        with pytest.raises(TaskCancelled):
            handle.result()
    else:
        with pytest.raises(TaskFailed) as caught:
            task.options(timeout_s=2).submit(0.0, how="endless", path=str(path)).result()
        assert caught.value.kind == "TimeoutError"

    while not path.exists():  # its `finally`
        os.sched_yield()
    assert task.submit(0.0).result() == pid
    assert path.read_text() == str(pid)


def test_what_a_moved_body_logs_is_not_lost(app: App) -> None:
    task = app.task(bodies.either)
    until(app, task, Place.MOVED, CPU_S)

    handle = task.submit(0.0, how="log")

    assert handle.result() == os.getpid()
    assert handle.view().result().failures == 0
    assert "a log line" in why(app, task)


def test_an_exception_that_does_not_pickle_is_raised_here(app: App) -> None:
    task = app.task(bodies.either)
    until(app, task, Place.MOVED, CPU_S)

    with pytest.raises(TaskFailed, match="code 5") as caught:
        task.submit(0.0, how="raise").result()

    assert caught.value.kind == "StubbornError"
    assert "StubbornError" in why(app, task)


def test_nothing_is_moved_where_more_processes_may_not_fit() -> None:
    assert engine.no_room(1_000_000).startswith("1000000 processes like this one may need")
    assert engine.no_room(0) == ""


def test_declared_bodies_go_before_those_that_were_moved_and_do_not_starve_them() -> None:
    line = Line()
    declared = [Call(Request("d", b""), None) for _ in range(6)]  # type: ignore[arg-type]  # nobody awaits them
    moved = [Call(Request("m", b"", "", "runner"), None) for _ in range(2)]  # type: ignore[arg-type]
    for call in (*moved, *declared):
        line.add(call)

    order = [line.pop() for _ in range(len(line))]

    assert "".join(call.request.handler_ref for call in order) == "dddmdddm"
    assert [call for call in order if call in moved] == moved

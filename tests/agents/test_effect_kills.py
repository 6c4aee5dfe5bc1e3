"""kill -9 and SIGSTOP at each point of an effect, with real processes: what took place is counted in a file."""

from __future__ import annotations

import fcntl
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sennit import App
from tests.agents.effect_program import MODES, POINTS, Told, handlers, lines_of
from tests.crash.fleet import WAIT_S, Fleet, fleet
from tests.crash.nursery import Nursery
from tests.crash.test_freeze import freeze, terminated

# Whether it took place before the kill; None is "may have been begun, or not".
TOOK_PLACE = {"before": False, "mark is sent": None, "begun": False, "in the call": True, "called": True}


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(f"sqlite:///{tmp_path}/fleet.db") as some:
        yield some


def start(workers: Fleet, nursery: Nursery) -> Any:
    """Fork one worker process of our own program."""
    journal = {workers.journal.writer: workers.journal.writer}
    process = nursery.start("tests.agents.effect_program:run", environ=workers._environ({}), descriptors=journal)
    workers.forked.append(process)
    return process


def answer(app: App, task_id: int, said: dict[str, Any]) -> None:
    """Answer the question of a task, when it is there."""
    question = next(q for q in app.inbox().watch() if q.view.task_id == task_id and q.view.state == "open")
    app.inbox().respond(question.view.id, said).result()


@pytest.mark.parametrize("mode", MODES)
def test_an_effect_that_a_kill_cuts_short_is_never_repeated_behind_your_back(
    workers: Fleet, nursery: Nursery, tmp_path: Path, mode: str
) -> None:
    app = App(workers.url, durability="normal")
    payer = handlers(app)
    file = str(tmp_path / "effects")
    worker = start(workers, nursery)

    for n, point in enumerate(POINTS):
        handle = payer.submit(file, point, mode, n)
        assert worker.wait() == -signal.SIGKILL
        before = lines_of(file).count(n)
        worker = start(workers, nursery)
        if mode == "ask" and point in {"begun", "in the call", "called"}:
            answer(app, handle.id, {"done": before == 1, "result": n if before else None})
        if mode == "ask" and point == "mark is sent":
            continue  # whether it asks is a race; the other modes look at what comes of it
        told: Told = handle.result(WAIT_S)
        check(point, mode, n, told, before=before, after=lines_of(file).count(n))

    worker.kill()
    app.close()


def check(point: str, mode: str, n: int, told: Told, *, before: int, after: int) -> None:
    """Hold what took place against the ledger."""
    [view] = told.effects
    if TOOK_PLACE.get(point) is not None:
        assert before == int(bool(TOOK_PLACE[point]))
    if mode == "repeat":
        assert after == 1 + (before if point in {"in the call", "called"} else 0)
        assert after <= view.begun  # the ledger says so
    else:
        assert after <= 1
    if mode == "fail" and point in {"begun", "in the call", "called"}:
        assert (told.result, view.state, after) == (None, "unknown", before)
    elif mode == "fail" and point == "mark is sent":
        assert (told.result, after) in {(None, 0), (n, 1)}
    else:
        assert (told.result, view.state, after > 0) == (n, "committed", True)


@pytest.mark.parametrize("point", ["begun", "called"])
def test_an_attempt_frozen_at_its_call_adds_nothing_when_others_have_the_task(
    tmp_path: Path, nursery: Nursery, point: str
) -> None:
    """Before the call it is refused, though it wakes with a lease: the worker is registered again. After it, its result is."""
    gate, file = tmp_path / "gate", str(tmp_path / "effects")
    argv = [sys.executable, "-m", "tests.agents.effect_program"]
    with (
        fleet(f"sqlite:///{tmp_path}/fleet.db", SENNIT_LEASE_S="1", EFFECT_GATE=str(gate)) as workers,
        gate.open("wb") as closed,
    ):
        fcntl.flock(closed, fcntl.LOCK_EX)
        app = App(workers.url, durability="normal")
        payer = handlers(app)
        frozen = workers.start(argv=argv, EFFECT_STOP=point)
        workers.journal.wait_ready(frozen)
        handle = payer.submit(file, "nowhere", "check", 7)
        workers.journal.wait_for("paused")

        freeze(frozen, workers)
        start(workers, nursery)  # its module is imported and the other's is run: one effect all the same
        told: Told = handle.result(WAIT_S)
        fcntl.flock(closed, fcntl.LOCK_UN)
        frozen.send_signal(signal.SIGCONT)
        terminated(frozen)

        [view] = told.effects
        assert lines_of(file) == [7]
        assert (told.result, view.state) == (7, "committed")
        assert app.store.verify().result() == []
        app.close()

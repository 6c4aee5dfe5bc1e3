"""Old and new code side by side, in real processes: pinned tasks go to their own version, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

import sennit
from sennit import App
from sennit.model.lifecycle import State
from sennit.model.task import RouteView
from sennit.runtime.engine import usable_cores
from tests.crash.rolling_program import handlers

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SENNIT_")}
    paths = os.pathsep.join([str(Path(sennit.__file__).parents[1]), str(ROOT)])
    return {**mine, "SENNIT_DB": url, "PYTHONPATH": paths, "SENNIT_DURABILITY": "normal"}


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def call(*words: str, version: str = "") -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "sennit", "worker", "tests.crash.rolling_program:app", *words]
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environment | {"SENNIT_VERSION": version}, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stderr is not None
        assert "serves" in process.stderr.readline()
        return process

    yield call
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def client(url: str) -> Iterator[Callable[..., Any]]:
    """Makes apps that only submit: with a version, as code of that version does."""
    apps: list[App] = []

    def call(version: str = "") -> tuple[App, dict[str, Any]]:
        apps.append(App(url, version=version, durability="normal"))
        return apps[-1], handlers(apps[-1])

    yield call
    for app in apps:
        app.close()


def shown(environment: dict[str, str], *words: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "sennit", *words, "--json"]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wait_until(fact: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    end_s = monotonic() + WAIT_S
    while not fact():
        assert monotonic() < end_s, f"{what} did not come about"
        sleep(0.01)  # sleep: a file appears, a row changes, in another process


def test_a_rolling_deploy_loses_nothing_and_runs_pinned_tasks_on_their_own_version(
    start: Start, client: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    old_app, old = client("1")
    new_app, new = client("2")
    gate = str(tmp_path / "gate")
    first = start(version="1")
    held, waits = old["held"].submit(gate), old["waits"].submit("approved")
    wait_until(Path(gate + ".started").exists, "a body that runs on the old version")
    wait_until(lambda: waits.view().result().state is State.SUSPENDED, "a task that waits")

    second = start(version="2")
    fresh, stale = new["build"].map(range(20)), old["build"].map(range(20, 40))
    families = [new["parent"].submit(3), old["parent"].submit(3)]
    anybody = new["plain"].map(range(20))

    assert fresh.result(WAIT_S) == [[n, "2", second.pid] for n in range(20)]
    assert stale.result(WAIT_S) == [[n, "1", first.pid] for n in range(20, 40)]
    assert [handle.result(WAIT_S) for handle in families] == [["2"] * 3, ["1"] * 3]
    assert set(anybody.result(WAIT_S)) <= {"1", "2"}
    versions = {v["version"]: (v["workers"], v["pinned"]) for v in shown(environment, "status")["versions"]}
    assert versions == {"1": (1, 2), "2": (1, 0)}

    first.send_signal(signal.SIGTERM)  # the old version drains: what runs may end
    wait_until(
        lambda: any(w.drains for w in old_app.store.workers().result()), "an old worker that says that it drains"
    )
    late = old["build"].submit(99)
    Path(gate).touch()
    assert first.wait(WAIT_S) == 143
    assert held.result(WAIT_S) == "1"

    old_app.signal("approved").result()
    for handle in (waits, late):  # nobody is there for them: they say so, and wait
        assert handle.view().result().state is State.READY
        assert shown(environment, "tasks", "get", str(handle.id))["reason"] == "no worker with version 1"
    assert new["build"].submit(7).result(WAIT_S)[1] == "2"
    assert old_app.store.routes().result() == [RouteView(queue="default", version="1", live=2, ready=2, workers=0)]

    third = start(version="1")
    assert waits.result(WAIT_S) == "1"
    assert late.result(WAIT_S) == [99, "1", third.pid]
    ledger = new_app.ledger().result()
    assert (ledger.live, ledger.failed, ledger.crashed, ledger.missing) == (0, 0, 0, 0)
    assert ledger.succeeded == ledger.submitted
    assert new_app.store.verify().result() == []


def test_a_drain_hands_back_the_rest_without_using_an_attempt_and_the_other_takes_it(
    start: Start, client: Callable[..., Any], tmp_path: Path
) -> None:
    app, at = client("1")
    first = start("--drain-s", "0.1", version="1")
    held = at["held"].submit(str(tmp_path / "gate"))
    wait_until((tmp_path / "gate.started").exists, "a body that runs")
    (tmp_path / "gate.started").unlink()

    first.send_signal(signal.SIGTERM)

    assert first.wait(WAIT_S) == 143
    view = held.view().result()
    assert (view.state, view.failures, view.crashes) == (State.READY, 0, 0)
    start(version="1")
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "1"
    assert held.view().result().attempt == 2
    assert app.ledger().result().balanced


def test_a_second_signal_hands_back_at_once(start: Start, client: Callable[..., Any], tmp_path: Path) -> None:
    app, at = client("1")
    first = start("--drain-s", "600", version="1")
    held = at["held"].submit(str(tmp_path / "gate"))
    wait_until((tmp_path / "gate.started").exists, "a body that runs")

    first.send_signal(signal.SIGINT)
    assert first.stderr is not None
    assert any("1 running get up to" in line for line in first.stderr)
    first.send_signal(signal.SIGINT)

    assert first.wait(WAIT_S) == 130
    view = held.view().result()
    assert (view.state, view.failures, view.crashes) == (State.READY, 0, 0)
    assert app.ledger().result().balanced


def test_a_task_waits_for_a_worker_with_its_labels_and_status_says_so(
    start: Start, client: Callable[..., Any], environment: dict[str, str]
) -> None:
    app, at = client()
    start("--labels", "eu")
    task = at["train"].submit(1)
    assert at["plain"].submit(1).result(WAIT_S) == ""

    seen = shown(environment, "status")
    assert seen["routes"] == [
        {"queue": "default", "needs": ["gpu"], "version": "", "live": 1, "ready": 1, "workers": 0}
    ]
    assert seen["held_back"] == {"no worker with gpu": 1}
    assert task.view().result().state is State.READY

    gpu = start("--labels", "gpu,eu", "--slots", "3")
    assert task.result(WAIT_S) == gpu.pid
    workers = {w["pid"]: w for w in shown(environment, "status")["workers"] if w["role"] == "worker"}
    assert (workers[gpu.pid]["labels"], workers[gpu.pid]["queues"]) == (
        ["eu", "gpu"],
        {"cpu": usable_cores(), "default": 3},
    )
    assert app.ledger().result().balanced

"""A frozen worker cannot stop the processes it has started; when it wakes up past its lease, it does so first."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep

import pytest

import sennit
from sennit import App
from tests.crash.rolling_program import handlers

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SENNIT_")}
    paths = os.pathsep.join([str(Path(sennit.__file__).parents[1]), str(ROOT)])
    here = {"SENNIT_DB": f"sqlite:///{tmp_path}/fleet.db", "PYTHONPATH": paths, "SENNIT_LEASE_S": "1"}

    def call() -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "sennit", "worker", "tests.crash.rolling_program:app"]
        process = subprocess.Popen(argv, cwd=ROOT, env=mine | here, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        assert "serves" in process.stderr.readline()
        return process

    yield call
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def wait_until(fact: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    end_s = monotonic() + WAIT_S
    while not fact():
        assert monotonic() < end_s, f"{what} did not come about"
        sleep(0.01)  # sleep: a file appears, a process ends, in another process


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def freeze(process: subprocess.Popen[str], pen: Path) -> None:
    """Stop a process while it is in no transaction, nor next in line for one; it has stopped afterwards."""
    with pen.with_name(f"{pen.name}.gate").open("rb") as gate, pen.open("rb") as body:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(body, fcntl.LOCK_EX)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_thawed_worker_kills_the_processes_of_bodies_that_run_elsewhere_now(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with closing(App(f"sqlite:///{tmp_path}/fleet.db", durability="normal")) as app:
        compute = handlers(app)["compute"]
        frozen = start()
        handle = compute.submit(str(path))
        wait_until(lambda: path.is_file() and path.read_text() != "", "a cpu body that runs")
        pid = int(path.read_text())

        freeze(frozen, tmp_path / "fleet.db-pen")
        start()
        assert handle.result(WAIT_S) not in {0, pid}
        assert not is_gone(pid), "it was killed by somebody else"
        frozen.send_signal(signal.SIGCONT)

        wait_until(lambda: is_gone(pid), "the death of its process")
        view = handle.view().result()
        assert (view.attempt, view.crashes) == (2, 1)
        assert app.store.verify().result() == []

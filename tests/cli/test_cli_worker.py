"""`worker` and `up` as real processes: signals, queues, exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from tests.cli.processes import Sennit, Start


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read stderr up to the line that has `text`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"stderr ended without {text!r}: {lines}")


def run_until_started(sennit: Sennit, folder: Path, handler: str, name: str) -> str:
    """Hand in a task and wait for its body to say that it runs; return the id."""
    os.mkfifo(folder / f"{name}.started")
    task_id = sennit("run", "fleet:app", handler, name).stdout.strip()
    (folder / f"{name}.started").read_text()
    return task_id


def task(sennit: Sennit, task_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(sennit("tasks", "get", task_id, "--json").stdout)
    return found


def test_a_task_handed_in_here_is_run_by_the_worker_there(sennit: Sennit, worker: subprocess.Popen[str]) -> None:
    done = sennit("run", "fleet:app", "double", "21", "--wait")

    assert (done.stdout, done.returncode) == ("42\n", 0)


def test_sigterm_lets_the_running_body_end_and_says_what_it_waits_for(
    sennit: Sennit, worker: subprocess.Popen[str], folder: Path
) -> None:
    task_id = run_until_started(sennit, folder, "until", "go")

    worker.send_signal(signal.SIGTERM)
    said = read_until(worker, f"task {task_id} fleet.until, attempt 1")
    (folder / "go").touch()

    assert worker.wait() == 143
    assert any("SIGTERM: no new work; 1 running" in line for line in said)
    assert task(sennit, task_id)["state"] == "succeeded"


def test_a_second_ctrl_c_hands_the_running_task_back_without_using_an_attempt(
    sennit: Sennit, worker: subprocess.Popen[str], folder: Path
) -> None:
    task_id = run_until_started(sennit, folder, "until", "never")

    worker.send_signal(signal.SIGINT)
    read_until(worker, f"task {task_id} fleet.until, attempt 1")
    worker.send_signal(signal.SIGINT)

    said = read_until(worker, "stopped")
    assert worker.wait() == 130
    assert "handing back what still runs" in "".join(said)
    assert said[-1] == "stopped; 1 handed back\n"
    after = task(sennit, task_id)
    assert (after["state"], after["failures"], after["crashes"]) == ("ready", 0, 0)


def test_a_second_ctrl_c_does_not_wait_for_a_sync_body(
    sennit: Sennit, worker: subprocess.Popen[str], folder: Path
) -> None:
    run_until_started(sennit, folder, "blocked", "wall")
    began_s = monotonic()

    worker.send_signal(signal.SIGINT)
    read_until(worker, "fleet.blocked, attempt 1")
    worker.send_signal(signal.SIGINT)

    assert worker.wait() == 130
    assert monotonic() - began_s < 7, "the body sleeps for 8 s"


def test_an_idle_worker_stops_at_the_first_ctrl_c(worker: subprocess.Popen[str]) -> None:
    worker.send_signal(signal.SIGINT)

    assert worker.wait() == 130


def test_a_worker_with_q_serves_only_these_queues(sennit: Sennit, start: Start) -> None:
    left = sennit("run", "fleet:app", "double", "1").stdout.strip()
    read_until(start("worker", "fleet:app", "-q", "llm:2"), "serves llm:2 of")

    done = sennit("run", "fleet:app", "ask", "why", "--wait")

    assert done.stdout == '"WHY"\n'
    assert task(sennit, left)["state"] == "ready"


def test_status_and_verify_work_while_a_worker_runs(sennit: Sennit, worker: subprocess.Popen[str]) -> None:
    shown = json.loads(sennit("status", "--json").stdout)

    assert [w["pid"] for w in shown["workers"]] == [worker.pid]
    assert sennit("verify").returncode == 0


def test_a_cancelled_task_stops_its_running_body(sennit: Sennit, worker: subprocess.Popen[str], folder: Path) -> None:
    task_id = run_until_started(sennit, folder, "until", "never")

    cancelled = sennit("tasks", "cancel", task_id, "--reason", "enough")

    assert (cancelled.stdout, cancelled.returncode) == (f"{task_id} cancelled\n", 0)
    assert sennit("tasks", "wait", task_id).returncode == 6
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 143


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("worker", "fleet:nobody"), 2, "did you mean fleet:app?"),
        (("worker", "fleet:app", "-q", "llm"), 78, "is not NAME:SLOTS"),
        (("worker", "fleet:app", "--db", "fleet.db"), 78, "is not a store"),
    ],
)
def test_a_worker_that_cannot_start_says_why(sennit: Sennit, words: tuple[str, ...], code: int, text: str) -> None:
    done = sennit(*words)

    assert done.returncode == code
    assert text in done.stderr


def test_up_draws_its_live_line_on_a_terminal(sennit: Sennit, folder: Path, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "sennit", "up", "fleet.py"]
    with subprocess.Popen(argv, cwd=folder, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"serves" not in seen:
            seen += os.read(ours, 4096)
        sennit("run", "fleet:app", "double", "4", "--wait")
        while b"done 1" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while b"stopped" not in seen:
            seen += os.read(ours, 4096)
    os.close(ours)

    assert process.returncode == 130

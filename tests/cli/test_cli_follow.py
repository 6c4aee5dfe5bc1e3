"""`run --wait`, `map`, `tasks wait` and `logs -f` as real processes: what waits is woken, and says how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from tests.cli.processes import Sennit, Start


def test_logs_f_prints_a_line_when_it_is_written_and_ends_with_the_task(
    sennit: Sennit, start: Start, worker: subprocess.Popen[str], folder: Path
) -> None:
    task_id = sennit("run", "fleet:app", "until", "go").stdout.strip()

    follower = start("tasks", "logs", task_id, "-f")
    assert follower.stdout is not None
    first = follower.stdout.readline()
    (folder / "go").touch()
    rest = follower.stdout.read()

    assert "waiting for go" in first
    assert "found go" in rest
    assert follower.wait() == 0


def test_a_failed_task_is_an_error_with_its_code_and_a_traceback_only_when_asked(
    sennit: Sennit, worker: subprocess.Popen[str]
) -> None:
    short = sennit("run", "fleet:app", "bad", "why=oops", "--wait")
    long = sennit("run", "fleet:app", "bad", "why=oops", "--wait", "-v")

    assert (short.returncode, short.stdout) == (1, "")
    assert "error[S302]" in short.stderr
    assert "ValueError: oops" in short.stderr
    assert "Traceback" not in short.stderr
    assert "Traceback" in long.stderr
    assert "fleet.py" in long.stderr


def test_waiting_without_a_worker_says_so_and_runs_into_the_time_out(sennit: Sennit) -> None:
    done = sennit("run", "fleet:app", "double", "1", "--wait", "--timeout-s", "2.5")

    assert done.returncode == 124
    assert "no worker serves queue 'default'" in done.stderr
    assert "error[S304]" in done.stderr


def test_ctrl_c_while_waiting_leaves_the_task_alone(sennit: Sennit, start: Start) -> None:
    waiting = start("run", "fleet:app", "double", "1", "--wait")
    assert waiting.stderr is not None
    assert "no worker serves" in waiting.stderr.readline()

    waiting.send_signal(signal.SIGINT)

    assert "stopped waiting; task" in waiting.stderr.readline()
    assert waiting.wait() == 130
    assert json.loads(sennit("tasks", "ls", "--json").stdout)["state"] == "ready"


def test_map_writes_one_json_line_per_input_and_one_progress_line_per_tenth(
    sennit: Sennit, worker: subprocess.Popen[str]
) -> None:
    lines = "".join(f'{{"n": {n}}}\n' for n in range(30))

    done = sennit("map", "fleet:app", "double", "-", "--limit", "7", "--json", text=lines)

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["index"]: one["result"] for one in found} == {n: 2 * n for n in range(30)}
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stderr.splitlines()] == [f"{10 * n}" for n in range(1, 11)]


def test_map_exits_1_when_one_has_failed(sennit: Sennit, worker: subprocess.Popen[str]) -> None:
    done = sennit("map", "fleet:app", "bad", "-", "--no-progress", text='"a"\n["b"]\n')

    assert (done.stdout, done.stderr, done.returncode) == ("2 failed\n", "", 1)


def test_map_with_a_bad_line_hands_nothing_in(sennit: Sennit) -> None:
    sennit("db", "init")

    done = sennit("map", "fleet:app", "double", "-", text="1\n{n: 2}\n")

    assert done.returncode == 1
    assert "line 2 is not JSON" in done.stderr
    assert sennit("tasks", "ls", "--json").stdout == ""


def test_wait_ends_when_all_have_ended_and_tells_how(sennit: Sennit, start: Start, folder: Path) -> None:
    good = sennit("run", "fleet:app", "double", "3").stdout.strip()
    failed = sennit("run", "fleet:app", "bad", "no").stdout.strip()
    waiting = start("tasks", "wait", good, failed)

    start("worker", "fleet:app")
    out, _ = waiting.communicate()

    assert sorted(out.splitlines()) == sorted([f"{good} succeeded", f"{failed} failed (ValueError: no)"])
    assert waiting.returncode == 1


def test_a_reader_that_goes_away_is_no_error_message(sennit: Sennit, folder: Path, start: Start) -> None:
    sennit("map", "fleet:app", "double", "-", "--limit", "1", text="")
    for n in range(3):
        sennit("run", "fleet:app", "double", str(n))
    listing = start("tasks", "ls", "--json")
    assert listing.stdout is not None
    assert listing.stderr is not None

    listing.stdout.close()

    assert listing.stderr.read() == ""
    listing.wait()

"""SIGSTOP past the lease: others take over, and what the frozen process writes when it wakes up is refused."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit import App
from tests.crash.fleet import Fleet, Record, client, fleet, values

# Long enough for a process that is not frozen to beat in time on a busy machine.
LEASE_S = "1"
BODY_S = 0.9  # frozen before that, awake after it
EACH = 5  # attempts that write at once


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(f"sqlite:///{tmp_path}/fleet.db", SENNIT_LEASE_S=LEASE_S) as some:
        yield some


def freeze(process: subprocess.Popen[bytes], workers: Fleet) -> None:
    """Stop a process and wait until it has stopped.

    With the pen and its gate in our hand it is not inside a transaction, nor next in line for one: a process that is
    frozen there keeps the write lock, and all others wait for it until it goes on or is killed.
    """
    pen = workers.url.removeprefix("sqlite:///") + "-pen"
    with Path(f"{pen}.gate").open("rb") as gate, Path(pen).open("rb") as body:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(body, fcntl.LOCK_EX)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def of(process: subprocess.Popen[bytes], what: str, workers: Fleet) -> list[Record]:
    return [r for r in workers.journal.of(what) if r.pid == process.pid]


def refused(app: App) -> int:
    return app.ledger().result().refused


@pytest.mark.parametrize("how", ["ending", "step", "child"])
def test_what_a_thawed_process_writes_late_is_refused(workers: Fleet, how: str) -> None:
    at = client(workers.url)
    [frozen] = workers.start_ready()
    handles = at.late.map([how] * EACH, [BODY_S] * EACH)
    workers.journal.wait_for("start", EACH)

    freeze(frozen, workers)
    [other] = workers.start_ready()
    assert values(handles) == ["attempt 2"] * EACH
    frozen.send_signal(signal.SIGCONT)
    workers.journal.wait_for("woke", EACH)

    terminated(frozen)  # now all that it could write has been written
    assert of(frozen, "step", workers) == of(frozen, "child", workers) == []
    assert {r.pid for r in workers.journal.of("start") if r.note.startswith("child of")} <= {other.pid}
    assert refused(at.app) >= EACH
    assert [v.attempt for h in handles for v in [h.view().result()]] == [2] * EACH
    assert [v.crashes for h in handles for v in [h.view().result()]] == [1] * EACH
    assert at.app.store.verify().result() == []
    assert at.app.ledger().result().balanced


def terminated(process: subprocess.Popen[bytes]) -> None:
    """Let it end its bodies and leave, so that all it could write has been written."""
    process.send_signal(signal.SIGTERM)
    process.wait()


def test_a_thawed_process_stops_the_bodies_that_run_elsewhere_now(workers: Fleet) -> None:
    at = client(workers.url)
    [frozen] = workers.start_ready()
    handles = [at.hold.submit(), at.hold_sync.submit()]
    workers.journal.wait_for("start", 2)

    freeze(frozen, workers)
    workers.start_ready()
    assert values(handles) == ["done by another"] * 2
    frozen.send_signal(signal.SIGCONT)

    stopped = workers.journal.wait_for("stopped", 2)
    assert {r.pid for r in stopped} == {frozen.pid}


def test_a_thawed_process_goes_on_working(workers: Fleet) -> None:
    at = client(workers.url)
    [frozen] = workers.start_ready()
    held = at.hold.submit()
    workers.journal.wait_for("start")
    freeze(frozen, workers)
    [other] = workers.start_ready()
    assert values([held]) == ["done by another"]
    frozen.send_signal(signal.SIGCONT)
    workers.journal.wait_for("stopped")
    terminated(other)

    assert values([at.mark.submit("again")]) == ["again"]

    [record] = workers.journal.wait_for("start", where=lambda r: r.note == "again")
    assert record.pid == frozen.pid


def test_an_idle_process_frozen_past_its_lease_is_still_heard_and_hears(workers: Fleet) -> None:
    at = client(workers.url)
    [frozen] = workers.start_ready()
    freeze(frozen, workers)
    [other] = workers.start_ready()
    assert values([at.late.submit("ending", 1.2)]) == ["attempt 1"]  # a whole lease later
    frozen.send_signal(signal.SIGCONT)
    terminated(other)

    assert values([at.mark.submit("again")]) == ["again"]

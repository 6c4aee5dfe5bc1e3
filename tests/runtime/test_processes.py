"""Several processes on one file: submit in one, start in another, and nobody wakes up for nothing."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit import App
from tests.crash.fleet import WAIT_S, Fleet, client, fleet, values

IDLE_S = 2.0
# A process that polled once a second in one place would show 2 in each such OS thread. What is left for chance: the
# end of a start (an OS thread that the interpreter still lets go to sleep).
WAKE_UPS_MAX = 3


@pytest.fixture
def workers(url: str) -> Iterator[Fleet]:
    with fleet(url) as some:
        yield some


def test_a_process_that_only_submits_gets_its_results_from_another(workers: Fleet) -> None:
    at = client(workers.url)
    workers.start_ready()

    assert values(at.leaf.map([1, 2, 3])) == [23, 43, 63]

    roles = sorted(w.role for w in at.app.store.workers().result())
    at.app.close()
    assert roles == ["client", "worker"]
    assert {r.pid for r in workers.journal.of("start")}.isdisjoint({os.getpid()})


def test_a_submit_starts_at_once_in_an_idle_process(workers: Fleet) -> None:
    """Far below any interval somebody might poll at; the figure is printed."""
    at = client(workers.url)
    workers.start_ready(2)
    values([at.mark.submit("warm")])
    delays_s = []
    for n in range(30):
        handle = at.mark.submit(str(n))
        handle.result(WAIT_S)
        view = handle.view().result()
        assert view.started_us is not None
        delays_s.append((view.started_us - view.created_us) / 1e6)
    at.app.close()

    delays_s.sort()
    print(f"\nsubmit here to claim there: p50 {delays_s[15] * 1000:.2f} ms, worst {delays_s[-1] * 1000:.2f} ms")  # noqa: T201 - the figures, with `pytest -s`
    assert delays_s[15] < 0.25


def test_a_submit_in_a_transaction_of_the_caller_starts_in_another_process(workers: Fleet, tmp_path: Path) -> None:
    at = client(workers.url)
    workers.start_ready()
    connection = sqlite3.connect(tmp_path / "fleet.db")
    with connection:
        handle = at.app.submit_in(connection, at.mark, "from a transaction")
    connection.close()

    assert handle.result(WAIT_S) == "from a transaction"
    at.app.close()


def test_a_delayed_task_of_a_process_that_is_gone_runs_when_its_time_comes(workers: Fleet) -> None:
    """The submitter tells of the deadline; an idle worker process arms its timer for it."""
    at = client(workers.url)
    workers.start_ready()
    handle = at.mark.options(delay_s=0.5).submit("later")
    at.app.close()

    workers.journal.wait_for("start", where=lambda r: r.task_id == handle.id)


def test_idle_processes_do_not_wake_up(workers: Fleet) -> None:
    at = client(workers.url)
    processes = workers.start_ready(2)
    assert values(at.leaf.map(range(20))) == [20 * n + 3 for n in range(20)]
    assert values(at.leaf_sync.map(range(4))) == list(range(4))
    pids = [p.pid for p in processes]
    at.app.close()
    settle(at.app)

    before = {pid: wake_ups(pid) for pid in pids}
    wait(IDLE_S)
    after = {pid: wake_ups(pid) for pid in pids}

    woken = {pid: changed(before[pid], after[pid]) for pid in pids}
    assert [w for w in woken.values() if sum(w.values()) > WAKE_UPS_MAX] == [], woken


def settle(app: App) -> None:
    """Let one heartbeat pass that was armed while something ran (a third of the lease)."""
    wait(app.settings.lease_s / 3 + 0.5)


def wait(seconds: float) -> None:
    """Measure over a time: the one place where nothing but time can pass."""
    threading.Event().wait(seconds)


def wake_ups(pid: int) -> dict[str, int]:
    """Return how often each OS thread of a process went to sleep of its own will, each after having been woken."""
    counts = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":", 1) for line in (task / "status").read_text(encoding="ascii").splitlines())
        counts[f"{lines['Name'].strip()}-{task.name}"] = int(lines["voluntary_ctxt_switches"])
    return counts


def changed(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}

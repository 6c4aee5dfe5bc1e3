"""A real Ray cluster of two machines, on one store: what it runs, and what is left of it when a machine is switched off.

Opt-in, since Ray is large and namespaces need root:

    python3 -m venv ray-venv && ray-venv/bin/pip install -e '.[cluster,postgres,dev]'
    SENNIT_TEST_RAY=1 ray-venv/bin/python -m pytest -m ray tests/crash/test_cluster_ray.py
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from sennit import TaskFailed
from sennit.testing.servers import PostgresServer
from tests.crash.ray_cluster import Cluster, Machine, machines

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.environ.get("SENNIT_TEST_RAY", "") in {"", "0"},
        reason="starts Ray as root: pip install 'sennit[cluster]', then SENNIT_TEST_RAY=1 (see the top of this file)",
    ),
]

ROOT: Final = Path(__file__).resolve().parents[2]
LEASE_S: Final = 4.0
WAIT_S: Final = 60.0  # for a fact, on a machine that runs other tests, too


def until(fact: Callable[[], Any], what: str) -> Any:
    """Return `fact()` as soon as it is true."""
    give_up_s = time.monotonic() + WAIT_S
    while not (found := fact()):
        assert time.monotonic() < give_up_s, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.05)  # sleep: the facts are files and rows of processes on other machines
    return found


@dataclass
class Fleet:
    """A store, a cluster, and what works on both."""

    cluster: Cluster
    url: str
    folder: Path
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, *, private: Path) -> dict[str, str]:
        """Return the environment of a process.

        Args:
            private: its machine's own folder: by it sennit sees who is on the same machine.
        """
        return {
            **os.environ, **self.cluster.environment, "RAY_ADDRESS": self.cluster.gcs, "TMPDIR": str(private),
            "SENNIT_DB": self.url, "SENNIT_LEASE_S": str(LEASE_S), "SENNIT_ARRAY_FOLDER": str(self.folder / "arrays"),
            "SENNIT_CPU_SLOTS": "4", "SENNIT_SLOTS": "5",
        }  # fmt: skip

    def up(self, machine: Machine, *options: str) -> subprocess.Popen[bytes]:
        """Run `sennit up --cluster` on a machine."""
        return self._sennit(machine, "up", "tests.crash.ray_program:app", "--cluster", "auto", "--nodes", "2", *options)

    def plain_worker(self) -> subprocess.Popen[bytes]:
        """Run a worker that knows nothing of Ray, on neither machine."""
        return self._sennit(None, "worker", "tests.crash.ray_program:app", "-q", "plain:4")

    def _sennit(self, machine: Machine | None, *words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "sennit", *words]
        private = self.folder if machine is None else self.cluster.folder / "ray"
        process = subprocess.Popen(
            argv if machine is None else machine.argv(argv),
            env=self.environment(private=private), cwd=ROOT, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what was started and say what it said."""
        self.cluster.head.switch_off()  # or what runs there keeps the lines open on which it talks to us
        self.cluster.second.switch_off()
        for process in self._processes:
            process.kill()
            print((process.communicate()[1] or b"").decode(errors="replace"))  # noqa: T201 - shown when the test fails

    def journal(self, what: str) -> list[tuple[int, str, float]]:
        """Return (number, address, time) of one kind of line."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "journal").read_text().splitlines()
            return [(int(n), at, float(at_s)) for kind, n, at, at_s in map(str.split, lines) if kind == what]
        return []

    def go(self) -> None:
        """Let held bodies go on."""
        (self.folder / "go").touch()


@contextmanager
def signalled(machine: Machine, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """At the end, SIGTERM to the command behind `nsenter`, and wait for its exit."""
    yield
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    del machine
    os.kill(int(children[0]), signal.SIGTERM)
    assert process.wait(WAIT_S) == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as one:
        yield one


@pytest.fixture
def fleet(server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    if importlib.util.find_spec("ray") is None:
        pytest.fail("SENNIT_TEST_RAY is set and ray is not installed: pip install 'sennit[cluster]'")
    name = f"fleet_{time.monotonic_ns()}"
    server.create_database(name)
    with machines() as cluster:
        cluster.start_head(cpus=2)
        cluster.start_second(cpus=2)
        some = Fleet(cluster, server.unix_url_of(name), tmp_path)
        for variable, value in some.environment(private=tmp_path).items():
            if variable.startswith(("SENNIT_", "TMPDIR")):
                monkeypatch.setenv(variable, value)
        try:
            yield some
        finally:
            some.close()


@pytest.fixture
def at(fleet: Fleet) -> Iterator[Any]:
    """The handlers, as a client of the store."""
    from tests.crash import ray_program

    ray_program.app.use(fleet.url, array_folder=str(fleet.folder / "arrays"), lease_s=LEASE_S)
    yield ray_program
    ray_program.app.close()


def ended(at: Any, handles: Sequence[Any]) -> bool:
    return not any(at.app.store.task(handle.id).result().state.live for handle in handles)


def results(at: Any, handles: Sequence[Any]) -> list[Any]:
    until(lambda: ended(at, handles), f"the ends of {[handle.id for handle in handles]}")
    return [handle.result(WAIT_S) for handle in handles]


def assert_sound(at: Any, *, succeeded: int, failed: int = 0) -> None:
    ledger = at.app.ledger().result()
    assert (ledger.succeeded, ledger.failed, ledger.live, ledger.missing) == (succeeded, failed, 0, 0)
    assert at.app.store.verify().result() == []


def crashes_of(at: Any) -> list[str]:
    """Return why attempts crashed."""
    tasks = [view for view in at.app.store.tasks(limit=1000).result() if view.crashes]
    return [str(a.error) for view in tasks for a in at.app.store.attempts(view.id).result() if a.outcome == "crashed"]


def agents_of(at: Any) -> list[int]:
    return [w.id for w in at.app.store.workers().result() if "ray" in w.labels]


def test_a_graph_of_arrays_runs_on_both_nodes_and_the_agents_drain(fleet: Fleet, at: Any) -> None:
    up = fleet.up(fleet.cluster.head)
    until(lambda: len(agents_of(at)) == 2, "two agents in the store")

    with signalled(fleet.cluster.head, up):
        leaves = [at.fill.submit(n, 1000) for n in range(6)]  # 8 MB each
        sums = [at.inspect.submit([a, b]) for a in leaves for b in leaves if a is not b]
        seen = results(at, sums)

        assert [total for total, _, _ in seen] == [1e6 * (a + b) for a in range(6) for b in range(6) if a != b]
        assert not any(writeable for _, writeable, _ in seen)
        assert {place for _, _, place in seen} == {"10.77.0.1", "10.77.0.2"}

        refused = at.refuse.submit(7)
        until(lambda: ended(at, [refused]), "the end of what raises")
        with pytest.raises(TaskFailed, match="ValueError: no to 7"):
            refused.result(WAIT_S)

        endless = at.forever.submit(1, str(fleet.folder))
        until(lambda: fleet.journal("begin"), "the start of the endless one")
        at.app.cancel(endless.id).result()
        after = results(at, [at.inspect.submit(leaves[:1]) for _ in range(8)])  # its core is free again
        assert len(after) == 8

    assert agents_of(at) == []
    ledger = at.app.ledger().result()
    assert crashes_of(at) == []
    assert (ledger.succeeded, ledger.failed, ledger.cancelled, ledger.crashed) == (6 + 30 + 8, 1, 1, 0)
    assert at.app.store.verify().result() == []


def test_kill_9_of_a_node_and_its_work_resumes_elsewhere_within_the_lease(fleet: Fleet, at: Any) -> None:
    up = fleet.up(fleet.cluster.head)
    until(lambda: len(agents_of(at)) == 2, "two agents in the store")
    second = "10.77.0.2"

    with signalled(fleet.cluster.head, up):
        waits = [at.wait.submit(n, str(fleet.folder)) for n in range(8)]  # more than the slots of one agent
        holds = [at.hold.submit(n, str(fleet.folder)) for n in range(4)]
        until(lambda: len(fleet.journal("await")) == 8, "all waits begun")
        until(lambda: {n for n, _, _ in fleet.journal("begin")} == {0, 1, 2, 3}, "a body on every core")
        lost_waits = {n for n, place, _ in fleet.journal("await") if place == second}
        lost_holds = {n for n, place, _ in fleet.journal("begin") if place == second}
        assert lost_waits
        assert lost_holds

        killed_s = time.monotonic()
        fleet.cluster.second.switch_off()
        until(lambda: not set(agents_of(at)) - set(agents_of(at)[:1]), "one agent is left")

        def resumed(kind: str) -> dict[int, float]:
            return {n: at_s - killed_s for n, place, at_s in fleet.journal(kind) if at_s > killed_s and place != second}

        # The one that is left has 5 slots, all taken: what comes back is ready, and starts when others end.
        until(lambda: at.app.ledger().result().crashed >= len(lost_waits), "the lost attempts are taken back")
        taken_back_s = time.monotonic() - killed_s
        fleet.go()
        assert results(at, waits) == list(range(8))
        assert results(at, holds) == list(range(4))

        print(f"\ntaken back after {taken_back_s:.2f} s (lease {LEASE_S:g} s); bodies again after {resumed('begin')}")  # noqa: T201 - the figures, with `pytest -s`
        assert taken_back_s < 2 * LEASE_S
        assert lost_holds <= resumed("begin").keys()

        fleet.cluster.second.switch_on()
        fleet.cluster.start_second(cpus=2)
        until(lambda: len(agents_of(at)) == 2, "Ray starts the lost agent on the new node")

    assert_sound(at, succeeded=12)


def test_kill_9_of_the_head_loses_nothing_and_a_new_cluster_goes_on(fleet: Fleet, at: Any) -> None:
    fleet.plain_worker()
    fleet.up(fleet.cluster.second)
    until(lambda: len(agents_of(at)) == 2, "two agents in the store")
    before = set(agents_of(at))
    holds = [at.hold.submit(n, str(fleet.folder)) for n in range(4)]
    until(lambda: {n for n, _, _ in fleet.journal("begin")} == {0, 1, 2, 3}, "a body on every core")

    fleet.cluster.head.switch_off()
    killed_s = time.monotonic()
    assert results(at, [at.echo.submit(n) for n in range(50)]) == list(range(50))  # the rest of the fleet goes on
    print(f"\nthe rest of the fleet: 50 tasks {time.monotonic() - killed_s:.2f} s after the kill")  # noqa: T201 - the figures, with `pytest -s`
    fleet.go()
    later = [at.inspect.submit([at.fill.submit(n, 100)]) for n in range(4)]

    until(lambda: not fleet.cluster.second.runs("raylet"), "Ray gives up on the second machine")
    fleet.cluster.head.switch_on()
    fleet.cluster.start_head(cpus=2)
    fleet.cluster.start_second(cpus=2)
    until(lambda: len(set(agents_of(at)) - before) == 2, "`sennit up`, still the same, has agents on the new cluster")

    assert results(at, holds) == list(range(4))
    assert [total for total, _, _ in results(at, later)] == [1e5 * n for n in range(4)]
    print(f"all ended {time.monotonic() - killed_s:.1f} s after the kill")  # noqa: T201 - the figures, with `pytest -s`
    assert_sound(at, succeeded=50 + 4 + 8)

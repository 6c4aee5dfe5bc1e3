"""Which cluster a setting names, what a Ray driver is told, and how large a cluster should be. Needs no Ray."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit import App
from sennit.cli.cluster import Plan, agent_argv, agent_environment
from sennit.errors import ClusterUnavailable, SettingsError, UsageError, WorkerCrashed
from sennit.execute.cluster import Demand, open_cpu_pool, wanted_cpus
from sennit.execute.cluster_link import checked_address, ray_environment
from sennit.execute.cluster_node import NodeAgent
from sennit.execute.cluster_ray import RayPool
from sennit.execute.processes import Job, ProcessPool
from sennit.execute.verdict import Judge
from sennit.model.retry import RetryPolicy
from sennit.model.settings import Settings
from sennit.model.task import Claim, Claimed, Slept
from sennit.runtime.config import load

HAS_RAY = importlib.util.find_spec("ray") is not None


# ---------------------------------------------------------------- which


@pytest.mark.parametrize("cluster", ["", "local"])
def test_without_a_cluster_bodies_run_in_processes_of_this_machine(cluster: str) -> None:
    assert isinstance(open_cpu_pool(Settings(cluster=cluster), processes_max=1), ProcessPool)


@pytest.mark.parametrize("cluster", ["dask", "ray://", "ray://head", "ray://:10001", "ray://head:x", "http://head:1"])
def test_what_names_no_cluster_is_refused(cluster: str) -> None:
    with pytest.raises(SettingsError, match="names no cluster"):
        checked_address(cluster)


@pytest.mark.skipif(HAS_RAY, reason="ray is installed here")
@pytest.mark.parametrize("cluster", ["ray", "auto", "ray://head:10001"])
def test_without_the_extra_a_cluster_says_what_to_install(cluster: str) -> None:
    with pytest.raises(SettingsError, match=r"needs ray, .*\n.*why: .*\n.*sennit\[cluster\]"):
        checked_address(cluster)


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed here")
def test_with_the_extra_ray_is_told_its_own_names() -> None:
    assert [checked_address(c) for c in ("ray", "auto", "ray://head:10001")] == ["auto", "auto", "ray://head:10001"]


def test_app_cluster_none_says_nothing(tmp_path: Path) -> None:
    app = App(f"sqlite:///{tmp_path}/a.db", cluster=None)

    assert (app.settings.cluster, app.loaded.origins["cluster"]) == ("", "default")


def test_the_table_cluster_of_a_file_and_the_environment_are_settings(tmp_path: Path) -> None:
    (tmp_path / "sennit.toml").write_text('[cluster]\naddress = "ray"\ntoken_path = "/etc/ray/token"\n')

    from_file = load({}, environ={}, folder=tmp_path).settings
    from_both = load({}, environ={"SENNIT_CLUSTER": "ray://head:10001"}, folder=tmp_path).settings

    assert (from_file.cluster, from_file.cluster_token_path) == ("ray", "/etc/ray/token")
    assert (from_both.cluster, from_both.cluster_token_path) == ("ray://head:10001", "/etc/ray/token")


def test_an_unknown_name_in_the_table_cluster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sennit.toml").write_text('[cluster]\nadress = "ray"\n')

    with pytest.raises(SettingsError, match="adress"):
        load({}, environ={}, folder=tmp_path)


# ---------------------------------------------------------------- what a driver is told


def test_a_driver_always_authenticates_and_reports_nothing(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")

    given_path = ray_environment(str(token), {"RAY_AUTH_MODE": "disabled"})
    from_environment = ray_environment("", {"RAY_AUTH_TOKEN_PATH": str(token)})

    for environment in (given_path, from_environment):
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_token_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no Ray token"):
        ray_environment(str(tmp_path / "none"), {})


# ---------------------------------------------------------------- a cluster that is away


def away(tmp_path: Path, *, hold_s: float) -> RayPool:
    """Return a pool whose broker cannot join: no Ray here, or no cluster at this address."""
    (tmp_path / "token").write_text("secret" * 10)
    address = "ray://127.0.0.1:1"  # a port that nothing listens on
    return RayPool(
        address, runner="sennit.execute.process_child:call_json", folder=tmp_path,
        token_path=str(tmp_path / "token"), hold_s=hold_s,
    )  # fmt: skip


def test_a_body_that_finds_no_cluster_has_not_crashed(tmp_path: Path) -> None:
    async def run() -> list[int]:
        pool = away(tmp_path, hold_s=0.0)
        try:
            with pytest.raises(ClusterUnavailable):
                await pool.run(Job("os:getpid", b"[[], {}]"))
            return pool.pids()
        finally:
            await pool.close()

    assert asyncio.run(run()) == []


def test_a_body_in_line_for_its_cluster_can_be_killed(tmp_path: Path) -> None:
    async def run() -> tuple[bool, bool]:
        pool, job = away(tmp_path, hold_s=3600.0), Job("os:getpid", b"[[], {}]")
        running = asyncio.create_task(pool.run(job))
        await asyncio.sleep(0)  # it is in line now
        was_in_line = pool.in_line(job)
        assert pool.kill(job)
        with pytest.raises(WorkerCrashed, match="by request"):
            await running
        assert not pool.kill(job)
        await pool.close()
        return was_in_line, pool.in_line(job)

    assert asyncio.run(run()) == (True, False)


# ---------------------------------------------------------------- how large

counts = st.integers(0, 10_000)
waits = st.floats(0, 1e6)


@given(counts, counts, waits, st.integers(0, 5000))
def test_no_more_cores_are_asked_for_than_allowed_or_needed(
    running: int, ready: int, oldest_s: float, top: int
) -> None:
    wanted = wanted_cpus(Demand(running, ready, oldest_s), cpus_max=top, patience_s=10.0)

    assert min(running, top) <= wanted <= min(top, running + ready)


@given(counts, counts, waits, waits)
def test_what_waits_longer_never_asks_for_less(running: int, ready: int, one_s: float, other_s: float) -> None:
    short_s, long_s = sorted((one_s, other_s))

    def wanted(oldest_s: float) -> int:
        return wanted_cpus(Demand(running, ready, oldest_s), cpus_max=100_000, patience_s=10.0)

    assert wanted(short_s) <= wanted(long_s)
    assert wanted(40.0) == running + ready


def test_a_burst_that_does_not_wait_starts_no_machine() -> None:
    assert wanted_cpus(Demand(8, 1000, 9.9), cpus_max=64, patience_s=10.0) == 8
    assert wanted_cpus(Demand(0, 0, 0.0), cpus_max=64, patience_s=10.0) == 0


# ---------------------------------------------------------------- agents


def plan(**changes: object) -> Plan:
    known: dict[str, object] = {"cluster": "auto", "target": "fleet:app", "nodes": 2, "cpus_max": 0, "options": ()}
    return Plan(**{**known, "drain_s": 1.0, **changes})  # type: ignore[arg-type]  # one call for all tests


def test_an_agent_works_on_the_store_of_its_fleet_and_bears_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")

    argv = agent_argv(plan(options=("-q", "llm:8")), "sqlite:///fleet.db", "gpu")

    assert argv == [
        *("-m", "sennit", "worker", "fleet:app", "--db", "sqlite:////tmp/fleet.db"),
        *("--labels", "gpu,ray", "-q", "llm:8"),
    ]


def test_a_store_in_memory_has_no_agents() -> None:
    with pytest.raises(UsageError, match="in memory"):
        agent_argv(plan(), "memory://", "")


def test_agents_share_what_the_autoscaler_may_give() -> None:
    environ = {
        "SENNIT_LEASE_S": "4",
        "SENNIT_CLUSTER_TOKEN_PATH": "/here",
        "HOME": "/me",
        "SENNIT_CLUSTER": "ray://h:1",
    }

    fixed = agent_environment(plan(), 2, environ)
    scaled = agent_environment(plan(cpus_max=9), 2, environ)

    assert fixed == {"SENNIT_LEASE_S": "4", "SENNIT_CLUSTER": "ray"}
    assert scaled == fixed | {"SENNIT_CPU_SLOTS": "5"}


WORKER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("up", file=sys.stderr, flush=True)
open(sys.argv[1], "a").write("up\\n")
while True: time.sleep(60)
"""


def wait_for(path: Path, lines: int, changed: threading.Event) -> None:
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        changed.wait(0.02)  # a file that another process writes


@pytest.fixture
def agent(tmp_path: Path) -> NodeAgent:
    return NodeAgent(["-c", WORKER, str(tmp_path / "ups")], {}, str(tmp_path))


def test_an_agent_starts_its_worker_again_and_stops_it_with_sigterm(agent: NodeAgent, tmp_path: Path) -> None:
    changed = threading.Event()
    wait_for(tmp_path / "ups", 1, changed)
    first = agent.look()
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(tmp_path / "ups", 2, changed)

    second = agent.look()

    assert (second["state"], second["starts"], second["exit_code"]) == ("running", 2, -signal.SIGKILL)
    assert agent.stop(30.0) == 143
    assert agent.look()["pid"] == 0


def test_a_worker_gets_sigterm_when_its_agent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, threading\nfrom sennit.execute.cluster_node import NodeAgent\n"
        "NodeAgent(sys.argv[1:], {}, '.')\nthreading.Event().wait()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, "-c", WORKER, str(tmp_path / "ups")], stderr=subprocess.DEVNULL
    )
    wait_for(tmp_path / "ups", 1, threading.Event())
    (worker,) = psutil.Process(owner.pid).children()

    owner.kill()
    owner.wait()

    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running()


def test_a_task_that_found_no_cluster_is_put_aside_and_counts_neither_as_failure_nor_as_crash() -> None:
    task = Claimed(id=7, attempt=1, handler="h", queue="cpu", payload=b"{}", created_us=0)

    ending = Judge(lambda: 1_000_000, Random(0)).error(task, RetryPolicy(), ClusterUnavailable("auto", "gone"))

    assert isinstance(ending, Slept)
    assert (ending.claim, ending.reason) == (Claim(7, 1), "the cluster cannot be reached")
    assert ending.due_us > 1_000_000

"""Cores and memory as the kernel bounds them, read from trees of both layouts; and from this machine's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from sennit import App
from sennit.errors import SettingsError
from sennit.limit.cgroups import NO_LIMIT_BYTES, Cgroups, MemoryUse, effective_cpus, host_memory, tightest_memory

MB = 1_000_000
NOTHING: Mapping[str, str] = {}


def tree(root: Path, membership: str, files: Mapping[str, str]) -> Cgroups:
    """Write a fake /sys/fs/cgroup and /proc/self/cgroup."""
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (root / "fs").mkdir(exist_ok=True)
    (root / "membership").write_text(membership + "\n")
    return Cgroups(root / "fs", root / "membership")


def cpus(groups: Cgroups, affinity: int = 64, environ: Mapping[str, str] = NOTHING) -> int:
    return effective_cpus(groups, environ=environ, affinity=lambda: affinity)


# ---------------------------------------------------------------- cores


def test_version_2_the_quota_is_rounded_up_to_whole_cores(tmp_path: Path) -> None:
    groups = tree(tmp_path, "0::/app", {"cgroup.controllers": "cpu memory", "app/cpu.max": "150000 100000"})

    assert groups.cpu_quota() == 1.5
    assert cpus(groups) == 2


def test_version_2_the_tightest_group_above_ours_holds(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "cpu",
        "pod/cpu.max": "200000 100000",
        "pod/app/cpu.max": "max 100000",
        "pod/app/job/cpu.max": "400000 100000",
    }

    assert cpus(tree(tmp_path, "0::/pod/app/job", files)) == 2


def test_version_2_max_is_no_bound(tmp_path: Path) -> None:
    groups = tree(tmp_path, "0::/app", {"cgroup.controllers": "cpu", "app/cpu.max": "max 100000"})

    assert groups.cpu_quota() is None
    assert cpus(groups, affinity=3) == 3


def test_version_2_seen_from_inside_a_container_the_mount_is_our_group(tmp_path: Path) -> None:
    """The path is the host's, and not there."""
    files = {"cgroup.controllers": "cpu", "cpu.max": "100000 100000"}

    assert cpus(tree(tmp_path, "0::/docker/1f00", files)) == 1


def test_version_2_a_group_outside_our_namespace_is_not_climbed_to(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cpu.max").write_text("100000 100000")
    groups = tree(tmp_path, "0::/../other", {"cgroup.controllers": "cpu", "cpu.max": "300000 100000"})

    assert cpus(groups) == 3


def test_version_1_quota_and_period_of_our_group_and_of_those_above(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/docker/cpu.cfs_quota_us": "250000",
        "cpu,cpuacct/docker/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/docker/1f/cpu.cfs_quota_us": "800000",
        "cpu,cpuacct/docker/1f/cpu.cfs_period_us": "100000",
    }

    assert cpus(tree(tmp_path, "5:memory:/\n4:cpu,cpuacct:/docker/1f", files)) == 3


def test_version_1_minus_one_is_no_bound(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}

    assert tree(tmp_path, "1:cpu:/", files).cpu_quota() is None


def test_both_versions_side_by_side_the_tighter_one_holds(tmp_path: Path) -> None:
    files = {
        "unified/cgroup.controllers": "",
        "unified/cpu.max": "700000 100000",
        "cpu/cpu.cfs_quota_us": "500000",
        "cpu/cpu.cfs_period_us": "100000",
    }

    assert cpus(tree(tmp_path, "1:cpu:/\n0::/", files)) == 5


@pytest.mark.parametrize("text", ["", "max", "x 100000", "100000 0", "0 100000", "-5 100000", "1 2 3", "\xff"])
def test_a_quota_that_makes_no_sense_bounds_nothing(tmp_path: Path, text: str) -> None:
    groups = tree(tmp_path, "0::/", {"cgroup.controllers": "cpu", "cpu.max": text})

    assert groups.cpu_quota() is None


@pytest.mark.parametrize("membership", ["", "nonsense", "0::", "9:cpu"])
def test_without_groups_affinity_decides(tmp_path: Path, membership: str) -> None:
    assert cpus(tree(tmp_path, membership, {}), affinity=7) == 7


def test_affinity_below_the_quota_holds(tmp_path: Path) -> None:
    files = {"cgroup.controllers": "cpu", "cpu.max": "800000 100000"}

    assert cpus(tree(tmp_path, "0::/", files), affinity=2) == 2


def test_a_tenth_of_a_core_is_one_core(tmp_path: Path) -> None:
    files = {"cgroup.controllers": "cpu", "cpu.max": "10000 100000"}

    assert cpus(tree(tmp_path, "0::/", files)) == 1


def test_the_environment_goes_before_both(tmp_path: Path) -> None:
    files = {"cgroup.controllers": "cpu", "cpu.max": "100000 100000"}

    assert cpus(tree(tmp_path, "0::/", files), affinity=2, environ={"SENNIT_CPUS": "12"}) == 12


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "100000"])
def test_a_number_of_cores_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        effective_cpus(environ={"SENNIT_CPUS": text})

    assert text in refused.value.what
    assert "SENNIT_CPUS" in refused.value.fix


def test_this_machine_has_as_many_cores_as_we_are_bound_to() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from sennit.limit.cgroups import effective_cpus; print(effective_cpus())"
    )
    environ = {name: value for name, value in os.environ.items() if name != "SENNIT_CPUS"}

    said = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "1"


def test_an_app_takes_the_number_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENNIT_CPUS", "3")
    app = App("memory://")

    @app.task(cpu=True)
    def crunch(n: int) -> int:
        return n

    assert app.served_queues()["cpu"] == 3


# ---------------------------------------------------------------- memory


def test_version_2_what_counts_is_the_working_set_under_the_lower_of_high_and_max(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "memory",
        "app/memory.current": str(90 * MB),
        "app/memory.max": str(200 * MB),
        "app/memory.high": str(100 * MB),
        "app/memory.stat": f"anon 5\ninactive_file {40 * MB}\nactive_file 7",
    }

    uses = tree(tmp_path, "0::/app", files).memory()

    assert uses == [MemoryUse(50 * MB, 100 * MB, "cgroup-v2")]
    assert uses[0].free == 0.5


def test_version_1_the_cache_of_the_whole_subtree_is_left_out(tmp_path: Path) -> None:
    files = {
        "memory/app/memory.usage_in_bytes": str(80 * MB),
        "memory/app/memory.limit_in_bytes": str(100 * MB),
        "memory/app/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MB}",
    }

    assert tree(tmp_path, "4:memory:/app", files).memory() == [MemoryUse(60 * MB, 100 * MB, "cgroup-v1")]


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096), str(NO_LIMIT_BYTES), "0", "-1", "much"])
def test_a_bound_that_is_none_is_left_out(tmp_path: Path, limit: str) -> None:
    files = {"cgroup.controllers": "memory", "memory.current": "5", "memory.max": limit}

    assert tree(tmp_path, "0::/", files).memory() == []


def test_the_bound_of_a_group_above_counts_with_all_that_is_in_it(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "memory",
        "pod/memory.current": str(95 * MB),
        "pod/memory.max": str(100 * MB),
        "pod/app/memory.current": str(10 * MB),
        "pod/app/memory.max": str(50 * MB),
    }
    groups = tree(tmp_path, "0::/pod/app", files)

    tightest = tightest_memory(groups, host=lambda: MemoryUse(0, 10**12, "host"))

    assert (tightest.limit_bytes, round(tightest.free, 2)) == (100 * MB, 0.05)


def test_more_cache_than_use_is_no_use_and_more_use_than_bound_leaves_nothing() -> None:
    assert MemoryUse(200, 100, "cgroup-v1").free == 0.0
    assert MemoryUse(0, 100, "cgroup-v1").free == 1.0


def test_without_groups_the_machine_decides(tmp_path: Path) -> None:
    use = tightest_memory(tree(tmp_path, "", {}))

    assert use.source == "host"
    assert use.limit_bytes == psutil.virtual_memory().total
    assert 0 < use.free < 1


def test_this_machine_can_be_read() -> None:
    assert tightest_memory().free <= host_memory().free + 0.1
    assert all(use.limit_bytes > 0 for use in Cgroups().memory())


def test_our_own_group_is_known_only_when_it_is_not_the_whole_machine(tmp_path: Path) -> None:
    groups = tree(tmp_path, "0::/app", {"cgroup.controllers": "", "app/cpu.max": "max 100000"})

    assert groups.own_v2() == tmp_path / "fs" / "app"
    (tmp_path / "membership").write_text("0::/\n")
    assert groups.own_v2() is None

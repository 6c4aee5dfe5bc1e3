"""NUMA nodes as sysfs tells of them: trees as machines have them, and as they should not be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.cli.doctor_pools import pool_checks
from sennit.execute.processes import Job, ProcessPool
from sennit.model.settings import Settings
from sennit.sync.affinity import Node, affinity, cpus_of_nodes, numa_nodes, parse_list

ALL = range(1024)


def tree(root: Path, nodes: Mapping[int, str], **files: str) -> Path:
    """Write a folder as /sys/devices/system/node is; `distance_0="10 21"` is that file of node 0."""
    for node, cpulist in nodes.items():
        (root / f"node{node}").mkdir(parents=True)
        (root / f"node{node}" / "cpulist").write_text(f"{cpulist}\n")
    (root / "power").mkdir(exist_ok=True)
    for name, text in files.items():
        what, _, number = name.rpartition("_")
        path = root / f"node{number}" / what if number.isdecimal() else root / name
        path.write_text(f"{text}\n")
    return root


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", []),
        ("0", [0]),
        ("0-3,8,10-11\n", [0, 1, 2, 3, 8, 10, 11]),
        (" 0 , 2 \n", [0, 2]),
        ("0-7:2/4", [0, 1, 4, 5]),
        ("3-1,5", [5]),
        ("0-99999999999,1", [1]),
        ("all,4,-,2-", [2, 4]),
        ("0-3:1/0,7", [7]),
        ("1\0", [1]),
    ],
)
def test_a_list_is_read_as_the_kernel_writes_it_and_nonsense_is_left_out(text: str, numbers: list[int]) -> None:
    assert sorted(parse_list(text)) == numbers


@given(st.frozensets(st.integers(0, 300)))
def test_every_set_of_cores_survives_being_written_as_a_list(cpus: frozenset[int]) -> None:
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and spans[-1][1] == cpu - 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    text = ",".join(f"{low}-{high}" if low != high else f"{low}" for low, high in spans)

    assert parse_list(text) == cpus


@given(st.text("0123456789-,:/ x", max_size=40))
def test_no_list_however_odd_stops_a_start(text: str) -> None:
    assert all(number >= 0 for number in parse_list(text))


# ---------------------------------------------------------------- trees


def test_two_sockets_are_two_nodes(tmp_path: Path) -> None:
    root = tree(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15"}, online="0-1", distance_0="10 21", distance_1="21 10")

    assert numa_nodes(root, allowed=ALL) == (
        Node(0, frozenset({0, 1, 2, 3, 8, 9, 10, 11})),
        Node(1, frozenset({4, 5, 6, 7, 12, 13, 14, 15})),
    )


def test_four_nodes_are_cut_down_to_the_cores_that_we_may_use(tmp_path: Path) -> None:
    root = tree(tmp_path, {0: "0-3", 1: "4-7", 2: "8-11", 3: "12-15"}, online="0-3", has_memory="0-3")

    assert numa_nodes(root, allowed={1, 2, 9, 12, 13}) == (
        Node(0, frozenset({1, 2})),
        Node(2, frozenset({9})),
        Node(3, frozenset({12, 13})),
    )


def test_a_node_that_is_offline_is_not_there(tmp_path: Path) -> None:
    root = tree(tmp_path, {0: "0-3", 1: "4-7", 2: "8-11"}, online="0,2")

    assert [node.id for node in numa_nodes(root, allowed=ALL)] == [0, 2]


def test_cores_beside_no_memory_belong_to_the_nearest_node_that_has_some(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {0: "0-1", 1: "2-3", 4: "4-5"}, online="0-1,4", has_memory="0,4", distance_1="40 10 15"
    )  # the row has a figure for each node that is online, and 4 is the third

    assert numa_nodes(root, allowed=ALL) == (Node(0, frozenset({0, 1})), Node(4, frozenset({2, 3, 4, 5})))


def test_without_a_list_of_nodes_with_memory_each_says_it_itself(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {0: "0-1", 1: "2-3"},
        meminfo_0="\nNode 0 MemTotal:       131891392 kB\nNode 0 MemFree: 1 kB",
        meminfo_1="Node 1 MemTotal:       0 kB",
        distance_1="rubbish",
    )

    assert numa_nodes(root, allowed=ALL) == (Node(0, frozenset({0, 1, 2, 3})),)


def test_memory_without_cores_is_no_place_to_run(tmp_path: Path) -> None:
    root = tree(tmp_path, {0: "0-3", 1: ""}, online="0-1", has_memory="0-1")

    assert numa_nodes(root, allowed=ALL) == (Node(0, frozenset(range(4))),)
    assert cpus_of_nodes("auto", root=root, allowed=ALL) == ()


def test_where_the_system_says_nothing_there_are_no_nodes(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path / "nowhere", allowed=ALL) == ()
    assert numa_nodes(tree(tmp_path, {}), allowed=ALL) == ()
    assert cpus_of_nodes("auto", root=tmp_path / "nowhere") == ()


@given(st.lists(st.frozensets(st.integers(0, 63), max_size=8), max_size=6), st.frozensets(st.integers(0, 63)))
def test_every_core_that_we_may_use_is_on_at_most_one_node_and_none_is_made_up(
    tmp_path_factory: pytest.TempPathFactory, cores: list[frozenset[int]], allowed: frozenset[int]
) -> None:
    left, disjoint = set(range(64)), {}
    for node, cpus in enumerate(cores):
        disjoint[node] = sorted(cpus & left)
        left -= cpus
    lists = {node: ",".join(map(str, cpus)) for node, cpus in disjoint.items()}
    root = tree(tmp_path_factory.mktemp("node"), lists, has_memory="0,2", online="0-5")

    nodes = numa_nodes(root, allowed=allowed)

    listed = [cpu for node in nodes for cpu in node.cpus]
    assert sorted(listed) == sorted(allowed & {cpu for cpus in disjoint.values() for cpu in cpus})


def test_off_pins_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, {0: "0-3", 1: "4-7"})

    assert len(cpus_of_nodes("auto", root=root, allowed=ALL)) == 2
    assert cpus_of_nodes("off", root=root, allowed=ALL) == ()


# ---------------------------------------------------------------- processes


@pytest.mark.skipif(len(affinity()) < 2, reason="one core cannot be shared out")
def test_each_process_is_pinned_to_one_node_in_balance() -> None:
    first, *others = sorted(affinity())
    nodes = [frozenset({first}), frozenset(others[:1])]

    async def scenario() -> list[list[int]]:
        pool = ProcessPool(processes_max=4, nodes=nodes)
        where = [Job("tests.crash.pool_bodies:own_cores", msgspec.json.encode([[], {}])) for _ in range(40)]
        try:
            answers = await asyncio.gather(*(pool.run(job) for job in where))
            pids = pool.pids()
            pinned = [sorted(os.sched_getaffinity(pid)) for pid in pids]
            assert {tuple(msgspec.json.decode(answer)) for answer in answers} <= {(first,), tuple(others[:1])}
            return pinned
        finally:
            await pool.close()

    pinned = asyncio.run(scenario())

    assert abs(pinned.count([first]) - pinned.count(others[:1])) <= 1


def test_one_node_pins_nothing() -> None:
    async def scenario() -> list[int]:
        pool = ProcessPool(processes_max=1, nodes=[frozenset({min(affinity())})])
        try:
            cores: list[int] = msgspec.json.decode(
                await pool.run(Job("tests.crash.pool_bodies:own_cores", msgspec.json.encode([[], {}])))
            )
            return cores
        finally:
            await pool.close()

    assert asyncio.run(scenario()) == sorted(affinity())


# ---------------------------------------------------------------- doctor


def test_doctor_says_where_cpu_bodies_go_and_whether_they_are_pinned(tmp_path: Path) -> None:
    two = tree(tmp_path / "two", {0: "0-3", 1: f"{min(affinity())}"})

    def found(**how: object) -> list[str]:
        settings = Settings.of({name: value for name, value in how.items() if name not in {"root", "has_gil"}})
        root = how.get("root", tmp_path / "nowhere")
        assert isinstance(root, Path)
        return [check.found for check in pool_checks(settings, has_gil=bool(how.get("has_gil", True)), root=root)]

    where, numa, placement = found(cpu_slots=3)
    assert where == "worker processes, up to 3"
    assert numa == "the system does not say: nothing is pinned"
    assert placement.startswith("auto: a plain def")
    where, _, placement = found(cpu_slots=3, has_gil=False)
    assert where == "OS threads, up to 3: this Python runs without a GIL"
    assert placement == "auto, with nothing to decide: a plain def stays in OS threads"
    assert found(placement="declared")[2] == "declared: only cpu=True leaves this process"
    assert found(cluster="ray://head:10001")[0] == "the cluster ray://head:10001"
    if len(affinity()) > 1:
        assert found(root=two)[1].endswith("each worker process is pinned to one")
        assert found(root=two, cpu_affinity="off")[1].endswith("nothing is pinned")

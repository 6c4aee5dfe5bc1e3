"""Pressure: real triggers of this kernel under real load, and what stands in for them where there are none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.limit.cgroups import Cgroups
from sennit.limit.pressure import SPAN_MIN_US, Meter, Pressure, Pressures
from sennit.sync.clock import uptime_us
from tests.busy import busy

PSI = Path("/proc/pressure/cpu")
WAIT_S = 30.0

needs_psi = pytest.mark.skipif(not PSI.exists(), reason="this kernel has no /proc/pressure (PSI)")


class Machine:
    """A fake tree of pressure files, and the time it is."""

    def __init__(self, root: Path) -> None:
        self.now_us = 0
        self.use = 0.0
        self.proc = root / "pressure"
        self.groups = Cgroups(root / "fs", root / "membership")

    def write(self, path: Path, total_us: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\nfull avg10=0.00 total=7\n")

    def pressure(self) -> Pressure:
        return Pressure(
            cpu_max=0.8,
            memory_max=0.1,
            now_us=lambda: self.now_us,
            groups=self.groups,
            proc=self.proc,
            cpu_percent=lambda: self.use,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def of_this_machine() -> Pressure:
    return Pressure(cpu_max=0.6, memory_max=0.5, now_us=uptime_us)


# ---------------------------------------------------------------- real


def set_triggers(pressure: Pressure, told: asyncio.Event) -> None:
    pressure.start(asyncio.get_running_loop(), told.set)
    if not pressure.has_triggers:
        pytest.skip("this kernel lets us set no pressure trigger")


async def wait_for_real_load() -> None:
    pressure, told = of_this_machine(), asyncio.Event()
    set_triggers(pressure, told)

    shares: list[float | None] = []
    with busy():
        while not shares or shares[-1] is None or shares[-1] < 0.6:
            await asyncio.wait_for(told.wait(), WAIT_S)  # the first may be of before the load, or wrong
            told.clear()
            shares.append(pressure.sample().cpu)

    pressure.close()
    assert len(shares) < 10
    assert pressure.source in {"psi", "psi-cgroup"}


@needs_psi
def test_the_kernel_tells_of_real_load_and_nobody_asks() -> None:
    asyncio.run(wait_for_real_load())


@needs_psi
def test_after_stop_nobody_is_told_and_after_another_start_again() -> None:
    async def run() -> None:
        loop, told, again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        first, second = of_this_machine(), of_this_machine()
        set_triggers(first, told)
        first.stop()
        second.start(loop, again.set)
        with busy():
            await asyncio.wait_for(again.wait(), WAIT_S)
            assert not told.is_set()
            assert not first.is_started

            first.start(loop, told.set)
            await asyncio.wait_for(told.wait(), WAIT_S)
        first.close()
        second.close()

    asyncio.run(run())


@needs_psi
def test_close_gives_every_descriptor_back() -> None:
    async def run() -> None:
        me = psutil.Process()
        before = me.num_fds()
        pressure = of_this_machine()
        for _ in range(3):
            pressure.start(asyncio.get_running_loop(), bool)
            pressure.start(asyncio.get_running_loop(), bool)
            pressure.stop()
            pressure.stop()
        pressure.close()
        pressure.close()
        assert me.num_fds() == before

    asyncio.run(run())


@needs_psi
def test_the_totals_of_this_machine_make_a_share() -> None:
    now_us = 0
    pressure = Pressure(cpu_max=0.8, memory_max=0.1, now_us=lambda: now_us)
    assert pressure.sample().cpu is None  # nothing to compare with

    now_us = 10**12  # longer than any machine is up: whatever was added meanwhile is next to nothing
    share = pressure.sample().cpu

    assert share is not None
    assert 0 <= share < 0.01


# ---------------------------------------------------------------- sources


def test_our_own_group_goes_before_the_machine(machine: Machine) -> None:
    machine.write(machine.proc / "cpu", 1)
    machine.write(machine.groups.root / "app" / "cpu.pressure", 1)
    (machine.groups.root / "cgroup.controllers").write_text("cpu")
    machine.groups.membership.write_text("0::/app\n")

    assert machine.pressure().source == "psi-cgroup"


def test_in_the_root_group_the_machine_is_looked_at(machine: Machine) -> None:
    machine.write(machine.proc / "cpu", 1)
    machine.write(machine.groups.root / "cpu.pressure", 1)
    (machine.groups.root / "cgroup.controllers").write_text("cpu")
    machine.groups.membership.write_text("0::/\n")

    assert machine.pressure().source == "psi"


def test_without_pressure_files_use_is_looked_at(machine: Machine) -> None:
    pressure = machine.pressure()

    assert pressure.source == "psutil"
    for use, expected in ((0.0, 0.0), (80.0, 0.0), (90.0, 0.5), (100.0, 1.0), (400.0, 1.0)):
        machine.use = use
        assert pressure.sample().cpu == pytest.approx(expected)
    assert pressure.sample().memory is None


def test_where_use_cannot_be_read_either_nothing_is_known(machine: Machine) -> None:
    def unreadable() -> float:
        raise PermissionError("/proc/stat")

    pressure = Pressure(
        cpu_max=0.8, memory_max=0.1, now_us=uptime_us, groups=machine.groups, proc=machine.proc, cpu_percent=unreadable
    )

    assert pressure.source == "none"
    assert pressure.sample() == Pressures(None, None)


def test_files_that_take_no_trigger_can_still_be_read(machine: Machine) -> None:
    """A plain file is written to, and cannot be polled: as on a kernel that has PSI and refuses triggers."""
    machine.write(machine.proc / "cpu", 1_000_000)
    pressure = machine.pressure()

    async def run() -> None:
        pressure.start(asyncio.get_running_loop(), bool)
        assert pressure.is_started
        assert not pressure.has_triggers

    asyncio.run(run())
    machine.write(machine.proc / "cpu", 1_000_000)
    machine.now_us += 4_000_000
    pressure.sample()
    machine.write(machine.proc / "cpu", 3_000_000)
    machine.now_us += 4_000_000
    assert pressure.sample().cpu == 0.5


@pytest.mark.parametrize("text", ["", "full total=5", "some avg10=0.0", "some total=many", "some total=-4"])
def test_a_pressure_file_that_makes_no_sense_is_none(machine: Machine, text: str) -> None:
    machine.proc.mkdir()
    (machine.proc / "cpu").write_text(text)

    assert machine.pressure().source == "psutil"


# ---------------------------------------------------------------- the meter


def test_a_share_is_not_said_before_the_kernel_has_added_up() -> None:
    meter = Meter()

    assert meter.share(0, 0) is None
    assert meter.share(10**9, SPAN_MIN_US - 1) is None
    assert meter.share(SPAN_MIN_US // 2, SPAN_MIN_US) == 0.5


def test_what_was_long_ago_is_forgotten() -> None:
    meter, total_us = Meter(), 0
    for second in range(100):
        total_us += 1_000_000
        meter.share(total_us, second * 1_000_000)

    shares = [meter.share(total_us, second * 1_000_000) for second in range(100, 110)]

    assert shares[0] == pytest.approx(5 / 6)
    assert shares[6:] == [0.0] * 4


def test_after_a_long_time_without_samples_two_seconds_are_enough() -> None:
    meter = Meter()
    meter.share(0, 0)
    meter.share(0, 600_000_000)

    assert meter.share(2_000_000, 602_000_000) == 1.0


@given(st.lists(st.tuples(st.integers(-(10**7), 10**7), st.integers(-(10**7), 10**7))))
def test_a_share_is_between_0_and_1_whatever_the_kernel_says(steps: list[tuple[int, int]]) -> None:
    meter, total_us, now_us = Meter(), 0, 0
    for more_us, later_us in steps:
        total_us += more_us
        now_us += later_us
        share = meter.share(total_us, now_us)
        assert share is None or 0 <= share <= 1

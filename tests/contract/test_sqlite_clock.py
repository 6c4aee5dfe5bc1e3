"""The clock of the file: somebody sets the wall clock, the machine starts again, and no lease or retry moves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sennit.model.lifecycle import State
from sennit.model.task import Succeeded
from sennit.store.clock import offset_us
from sennit.store.sqlite import SqliteStore
from sennit.sync.clock import wall_us
from sennit.testing.contract_tools import SECOND_US, Rig, got, running_loop

HOUR_US = 3600 * SECOND_US


class Machine:
    """Both clocks of a machine and its boot id, moved by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boot = "boot-1"
        self.wall_us = 1_735_689_600 * SECOND_US
        self.uptime_us = 5 * SECOND_US
        with closing(SqliteStore(path, now_us=lambda: 0)):
            pass  # the schema is there

    def pass_time(self, *, seconds: float) -> None:
        self.uptime_us += round(seconds * SECOND_US)
        self.wall_us += round(seconds * SECOND_US)

    def start_again(self, *, wall_step_us: int) -> None:
        """Boot; the wall clock comes up somewhere else."""
        self.boot += "+"
        self.uptime_us = 3 * SECOND_US
        self.wall_us += wall_step_us

    def offset_us(self) -> int:
        """Return the offset that a process reads which opens the file now."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return offset_us(connection, boot=self.boot, wall_now_us=self.wall_us, uptime_now_us=self.uptime_us)

    @contextmanager
    def process(self, *, lease_s: float = 1e6) -> Iterator[Rig]:
        """Open the file as a process would that starts now."""
        offset = self.offset_us()
        with running_loop() as loop, closing(SqliteStore(self.path, now_us=lambda: offset + self.uptime_us)) as store:
            yield Rig(store, loop, lease_s=lease_s)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "tasks.db")


@pytest.mark.parametrize("step_us", [-HOUR_US, HOUR_US])
def test_processes_before_and_after_the_wall_clock_was_set_have_the_same_time(machine: Machine, step_us: int) -> None:
    with machine.process() as before:
        machine.wall_us += step_us
        with machine.process() as after:
            assert before.store.now_us() == after.store.now_us()


@pytest.mark.parametrize("step_us", [-HOUR_US, HOUR_US])
def test_setting_the_wall_clock_moves_no_retry(machine: Machine, step_us: int) -> None:
    with machine.process() as before:
        task = before.start()
        before.retry(task, after_s=60)
        machine.wall_us += step_us
        with machine.process() as after:
            machine.pass_time(seconds=59)
            got(after.store.fire())
            assert after.state(task.id) is State.SCHEDULED

            machine.pass_time(seconds=1)
            got(after.store.fire())

            assert after.state(task.id) is State.READY


@pytest.mark.parametrize("step_us", [-HOUR_US, HOUR_US])
def test_setting_the_wall_clock_moves_no_lease(machine: Machine, step_us: int) -> None:
    with machine.process(lease_s=10) as worker:
        task = worker.start()
        machine.wall_us += step_us
        with machine.process() as after:
            machine.pass_time(seconds=9)
            got(after.store.fire())
            assert after.state(task.id) is State.RUNNING
            assert got(worker.store.heartbeat(worker.worker_id, worker.lease_us)) == [task.claim]

            machine.pass_time(seconds=10)
            got(after.store.fire())

            assert after.state(task.id) is State.READY
            assert worker.finish(Succeeded(task.claim, b"1")) == [False]


@pytest.mark.parametrize("step_us", [-HOUR_US, 0, HOUR_US])
def test_time_goes_on_after_the_machine_was_started_again(machine: Machine, step_us: int) -> None:
    with machine.process() as before:
        ended = before.ended_as(State.SUCCEEDED)
        machine.pass_time(seconds=100)
        before.put()
        newest_us = before.store.now_us()
    machine.start_again(wall_step_us=step_us)

    with machine.process() as after:
        now_us = after.store.now_us()
        later = after.view(after.put())

    assert now_us == max(newest_us, machine.wall_us)
    assert later.created_us >= newest_us
    assert ended < later.id


def test_the_offset_of_a_boot_is_fixed_by_whoever_looks_first(machine: Machine) -> None:
    first = machine.offset_us()
    machine.wall_us += HOUR_US
    machine.pass_time(seconds=7)

    assert machine.offset_us() == first
    machine.start_again(wall_step_us=0)
    assert machine.offset_us() == machine.wall_us - machine.uptime_us


def test_the_clocks_of_a_file_on_this_machine_agree_with_each_other_and_with_the_wall(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "tasks.db")) as one, closing(SqliteStore(tmp_path / "tasks.db")) as two:
        times = [store.now_us() for _ in range(100) for store in (one, two)]

    assert times == sorted(times)
    assert abs(wall_us() - times[-1]) < 60 * SECOND_US

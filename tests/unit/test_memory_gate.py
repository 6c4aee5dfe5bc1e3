"""Over its memory bound a process takes no further tasks; it looks when attempts start or end, and not when idle."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from sennit.errors import StateTooLarge
from sennit.limit.admission import LOOK_AGAIN_S, SAMPLE_EVERY_S, MemoryGate, check_thread_bytes, resident_bytes

MB = 1_000_000


class Timer:
    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Rig:
    """A gate, the memory it finds, and the time it is."""

    def __init__(self, bytes_max: int) -> None:
        self.now_s = 1000.0
        self.used = 0
        self.samples = 0
        self.changes: list[bool] = []
        self._timers: list[Timer] = []
        self.gate = MemoryGate(
            bytes_max,
            sample=self._sample,
            on_change=self.changes.append,
            now_s=lambda: self.now_s,
            later=self._later,
        )

    def _sample(self) -> int:
        self.samples += 1
        return self.used

    def _later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self._timers.append(Timer(self.now_s + delay_s, call))
        return self._timers[-1]

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self._timers if not timer.is_cancelled]

    def pass_time(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while due := [timer for timer in self.armed if timer.at_s <= until_s]:
            self.now_s = due[0].at_s
            due[0].cancel()
            due[0].call()
        self.now_s = until_s


@pytest.fixture
def rig() -> Rig:
    return Rig(100 * MB)


def test_without_a_bound_nothing_is_ever_sampled() -> None:
    rig = Rig(0)
    rig.used = 10**15

    for _ in range(100):
        rig.gate.note()
        rig.pass_time(1)

    assert (rig.samples, rig.changes, rig.armed) == (0, [], [])


def test_at_the_bound_it_is_open_and_above_it_is_closed(rig: Rig) -> None:
    rig.used = 100 * MB
    rig.gate.note()
    assert not rig.gate.is_closed

    rig.used += 1
    rig.pass_time(SAMPLE_EVERY_S)
    rig.gate.note()

    assert rig.gate.is_closed
    assert rig.changes == [True]


def test_it_opens_again_only_below_95_percent(rig: Rig) -> None:
    rig.used = 101 * MB
    rig.gate.note()

    rig.used = 95 * MB
    rig.pass_time(10)
    assert rig.changes == [True]
    rig.used -= 1
    rig.pass_time(LOOK_AGAIN_S)

    assert rig.changes == [True, False]


def test_however_much_starts_and_ends_it_samples_four_times_a_second(rig: Rig) -> None:
    for _ in range(1000):
        rig.gate.note()
        rig.now_s += 0.001

    assert rig.samples == 4


def test_idle_below_the_bound_it_times_nothing(rig: Rig) -> None:
    rig.used = 99 * MB
    rig.gate.note()

    assert rig.armed == []
    rig.pass_time(3600)
    assert rig.samples == 1


def test_idle_above_the_bound_it_looks_once_a_second(rig: Rig) -> None:
    rig.used = 101 * MB
    rig.gate.note()

    rig.pass_time(60)

    assert rig.samples == 61
    assert len(rig.armed) == 1


def test_when_it_is_open_again_it_times_nothing(rig: Rig) -> None:
    rig.used = 101 * MB
    rig.gate.note()
    rig.used = 1
    rig.pass_time(1)

    assert rig.armed == []


def test_a_closed_gate_looks_when_an_attempt_ends_and_opens_without_waiting_for_its_timer(rig: Rig) -> None:
    rig.used = 101 * MB
    rig.gate.note()
    rig.pass_time(SAMPLE_EVERY_S)
    rig.used = 1

    rig.gate.note()

    assert rig.changes == [True, False]
    assert rig.armed == []


def test_after_close_it_does_nothing(rig: Rig) -> None:
    rig.used = 101 * MB
    rig.gate.note()

    rig.gate.close()
    rig.used = 1
    rig.pass_time(60)
    rig.gate.note()

    assert (rig.samples, rig.changes) == (1, [True])


def test_the_log_has_one_line_when_it_closes_and_one_when_it_opens(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sennit"):
        rig.used = 612 * MB
        rig.gate.note()
        rig.pass_time(30)
        rig.used = 90 * MB
        rig.pass_time(30)

    closed, opened = [record.getMessage() for record in caplog.records]
    assert "612 MB" in closed
    assert "memory_bytes_max is 100 MB" in closed
    assert "below 95 MB" in closed
    assert "90 MB" in opened


def test_resident_memory_is_of_this_process_and_of_those_named() -> None:
    program = "data = bytearray(b'x' * 50_000_000); print(len(data), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()

        alone, both = resident_bytes(list), resident_bytes(lambda: [child.pid])

        child.kill()
    assert alone > 10 * MB
    assert both - alone > 45 * MB


def test_a_process_that_has_ended_uses_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    assert resident_bytes(lambda: [child.pid]) < 2 * resident_bytes(list)
    assert os.getpid() != child.pid


def test_a_thread_may_keep_as_much_as_its_bound() -> None:
    check_thread_bytes("a", 100, 100)
    check_thread_bytes("a", 10**12, 0)


def test_a_thread_over_its_bound_is_refused_with_both_figures() -> None:
    with pytest.raises(StateTooLarge) as refused:
        check_thread_bytes("release-9", 101, 100)

    error = refused.value
    assert (error.thread_id, error.size_bytes, error.size_bytes_max) == ("release-9", 101, 100)
    assert "release-9" in error.what
    assert "thread_memory_bytes_max" in error.fix

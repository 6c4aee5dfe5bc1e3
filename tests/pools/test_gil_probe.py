"""The GIL probe beside OS threads that hold the GIL and that do not. No figure of a clock is asserted, only its sides."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sennit.errors import SettingsError
from sennit.execute.workload import GIL_LOUD_S, gil_enabled
from sennit.sync.gilprobe import GilProbe, GilReading

PROBES = "sennit-gil-probe"


def probes() -> list[threading.Thread]:
    return [os_thread for os_thread in threading.enumerate() if os_thread.name == PROBES]


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Have an OS thread repeat `work` meanwhile."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            work()

    os_thread = threading.Thread(target=repeat)
    os_thread.start()
    try:
        yield
    finally:
        ended.set()
        os_thread.join()


def readings(probe: GilProbe, count: int) -> GilReading:
    """Wait, without holding the GIL, until there are so many."""
    nobody = threading.Event()
    while (reading := probe.reading(60.0)).readings < count:
        nobody.wait(0.01)
    return reading


@pytest.mark.skipif(not gil_enabled(), reason="there is no GIL to wait for")
def test_it_waits_longer_beside_python_than_beside_sha256() -> None:
    data = bytes(2_000_000)
    with beside(lambda: sum(range(2000))), GilProbe() as probe:
        python = readings(probe, 30)
    with beside(lambda: hashlib.sha256(data)), GilProbe() as probe:
        sha256 = readings(probe, 30)

    assert python.p50_s >= GIL_LOUD_S > sha256.p50_s
    assert python.p99_s >= python.p50_s


def test_before_it_is_started_there_is_nothing() -> None:
    before = len(probes())
    probe = GilProbe()

    assert probe.reading() == GilReading(0.0, 0.0, 0, 0.0, 0.0)
    assert not probe.running
    assert len(probes()) == before


def test_it_runs_only_between_start_and_stop_and_can_start_again() -> None:
    before = len(probes())
    probe = GilProbe(interval_s=0.001)
    probe.start()
    probe.start()
    during = len(probes())
    first = readings(probe, 2)
    probe.stop()
    probe.stop()
    after = len(probes())
    with probe:
        second = readings(probe, first.readings + 3)

    assert (during, after) == (before + 1, before)
    assert second.watched_s > first.watched_s > 0.0
    assert second.waited_s >= first.waited_s >= 0.0


def test_a_window_leaves_older_readings_out() -> None:
    with GilProbe(interval_s=0.001) as probe:
        readings(probe, 3)

    assert probe.reading(0.0).readings == 0


def test_a_probe_that_nobody_holds_stops() -> None:
    probe = GilProbe()
    probe.start()
    (os_thread,) = (os_thread for os_thread in probes() if os_thread.is_alive())

    del probe
    gc.collect()
    os_thread.join(30.0)

    assert not os_thread.is_alive()


def test_an_interval_must_be_positive() -> None:
    with pytest.raises(SettingsError):
        GilProbe(interval_s=0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child_it_is_stopped_and_can_be_started() -> None:
    with GilProbe(interval_s=0.001) as probe:
        child = os.fork()
        if child == 0:
            stopped = not probe.running
            probe.start()
            count = readings(probe, probe.reading(60.0).readings + 2).readings
            probe.stop()
            os._exit(0 if stopped and count else 1)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert probe.running

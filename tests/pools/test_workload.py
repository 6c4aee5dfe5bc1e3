"""What the detector says of figures, of real bodies, and of the case that fooled an earlier design."""

from __future__ import annotations

import functools
import hashlib
import threading
from concurrent.futures import wait
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.execute.adaptive_pool import AdaptiveThreadPoolExecutor
from sennit.execute.workload import Kind, Meter, Sample, WorkloadDetector, function_key, gil_enabled, measure
from sennit.sync.gilprobe import GilProbe

KEY = "module:function"
INTERVAL_S = 0.005


def detector(**options: bool | int) -> WorkloadDetector:
    return WorkloadDetector(**{"gil": True, "switch_interval_s": INTERVAL_S, **options})  # type: ignore[arg-type]


def noted(sample: Sample, times: int = 64, *, gil_wait_s: float | None = None) -> WorkloadDetector:
    learnt = detector()
    for _ in range(times):
        learnt.note(KEY, sample, gil_wait_s=gil_wait_s)
    return learnt


# ---------------------------------------------------------------- figures


def test_below_twenty_samples_it_does_not_know() -> None:
    assert noted(Sample(0.05, 0.0001), 19).kind(KEY) is Kind.UNKNOWN
    assert noted(Sample(0.05, 0.0001), 20).kind(KEY) is Kind.IO
    assert detector().kind("never:heard") is Kind.UNKNOWN


# Measured with 1, 4 and 8 OS threads: body, wall, CPU and run-queue time in ms, reading of the GIL probe in ms.
MEASURED = [
    ("a sleep of 50 ms, alone", 50, 0.05, 0.1, 0.09, Kind.IO),
    ("a sleep of 50 ms among 8", 51, 0.1, 0.5, 0.10, Kind.IO),
    ("a Python loop, alone", 73, 66, 7, 5.2, Kind.CPU),
    ("a Python loop among 4", 280, 73, 28, 7.7, Kind.CPU),
    ("a Python loop among 8", 720, 80, 100, 14, Kind.CPU),
    ("sha256 among 4", 100, 48, 51, 0.09, Kind.CPU),
    ("sha256 among 8", 300, 48, 249, 0.08, Kind.CPU),
    ("a matrix product among 8", 350, 49, 297, 0.6, Kind.CPU),
    ("40 ms of sleep and 24 of Python, alone", 65, 24, 1, 1.5, Kind.MIXED),
    ("a download beside Python loops", 70, 1, 2, 14, Kind.IO),
]


@pytest.mark.parametrize("row", MEASURED, ids=[row[0] for row in MEASURED])
def test_measured_bodies_are_told_apart_also_under_contention(
    row: tuple[str, float, float, float, float, Kind],
) -> None:
    _, wall, cpu, runq, probe, kind = row
    sample = Sample(wall / 1e3, cpu / 1e3, runq / 1e3, switches=20)

    assert noted(sample, gil_wait_s=probe / 1e3).kind(KEY) is kind


def test_a_body_that_never_gave_its_core_up_did_not_wait() -> None:
    stopped_by_others = Sample(wall_s=0.020, cpu_s=0.001, switches=0)

    assert noted(stopped_by_others).kind(KEY) is Kind.CPU


def test_a_few_calls_that_were_stopped_half_way_do_not_make_computing_io() -> None:
    """One of 25 calls of 30 µs waits 30 ms for the GIL: 98 % of all time, and yet no I/O."""
    learnt = detector()
    for n in range(300):
        learnt.note(KEY, Sample(0.03, 0.00003, switches=6) if n % 25 == 7 else Sample(0.00003, 0.00003))

        assert learnt.kind(KEY) is not Kind.IO
    assert learnt.kind(KEY) is Kind.CPU


@pytest.mark.parametrize("probe_ms", [None, 0.1, 2, 5, 14, 100])
@pytest.mark.parametrize(("wall_ms", "cpu_ms"), [(2.1, 0.1), (2.03, 0.03), (4.5, 0.5), (50.1, 0.1)])
def test_short_calls_that_mostly_wait_are_never_computing_whatever_the_probe_reads(
    wall_ms: float, cpu_ms: float, probe_ms: float | None
) -> None:
    """2 ms of sleep were called computing when a probe of 2 ms took all of them for the GIL's."""
    sleeps = Sample(wall_ms / 1e3, cpu_ms / 1e3, switches=1)
    gil_wait_s = None if probe_ms is None else probe_ms / 1e3

    assert noted(sleeps, gil_wait_s=gil_wait_s).kind(KEY) in {Kind.IO, Kind.MIXED}


@pytest.mark.parametrize("probe_ms", [None, 0.1, 2, 5, 14, 100])
@pytest.mark.parametrize("stopped_every", [3, 10, 25])
def test_short_computing_is_never_io_however_often_the_gil_stops_it(stopped_every: int, probe_ms: float | None) -> None:
    learnt = detector()
    for n in range(300):
        wall_s = 0.005 if n % stopped_every == 0 else 0.00003
        sample = Sample(wall_s, 0.00003, switches=2 * (n % stopped_every == 0))
        learnt.note(KEY, sample, gil_wait_s=None if probe_ms is None else probe_ms / 1e3)

        assert learnt.kind(KEY) is not Kind.IO
    if probe_ms is not None and probe_ms >= 5:
        assert learnt.kind(KEY) is Kind.CPU


def test_a_function_that_changes_its_ways_is_learnt_again() -> None:
    learnt = noted(Sample(0.05, 0.0001), 5000)
    for _ in range(64):
        learnt.note(KEY, Sample(0.05, 0.05))

    assert learnt.kind(KEY) is Kind.CPU


def test_holding_the_gil_is_told_by_a_probe_that_waits_while_the_body_computes() -> None:
    computes = Sample(0.05, 0.05)

    assert noted(computes, gil_wait_s=0.005).holds_gil(KEY) is True
    assert noted(computes, gil_wait_s=0.0001).holds_gil(KEY) is False
    assert noted(computes, 4, gil_wait_s=0.005).holds_gil(KEY) is None
    assert noted(computes).holds_gil(KEY) is None
    assert noted(Sample(0.05, 0.0001), gil_wait_s=0.005).holds_gil(KEY) is None  # somebody else held it
    assert detector().holds_gil("never:heard") is None


def test_without_a_gil_nobody_holds_it() -> None:
    learnt = detector(gil=False)
    for _ in range(64):
        learnt.note(KEY, Sample(0.05, 0.05), gil_wait_s=0.02)

    assert learnt.holds_gil(KEY) is False
    assert learnt.report()[0].holds_gil is False


def test_the_function_not_heard_of_for_longest_is_forgotten_first() -> None:
    learnt = detector(functions_max=2)
    for key in ("a:a", "b:b", "a:a", "c:c"):
        learnt.note(key, Sample(0.001, 0.001))

    assert {row.key for row in learnt.report()} == {"a:a", "c:c"}


def test_a_report_has_means_and_the_most_cpu_time_first() -> None:
    learnt = detector()
    for _ in range(100):
        learnt.note("m:waits", Sample(0.05, 0.001, 0.002))
        learnt.note("m:computes", Sample(0.03, 0.03))

    first, second = learnt.report()

    assert (first.key, first.kind, first.samples) == ("m:computes", Kind.CPU, 100)
    assert (second.key, second.kind) == ("m:waits", Kind.IO)
    assert (second.wall_s, second.cpu_s, second.runq_s) == pytest.approx((0.05, 0.001, 0.002))
    assert second.cpu_share == pytest.approx(1 / 48)
    assert learnt.is_long("m:waits")
    assert not detector().is_long("m:waits")


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.none() | st.integers(0, 9)), max_size=100
    ),
    st.none() | st.floats(0, 1),
)
def test_property_any_figures_give_a_kind_and_a_share(
    calls: list[tuple[float, float, float, int | None]], gil_wait_s: float | None
) -> None:
    learnt = detector()
    for call in calls:
        learnt.note(KEY, Sample(*call), gil_wait_s=gil_wait_s)

    assert (learnt.kind(KEY) is Kind.UNKNOWN) == (len(calls) < 20)
    assert all(0.0 <= row.cpu_share <= 1.0 for row in learnt.report())


# ---------------------------------------------------------------- real bodies


def python_s() -> int:
    """Compute for about 30 µs."""
    return sum(n * n for n in range(400))


def test_3000_calls_of_30_us_queued_at_once_are_never_classed_as_io() -> None:
    """The design that timed submit-to-done, queue wait included, called them I/O-bound."""
    learnt = WorkloadDetector()
    kinds = set()
    with AdaptiveThreadPoolExecutor(detector=learnt, workers_initial=4) as pool:
        futures = [pool.submit(python_s) for _ in range(3000)]
        for future in futures:
            future.result()
            kinds.add(learnt.kind(function_key(python_s)))
        while (kind := learnt.kind(function_key(python_s))) is Kind.UNKNOWN:
            wait([pool.submit(python_s)])
            kinds.add(kind)

    assert Kind.IO not in kinds
    assert kind in {Kind.CPU, Kind.MIXED}


@pytest.mark.skipif(not gil_enabled(), reason="there is no GIL to wait for")
def test_short_waits_beside_an_os_thread_that_computes_are_never_classed_as_computing() -> None:
    """Here each wait for I/O is followed by one for the GIL, and the probe is as loud as it gets."""
    learnt = WorkloadDetector()
    body, ended, kinds = partial(threading.Event().wait, 0.002), threading.Event(), set()

    def compute() -> None:
        while not ended.is_set():
            python_s()

    beside = threading.Thread(target=compute)
    with GilProbe() as probe, AdaptiveThreadPoolExecutor(4, detector=learnt, gil_probe=probe) as pool:
        beside.start()
        try:
            while (kind := learnt.kind(function_key(body))) is Kind.UNKNOWN or probe.reading().readings < 20:
                wait([pool.submit(body) for _ in range(4)])
                kinds.add(kind)
        finally:
            ended.set()
            beside.join()

    assert kinds | {kind} <= {Kind.UNKNOWN, Kind.IO, Kind.MIXED}


@pytest.mark.skipif(not gil_enabled(), reason="there is no GIL to hold")
def test_a_pool_learns_without_a_probe_that_python_holds_the_gil() -> None:
    """Whoever keeps watch over the queue sees how late it wakes."""
    learnt = WorkloadDetector()

    def compute() -> int:
        return sum(n * n for n in range(100_000))

    key = function_key(compute)
    with AdaptiveThreadPoolExecutor(detector=learnt, workers_initial=2) as pool:
        while not (learnt.holds_gil(key) and learnt.kind(key) is Kind.CPU):
            wait([pool.submit(compute) for _ in range(40)])


def test_waiting_for_another_os_thread_is_io() -> None:
    learnt = WorkloadDetector()
    answer = threading.Event()

    def wait_for_nobody() -> None:
        answer.wait(0.1)  # longer than even a watch that is kept from its core wakes late

    with AdaptiveThreadPoolExecutor(detector=learnt) as pool:
        while learnt.kind(function_key(wait_for_nobody)) is Kind.UNKNOWN:
            wait([pool.submit(wait_for_nobody) for _ in range(8)])

    assert learnt.kind(function_key(wait_for_nobody)) is Kind.IO


def test_a_meter_counts_waiting_and_computing_apart() -> None:
    waited = measure(threading.Event().wait, 0.02)[1]
    digest, computed = measure(lambda: hashlib.sha256(bytes(5_000_000)).hexdigest())

    assert waited.wall_s >= 0.02
    assert waited.blocked_s > waited.cpu_s
    assert len(digest) == 64
    assert 0.0 < computed.cpu_s <= computed.wall_s
    assert computed.cpu_s + computed.runq_s <= computed.wall_s * 1.001


def test_a_meter_gives_its_sample_whatever_the_body_raises() -> None:
    samples = []

    def body() -> None:
        meter = Meter(runq=True)
        meter.start()
        try:
            raise SystemExit(3)
        finally:
            samples.append(meter.stop())

    with pytest.raises(SystemExit):
        body()

    (sample,) = samples
    assert sample.wall_s >= sample.cpu_s >= 0.0


def test_a_key_names_what_runs_in_the_end() -> None:
    class Agent:
        def step(self) -> None: ...

        def __call__(self) -> None: ...

    name = f"{__name__}:test_a_key_names_what_runs_in_the_end.<locals>.Agent"

    assert function_key(python_s) == f"{__name__}:python_s"
    assert function_key(functools.partial(functools.partial(python_s))) == f"{__name__}:python_s"
    assert function_key(Agent().step) == f"{name}.step"
    assert function_key(Agent()) == name
    assert function_key(len) == "builtins:len"

"""The search for the best number of workers, against simulated loads: seeded, in virtual time, without OS threads.

A load says how many items per second so many workers complete, and how many cores that uses. The best fixed size is
then known exactly, and so is what the search loses by not knowing it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.execute.knee import Figures, KneeFinder
from sennit.execute.workload import Kind

CORES = 2
WORKERS_MAX = 64


@dataclass(frozen=True)
class Load:
    """What `workers` would do: items per second, cores used, and seconds of waiting for a core per second."""

    rate: Callable[[int], float]
    cores: Callable[[int], float]
    runq: Callable[[int], float] = lambda workers: 0.0

    @property
    def best(self) -> float:
        return max(self.rate(workers) for workers in range(1, WORKERS_MAX + 1))


def waiting(item_s: float) -> Load:
    return Load(rate=lambda n: n / item_s, cores=lambda n: 0.00005 * n / item_s)


def pure_python(item_s: float, *, fight: float = 0.03) -> Load:
    """One at a time, and each more worker costs the others a little."""
    return Load(rate=lambda n: 1 / item_s / (1 + fight * (n - 1)), cores=lambda n: 1.0, runq=lambda n: 0.1)


def releases_gil(item_s: float) -> Load:
    return Load(rate=lambda n: min(n, CORES) / item_s, cores=lambda n: min(n, CORES), runq=lambda n: max(n - CORES, 0))


def mixed(wait_s: float, compute_s: float) -> Load:
    """Waits, then computes in Python: the GIL completes 1 / compute_s at most."""

    def rate(n: int) -> float:
        return min(n / (wait_s + compute_s), 1 / compute_s)

    return Load(rate=rate, cores=lambda n: rate(n) * compute_s)


def one_lock(item_s: float) -> Load:
    """All wait for the same thing: more workers complete no more."""
    return Load(rate=lambda n: 1 / item_s, cores=lambda n: 0.0001)


class Machine:
    """Runs a load in virtual time and tells the search what a pool would."""

    def __init__(self, *, size: int = 2, noise: float = 0.0, seed: int = 1, kind: Kind = Kind.UNKNOWN) -> None:
        self.knee = KneeFinder(size=size, size_min=1, size_max=WORKERS_MAX, cores=CORES)
        self.random = random.Random(seed)
        self.noise = noise
        self.kind = kind
        self.now_s = self.cpu_s = self.demand_s = self.done = 0.0

    def figures(self) -> Figures:
        return Figures(self.now_s, int(self.done), self.cpu_s, self.knee.size, self.demand_s, self.kind)

    def run(self, load: Load, duration_s: float) -> float:
        """Return the rate over `duration_s`."""
        done, until_s = self.done, self.now_s + duration_s
        while self.now_s < until_s:
            step_s = self.knee.tick(self.figures())
            self.now_s += step_s
            factor = max(1.0 + self.random.gauss(0.0, self.noise * min((0.05 / step_s) ** 0.5, 4.0)), 0.0)
            size = self.knee.size
            self.done += load.rate(size) * step_s * factor
            self.cpu_s += load.cores(size) * step_s
            self.demand_s += (load.cores(size) + load.runq(size)) * step_s
        return (self.done - done) / duration_s


LOADS = {
    "waiting 10 ms": waiting(0.010),
    "waiting 1 s": waiting(1.0),
    "pure Python 30 us": pure_python(0.00003),
    "pure Python 20 ms": pure_python(0.020),
    "without the GIL 1 ms": releases_gil(0.001),
    "without the GIL 50 ms": releases_gil(0.050),
    "mixed 4 + 1 ms": mixed(0.004, 0.001),
    "mixed 40 + 20 ms": mixed(0.040, 0.020),
}


# Windows of 20 ms items take 0.2 s, so their search takes longer than two seconds.
SLOW = "mixed 40 + 20 ms"


@pytest.mark.parametrize("name", LOADS)
def test_two_seconds_from_two_workers_lead_to_within_a_tenth_of_the_best_size(name: str) -> None:
    machine = Machine()
    machine.run(LOADS[name], 6.0 if name == SLOW else 2.0)

    assert machine.run(LOADS[name], 10.0) >= (0.75 if name == SLOW else 0.9) * LOADS[name].best


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", LOADS)
def test_figures_that_scatter_do_not_lead_it_astray(name: str, seed: int) -> None:
    machine = Machine(noise=0.1, seed=seed)
    machine.run(LOADS[name], 3.0)

    assert machine.run(LOADS[name], 6.0) >= (0.6 if name == SLOW else 0.85) * LOADS[name].best


def test_work_that_waits_gets_its_workers_though_it_is_called_computing() -> None:
    """Beside OS threads that hold the GIL, 40 ms of waiting look like waits for it; the load tells. It ended at two."""
    load = mixed(0.040, 0.020)
    machine = Machine(kind=Kind.CPU)
    machine.run(load, 3.0)

    assert machine.run(load, 10.0) >= 0.85 * load.best


def test_the_load_leads_to_the_knee_in_one_step() -> None:
    """Five workers of 4 ms waiting and 0.5 ms computing want 0.56 cores, so nine fill one."""
    machine = Machine(size=5)
    while machine.knee.size == 5:
        machine.run(mixed(0.004, 0.0005), 0.01)

    assert machine.knee.size in {9, 10}


def test_a_cold_start_of_two_gives_95_per_cent_of_the_best_over_the_first_two_seconds() -> None:
    load = waiting(0.010)

    assert Machine().run(load, 2.0) >= 0.95 * load.best


def test_waiting_workers_never_become_fewer() -> None:
    machine = Machine(noise=0.1)
    sizes = []
    for _ in range(100):
        machine.run(waiting(0.010), 0.1)
        sizes.append(machine.knee.size)

    assert sizes == sorted(sizes)
    assert sizes[-1] == WORKERS_MAX
    assert machine.knee.steps_down == 0


def test_pure_python_ends_at_one_worker() -> None:
    machine = Machine(size=16)
    machine.run(pure_python(0.00003), 3.0)

    assert machine.knee.size == 1


def test_doublings_that_gained_nothing_are_undone() -> None:
    machine = Machine()
    sizes = []
    for _ in range(200):
        machine.run(one_lock(0.001), 0.05)
        sizes.append(machine.knee.size)

    assert sorted(sizes)[180] <= 4


def test_it_follows_work_that_becomes_another() -> None:
    machine = Machine()
    machine.run(pure_python(0.0001), 20.0)
    held = machine.knee.size
    machine.run(waiting(0.010), 2.0)
    grown = machine.knee.size
    machine.run(pure_python(0.0001), 5.0)

    assert held <= 2
    assert grown == WORKERS_MAX
    assert machine.knee.size <= 2


def test_while_nothing_completes_and_nobody_computes_sizes_double() -> None:
    machine = Machine()
    machine.run(Load(rate=lambda n: 0.0, cores=lambda n: 0.0), 1.0)

    assert machine.knee.size == WORKERS_MAX


@pytest.mark.parametrize("kind", [Kind.UNKNOWN, Kind.CPU])
def test_workers_that_wait_for_a_core_do_not_pass_for_waiting(kind: Kind) -> None:
    """One core for ten such programs: little CPU time, and long items. Without the run-queue time it ends at 64."""
    starved = Load(rate=lambda n: 0.5, cores=lambda n: 0.05, runq=lambda n: 0.95)
    machine = Machine(kind=kind)
    machine.run(starved, 20.0)

    assert machine.knee.size <= 8  # four, and one doubling on trial


def test_computing_gets_no_more_workers_than_cores_however_figures_scatter() -> None:
    machine = Machine(noise=0.5, kind=Kind.CPU)
    sizes = set()
    for _ in range(100):
        machine.run(pure_python(0.0001), 0.1)
        sizes.add(machine.knee.size)

    assert max(sizes) <= CORES


def test_what_else_the_process_computes_does_not_keep_waiting_workers_few() -> None:
    """An event loop beside the pool takes 0.9 cores; bodies that wait for each other need more workers all the same."""
    machine = Machine(size=1)
    for _ in range(40):
        machine.run(Load(rate=lambda n: 0.0, cores=lambda n: 0.0), 0.05)
        machine.cpu_s += 0.045

    assert machine.knee.size == WORKERS_MAX


def test_behind_long_computing_a_few_more_get_their_turn() -> None:
    machine = Machine(size=1)
    machine.run(Load(rate=lambda n: 0.0, cores=lambda n: 1.0), 10.0)

    assert machine.knee.size == 4


def test_a_queue_that_runs_dry_leaves_no_trial_that_nothing_proved() -> None:
    machine = Machine(size=4)
    load = pure_python(0.001)
    while machine.knee.size == 4:
        machine.run(load, 0.01)

    machine.knee.dry(machine.figures())

    assert machine.knee.size == 4
    assert not machine.knee.watching


def test_a_doubling_while_all_wait_stays_when_the_queue_runs_dry() -> None:
    machine = Machine(size=4)
    while machine.knee.size == 4:
        machine.run(waiting(0.010), 0.01)

    machine.knee.dry(machine.figures())

    assert machine.knee.size >= 8


def test_short_spells_of_work_add_up_to_a_window() -> None:
    """Bursts of 20 ms never fill a window of 50 ms of CPU time alone."""
    machine = Machine(size=4)
    for _ in range(100):
        machine.run(pure_python(0.0001), 0.02)
        machine.knee.dry(machine.figures())
        machine.now_s += 1.0

    assert machine.knee.size == 1


def test_a_system_that_gives_no_more_os_threads_is_asked_again_later() -> None:
    machine = Machine(size=32)
    machine.knee.refused(5, now_s=machine.now_s)
    machine.run(waiting(0.010), 5.0)
    refused = machine.knee.size
    machine.run(waiting(0.010), 20.0)

    assert refused == 5
    assert machine.knee.size == WORKERS_MAX


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 2.0), st.integers(0, 5000), st.floats(0.0, 3.0), st.floats(0.0, 70.0), st.sampled_from("tdr")
        ),
        max_size=60,
    ),
    st.integers(1, 8),
)
def test_property_whatever_the_figures_the_size_stays_within_its_bounds(
    events: list[tuple[float, int, float, float, str]], maximum: int
) -> None:
    knee = KneeFinder(size=1, size_min=1, size_max=maximum, cores=CORES)
    now_s = cpu_s = demand_s = 0.0
    done = 0
    for elapsed_s, completed, cores, waiting_cores, what in events:
        now_s += elapsed_s
        done += completed
        cpu_s += cores * elapsed_s
        demand_s += waiting_cores * elapsed_s
        figures = Figures(now_s, done, cpu_s, knee.size, demand_s)
        if what == "t":
            assert 0.0 < knee.tick(figures) <= 0.05
        elif what == "d":
            knee.dry(figures)
        else:
            knee.resize(maximum)

        assert 1 <= knee.size <= maximum

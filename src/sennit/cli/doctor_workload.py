"""`sennit doctor --workload MODULE:FUNCTION`: what one function is made of, and where it runs best, by trying.

    one call at a time ─► kind, GIL      1 2 4 … 32 OS threads ─► calls per second      processes ─► the same

Each size runs for the same time, in rounds that go up and down, so that a machine that gets slower meanwhile does it to all.
The function is called without arguments, many times, in OS threads and in worker processes.
"""

from __future__ import annotations

import inspect
import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, Final

import click

from sennit.cli.output import emit, table
from sennit.errors import UsageError
from sennit.execute.workload import Kind, Meter, WorkloadDetector, gil_enabled
from sennit.limit.cgroups import effective_cpus
from sennit.observe.profile.pools import is_importable
from sennit.observe.profile.sizing import SIZES
from sennit.sync.gilprobe import GilProbe

ROUNDS: Final = 2
SAMPLES_MIN: Final = 25  # of the first look: enough for the detector to have an opinion
SAMPLES_MAX: Final = 1000
SAMPLE_S: Final = 0.008
TOGETHER_MAX: Final = 10_000
FIRST_LOOK_S_MAX: Final = 3.0
CALL_S_MAX: Final = 2.0  # of one call: it is made hundreds of times
LONG_CALL_S: Final = 0.25  # from here on a place is tried once, with one call per worker
ANNOUNCED_S: Final = 10.0  # what may take longer is said beforehand
WORKERS_READY_S: Final = 60.0
NOISE: Final = 0.10  # sizes this near to the best count as equal, and the smallest of them is named


@dataclass(frozen=True, slots=True)
class Place:
    """How the function did in one place."""

    where: str
    workers: int
    calls_per_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found; `gil_wait_s` is the p50 beside one call at a time."""

    function: str
    kind: str
    holds_gil: bool | None
    call_s: float
    cpu_s: float
    gil_wait_s: float
    places: list[Place]
    best: Place
    advice: str


def examine_workload(target: str, *, seconds: float, is_json: bool) -> None:
    """Try a function everywhere and print what came of it.

    Args:
        target: `module:function`, or `file.py:function`.
        seconds: for each place and round.

    Raises:
        UsageError: there is no such function, it raises, or does not return within CALL_S_MAX.
    """
    function = _load(target)
    detector = WorkloadDetector()
    call_s = _first_call(function, target)
    longest_s = _longest_s(call_s, seconds)
    if longest_s > ANNOUNCED_S:
        click.echo(f"one call takes {call_s:.2f} s: this may take up to {longest_s:.0f} s", err=True)
    try:
        gil_wait_s, together = _look(function, detector, target, call_s)
        places = _try_everywhere(function, seconds, is_long=call_s > LONG_CALL_S)
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _raised(target, error) from error
    verdict = _judge(target, detector, gil_wait_s, together, places, can_move=is_importable(function))
    if is_json:
        emit({"schema": "sennit.workload/1", **asdict(verdict)})
        return
    _show(verdict)


def _load(target: str) -> Callable[[], Any]:
    import sys

    name, _, attribute = target.rpartition(":")
    if name.endswith(".py"):
        sys.path.insert(0, str(Path(name).resolve().parent))
        name = Path(name).stem
    else:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module does while it is imported
        raise UsageError(
            f"{target!r} cannot be loaded: {type(error).__name__}: {error}",
            fix="write module:function or file.py:function",
        ) from error
    found = getattr(found, "function", found)  # of a task: its body
    if inspect.iscoroutinefunction(found):
        raise UsageError(
            f"{target!r} is a coroutine function",
            why="it runs on an event loop, and this tries functions in OS threads and processes",
            fix="name a plain function; for what blocks a loop: sennit profile",
        )
    if not callable(found):
        raise UsageError(f"{target!r} is not a function", fix="name a function that can be called without arguments")
    return found  # type: ignore[no-any-return]  # it was just asked


def _first_call(function: Callable[[], Any], target: str) -> float:
    """Call it once, in an OS thread that nobody has to wait for, and return its seconds.

    Raises:
        UsageError: it raises, or has not returned within CALL_S_MAX.
    """
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    os_thread = threading.Thread(target=call, name="sennit-workload", daemon=True)
    began_s = monotonic()
    os_thread.start()
    os_thread.join(CALL_S_MAX)
    if os_thread.is_alive():
        raise UsageError(
            f"{target!r} has not returned after {CALL_S_MAX:g} s",
            why="it is called hundreds of times, in up to 32 OS threads",
            fix="name a function that does a smaller piece of the work",
        )
    if errors:
        raise _raised(target, errors[0]) from errors[0]
    return monotonic() - began_s


def _raised(target: str, error: BaseException) -> UsageError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return UsageError(
        f"{target!r} raised {type(error).__name__}: {error}",
        why=f"it is called without arguments, many times; the last frame is{place}" if place else "",
        fix="name a function that can be called so; -v prints the traceback",
    )


def _longest_s(call_s: float, seconds: float) -> float:
    """Return how long all of it takes if the calls do nothing at the same time."""
    if call_s > LONG_CALL_S:
        return FIRST_LOOK_S_MAX + sum(max(seconds, 2 * size * call_s) for size in SIZES)
    return FIRST_LOOK_S_MAX + ROUNDS * (sum(seconds + 2 * size * call_s for size in SIZES) + seconds)


def _look(function: Callable[[], Any], detector: WorkloadDetector, target: str, call_s: float) -> tuple[float, int]:
    """Call it one at a time until its kind is known.

    Returns:
        How long others waited for the GIL meanwhile (p50, in seconds), and how many calls went into one sample: whether
        a call holds the GIL shows only when it computes for longer than an OS thread may keep it.
    """
    together = min(TOGETHER_MAX, max(1, round(SAMPLE_S / max(call_s, 1e-6))))
    with GilProbe() as probe:
        began_s = monotonic()
        for n in range(SAMPLES_MAX):
            meter = Meter(runq=True)
            meter.start()
            for _ in range(together):
                function()
            detector.note(target, meter.stop(), gil_wait_s=probe.reading(0.25).p50_s)
            took_s = monotonic() - began_s
            if took_s > FIRST_LOOK_S_MAX or (n >= SAMPLES_MIN and took_s > 0.3):
                break
        return probe.reading(FIRST_LOOK_S_MAX).p50_s, together


def _try_everywhere(function: Callable[[], Any], seconds: float, *, is_long: bool) -> list[Place]:
    cores = effective_cpus()
    found: dict[tuple[str, int], list[float]] = {}
    each = 1 if is_long else 2  # calls under way per worker; with two, none waits for us
    for turn in range(1 if is_long else ROUNDS):
        for size in SIZES if turn % 2 == 0 else reversed(SIZES):
            with ThreadPoolExecutor(size) as pool:
                found.setdefault(("OS threads", size), []).append(_rate(pool, function, each * size, seconds))
        if is_importable(function):
            with _processes(cores, function) as pool:
                found.setdefault(("processes", cores), []).append(_rate(pool, function, each * cores, seconds))
    return [Place(where, size, median(rates)) for (where, size), rates in found.items()]


@contextmanager
def _processes(cores: int, function: Callable[[], Any]) -> Iterator[Executor]:
    """Give worker processes that have all started, and imported what the function needs, by a first call of it."""
    how = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(how)
    everybody = context.Barrier(cores)  # a pool starts a worker only when all that it has are busy
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_arrive, initargs=(everybody,)) as pool:
        for first in [pool.submit(_call, function) for _ in range(cores)]:
            first.result()
        yield pool


def _arrive(everybody: Any) -> None:
    """Wait, in a worker process, until all have started."""
    everybody.wait(WORKERS_READY_S)


def _call(function: Callable[[], Any]) -> None:
    """Call it; what it returns stays here: sending that is no part of the function, and may be impossible."""
    function()


def _rate(pool: Executor, function: Callable[[], Any], under_way: int, seconds: float) -> float:
    """Return the calls per second with so many calls under way."""
    gate = threading.Semaphore(under_way)
    lock = threading.Lock()
    done = 0
    errors: list[BaseException] = []

    def ended(future: Any) -> None:
        nonlocal done
        if (error := future.exception()) is not None:
            errors.append(error)
        with lock:
            done += 1
        gate.release()

    began_s = monotonic()
    while monotonic() - began_s < seconds and not errors:
        gate.acquire()
        pool.submit(_call, function).add_done_callback(ended)
    for _ in range(under_way):
        gate.acquire()
    if errors:
        raise errors[0]
    return done / (monotonic() - began_s)


def _judge(
    target: str, detector: WorkloadDetector, gil_wait_s: float, together: int, places: list[Place], *, can_move: bool
) -> Verdict:
    (report,) = detector.report()
    top = max(place.calls_per_s for place in places)
    near = [place for place in places if place.calls_per_s >= top * (1 - NOISE)]
    best = min(near, key=lambda place: (place.workers, place.where == "processes"))
    return Verdict(
        function=target,
        kind=str(detector.kind(target)),
        holds_gil=detector.holds_gil(target),
        call_s=report.wall_s / together,
        cpu_s=report.cpu_s / together,
        gil_wait_s=gil_wait_s,
        places=places,
        best=best,
        advice=_advice(detector.kind(target), best, can_move=can_move),
    )


def _advice(kind: Kind, best: Place, *, can_move: bool) -> str:
    if best.where == "processes":
        return "declare it with cpu=True; placement=auto finds it, too"
    if kind is Kind.CPU and not can_move and gil_enabled():
        return "define it at the top level of a module: then worker processes can run it"
    if best.workers >= SIZES[-1]:
        return "a plain `def` in OS threads: it waits, and takes as many as there are slots"
    return f"a plain `def` in OS threads; more than {best.workers} at once bring nothing: a queue of its own with that many slots"


def _show(verdict: Verdict) -> None:
    gil = {True: "holds the GIL", False: "leaves the GIL to others", None: "GIL: cannot tell"}[verdict.holds_gil]
    click.echo(f"{verdict.function}: {verdict.kind}, {gil}")
    click.echo(
        f"one call {verdict.call_s * 1000:.2f} ms, of it {verdict.cpu_s * 1000:.2f} ms CPU; another OS thread waits "
        f"{verdict.gil_wait_s * 1000:.2f} ms for the GIL beside it (p50)\n"
    )
    top = max(place.calls_per_s for place in verdict.places)
    rows = [
        [str(place.workers), place.where, f"{place.calls_per_s:,.0f}", "█" * round(30 * place.calls_per_s / top)]
        for place in verdict.places
    ]
    table(["workers", "where", "calls/s", ""], rows, right=frozenset({"workers", "calls/s"}))
    click.echo(f"\nbest: {verdict.best.workers} {verdict.best.where}   ({effective_cpus()} cores)")
    click.echo(f"try:  {verdict.advice}")

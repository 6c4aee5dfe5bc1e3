"""The inside of `sennit profile`: put the watches up, run the program as `python` would, write down what was seen.

    python -m sennit.cli.profile_child FACTS.json [--stacks] (script.py | -m module | -c code) [arguments]

The program is `__main__` in every respect, so that worker processes which it spawns import it as usual; those are not
watched. What was seen is written when the program ends by itself, also by an exception or `sys.exit`, and its last OS
thread with it. A child that the program has forked and that comes to its end here writes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import click
import msgspec
import psutil

from sennit.execute.workload import Meter, Sample, WorkloadDetector, demand_s, gil_enabled
from sennit.limit.cgroups import effective_cpus
from sennit.observe.profile.copies import CopyWatch, PickleWatch
from sennit.observe.profile.facts import Facts, GilFacts
from sennit.observe.profile.locks import LockWatch
from sennit.observe.profile.loops import LoopWatch
from sennit.observe.profile.places import Origin, origin_of
from sennit.observe.profile.pools import PoolWatch
from sennit.sync.gilprobe import GilProbe

PROBE_WINDOW_S = 0.25  # how far back a reading of the GIL probe looks when a call has ended
WHOLE_RUN_S = 1e9


class Kinds:
    """What the pool watch needs: measuring by `Meter`, judging by the detector, with the GIL probe beside them."""

    def __init__(self, probe: GilProbe) -> None:
        self._detector = WorkloadDetector()
        self._probe = probe
        self._read_at_s = 0.0
        self._wait_s = 0.0

    def begin(self, name: str) -> Callable[[], Sample]:
        """Start measuring a call in this OS thread."""
        meter = Meter(runq=self._detector.is_long(name))
        meter.start()
        return meter.stop

    def note(self, name: str, sample: Sample) -> None:
        """Learn from one call; the probe is read ten times a second at most."""
        if (now_s := monotonic()) - self._read_at_s > 0.1:
            self._read_at_s = now_s
            self._wait_s = self._probe.reading(PROBE_WINDOW_S).p50_s
        self._detector.note(name, sample, gil_wait_s=self._wait_s)

    def judge(self, name: str) -> tuple[str, bool | None]:
        """Return the kind of a function, and whether it holds the GIL."""
        return str(self._detector.kind(name)), self._detector.holds_gil(name)


def main(argv: list[str]) -> None:
    """Run a program and write the facts of it."""
    path, wants_stacks, words = Path(argv[0]), argv[1] == "--stacks", argv[1:]
    words = words[1:] if wants_stacks else words
    me = os.getpid()
    probe, pickles, copies, locks = GilProbe(), PickleWatch(), CopyWatch(), LockWatch()
    loops, pools = LoopWatch(copies.overlap_s), PoolWatch(Kinds(probe), _executors())
    _watch_bodies(pools)
    hot = _stacks() if wants_stacks else None
    for watch in (loops, pools, pickles, copies, probe):
        watch.start()
    locks.start()  # last: what the watches themselves lock is not the program's
    began_s, cpu_s = monotonic(), process_time()
    if hot is not None:
        hot.start()
    code = _run(words)
    if os.getpid() != me:  # a fork of the program that has come to its end here: its parent is the one that reports
        sys.exit(code)
    elapsed_s, cpu_s = monotonic() - began_s, process_time() - cpu_s
    if hot is not None:
        hot.stop()
    seen_locks, reading = locks.stop(), probe.reading(WHOLE_RUN_S)
    probe.stop()
    seen_copies = copies.stop()
    functions, seen_pools = pools.stop()
    facts = Facts(
        command=words,
        cores=effective_cpus(),
        has_gil=gil_enabled(),
        elapsed_s=elapsed_s,
        cpu_s=cpu_s,
        watched_s=copies.spent_s,
        memory_bytes_max=copies.memory_bytes_max,
        gil=GilFacts(reading.readings, reading.p50_s, reading.p99_s),
        blocks=loops.stop(),
        locks=seen_locks,
        functions=functions,
        pools=seen_pools,
        pickles=pickles.stop(),
        copies=seen_copies,
        copies_at_s=copies.looked_at_s,
        foreign_s=_foreign_s(),
        exit_code=code,
        hot="" if hot is None else hot.output_text(unicode=True, color=False, timeline=False),
    )
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(facts))
    partial.replace(path)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Run the program until its last OS thread has ended, as the interpreter does, and return its exit code.

    What it raises is printed as the interpreter would, beginning at its own first frame.
    """
    code = 0
    try:
        _program(words)()
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:  # noqa: BLE001 - the program's, whatever it is
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        _show(error)
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - the interpreter's own way; twice is once
    except KeyboardInterrupt as error:  # while it waits for OS threads of the program
        code = 128 + signal.SIGINT
        _show(error)
    return code


def _exit_code(end: SystemExit) -> int:
    """Return what `sys.exit(...)` means, and print it if it is a message."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    click.echo(str(end.code), err=True)
    return 1


def _show(error: BaseException) -> None:
    """Print what ended the program, without our own frames, which stand before its own."""
    tb = error.__traceback__
    while tb is not None and origin_of(tb.tb_frame.f_code.co_filename) is Origin.OURS:
        tb = tb.tb_next
    sys.excepthook(type(error), error.with_traceback(tb), tb)


def _foreign_s() -> float:
    """Return how long OS threads of this process that are not Python's computed, or could have; those that still run."""
    ours = {os_thread.native_id for os_thread in threading.enumerate()} | {threading.main_thread().native_id}
    try:
        return sum(demand_s(os_thread.id) for os_thread in psutil.Process().threads() if os_thread.id not in ours)
    except psutil.Error:  # not told on every system
        return 0.0


def _watch_bodies(pools: PoolWatch) -> None:
    """Sync bodies of sennit run in a pool that is no executor, and count under the name of their handler."""
    from sennit.execute.worker import Worker

    run_sync = Worker._run_sync  # noqa: SLF001 - where every one of them passes

    def watched(worker: Worker, running: Any) -> Any:
        return pools.body(running.body.function, lambda: run_sync(worker, running))

    Worker._run_sync = watched  # type: ignore[assignment, method-assign]  # noqa: SLF001 - this process runs one program


def _executors() -> tuple[type[Executor], ...]:
    from sennit.execute.adaptive_pool import AdaptiveThreadPoolExecutor
    from sennit.execute.stealing_pool import WorkStealingExecutor

    return ThreadPoolExecutor, AdaptiveThreadPoolExecutor, WorkStealingExecutor


def _stacks() -> Any:
    try:
        from pyinstrument import Profiler
    except ImportError:
        raise SystemExit("--stacks needs pyinstrument: pip install 'sennit[profile]'") from None
    return Profiler(async_mode="enabled")


def _program(words: list[str]) -> Callable[[], None]:
    """Return what runs the program, with `sys.argv`, `sys.path` and `__main__` as the interpreter would have them."""
    first, *rest = words
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        _prepend("")
        return _as_main(compile(rest[0], "<string>", "exec"), None, None)
    if first == "-m":
        _prepend(str(Path.cwd()))
        spec = _spec(rest[0])
        if spec is not None and spec.submodule_search_locations is not None:
            spec = _spec(f"{rest[0]}.__main__")
        loader: Any = None if spec is None else spec.loader
        code = None if loader is None else loader.get_code(spec.name if spec is not None else "")
        if spec is None or code is None:
            raise SystemExit(f"{sys.executable}: No module named {rest[0]}")
        sys.argv = [spec.origin or rest[0], *rest[1:]]
        return _as_main(code, spec.origin, spec)
    sys.argv = words
    _prepend(str(Path(first).resolve().parent))
    path = os.path.abspath(first)  # noqa: PTH100 - a link stays a link
    return _as_main(compile(Path(path).read_bytes(), path, "exec"), path, None)


def _prepend(path: str) -> None:
    if not sys.flags.safe_path:  # of `python -I` and `-P`: nothing is put there
        sys.path.insert(0, path)


def _spec(name: str) -> Any:
    """Return the spec of a module, None if it or a package above it is not there. A package above it is imported."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise  # the package above it imports what is not there


def _as_main(code: types.CodeType, file: str | None, spec: Any) -> Callable[[], None]:
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=file, __spec__=spec, __builtins__=__builtins__)
    if file is None:
        del module.__dict__["__file__"]
    if spec is not None:
        module.__package__, module.__loader__ = spec.parent, spec.loader

    def run() -> None:
        sys.modules["__main__"] = module
        exec(code, module.__dict__)  # noqa: S102 - the program that somebody asked to run

    return run


if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.pop(0)  # where `-m` put the working directory, or this file's folder
    main(sys.argv[1:])

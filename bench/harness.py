"""What every side shares: one event log, percentiles, worker processes and what the kernel knows about them.

Each task body of each side appends one 24-byte record to one file (`hit`). That costs about 2 us, survives kill -9,
uses the clock that all processes of the machine share, and so gives first lines, hop times, lost and repeated runs in
the same way for everyone, whatever a side says about itself.

A side is a mapping from case name to a function; `run_case.py` runs one of them in a fresh process.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from cases import Case

Figures = dict[str, float]
Side = Mapping[str, Callable[["Case"], Figures]]

BENCH_DIR: Final = Path(__file__).resolve().parent
RUN_DIR: Final = Path(os.environ["BENCH_DIR"])  # set by run_case.py, inherited by workers
LOG: Final = RUN_DIR / "events.bin"

NAP_MS_WAITING: Final = 50.0
NAP_MS_KILL: Final = 20.0
IDLE_WINDOW_S: Final = 5.0
PAIR_WINDOW_S: Final = 15.0  # longer than a lease, so that a heartbeat of an idle process would show
STRACE_WINDOW_S: Final = 3.0
READY_TIMEOUT_S: Final = 30.0
DRAIN_TIMEOUT_S: Final = 60.0
KILL_PATIENCE_S: Final = 10.0  # rivals take from 2 s to never; beyond this a task counts as lost

# ------------------------------------------------------------------------------------------------------ event log

START: Final = 0
END: Final = 1
RECORD: Final = struct.Struct("<qqhhi")  # 24 bytes: the fields of Hit


class Hit(NamedTuple):
    """One line of the log: task `task_id` started (or ended) in process `pid`."""

    task_id: int
    at_ns: int  # CLOCK_MONOTONIC, shared by all processes
    kind: int
    attempt: int  # as the body is told; 0 where the side does not tell
    pid: int


_log_fd = -1


def hit(task_id: int, kind: int = START, attempt: int = 0) -> None:
    """Record that the task starts (or ends) now. One write of 24 bytes with O_APPEND, so lines never mix."""
    global _log_fd  # noqa: PLW0603  opened once per process, by whichever body runs first
    now_ns = time.monotonic_ns()
    if _log_fd < 0:
        _log_fd = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(_log_fd, RECORD.pack(task_id, now_ns, kind, attempt, os.getpid()))


def hits() -> list[Hit]:
    """Return the whole log in the order of its writes, without a half-written last record."""
    data = LOG.read_bytes() if LOG.exists() else b""
    whole = len(data) // RECORD.size * RECORD.size
    return [Hit(*fields) for fields in RECORD.iter_unpack(data[:whole])]


def hit_count() -> int:
    """Return the number of records; cheap enough to be asked every millisecond."""
    return LOG.stat().st_size // RECORD.size if LOG.exists() else 0


def clear_hits() -> None:
    """Empty the log in place: running workers keep their descriptor."""
    LOG.write_bytes(b"")


def noop(task_id: int) -> int:
    """Be the body of the smallest task."""
    hit(task_id)
    return task_id


def nap(task_id: int, ms: float) -> int:
    """Wait `ms` in an OS thread."""
    hit(task_id)
    time.sleep(ms / 1000)
    hit(task_id, END)
    return task_id


async def async_nap(task_id: int, ms: float) -> int:
    """Wait `ms` in a coroutine."""
    hit(task_id)
    await asyncio.sleep(ms / 1000)
    hit(task_id, END)
    return task_id


# ----------------------------------------------------------------------------------------------------- statistics


def percentile(values: Iterable[float], q: float) -> float:
    """Return the q-quantile (0 to 1), linear between neighbours; nan of nothing."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    at = (len(ordered) - 1) * q
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread_ms(name: str, durations_ns: Sequence[float]) -> Figures:
    """Return p50 and p99 of durations in nanoseconds, as milliseconds."""
    return {f"{name}_p{q}_ms": percentile(durations_ns, q / 100) / 1e6 for q in (50, 99)}


def first_starts() -> dict[int, int]:
    """Return when each task first started: task id -> ns."""
    started: dict[int, int] = {}
    for line in hits():
        if line.kind == START:
            started.setdefault(line.task_id, line.at_ns)
    return started


def start_figures(sent_ns: Sequence[int], done_ns: Sequence[int] = ()) -> Figures:
    """Return the time from the submit of task i at `sent_ns[i]` to its first line, and to its result."""
    started = first_starts()
    figures: Figures = {"n": len(sent_ns)}
    figures |= spread_ms("start", [started[i] - at_ns for i, at_ns in enumerate(sent_ns)])
    if done_ns:
        figures |= spread_ms("result", [done - sent for sent, done in zip(sent_ns, done_ns, strict=True)])
    return figures


def hop_figures(n: int) -> Figures:
    """Return the time from one start to the next, over tasks 0 to n-1."""
    started = first_starts()
    times = [started[i] for i in range(n)]
    return spread_ms("hop", [later - earlier for earlier, later in pairwise(times)])


def join_figures(n: int, *, since_ns: int) -> Figures:
    """Return the time until the join (task id n) started, and whether it started before any of the n tasks had."""
    started = first_starts()
    early = sum(started[i] > started[n] for i in range(n))
    return {"total_ms": (started[n] - since_ns) / 1e6, "joined_early": early}


def nap_figures(n: int, *, slots: int, ms: float) -> Figures:
    """Return first start to last end of n naps, beside the ideal of all slots always busy, and the most at once."""
    log = sorted(hits(), key=lambda line: line.at_ns)
    running = at_once = 0
    for line in log:
        running += 1 if line.kind == START else -1
        at_once = max(at_once, running)
    total_s = (log[-1].at_ns - log[0].at_ns) / 1e9
    ideal_s = n * ms / 1000 / slots
    return {"n": n, "total_s": total_s, "percent_of_ideal": 100 * ideal_s / total_s, "at_once": at_once}


# ------------------------------------------------------------------------------------------------------ processes


def wait_until(fact: Callable[[], bool], *, timeout_s: float, every_s: float = 0.002) -> bool:
    """Wait for a fact of another process; False after `timeout_s`. The times in the figures come from the log."""
    until_s = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > until_s:
            return False
        time.sleep(every_s)
    return True


def wait_for_hits(n: int, *, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
    """Wait until the log holds n records.

    Raises:
        TimeoutError: it does not within `timeout_s`.
    """
    if not wait_until(lambda: hit_count() >= n, timeout_s=timeout_s):
        message = f"{hit_count()} of {n} records after {timeout_s:.0f} s; the workers wrote:\n{worker_log_tail()}"
        raise TimeoutError(message)


def worker_log_tail() -> str:
    """Return the last lines that the worker processes wrote; the folder is gone when a reader sees the error."""
    log = RUN_DIR / "worker.log"
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""


def process_tree(pid: int) -> list[int]:
    """Return the process and its living descendants."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids += [int(child) for child in children.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended between the listing and the read
    return pids


class Worker:
    """A worker process of any side; leaving the `with` kills it and all it started."""

    def __init__(self, argv: Sequence[str]) -> None:
        with (RUN_DIR / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(argv, cwd=BENCH_DIR, stdout=log, stderr=log)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_ready(self) -> None:
        """Wait until the first task has run; the caller has submitted one.

        Raises:
            RuntimeError: the process ended, or nothing ran within READY_TIMEOUT_S.
        """
        ended = self._process.poll
        wait_until(lambda: hit_count() > 0 or ended() is not None, timeout_s=READY_TIMEOUT_S)
        if hit_count() == 0:
            message = f"the worker ran nothing (exit code {ended()}); it wrote:\n{worker_log_tail()}"
            raise RuntimeError(message)

    def kill(self) -> int:
        """SIGKILL the whole tree and return when, in ns. A second kill does nothing."""
        at_ns = time.monotonic_ns()
        if self._process.poll() is None:
            for pid in process_tree(self.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # ended by itself meanwhile
            self._process.wait()
        return at_ns


def memory_mb(pid: int) -> Figures:
    """Return the memory of a process tree in MiB: RSS, and PSS, which counts shared pages once."""
    kib: Counter[str] = Counter()
    for member in process_tree(pid):
        rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        for name, value in re.findall(r"^(Rss|Pss):\s+(\d+) kB", rollup, re.MULTILINE):
            kib[name] += int(value)
    return {"pss_mb": kib["Pss"] / 1024, "rss_mb": kib["Rss"] / 1024}


def memory_figures(n: int, idle: Figures, waiting: Figures) -> Figures:
    """Return the memory of an idle worker and of the same one beside n tasks that are not due."""
    return {"n": n, **{f"idle_{k}": v for k, v in idle.items()}, **{f"waiting_{k}": v for k, v in waiting.items()}}


def _switches(pids: Iterable[int]) -> int:
    """Return the context switches so far, of both kinds, of every OS thread: each wake-up is at least one."""
    statuses = (path.read_text() for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(int(count) for text in statuses for count in re.findall(r"voluntary_ctxt_switches:\s+(\d+)", text))


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used so far."""
    # The CPU clock of another process (CPUCLOCK_SCHED in the kernel's posix-timers.h): nanoseconds, where
    # /proc/PID/stat counts in ticks of 10 ms and would show 0 for most idle workers.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def idle_figures(*pids: int, window_s: float = IDLE_WINDOW_S, tracing: bool = True) -> Figures:
    """Watch idle process trees; strace comes after the other window, because it disturbs what it watches.

    strace counts one interrupted call for each OS thread that blocks when it attaches, so its figure is the calls
    beyond the number of OS threads.
    """
    members = [member for pid in pids for member in process_tree(pid)]
    switches, used_s = _switches(members), cpu_s(members)
    time.sleep(window_s)
    figures = {
        "cpu_percent": 100 * (cpu_s(members) - used_s) / window_s,
        f"switches_in_{window_s:.0f}_s": _switches(members) - switches,
        "os_threads": sum(1 for member in members for _ in Path(f"/proc/{member}/task").iterdir()),
    }
    strace = shutil.which("strace") if tracing else None
    if strace:
        figures["syscalls_in_3_s"] = max(0, _syscalls(strace, members) - int(figures["os_threads"]))
    return figures


def _syscalls(strace: str, pids: Iterable[int]) -> int:
    table = RUN_DIR / "strace.txt"
    attach = [word for pid in pids for word in ("-p", str(pid))]
    argv = [strace, "-c", "-U", "calls,name", "-f", "-o", str(table), *attach]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tracer:
        time.sleep(STRACE_WINDOW_S)
        tracer.send_signal(signal.SIGINT)
    total = re.search(r"^\s*(\d+) total$", table.read_text(), re.MULTILINE)
    return int(total.group(1)) if total else 0


def wall_ms(argv: list[str], *, times: int) -> Figures:
    """Return the median wall time of a command that succeeds."""
    took_ns = []
    for _ in range(times):
        before_ns = time.perf_counter_ns()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        took_ns.append(time.perf_counter_ns() - before_ns)
    return {"wall_p50_ms": percentile(took_ns, 0.5) / 1e6}


# ------------------------------------------------------------------------------- workloads of every worker process


def pauses_s(n: int) -> Iterable[float]:
    """Return n pauses of 1 to 20 ms: the system is idle again, and out of step with any poll."""
    chance = random.Random(7)
    return [chance.uniform(0.001, 0.02) for _ in range(n)]


def latency_between_processes(n: int, submit: Callable[[int], object], *, budget_s: float = 4.0) -> Figures:
    """Submit one task at a time to an idle worker process, until n or the budget is reached."""
    clear_hits()
    sent_ns: list[int] = []
    until_s = time.monotonic() + budget_s
    for i, pause_s in enumerate(pauses_s(n)):
        time.sleep(pause_s)
        sent_ns.append(time.monotonic_ns())
        submit(i)
        wait_for_hits(i + 1)
        if time.monotonic() > until_s:
            break
    return start_figures(sent_ns)


def _held(pids: Container[int]) -> set[int]:
    """Return the tasks that have started in one of these processes and not ended anywhere."""
    log = hits()
    return {line.task_id for line in log if line.pid in pids} - {line.task_id for line in log if line.kind == END}


def kill_figures(
    n: int, victim: Worker, start_another: Callable[[], Worker], *, patience_s: float = KILL_PATIENCE_S
) -> Figures:
    """Kill `victim` when half of the log of n naps is written; say what became of the tasks that it held.

    Args:
        n: naps with ids 0 to n-1, already submitted; they write 2n records.
        victim: one of two worker processes; the other one goes on.
        start_another: starts a third, as a supervisor would; called right after the kill.
    """
    pids = set(process_tree(victim.pid))
    while wait_until(lambda: hit_count() >= n and bool(_held(pids)), timeout_s=DRAIN_TIMEOUT_S, every_s=0.0005):
        time.sleep(NAP_MS_KILL / 2000)  # away from the moment when one task ends and the next begins
        if _held(pids) or hit_count() >= 2 * n:
            break
    killed_ns = victim.kill()
    held = _held(pids)
    ended = {line.task_id for line in hits() if line.kind == END}
    with start_another():
        wait_until(
            lambda: len({line.task_id for line in hits() if line.kind == END}) >= n,
            timeout_s=patience_s,
            every_s=0.02,
        )
    log = hits()
    starts = Counter(line.task_id for line in log if line.kind == START)
    resumed_s = [
        (line.at_ns - killed_ns) / 1e9
        for line in log
        if line.task_id in held and line.kind == START and line.at_ns > killed_ns
    ]
    figures: Figures = {
        "held_at_kill": len(held),
        "lost": n - len({line.task_id for line in log if line.kind == END}),
        "ended_but_run_again": sum(starts[task_id] > 1 for task_id in ended),
    }
    if resumed_s:
        figures |= {f"resumed_p{q}_s": percentile(resumed_s, q / 100) for q in (50, 99)}
        figures["resumed_worst_s"] = max(resumed_s)
    return figures


def wait_until_both_work(submit_nap: Callable[[], object]) -> None:
    """Give out naps until two processes have taken some; then the log is empty again.

    Raises:
        TimeoutError: only one of them takes tasks.
    """
    until_s = time.monotonic() + READY_TIMEOUT_S
    while len({line.pid for line in hits()}) < 2:
        if time.monotonic() > until_s:
            message = f"only one of two workers takes tasks; they wrote:\n{worker_log_tail()}"
            raise TimeoutError(message)
        before = hit_count()
        for _ in range(40):
            submit_nap()
        wait_for_hits(before + 80, timeout_s=READY_TIMEOUT_S)
    clear_hits()

"""The sennit side: the handlers, and what a user would write to run each case.

Worker processes import this module for `app` (`python -m sennit worker workloads:app`); nothing happens at import but
the registration of handlers.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import harness
import killing
from cases import PROVIDER_CASES
from conversations import CONVERSATIONS
from harness import END, NAP_MS_KILL, NAP_MS_WAITING, RUN_DIR, START, Figures, Side, Worker, wait_for_hits, wait_until

from sennit import App, step
from sennit.submit.context import attempt_here

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from cases import Case

DATABASE: Final = f"{RUN_DIR}/sennit.db"
URL: Final = os.environ.get("BENCH_DATABASE_URL", f"sqlite:///{DATABASE}")  # postgres.py sets it
RESULT_TIMEOUT_S: Final = 60.0
CRASHES_MAX: Final = 1000  # where workers are killed on purpose: no task is poison because chance hit it three times
NAP_MS_MAX_KILLS: Final = 100.0  # the bodies among which workers are killed take from 0 to this
CHAIN_HEAD_DELAY_S: Final = 0.3  # the whole chain is stored before its first task is due

app = App(URL, durability=cast("Any", os.environ["BENCH_DURABILITY"]), slots=int(os.environ["BENCH_SLOTS"]))


@app.task
async def noop(task_id: int) -> int:
    return harness.noop(task_id)


@app.task
def sync_noop(task_id: int) -> int:
    return harness.noop(task_id)


@app.task
async def hop(task_id: int) -> int:
    """Return the id of the next task of the chain, which takes this handle as its argument."""
    return harness.noop(task_id) + 1


@app.task
async def join(_: list[int], task_id: int) -> int:
    return harness.noop(task_id)


@app.task
async def split(n: int) -> None:
    """Make n children and their join; they are stored with the result of this attempt."""
    harness.hit(n + 1)
    join.submit(noop.map(range(n)).as_argument(), n)


@app.task
async def steps_in_order(n: int) -> None:
    harness.hit(0)
    for i in range(n):
        await step(echo, i)
    harness.hit(0, END)


@app.task
async def steps_gathered(n: int) -> None:
    harness.hit(1)
    await asyncio.gather(*(step(echo, i) for i in range(n)))
    harness.hit(1, END)


async def echo(value: int) -> int:
    return value


@app.task
async def nap_waiting(task_id: int) -> int:
    return await harness.async_nap(task_id, NAP_MS_WAITING)


@app.task
async def nap_kill(task_id: int) -> int:
    return await harness.async_nap(task_id, NAP_MS_KILL)


@app.task(options={"crashes_max": CRASHES_MAX})
async def nap_kills(ms: float) -> int:
    """Log the store's own id and the attempt, save a step, and return the attempt: what is accepted can be traced."""
    claimed = attempt_here("the benchmark").task
    harness.hit(claimed.id, START, claimed.attempt)
    await step(step_of_kills)
    harness.hit(claimed.id, killing.SAVED, claimed.attempt)
    await asyncio.sleep(ms / 1000)
    harness.hit(claimed.id, END, claimed.attempt)
    return claimed.attempt


async def step_of_kills() -> None:
    """Log that it runs. The attempt is no argument: a step is found again by its name and arguments."""
    claimed = attempt_here("the benchmark").task
    harness.hit(claimed.id, killing.STEP, claimed.attempt)


# ------------------------------------------------------------------------------------------------------ in process


def in_async_app(work: Callable[[], Coroutine[Any, Any, Figures]]) -> Figures:
    """Run `work` in an event loop where this process also works and has run one task."""

    async def main() -> Figures:
        async with app:
            await noop.submit(-1)
            harness.clear_hits()
            return await work()

    return asyncio.run(main())


def throughput_async(case: Case) -> Figures:
    async def work() -> Figures:
        began_s = time.perf_counter()
        await noop.map(range(case.n))
        return {"n": case.n, "tasks_per_s": case.n / (time.perf_counter() - began_s)}

    return in_async_app(work)


def throughput_sync(case: Case) -> Figures:
    with app:
        sync_noop.submit(-1).result(timeout_s=RESULT_TIMEOUT_S)
        began_s = time.perf_counter()
        sync_noop.map(range(case.n)).result(timeout_s=RESULT_TIMEOUT_S)
        return {"n": case.n, "tasks_per_s": case.n / (time.perf_counter() - began_s)}


def latency(case: Case) -> Figures:
    async def work() -> Figures:
        sent_ns: list[int] = []
        done_ns: list[int] = []
        for i, pause_s in enumerate(harness.pauses_s(case.n)):
            await asyncio.sleep(pause_s)
            sent_ns.append(time.monotonic_ns())
            await noop.submit(i)
            done_ns.append(time.monotonic_ns())
        return harness.start_figures(sent_ns, done_ns)

    return in_async_app(work)


def latency_sync(case: Case) -> Figures:
    sent_ns: list[int] = []
    done_ns: list[int] = []
    with app:
        sync_noop.submit(-1).result(timeout_s=RESULT_TIMEOUT_S)
        harness.clear_hits()
        for i, pause_s in enumerate(harness.pauses_s(case.n)):
            time.sleep(pause_s)
            sent_ns.append(time.monotonic_ns())
            sync_noop.submit(i).result(timeout_s=RESULT_TIMEOUT_S)
            done_ns.append(time.monotonic_ns())
    return harness.start_figures(sent_ns, done_ns)


def chain(case: Case) -> Figures:
    async def work() -> Figures:
        last = hop.options(delay_s=CHAIN_HEAD_DELAY_S).submit(0)
        for _ in range(case.n - 1):
            last = hop.submit(last.as_argument())
        await last
        return harness.hop_figures(case.n)

    return in_async_app(work)


def fan(case: Case) -> Figures:
    async def work() -> Figures:
        since_ns = time.monotonic_ns()
        head = noop.submit(case.n + 1)
        parts = noop.options(after=[head]).map(range(case.n))
        await join.submit(parts.as_argument(), case.n)
        return harness.join_figures(case.n, since_ns=since_ns)

    return in_async_app(work)


def children(case: Case) -> Figures:
    async def work() -> Figures:
        await split.submit(case.n)
        await asyncio.to_thread(wait_for_hits, case.n + 2)
        return harness.join_figures(case.n, since_ns=harness.first_starts()[case.n + 1])

    return in_async_app(work)


def steps(case: Case) -> Figures:
    async def work() -> Figures:
        await steps_in_order.submit(case.n)
        await steps_gathered.submit(case.n)
        times_ns = [line.at_ns for line in harness.hits()]
        return {
            "in_order_ms": (times_ns[1] - times_ns[0]) / 1e6 / case.n,
            "gathered_ms": (times_ns[3] - times_ns[2]) / 1e6 / case.n,
        }

    return in_async_app(work)


def waiting(case: Case) -> Figures:
    handles = nap_waiting.map(range(case.n))
    with app:
        handles.result(timeout_s=RESULT_TIMEOUT_S)
    return harness.nap_figures(case.n, slots=case.slots, ms=NAP_MS_WAITING)


# ---------------------------------------------------------------------- this process submits, worker processes work


def start_worker() -> Worker:
    return Worker([sys.executable, "-m", "sennit", "worker", "workloads:app", "--db", URL])


@contextmanager
def ready_worker() -> Iterator[Worker]:
    """Run a worker process that has done its first task."""
    with start_worker() as worker:
        noop.submit(-1)
        worker.wait_ready()
        wait_until_succeeded(1)
        harness.clear_hits()
        yield worker


@contextmanager
def two_ready_workers() -> Iterator[tuple[Worker, Worker]]:
    """Run two worker processes that have both worked; the log is empty."""
    with start_worker() as one, start_worker() as other:
        harness.wait_until_both_work(lambda: nap_kill.submit(-1))
        yield one, other


def wait_until_succeeded(n: int) -> None:
    """Wait until the ledger counts n successes: recorded, not only run.

    Raises:
        TimeoutError: it does not within DRAIN_TIMEOUT_S.
    """
    if not wait_until(lambda: app.ledger().result().succeeded >= n, timeout_s=harness.DRAIN_TIMEOUT_S):
        ledger = app.ledger().result()
        message = f"{ledger} where {n} should have succeeded; the workers wrote:\n{harness.worker_log_tail()}"
        raise TimeoutError(message)


def drained(case: Case) -> Figures:
    """Submit no-ops to the workers that are running and wait until all are recorded."""
    before = app.ledger().result().succeeded
    began_s = time.perf_counter()
    noop.map(range(case.n))
    wait_for_hits(case.n)
    wait_until_succeeded(before + case.n)
    return {"n": case.n, "tasks_per_s": case.n / (time.perf_counter() - began_s)}


def throughput_worker(case: Case) -> Figures:
    with ready_worker():
        return drained(case)


def throughput_workers(case: Case) -> Figures:
    with two_ready_workers():
        return drained(case)


def bulk(case: Case) -> Figures:
    began_s = time.perf_counter()
    noop.map(range(case.n))
    took_s = time.perf_counter() - began_s
    return {"n": case.n, "tasks_per_s": case.n / took_s, "missing": case.n - app.ledger().result().submitted}


def latency_processes(case: Case) -> Figures:
    with ready_worker():
        return harness.latency_between_processes(case.n, noop.submit)


def kill(case: Case) -> Figures:
    with two_ready_workers() as (victim, _):
        nap_kill.map(range(case.n))
        return harness.kill_figures(case.n, victim, start_worker)


class KilledFleet:
    """Sennit as `killing.py` sees it."""

    def __init__(self) -> None:
        self._chance = random.Random()

    def submit(self, n: int) -> list[int]:
        """Submit n naps of random length."""
        return [handle.id for handle in nap_kills.map([self._chance.uniform(0, NAP_MS_MAX_KILLS) for _ in range(n)])]

    def start_worker(self) -> Worker:
        """Start one more worker process."""
        return start_worker()


def kills(case: Case) -> Figures:
    figures = killing.run(case.n, KilledFleet(), app.store, database=DATABASE)
    ledger = app.ledger().result()
    return {**figures, "ledger_missing": abs(ledger.missing) + ledger.live}


def idle(_: Case) -> Figures:
    with ready_worker() as worker:
        time.sleep(1)
        return harness.idle_figures(worker.pid)


def idle_pair(_: Case) -> Figures:
    """Watch a worker and a process that has submitted to it and keeps its store open."""
    with (
        ready_worker() as worker,
        Worker([sys.executable, "-c", "import workloads as w; w.submit_and_wait()"]) as client,
    ):
        wait_for_hits(1)
        time.sleep(1)
        return harness.idle_figures(worker.pid, client.pid, window_s=harness.PAIR_WINDOW_S)


def submit_and_wait() -> None:
    """Be a process that submits one task, sees its result, and does nothing until killed."""
    noop.submit(0).result(timeout_s=RESULT_TIMEOUT_S)
    threading.Event().wait()


def memory(case: Case) -> Figures:
    with ready_worker() as worker:
        before = harness.memory_mb(worker.pid)
        noop.options(delay_s=3600).map(range(case.n))
        time.sleep(1)  # the worker has heard of them
        return harness.memory_figures(case.n, before, harness.memory_mb(worker.pid))


def version(case: Case) -> Figures:
    return harness.wall_ms([sys.executable, "-m", "sennit", "--version"], times=case.n)


def of_providers(case: Case) -> Figures:
    import providers  # noqa: PLC0415 - see cases.PROVIDER_CASES

    return providers.PROVIDERS[case.name](case)


SIDE: Final[Side] = {
    "throughput_async": throughput_async,
    "throughput_sync": throughput_sync,
    "throughput_worker": throughput_worker,
    "throughput_workers": throughput_workers,
    "bulk": bulk,
    "latency_full": latency,
    "latency_sync": latency_sync,
    "latency_normal": latency,
    "latency_processes": latency_processes,
    "chain": chain,
    "chain_normal": chain,
    "fan": fan,
    "children": children,
    "step": steps,
    "waiting": waiting,
    "kill": kill,
    "kills": kills,
    "idle": idle,
    "idle_pair": idle_pair,
    "memory": memory,
    "version": version,
    **CONVERSATIONS,
    **dict.fromkeys(PROVIDER_CASES, of_providers),
}

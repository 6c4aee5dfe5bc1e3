"""The sennit side of the cases about threads: state under contention, turns, questions that wait.

Worker processes import this module for `app` (`python -m sennit worker conversations:app`), as they do `workloads`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import harness
from harness import RUN_DIR, Figures, Side, Worker, wait_until

from sennit import App, Handle, ask, thread
from sennit.model.lifecycle import State

if TYPE_CHECKING:
    from cases import Case

URL: Final = f"sqlite:///{RUN_DIR}/sennit.db"
THREADS: Final = 100
HOT_WRITERS: Final = 8
HOT_PROCESSES: Final = 4
ROUNDS: Final = 10

app = App(URL, durability=cast("Any", os.environ["BENCH_DURABILITY"]), slots=int(os.environ["BENCH_SLOTS"]))


def count_up(state: dict[str, int]) -> dict[str, int]:
    return {"count": state.get("count", 0) + 1}


# ---------------------------------------------------------------- state


def state_threads(case: Case) -> Figures:
    """One writer per thread, each waits for its own update before the next."""

    async def writer(thread_id: str, n: int) -> None:
        chain = app.thread(thread_id)
        for _ in range(n):
            await chain.update(count_up)

    async def main() -> Figures:
        each = case.n // THREADS
        names = [f"thread-{i}" for i in range(THREADS)]
        began_s = time.perf_counter()
        await asyncio.gather(*(writer(name, each) for name in names))
        took_s = time.perf_counter() - began_s
        counts = [(await app.thread(name).get())["count"] for name in names]
        return {"n": each * THREADS, "updates_per_s": each * THREADS / took_s, "lost": each * THREADS - sum(counts)}

    return asyncio.run(main())


async def hot_updates(writers: int, n: int) -> None:
    """Let `writers` coroutines of this process update the one hot thread n times in all."""
    turns = itertools.count()

    async def writer() -> None:
        hot = app.thread("hot")
        while next(turns) < n:
            await hot.update(count_up)

    await asyncio.gather(*(writer() for _ in range(writers)))


def hot_count() -> int:
    state = app.thread("hot").get().result()
    return int(state.get("count", 0))


def state_hot(case: Case) -> Figures:
    """8 writers of one process on one thread."""
    began_s = time.perf_counter()
    asyncio.run(hot_updates(HOT_WRITERS, case.n))
    took_s = time.perf_counter() - began_s
    return {"n": case.n, "updates_per_s": case.n / took_s, "lost": case.n - hot_count()}


def state_hot_processes(case: Case) -> Figures:
    """The same 8 writers, two in each of four processes: every conflict is a real one."""
    each = case.n // HOT_PROCESSES
    call = f"import asyncio, conversations as c; c.wait_for_start(); asyncio.run(c.hot_updates({HOT_WRITERS // HOT_PROCESSES}, {each}))"
    workers = [Worker([sys.executable, "-c", call]) for _ in range(HOT_PROCESSES)]
    try:
        harness.wait_for_hits(HOT_PROCESSES)
        (RUN_DIR / "go").touch()
        began_s = time.perf_counter()
        total = each * HOT_PROCESSES
        wait_until(lambda: hot_count() >= total, timeout_s=harness.DRAIN_TIMEOUT_S)
        took_s = time.perf_counter() - began_s
    finally:
        for worker in workers:
            worker.kill()
    return {"n": total, "updates_per_s": total / took_s, "lost": total - hot_count()}


def wait_for_start() -> None:
    """Say that this process is ready, and wait for the others."""
    app.store.ledger().result()
    harness.hit(os.getpid())
    wait_until((RUN_DIR / "go").exists, timeout_s=harness.READY_TIMEOUT_S)


# ---------------------------------------------------------------- turns


@app.task
async def speak(name: str, n: int) -> int:
    """Append to the thread's own log, with an await between reading and writing."""
    said: list[int] = (await thread().get()).get("said", [])
    await asyncio.sleep(0)  # sleep: the window in which a second task of the thread would be seen
    await thread().update(lambda _: {"name": name, "said": [*said, n]})
    return n


async def conversations(names: list[str], each: int) -> Figures:
    """Run `each` tasks in every thread; return what was lost, out of order, or another thread's."""
    began_s = time.perf_counter()
    calls = [speak.options(thread_id=name).call(name, n) for n in range(each) for name in names]
    for handle in app.submit_many(calls):
        await handle
    took_s = time.perf_counter() - began_s
    states = [await app.thread(name).get() for name in names]
    expected = list(range(each))
    return {
        "n": len(calls),
        "tasks_per_s": len(calls) / took_s,
        "lost": len(calls) - sum(len(state["said"]) for state in states),
        "out_of_order": sum(state["said"] != expected for state in states),
        "cross_talk": sum(state["name"] != name for state, name in zip(states, names, strict=True)),
    }


def threads_busy(case: Case) -> Figures:
    async def main() -> Figures:
        async with app:
            return await conversations([f"thread-{i}" for i in range(THREADS)], case.n // THREADS)

    return asyncio.run(main())


def threads_many(case: Case) -> Figures:
    """Ten rounds of n new threads with one task each: does memory grow with what is over?"""

    async def main() -> Figures:
        rss_mb, totals = [], dict.fromkeys(("n", "lost", "cross_talk"), 0.0)
        began_s = time.perf_counter()
        async with app:
            for turn in range(ROUNDS):
                figures = await conversations([f"round-{turn}-thread-{i}" for i in range(case.n)], 1)
                totals = {name: totals[name] + figures[name] for name in totals}
                rss_mb.append(harness.memory_mb(os.getpid())["rss_mb"])
        took_s = time.perf_counter() - began_s
        half = ROUNDS // 2
        slope_mb = (sum(rss_mb[half:]) - sum(rss_mb[:half])) / half / half
        return {**totals, "tasks_per_s": totals["n"] / took_s, "slope_per_round_mb": slope_mb}

    return asyncio.run(main())


# ---------------------------------------------------------------- questions


@app.task
async def approval(n: int) -> bool:
    answer = await ask(f"Publish {n}?", bool)
    harness.hit(n)
    return answer


def is_suspended(handle: Handle[bool]) -> bool:
    return handle.view().wait().state is State.SUSPENDED


def ask_latency(case: Case) -> Figures:
    """Answer to resumed line, in an idle process."""

    async def main() -> Figures:
        answered_ns: list[int] = []
        async with app:
            inbox = app.inbox()
            for n, pause_s in enumerate(harness.pauses_s(case.n)):
                handle = approval.submit(n)
                await asyncio.to_thread(wait_until, partial(is_suspended, handle), timeout_s=10)
                (question,) = await inbox.list()
                await asyncio.sleep(pause_s)
                answered_ns.append(time.monotonic_ns())
                await inbox.approve(question.id)
                await handle
        return harness.start_figures(answered_ns)

    return asyncio.run(main())


def suspended(case: Case) -> Figures:
    """Tasks are suspended beside a worker process; the worker is killed, another starts, all are answered."""

    def all_are_suspended() -> bool:
        counts = app.store.counts().result().get("default", {})
        return counts.get(State.SUSPENDED, 0) == case.n

    argv = [sys.executable, "-m", "sennit", "worker", "conversations:app", "--db", URL]
    worker = Worker(argv)
    try:
        approval.submit(-1)
        wait_until(lambda: bool(app.store.asks().result()), timeout_s=harness.READY_TIMEOUT_S)
        app.inbox().approve(app.store.asks().result()[0].id).result()
        wait_until(lambda: app.ledger().result().succeeded == 1, timeout_s=harness.READY_TIMEOUT_S)
        idle = harness.memory_mb(worker.pid)
        approval.map(range(case.n))
        if not wait_until(all_are_suspended, timeout_s=harness.DRAIN_TIMEOUT_S, every_s=0.05):
            message = f"not all are suspended: {app.store.counts().result()}"
            raise TimeoutError(message)
        waits = harness.memory_mb(worker.pid)
        held = sum(view.running for view in app.store.workers().result())
    finally:
        worker.kill()
    worker = Worker(argv)
    try:
        ids = [view.id for view in app.store.asks(limit=case.n).result()]
        began_s = time.perf_counter()
        app.inbox().approve(*ids).result()
        wait_until(
            lambda: app.ledger().result().succeeded == case.n + 1, timeout_s=harness.DRAIN_TIMEOUT_S, every_s=0.02
        )
        took_s = time.perf_counter() - began_s
    finally:
        worker.kill()
    ledger = app.ledger().result()
    return {
        "n": case.n,
        "added_rss_mb": waits["rss_mb"] - idle["rss_mb"],
        "suspended_rss_mb": waits["rss_mb"],
        "slots_held": held,
        "answered_per_s": case.n / took_s,
        "lost": case.n + 1 - ledger.succeeded + abs(ledger.missing),
    }


CONVERSATIONS: Final[Side] = {
    "state_threads": state_threads,
    "state_hot": state_hot,
    "state_hot_processes": state_hot_processes,
    "threads_busy": threads_busy,
    "threads_many": threads_many,
    "ask": ask_latency,
    "suspended": suspended,
}
SIDE: Final = CONVERSATIONS

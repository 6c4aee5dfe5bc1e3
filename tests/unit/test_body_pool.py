"""The pool of sync bodies: elastic, interruptible, and never a result lost or an exception in the wrong body."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sennit.errors import AttemptCancelled, SettingsError, UsageError
from sennit.execute.pool import BodyPool
from sennit.sync.strikes import strike

Outcome = tuple[Any, BaseException | None]


def with_pool(
    scenario: Callable[[BodyPool], Awaitable[Any]], *, threads_max: int = 4, idle_s: float = 30.0, stuck: bool = False
) -> Any:
    async def run() -> Any:
        pool = BodyPool(loop=asyncio.get_running_loop(), threads_max=threads_max, idle_s=idle_s)
        try:
            return await scenario(pool)
        finally:
            pool.close()
            assert pool.join(0 if stuck else 10) is not stuck

    return asyncio.run(run())


def call(pool: BodyPool, fn: Callable[[], Any]) -> tuple[Any, asyncio.Future[Outcome]]:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    return pool.submit(fn, lambda result, error: outcome.set_result((result, error))), outcome


async def wait_until(holds: Callable[[], bool]) -> None:
    """Return when a fact about OS threads holds; the test's time limit is the bound."""
    while not holds():  # noqa: ASYNC110  what happens in OS threads raises no event here
        await asyncio.sleep(0)


class Blocked:
    """A body that says when it runs and returns when it is let go, without ever running Python meanwhile."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.let_go = threading.Lock()
        self.let_go.acquire()

    def __call__(self) -> str:
        self.started.set()
        self.let_go.acquire()
        return "came back"


class Spinning:
    """A body that runs Python until something is raised in it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.caught: list[str] = []

    def __call__(self) -> None:
        self.started.set()
        try:
            while True:
                pass
        except BaseException as error:
            self.caught.append(type(error).__name__)
            raise


# ---------------------------------------------------------------- results


def test_a_body_runs_elsewhere_and_its_result_comes_to_the_loop() -> None:
    async def scenario(pool: BodyPool) -> None:
        here = threading.get_ident()
        delivered_in: list[int] = []
        finished = asyncio.Event()

        def done(result: int | None, error: BaseException | None) -> None:
            assert error is None
            assert result != here
            delivered_in.append(threading.get_ident())
            finished.set()

        pool.submit(threading.get_ident, done)
        await finished.wait()
        assert delivered_in == [here]

    with_pool(scenario)


@pytest.mark.parametrize("error_type", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_whatever_a_body_raises_is_delivered_and_its_thread_goes_on(error_type: type[BaseException]) -> None:
    def body() -> None:
        raise error_type("from the body")

    async def scenario(pool: BodyPool) -> None:
        _, outcome = call(pool, body)
        result, error = await outcome
        assert result is None
        assert type(error) is error_type

        _, outcome = call(pool, lambda: "next")
        assert await outcome == ("next", None)
        assert pool.statistics().threads == 1

    with_pool(scenario, threads_max=1)


def test_ten_thousand_results_from_many_os_threads_arrive_once_each_in_few_wake_ups() -> None:
    async def scenario(pool: BodyPool) -> None:
        results: list[int] = []
        finished = asyncio.Event()

        def done(result: int | None, error: BaseException | None) -> None:
            assert result is not None
            assert error is None
            results.append(result)
            if len(results) == 10_000:
                finished.set()

        def submit(start: int) -> None:
            for number in range(start, start + 2500):
                pool.submit(lambda number=number: number, done)  # type: ignore[misc]

        submitters = [threading.Thread(target=submit, args=(start,)) for start in range(0, 10_000, 2500)]
        for submitter in submitters:
            submitter.start()
        await finished.wait()
        for submitter in submitters:
            submitter.join()

        assert sorted(results) == list(range(10_000))
        statistics = pool.statistics()
        assert statistics.finished == 10_000
        assert statistics.deliveries < 5_000
        assert (statistics.queued, statistics.running) == (0, 0)

    with_pool(scenario)


def test_a_done_callback_that_raises_costs_nobody_else_a_result() -> None:
    async def scenario(pool: BodyPool) -> None:
        reported: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))

        def done(_: object, __: object) -> None:
            raise ValueError("in done")

        pool.submit(lambda: None, done)
        _, outcome = call(pool, lambda: "fine")

        assert await outcome == ("fine", None)
        assert reported == ["in done"]

    with_pool(scenario, threads_max=1)


def test_a_done_callback_left_by_ctrl_c_costs_nobody_else_a_result() -> None:
    """KeyboardInterrupt goes through the whole loop; when it runs again the rest of the burst is delivered."""
    loop = asyncio.new_event_loop()
    pool = BodyPool(loop=loop, threads_max=1)
    delivered: list[int] = []

    def interrupt_loop(_: object, __: object) -> None:
        raise KeyboardInterrupt

    gate = Blocked()
    pool.submit(gate, interrupt_loop)
    for number in range(3):
        pool.submit(lambda: None, lambda *_, number=number: delivered.append(number))
    pool.submit(lambda: None, lambda *_: loop.stop())
    gate.let_go.release()
    pool.close()
    assert pool.join(10)

    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert delivered == []
    loop.run_forever()
    loop.close()

    assert delivered == [0, 1, 2]


# ---------------------------------------------------------------- threads come and go


def test_bodies_that_block_run_side_by_side_up_to_the_maximum() -> None:
    async def scenario(pool: BodyPool) -> None:
        bodies = [Blocked() for _ in range(6)]
        outcomes = [call(pool, body)[1] for body in bodies]
        await wait_until(lambda: pool.statistics().running == 4)
        assert (pool.statistics().threads, pool.statistics().queued) == (4, 2)
        for body in bodies:
            body.let_go.release()
        assert await asyncio.gather(*outcomes) == [("came back", None)] * 6

    with_pool(scenario)


def test_one_body_after_the_other_needs_one_os_thread() -> None:
    async def scenario(pool: BodyPool) -> None:
        seen = set()
        for _ in range(100):
            _, outcome = call(pool, threading.get_ident)
            seen.add((await outcome)[0])
            await wait_until(lambda: pool.statistics().threads_idle == 1)
        assert len(seen) == 1

    with_pool(scenario)


def test_idle_os_threads_end_and_new_ones_come() -> None:
    async def scenario(pool: BodyPool) -> None:
        for round_number in range(3):
            _, outcome = call(pool, lambda number=round_number: number)  # type: ignore[misc]
            assert await outcome == (round_number, None)
            await wait_until(lambda: pool.statistics().threads == 0)

    with_pool(scenario, idle_s=0.01)


def test_no_body_is_lost_between_an_ending_os_thread_and_a_submit() -> None:
    """The thread's time runs out while it is being given work, again and again."""

    async def scenario(pool: BodyPool) -> None:
        for number in range(500):
            _, outcome = call(pool, lambda number=number: number)  # type: ignore[misc]
            assert await outcome == (number, None)
            await asyncio.sleep(0.0002 * (number % 3))  # sleep: sweeps across the moment the OS thread ends

    with_pool(scenario, idle_s=0.0003)


def test_a_closed_pool_finishes_what_it_has_and_takes_no_more() -> None:
    async def scenario(pool: BodyPool) -> None:
        body = Blocked()
        _, first = call(pool, body)
        _, second = call(pool, lambda: "queued")
        pool.close()

        with pytest.raises(UsageError, match="closed"):
            pool.submit(lambda: None, lambda *_: None)
        body.let_go.release()
        assert await first == ("came back", None)
        assert await second == ("queued", None)

    with_pool(scenario, threads_max=1)


@pytest.mark.parametrize(("threads_max", "idle_s"), [(0, 1.0), (1, 0.0)])
def test_a_pool_that_could_run_nothing_is_refused(threads_max: int, idle_s: float) -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(SettingsError, match="cannot run anything"):
        BodyPool(loop=loop, threads_max=threads_max, idle_s=idle_s)
    loop.close()


# ---------------------------------------------------------------- interrupt and abandon


def test_an_interrupt_is_raised_inside_the_body() -> None:
    async def scenario(pool: BodyPool) -> None:
        body = Spinning()
        ticket, outcome = call(pool, body)
        body.started.wait()

        assert pool.interrupt(ticket, AttemptCancelled) is True
        assert pool.interrupt(ticket, AttemptCancelled) is False
        result, error = await outcome

        assert result is None
        assert type(error) is AttemptCancelled
        assert body.caught == ["AttemptCancelled"]
        assert pool.interrupt(ticket, AttemptCancelled) is False

    with_pool(scenario)


def test_an_interrupted_body_that_has_not_started_never_will() -> None:
    async def scenario(pool: BodyPool) -> None:
        blocker = Blocked()
        _, first = call(pool, blocker)
        blocker.started.wait()
        ticket, second = call(pool, lambda: pytest.fail("ran"))

        assert pool.interrupt(ticket, AttemptCancelled) is True
        assert type((await second)[1]) is AttemptCancelled
        blocker.let_go.release()
        assert await first == ("came back", None)

    with_pool(scenario, threads_max=1)


def test_an_interrupt_never_hits_the_next_body_of_the_same_os_thread() -> None:
    """Interrupts race against bodies that are just ending; the body behind each of them must not notice."""

    async def scenario(pool: BodyPool) -> None:
        hits = 0
        for number in range(3000):
            spins = number % 60

            def short(spins: int = spins) -> int:
                for _ in range(spins):
                    pass
                return spins

            ticket, first = call(pool, short)
            _, second = call(pool, lambda: sum(range(50)))
            interrupted = (
                await asyncio.to_thread(pool.interrupt, ticket, AttemptCancelled)
                if number % 2
                else (pool.interrupt(ticket, AttemptCancelled))
            )
            result, error = await first

            assert (result == spins) is (error is None)
            assert error is None or (interrupted and type(error) is AttemptCancelled)
            assert await second == (sum(range(50)), None)
            hits += interrupted
        assert hits > 0
        assert pool.statistics().threads == 1

    with_pool(scenario, threads_max=1)


def test_a_strike_between_the_end_of_a_body_and_its_record_is_taken_back() -> None:
    """The exact window: the body has returned and its OS thread waits for the lock that the interrupter holds."""

    async def scenario(pool: BodyPool) -> None:
        kept = 0
        for _ in range(100):
            gate = threading.Lock()
            gate.acquire()
            ticket, outcome = call(pool, gate.acquire)  # A body without any Python: it ends when the gate opens.
            await wait_until(lambda: pool.statistics().running == 1)
            with pool._lock:
                gate.release()
                for _ in range(50):
                    os.sched_yield()  # Gives the OS thread time to come as far as it can, which is the lock.
                ticket.interrupted = True
                strike(ticket.os_thread_id, AttemptCancelled)

            result, error = await outcome
            assert (result is True) is (error is None)
            kept += result is True
            _, following = call(pool, lambda: sum(range(50)))
            assert await following == (sum(range(50)), None)
        assert kept > 0

    with_pool(scenario, threads_max=1)


def test_an_abandoned_body_frees_its_place_and_its_late_result_is_dropped() -> None:
    async def scenario(pool: BodyPool) -> None:
        stuck = Blocked()
        late: list[object] = []
        ticket = pool.submit(stuck, lambda *outcome: late.append(outcome))
        stuck.started.wait()
        _, queued = call(pool, lambda: "next")

        assert pool.abandon(ticket) is True
        assert pool.abandon(ticket) is False
        assert await queued == ("next", None)
        assert pool.interrupt(ticket, AttemptCancelled) is False
        assert (pool.statistics().threads, pool.statistics().threads_abandoned) == (1, 1)

        stuck.let_go.release()
        await wait_until(lambda: pool.statistics().threads_abandoned == 0)
        _, last = call(pool, lambda: "last")
        assert await last == ("last", None)
        assert late == []
        assert pool.statistics().threads == 1

    with_pool(scenario, threads_max=1)


def test_an_abandoned_body_that_never_returns_does_not_hold_up_the_rest() -> None:
    stuck = Blocked()

    async def scenario(pool: BodyPool) -> None:
        ticket = pool.submit(stuck, lambda *_: None)
        stuck.started.wait()
        pool.abandon(ticket)
        _, outcome = call(pool, lambda: "next")
        assert await outcome == ("next", None)

    with_pool(scenario, threads_max=1, stuck=True)
    stuck.let_go.release()


def test_a_body_that_was_abandoned_in_the_queue_never_runs() -> None:
    async def scenario(pool: BodyPool) -> None:
        blocker = Blocked()
        _, first = call(pool, blocker)
        blocker.started.wait()
        ticket = pool.submit(lambda: pytest.fail("ran"), lambda *_: pytest.fail("done"))

        assert pool.abandon(ticket) is True
        blocker.let_go.release()
        assert await first == ("came back", None)
        _, last = call(pool, lambda: "last")
        assert await last == ("last", None)

    with_pool(scenario, threads_max=1)


def test_a_finished_body_can_not_be_abandoned() -> None:
    async def scenario(pool: BodyPool) -> None:
        ticket, outcome = call(pool, lambda: "result")
        await outcome

        assert pool.abandon(ticket) is False
        assert pool.statistics().threads_abandoned == 0

    with_pool(scenario)


# ---------------------------------------------------------------- bad neighbours


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_of_a_body_that_forks_ends_with_the_body() -> None:
    """Back in the pool it would deliver its parent's results a second time."""

    def body() -> int:
        pid = os.fork()
        if pid == 0:
            raise SystemExit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def scenario(pool: BodyPool) -> None:
        _, outcome = call(pool, body)
        assert await outcome == (7, None)

    with_pool(scenario)


def test_a_body_that_outlives_its_loop_ends_quietly() -> None:
    body = Blocked()
    pools: list[BodyPool] = []

    async def scenario(pool: BodyPool) -> None:
        pools.append(pool)
        pool.submit(body, lambda *_: pytest.fail("delivered to a closed loop"))
        body.started.wait()

    with_pool(scenario, stuck=True)
    body.let_go.release()

    assert pools[0].join(10)

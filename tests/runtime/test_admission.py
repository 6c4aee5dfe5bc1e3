"""Admission: a full queue holds back who hands in, costs nothing meanwhile, and lets in by turns; memory holds back workers."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from sennit import App, Handle, TaskCancelled
from sennit.errors import QueueFull, StoreUnavailable, TaskNotFound, ThreadBusy, UnknownDependency
from sennit.limit.admission import resident_bytes
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.task import Ref, TaskSpec
from sennit.store.memory import MemoryStore
from sennit.submit.entrance import Entrance
from sennit.sync.ack import Ack
from sennit.testing.simloop import SimLoop

WAIT_S = 30.0


def text(value: str) -> str:
    return value


class Fleet:
    """An app that hands in, and beside it a worker with one slot whose bodies end when they may."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = App(url, **{"durability": "normal", "queue_max": 3, "admission_timeout_s": WAIT_S, **settings})
        self.worker = App(url, durability="normal", slots=1)
        self.ran: list[int] = []
        self._may_end = threading.Semaphore(0)
        self.task = self.app.task(name="work")(self.work)
        self.worker.task(name="work")(self.work)

    def work(self, n: int) -> int:
        assert self._may_end.acquire(timeout=WAIT_S)
        self.ran.append(n)
        return n

    def let_end(self, n: int) -> None:
        self._may_end.release(n)

    def fill(self) -> list[Handle[int]]:
        return [self.task.submit(n) for n in range(self.app.settings.queue_max)]

    @property
    def waiting(self) -> int:
        """How many tasks stand before the entrance."""
        return self.app._client._entrance.waiting

    @property
    def in_line(self) -> int:
        """How many submits have been refused or stand behind one that was."""
        return sum(len(line) for line in list(self.app._client._entrance._lines.values()))

    @property
    def ready(self) -> int:
        """How many tasks wait for a slot."""
        return self.app.store.counts().result().get("default", {}).get(State.READY, 0)

    def close(self) -> None:
        self._may_end.release(10_000)
        self.app.close()
        self.worker.close()


@pytest.fixture
def make_fleet(url: str) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(**settings: Any) -> Fleet:
        made.append(Fleet(url, **settings))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    return make_fleet()


@pytest.fixture
def outside() -> Iterator[ThreadPoolExecutor]:
    """OS threads that may block."""
    with ThreadPoolExecutor(50) as executor:
        yield executor


def wait_until(fact: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    tick = threading.Event()
    for _ in range(int(WAIT_S * 1000)):
        if fact():
            return
        tick.wait(0.001)
    raise AssertionError(f"{what} did not come about in {WAIT_S:g} s")


# ---------------------------------------------------------------- blocking


def test_a_sync_submit_blocks_until_there_is_room(fleet: Fleet, outside: ThreadPoolExecutor) -> None:
    fleet.fill()
    submitted = outside.submit(fleet.task.submit, 3)
    wait_until(lambda: fleet.waiting == 1, "a blocked submit")
    assert not submitted.done()
    assert fleet.app.ledger().result().submitted == 3

    with fleet.worker:  # takes one of the queue: there is room
        handle = submitted.result(WAIT_S)
        fleet.let_end(4)

        assert handle.result(WAIT_S) == 3


def test_an_async_submit_returns_at_once_and_stored_waits(fleet: Fleet) -> None:
    fleet.fill()

    async def main() -> None:
        handle = fleet.task.submit(3)
        stored = asyncio.ensure_future(handle.stored())
        await asyncio.sleep(0)
        assert not stored.done()
        async with fleet.worker:
            await stored
            fleet.let_end(4)
            assert await handle == 3

    asyncio.run(main())


def test_to_await_a_blocked_task_waits_for_its_room_and_then_for_its_end(fleet: Fleet) -> None:
    fleet.fill()

    async def main() -> int:
        handle = fleet.task.submit(3)
        fleet.let_end(4)
        async with fleet.worker:
            return await handle

    assert asyncio.run(main()) == 3


def test_when_the_time_is_up_a_sync_submit_finds_the_queue_full(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.05)
    fleet.fill()

    with pytest.raises(QueueFull) as full:
        fleet.task.submit(3)

    assert (full.value.queue, full.value.queue_max) == ("default", 3)
    assert full.value.retry_after_s > 0
    assert fleet.waiting == 0


def test_when_the_time_is_up_an_async_submit_finds_the_queue_full(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.05)
    fleet.fill()

    async def main() -> None:
        handle = fleet.task.submit(3)
        with pytest.raises(QueueFull):
            await handle.stored()
        with pytest.raises(QueueFull):
            await handle

    asyncio.run(main())
    assert fleet.waiting == 0


def test_with_no_time_at_all_it_is_tried_once(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.0)
    fleet.fill()

    with pytest.raises(QueueFull):
        fleet.task.submit(3)
    assert fleet.app.ledger().result().submitted == 3


def test_who_gave_up_does_not_enter_later(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.05)
    handles = fleet.fill()
    with pytest.raises(QueueFull):
        fleet.task.submit(3)

    fleet.let_end(10)
    with fleet.worker:
        for handle in handles:
            handle.result(WAIT_S)

    assert fleet.app.ledger().result().submitted == 3


def test_ctrl_c_takes_a_blocked_submit_back(fleet: Fleet) -> None:
    fleet.fill()

    def interrupt() -> None:  # a real signal: nothing else reaches an OS thread that waits for a lock
        wait_until(lambda: fleet.in_line == 1, "a blocked submit")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        fleet.task.submit(3)
    other.join()

    assert fleet.waiting == 0
    assert fleet.app.ledger().result().submitted == 3


def test_a_blocked_submit_hears_that_the_store_was_closed(fleet: Fleet, outside: ThreadPoolExecutor) -> None:
    fleet.fill()
    blocked = [outside.submit(fleet.task.submit, n) for n in (3, 4)]
    wait_until(lambda: fleet.waiting == 2, "two blocked submits")

    fleet.app.close()

    for submitted in blocked:
        with pytest.raises(StoreUnavailable):
            submitted.result(WAIT_S)


# ---------------------------------------------------------------- by turns


def test_who_came_first_enters_first(fleet: Fleet) -> None:
    fleet.fill()

    async def main() -> None:
        handles = [fleet.task.submit(n) for n in range(3, 30)]
        fleet.let_end(30)
        async with fleet.worker:
            for handle in handles:
                await handle

    asyncio.run(main())
    assert fleet.ran == list(range(30))


def test_many_blocked_submits_cost_the_store_as_much_as_one(fleet: Fleet, outside: ThreadPoolExecutor) -> None:
    fleet.fill()
    store = fleet.app.store
    blocked = [outside.submit(fleet.task.submit, 3)]
    wait_until(lambda: fleet.in_line == 1, "a blocked submit")  # refused once; who comes now stands behind it
    before = store.ledger().result()

    blocked += [outside.submit(fleet.task.submit, n) for n in range(4, 44)]
    wait_until(lambda: fleet.waiting == 41, "41 blocked submits")

    lines = fleet.app._client._entrance._lines
    assert [len(line) for line in lines.values()] == [41]
    assert [admission.error is not None for admission in lines["default"]] == [True] + [False] * 40  # never tried
    assert store.ledger().result() == before
    fleet.let_end(44)
    with fleet.worker:
        assert sorted(s.result(WAIT_S).result(WAIT_S) for s in blocked) == list(range(3, 44))


def test_the_queue_never_holds_more_than_its_bound(fleet: Fleet, outside: ThreadPoolExecutor) -> None:
    fleet.let_end(200)
    seen: list[int] = []

    def hand_in(n: int) -> int:
        handle = fleet.task.submit(n)
        seen.append(fleet.ready)
        return handle.result(WAIT_S)

    with fleet.worker:
        assert sorted(outside.map(hand_in, range(100))) == list(range(100))

    assert max(seen) <= 3


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_fifty_os_threads_and_a_loop_hand_in_through_a_queue_of_three(
    url: str, kind: str, outside: ThreadPoolExecutor
) -> None:
    """Batches, single tasks and dependants, blocked in both ways, in the process that also works."""
    at = "memory://" if kind == "memory" else url
    with App(at, durability="normal", slots=4, queue_max=3, admission_timeout_s=WAIT_S) as app:
        task = app.task(text)

        def hand_in(n: int) -> list[str]:
            return [*task.map([f"{n}a", f"{n}b"]).result(WAIT_S), task.submit(f"{n}c").result(WAIT_S)]

        async def hand_in_async(n: int) -> list[str]:
            handles = task.map([f"{n}a", f"{n}b"])
            return [*await handles, await task.options(after=list(handles)).submit(f"{n}c")]

        async def all_async() -> list[list[str]]:
            return await asyncio.gather(*(hand_in_async(n) for n in range(100, 200)))

        blocking = [outside.submit(hand_in, n) for n in range(100)]
        found = [*asyncio.run(all_async()), *(one.result(WAIT_S) for one in blocking)]

        assert sorted(found) == sorted([f"{n}a", f"{n}b", f"{n}c"] for n in range(200))
        assert app.ledger().result().succeeded == 600
        assert app._client._entrance.waiting == 0
        assert app._client._entrance._lines == {}


def test_a_batch_enters_whole_when_there_is_room_for_all_of_it(fleet: Fleet) -> None:
    fleet.fill()

    async def main() -> None:
        handles = fleet.task.map(range(3, 6))
        fleet.let_end(1)
        async with fleet.worker:
            await asyncio.to_thread(wait_until, lambda: fleet.ready == 1, "one task that waits")  # room for two
            assert fleet.waiting == 3
            fleet.let_end(5)
            assert await handles == [3, 4, 5]

    asyncio.run(main())


def test_what_depends_on_a_blocked_task_waits_with_it(fleet: Fleet) -> None:
    fleet.fill()

    async def main() -> None:
        first = fleet.task.submit(3)
        second = fleet.task.options(after=first).submit(4)  # has a parent: never finds the queue full
        third = fleet.task.options(after=second).submit(5)
        fleet.let_end(10)
        async with fleet.worker:
            assert [await handle for handle in (third, second, first)] == [5, 4, 3]

    asyncio.run(main())
    assert fleet.ran[-3:] == [3, 4, 5]


def test_what_depends_on_a_task_that_did_not_enter_has_an_unknown_parent(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.05)
    fleet.fill()

    async def main() -> None:
        first = fleet.task.submit(3)
        second = fleet.task.options(after=first).submit(4)
        with pytest.raises(UnknownDependency):
            await second
        with pytest.raises(QueueFull):
            await first

    asyncio.run(main())
    assert fleet.app.ledger().result().submitted == 3


def test_a_full_queue_does_not_hold_up_another(fleet: Fleet) -> None:
    fleet.fill()

    handle = fleet.task.options(queue="other").submit(9)

    assert handle.view().result().state is State.READY


# ---------------------------------------------------------------- not blocking


def test_reject_is_told_at_once(fleet: Fleet) -> None:
    fleet.fill()

    with pytest.raises(QueueFull):
        fleet.task.options(on_full="reject").submit(3)


def test_shed_takes_the_place_of_a_task_of_lower_priority(fleet: Fleet) -> None:
    [*_, low] = [fleet.task.options(priority=p).submit(0) for p in ("normal", "normal", "low")]

    urgent = fleet.task.options(on_full="shed", priority="urgent").submit(3)

    assert urgent.view().result().state is State.READY
    with pytest.raises(TaskCancelled, match="full"):
        low.result(WAIT_S)
    with pytest.raises(QueueFull):
        fleet.task.options(on_full="shed", priority="low").submit(4)


def test_the_setting_says_what_a_call_does_that_says_nothing(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(on_full="reject")
    fleet.fill()

    with pytest.raises(QueueFull):
        fleet.task.submit(3)


def test_children_of_a_body_never_wait_for_room(url: str) -> None:
    with App(url, durability="normal", slots=1, queue_max=1, admission_timeout_s=0.05) as app:

        @app.task
        async def child(n: int) -> int:
            return n

        @app.task
        async def parent() -> list[int]:
            return await child.map(range(20))

        @app.task
        def parent_sync() -> list[int]:
            return child.map(range(20)).result()

        assert parent.submit().result(WAIT_S) == list(range(20))
        assert parent_sync.submit().result(WAIT_S) == list(range(20))


def test_a_busy_thread_refuses_if_asked_to(app: App) -> None:
    task = app.task(text)
    one = task.options(thread_id="a", on_busy="reject")
    first = one.submit("x")

    with pytest.raises(ThreadBusy) as busy:
        one.submit("y")

    assert (busy.value.thread_id, busy.value.task_id) == ("a", first.id)


def test_a_submit_in_ones_own_transaction_cannot_wait(fleet: Fleet, tmp_path: Path) -> None:
    fleet.fill()
    connection = sqlite3.connect(tmp_path / "fleet.db")

    with pytest.raises(QueueFull):
        fleet.app.submit_in(connection, fleet.task, 3)
    connection.close()


def test_the_run_of_a_schedule_never_finds_its_queue_full(fleet: Fleet) -> None:
    [spec] = fleet.app._client.specs([fleet.task.options(cache_s=5).call(1)])

    assert spec.entry is not None
    assert (spec.entry.queue_max, spec.entry.cache_us) == (0, 5_000_000)


# ---------------------------------------------------------------- waiting costs nothing


def test_a_blocked_submit_uses_no_processor_time(fleet: Fleet, outside: ThreadPoolExecutor) -> None:
    fleet.fill()
    blocked = [outside.submit(fleet.task.submit, n) for n in range(3, 33)]
    wait_until(lambda: fleet.waiting == 30, "30 blocked submits")
    process = psutil.Process()
    switches, cpu = process.num_ctx_switches(), process.cpu_times()

    threading.Event().wait(1.0)  # nothing may happen in this second

    switched = process.num_ctx_switches()
    used = process.cpu_times()
    assert used.user + used.system - cpu.user - cpu.system < 0.05
    assert switched.voluntary - switches.voluntary < 20  # a poll would be woken for each of 30 submits
    fleet.let_end(40)
    with fleet.worker:
        assert len([s.result(WAIT_S).result(WAIT_S) for s in blocked]) == 30


# ---------------------------------------------------------------- position


def test_position_is_how_many_start_before(fleet: Fleet) -> None:
    handles = fleet.fill()
    urgent = fleet.task.options(priority="urgent", queue="default", on_full="reject")

    assert [handle.position().result() for handle in handles] == [0, 1, 2]
    fleet.app.cancel(handles[0].id).result()
    assert urgent.submit(9).position().result() == 0
    assert [handle.position().result() for handle in handles] == [None, 1, 2]


def test_position_in_a_thread_counts_the_tasks_of_the_thread(app: App) -> None:
    task = app.task(text)
    for _ in range(5):
        task.submit("other")
    handles = [task.options(thread_id="a").submit("x") for _ in range(3)]

    assert [handle.position().result() for handle in handles] == [5, 1, 2]


def test_position_of_a_task_that_was_handed_in_in_async_code_waits_for_its_id(app: App) -> None:
    task = app.task(text)

    async def main() -> int | None:
        return await task.submit("x").position()

    assert asyncio.run(main()) == 0


def test_an_unknown_task_has_no_position(app: App) -> None:
    with pytest.raises(TaskNotFound):
        app.handle(10**9).position().result()


# ---------------------------------------------------------------- settings reach the store


def test_at_most_threads_max_conversations_run_at_once(url: str) -> None:
    running, most = 0, 0
    with App(url, durability="normal", threads_max=2, slots=10) as app:

        @app.task
        async def turn() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1

        handles = [turn.options(thread_id=f"thread-{n % 10}").submit() for n in range(40)]
        for handle in handles:
            handle.result(WAIT_S)

    assert most == 2


# ---------------------------------------------------------------- memory

MB = 1_000_000


class Hoard:
    """A worker whose bodies hold memory until they may end."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.may_end = threading.Event()
        self.holds = threading.Event()
        self.app = App(url, durability="normal", slots=4, **settings)
        self.hold = self.app.task(name="hold")(self._hold)
        self.quick = self.app.task(name="quick")(self._quick)

    def _hold(self, size_bytes: int) -> int:
        data = bytearray(size_bytes)
        data[::4096] = b"x" * len(data[::4096])  # touched: only then it is resident
        self.holds.set()
        assert self.may_end.wait(WAIT_S)
        return len(data)

    def _quick(self) -> str:
        return "done"


def test_over_its_memory_bound_a_process_takes_no_further_tasks_until_there_is_room(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    hoard = Hoard(url, memory_bytes_max=resident_bytes(list) + 120 * MB)
    with caplog.at_level(logging.INFO, "sennit"), hoard.app as app:
        first = hoard.hold.submit(200 * MB)
        assert hoard.holds.wait(WAIT_S)
        gate = app._engine._gate  # type: ignore[union-attr]  # inside `with app` there is one
        wait_until(lambda: gate.is_closed or hoard.quick.submit() is None, "a closed gate")  # it looks when tasks start
        wait_until(lambda: not app._engine._dispatcher._cancelling, "a cancelled order")  # type: ignore[union-attr]

        late = [hoard.quick.submit() for _ in range(10)]
        assert {handle.view().result().state for handle in late} == {State.READY}  # three slots are free
        hoard.may_end.set()

        assert [handle.result(WAIT_S) for handle in late] == ["done"] * 10
        assert first.result(WAIT_S) == 200 * MB
        assert not gate.is_closed
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(said) == 2


def test_the_memory_of_worker_processes_counts(url: str) -> None:
    with App(url, durability="normal", memory_bytes_max=2**49) as app:
        app.task(name="upper", cpu=True)(_upper).submit("x").result(WAIT_S)
        engine = app._engine
        assert engine is not None

        assert engine._processes.pids()
        assert engine._gate._sample() > psutil.Process().memory_info().rss + 5 * MB


def _upper(text: str) -> str:
    return text.upper()


# ---------------------------------------------------------------- virtual time


class Counting(MemoryStore):
    """A memory store that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = Counter[str]()

    def submit(self, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        self.asked["submit"] += 1
        return super().submit(specs)

    def wait_room(self, queue: str, queue_max: int) -> Ack[None]:
        self.asked["wait_room"] += 1
        return super().wait_room(queue, queue_max)


@pytest.mark.parametrize("blocked", [1, 50])
def test_an_hour_before_a_full_queue_is_one_look_and_one_timer_each(blocked: int) -> None:
    loop = SimLoop(seed=1)
    store = Counting()

    def spec() -> TaskSpec:
        return TaskSpec(ref=Ref(store.take_ids(1)[0]), handler="h", queue="q", payload=b"{}", entry=Entry(queue_max=1))

    async def main() -> None:
        await store.submit([spec()])
        store.asked.clear()
        entrance = Entrance()
        acks = [ack for _ in range(blocked) for _, ack in entrance.submit(store, [spec()], 3601.0)]
        await asyncio.sleep(1)  # sleep: virtual, until all stand in line
        steps = loop.steps

        await asyncio.sleep(3599)  # sleep: virtual, the hour that is to cost nothing

        assert loop.steps - steps < 5  # those of this test itself
        assert store.asked == {"submit": 1, "wait_room": 1}
        for ack in acks:
            with pytest.raises(QueueFull):
                await ack
        assert entrance.waiting == 0
        assert (await store.ledger()).submitted == 1

    loop.run_until_complete(main())
    assert loop.time() == 3601
    loop.close()

"""A batch of more tasks than its queue may hold goes in in parts, in order, as workers make room."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from sennit import App, QueueFull, Task, ThreadBusy
from sennit.errors import StoreUnavailable, SubmitError
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.task import Ref, TaskSpec
from sennit.store.memory import MemoryStore
from sennit.submit.entrance import Entrance
from sennit.testing.simloop import SimLoop

WAIT_S = 30.0
BOUND = 4


class Fleet:
    """An app that hands in, and beside it a worker with one slot whose bodies end when they may."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = App(url, **{"durability": "normal", "queue_max": BOUND, "admission_timeout_s": WAIT_S, **settings})
        self.worker = App(url, durability="normal", slots=1)
        self.ran: list[int] = []
        self.ready: list[int] = []
        self._may_end = threading.Semaphore(0)
        self.task: Task[..., int] = self.app.task(name="work")(self.work)
        self.worker.task(name="work")(self.work)

    def work(self, n: int) -> int:
        assert self._may_end.acquire(timeout=WAIT_S)
        self.ready.append(self.waiting)
        self.ran.append(n)
        return n

    def let_end(self, n: int) -> None:
        self._may_end.release(n)

    @property
    def waiting(self) -> int:
        """How many tasks wait for a slot."""
        return self.app.store.counts().result().get("default", {}).get(State.READY, 0)

    @property
    def outside(self) -> int:
        """How many tasks stand before the entrance."""
        return self.app._client._entrance.waiting

    @property
    def submitted(self) -> int:
        return self.app.ledger().result().submitted

    def until(self, fact: Callable[[], bool]) -> None:
        tick = threading.Event()
        while not fact():
            tick.wait(0.001)

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


def test_a_sync_map_blocks_until_all_of_it_is_in_and_never_overfills_the_queue(fleet: Fleet) -> None:
    fleet.let_end(50)

    with fleet.worker:
        handles = fleet.task.map(range(50))
        assert (fleet.submitted, fleet.outside) == (50, 0)
        assert handles.result(WAIT_S) == list(range(50))

    assert fleet.ran == list(range(50))
    assert max(fleet.ready) <= BOUND


def test_an_async_map_returns_at_once_and_the_handles_wait(fleet: Fleet) -> None:
    async def main() -> list[int]:
        handles = fleet.task.map(range(50))
        await handles[0].stored()
        assert fleet.outside >= 50 - BOUND
        fleet.let_end(50)
        async with fleet.worker:
            return await handles

    assert asyncio.run(main()) == list(range(50))
    assert fleet.ran == list(range(50))
    assert (max(fleet.ready) <= BOUND, fleet.outside) == (True, 0)


def test_the_process_that_works_can_map_more_than_its_queue_holds(url: str) -> None:
    with App(url, durability="normal", slots=3, queue_max=10, admission_timeout_s=WAIT_S) as app:
        task = app.task(name="double")(lambda n: 2 * n)

        assert task.map(range(1000)).result(WAIT_S) == [2 * n for n in range(1000)]
        assert app._client._entrance._lines == {}


def test_while_a_part_waits_workers_have_the_other_half_of_the_queue(fleet: Fleet) -> None:
    def half_is_waiting(ended: int) -> bool:
        return len(fleet.ran) == ended and fleet.waiting >= BOUND // 2

    async def main() -> None:
        handles = fleet.task.map(range(12))
        async with fleet.worker:
            for ended in range(1, 9):
                fleet.let_end(1)
                await asyncio.to_thread(fleet.until, partial(half_is_waiting, ended))
            fleet.let_end(12)
            await handles

    asyncio.run(main())


def test_another_submit_comes_in_between_the_parts(fleet: Fleet) -> None:
    async def main() -> None:
        handles = fleet.task.map(range(40))
        await handles[0].stored()
        other = fleet.task.submit(99)
        fleet.let_end(100)
        async with fleet.worker:
            assert await other == 99
            await handles

    asyncio.run(main())
    assert fleet.ran.index(99) < 10
    assert [n for n in fleet.ran if n != 99] == list(range(40))


def test_when_no_room_comes_a_sync_map_says_how_much_of_it_is_in(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.05)

    with pytest.raises(QueueFull, match=r"the first 4 tasks of this batch are in") as full:
        fleet.task.map(range(20))

    assert full.value.queue_max == BOUND
    assert (fleet.submitted, fleet.outside) == (BOUND, 0)
    fleet.let_end(20)
    with fleet.worker:
        fleet.until(lambda: len(fleet.ran) == BOUND)
    assert (fleet.ran, fleet.submitted) == ([0, 1, 2, 3], BOUND)


def test_when_no_room_comes_the_handles_of_an_async_map_say_so(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(admission_timeout_s=0.05)

    async def main() -> list[bool]:
        handles = fleet.task.map(range(20))
        stored = await asyncio.gather(*(handle.stored() for handle in handles), return_exceptions=True)
        assert {type(one) for one in stored[BOUND:]} == {QueueFull}
        return [isinstance(one, QueueFull) for one in stored]

    assert asyncio.run(main()) == [False] * 4 + [True] * 16
    assert (fleet.submitted, fleet.outside) == (BOUND, 0)


def test_ctrl_c_takes_back_the_parts_that_are_not_in(fleet: Fleet) -> None:
    def interrupt() -> None:  # a real signal: nothing else reaches an OS thread that waits for a lock
        fleet.until(lambda: fleet.submitted == BOUND)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        fleet.task.map(range(20))
    other.join()

    fleet.until(lambda: fleet.outside == 0)  # a try that was on its way has been answered
    fleet.let_end(20)
    with fleet.worker:
        fleet.until(lambda: len(fleet.ran) == BOUND)
        assert fleet.task.submit(99).result(WAIT_S) == 99
    assert fleet.ran == [0, 1, 2, 3, 99]


def test_a_closed_store_ends_all_parts(fleet: Fleet) -> None:
    async def main() -> None:
        handles = fleet.task.map(range(20))
        await handles[0].stored()
        await asyncio.to_thread(fleet.app.close)
        for handle in handles[BOUND:]:
            with pytest.raises(StoreUnavailable):
                await handle.stored()

    asyncio.run(main())


def test_what_depends_on_a_later_part_waits_for_it(fleet: Fleet) -> None:
    async def main() -> int:
        handles = fleet.task.map(range(20))
        last = fleet.task.options(after=list(handles)).submit(20)
        fleet.let_end(21)
        async with fleet.worker:
            return await last

    assert asyncio.run(main()) == 20
    assert fleet.ran == list(range(21))


def test_calls_of_several_queues_go_in_in_their_order(url: str) -> None:
    with App(url, durability="normal", queues={"a": 1, "b": 1}, queue_max=3, admission_timeout_s=WAIT_S) as app:
        ran: dict[str, list[int]] = {"a": [], "b": []}
        tasks = {queue: app.task(name=queue, queue=queue)(ran[queue].append) for queue in ran}
        calls = [tasks["ab"[n % 2]].call(n) for n in range(60)]

        handles = app.submit_many(calls)

        for handle in handles:
            handle.result(WAIT_S)
        assert all(first.id < second.id for first, second in pairwise(handles))
    assert ran == {"a": list(range(0, 60, 2)), "b": list(range(1, 60, 2))}


# ---------------------------------------------------------------- what stays whole


def test_a_batch_that_fits_stays_one(fleet: Fleet) -> None:
    async def main() -> None:
        fleet.task.map(range(2))
        handles = fleet.task.map(range(2, 2 + BOUND))
        # Refused, and not in part: there would be room for two of it.
        await asyncio.to_thread(fleet.until, lambda: bool(fleet.app._client._entrance._lines))
        assert await asyncio.to_thread(lambda: (fleet.submitted, fleet.outside)) == (2, BOUND)
        fleet.let_end(10)
        async with fleet.worker:
            assert await handles == [2, 3, 4, 5]

    asyncio.run(main())


def test_a_large_batch_that_does_not_wait_is_refused_whole_at_once(fleet: Fleet) -> None:
    for on_full in ("reject", "shed"):
        with pytest.raises(QueueFull):
            fleet.task.options(on_full=on_full).map(range(20))
    assert (fleet.submitted, fleet.outside) == (0, 0)


def test_a_large_batch_of_a_thread_that_may_not_be_busy_is_refused_whole_at_once(fleet: Fleet) -> None:
    """In parts, each would find the thread busy with the one before it, or cancel it."""
    for on_busy in ("reject", "interrupt", "rollback"):
        with pytest.raises(SubmitError, match="20 tasks at once do not fit queue 'default': it takes 4") as refused:
            fleet.task.options(thread_id="t", on_busy=on_busy).map(range(20))
        assert not isinstance(refused.value, ThreadBusy | QueueFull)
    assert (fleet.submitted, fleet.outside) == (0, 0)


# ---------------------------------------------------------------- virtual time


def test_each_part_has_the_time_of_a_submit_of_its_own() -> None:
    loop, store, room = SimLoop(seed=1), MemoryStore(), Entry(queue_max=2)

    def spec(task_id: int) -> TaskSpec:
        return TaskSpec(ref=Ref(task_id), handler="h", queue="q", payload=b"{}", entry=room)

    async def main() -> None:
        entrance, ids = Entrance(), store.take_ids(8)
        parts = entrance.submit(store, [spec(task_id) for task_id in ids], 10.0)
        assert [n for n, _ in parts] == [1] * 8
        for task_id in ids[:4]:
            await asyncio.sleep(9)  # sleep: virtual; the time of one part, nearly
            await store.cancel([task_id])
        stored = await asyncio.gather(*(ack for _, ack in parts), return_exceptions=True)
        assert stored[:6] == [[task_id] for task_id in ids[:6]]
        assert [type(error) for error in stored[6:]] == [QueueFull] * 2
        assert "the first 6 tasks of this batch are in" in str(stored[6])
        assert entrance.waiting == 0

    loop.run_until_complete(main())
    assert loop.time() == 46
    loop.close()

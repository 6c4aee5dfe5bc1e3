"""AsyncRWLock under the seeded loop: against a model written twice over, with cancellation and time-outs at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sennit.errors import LockDeadlock, LockTimeout, UsageError
from sennit.sync import lockorder
from sennit.sync.locks import AsyncRWLock
from sennit.sync.rwqueue import RWQueue, Waiter
from sennit.testing.seeds import run_seeds
from sennit.testing.simloop import SimLoop


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """The lock-order check would raise before the deadlock that is wanted here."""
    with lockorder.checking(on=False):
        yield


@dataclass
class Model:
    """What the lock should do, in the most naive way: one list in the order of arrival."""

    inside: dict[int, bool] = field(default_factory=dict)  # number: writes
    waiting: list[tuple[int, bool]] = field(default_factory=list)

    def arrive(self, number: int, *, write: bool) -> None:
        self.waiting.append((number, write))
        self.settle()

    def gone(self, number: int) -> None:
        self.inside.pop(number, None)
        self.waiting = [one for one in self.waiting if one[0] != number]
        self.settle()

    def settle(self) -> None:
        while self.waiting:
            writers = [one for one in self.waiting if one[1]]
            if writers:
                if self.inside:
                    return
                number, write = writers[0]
            else:
                if any(self.inside.values()):
                    return
                number, write = self.waiting[0]
            self.waiting.remove((number, write))
            self.inside[number] = write


class DeafGiveUp(RWQueue):
    """Wakes nobody when a waiter gives up."""

    def give_up(self, waiter: Waiter) -> list[Waiter]:
        waiter.left = True
        self.timeouts += 1
        (self.writers_waiting.remove if waiter.write else self.readers_waiting.pop)(waiter)
        return []


class AsyncRWLockMachine(RuleBasedStateMachine):
    """Each rule acts at one moment, then everything that can run runs; lock and model must agree."""

    queue: type[RWQueue] = RWQueue

    @initialize(seed=st.integers(0, 1000))
    def make(self, seed: int) -> None:
        self.loop = SimLoop(seed)
        self.lock = AsyncRWLock("books")
        self.lock._queue = self.queue("books", fair=False)
        self.model = Model()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.leave: dict[int, asyncio.Event] = {}
        self.inside: dict[int, bool] = {}
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    async def body(self, number: int, *, write: bool, timeout_s: float | None) -> None:
        try:
            async with self.lock.write(timeout_s) if write else self.lock.read(timeout_s):
                self.inside[number] = write
                await self.leave[number].wait()
        except LockTimeout:
            pass
        finally:
            self.inside.pop(number, None)

    def settle(self, seconds: float = 0.001) -> None:
        """Time goes on only when nothing else can run, so when this returns all has run."""

        async def wait() -> None:
            await asyncio.sleep(seconds)  # sleep: virtual time

        self.loop.run_until_complete(wait())

    def start(self, *, write: bool, timeout_s: float | None) -> None:
        self.number += 1
        number = self.number
        self.leave[number] = asyncio.Event()
        self.tasks[number] = self.loop.create_task(self.body(number, write=write, timeout_s=timeout_s))

    @rule(write=st.booleans())
    def arrive(self, *, write: bool) -> None:
        self.start(write=write, timeout_s=None)
        self.settle()
        self.model.arrive(self.number, write=write)

    @rule(write=st.booleans())
    def arrive_and_time_out(self, *, write: bool) -> None:
        self.start(write=write, timeout_s=1.0)
        self.settle()
        self.model.arrive(self.number, write=write)
        self.settle(1.0)
        if self.number not in self.model.inside:
            self.model.gone(self.number)

    @precondition(lambda self: self.model.inside)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.inside)))
        self.leave[number].set()
        self.settle()
        self.model.gone(number)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number, _write = data.draw(st.sampled_from(self.model.waiting))
        self.tasks[number].cancel()
        self.settle()
        self.model.gone(number)

    @precondition(lambda self: self.model.inside and self.model.waiting)
    @rule(data=st.data())
    def go_and_cancel_at_one_moment(self, data: st.DataObject) -> None:
        """The one may be let in just before its cancellation arrives; then it has to leave again."""
        going = data.draw(st.sampled_from(sorted(self.model.inside)))
        number, _write = data.draw(st.sampled_from(self.model.waiting))
        self.leave[going].set()
        self.tasks[number].cancel()
        self.settle()
        self.model.gone(going)
        self.model.gone(number)

    @invariant()
    def lock_and_model_agree(self) -> None:
        if not hasattr(self, "lock"):
            return
        figures = self.lock.statistics()
        writers = [number for number, write in self.model.inside.items() if write]
        assert self.inside == self.model.inside
        assert figures.readers == len(self.model.inside) - len(writers)
        assert (figures.writer is not None) == bool(writers)
        assert figures.writers_waiting + figures.readers_waiting == len(self.model.waiting)


AsyncRWLockMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestAsyncRWLock = AsyncRWLockMachine.TestCase


def test_a_lock_that_wakes_nobody_when_a_writer_gives_up_is_found_by_the_model() -> None:
    class Mutant(AsyncRWLockMachine):
        queue = DeafGiveUp

    once_is_enough = [Phase.explicit, Phase.generate]  # shrinking it would take half a minute
    Mutant.TestCase.settings = settings(
        AsyncRWLockMachine.TestCase.settings, max_examples=400, phases=once_is_enough, print_blob=False
    )

    with pytest.raises(AssertionError):
        Mutant.TestCase().runTest()


async def crowd(random: Random, _loop: SimLoop) -> None:
    """Readers and writers that come, wait for a while, and are cancelled or not; no writer meets anybody."""
    lock = AsyncRWLock("books")
    inside = {"readers": 0, "writers": 0}

    async def body(*, write: bool, timeout_s: float | None) -> None:
        what = "writers" if write else "readers"
        async with lock.write(timeout_s) if write else lock.read(timeout_s):
            inside[what] += 1
            try:
                await asyncio.sleep(0.01)  # sleep: virtual time
                assert inside["writers"] <= 1
                assert not (inside["writers"] and inside["readers"])
            finally:
                inside[what] -= 1

    tasks = [
        asyncio.create_task(body(write=random.random() < 0.4, timeout_s=random.choice([None, 0.01, 0.03])))
        for _ in range(12)
    ]
    for task in random.sample(tasks, 3):
        await asyncio.sleep(random.choice([0, 0.01]))  # sleep: virtual time
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    for result in results:
        assert result is None or isinstance(result, (LockTimeout, asyncio.CancelledError)), result
    figures = lock.statistics()
    assert (figures.readers, figures.writer, figures.readers_waiting, figures.writers_waiting) == (0, None, 0, 0)


def test_no_schedule_leaves_a_crowd_waiting() -> None:
    explored = run_seeds(crowd, range(150))

    assert explored.seeds == 150


def test_what_would_wait_for_itself_is_refused_at_once() -> None:
    async def main() -> None:
        lock = AsyncRWLock("books")
        async with lock.read():
            async with lock.read():
                pass
            with pytest.raises(UsageError, match="asks to write"):
                async with lock.write():
                    pass
        async with lock.write():
            with pytest.raises(UsageError, match="asks to read"):
                async with lock.read():
                    pass
        assert lock.statistics().reads == 1

    asyncio.run(main())


def test_a_deadlock_of_tasks_is_named() -> None:
    async def main() -> list[str]:
        books, shelves = AsyncRWLock("books"), AsyncRWLock("shelves")
        both = asyncio.Barrier(2)
        named: list[str] = []

        async def take(first: AsyncRWLock, second: AsyncRWLock) -> None:
            async with first.write():
                await both.wait()
                try:
                    async with second.read():
                        pass
                except LockDeadlock as error:
                    named.extend(error.cycle)

        async with asyncio.TaskGroup() as group:
            group.create_task(take(books, shelves), name="first")
            group.create_task(take(shelves, books), name="second")
        return named

    cycle = asyncio.run(main())

    assert len(cycle) == 2
    assert {line.split()[1] for line in cycle} == {"'first'", "'second'"}


def test_a_lock_in_use_on_one_loop_is_refused_on_another_and_free_to_move_when_idle() -> None:
    lock = AsyncRWLock("books")

    async def use() -> None:
        async with lock.read():
            pass

    asyncio.run(use())
    asyncio.run(use())

    async def hold() -> None:
        async with lock.read():
            with pytest.raises(UsageError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, use())

    asyncio.run(hold())


def test_a_time_out_of_zero_only_looks() -> None:
    async def main() -> None:
        lock = AsyncRWLock("books")

        async def look() -> None:
            async with lock.write(timeout_s=0):
                pass

        async with lock.read():
            with pytest.raises(LockTimeout, match="not free within 0 s"):
                await asyncio.create_task(look())
        await asyncio.create_task(look())
        assert lock.statistics().timeouts == 1

    asyncio.run(main())

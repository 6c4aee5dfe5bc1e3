"""Tasks and calls of a provider: claimed only with room, a permit for each call, and nobody who holds one waits for one."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sennit import App, RetryPolicy, step
from sennit.errors import ProviderBusy, StoreFull, UsageError
from sennit.model.lifecycle import State
from sennit.model.provider import CallReport
from sennit.store.memory import MemoryStore
from sennit.submit.limits import Provider
from sennit.sync.ack import Ack
from tests.runtime.provider_facts import WAIT_S, on_a_loop, seen


def fixed(app: App, name: str = "p", parallel: int = 1) -> Provider:
    return app.provider(name, parallel=parallel, strategy="fixed", breaker=None)


# ---------------------------------------------------------------- claimed with room


@on_a_loop
async def test_a_task_is_claimed_only_when_its_provider_has_room_and_holds_no_slot_until_then(any_app: App) -> None:
    provider, go_on = fixed(any_app, parallel=2), asyncio.Event()

    @any_app.task(provider=provider)
    async def call(n: int) -> int:
        await go_on.wait()
        return n

    @any_app.task
    async def plain() -> str:
        return "ran"

    async with any_app:
        handles = call.map(range(5))
        view = await seen(provider, lambda v: (v.in_use, v.ready) == (2, 3))
        assert view.reason == "limit"
        assert await plain.submit() == "ran"
        states = [(await handle.view()).state for handle in handles]
        assert sorted(states) == [*[State.READY] * 3, *[State.RUNNING] * 2]
        assert (await handles[4].view()).reason == "limit p"
        go_on.set()
        assert await handles == [0, 1, 2, 3, 4]
        assert (await seen(provider, lambda v: not v.in_use)).granted == 5


@on_a_loop
async def test_a_body_that_never_asks_for_a_slot_is_one_call_from_its_begin_to_its_end(any_app: App) -> None:
    provider = fixed(any_app)
    running: list[int] = []
    most: list[int] = []

    @any_app.task(provider=provider)
    async def call(n: int) -> None:
        running.append(n)
        most.append(len(running))
        await step(asyncio.sleep, 0)
        running.remove(n)

    async with any_app:
        await call.map(range(4))
        view = await seen(provider, lambda v: not v.in_use)

    assert most == [1, 1, 1, 1]
    assert (view.granted, view.succeeded) == (4, 4)


@on_a_loop
async def test_the_first_slot_of_a_body_is_the_permit_it_was_claimed_with_and_further_calls_take_their_own(
    any_app: App,
) -> None:
    provider = fixed(any_app)

    @any_app.task(provider=provider)
    async def calls() -> list[int]:
        ids = []
        for _ in range(3):
            async with provider.slot() as call:
                ids.append(call.permit.id)
        return ids

    async with any_app:
        handle = calls.submit()
        ids = await handle
        view = await seen(provider, lambda v: not v.in_use)

    assert ids[0] == handle.id
    assert len(set(ids)) == 3
    assert (view.granted, view.succeeded) == (3, 3)


def test_a_sync_body_takes_its_slots_with_with(any_app: App) -> None:
    provider = fixed(any_app)

    @any_app.task(provider=provider)
    def calls() -> str:
        with provider.slot(), pytest.raises(ProviderBusy), provider.slot(wait=False):
            pass
        with provider.slot() as call:
            return call.provider

    with any_app:
        assert calls.submit().result(WAIT_S) == "p"


@on_a_loop
async def test_with_in_async_code_is_refused_since_it_would_block_the_loop(any_app: App) -> None:
    with pytest.raises(UsageError, match="async with"), any_app.limits.slot("p"):
        pass


# ---------------------------------------------------------------- who holds one never waits for one


@on_a_loop
async def test_a_parent_that_waits_for_a_child_of_the_same_provider_lends_it_its_permit(any_app: App) -> None:
    provider = fixed(any_app)

    @any_app.task(provider=provider)
    async def child(n: int) -> int:
        return n

    @any_app.task(provider=provider)
    async def parent() -> int:
        found = await child.submit(1)
        async with provider.slot():
            return found + await child.submit(2)

    @any_app.task(provider=provider)
    async def holds_one_and_waits() -> int:
        return await child.submit(1)

    async with any_app:
        async with asyncio.timeout(WAIT_S):
            assert await holds_one_and_waits.submit() == 1
        assert (await seen(provider, lambda v: not v.in_use)).granted == 3  # parent, child, and the parent again
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(TimeoutError):
                # A call that is under way is the caller's own: sennit cannot end it for him.
                await asyncio.wait_for(parent.submit(), 0.5)
        await any_app.cancel(*[task.id for task in await any_app.store.tasks()])


@on_a_loop
async def test_a_sync_parent_lends_its_permit_as_well(any_app: App) -> None:
    provider = fixed(any_app)

    @any_app.task(provider=provider)
    async def child(n: int) -> int:
        return n

    @any_app.task(provider=provider)
    def parent() -> list[int]:
        return child.map([1, 2, 3]).result(WAIT_S)

    async with any_app, asyncio.timeout(WAIT_S):
        assert await parent.submit() == [1, 2, 3]


@on_a_loop
async def test_parts_of_a_body_that_wait_by_turns_never_keep_a_permit_from_their_children(any_app: App) -> None:
    provider = fixed(any_app)

    @any_app.task(provider=provider)
    async def child(n: int) -> int:
        return n

    async def chain(*numbers: int) -> int:
        return sum([await child.submit(n) for n in numbers])

    @any_app.task(provider=provider)
    async def parent() -> int:
        return sum(await asyncio.gather(chain(1, 2, 3), chain(4, 5), chain(6)))

    async with any_app, asyncio.timeout(WAIT_S):
        assert await parent.submit() == 21


@on_a_loop
async def test_a_body_that_was_claimed_for_a_provider_can_call_one_of_its_models_though_there_is_but_one_permit(
    any_app: App,
) -> None:
    provider = fixed(any_app)

    @any_app.task(provider=provider)
    async def call() -> str:
        async with provider.model("opus").slot() as made:
            return made.model

    async with any_app, asyncio.timeout(WAIT_S):
        assert await call.submit() == "opus"


@on_a_loop
async def test_two_tasks_that_want_the_provider_of_the_other_do_not_wait_for_each_other_for_ever(any_app: App) -> None:
    a, b = fixed(any_app, "a"), fixed(any_app, "b")
    both_run = asyncio.Barrier(2)

    @any_app.task
    async def call(mine: str, other: str) -> None:
        await both_run.wait()
        for name in (other, mine):
            async with any_app.limits.slot(name):
                await step(asyncio.sleep, 0)

    async with any_app, asyncio.timeout(WAIT_S):
        first = call.options(provider=a).submit("a", "b")
        second = call.options(provider=b).submit("b", "a")
        await first
        await second


@on_a_loop
async def test_a_body_that_waits_in_line_holds_no_slot(url: str) -> None:
    app = App(url, durability="normal", slots=1)
    provider = fixed(app)

    @app.task
    async def call() -> str:
        async with provider.slot():
            return "called"

    @app.task
    async def plain() -> str:
        return "ran"

    async with app:
        async with provider.slot():
            handle = call.submit()
            await seen(provider, lambda v: v.waiting == 1)
            assert await asyncio.wait_for(plain.submit(), WAIT_S) == "ran"
        assert await handle == "called"


@on_a_loop
async def test_an_attempt_whose_time_runs_out_in_line_is_given_back_and_has_not_failed(any_app: App) -> None:
    provider = fixed(any_app)
    begun: list[int] = []

    @any_app.task(timeout_s=0.05)
    async def call() -> str:
        begun.append(1)
        async with provider.slot():
            return "called"

    async with any_app:
        async with provider.slot():
            handle = call.submit()
            await seen(provider, lambda v: v.waiting == 1 and len(begun) == 3)
        assert await handle == "called"
        view = await handle.view()

    assert (view.failures, view.crashes) == (0, 0)


# ---------------------------------------------------------------- outside of bodies


@on_a_loop
async def test_a_call_that_is_cancelled_while_it_waits_leaves_the_line(any_app: App) -> None:
    provider = fixed(any_app)

    async def call() -> None:
        async with provider.slot():
            raise AssertionError("it was cancelled")

    async with provider.slot():
        waiting = asyncio.create_task(call())
        await seen(provider, lambda v: v.waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await seen(provider, lambda v: v.waiting == 0)
    assert (await seen(provider, lambda v: not v.in_use)).granted == 1


@on_a_loop
async def test_a_permit_that_comes_in_the_moment_of_a_cancellation_is_given_back(any_app: App) -> None:
    provider = fixed(any_app)
    held = provider.slot()
    await held.__aenter__()
    waiting = [asyncio.create_task(provider.slot().__aenter__()) for _ in range(20)]
    await seen(provider, lambda v: v.waiting == 20)

    await held.__aexit__(None, None, None)
    for one in waiting:
        one.cancel()
    ends = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    view = await seen(provider, lambda v: not v.in_use and not v.waiting)
    assert view.in_use == 0
    async with provider.slot(wait=False):
        pass


def test_calls_of_many_os_threads_are_never_more_than_the_limit(any_app: App) -> None:
    provider = fixed(any_app, parallel=3)
    lock, all_at_once = threading.Lock(), threading.Event()
    running, most = 0, 0

    def call() -> None:
        nonlocal running, most
        for _ in range(5):
            with provider.slot():
                with lock:
                    running += 1
                    most = max(most, running)
                    if running == 3:
                        all_at_once.set()
                all_at_once.wait(WAIT_S)
                with lock:
                    running -= 1

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert most == 3
    while (view := provider.view().result()[0]).in_use:
        pass  # who leaves a slot does not wait for the commit
    assert (view.waiting, view.granted, view.succeeded) == (0, 40, 40)


@on_a_loop
async def test_one_who_does_not_want_to_wait_is_told_when_to_come_back(any_app: App) -> None:
    provider = fixed(any_app)
    await provider.pause(60)

    with pytest.raises(ProviderBusy) as busy:
        async with provider.slot(wait=False):
            pass

    assert busy.value.reason == "pause"
    assert 50 < busy.value.retry_after_s <= 61


@on_a_loop
async def test_a_slot_that_was_used_is_not_used_again(any_app: App) -> None:
    slot = fixed(any_app).slot()
    async with slot:
        pass

    with pytest.raises(UsageError, match="twice"):
        await slot.__aenter__()


class FullDisk(MemoryStore):
    """Cannot take a permit back, as often as `failures` says."""

    failures = 0

    def return_permit(self, permit_id: int, report: CallReport | None = None) -> Ack[bool]:
        if self.failures:
            self.failures -= 1
            return Ack.failed_with(StoreFull("no room left"))
        return super().return_permit(permit_id, report)


@on_a_loop
async def test_a_permit_that_the_store_could_not_take_back_is_returned_as_soon_as_it_can() -> None:
    store = FullDisk()
    app = App("memory://")
    app._store = store
    provider = fixed(app)
    store.failures = 2

    async with provider.slot():
        pass
    view = await seen(provider, lambda _: True)
    assert (view.in_use, store.failures) == (1, 1)

    async with provider.slot() as call:
        assert call.permit.reason == "limit"
    assert store.failures == 0


@on_a_loop
async def test_the_permit_of_an_attempt_that_is_over_is_not_returned_for_the_next_one() -> None:
    store = FullDisk()
    app = App("memory://")
    app._store = store
    provider = fixed(app)
    attempts: list[int] = []

    @app.task(provider=provider, retries=RetryPolicy(retries=1, delay_s=0.0))
    async def work() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            store.failures = 1
            raise ValueError("again")
        await asyncio.sleep(1.2)  # past the next try of what could not be returned
        return (await provider.view())[0].in_use

    async with app:
        assert await work.submit() == 1

    assert (len(attempts), store.failures) == (2, 0)

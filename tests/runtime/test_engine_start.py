"""A start that fails half-way leaves nothing behind; a worker that was taken for dead works again."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sennit import App
from sennit.errors import StoreFull
from sennit.model.lifecycle import State
from sennit.sync.ack import Ack

WAIT_S = 30.0


async def app_that_cannot_start(app: App, *, fails: str, begun: asyncio.Event) -> None:
    """Start an app whose disk is full when its schedule is stored, and full for the call `fails`, too."""
    store: Any = app.store
    full: Callable[..., Ack[Any]] = lambda *_: Ack.failed_with(StoreFull("no room left"))  # noqa: E731 - two names of it
    remembered: Ack[int] = Ack()
    store.put_schedule = lambda *_: remembered
    if fails:
        setattr(store, fails, full)
    start = asyncio.create_task(app.start())
    await asyncio.wait_for(begun.wait(), WAIT_S)  # it works already
    remembered.reject(StoreFull("no room left"))
    with pytest.raises(StoreFull):
        await start
    for name in filter(None, ("put_schedule", fails)):
        delattr(store, name)


@pytest.mark.parametrize("fails", ["", "unwant", "leave"])
def test_a_start_that_fails_half_way_leaves_nothing_that_works(app: App, fails: str) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        attempts: list[int] = []

        @app.task
        async def work(n: int) -> int:
            attempts.append(n)
            begun.set()
            if len(attempts) == 1:
                await asyncio.Event().wait()
            return n

        @app.task
        async def tick() -> None:
            """Do nothing, every new year."""

        app.cron("0 0 1 1 *", tick)
        handlers = list(logging.getLogger().handlers)
        first = work.submit(1)
        await first.stored()

        await app_that_cannot_start(app, fails=fails, begun=begun)

        assert [w.id for w in await app.store.workers() if w.role == "worker"] == [] or fails == "leave"
        assert [thread.name for thread in threading.enumerate() if thread.name == "sennit-heart"] == []
        assert logging.getLogger().handlers == handlers
        second = work.submit(2)
        await second.stored()
        assert await app.store.fire() is None or fails == "leave"  # a round through the store: an order would be served
        handed_back, fresh = [await app.store.task(handle.id) for handle in (first, second)]
        assert (fresh.state, fresh.attempt) == (State.READY, 0)
        if fails != "unwant":  # then the order stood until it left, and took the task once more
            assert (handed_back.state, handed_back.crashes) == (State.READY, 0)
            assert attempts == [1]

        if fails == "leave":  # its row is still there, and so the store object is taken
            await app.store.leave()
        async with app:
            assert [*await asyncio.gather(first, second)] == [1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("submitted", ["while it is away", "when it is back"])
def test_a_worker_that_was_taken_for_dead_and_is_free_again_hears_of_a_task(url: str, submitted: str) -> None:
    app = App(url, durability="normal", lease_s=1000.0)  # its heart does not beat in this test
    begun, release = threading.Event(), threading.Event()

    @app.task
    def stuck() -> None:
        begun.set()
        release.wait(WAIT_S)

    @app.task(queue="sums")  # not the queue that the end of the other raises an order for
    def add(x: int, y: int) -> int:
        return x + y

    with app:
        lost = stuck.submit()
        assert begun.wait(WAIT_S)
        other = App(url, durability="normal")
        (worker_id,) = [w.id for w in other.store.workers().wait() if w.role == "worker"]
        assert other.store.rescue(worker_id).wait() == 1
        assert other.cancel(lost.id).wait() == [True]

        early = other.submit_many([add.call(1, 2)]) if submitted == "while it is away" else []
        release.set()
        wait_until(lambda: app.ledger().wait().refused == 1, "a refused end")
        handles = early or other.submit_many([add.call(1, 2)])

        assert handles[0].result(WAIT_S) == 3
        other.close()


def wait_until(fact: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    tick = threading.Event()
    for _ in range(int(WAIT_S * 1000)):
        if fact():
            return
        tick.wait(0.001)
    raise AssertionError(f"{what} did not come about in {WAIT_S:g} s")

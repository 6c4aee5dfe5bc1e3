"""A body that waits for children lends its one slot once, however it waits, and has it back afterwards."""

from __future__ import annotations

import asyncio

from sennit import App
from sennit.submit.handle import Handle


def one_slot() -> App:
    return App("memory://", queues={"default": 1})


def test_asking_again_for_a_result_that_is_there_costs_no_slot() -> None:
    app = one_slot()

    @app.task
    def child(n: int) -> int:
        return n

    @app.task
    def parent(n: int) -> int:
        handle = child.submit(n)
        return handle.result() + handle.result() + handle.result() + child.submit(100).result()

    with app.testing() as t:
        parents = parent.map(range(4))
        ledger = t.drain()

        assert ledger.live == 0
        assert parents.result() == [100, 103, 106, 109]


def test_waiting_for_many_at_once_lends_one_slot() -> None:
    app = one_slot()
    running: set[int] = set()
    most = 0

    @app.task
    async def child(n: int) -> int:
        nonlocal most
        running.add(n)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.remove(n)
        return n

    @app.task
    async def gathers() -> int:
        return sum(await asyncio.gather(*(child.submit(n) for n in range(5))))

    @app.task
    async def takes_them_as_they_come() -> int:
        return sum([await handle async for handle in child.map(range(5, 10)).as_completed()])

    with app.testing() as t:
        handles: list[Handle[int]] = [gathers.submit(), takes_them_as_they_come.submit()]
        t.drain()

        assert [handle.result() for handle in handles] == [10, 35]
        assert most == 1

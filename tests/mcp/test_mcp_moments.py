"""A task comes in the very moment in which its call gives up: what the store has claimed is held back, and let go in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sennit.integrations.mcp.door import Answer, Door
from sennit.model.task import Claimed
from tests.mcp.conftest import OpenDoor
from tests.mcp.test_mcp_claims import said, until_waiting

Call = asyncio.Task[Answer]


@asynccontextmanager
async def served(open_door: OpenDoor, wait_s: float = 50) -> AsyncIterator[tuple[Door, Call, Callable[[], None]]]:
    """Yield a call that waits, and what tells the desk of the task that was claimed for it; afterwards it is free again."""
    async with open_door() as door:
        desk, came = door.desk, list[Claimed]()
        hear = desk.on_claimed
        desk.on_claimed = came.extend  # type: ignore[method-assign, assignment]
        client = door.client("one")
        call: Call = asyncio.create_task(door.call(client, "task_claim", {"wait_s": wait_s}))
        await until_waiting(door, 1)
        task = (await said(door, door.crowd, "task_create", title="one"))["task"]
        while not came:
            await door.store.counts()
        desk.on_claimed = hear  # type: ignore[method-assign]
        yield door, call, lambda: hear(came)
        assert not client.held
        assert desk.statistics().waiting == 0
        again: dict[str, Any] = await said(door, door.client("other"), "task_claim", wait_s=50)
        assert (again["task"], again["attempt"], again["failures"]) == (task, 2, 0)
        assert await door.store.verify() == []


def test_after_the_call_was_cancelled_it_is_given_back(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with served(open_door) as (door, call, tell):
            call.cancel()
            await asyncio.wait({call})
            tell()
            assert door.desk.statistics().surplus == 1

    asyncio.run(main())


def test_when_the_call_is_cancelled_before_it_sees_its_claim_that_is_given_back(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with served(open_door) as (_, call, tell):
            tell()
            call.cancel()
            await asyncio.wait({call})
            assert call.cancelled()

    asyncio.run(main())


def test_when_the_time_is_over_before_the_call_sees_its_claim_it_gets_it_all_the_same(open_door: OpenDoor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(open_door, wait_s=50) as (door, call, tell):
            # Both timers are due in one turn of the loop, the telling first; the call runs in the next one.
            loop.call_later(1, tell)
            now = loop.time
            loop.time = lambda: now() + 100  # type: ignore[method-assign]
            answer = await call
            loop.time = now  # type: ignore[method-assign]
            assert answer.data["attempt"] == 1
            await said(door, door.crowd, "task_fail", claim=answer.data["claim"], error="enough", give_back=True)

    asyncio.run(main())

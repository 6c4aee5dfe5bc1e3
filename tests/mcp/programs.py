"""Programs that the cradle forks."""

from __future__ import annotations

import asyncio
import os

from mcp import Client

from tests.mcp.wire import call, over


def claims_and_stays() -> int:
    """Be a client at descriptors 3 (to the server) and 4 (from it): claim a task, say its token on stdout, and stay."""

    async def main() -> None:
        async with Client(over(3, 4), mode="legacy") as client:
            claim = await call(client, "task_claim", wait_s=50)
            os.write(1, f"{claim['claim']}\n".encode())
            await asyncio.Event().wait()

    asyncio.run(main())
    return 0

"""One worker process of the demo: `python -m sennit.cli.demo.workermain URL`.

It is `sennit worker` with one thing more: it ends when its stdin does, so that no worker outlives its director,
even one that was killed with -9.
"""

from __future__ import annotations

import asyncio
import sys

from sennit.cli.demo.fleet import app


async def work_until_stdin_ends() -> None:
    """Serve the app's store until the other end of stdin is closed."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    async with app:
        await over.wait()
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


if __name__ == "__main__":
    app.use(sys.argv[1])
    asyncio.run(work_until_stdin_ends())

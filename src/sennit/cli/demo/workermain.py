"""One worker process of the demo.

It is `sennit worker` with one thing more: it ends when its line does, so that no worker outlives its director,
even one that was killed with -9.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile

import sennit.store.sqlite  # noqa: F401 - the app would import it when it opens the store, in each process anew
from sennit.cli.demo.fleet import app


def work(url: str, line: socket.socket) -> None:
    """Serve the store at `url` until the other end of `line` is closed."""
    tempfile.tempdir = None  # it was looked up in the director; ours may be another one
    app.use(url)
    asyncio.run(_work_until_hung_up(line))


async def _work_until_hung_up(line: socket.socket) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(line.fileno(), over.set)
    async with app:
        await over.wait()
        asyncio.get_running_loop().remove_reader(line.fileno())

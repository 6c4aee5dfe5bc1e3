"""Runs the server on a store, from opening to giving everything back, whatever ends it.

the client closes stdin ─┐
SIGTERM, SIGINT ─────────┼─► no more calls ─► claims given back ─► left ─► closed
the store fails ─────────┘
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from sennit.errors import SettingsError
from sennit.integrations.mcp.door import Door, Options
from sennit.model.retry import RetryPolicy
from sennit.model.settings import Settings
from sennit.store.protocol import Store

if TYPE_CHECKING:
    from sennit.integrations.mcp.http import Address
    from sennit.integrations.mcp.stdio import Wire


def need_mcp() -> None:
    """See to it that the SDK is there.

    Raises:
        SettingsError: the extra is not installed.
    """
    try:
        import mcp  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "mcp":
            raise
        raise SettingsError(
            "the MCP server needs the extra `mcp`",
            why="the official SDK of the Model Context Protocol is not installed",
            fix="pip install 'sennit[mcp]'",
        ) from error


def run(
    open_store: Callable[[], Store],
    settings: Settings,
    options: Options,
    *,
    over: Wire | Address,
    policy: Callable[[str], RetryPolicy] = lambda _: RetryPolicy(),
    listening: Callable[[str], None] = lambda _: None,
) -> int:
    """Serve until the client has gone (stdio), or a signal comes; return its number, 0 without one.

    Args:
        over: the wire of the one client, or where to listen.
        listening: called with the URL once it listens, or with "" once it has joined the store.

    Raises:
        StoreError: the store cannot be opened.
        OSError: the port is taken.
    """
    with closing(open_store()) as store:
        door = partial(Door, store, settings, options, policy=policy)
        return asyncio.run(_run(door, over, listening))


async def _run(make_door: Callable[[], Door], over: Wire | Address, listening: Callable[[str], None]) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, partial(_stop, stopped, number))
    async with make_door() as door:
        serving = asyncio.create_task(_serve(door, over, listening))
        waits: set[asyncio.Future[Any]] = {serving, stopped}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            serving.cancel()
            await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()
    return stopped.result() if stopped.done() else 0


def _stop(stopped: asyncio.Future[int], number: int) -> None:
    if not stopped.done():
        stopped.set_result(number)


async def _serve(door: Door, over: Wire | Address, listening: Callable[[str], None]) -> None:
    from sennit.integrations.mcp import http, stdio  # noqa: PLC0415 - the SDK is an extra
    from sennit.integrations.mcp.server import make_server  # noqa: PLC0415

    if isinstance(over, stdio.Wire):
        listening("")
        server = make_server(door, only=door.client("stdio"))
        await stdio.serve(server, over, message_bytes_max=door.message_bytes_max)
        return
    await http.serve(
        make_server(door),
        over,
        message_bytes_max=door.message_bytes_max,
        idle_s=max(door.options.claim_lease_s, http.IDLE_S_MIN),
        listening=listening,
    )

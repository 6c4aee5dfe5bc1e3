"""The official client at one end of two pipes, and what tests say through it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.shared.message import SessionMessage

from tests.crash.nursery import Forked

# Longer than any answer takes on a machine that is far too busy: a stop for what hangs.
PATIENCE_S = 50.0


@dataclass
class Wired:
    """A server process at the other end of two pipes.

    Attributes:
        said: each line of its stdout, as it came.
    """

    process: Forked
    stdin: int
    stdout: int
    stderr: Path
    said: list[bytes] = field(default_factory=list)

    def client(self, mode: str = "auto") -> Client:
        """Return a client of it, to be entered."""
        return Client(over(self.stdin, self.stdout, self.said), mode=mode)

    def hang_up(self) -> None:
        """Close its stdin, as a client does that has gone."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def ended(self) -> int:
        """Close its stdin and wait for its end; return its exit code."""
        self.hang_up()
        return self.process.wait()

    def go(self) -> None:
        """Close both pipes, as a client does that was killed."""
        self.hang_up()
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.go()


@asynccontextmanager
async def over(write: int, read: int, said: list[bytes] | None = None) -> AsyncIterator[TransportStreams]:
    """Be the transport of a client. The descriptors are left open."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    incoming, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(read), "rb", 0)
    )
    into, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    answers, out = anyio.create_memory_object_stream[SessionMessage](0)

    async def hear() -> None:
        async with into:
            async for line in reader:
                if said is not None:
                    said.append(line)
                await into.send(SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False)))

    async def say() -> None:
        async with out:
            async for message in out:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                with suppress(BrokenPipeError):
                    os.write(write, text.encode() + b"\n")

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(hear)
            group.start_soon(say)
            yield messages, answers
            group.cancel_scope.cancel()
    finally:
        incoming.close()


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return what a tool answers, which is no error."""
    result = await asyncio.wait_for(client.call_tool(tool, arguments), PATIENCE_S)
    assert not result.is_error, result.content
    data = result.structured_content
    assert isinstance(data, dict)
    (text,) = result.content
    assert isinstance(text, types.TextContent)
    assert json.loads(text.text) == data, "clients that read text only get the same"
    return data


async def refused(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return why a tool refuses."""
    result = await asyncio.wait_for(client.call_tool(tool, arguments), PATIENCE_S)
    assert result.is_error, result.structured_content
    assert isinstance(result.structured_content, dict)
    error: dict[str, Any] = result.structured_content["error"]
    return error

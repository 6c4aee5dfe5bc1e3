"""MCP over this process's stdin and stdout, of which the protocol has the only copies.

    fd 0 ─► Wire.read  ─┐                    fd 0 becomes /dev/null
                        ├─► one client       fd 1 becomes fd 2: whatever prints goes to stderr
    fd 1 ◄─ Wire.write ─┘

`Wire.take()` comes before anything is imported that might print. A line that is too long is answered with an error and
skipped, and nothing is read while answers are not taken: a client that floods has its own memory to fill.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.server import Server
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

_log = logging.getLogger("sennit.mcp")

# So many answers may wait for the client to read them before nothing more is read from it.
_UNREAD_MAX: Final = 64
# A client that has closed its end may still read what it was told before that.
_LAST_WORDS_S: Final = 1.0
_CHUNK_BYTES: Final = 64 * 1024
"""What a pipe of Linux holds."""

Messages = MemoryObjectReceiveStream[SessionMessage | Exception]
Answers = MemoryObjectSendStream[SessionMessage]


@dataclass(frozen=True, slots=True)
class Wire:
    """The two descriptors of the protocol."""

    read: int
    write: int

    @classmethod
    def take(cls) -> Self:
        """Take stdin and stdout for the protocol; from now on nothing else reads or writes there."""
        read, write = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        return cls(read, write)


async def serve(server: Server[Any], wire: Wire, *, message_bytes_max: int) -> None:
    """Serve one client until it closes its end."""
    into, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    answers, out = anyio.create_memory_object_stream[SessionMessage](_UNREAD_MAX)
    link = _Link(wire, message_bytes_max=message_bytes_max)
    async with anyio.create_task_group() as group:
        group.start_soon(link.read, into, answers)
        group.start_soon(link.write, out)
        await server.run(messages, answers, server.create_initialization_options())
        with anyio.move_on_after(_LAST_WORDS_S):
            await link.written.wait()
        group.cancel_scope.cancel()


class _Link:
    """Lines in, lines out."""

    def __init__(self, wire: Wire, *, message_bytes_max: int) -> None:
        self._in = _Pipe(wire.read)
        self._out = _Pipe(wire.write)
        self._bytes_max = message_bytes_max
        self._taken = asyncio.Event()
        self.written = asyncio.Event()

    async def read(self, into: MemoryObjectSendStream[SessionMessage | Exception], answers: Answers) -> None:
        """Hand on each message until the client closes its end."""
        async with into:
            line = bytearray()
            is_too_long = False
            while chunk := await self._in.read():
                *ends, rest = chunk.split(b"\n")
                for end in ends:
                    line += end
                    if is_too_long or len(line) > self._bytes_max:
                        await answers.send(_too_long(self._bytes_max))
                    elif line.strip():
                        await self._hand_on(bytes(line), into, answers)
                    line.clear()
                    is_too_long = False
                line += rest
                if len(line) > self._bytes_max:
                    line.clear()
                    is_too_long = True

    async def _hand_on(
        self, line: bytes, into: MemoryObjectSendStream[SessionMessage | Exception], answers: Answers
    ) -> None:
        while answers.statistics().current_buffer_used >= _UNREAD_MAX // 2:
            self._taken.clear()
            await self._taken.wait()
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError as error:
            await answers.send(_unreadable())
            _log.warning("a message of the client cannot be read: %s", error.errors(include_url=False)[:1])
            return
        await into.send(SessionMessage(message))

    async def write(self, out: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Write each answer; when nobody takes them any more, drop what is left."""
        async with out:
            async for answer in out:
                data = answer.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                with suppress(BrokenPipeError, ConnectionResetError):  # the end of its stdin says that it has gone
                    await self._out.write(data)
                self._taken.set()
        self.written.set()


class _Pipe:
    """One descriptor, used without blocking the loop: pipes, sockets and terminals wait for it; files never block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Return what is there, as soon as there is something; nothing at the end."""
        await self._ready(self._loop.add_reader, self._loop.remove_reader)
        with suppress(ConnectionResetError):
            return os.read(self._descriptor, _CHUNK_BYTES)
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        left = memoryview(data)
        while left:
            await self._ready(self._loop.add_writer, self._loop.remove_writer)
            # No more than surely fits: the descriptor stays as it is, for it may be shared with who started us.
            left = left[os.write(self._descriptor, left[:_PIPE_BUF]) :]

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], object]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        try:
            add(self._descriptor, partial(_set, ready))
        except PermissionError:  # epoll takes no files, and they need no waiting
            return
        try:
            await ready
        finally:
            remove(self._descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


# A pipe that is writable takes this much without blocking. Source: POSIX, write(); pipe(7).
_PIPE_BUF: Final = 4096


def _too_long(bytes_max: int) -> SessionMessage:
    what = f"a message has at most {bytes_max} bytes here; this one was not read"
    return _said(types.INVALID_REQUEST, what)


def _unreadable() -> SessionMessage:
    return _said(types.PARSE_ERROR, "this is no JSON-RPC message")


def _said(code: int, what: str) -> SessionMessage:
    return SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=None, error=types.ErrorData(code=code, message=what)))

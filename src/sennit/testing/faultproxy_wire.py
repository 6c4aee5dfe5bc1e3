"""The inside of `faultproxy`: one connection through the proxy, and the two pipes it is made of.

    client ─► fill ─► [pieces] ─► empty ─► server        one `Pipe` per direction; `Way` holds the faults of all of them

Everything here runs on the proxy's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Connection", "Pipe", "Way"]

HELD_BYTES_MAX: Final = 1 << 20  # per connection and direction; more stays with the sender, which then waits
PIECE_BYTES: Final = 1 << 16
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST instead of FIN
NO_RESET: Final = struct.pack("ii", 0, 0)


@dataclass(slots=True)
class Way:
    """One direction of all connections: its faults, and what has passed."""

    delay_s: float = 0.0
    dropped: bool = False
    passed_bytes: int = 0


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of one connection: pieces that came in and have not been passed on."""

    way: Way
    on_change: Callable[[], None]
    pieces: deque[tuple[float, bytes]] = field(default_factory=deque)  # when it came (loop time, s), and the bytes
    held_bytes: int = 0
    ended: bool = False  # the sender has closed, or broken, its side
    broken: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def fill(self, reader: asyncio.StreamReader) -> None:
        """Take in what comes, until its end."""
        loop = asyncio.get_running_loop()
        try:
            while piece := await reader.read(PIECE_BYTES):
                self.pieces.append((loop.time(), piece))
                self.held_bytes += len(piece)
                self._tell()
                while self.held_bytes > HELD_BYTES_MAX:
                    await self.hear()
        except OSError:
            self.broken = True
        self.ended = True
        self._tell()

    async def empty(self, writer: asyncio.StreamWriter, back: Pipe) -> None:
        """Pass on what is due, then the end.

        Args:
            back: the other direction; a receiver that broke the connection tells the sender that way.

        Raises:
            ConnectionResetError: the sender broke the connection, or the receiver did.
        """
        try:
            await self._pass_on(writer)
        except OSError:
            while back.way.dropped:
                await back.hear()
            raise
        if self.broken:
            raise ConnectionResetError
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass_on(self, writer: asyncio.StreamWriter) -> None:
        """Pass on what is due until all is passed on and nothing comes any more."""
        loop = asyncio.get_running_loop()
        while self.pieces or not self.ended or self.way.dropped:
            if self.way.dropped or not self.pieces:
                await self.hear()
                continue
            came_s, piece = self.pieces[0]
            early_s = came_s + self.way.delay_s - loop.time()
            if early_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(early_s):
                        await self.hear()
                continue
            self.pieces.popleft()
            self.held_bytes -= len(piece)
            writer.write(piece)
            await writer.drain()
            self.way.passed_bytes += len(piece)
            self._tell()

    async def hear(self) -> None:
        """Wait for the next news: a piece came or went, the end came, a fault was turned."""
        self.news.clear()
        await self.news.wait()

    def look_again(self) -> None:
        """Wake all that wait for news."""
        self.news.set()

    def _tell(self) -> None:
        self.news.set()
        self.on_change()


class Connection:
    """One client's connection and ours to the server."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_server: Pipe, to_client: Pipe
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.to_server = to_server
        self.to_client = to_client
        self._work: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()

    async def run(self, target: tuple[str, int]) -> None:
        """Forward until both sides have ended, or one has broken the connection; then the other one sees that too.

        The work has a task of its own, for `abort` to cancel: asyncio calls a cancelled handler an error.
        """
        self._work = asyncio.create_task(self._forward(target))
        try:
            await asyncio.wait([self._work])
            if self._work.cancelled() or self._work.exception() is not None:
                _reset_on_close(self._writer)
                self._writer.transport.abort()
            await _closed(self._writer)
        finally:
            self._work.cancel()
            self.ended.set()
        if not self._work.cancelled() and (error := self._work.exception()) is not None:
            _raise_unless_broken(error)

    def abort(self) -> None:
        """Break it on both sides."""
        if self._work is not None:
            self._work.cancel()

    def look_again(self) -> None:
        """A fault was turned."""
        self.to_server.look_again()
        self.to_client.look_again()

    async def _forward(self, target: tuple[str, int]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.to_server.fill(self._reader))
            while self.to_server.way.dropped:
                if self.to_server.ended:
                    raise ConnectionResetError  # the client has given up before the server could know of it
                await self.to_server.hear()
            # Whatever ends us before the last line, also while it connects, is seen by the server as a reset.
            with socket.socket() as to_server:
                to_server.setblocking(False)
                to_server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                await asyncio.get_running_loop().sock_connect(to_server, target)
                # asyncio does that by itself only for sockets it has made; without it an answer takes 40 ms now and then.
                to_server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                reader, writer = await asyncio.open_connection(sock=to_server)
                try:
                    await self._exchange(reader, writer)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_RESET)
                finally:
                    writer.transport.abort()
                    await _closed(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in (self._writer, writer):
            each.transport.set_write_buffer_limits(high=0)  # `drain` waits until the kernel has it: passed is passed
        async with asyncio.TaskGroup() as group:
            group.create_task(self.to_client.fill(reader))
            group.create_task(self.to_server.empty(writer, self.to_client))
            group.create_task(self.to_client.empty(self._writer, self.to_server))


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # how it ended was seen by its reader
        await writer.wait_closed()


def _raise_unless_broken(error: BaseException) -> None:
    """Broken connections are what a proxy is there for; anything else is a fault of ours."""
    rest = error.split(OSError)[1] if isinstance(error, BaseExceptionGroup) else error
    if rest is not None and not isinstance(rest, OSError):
        raise rest

"""One worker process as its parent sees it: a pipe to talk, a sentinel that tells of its end, and a way to kill it.

Nothing here blocks the loop. The pipe is an asyncio stream; the sentinel is a descriptor that becomes readable when the
process has ended, even if a process that the body forked keeps the pipe open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

import msgspec

from sennit.errors import WorkerCrashed
from sennit.execute import process_child
from sennit.execute.process_child import HEADER, Answer, Failure, Ready, Request
from sennit.sync.forks import drop_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

__all__ = ["ChildProcess"]

_REPLIES = msgspec.msgpack.Decoder(Ready | Answer | Failure)


class ChildProcess:
    """One worker process as its parent sees it."""

    def __init__(
        self,
        process: BaseProcess,
        jobs: socket.socket,
        life: Connection,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_exit: Callable[[ChildProcess], None],
    ) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_doomed = False
        self._process = process
        self._pid = cast("int", process.pid)
        self._leads_group = False
        self._killed_by_request = False
        self._jobs = jobs
        self._life = life
        self._reader, self._writer = streams
        self._on_exit = on_exit
        asyncio.get_running_loop().add_reader(process.sentinel, self._sentinel_fired)
        drop_after_fork(self)

    @classmethod
    async def start(
        cls,
        context: ForkServerContext | SpawnContext,
        runner: str,
        memory_bytes_max: int | None,
        on_exit: Callable[[ChildProcess], None],
    ) -> Self:
        """Start a process and wait until it is ready.

        Raises:
            WorkerCrashed: it ended first.
            OSError: it cannot be started.
        """
        # In an OS thread: the first start also starts the fork server and waits for its imports.
        process, jobs, life = await asyncio.to_thread(_spawn, context, runner, memory_bytes_max)
        child = cls(process, jobs, life, await asyncio.open_connection(sock=jobs), on_exit)
        try:
            await child._receive()
        except WorkerCrashed as error:
            raise WorkerCrashed(error.exitcode, starting=True) from None
        child._leads_group = True
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    async def ask(self, request: Request) -> Answer | Failure:
        """Send a job and wait for what becomes of it.

        Raises:
            WorkerCrashed: the process ended without a word.
        """
        message = msgspec.msgpack.encode(request)
        self._writer.write(HEADER.pack(len(message)))
        self._writer.write(message)
        reply = await self._receive()
        if isinstance(reply, Ready):
            raise TypeError("a worker process said twice that it is ready")
        return reply

    def kill(self, *, by_request: bool = False) -> None:
        """Kill the process, and the group that it leads. Harmless when it has ended."""
        if self.exited.done() or self._process.exitcode is not None:
            return
        self.is_doomed = True
        self._killed_by_request |= by_request
        with suppress(ProcessLookupError):
            if self._leads_group:
                os.killpg(self._pid, signal.SIGKILL)
            else:
                os.kill(self._pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """Close the pipe: an idle process ends by itself."""
        self.is_doomed = True
        self._writer.close()

    async def wait_closed(self) -> None:
        """Return when the process has ended and the pipe is closed."""
        await asyncio.shield(self.exited)
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def drop_after_fork(self) -> None:
        """In a forked child: drop the ends of the pipes, or the worker process would outlive its parent."""
        self._jobs.close()
        self._life.close()

    async def _receive(self) -> Ready | Answer | Failure:
        try:
            (size_bytes,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            reply: Ready | Answer | Failure = _REPLIES.decode(await self._reader.readexactly(size_bytes))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.kill()  # Most likely it is dead already; if it only closed its pipe it is of no use any more.
            exitcode = await asyncio.shield(self.exited)
            raise WorkerCrashed(exitcode, by_request=self._killed_by_request) from None
        return reply

    def _sentinel_fired(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        if self._process.exitcode is None:  # A spawned process: its pipe ends a moment before it does.
            loop.run_in_executor(None, self._process.join).add_done_callback(lambda _: self._settle())
        else:
            self._settle()

    def _settle(self) -> None:
        """The process has ended: note how, and let the reader come to the end of what it still said."""
        self.is_doomed = True
        self.exited.set_result(cast("int", self._process.exitcode))
        self._process.close()
        self._life.close()
        with suppress(OSError):  # Closed by us before.
            # Not close: what the process wrote last is still to be read. A process that the body has forked may hold
            # the other end open, so the end of the pipe does not come by itself.
            self._jobs.shutdown(socket.SHUT_RD)
        self._on_exit(self)


def _spawn(
    context: ForkServerContext | SpawnContext, runner: str, memory_bytes_max: int | None
) -> tuple[BaseProcess, socket.socket, Connection]:
    """Start a process; blocks until its pid is known."""
    ours, theirs = socket.socketpair()
    life_theirs, life_ours = context.Pipe(duplex=False)
    # Not a daemon in the sense of multiprocessing: those may not have processes of their own.
    process = context.Process(
        target=process_child.main, args=(theirs, life_theirs, runner, memory_bytes_max), name="sennit-cpu", daemon=False
    )
    try:
        process.start()
    except BaseException:
        ours.close()
        life_ours.close()
        raise
    finally:
        theirs.close()
        life_theirs.close()
    ours.setblocking(False)
    return process, ours, life_ours

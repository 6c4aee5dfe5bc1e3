"""One worker process as its parent sees it: a line of calls, tokens to begin them, and a way to kill it.

    send(call) ─► jobs: the whole call   ─► token: its number ─► the child reads the token: begun ─► answer
                                               └─► or the parent reads it: taken back, never begun there

Both ends read tokens from one socket and the kernel gives each to one reader, so `take_back` is exact without asking the
child, which may be computing or dead. Nothing here blocks the loop. The sentinel is a descriptor that becomes readable
when the process has ended, even if a process that the body forked keeps the pipe open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

import msgspec

from sennit.errors import UnknownHandler, WorkerCrashed
from sennit.execute import process_child
from sennit.execute.process_child import JOB, REPLY, TOKEN, Answer, Failure, Ready, Request, Terms
from sennit.sync.forks import drop_after_fork

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

__all__ = ["Call", "ChildProcess", "Owner"]

_REPLIES: Final = msgspec.msgpack.Decoder(Ready | Answer | Failure)

# The last words of a dead process are read in pieces of this size.
_PIECE_BYTES: Final = 1 << 16


class Call:
    """A request and what becomes of it. Its attributes are the pool's and the child's."""

    __slots__ = ("answer", "child", "is_over", "request", "serial")

    def __init__(self, request: Request, answer: asyncio.Future[Answer | Failure]) -> None:
        self.request = request
        self.answer = answer
        self.child: ChildProcess | None = None
        self.serial = 0
        self.is_over = False

    def end(self, outcome: Answer | Failure | BaseException) -> None:
        """Note what became of it, once."""
        self.is_over, self.child = True, None
        if not self.answer.done():  # Else nobody waits for it any more.
            if isinstance(outcome, BaseException):
                self.answer.set_exception(outcome)
            else:
                self.answer.set_result(outcome)


class Owner(Protocol):
    """What a child tells its pool, on the loop."""

    def answered(self, child: ChildProcess, *, is_last: bool) -> None:
        """A call has its answer; with `is_last` the process ends now by itself."""

    def ended(self, child: ChildProcess, begun: list[Call], left: list[Call]) -> None:
        """The process is gone: `begun` has no answer, `left` was never begun."""


class ChildProcess(asyncio.Protocol):
    """One worker process as its parent sees it.

    Attributes:
        line: the calls whose answers are not here yet, in their order. One that has begun has no unbegun one before it.
        busy_since_s: when it was last known to begin one, loop time.
        node: where it is pinned, for the pool.
        is_doomed: it gets no further calls.
    """

    def __init__(self, process: BaseProcess, wires: _Wires, owner: Owner, node: int) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.line: deque[Call] = deque()
        self.node = node
        self.is_doomed = False
        self.busy_since_s = 0.0
        self.killed_by_request = False
        self._loop = loop
        self._process = process
        self._pid = cast("int", process.pid)
        self._leads_group = False
        self._wires = wires
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = loop.create_future()
        self._inbox = bytearray()
        self._serial = 0
        self._last_timer: asyncio.TimerHandle | None = None
        loop.add_reader(process.sentinel, self._sentinel_fired)
        drop_after_fork(self)

    @classmethod
    async def start(
        cls, context: ForkServerContext | SpawnContext, terms: Terms, owner: Owner, *, node: int = 0
    ) -> Self:
        """Start a process and wait until it is ready.

        Raises:
            WorkerCrashed: it ended first.
            OSError: it cannot be started.
        """
        # In an OS thread: the first start also starts the fork server and waits for its imports.
        process, wires = await asyncio.to_thread(_spawn, context, terms)
        child = cls(process, wires, owner, node)
        await asyncio.get_running_loop().create_connection(lambda: child, sock=wires.jobs)
        await child.ready
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    # ------------------------------------------------------------ calls

    def send(self, call: Call) -> None:
        """Add a call to its line."""
        self._serial += 1
        call.serial, call.child = self._serial, self
        if not self.line:
            self.busy_since_s = self._loop.time()
        self.line.append(call)
        message = msgspec.msgpack.encode(call.request)
        transport = cast("asyncio.Transport", self._transport)
        transport.writelines((JOB.pack(len(message), call.serial), message))
        self._let_begin(call)

    def give_back(self, calls: list[Call]) -> None:
        """Put calls that `take_back` has returned, or some of them, into its line again."""
        for call in calls:
            if self.line and self.line[-1].serial > call.serial:
                self.send(
                    call
                )  # It took the token of a later one meanwhile, and has skipped this one on its way there.
            else:
                call.child = self
                self.line.append(call)
                self._let_begin(call)

    def _let_begin(self, call: Call) -> None:
        self._wires.tokens.send(TOKEN.pack(call.serial), socket.MSG_DONTWAIT)

    def take_back(self) -> list[Call]:
        """Take the calls that have not begun out of its line, in order. It is certain that they do not begin there."""
        numbers = set()
        with suppress(BlockingIOError):
            while token := self._wires.tokens_theirs.recv(TOKEN.size, socket.MSG_DONTWAIT):
                numbers.add(TOKEN.unpack(token)[0])
        taken = [call for call in self.line if call.serial in numbers]
        for call in taken:
            self.line.remove(call)
            call.child = None
        return taken

    # ------------------------------------------------------------ its end

    def kill(self, *, by_request: bool = False) -> None:
        """Kill the process, and the group that it leads. Harmless when it has ended. Any OS thread may call this."""
        if self.exited.done() or self._process.exitcode is not None:
            return
        self.is_doomed = True
        self.killed_by_request |= by_request
        with suppress(ProcessLookupError):
            if self._leads_group:
                os.killpg(self._pid, signal.SIGKILL)
            else:
                os.kill(self._pid, signal.SIGKILL)

    def interrupt(self, call: Call) -> None:
        """Have a call that has begun unwind; harmless when it has ended meanwhile."""
        with suppress(OSError):  # It is dead: that is told elsewhere.
            self._wires.life.send_bytes(TOKEN.pack(call.serial))

    def hang_up(self) -> None:
        """End the tokens: an idle process ends by itself."""
        self.is_doomed = True
        with suppress(OSError):  # Ended before.
            self._wires.tokens.shutdown(socket.SHUT_WR)

    def retire(self, grace_s: float) -> None:
        """Have it end by itself; what its bodies have left behind (OS threads, exit hooks) gets so long, then a kill."""
        self.hang_up()
        self._last_timer = self._loop.call_later(grace_s, self.kill)

    async def wait_closed(self) -> None:
        """Return when the process has ended and the pipe is closed."""
        await asyncio.shield(self.exited)
        await asyncio.shield(self._closed)

    def drop_after_fork(self) -> None:
        """In a forked child: drop the ends of the pipes, or the worker process would outlive its parent."""
        self._wires.close()

    # ------------------------------------------------------------ what it says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """It says something: an answer, a part of one, or several."""
        self._inbox += data
        begin = 0
        while len(self._inbox) - begin >= REPLY.size:
            size_bytes, serial, is_last = REPLY.unpack_from(self._inbox, begin)
            end = begin + REPLY.size + size_bytes
            if len(self._inbox) < end:
                break
            with memoryview(self._inbox) as inbox:
                reply: Ready | Answer | Failure = _REPLIES.decode(inbox[begin + REPLY.size : end])
            begin = end
            self._said(serial, reply, is_last=is_last)
        del self._inbox[:begin]

    def _said(self, serial: int, reply: Ready | Answer | Failure, *, is_last: bool) -> None:
        if isinstance(reply, Ready):
            self._leads_group = True
            self.ready.set_result(None)
            return
        call = self.line.popleft()
        if call.serial != serial:
            raise RuntimeError(f"a worker process answered job {serial}, and {call.serial} is its first")
        self.busy_since_s = self._loop.time()
        call.end(reply)
        self._owner.answered(self, is_last=is_last)

    def eof_received(self) -> None:
        """It has closed the pipe, or it has ended."""
        cast("asyncio.Transport", self._transport).abort()  # What we still wanted to write has no reader.

    def connection_lost(self, error: Exception | None) -> None:
        """The pipe is closed. Most likely it is dead already; if it only closed its pipe it is of no use any more."""
        if error is not None:  # We wrote to a dead process: it may have said something before.
            with suppress(OSError):
                while piece := self._wires.jobs.recv(_PIECE_BYTES, socket.MSG_DONTWAIT):
                    self.data_received(piece)
        self.kill()
        self._closed.set_result(None)
        self._both_ended()

    def _sentinel_fired(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        if self._process.exitcode is None:  # A spawned process: its pipe ends a moment before it does.
            self._loop.run_in_executor(None, self._process.join).add_done_callback(lambda _: self._settle())
        else:
            self._settle()

    def _settle(self) -> None:
        """The process has ended: note how, and let the reader come to the end of what it still said."""
        self.is_doomed = True
        self.exited.set_result(cast("int", self._process.exitcode))
        self._process.close()
        with suppress(OSError):  # Closed by us before.
            # Not close: what the process wrote last is still to be read. A process that the body has forked may hold
            # the other end open, so the end of the pipe does not come by itself.
            self._wires.jobs.shutdown(socket.SHUT_RD)
        self._both_ended()

    def _both_ended(self) -> None:
        """Tell, once, when the process has ended and all that it said was read."""
        if not self.exited.done() or not self._closed.done():
            return
        left = self.take_back()
        begun = list(self.line)
        self.line.clear()
        self._wires.close()
        if self._last_timer is not None:
            self._last_timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(WorkerCrashed(self.exited.result(), starting=True))
        self._owner.ended(self, begun, left)


class _Wires:
    """Our ends, and the reading end of the tokens, which both sides have."""

    def __init__(
        self, jobs: socket.socket, tokens: socket.socket, tokens_theirs: socket.socket, life: Connection
    ) -> None:
        self.jobs = jobs
        self.tokens = tokens
        self.tokens_theirs = tokens_theirs
        self.life = life

    def close(self) -> None:
        """Close all."""
        for wire in (self.jobs, self.tokens, self.tokens_theirs, self.life):
            wire.close()


def _check_main() -> None:
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is not None and getattr(main, "__spec__", None) is None and not Path(path).exists():
        raise UnknownHandler(
            f"no worker process can be started: the main program {path!r} is not a file",
            why="each worker process imports it",
            fix="save the program as a file, and start that",
        )


def _spawn(context: ForkServerContext | SpawnContext, terms: Terms) -> tuple[BaseProcess, _Wires]:
    """Start a process; blocks until its pid is known.

    Raises:
        UnknownHandler: the main program is no file, and each process would try to import it.
    """
    _check_main()
    jobs, jobs_theirs = socket.socketpair()
    tokens, tokens_theirs = socket.socketpair()
    life_theirs, life = context.Pipe(duplex=False)
    wires = _Wires(jobs, tokens, tokens_theirs, life)
    # Not a daemon in the sense of multiprocessing: those may not have processes of their own.
    process = context.Process(
        target=process_child.main,
        args=(jobs_theirs, tokens_theirs, life_theirs, terms),
        name="sennit-cpu",
        daemon=False,
    )
    try:
        process.start()
    except BaseException:
        wires.close()
        raise
    finally:
        jobs_theirs.close()
        life_theirs.close()
    jobs.setblocking(False)
    return process, wires

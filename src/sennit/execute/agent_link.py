"""The supervisor's end of the line to its warden: starts it, sends it orders with descriptors, and sees it end.

ready ◄── order + descriptors ──► swept … ── bye ──► ended (its pidfd tells, whatever it died of)
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.errors import AgentError
from sennit.sync.forks import drop_after_fork

__all__ = ["WardenLink"]

_PROGRAM: Final = Path(__file__).with_name("agent_warden.py")
_MESSAGE_BYTES_MAX: Final = 4096
_LAST_WORDS_BYTES: Final = 2000


class WardenLink:
    """One warden. Needs a running loop.

    Args:
        on_swept: called with the number of a run whose keeper was killed, when nothing of it is left.
        on_end: called when the warden has ended.

    Raises:
        AgentError: it cannot be started.
    """

    def __init__(self, *, on_swept: Callable[[int], None], on_end: Callable[[WardenLink], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_swept = on_swept
        self._on_end = on_end
        self._sending = asyncio.Lock()
        self._words = ""
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        with ExitStack() as undo:
            self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._line.close)
            self._line.setblocking(False)
            self._errors = os.memfd_create("sennit-warden")  # what it and its keepers say when they break
            undo.callback(os.close, self._errors)
            us = os.pidfd_open(os.getpid())
            try:
                self._process = self._start(theirs, us)
                self._pidfd = os.pidfd_open(self._process.pid)
            finally:
                theirs.close()
                os.close(us)
            undo.pop_all()
        self._loop.add_reader(self._line.fileno(), self._hear)
        self._loop.add_reader(self._pidfd, self._see_end)
        drop_after_fork(self)

    @property
    def pid(self) -> int:
        """Of the warden."""
        return self._process.pid

    def _start(self, line: socket.socket, supervisor: int) -> subprocess.Popen[bytes]:
        descriptors = (line.fileno(), supervisor)
        # It needs nothing of our environment, except where a Python has its libraries in an odd place.
        environ = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", str(_PROGRAM), *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=descriptors,
            start_new_session=True,
            env=environ,
            cwd="/",
        )

    async def send(self, order: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Send one order. The descriptors may be closed when this returns.

        Raises:
            AgentError: the warden is gone, or the system refuses.
        """
        message = msgspec.json.encode(order)
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._line, [message], list(descriptors))
                    return
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    raise AgentError("the agent was not started: its warden is gone", why=str(error)) from error

    def say_until(self, until_s: float | None) -> None:
        """Tell until when the lease holds, if the line takes it now. Any OS thread may call this."""
        with suppress(OSError):  # full: the next time; gone: there is nothing to tell
            self._line.send(msgspec.json.encode({"until_s": until_s}), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def _writable(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._line.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            if self._line.fileno() >= 0:
                self._loop.remove_writer(self._line.fileno())

    def bye(self) -> None:
        """Let it end once its keepers have."""
        if self._line.fileno() >= 0:
            self._loop.remove_reader(self._line.fileno())
            self._line.close()

    def last_words(self) -> str:
        """Return the end of what it or a keeper said on stderr, "" if nothing was wrong."""
        if self._errors < 0:
            return self._words
        size = os.fstat(self._errors).st_size
        return (
            os.pread(self._errors, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode(errors="replace").strip()
        )

    def _hear(self) -> None:
        while True:
            try:
                data = self._line.recv(_MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:  # its pidfd tells
                self._loop.remove_reader(self._line.fileno())
                return
            message = msgspec.json.decode(data)
            if "swept" in message:
                self._on_swept(message["swept"])
            elif not self.ready.done():
                self.ready.set_result(None)

    def _see_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()  # returns at once: it has ended
        if self._line.fileno() >= 0:
            self._hear()  # what it said last
            self.bye()
        if not self.ready.done():
            why = self.last_words() or f"it ended with {self._process.returncode}"
            self.ready.set_exception(
                AgentError(
                    "the warden of agents does not start",
                    why=why,
                    fix=f"try it: {sys.executable} -I -S -c 'import ctypes'",
                )
            )
        self._words = self.last_words()
        os.close(self._errors)
        self._errors = -1
        self._on_end(self)
        if not self.ended.done():
            self.ended.set_result(None)

    def drop_after_fork(self) -> None:
        """In a forked child: the line must not outlive the supervisor in it."""
        if self._line.fileno() >= 0:
            os.close(self._line.detach())


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

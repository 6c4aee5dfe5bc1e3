"""One agent's process as its supervisor sees it: a line to its keeper, a pipe to its stdin, and a future for its end.

    write ─► pipe ─► stdin of the program         stop, kill ─► keeper ─► the whole tree
                                                      exited ◄─ keeper, when nothing of it lives and all is written

Runs on the event loop and blocks nowhere; what the program prints does not come by here, it is in the files of the run folder.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.execute.adapters.base import Exit
from sennit.sync.forks import drop_after_fork

__all__ = ["AgentProcess", "ProcessSpec"]

_MESSAGE_BYTES_MAX: Final = 4096
_WRITE_BYTES: Final = 1 << 16
_WORDS_MAX: Final = 3  # of a keeper: started, exit, and the end of the line


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run.

    Attributes:
        argv: the first is a file, or a name that is looked for on the PATH of `environ`.
        environ: all of it, see `agent_environ.environment`.
        cwd: where it works.
        folder: of the run, private, exists: stdout.log, stderr.log, process.json and, at the end, exit.json.
        stdin: what it reads, then end of file; None is nothing (/dev/null). With `talks` it comes first.
        talks: stdin is a pipe that stays open for `AgentProcess.write`.
        secrets: values that are not written to the files.
        memory_bytes_max: resident, the whole tree, looked at once a second; 0 is no bound.
        output_bytes_max: both files together; 0 is no bound.
    """

    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: Path
    folder: Path
    stdin: bytes | None = None
    talks: bool = False
    secrets: tuple[str, ...] = ()
    memory_bytes_max: int = 0
    output_bytes_max: int = 0


class AgentProcess:
    """A program that runs under a keeper. Made by `Supervisor.spawn`.

    Attributes:
        pid, started_ticks, boot_id: who it is; a pid alone names nobody.
        folder: of the run.
    """

    def __init__(
        self, run: int, control: socket.socket, spec: ProcessSpec, boot_id: str, on_end: Callable[[AgentProcess], None]
    ) -> None:
        self.run = run
        self.pid = 0
        self.started_ticks = 0
        self.keeper_pid = 0
        self.boot_id = boot_id
        self.folder = spec.folder
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[Exit] = self._loop.create_future()  # ours, so that nobody's cancellation reaches it
        self._exited = asyncio.shield(self.over)
        self.started: asyncio.Future[dict[str, Any]] = self._loop.create_future()  # what the keeper says first
        self._control = control
        self._on_end = on_end
        self._stdin: int | None = None
        self._to_write: deque[memoryview] = deque()
        self._is_last_written = False
        self.is_lost = False  # its keeper was killed
        self._loop.add_reader(control.fileno(), self._hear)
        drop_after_fork(self)

    def __repr__(self) -> str:
        return f"<AgentProcess pid={self.pid} {'exited' if self.over.done() else 'live'}>"

    @property
    def exited(self) -> asyncio.Future[Exit]:
        """How it ended, once its whole tree is gone and all its output is in the files.

        Whoever cancels it cancels it for those that wait for it at that moment, and ends nothing.
        """
        if self._exited.cancelled() and not self.over.cancelled():
            self._exited = asyncio.shield(self.over)
        return self._exited

    # ---------------------------------------------------------------- stdin

    def give_stdin(self, descriptor: int) -> None:
        """Take over our end of the pipe to its stdin."""
        os.set_blocking(descriptor, False)
        self._stdin = descriptor

    def write(self, data: bytes) -> None:
        """Write to its stdin, now or when it reads; nothing happens once it reads no more. What waits is kept in memory."""
        if self._stdin is None or self._is_last_written or not data:
            return
        self._to_write.append(memoryview(data))
        if len(self._to_write) == 1:
            self._loop.add_writer(self._stdin, self._flush)
            self._flush()

    def close_stdin(self) -> None:
        """Let it read end of file after what was written."""
        self._is_last_written = True
        if not self._to_write:
            self._drop_stdin()

    def _flush(self) -> None:
        if self._stdin is None:
            return
        try:
            while self._to_write:
                data = self._to_write[0]
                data = data[os.write(self._stdin, data[:_WRITE_BYTES]) :]
                if data:
                    self._to_write[0] = data
                else:
                    self._to_write.popleft()
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self._drop_stdin()
            return
        self._loop.remove_writer(self._stdin)
        if self._is_last_written:
            self._drop_stdin()

    def _drop_stdin(self) -> None:
        self._to_write.clear()
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = None

    # ---------------------------------------------------------------- its end

    def stop(self, cause: str, *, term_s: float) -> None:
        """Ask the whole tree to end (TERM), and kill what is left of it after `term_s`. The first cause is kept in `Exit.cause`."""
        self._say(cause, max(term_s, 0.0))

    def kill(self, cause: str) -> None:
        """Kill the whole tree."""
        self._say(cause, 0.0)

    def _say(self, cause: str, term_s: float) -> None:
        if not self.over.done():
            with suppress(OSError):  # the keeper is gone, and its tree goes
                self._control.send(msgspec.json.encode({"cause": cause, "term_s": term_s}))

    def _hear(self) -> None:
        """Take what the keeper says: that the program has started or could not, and how it ended."""
        try:
            data = self._control.recv(_MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:  # reset: it has ended with a word of ours unread
            data = b""
        message: dict[str, Any] = msgspec.json.decode(data) if data else {}
        if "exit" in message:
            self.end(msgspec.convert(message["exit"], Exit))
        elif message:
            if "started" in message:
                self.pid, self.started_ticks = message["started"], message["ticks"]
                self.keeper_pid = message["keeper"]
            if not self.started.done():
                self.started.set_result(message)
            if "failed" in message:
                self.end(None)
        else:  # killed: the warden ends what it had
            self._loop.remove_reader(self._control.fileno())
            self.is_lost = True
            self._on_end(self)

    def lose(self, ended: Exit) -> None:
        """Its keeper was killed and nothing lives of the tree: end as the keeper has said with its last breath, else so."""
        for _ in range(_WORDS_MAX):
            if not self.is_lost and not self.over.done():
                self._hear()
        if not self.over.done():
            self.end(ended)

    def end(self, ended: Exit | None) -> None:
        """Close what is open here; None is when it never ran, or nobody is there to wait for it."""
        self._drop_stdin()
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        if not self.started.done():
            self.started.set_result({})
        if not self.over.done():
            if ended is None:
                self.over.cancel()
            else:
                self.over.set_result(ended)
        self._on_end(self)

    def drop_after_fork(self) -> None:
        """In a forked child: our ends must not outlive the supervisor in it."""
        if self._control.fileno() >= 0:
            os.close(self._control.detach())
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

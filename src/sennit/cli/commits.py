"""Waking when something is committed to a SQLite file: how a follower waits without asking again and again.

    any process ──COMMIT──► appends to FILE-wal ──inotify──► the follower wakes, looks, and sleeps again

SQLite appends frames to the log before it publishes them, so a look right after the event can come a moment too early.
Writers of sennit hold the *pen* from BEGIN to COMMIT: taking it once after the event puts the look behind the commit.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from sennit.errors import UsageError
from sennit.sync.filelock import Pen

_IN_MODIFY: Final = 0x2  # <sys/inotify.h>
_EVENTS_BYTES: Final = 64 * 1024  # room for some 4,000 events of 16 bytes; the kernel merges equal ones


class News(Protocol):
    """What a follower sleeps on."""

    def wait(self) -> None:
        """Sleep until something may be there that was not at the last look."""


class Commits:
    """The commits to one file, from the moment of `with` on. The file must be open somewhere in this process.

    Raises:
        UsageError: this system has no inotify, or no log file to watch.
    """

    def __init__(self, path: Path) -> None:
        self._log = path.with_name(path.name + "-wal")
        self._pen = Pen(path.with_name(path.name + "-pen"))
        self._descriptor = -1

    def __enter__(self) -> Self:
        if sys.platform != "linux":
            raise UsageError("waiting for commits needs inotify, which only Linux has", fix="look without -f")
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(self._log), _IN_MODIFY) < 0:
            reason = os.strerror(ctypes.get_errno())
            self.__exit__(None, None, None)
            raise UsageError(
                f"cannot watch {self._log}: {reason}",
                why="the kernel's inotify limits are used up, or the file is not there",
                fix="raise fs.inotify.max_user_instances, or look without -f",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._pen.close()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with a commit."""
        return self._descriptor

    def drain(self) -> None:
        """Forget the events so far. Never blocks."""
        try:
            while os.read(self._descriptor, _EVENTS_BYTES):
                pass
        except BlockingIOError:
            return

    def wait(self) -> None:
        """Sleep until somebody has committed since the last call."""
        os.set_blocking(self._descriptor, True)
        try:
            os.read(self._descriptor, _EVENTS_BYTES)
        finally:
            os.set_blocking(self._descriptor, False)
        with self._pen:
            self.drain()


class OwnCommits:
    """The commits of this process to a server, from the moment of `with` on.

    Args:
        tell: has a function called after each of them, from any OS thread.
    """

    def __init__(self, tell: Callable[[Callable[[], object]], None]) -> None:
        self._tell = tell
        self._in = self._out = -1

    def __enter__(self) -> Self:
        self._in, self._out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._tell(self._committed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tell(bool)
        os.close(self._in)
        out, self._out = self._out, -1
        os.close(out)

    def _committed(self) -> None:
        with suppress(OSError):  # full: it is readable already; closed: nobody looks any more
            os.write(self._out, b"\0")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with a commit."""
        return self._in

    def drain(self) -> None:
        """Forget the commits so far. Never blocks."""
        with suppress(BlockingIOError):
            os.read(self._in, _EVENTS_BYTES)

"""What an agent writes, as lines: read from its file while it grows, a chunk at a time, as fast as they are taken.

    program ─► stdout.log ─► pread 64 KiB ─► Lines ─► who asks for the next one
                    └─ written ─► inotify ─► look again, if anybody waits

The file is the buffer. A reader that is slow, or absent, holds up neither the program nor the memory of this process: at most
one chunk and one line are held, whatever the size of the file.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sennit.errors import AgentError
from sennit.sync.inotify import Watch, watch_on_loop

__all__ = ["CHUNK_BYTES", "LINE_BYTES_MAX", "GrowingFile", "Lines", "Tail", "read_lines", "tail"]

CHUNK_BYTES: Final = 64 * 1024
LINE_BYTES_MAX: Final = 1024 * 1024
"""What is kept of a line, the mark at its end included; the rest is skipped."""

# Not blocking, and no symlink: the program could put a named pipe there, or a link to what is not its own output.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Lines:
    """Chunks in, lines out, without their newline (and without a carriage return before it).

    Attributes:
        offset: of the end of the last line that was taken, in bytes from the start of the file: to go on there later.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._parts: list[bytes] = []  # of the line that has no end yet: what is kept of it
        self._kept = self._length = 0  # bytes of these, and of the whole line so far

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that end in this chunk. It must be exhausted before the next one."""
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if self._length:
                self._add(piece)
                line = self._whole()
                self.offset += self._length + 1
                self._forget()
            else:
                line = piece
                self.offset += len(piece) + 1
            yield line.removesuffix(b"\r")
        self._add(rest)

    def rest(self) -> Iterator[bytes]:
        """Yield the last line if it has no newline: the file has ended, or begins anew."""
        if self._length:
            line = self._whole()
            self.offset += self._length
            self._forget()
            yield line.removesuffix(b"\r")

    def _add(self, piece: bytes) -> None:
        self._length += len(piece)
        if piece and self._kept < LINE_BYTES_MAX:
            self._parts.append(piece[: LINE_BYTES_MAX - self._kept])
            self._kept += len(self._parts[-1])

    def _whole(self) -> bytes:
        line = b"".join(self._parts)
        if self._length == len(line):
            return line
        mark = f" … {self._length:,} bytes, cut by sennit".encode()
        return line[: LINE_BYTES_MAX - len(mark)] + mark

    def _forget(self) -> None:
        self._parts.clear()
        self._kept = self._length = 0


class GrowingFile:
    """A file that is written meanwhile, or not there yet. Never blocks but for the disk.

    One that was cut short is read from its start again, as is one that has taken its place: what of the earlier one was not
    read by then is lost if it was cut, and read first if it was replaced. Cut and written beyond the old length between two
    looks is not noticed.

    Attributes:
        lines: where it is.
    """

    def __init__(self, path: Path, from_offset: int = 0) -> None:
        self.path = path
        self.lines = Lines(from_offset)
        self._read = from_offset
        self._descriptor = -1
        self._before: Iterator[bytes] | None = None  # the last line of a file that was replaced

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close it. Harmless when closed; the next look opens it again where it was."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def chunk(self) -> bytes:
        """Return the next bytes as they are, at most `CHUNK_BYTES`; none when there is nothing more for now.

        Raises:
            AgentError: it is no regular file, or cannot be opened.
            OSError: it cannot be read.
        """
        while self._descriptor >= 0 or self._open():
            if chunk := os.pread(self._descriptor, CHUNK_BYTES, self._read):
                self._read += len(chunk)
                return chunk
            if os.fstat(self._descriptor).st_size < self._read:
                self._begin_again()
            elif self._is_replaced():
                self._before = self.lines.rest()
                self._begin_again()
                self.close()
            else:
                break
        return b""

    def more(self) -> Iterator[bytes] | None:
        """Return the lines of the next chunk, perhaps none; None when there is nothing more for now.

        Exhaust it before the next call.

        Raises:
            AgentError, OSError: as `chunk`.
        """
        chunk = self.chunk()
        before, self._before = self._before, None
        if not chunk:
            return before
        return self.lines.feed(chunk) if before is None else chain(before, self.lines.feed(chunk))

    def rest(self) -> Iterator[bytes]:
        """Yield the last line if it has no newline; nothing more will be written."""
        return self.lines.rest()

    def _begin_again(self) -> None:
        self.lines, self._read = Lines(), 0

    def _open(self) -> bool:
        try:
            descriptor = os.open(self.path, _READ)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._refused("it is no regular file")
        self._descriptor = descriptor
        return True

    def _is_replaced(self) -> bool:
        """Whether another file has its name now. One that was only removed is kept: it may be written to still."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self.path.stat(follow_symlinks=False))
        except FileNotFoundError:
            return False

    def _refused(self, why: str) -> AgentError:
        return AgentError(f"the output of an agent, {self.path}, cannot be read", why=why)


def read_lines(path: Path, from_offset: int = 0) -> Iterator[bytes]:
    """Yield the lines that a file has now, as `tail` does; blocks. None of a file that is not there.

    Raises:
        AgentError, OSError: it cannot be read.
    """
    with closing(GrowingFile(path, from_offset)) as file:
        while (lines := file.more()) is not None:
            yield from lines
        yield from file.rest()


class _Signal:
    """Set from callbacks of the loop, waited for by one; kept by both, so that neither keeps the other."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def clear(self) -> None:
        self._is_set = False

    def set(self, _: object = None) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class Tail:
    """The lines of a file, those that are there and those that come. For one consumer, on one event loop.

    It ends by itself with `until`, and is closed when nobody has it any more; `async with`, or `close`, is sooner.
    """

    def __init__(self, path: Path, from_offset: int, until: asyncio.Future[Any] | None) -> None:
        self._file = GrowingFile(path, from_offset)
        self._until = until
        self._signal = _Signal()
        self._watch: Watch | None = None
        self._lines: Iterator[bytes] = iter(())
        self._is_over = False

    @property
    def offset(self) -> int:
        """Where the last line that was taken ends, in bytes: give it as `from_offset` to go on there later."""
        return self._file.lines.offset

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next line; wait for it if need be.

        Raises:
            AgentError: it is no regular file.
            UsageError: this system has no inotify, or its limits are used up.
        """
        while True:
            for line in self._lines:
                return line
            if self._is_over:
                self.close()
                raise StopAsyncIteration
            if self._watch is None:
                self._begin()
            elif self._watch.trouble is not None:
                raise self._watch.trouble
            # In this order: what was written before `until` was resolved is read after it was looked at.
            self._signal.clear()
            is_complete = self._until is not None and self._until.done()
            lines = self._file.more()
            if lines is not None:
                self._lines = lines
                await asyncio.sleep(0)  # a flood leaves the loop to others, once a chunk
            elif is_complete:
                self._lines, self._is_over = self._file.rest(), True
            else:
                await self._signal.wait()

    def _begin(self) -> None:
        self._watch = watch_on_loop(self._file.path, self._signal.set)
        if self._until is not None:
            self._until.add_done_callback(self._signal.set)

    def close(self) -> None:
        """Watch it no more, and end. Harmless when closed."""
        self._is_over = True
        self._lines = iter(())
        self._file.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            if self._until is not None:
                self._until.remove_done_callback(self._signal.set)

    async def aclose(self) -> None:
        """Do as `close`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def tail(path: Path, from_offset: int = 0, until: asyncio.Future[Any] | None = None) -> Tail:
    r"""Return the lines of a file as they are written, as bytes without `\n` or `\r\n`.

    The file need not be there yet. A line longer than `LINE_BYTES_MAX` comes cut, with a mark at its end. The next chunk is
    read when all lines of the last one were taken. Without `until` it goes on for ever, until it is closed.

    Args:
        from_offset: where to begin, in bytes; 0 or the `offset` of an earlier tail. Beyond the end of the file is the start.
        until: resolved, failed or cancelled when the file is complete: then it is read to its end, a last line without a
            newline comes as well, and that is all.
    """
    return Tail(path, from_offset, until)

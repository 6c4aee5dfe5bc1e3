"""Be told when files change: one descriptor for all files of an event loop, no OS thread, and nobody looks again and again.

    path ─┬─ it is there:   watch the file ────── written, cut short ────────────────► tell
          │                                 └──── removed, replaced, renamed ──┐
          └─ it is not yet: watch the nearest folder that is ── made in it ────┴─► aim again, tell

Who is told looks for himself: a watch tells once too often rather than once too seldom. When the kernel has dropped events
because nobody read them (fs.inotify.max_queued_events), all watches aim again and tell.

Source: Linux, inotify(7). Not told: what another machine writes to a network file system.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import select
import struct
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sennit.errors import UsageError
from sennit.sync.forks import drop_after_fork

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FileWatcher", "FileWatcherStatistics", "Watch", "watch_on_loop"]

# <sys/inotify.h>
_MODIFY: Final = 0x2  # written, or its length set
_ATTRIB: Final = (
    0x4  # among others the count of its names: how the end of a file is heard of while somebody has it open
)
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE_SELF: Final = 0x400
_MOVE_SELF: Final = 0x800
_Q_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_ONLYDIR: Final = 0x0100_0000

_GONE: Final = _ATTRIB | _DELETE_SELF | _MOVE_SELF | _IGNORED
_FILE: Final = _MODIFY | _ATTRIB | _DELETE_SELF | _MOVE_SELF
_FOLDER: Final = _CREATE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_EVENT: Final = struct.Struct("iIII")  # descriptor of the watch, mask, cookie, bytes of the name that follows
_READ_BYTES: Final = 64 * 1024  # room for some 4,000 events; the kernel merges equal ones that follow each other

Tell = Callable[[], object]


@dataclass(frozen=True, slots=True)
class FileWatcherStatistics:
    """What a watcher does: `watches` now, and how often it was `told`, by the kernel, and `overflows`."""

    watches: int
    told: int
    overflows: int


class Watch:
    """One path that is watched, until it is closed.

    Attributes:
        aim: the kernel's number of what is watched: the file, or a folder on the way to it.
        name: what is waited for in that folder; b"" is the file itself.
        trouble: why it cannot be watched any more, for who is told to raise.
    """

    __slots__ = ("__weakref__", "aim", "is_closed", "name", "path", "tell", "trouble", "watcher")

    def __init__(self, watcher: FileWatcher, path: Path, tell: Tell) -> None:
        self.watcher = watcher
        self.path = path
        self.tell = tell
        self.aim = -1
        self.name = b""
        self.trouble: Exception | None = None
        self.is_closed = False

    def close(self) -> None:
        """Be told nothing any more. Harmless when closed."""
        if not self.is_closed:
            self.is_closed = True
            self.watcher.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class FileWatcher:
    """Watches files for one OS thread, which calls `wait`; or with `fileno` readable, `dispatch`.

    Raises:
        UsageError: this system has no inotify, or the kernel's limits for this user are used up.
    """

    def __init__(self) -> None:
        self._descriptor = -1  # where `__init__` raises, `__del__` comes all the same
        self._aims: dict[int, dict[Watch, None]] = {}
        self._watches: dict[Watch, None] = {}
        self._told = self._overflows = 0
        self._descriptor = _library().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise _used_up("instances", ctypes.get_errno())
        drop_after_fork(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Forget all watches and close the descriptor. Harmless when closed."""
        self._watches.clear()
        self._aims.clear()
        self.drop_after_fork()

    def drop_after_fork(self) -> None:
        """In a forked child: close the copy, or it would take events away from its parent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor that is readable while there is something to dispatch."""
        return self._descriptor

    def statistics(self) -> FileWatcherStatistics:
        """Return what it does now and has done."""
        return FileWatcherStatistics(watches=len(self._watches), told=self._told, overflows=self._overflows)

    # ------------------------------------------------------------ watching

    def watch(self, path: str | os.PathLike[str], tell: Tell = bool) -> Watch:
        """Have `tell` called after each change of a file from now on, in `dispatch` or `wait`.

        The file need not exist, nor its folder. Look at it after this call: what is there by now is not told.

        Raises:
            UsageError: the kernel's limit of watches for this user is used up.
            OSError: the file, or the way to it, may not be read.
        """
        watch = Watch(self, Path(os.path.abspath(path)), tell)  # noqa: PTH100 - Path.absolute keeps `..`
        self._aim(watch)
        self._watches[watch] = None
        return watch

    def forget(self, watch: Watch) -> None:
        """Tell it nothing any more; `Watch.close` calls this."""
        if self._watches.pop(watch, watch) is None:
            self._leave(watch, watch.aim)

    def _aim(self, watch: Watch) -> None:
        """Watch the file, or the nearest folder on the way to it.

        Again until nothing is new: what was made between the look for the file and the watch of its folder is not told.
        """
        before: tuple[int, bytes] | None = None
        while before != (found := self._nearest(watch.path)):
            last, (watch.aim, watch.name) = watch.aim, found
            self._aims.setdefault(watch.aim, {})[watch] = None
            if last != watch.aim:
                self._leave(watch, last)
            if not watch.name:
                return
            before = found

    def _nearest(self, path: Path) -> tuple[int, bytes]:
        """Return what is watched for a path, and the name that is waited for there; b"" when it is the file itself."""
        name = b""
        for place in (path, *path.parents):
            aim = self._add(place, _FOLDER if name else _FILE)
            if aim is not None:
                return aim, name
            name = os.fsencode(place.name)
        raise FileNotFoundError(errno.ENOENT, "nothing of the way to it is there", str(path))

    def _add(self, path: Path, mask: int) -> int | None:
        """Watch one inode; None when there is none. For one that is watched already it is the same number again."""
        aim: int = _library().inotify_add_watch(self._descriptor, os.fsencode(path), mask)
        if aim >= 0:
            return aim
        code = ctypes.get_errno()
        if code in {errno.ENOENT, errno.ENOTDIR}:
            return None
        if code == errno.ENOSPC:
            raise _used_up("watches", code)
        raise OSError(code, os.strerror(code), str(path))

    def _leave(self, watch: Watch, aim: int) -> None:
        others = self._aims.get(aim)
        if others is None:
            return
        others.pop(watch, None)
        if not others:
            del self._aims[aim]
            _library().inotify_rm_watch(self._descriptor, aim)  # an error: it went with its file, and that will be told

    # ------------------------------------------------------------ being told

    def wait(self, *others: int) -> set[int]:
        """Sleep until something changed or one of these other descriptors is readable; return which of them are.

        The watches have been told when it returns.
        """
        poll = select.poll()
        for descriptor in (self._descriptor, *others):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if self._descriptor in ready:
            self.dispatch()
        return ready - {self._descriptor}

    def dispatch(self) -> None:
        """Tell the watches what has happened so far. Never blocks."""
        changed: dict[Watch, bool] = {}  # → whether it must aim again
        for aim, mask, name in self._events():
            if mask & _Q_OVERFLOW:
                self._overflows += 1
                changed = dict.fromkeys(self._watches, True)
                break
            for watch in self._aims.get(aim, ()):
                if mask & _GONE or (watch.name and watch.name == name):
                    changed[watch] = True
                elif not watch.name:
                    changed.setdefault(watch, False)
            if mask & _IGNORED:
                self._aims.pop(aim, None)  # the kernel has taken it away, with the file
        self._told += len(changed)
        for watch, again in changed.items():
            if not watch.is_closed:  # by somebody who was told before it
                if again:
                    self._aim_again(watch)
                watch.tell()

    def _aim_again(self, watch: Watch) -> None:
        try:
            self._aim(watch)
        except (OSError, UsageError) as error:
            watch.trouble = error
            watch.close()

    def _events(self) -> Iterator[tuple[int, int, bytes]]:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            aim, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            yield aim, mask, data[at : at + length].rstrip(b"\0")
            at += length


# ---------------------------------------------------------------- on an event loop

_of_loops: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[FileWatcher]]] = (
    weakref.WeakKeyDictionary()
)


def watch_on_loop(path: Path, tell: Tell) -> Watch:
    """Have `tell` called on the running loop after each change of a file, as `FileWatcher.watch` has it.

    All files of a loop share one descriptor. It is closed with the loop, and not with the last watch: to close one that
    has just had watches was seen to block for up to 15 ms (Linux 6.18), in which nothing else would run.

    Raises:
        UsageError, OSError: as there.
    """
    loop = asyncio.get_running_loop()
    known = _of_loops.get(loop)
    watcher = None if known is None else known()
    if watcher is None or watcher.fileno() < 0:  # the latter in a forked child
        watcher = FileWatcher()
        # The loop alone keeps it: what it has of readers goes when it is closed.
        loop.add_reader(watcher.fileno(), watcher.dispatch)
        _of_loops[loop] = weakref.ref(watcher)
    return watcher.watch(path, tell)


# ---------------------------------------------------------------- the kernel


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "inotify_init1"):
        raise UsageError(
            "watching files needs inotify, and this system has none",
            why="sennit does not look at files again and again",
            fix="run it on Linux",
        )
    library.inotify_init1.argtypes = [ctypes.c_int]
    library.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    library.inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]
    return library


def _used_up(what: str, code: int) -> UsageError:
    return UsageError(
        f"cannot watch files: {os.strerror(code)}",
        why=f"this user has as many inotify {what} as the kernel allows, or this process as many open files",
        fix=f"raise fs.inotify.max_user_{what} (sysctl), or end programs that watch files",
    )

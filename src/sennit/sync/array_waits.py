"""An owner that waits for other processes to let go of its blocks: it sleeps until one does, or dies.

    bell (a pipe) ◄── a byte from who lets go, if it sees WAITING on the first page ──┐
    pidfds ◄── the kernel, when one that has the segment open has died, and its locks ─┴──► look again

There is one OS thread, and only while somebody waits. The order is what loses no news: first WAITING is set and the
processes are listed, then the locks are looked at, then it sleeps. Who lets go after the look sees WAITING; who dies
after it was listed wakes the pidfd, which the kernel does after it has dropped the locks; and who comes later rings the
bell before it takes a lock.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

from sennit.sync.array_holds import Section
from sennit.sync.array_segments import BELL_FD, BELL_INODE, WAITING, Segment

__all__ = ["Watch"]


class Watch:
    """Calls `look` when something may have been let go of.

    Args:
        segments: with the lock of the pool: what to watch; empty ends the OS thread.
        look: what to do then; returns whether it was of use.
        failed: with the lock held: takes an error of the system that ends the watch, such as too many descriptors.
        section: of the pool, with its lock.
    """

    def __init__(
        self,
        segments: Callable[[], Iterable[Segment]],
        look: Callable[[], bool],
        failed: Callable[[OSError], None],
        section: Section[Any],
    ) -> None:
        self._segments = segments
        self._look = look
        self._failed = failed
        self._section = section
        self._bell: tuple[int, int] | None = None
        self._os_thread: threading.Thread | None = None

    def poke(self) -> None:
        """With the lock held: what there is to watch has changed."""
        if self._os_thread is not None:
            self._ring()
        elif tuple(self._segments()):
            try:
                self._bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                self._os_thread = threading.Thread(
                    target=self._run, args=(self._bell,), name="sennit-arrays", daemon=True
                )
                self._os_thread.start()
            except (OSError, RuntimeError) as error:  # no descriptors, no OS threads
                self._close()
                self._failed(OSError(str(error)))

    def drop_after_fork(self) -> None:
        """In a forked child, which has no copy of the OS thread, and copies of the bell."""
        self._close()

    def _close(self) -> None:
        self._os_thread = None
        bell, self._bell = self._bell, None
        for descriptor in bell or ():
            os.close(descriptor)

    def _ring(self) -> None:
        if self._bell is not None:
            with suppress(BlockingIOError):  # full: it is awake already
                os.write(self._bell[1], b".")

    def _run(self, bell: tuple[int, int]) -> None:
        marked: set[Segment] = set()
        dead: set[int] = set()
        try:
            while (pids := self._mark(bell, marked)) is not None:
                dead &= pids  # a number that is not listed any more may be somebody else's next
                dead |= self._sleep(bell[0], pids - dead)
        except OSError as error:
            with self._section.lock:
                self._end(marked)
                self._failed(error)
            self._section.settle()

    def _mark(self, bell: tuple[int, int], marked: set[Segment]) -> set[int] | None:
        """Have it said that we wait, and return who may hold something; None when there is nothing to wait for."""
        pids: set[int] | None = None
        with self._section.lock:
            for segment in self._segments():
                segment.words[BELL_FD], segment.words[BELL_INODE] = bell[1], os.fstat(bell[1]).st_ino
                segment.words[WAITING] = 1
                marked.add(segment)
                pids = segment.pids() | (pids or set())
            if pids is None:
                self._end(marked)
        self._section.settle()
        return pids

    def _end(self, marked: set[Segment]) -> None:
        """With the lock held."""
        for segment in marked:
            segment.words[WAITING] = 0
        self._close()

    def _sleep(self, bell: int, pids: set[int]) -> set[int]:
        """Look, and if that was of no use sleep until there is news; return those that have died."""
        with ExitStack() as stack:
            waiting = select.poll()
            waiting.register(bell, select.POLLIN)
            opened: dict[int, int] = {}
            for pid in pids:
                with suppress(ProcessLookupError):  # it is gone, and its locks are
                    descriptor = os.pidfd_open(pid)
                    stack.callback(os.close, descriptor)
                    waiting.register(descriptor, select.POLLIN)
                    opened[descriptor] = pid
            if self._look():
                return set()
            news = {descriptor for descriptor, _ in waiting.poll()}
            if bell in news:
                with suppress(BlockingIOError):
                    os.read(bell, 4096)
            return {opened[descriptor] for descriptor in news - {bell}}

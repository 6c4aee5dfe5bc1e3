"""The line at a file lock: in a process first come, first served; between processes the kernel decides.

    OS threads and coroutines          this process                        all processes of the host
    ─ first ─ second ─ third ─►  the first asks the kernel  ──►  gate ──► body ──► (gate released) ─► … ─► body released

Only the first in line asks, without waiting. If another process has the lock, a helper (an OS thread) goes to sleep in
`flock` for whoever is first. `flock` has no time-out and Python cannot interrupt it, so who gives up leaves the line
and the helper stays: it serves the next in line, or lets go as soon as it gets the lock. That is at most two OS threads
per lock that still block, one for each mode. Alternatives that were weighed: trying again and again polls; a signal to
the helper needs a handler of ours in every program; `inotify` reports the close of a killed holder's file before the
kernel releases its lock, so a wake-up can be lost.

Every holder has open files of its own (`sync.lockfiles`), also two shared holders of one process.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from sennit.errors import UsageError
from sennit.sync.forks import drop_after_fork
from sennit.sync.lockfiles import LockFiles

__all__ = ["Line", "Turn", "line_at", "line_if_any"]


class Turn:
    """One request for the lock, from the line to the release. `wake()` is called once: it holds, or has an error.

    `wake` returns False when nobody listens any more; it is called with the line's mutex held.
    """

    __slots__ = ("error", "files", "holds", "purpose", "shared", "wake", "who")

    def __init__(self, who: object, *, shared: bool, purpose: str, wake: Callable[[], bool]) -> None:
        self.who = who
        self.shared = shared
        self.purpose = purpose
        self.wake = wake
        self.files: LockFiles | None = None
        self.holds = False
        self.error: OSError | None = None


class Line:
    """Who holds the lock at one path in this process, and who waits for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()  # held for a few system calls that do not wait
        self._holders: dict[object, Turn] = {}
        self._waiting: deque[Turn] = deque()
        self._helpers: dict[bool, _Helper] = {}  # by mode: shared or not
        self._retired = False

    def enter(self, turn: Turn, *, waits: bool) -> bool | None:
        """Take the lock if it is free and nobody is first; True if so. Else stand in line if `waits`.

        Returns:
            None: this line has ended, ask for a new one (`line_at`).

        Raises:
            UsageError: `turn.who` has the lock already.
            OSError: the file cannot be opened or locked.
        """
        with self._mutex:
            if self._retired:
                return None
            try:
                self._enter(turn, waits=waits)
            finally:
                self._retire_if_idle()
            return turn.holds

    def leave(self, turn: Turn) -> bool:
        """Stop waiting. False if the lock has come meanwhile: then it is held."""
        with self._mutex:
            if turn.holds:
                return False
            if turn in self._waiting:  # not when it has an error
                self._waiting.remove(turn)
                self._advance()
            return True

    def release(self, who: object) -> bool:
        """Let the next have the lock. False if `who` does not hold it."""
        with self._mutex:
            turn = self._holders.pop(who, None)
            if turn is None:
                return False
            self._free(turn)
            self._advance()
            return True

    def delete_files(self, who: object) -> bool:
        """Delete gate and body; False if `who` does not hold the lock exclusively."""
        with self._mutex:
            turn = self._holders.get(who)
            if turn is None or turn.shared or turn.files is None:
                return False
            turn.files.delete()
            return True

    # ------------------------------------------------------------ with the mutex held

    def _enter(self, turn: Turn, *, waits: bool) -> None:
        if turn.who in self._holders:
            raise UsageError(
                f"the lock {self._path} is already held here",
                why="it is not re-entrant: this OS thread or coroutine would wait for itself for ever",
                fix="release it first, or pass on what it protects instead of locking again",
            )
        if not self._waiting and self._fits(turn):
            helper = self._helpers.get(turn.shared)
            if helper is not None and waits:
                helper.serve()
            elif (files := self._ask(shared=turn.shared, waits=waits)) is not None:
                self._hold(turn, files)
        if waits and not turn.holds:
            self._waiting.append(turn)

    def _fits(self, turn: Turn) -> bool:
        """True if nobody of this process excludes it; of the others only the kernel knows."""
        return not self._holders or (turn.shared and all(holder.shared for holder in self._holders.values()))

    def _ask(self, *, shared: bool, waits: bool) -> LockFiles | None:
        """Return files that have the lock. None if another process has it: then a helper waits, if `waits`."""
        files = LockFiles(self._path)
        try:
            if files.take_nowait(shared=shared):
                return files
        except BaseException:  # also a Ctrl-C: a gate left locked would shut out every other process
            files.close()
            raise
        if waits:
            self._send_helper(files, shared=shared)
        else:
            files.close()
        return None

    def _hold(self, turn: Turn, files: LockFiles) -> None:
        files.sign(shared=turn.shared, purpose=turn.purpose)
        turn.files = files
        turn.holds = True
        self._holders[turn.who] = turn

    def _free(self, turn: Turn) -> None:
        turn.holds = False
        if turn.files is not None:
            turn.files.close()

    def _advance(self) -> None:
        """Give the lock to who is first, as long as it can be had, and have a helper wait for the next."""
        while self._waiting and self._fits(self._waiting[0]):
            first = self._waiting[0]
            if (helper := self._helpers.get(first.shared)) is not None:
                helper.serve()
                break
            try:
                files = self._ask(shared=first.shared, waits=True)
            except (OSError, RuntimeError) as error:  # RuntimeError: the system starts no more OS threads
                self._fail(error)
                continue
            if files is None:
                break
            self._give(files)
        for helper in self._helpers.values():
            if not self._wants(helper):
                helper.stand_back()
        self._retire_if_idle()

    def _give(self, files: LockFiles) -> None:
        turn = self._waiting.popleft()
        self._hold(turn, files)
        if not turn.wake():  # its event loop is closed
            del self._holders[turn.who]
            self._free(turn)

    def _fail(self, error: BaseException) -> None:
        turn = self._waiting.popleft()
        turn.error = error if isinstance(error, OSError) else OSError(str(error))
        turn.wake()

    def _wants(self, helper: _Helper) -> bool:
        return bool(self._waiting) and self._waiting[0].shared == helper.shared

    def _send_helper(self, files: LockFiles, *, shared: bool) -> None:
        self._helpers[shared] = helper = _Helper(files, shared=shared)
        try:
            # Not threading.Thread: its start() waits for the new one, here with the mutex and perhaps on an event loop.
            _thread.start_new_thread(self._wait_for, (helper,))
        except RuntimeError:
            del self._helpers[shared]
            files.close()
            raise

    def _retire_if_idle(self) -> None:
        if not (self._holders or self._waiting or self._helpers):
            self._retired = True
            _lines.by_path.pop(str(self._path), None)

    # ------------------------------------------------------------ the helper

    def _wait_for(self, helper: _Helper) -> None:
        """Sleep in the kernel until the lock is ours, for whoever is first in line then."""
        try:
            while True:
                helper.files.take_gate()
                with self._mutex:
                    helper.at_body = self._wants(helper)
                    if not helper.at_body:
                        self._dismiss(helper)
                        return
                helper.files.take_body(shared=helper.shared)
                with self._mutex:
                    helper.at_body = False
                    if not self._wants(helper):
                        self._dismiss(helper)
                        return
                    if helper.files.are_current():
                        del self._helpers[helper.shared]
                        self._give(helper.files)
                        self._advance()
                        return
                    helper.files.reopen()
        except OSError as error:
            with self._mutex:
                if self._wants(helper):
                    self._fail(error)
                self._dismiss(helper)

    def _dismiss(self, helper: _Helper) -> None:
        del self._helpers[helper.shared]
        helper.files.close()
        self._advance()


class _Helper:
    """An OS thread that waits in the kernel, with the files it waits with."""

    __slots__ = ("at_body", "files", "shared")

    def __init__(self, files: LockFiles, *, shared: bool) -> None:
        self.files = files
        self.shared = shared
        self.at_body = False

    def serve(self) -> None:
        """Somebody is first again who wants this mode: stand in front of the gate's line if it is free."""
        if self.at_body:
            self.files.take_gate_nowait()

    def stand_back(self) -> None:
        """Nobody is served at present: let the others pass. It cannot be called off, and lets go when it is done."""
        if self.at_body:
            self.files.free_gate()


# ---------------------------------------------------------------- all lines of this process


class _Lines:
    """The lines by path, without those that have ended."""

    def __init__(self) -> None:
        self.by_path: dict[str, Line] = {}
        drop_after_fork(self)

    def drop_after_fork(self) -> None:
        """A forked child has no locks and nobody waits in it."""
        self.by_path.clear()


_lines = _Lines()


def line_at(path: Path) -> Line:
    """Return the line of this process at the lock `path`; absolute, symlinks in its folders resolved."""
    line = _lines.by_path.get(str(path))
    return line or _lines.by_path.setdefault(str(path), Line(path))


def line_if_any(path: Path) -> Line | None:
    """Return the line at a lock that this process holds or waits for."""
    return _lines.by_path.get(str(path))

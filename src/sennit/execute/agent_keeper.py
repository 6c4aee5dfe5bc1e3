"""The keeper: one small process that stands over one agent, from before its first instruction until its last descendant is gone.

    warden ─fork─► keeper ─fork─► the program ─► its children, daemons, …
                     │  ◄── stdout, stderr: redacted, counted, into files
                     │  ◄── every orphan of the tree: PR_SET_CHILD_SUBREAPER makes it a child of the keeper
                     └──► supervisor: started, exit

The tree is killed when the program has exited, when we are told to, when a ceiling is met, and when the supervisor or the warden is
gone (their pidfds tell, also after kill -9). If the keeper itself is killed, the program dies by PR_SET_PDEATHSIG and the rest falls to
the warden. The exit is told when waitpid says ECHILD: no descendant lives. Nothing here wakes up by itself.

Forked from the warden, single-threaded (a parent-death signal is that of the parent's OS thread), standard library only.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import signal
import socket
import time
from contextlib import suppress
from typing import Any, Final, NoReturn

from sennit.execute.agent_capture import Capture
from sennit.execute.agent_exec import PR_SET_CHILD_SUBREAPER, Failed, name_process, prctl, start, write_record
from sennit.execute.agent_proc import ProcStat, descendants, everybody

__all__ = ["Keeper"]

# A killed program mostly takes its whole tree with it, and to look for the rest is a pass over /proc: it is made when
# something has died and children remain, or after this long.
_LOOK_S: Final = 0.05

_READ_BYTES: Final = 1 << 18


class Keeper:
    """One agent's keeper. `run` never returns.

    Args:
        control: to the supervisor, SEQPACKET, one JSON object per message.
        order: what to start, see `agent_exec.start`; besides secrets and output_bytes_max.
        stdin: what the program reads; None is /dev/null.
        above: pidfds of the supervisor and the warden.
        meter: 8 bytes shared with the warden: the most memory that it has seen the tree have.
    """

    def __init__(
        self, control: socket.socket, order: dict[str, Any], stdin: int | None, above: tuple[int, ...], meter: mmap.mmap
    ) -> None:
        self._control = control
        self._order = order
        self._stdin = stdin
        self._above = above
        self._meter = meter
        self._folder: bytes = order["folder"].encode("latin-1")
        self._pid = os.getpid()
        self._program = 0
        self._status: int | None = None  # of the program, once it has been waited for
        self._has_children = True
        self._cause = ""
        self._is_over = ""  # what the warden has found: a ceiling of memory, or a lease that has ended
        self._is_killing = False
        self._must_look = False  # for what of the tree is left
        self._next_s: float | None = None  # when its grace ends, or when to look in any case
        self._asked: set[tuple[int, int]] = set()  # to end
        self._left_behind: set[tuple[int, int]] = set()

    @staticmethod
    def prepare() -> None:
        """Make this process a keeper, as far as that can be done before there is anything to keep."""
        os.setsid()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        name_process(b"sennit-keeper")

    def run(self) -> NoReturn:
        """Start the program, stand over it, tell how it ended, and end. `prepare` was called before."""
        wake, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGUSR1, lambda *_: self._note("memory"))
        signal.signal(signal.SIGUSR2, lambda *_: self._note("lease"))
        try:
            self._begin()
        except Failed as failed:
            self._tell({"failed": failed.stage, "errno": failed.errno})
        else:
            self._stand(wake)
            self._end()
        os._exit(0)

    def _begin(self) -> None:
        try:
            self._capture = Capture(self._folder, self._order["secrets"], self._order["output_bytes_max"])
        except OSError as error:
            raise Failed("folder", error) from error
        started = start(self._order, self._stdin, is_wanted=self._is_wanted)
        self._program = started.pid
        self._outs = dict(zip(started.outs, ("stdout", "stderr"), strict=True))
        self._tell({"started": started.pid, "ticks": started.ticks, "keeper": self._pid})

    def _is_wanted(self) -> bool:
        """Tell whether nobody above has died, and the supervisor has said nothing: it could only be that it is to end."""
        poll = select.poll()
        for descriptor in (self._control.fileno(), *self._above):
            poll.register(descriptor, select.POLLIN)
        return not poll.poll(0)

    # ---------------------------------------------------------------- while it runs

    def _stand(self, wake: int) -> None:
        """Return when no descendant is left, or none that is ours to kill, and all output is written."""
        poll = select.poll()
        for descriptor in (self._control.fileno(), wake, *self._above, *self._outs):
            poll.register(descriptor, select.POLLIN)
        while self._go_on():
            for descriptor, _ in poll.poll(self._timeout_ms()):
                if descriptor == wake:
                    os.read(wake, 4096)
                    ended = False
                elif descriptor in self._outs:
                    ended = self._take(descriptor) == 0
                elif descriptor == self._control.fileno():
                    ended = not self._obey()
                else:
                    self._end_because("lost")
                    ended = True
                if ended:
                    poll.unregister(descriptor)
        for descriptor in self._outs:
            while self._take(descriptor):
                pass

    def _go_on(self) -> bool:
        """See who has died, and do what is due; False when this is over."""
        died = self._reap()
        if not self._has_children:
            return False
        if self._is_over:
            cause, self._is_over = self._is_over, ""
            self._end_because(cause)
        is_due = self._next_s is not None and time.monotonic() >= self._next_s
        if not self._is_killing and (is_due or (self._status is not None and self._next_s is None)):
            self._kill()
        elif is_due:
            self._must_look = True
        elif died and self._asked and self._status is not None:
            self._terminate()
        if self._is_killing and (self._must_look or died):
            return self._sweep()
        return True

    def _timeout_ms(self) -> float | None:
        return None if self._next_s is None else max(0.0, self._next_s - time.monotonic()) * 1000

    def _note(self, cause: str) -> None:
        self._is_over = cause

    def _take(self, descriptor: int) -> int | None:
        """Move what is in a pipe to its file; return how much that was: 0 at its end, None when there is nothing now."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return None
        trouble = self._capture.write(self._outs[descriptor], data)
        if trouble:
            self._end_because(trouble)
        return len(data)

    def _obey(self) -> bool:
        """Do what the supervisor says; False when it says nothing any more."""
        try:
            message = self._control.recv(4096)
        except OSError:  # reset: it ended with a message of ours unread
            message = b""
        if not message:
            self._end_because("lost")
            return False
        wish = json.loads(message)
        if wish["term_s"] <= 0:
            self._end_because(wish["cause"])
        elif not self._is_killing:
            self._blame(wish["cause"])
            self._terminate()
            until_s = time.monotonic() + wish["term_s"]
            self._next_s = until_s if self._next_s is None else min(self._next_s, until_s)
        return True

    # ---------------------------------------------------------------- the end of it

    def _blame(self, cause: str) -> None:
        if self._status is None and not self._cause:  # the first reason counts, and none if it has ended by itself
            self._cause = cause

    def _end_because(self, cause: str) -> None:
        self._blame(cause)
        if not self._is_killing:
            self._kill()

    def _terminate(self) -> None:
        """Ask all of the tree to end, each once; again when the program has, for those that were forked meanwhile.

        Who is stopped is let go on, or it would not hear of it.
        """
        for stat in descendants(self._pid, everybody()):
            if (stat.pid, stat.ticks) in self._asked:
                continue
            self._asked.add((stat.pid, stat.ticks))
            with suppress(ProcessLookupError, PermissionError):
                os.kill(stat.pid, signal.SIGTERM)
                os.kill(stat.pid, signal.SIGCONT)

    def _kill(self) -> None:
        """Begin to kill the tree: the program and its group at once, what is left when these have died."""
        self._is_killing = True
        if self._status is None:  # not waited for yet: the numbers are still its own
            self._next_s = time.monotonic() + _LOOK_S
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._program, signal.SIGKILL)
        else:
            self._must_look = True

    def _sweep(self) -> bool:
        """Kill all descendants; False when those that are left are not ours to kill.

        One that was forked too late to be seen had a parent that was killed, or has just died: either death wakes us, and
        we look again.
        """
        self._must_look, self._next_s = False, None
        while True:
            tree = descendants(self._pid, everybody())
            are_ours = [self._kill_one(stat) for stat in tree]
            if not self._reap():
                return not tree or any(are_ours)
            if not self._has_children:
                return False

    def _kill_one(self, stat: ProcStat) -> bool:
        is_ours = True
        try:
            os.kill(stat.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except PermissionError:  # it runs as somebody else by now (sudo)
            is_ours = False
        if self._status is not None and not stat.is_dead:
            self._left_behind.add((stat.pid, stat.ticks))
        return is_ours

    def _reap(self) -> int:
        """Take the exits that are there; return how many."""
        count = 0
        while self._has_children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_children = False
                break
            if pid == 0:
                break
            count += 1
            if pid == self._program:
                self._status = status
        return count

    def _end(self) -> None:
        trouble = self._capture.close()
        if trouble and not self._cause:
            self._cause = trouble
        code = -int(signal.SIGKILL) if self._status is None else os.waitstatus_to_exitcode(self._status)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        story = {
            "code": code if code >= 0 else None,
            "signal": -code if code < 0 else 0,
            "cause": self._cause,
            "left_behind": len(self._left_behind),
            "cpu_s": used.ru_utime + used.ru_stime,
            "memory_bytes_peak": max(used.ru_maxrss * 1024, int.from_bytes(self._meter[:8], "little")),
        }
        with suppress(OSError):  # the disk may be full; the supervisor is told all the same
            write_record(self._folder, b"exit.json", story)
        self._tell({"exit": story})

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the supervisor is gone
            self._control.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)

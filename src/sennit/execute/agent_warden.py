"""The warden: one small process per supervisor that forks a keeper for each agent, and ends what a killed keeper leaves.

    supervisor ─Unix SEQPACKET: JSON + descriptors─► warden ─fork─► keeper ─► agent
        │ pidfd                                        ├─fork─► keeper ─► agent
        └── gone: keepers end their trees, then we ────┴─ strays of a keeper that was killed: killed, then "swept" is told

It exists because a process must be single-threaded to fork Python safely and to own a parent-death signal, which the supervisor is not;
because a fork of 10 MB is cheap and one of the supervisor is not; and because a subreaper above the keepers makes kill -9 of any of them
harmless. It sleeps while nothing happens, and samples memory once a second as long as an agent with a ceiling runs. A supervisor
with a lease says until when it holds; if it does not renew in time, because it is frozen, its agents are ended.

Run by its path with `python -I -S`: standard library only, and of sennit only its neighbours, none of which import the rest.
"""

# ruff: noqa: PTH100, PTH120 - pathlib would be a third of its start
from __future__ import annotations

import os
import sys
import types

if __name__ == "__main__":  # sennit need not be on the path, and its __init__ is not for here
    _folder = os.path.dirname(os.path.abspath(__file__))
    for _name, _path in (("sennit", os.path.dirname(_folder)), ("sennit.execute", _folder)):
        _package = types.ModuleType(_name)
        _package.__path__ = [_path]
        sys.modules[_name] = _package

import errno
import gc
import json
import mmap
import select
import signal
import socket
import time
import traceback
from contextlib import suppress
from typing import Any, Final, NamedTuple, NoReturn

from sennit.execute.agent_exec import PR_SET_CHILD_SUBREAPER, name_process, prctl
from sennit.execute.agent_keeper import Keeper
from sennit.execute.agent_proc import descendants, everybody, proportional_bytes, resident_bytes

__all__ = ["Warden"]

_SAMPLE_S: Final = 1.0
_REQUEST_BYTES_MAX: Final = 4096
_DESCRIPTORS_MAX: Final = 3

# What is sent to a whole service or a terminal's group at a stop is for the supervisor to act on: warden and keepers live as
# long as it does.
_IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Kept(NamedTuple):
    """One keeper: which run it has, the ceiling of its tree (0 is none), and the most memory that was seen."""

    run: int
    memory_bytes_max: int
    meter: mmap.mmap


class Spare(NamedTuple):
    """A keeper that was forked before there is anything for it: the next agent starts sooner by that."""

    pid: int
    line: socket.socket
    meter: mmap.mmap


def receive(line: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message and its descriptors if there is one, else nothing; also when the other end is closed."""
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT  # socket.recv_fds takes flags and forgets them
    try:
        message, ancillary, _, _ = line.recvmsg(_REQUEST_BYTES_MAX, socket.CMSG_SPACE(4 * _DESCRIPTORS_MAX), flags)
    except OSError:
        return b"", []
    descriptors = [
        int.from_bytes(data[place : place + 4], sys.byteorder)
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for place in range(0, len(data) - 3, 4)
    ]
    return message, descriptors


class Warden:
    """The loop of the warden; it ends when the supervisor is gone or says so, and no keeper is left.

    Args:
        line: to the supervisor.
        supervisor: its pidfd.
    """

    def __init__(self, line: socket.socket, supervisor: int) -> None:
        self._line = line
        self._supervisor = supervisor
        self._own = os.pidfd_open(os.getpid())
        self._keepers: dict[int, Kept] = {}
        self._spare: Spare | None = None
        self._unswept: list[int] = []  # runs whose keeper was killed
        self._must_sweep = False
        self._has_strays = False
        self._sample_s = 0.0
        self._until_s: float | None = None  # of the supervisor's lease, on the clock of this boot
        self._wake, self._wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve."""
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        for descriptor in (self._line.fileno(), self._supervisor, self._wake):
            poll.register(descriptor, select.POLLIN)
        is_open = True
        self._tell({"ready": os.getpid()})
        while is_open or self._keepers or self._spare or self._has_strays:
            if is_open and self._spare is None and not poll.poll(0):  # nothing better to do
                with suppress(OSError):  # too many processes: whoever asks next is told
                    self._fork()
            for descriptor, _ in poll.poll(self._timeout_ms()):
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif descriptor == self._supervisor or not self._serve():
                    # Keepers that are left see it themselves, by their own line and the same pidfd.
                    if is_open:
                        poll.unregister(self._line.fileno())
                        poll.unregister(self._supervisor)
                    is_open = False
                    if self._spare:
                        self._spare.line.close()  # it ends by that
                    break
            self._reap()
            if self._must_sweep:
                self._sweep()
            self._sample()
            self._look_at_lease()

    # ---------------------------------------------------------------- keepers

    def _serve(self) -> bool:
        """Give one order to a keeper; False when nothing more will be asked."""
        trouble = 0
        try:
            # Before the order's descriptors are here: a keeper that is forked now must not have a second copy of them.
            spare = self._spare or self._fork()
        except OSError as error:
            trouble = error.errno or errno.EAGAIN
        message, descriptors = receive(self._line)
        if not message:
            return False
        request = json.loads(message)
        if "until_s" in request:
            self._until_s = request["until_s"]
            return True
        if not trouble:
            try:
                try:
                    socket.send_fds(spare.line, [message], descriptors)
                except OSError:  # it was killed while it waited
                    spare.line.close()
                    spare = self._fork()
                    socket.send_fds(spare.line, [message], descriptors)
            except OSError as error:
                trouble = error.errno or errno.EPIPE
            else:
                self._keepers[spare.pid] = Kept(request["run"], request["memory_bytes_max"], spare.meter)
                spare.line.close()
                self._spare = None
        if trouble:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptors[0])) as control:
                control.send(json.dumps({"failed": "fork", "errno": trouble}).encode(), socket.MSG_NOSIGNAL)
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _fork(self) -> Spare:
        """Return a keeper that waits for its order. There is never more than one: it would have the other's line."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        meter = mmap.mmap(-1, 8)
        with its:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._keep(its, meter)
        self._spare = Spare(pid, ours, meter)
        return self._spare

    def _keep(self, line: socket.socket, meter: mmap.mmap) -> NoReturn:
        """In the child: be a keeper, and never come back."""
        try:
            signal.set_wakeup_fd(-1)
            self._line.close()  # or the supervisor would not see that the warden has died
            os.close(self._wake)
            os.close(self._wakes)
            Keeper.prepare()
            above = (self._supervisor, self._own)
            poll = select.poll()
            for descriptor in (line.fileno(), *above):
                poll.register(descriptor, select.POLLIN)
            poll.poll()
            message, descriptors = receive(line)
            line.close()
            if not message:
                os._exit(0)
            control, order, *stdin = descriptors
            with os.fdopen(order, "rb") as file:
                wanted = json.load(file)
            Keeper(socket.socket(fileno=control), wanted, stdin[0] if stdin else None, above, meter).run()
        except BaseException:  # noqa: BLE001 - two wardens would be worse; the supervisor sees that this one is gone, and asks
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            kept = self._keepers.pop(pid, None)
            if self._spare and pid == self._spare.pid:
                self._spare.line.close()
                self._spare = None
            elif kept is None:
                self._must_sweep = True  # a stray has died; its children are ours now
            elif status != 0:
                self._unswept.append(kept.run)
                self._must_sweep = True

    def _sweep(self) -> None:
        """Kill what dead keepers have left; tell of their runs when nothing is left. The next death makes us look again."""
        self._must_sweep = self._has_strays = False
        processes = everybody()
        own, ours = os.getpid(), {*self._keepers, self._spare.pid if self._spare else 0}
        strays = [stat for stat in processes if stat.parent == own and stat.pid not in ours]
        strays += [below for stat in strays for below in descendants(stat.pid, processes)]
        for stat in strays:
            try:
                os.kill(stat.pid, signal.SIGKILL)
            except PermissionError:
                continue  # it runs as somebody else by now (sudo)
            except ProcessLookupError:
                pass
            self._has_strays = True
        if not self._has_strays:
            for run in self._unswept:
                self._tell({"swept": run})
            self._unswept.clear()

    # ---------------------------------------------------------------- memory

    def _timeout_ms(self) -> float | None:
        waits = []
        if any(kept.memory_bytes_max for kept in self._keepers.values()):
            waits.append(self._sample_s - time.monotonic())
        if self._until_s is not None and self._keepers:
            waits.append(self._until_s - time.clock_gettime(time.CLOCK_BOOTTIME))
        return max(0.0, min(waits)) * 1000 if waits else None

    def _look_at_lease(self) -> None:
        """End all agents when the supervisor's lease has: it is frozen, and others may have its tasks by now."""
        if self._until_s is not None and self._keepers and time.clock_gettime(time.CLOCK_BOOTTIME) >= self._until_s:
            self._until_s = None
            for pid in self._keepers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)

    def _sample(self) -> None:
        """Note the memory of the trees that have a ceiling; tell their keepers that are over it."""
        if time.monotonic() < self._sample_s or not any(kept.memory_bytes_max for kept in self._keepers.values()):
            return
        processes = everybody()
        for pid, kept in self._keepers.items():
            if kept.memory_bytes_max:
                tree = descendants(pid, processes)
                size = sum(resident_bytes(stat.pid) for stat in tree)
                if size > kept.memory_bytes_max:  # shared pages counted twice? Only now it is worth to know
                    size = sum(proportional_bytes(stat.pid) for stat in tree)
                if size > int.from_bytes(kept.meter[:8], "little"):
                    kept.meter[:8] = size.to_bytes(8, "little")
                if size > kept.memory_bytes_max:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGUSR1)
        self._sample_s = time.monotonic() + _SAMPLE_S

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the supervisor is gone
            self._line.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)


def main(argv: list[str]) -> None:
    """Run as `agent_warden.py LINE PIDFD`, both descriptors."""
    line, supervisor = (int(word) for word in argv)
    for descriptor in (line, supervisor):
        os.set_inheritable(descriptor, False)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    name_process(b"sennit-warden")
    gc.disable()  # nothing here makes cycles, and a collection would write to pages that all keepers share
    gc.freeze()
    Warden(socket.socket(fileno=line), supervisor).run()


if __name__ == "__main__":
    main(sys.argv[1:])

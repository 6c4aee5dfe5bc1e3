"""Programs that run under supervision: none outlives its supervisor, and none of their output is lost.

    Supervisor (this process, its event loop, no OS thread)
       │ SEQPACKET line, one per supervisor
       ▼
    warden, one process ──fork──► keeper, one per agent ──fork+exec──► program ──► whatever it starts
                                   │ stdout.log, stderr.log, process.json, exit.json
                                   └─ line per agent: started, exit ─► AgentProcess.exited

Who dies first does not matter:

    program      the keeper kills what it leaves, then tells the exit
    keeper       the program dies by its parent-death signal, the warden kills the rest
    warden       keepers end their trees; the next spawn starts another warden
    supervisor   keepers end their trees, then the warden ends
    all at once  programs die with their keepers; `clean_up` of the next supervisor finds their descendants by a nonce

Of use without an App and without a store. Linux 5.3 (pidfd) and later.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import shutil
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec

from sennit.errors import AgentError, AgentMissing, AgentUnsupported, UsageError
from sennit.execute.adapters.base import Exit
from sennit.execute.agent_environ import environment
from sennit.execute.agent_leftover import NONCE, LeftOver, clean_up, kill_marked, pid_namespace, read_record
from sennit.execute.agent_link import WardenLink
from sennit.execute.agent_proc import stat_of
from sennit.execute.agent_process import AgentProcess, ProcessSpec
from sennit.sync.clock import boot_id

__all__ = ["AgentProcess", "LeftOver", "ProcessSpec", "Supervisor", "SupervisorStatistics", "clean_up", "environment"]

_KILLED: Final = Exit(signal=9, cause="lost")


class SupervisorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor has done.

    Attributes:
        live: programs that have not exited.  spawned: all that were started.
        killed: trees that were ended, by a wish, a ceiling or a lost keeper.
        left_behind: processes that outlived their program and were killed.
        warden_restarts: wardens after the first.
        warden_pid: 0 without one.
    """

    live: int = 0
    spawned: int = 0
    killed: int = 0
    left_behind: int = 0
    warden_restarts: int = 0
    warden_pid: int = 0


class Supervisor:
    """Spawns programs and stands over them. Belongs to the event loop of its first spawn; until then it has nothing."""

    def __init__(self) -> None:
        self._live: dict[int, AgentProcess] = {}
        self._runs = 0
        self._spawned = self._killed = self._left_behind = self._wardens = 0
        self._warden: WardenLink | None = None
        self._starting = asyncio.Lock()
        self._is_closed = False
        self._until_s: float | None = None
        self._orphans: list[AgentProcess] = []  # keeper and warden were killed
        self._cleaning: asyncio.Task[None] | None = None

    async def spawn(self, spec: ProcessSpec) -> AgentProcess:
        """Start a program; return when it runs. Cancelled meanwhile, nothing of it is left.

        Raises:
            AgentMissing: there is no such program, or it cannot be executed.
            AgentUnsupported: not on Linux, or the kernel is too old.
            AgentError: the folders, the system's limits, or the warden.
            UsageError: it is closed.
        """
        _check_system()
        program = _find(spec)
        warden = await self._warden_ready()
        self._runs += 1
        ours, theirs = _pair()
        ours.setblocking(False)
        process = AgentProcess(self._runs, ours, spec, boot_id(), self._note_end)
        self._live[process.run] = process
        try:
            with ExitStack() as passed, theirs:
                descriptors = [theirs.fileno(), _memory(_order(spec, program), passed)]
                pipe = None
                try:
                    if spec.talks:
                        read_end, pipe = os.pipe()
                        passed.callback(os.close, read_end)
                        process.give_stdin(pipe)
                        descriptors.append(read_end)
                    elif spec.stdin is not None:
                        descriptors.append(_memory(spec.stdin, passed))
                except OSError as error:
                    raise _refused(error) from error
                await warden.send({"run": process.run, "memory_bytes_max": spec.memory_bytes_max}, descriptors)
            if spec.talks and spec.stdin:
                process.write(spec.stdin)
            said = await process.started
        except BaseException:
            process.end(None)  # its line closes: the keeper ends the tree, if there is one by now
            raise
        if "failed" in said:
            raise _failure(spec, program, said["failed"], said["errno"])
        if not said:
            raise AgentError(
                f"{spec.argv[0]} was not started: its keeper ended first",
                why=warden.last_words(),
                fix="try again",
            )
        self._spawned += 1
        return process

    def statistics(self) -> SupervisorStatistics:
        """Return what it has done so far."""
        return SupervisorStatistics(
            live=len(self._live),
            spawned=self._spawned,
            killed=self._killed,
            left_behind=self._left_behind,
            warden_restarts=max(0, self._wardens - 1),
            warden_pid=self._warden.pid if self._warden else 0,
        )

    def hold_until(self, until_s: float | None) -> None:
        """Say until when what runs here is ours; any OS thread may. When that time comes unrenewed all of it is killed.

        For who holds a lease: a supervisor that is frozen past it must not have agents that work on.

        Args:
            until_s: on CLOCK_BOOTTIME; None is for ever, and how it begins.
        """
        self._until_s = until_s
        warden = self._warden
        if warden is not None:
            warden.say_until(until_s)

    async def close(self) -> None:
        """Kill what is left, and return when nothing of it lives. Again: nothing."""
        self._is_closed = True
        live = list(self._live.values())
        for process in live:
            process.kill("stopped")
        if live:
            await asyncio.wait([process.over for process in live])
        if self._cleaning is not None:
            await self._cleaning
        async with self._starting:
            warden = self._warden
        if warden is not None:
            warden.bye()
            await warden.ended

    # ---------------------------------------------------------------- the warden

    async def _warden_ready(self) -> WardenLink:
        if self._is_closed:
            raise UsageError("this supervisor is closed", fix="make another one")
        async with self._starting:
            if self._warden is None:
                try:
                    self._warden = WardenLink(on_swept=self._note_swept, on_end=self._note_warden_end)
                except OSError as error:
                    raise _refused(error) from error
                self._wardens += 1
                self._warden.say_until(self._until_s)
            warden = self._warden
            await asyncio.shield(warden.ready)
        return warden

    def _note_warden_end(self, warden: WardenLink) -> None:
        if self._warden is warden:
            self._warden = None
        # Those whose keeper was killed wait for a word of the warden that does not come.
        for process in list(self._live.values()):
            if process.is_lost:
                self._clean(process)

    # ---------------------------------------------------------------- ends

    def _note_end(self, process: AgentProcess) -> None:
        """Take what a process has to tell: it has ended, or its keeper has and the warden is to end the rest."""
        if process.over.done():
            self._live.pop(process.run, None)
            if not process.over.cancelled():
                ended = process.over.result()
                self._killed += bool(ended.cause)
                self._left_behind += ended.left_behind
        elif self._warden is None:
            self._clean(process)

    def _note_swept(self, run: int) -> None:
        process = self._live.get(run)
        if process is not None:
            process.lose(_KILLED)

    def _clean(self, process: AgentProcess) -> None:
        """Look for what a killed keeper has left, when there is no warden to do it; all that wait for it in one go."""
        if process not in self._orphans:
            self._orphans.append(process)
        if self._cleaning is None:
            self._cleaning = asyncio.get_running_loop().create_task(self._clean_all())

    async def _clean_all(self) -> None:
        try:
            while self._orphans:
                orphans, self._orphans = self._orphans, []
                await asyncio.to_thread(_kill_runs, [process.folder for process in orphans])
                for process in orphans:
                    process.lose(_KILLED)
        finally:
            self._cleaning = None


def _kill_runs(folders: list[Path]) -> None:
    records = [read_record(folder) for folder in folders]
    kill_marked(record.nonce for record in records if record is not None)


# -------------------------------------------------------------------- before the start


def _check_system() -> None:
    if sys.platform != "linux" or not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        raise AgentUnsupported(
            "agents are not run on this system",
            why="supervision needs Linux 5.3 or later and a Python that was built for it: pidfds, subreapers, parent-death signals",
            fix="run the workers that have agents on Linux, in a container or a virtual machine",
        )


def _find(spec: ProcessSpec) -> str:
    """Return the file to execute."""
    if not spec.argv or not spec.argv[0]:
        raise AgentMissing("an agent has no program", fix="argv begins with a file or a name on PATH")
    name = spec.argv[0]
    if os.sep in name:
        return name  # from `cwd` on; the kernel says what is wrong with it
    path = spec.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=path)
    if found is None:
        raise AgentMissing(
            f"{name} is not installed here", why=f"no such program on PATH={path}", fix="install it, or name its file"
        )
    return str(Path(found).absolute())


def _bytes(text: str | os.PathLike[str]) -> str:
    """Return the bytes of a path or an argument as latin-1: JSON carries them whatever they are."""
    return os.fsencode(text).decode("latin-1")


def _order(spec: ProcessSpec, program: str) -> bytes:
    supervisor = stat_of(os.getpid())
    nonce = secrets.token_hex(16)
    return json.dumps(
        {
            "program": _bytes(program),
            "argv": [_bytes(word) for word in spec.argv],
            "environ": {_bytes(name): _bytes(value) for name, value in {**spec.environ, NONCE: nonce}.items()},
            "cwd": _bytes(spec.cwd.absolute()),
            "folder": _bytes(spec.folder.absolute()),
            "secrets": list(spec.secrets),
            "output_bytes_max": spec.output_bytes_max,
            "identity": {
                "supervisor_pid": os.getpid(),
                "supervisor_started_ticks": supervisor.ticks if supervisor else 0,
                "boot_id": boot_id(),
                "pid_namespace": pid_namespace(),
                "nonce": nonce,
            },
        }
    ).encode()


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise _refused(error) from error


def _memory(data: bytes, passed: ExitStack) -> int:
    """Return a descriptor of a file in memory that holds `data`, closed with `passed`."""
    try:
        descriptor = os.memfd_create("sennit-agent")
        passed.callback(os.close, descriptor)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError as error:
        raise _refused(error) from error
    return descriptor


# -------------------------------------------------------------------- what went wrong


def _refused(error: OSError) -> AgentError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return AgentError(
        "the system refuses another agent", why=why, fix="run fewer at once, or raise ulimit -n and -u (pids.max)"
    )


def _failure(spec: ProcessSpec, program: str, stage: str, number: int) -> AgentError:
    """Return the error for what the keeper could not do."""
    why = os.strerror(number)
    match stage:
        case "cwd":
            return AgentError(
                f"{spec.argv[0]} was not started: it cannot work in {spec.cwd}", why=why, fix="make that folder"
            )
        case "folder":
            return AgentError(
                f"{spec.argv[0]} was not started: nothing can be written to {spec.folder}", why=why, fix="see the disk"
            )
        case _ if number == errno.ECANCELED:
            return AgentError(f"{spec.argv[0]} was not started: it was stopped first")
        case "program" if number == errno.E2BIG:
            return AgentError(
                f"{spec.argv[0]} was not started: arguments and environment are too long",
                why=why,
                fix="give the prompt by stdin",
            )
        case "program":
            return _missing(spec, program, number)
        case _:
            return _refused(OSError(number, why))


def _missing(spec: ProcessSpec, program: str, number: int) -> AgentMissing:
    file = spec.cwd / program
    if number == errno.ENOENT and file.exists():
        with suppress(OSError), file.open("rb") as script:
            first = script.readline(256).decode(errors="replace").strip()
            if first.startswith("#!"):
                return AgentMissing(
                    f"{program} cannot be run",
                    why=f"its first line names no program that is here: {first}",
                    fix="install that",
                )
        return AgentMissing(
            f"{program} cannot be run", why="its loader is not here", fix="install the build for this system"
        )
    if number == errno.ENOEXEC:
        return AgentMissing(
            f"{program} is no program", why="it has no #! line and is no binary of this system", fix="add the line"
        )
    fix = "install it" if number in {errno.ENOENT, errno.ENOTDIR} else f"see ls -l {program}"
    return AgentMissing(f"{program} cannot be run", why=os.strerror(number), fix=fix)

"""After a crash of everybody above it: what of a run is still alive, and its end. Never by name, never by a bare pid.

    process.json ─ boot, pid namespace: others' ─► nothing here is of this run
                 ├ supervisor lives ──────────────► its business
                 └ else: keeper, program (pid and start), whoever has the nonce in its environment ─► killed

When only the supervisor was killed, its keepers end their trees themselves, and there is nothing to do. When supervisor, warden and
keepers were killed at once, the programs die with their keepers (PR_SET_PDEATHSIG) and their descendants are found by the nonce. A
descendant that has wiped its environment after such a crash is out of reach: there is nothing left to know it by.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, pidfd_send_signal
from typing import Final

import msgspec

from sennit.execute.agent_proc import descendants, everybody, read, stat_of
from sennit.sync.clock import boot_id, monotonic_s

__all__ = ["NONCE", "LeftOver", "ProcessRecord", "clean_up", "kill_marked", "pid_namespace", "read_record"]

# In the environment of the program, and so of its descendants.
NONCE: Final = "SENNIT_AGENT_NONCE"

# A killed process is gone in microseconds, unless a disk or a driver holds it: then nobody can do more.
_DIE_S: Final = 5.0

# What a keeper may take to write the last output once its tree is gone.
_KEEPER_S: Final = 1.0


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What process.json says: who the processes of a run are. Written before the program's first instruction."""

    pid: int
    started_ticks: int
    keeper_pid: int
    keeper_started_ticks: int
    supervisor_pid: int
    supervisor_started_ticks: int
    boot_id: str
    pid_namespace: str
    nonce: str


class LeftOver(msgspec.Struct, frozen=True, kw_only=True):
    """What was left of a run after a crash, and was ended."""

    pid: int
    killed: int


def pid_namespace() -> str:
    """Return what tells our pids from those of a container, "" where the system does not say."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def read_record(folder: Path) -> ProcessRecord | None:
    """Return what process.json of a run says, None if its program never ran."""
    try:
        return msgspec.json.decode((folder / "process.json").read_bytes(), type=ProcessRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def clean_up(folder: Path) -> LeftOver | None:
    """End what is left of the run in `folder`; None if there was nothing, or a supervisor that lives has it.

    Blocks until what was killed is gone, milliseconds as a rule, at most 5 s each for the keeper and for the rest.

    Raises:
        OSError: the folder cannot be read.
    """
    record = read_record(folder)
    if record is None or (folder / "exit.json").exists():  # the keeper has seen the last of it go
        return None
    if record.boot_id != boot_id() or record.pid_namespace != pid_namespace():
        return None
    if _is_alive(record.supervisor_pid, record.supervisor_started_ticks):
        return None
    killed = _end_keeper(record) + kill_marked({record.nonce})
    return LeftOver(pid=record.pid, killed=killed) if killed else None


def kill_marked(nonces: Iterable[str]) -> int:
    """Kill all processes that have one of the nonces in their environment, until none is left; return how many."""
    marks = [f"{NONCE}={nonce}".encode() for nonce in nonces]

    def is_marked(pid: int) -> bool:
        words = read(f"/proc/{pid}/environ").split(b"\0")
        return any(mark in words for mark in marks)

    count = 0
    until_s = monotonic_s() + _DIE_S
    while monotonic_s() < until_s:
        dying = [pidfd for stat in everybody() if (pidfd := _send(stat.pid, is_marked)) is not None]
        count += len(dying)
        _await(dying, until_s)
        if not dying:
            break
    return count


def _end_keeper(record: ProcessRecord) -> int:
    """End the tree of a keeper that lives, then itself; return how many processes of the tree that were.

    Once its tree is gone it writes the last output and ends by itself; it is killed only if it does not (SIGSTOP).
    """
    count = 0
    is_keeper = _began_at(record.keeper_started_ticks)
    until_s = monotonic_s() + _DIE_S
    while is_keeper(record.keeper_pid) and monotonic_s() < until_s:
        tree = [stat for stat in descendants(record.keeper_pid, everybody()) if not stat.is_dead]
        dying = [pidfd for stat in tree if (pidfd := _send(stat.pid, _began_at(stat.ticks))) is not None]
        count += len(dying)
        _await(dying, until_s)
        keeper = None if dying else _send(record.keeper_pid, is_keeper, signal=0)
        if keeper is not None and not _await([keeper], monotonic_s() + _KEEPER_S):
            killed = _send(record.keeper_pid, is_keeper)
            _await([] if killed is None else [killed], until_s)
    # Its parent-death signal may be on its way, and it may have wiped its environment.
    program = _send(record.pid, _began_at(record.started_ticks))
    if program is not None:
        _await([program], until_s)
        count += 1
    return count


def _began_at(ticks: int) -> Callable[[int], bool]:
    return lambda pid: _is_alive(pid, ticks)


def _is_alive(pid: int, ticks: int) -> bool:
    """Tell whether this very process lives."""
    stat = stat_of(pid)
    return stat is not None and stat.ticks == ticks and not stat.is_dead


def _send(pid: int, is_meant: Callable[[int], bool], signal: int = SIGKILL) -> int | None:
    """Signal a process if it is meant; return a pidfd that becomes readable at its end, None if it was not or could not be."""
    if not is_meant(pid):
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # Asked again now that the number cannot come to mean another process without our seeing it.
    if is_meant(pid):
        with suppress(OSError):
            pidfd_send_signal(pidfd, signal)
            return pidfd
    os.close(pidfd)
    return None


def _await(pidfds: Iterable[int], until_s: float) -> bool:
    """Wait until these processes have ended, or `until_s`; close the pidfds, and tell whether all have."""
    poll = select.poll()
    pidfds = list(pidfds)
    waiting = set(pidfds)
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    while waiting and (left_s := until_s - monotonic_s()) > 0:
        for pidfd, _ in poll.poll(left_s * 1000):
            poll.unregister(pidfd)
            waiting.discard(pidfd)
    for pidfd in pidfds:
        os.close(pidfd)
    return not waiting

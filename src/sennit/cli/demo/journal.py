"""What the bodies themselves say they did: one line at the start of each attempt, one at its end.

    body starts ─► [task, attempt, pid, µs, kind, label, "started"]  ─► … ─► the same with how it ended ─► journal

The store is not asked. A line is one `write` to a file opened with O_APPEND, so any number of processes share the
file, and what was written before a kill -9 stays written. A start without an end is an attempt that died.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from sennit.cli.demo.client import RateLimited
from sennit.cli.demo.records import Attempt, Outcome, Record
from sennit.errors import AttemptCancelled, AttemptHeldBack, AttemptSuspended
from sennit.submit.context import current
from sennit.sync.clock import uptime_us


class Entry(Record, frozen=True, array_like=True):
    """One line. `at_us` is the uptime of the machine: the same clock in every process."""

    task_id: int
    attempt: int
    worker_pid: int
    at_us: int
    kind: str
    label: str
    outcome: Outcome | Literal["started"]


@contextmanager
def journalled(path: str, kind: str, label: str) -> Iterator[None]:
    """Write the start and the end of the attempt this code runs in; called outside of one, write nothing."""
    if current() is None:
        yield
        return
    begun(path, kind, label)
    try:
        yield
    except BaseException as error:
        _write(path, kind, label, _outcome_of(error))
        raise
    _write(path, kind, label, "succeeded")


def begun(path: str, kind: str, label: str) -> None:
    """Write the start of the attempt this is called in; outside of one, nothing. Its end is for others to say."""
    _write(path, kind, label, "started")


def _write(path: str, kind: str, label: str, outcome: Outcome | Literal["started"]) -> None:
    attempt = current()
    if attempt is not None:
        task = attempt.task
        append(Path(path), Entry(task.id, task.attempt, os.getpid(), uptime_us(), kind, label, outcome))


def _outcome_of(error: BaseException) -> Outcome:
    match error:
        case AttemptSuspended():
            return "suspended"
        case AttemptCancelled():
            return "cancelled"
        case RateLimited() | AttemptHeldBack():
            return "rate_limited"
        case _:
            return "failed"


def append(path: Path, entry: Entry) -> None:
    """Add one line. Whole or not at all, whoever else writes and whatever kills us."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(entry) + b"\n")
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Entry]:
    """Return all lines, in order; none when nothing was written.

    Raises:
        msgspec.DecodeError: a line is torn.
    """
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(Entry)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def attempts(
    entries: Sequence[Entry], *, started_us: int, ended_us: int, killed_us: Mapping[int, int]
) -> list[Attempt]:
    """Join starts and ends, in order of the starts; times count from `started_us`.

    Args:
        killed_us: pid → when that process was killed: there its open attempts end.
    """
    ends = {(entry.task_id, entry.attempt): entry for entry in entries if entry.outcome != "started"}
    joined = []
    for entry in entries:
        if entry.outcome != "started":
            continue
        end = ends.get((entry.task_id, entry.attempt))
        end_us, outcome = killed_us.get(entry.worker_pid, ended_us), "killed"
        if end is not None:
            end_us, outcome = end.at_us, end.outcome
        joined.append(
            Attempt(
                task_id=entry.task_id,
                kind=entry.kind,
                label=entry.label,
                worker_pid=entry.worker_pid,
                attempt=entry.attempt,
                start_s=(entry.at_us - started_us) / 1e6,
                end_s=(end_us - started_us) / 1e6,
                outcome=outcome,  # type: ignore[arg-type]  # "started" was sorted out above
            )
        )
    return joined

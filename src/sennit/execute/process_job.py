"""What goes into a pool of worker processes, and what can be said about it: jobs, counts, errors."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from sennit.errors import BodyFailed
from sennit.execute.process_child import Failure

__all__ = ["Job", "ProcessPoolStatistics", "to_error"]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One call for a worker process. Two jobs are never equal: the object itself is the handle for `kill`.

    Attributes:
        handler_ref: `module:qualname` of the function, or of an object whose `function` it is.
        payload: what the runner decodes.
        runner_ref: `module:qualname` of a runner of its own, "" for that of the pool.
    """

    handler_ref: str
    payload: bytes
    runner_ref: str = ""


@dataclass(frozen=True, slots=True)
class ProcessPoolStatistics:
    """A snapshot; `answered` (returned or raised), `crashed`, `taken_back` and `recycled` count since the pool was made.

    `running` are jobs that were sent to a child, `ahead` those of them that have another before them there, `taken_back`
    jobs that went on elsewhere after they had been sent ahead, `recycled` processes that were replaced.
    """

    processes: int
    processes_idle: int
    processes_starting: int
    processes_max: int
    waiting: int
    running: int
    answered: int
    crashed: int
    ahead: int = 0
    taken_back: int = 0
    recycled: int = 0


def to_error(failure: Failure) -> BodyFailed:
    """Return what a body raised in another process as an exception here."""
    original: BaseException | None = None
    if failure.pickled is not None:
        try:
            original = pickle.loads(failure.pickled)  # noqa: S301  from our own child, which has tried it
        except Exception:  # noqa: BLE001  its class cannot be made in this process; its text still tells
            original = None
    return BodyFailed(kind=failure.kind, message=failure.message, remote_traceback=failure.traceback, original=original)

"""Every exception of sennit, drawn as one tree.

    SennitError                       code, what, why, fix; `exit_code` is what the CLI returns
    ├─ SettingsError (ValueError)     a knob is unknown or out of its bounds
    ├─ UsageError (RuntimeError)      the API was called where it cannot work
    ├─ SubmitError                    nothing was stored
    │  ├─ UnknownHandler (LookupError)
    │  ├─ PayloadError (TypeError)
    │  │  └─ PayloadTooLarge
    │  ├─ UnknownDependency (LookupError)
    │  ├─ CyclicDependency (ValueError)
    │  └─ DuplicateKey (ValueError)
    ├─ TaskError                      one task, by `task_id`
    │  ├─ TaskNotFound (LookupError)
    │  ├─ TaskFailed                  the handler raised, or a policy ended it
    │  ├─ TaskCancelled
    │  └─ ResultTimeout (TimeoutError)
    ├─ LeaseLost                      this attempt is no longer ours; its writes are refused
    ├─ BodyFailed                     a body raised in a worker process
    ├─ WorkerCrashed                  a worker process ended without an answer
    ├─ StoreError (OSError)           the durable backend
    │  ├─ StoreUnavailable            cannot be opened, read-only, or closed
    │  │  └─ StoreLocked
    │  ├─ StoreCorrupt
    │  ├─ StoreFull
    │  └─ SchemaMismatch              written by a newer sennit, or not migrated
    └─ SimulationError (AssertionError) a simulated run shows a fault (sennit.testing)
       ├─ Deadlock                    all tasks wait and no timer is set
       ├─ StepLimit                   too many steps: a livelock
       ├─ UnhandledError              a background task or callback raised and nobody looked
       ├─ BrokenPromise               a simulated fleet did what must never happen
       └─ SeedFailed                  one seed of a scenario; `fix` is the line that shows it again

    Interrupted (BaseException)       unwinds a body; user code must not eat it
    ├─ AttemptCancelled               cancel, time-out or lost lease reached the body
    └─ AttemptSuspended               the task goes on later (sleep, ask)

What went wrong is the message; `why` and `fix` are sentences a caller can act on, and `code` names an
offline page (docs/reference/errors.md).
"""

from __future__ import annotations

from typing import ClassVar


class SennitError(Exception):
    """Base of all errors sennit raises on purpose.

    Attributes:
        what: one sentence, also `str(error)`.
        why: the cause, or "" when `what` says it.
        fix: what to do now, or "".
    """

    code: ClassVar[str] = "S000"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n  ".join(parts)


class SettingsError(SennitError, ValueError):
    """A setting is unknown, of the wrong type or out of its bounds."""

    code = "S100"
    exit_code = 78


class UsageError(SennitError, RuntimeError):
    """The API was called in a place where it cannot work."""

    code = "S101"
    exit_code = 2


# ---------------------------------------------------------------- handing in


class SubmitError(SennitError):
    """A submit was refused; nothing of it was stored."""

    code = "S200"


class UnknownHandler(SubmitError, LookupError):
    """No handler of this name is registered."""

    code = "S201"
    exit_code = 3


class PayloadError(SubmitError, TypeError):
    """Arguments or a result do not serialise, or do not fit the handler's types."""

    code = "S202"


class PayloadTooLarge(PayloadError):
    """The encoded payload is over `settings.payload_bytes_max`."""

    code = "S203"

    def __init__(self, what: str, *, size_bytes: int, size_bytes_max: int, fix: str = "") -> None:
        super().__init__(
            f"{what} takes {size_bytes} bytes and settings.payload_bytes_max is {size_bytes_max}",
            why="a payload is copied to every reader of the store; large ones slow all tasks down",
            fix=fix or "store the data in a file or object store and pass its path, or raise payload_bytes_max",
        )
        self.size_bytes = size_bytes
        self.size_bytes_max = size_bytes_max


class UnknownDependency(SubmitError, LookupError):
    """A parent named by `after=` or by a handle argument is not in the store."""

    code = "S204"

    def __init__(self, parent_ids: tuple[int, ...]) -> None:
        names = ", ".join(str(i) for i in parent_ids)
        super().__init__(
            f"unknown parent task: {names}",
            why="a dependency must be submitted before its dependant, to the same store, and not yet pruned",
            fix="submit the parent first, or drop it from after=",
        )
        self.parent_ids = parent_ids


class CyclicDependency(SubmitError, ValueError):
    """The dependencies of one batch form a circle."""

    code = "S205"

    def __init__(self, cycle: tuple[int, ...]) -> None:
        super().__init__(
            "tasks depend on each other in a circle: " + " → ".join(str(i) for i in cycle),
            why="none of them could ever start",
            fix="remove one of these dependencies",
        )
        self.cycle = cycle


class DuplicateKey(SubmitError, ValueError):
    """`on_conflict="reject"` and a task with this handler and key exists."""

    code = "S206"
    exit_code = 4

    def __init__(self, handler: str, key: str, task_id: int) -> None:
        super().__init__(
            f"task {task_id} of handler {handler!r} already has the key {key!r}",
            fix='use on_conflict="existing" to get its handle, or "replace" to supersede it',
        )
        self.handler = handler
        self.key = key
        self.task_id = task_id


# ---------------------------------------------------------------- one task


class TaskError(SennitError):
    """Something about one task; `task_id` says which."""

    code = "S300"

    def __init__(self, what: str, *, task_id: int, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.task_id = task_id


class TaskNotFound(TaskError, LookupError):
    """No task with this id, or it was pruned."""

    code = "S301"
    exit_code = 3

    def __init__(self, task_id: int) -> None:
        super().__init__(
            f"no task {task_id} in this store",
            task_id=task_id,
            why="it was never stored here, or retention has pruned it",
            fix="check --db, and `sennit tasks ls`",
        )


class TaskFailed(TaskError):
    """The task has ended as failed.

    Attributes:
        kind: the type name of the last exception, or a policy: `poison`, `deadline`, `parent_failed` …
        message: its text.  remote_traceback: as formatted where it ran, or "".
        attempts: how many attempts were made.
    """

    code = "S302"

    def __init__(
        self, *, task_id: int, kind: str, message: str, remote_traceback: str = "", attempts: int = 0, fix: str = ""
    ) -> None:
        super().__init__(f"task {task_id} failed: {kind}: {message}", task_id=task_id, fix=fix)
        self.kind = kind
        self.message = message
        self.remote_traceback = remote_traceback
        self.attempts = attempts


class TaskCancelled(TaskError):
    """The task has ended as cancelled."""

    code = "S303"
    exit_code = 6


class ResultTimeout(TaskError, TimeoutError):
    """`result(timeout_s=…)` ran out; the task itself goes on."""

    code = "S304"
    exit_code = 124


class LeaseLost(SennitError):
    """This attempt was taken back meanwhile; what it writes is refused."""

    code = "S310"

    def __init__(self, task_id: int, attempt: int) -> None:
        super().__init__(
            f"attempt {attempt} of task {task_id} is no longer held by this process",
            why="its lease lapsed, or the task was cancelled or superseded",
            fix="stop working on it; another attempt has taken over",
        )
        self.task_id = task_id
        self.attempt = attempt


# ---------------------------------------------------------------- worker processes


class BodyFailed(SennitError):
    """A body raised in a worker process, which is well and takes the next job.

    Attributes:
        kind: the type name of the exception.  message: its text.
        remote_traceback: as formatted where it was raised.
        original: the exception itself, None if it does not survive pickling.
    """

    code = "S311"

    def __init__(self, *, kind: str, message: str, remote_traceback: str, original: BaseException | None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.remote_traceback = remote_traceback
        self.original = original


class WorkerCrashed(SennitError):
    """A worker process ended without an answer to its job.

    Attributes:
        exitcode: its exit code, negative for the signal that ended it; None if the job never had a process.
        by_request: `ProcessPool.kill` ended it.
    """

    code = "S312"

    def __init__(self, exitcode: int | None, *, by_request: bool = False, starting: bool = False) -> None:
        if by_request:
            super().__init__("the worker process was killed by request")
        elif starting:
            super().__init__(
                f"a worker process ended before it was ready (exit code {exitcode})",
                why="it imports the main script first, and that failed or started work of its own",
                fix="start work under `if __name__ == '__main__':`; the process has written its reason to stderr",
            )
        else:
            super().__init__(
                f"the worker process ended without an answer (exit code {exitcode})",
                why="the body was killed from outside (-9 is often the kernel, out of memory), crashed or left by os._exit",
                fix="look at stderr and the kernel log; memory_bytes_max turns a lack of memory into a MemoryError",
            )
        self.exitcode = exitcode
        self.by_request = by_request


# ---------------------------------------------------------------- the store


class StoreError(SennitError, OSError):
    """The durable backend could not do what was asked; what it had acknowledged is safe."""

    code = "S400"
    exit_code = 69


class StoreUnavailable(StoreError):
    """The database cannot be opened, is read-only, or was closed."""

    code = "S401"


class StoreLocked(StoreUnavailable):
    """Another program holds the database's write lock for too long."""

    code = "S402"
    exit_code = 75


class StoreCorrupt(StoreError):
    """The file is not a sound SQLite database."""

    code = "S403"


class StoreFull(StoreError):
    """The disk (or the size limit of the database) is full; the transaction was rolled back."""

    code = "S404"


class SchemaMismatch(StoreError):
    """The schema in the file is newer than this sennit, or needs a migration."""

    code = "S405"
    exit_code = 78


# ---------------------------------------------------------------- simulated runs


class SimulationError(SennitError, AssertionError):
    """A run under `sennit.testing.SimLoop` shows a fault of the code under test."""

    code = "S900"


class Deadlock(SimulationError):
    """Every task waits, no timer is set, and the main one is not done. `waiting` has a line for each."""

    code = "S901"

    def __init__(self, waiting: tuple[str, ...]) -> None:
        super().__init__(
            "nothing can run any more; these tasks wait:\n    " + "\n    ".join(waiting),
            fix="find who should have woken them: a lost notification, a lock of a killed process, a frozen one",
        )
        self.waiting = waiting


class StepLimit(SimulationError):
    """The run took more steps than it was allowed."""

    code = "S902"

    def __init__(self, step_limit: int) -> None:
        super().__init__(
            f"the run is not done after {step_limit} steps",
            why="a loop without a wait (a poll) never lets virtual time go on",
            fix="look at the last steps of the trace, or raise step_limit",
        )
        self.step_limit = step_limit


class UnhandledError(SimulationError):
    """A background task or a callback raised and nobody looked; the cause is `__cause__`."""

    code = "S903"


class BrokenPromise(SimulationError):
    """A simulated fleet lost, repeated or held up work; the message says which promise is broken."""

    code = "S905"


class SeedFailed(SimulationError):
    """One seed of a scenario fails.

    Attributes:
        seed: which one.  reproduction: the command that shows it again.  trace: its last steps, a line each.
    """

    code = "S904"

    def __init__(self, what: str, *, seed: int, reproduction: str, trace: tuple[str, ...], why: str = "") -> None:
        super().__init__(what, why=why, fix=reproduction)
        self.seed = seed
        self.reproduction = reproduction
        self.trace = trace


# ---------------------------------------------------------------- unwinding a body


class Interrupted(BaseException):
    """Unwinds a running body. A BaseException, so that `except Exception` in user code lets it pass."""


class AttemptCancelled(Interrupted):
    """The attempt must stop: cancelled, timed out, or its lease is lost. `reason` says which."""

    def __init__(self, reason: str = "cancelled") -> None:
        super().__init__(reason)
        self.reason = reason


class AttemptSuspended(Interrupted):
    """The attempt ends here and the task goes on later, from its finished steps."""

    def __init__(self, *, due_us: int | None = None, reason: str = "sleep") -> None:
        super().__init__(reason)
        self.due_us = due_us
        self.reason = reason

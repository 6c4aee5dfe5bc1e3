"""One task, one question, one attempt."""

from __future__ import annotations

from sennit.errors.base import SennitError


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


class AskError(SennitError):
    """Something about one question; `ask_id` says which."""

    code = "S320"

    def __init__(self, what: str, *, ask_id: int, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.ask_id = ask_id


class AskNotFound(AskError, LookupError):
    """No question with this id."""

    code = "S321"
    exit_code = 3

    def __init__(self, ask_id: int) -> None:
        super().__init__(f"no question {ask_id} in this store", ask_id=ask_id, fix="see `sennit inbox ls --all`")


class AskClosed(AskError):
    """The question takes no answer any more; `state` says why. What was decided first stands."""

    code = "S322"
    exit_code = 4

    def __init__(self, ask_id: int, *, state: str, by: str = "") -> None:
        how = {"void": "its task has ended", "expired": "it has expired"}.get(state, f"it was {state}")
        super().__init__(
            f"question {ask_id} is closed: {how}{f' by {by}' if by else ''}",
            ask_id=ask_id,
            why="each question is decided once",
            fix=f"see `sennit inbox show {ask_id}`",
        )
        self.state = state
        self.by = by


class AskStale(AskError):
    """The question has changed since the version that was decided on; nothing of the batch was recorded."""

    code = "S323"
    exit_code = 4

    def __init__(self, ask_id: int, *, expected: int, actual: int) -> None:
        super().__init__(
            f"question {ask_id} is at version {actual}, and the decision was made on version {expected}",
            ask_id=ask_id,
            fix="look at it again and decide again",
        )
        self.expected = expected
        self.actual = actual


class AnswerInvalid(AskError, ValueError):
    """The answer does not fit the question; it is still open."""

    code = "S324"
    exit_code = 2


class AskDenied(AskError):
    """Raised in the body by an ask that somebody rejected; `reason` and `by` say why and who."""

    code = "S325"

    def __init__(self, ask_id: int, *, question: str, by: str = "", reason: str = "") -> None:
        super().__init__(f"denied{f' by {by}' if by else ''}: {question}", ask_id=ask_id, why=reason)
        self.by = by
        self.reason = reason


class AskExpired(AskError, TimeoutError):
    """Raised in the body by an ask, or a wait for an event, that nobody answered in time; `ask_id` says which."""

    code = "S326"

    def __init__(self, ask_id: int, *, question: str) -> None:
        super().__init__(
            f"nobody answered in time: {question}",
            ask_id=ask_id,
            fix='raise expires_s, give a default with on_expire="default", or catch AskExpired',
        )


class ThreadNotFound(SennitError, LookupError):
    """Nobody knows a thread of this id: no stored task names it, and it has neither state nor config."""

    code = "S327"
    exit_code = 3

    def __init__(self, thread_id: str) -> None:
        super().__init__(
            f"there is no thread {thread_id!r}",
            why="no stored task names it, and it has neither state nor config",
            fix="see `sennit threads ls`, and check --db",
        )
        self.thread_id = thread_id


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

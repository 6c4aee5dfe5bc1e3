"""A submit was refused."""

from __future__ import annotations

from sennit.errors.base import SennitError


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


class ThreadBusy(SubmitError):
    """`on_busy="reject"` and the thread has an open task."""

    code = "S207"
    exit_code = 4

    def __init__(self, thread_id: str, task_id: int) -> None:
        super().__init__(
            f"thread {thread_id!r} is busy with task {task_id}",
            why="what was asked for is done only while the thread has no open task",
            fix='try again when they have ended or are cancelled; a submit may also use on_busy="enqueue"',
        )
        self.thread_id = thread_id
        self.task_id = task_id


class QueueFull(SubmitError):
    """As many tasks wait as `settings.queue_max` allows; `retry_after_s` is when room is likely."""

    code = "S208"
    exit_code = 75

    def __init__(self, queue: str, *, queue_max: int, retry_after_s: float) -> None:
        super().__init__(
            f"queue {queue!r} is full: {queue_max} tasks wait already",
            why="a queue that grows without bound only hides that work arrives faster than it is done",
            fix=f"come back in {retry_after_s:.2g} s, add workers, or raise queue_max",
        )
        self.queue = queue
        self.queue_max = queue_max
        self.retry_after_s = retry_after_s

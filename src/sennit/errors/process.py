"""A body in a worker process, of this machine or of a cluster."""

from __future__ import annotations

from sennit.errors.base import SennitError


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
        exitcode: its exit code, negative for the signal that ended it; None if the job never had a process, or had one
            on a cluster.
        by_request: `kill` of the pool ended it.
        starting: it ended before it was ready, so no body has run.
    """

    code = "S312"

    def __init__(
        self, exitcode: int | None, *, by_request: bool = False, starting: bool = False, lost: str = ""
    ) -> None:
        if by_request:
            super().__init__("the worker process was killed by request")
        elif lost:
            super().__init__(
                f"the Ray task of the body was lost: {lost}",
                why="its worker process, its node or the cluster has died; what Ray held of it is gone",
                fix="nothing: the task is tried again, up to crashes_max; the logs of Ray say more",
            )
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
        self.starting = starting


class ClusterUnavailable(SennitError, ConnectionError):
    """The Ray cluster cannot be reached; CPU bodies wait until it can.

    Attributes:
        address: as Ray was told, or "".
        reason: what Ray says.
    """

    code = "S313"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"the Ray cluster {address or 'of this process'} cannot be reached: {reason}",
            why="it is starting, its head is lost, or its token is another one; nothing durable is in it",
            fix="start it with RAY_AUTH_MODE=token and the same token file, or unset `cluster` to run CPU bodies here",
        )
        self.address = address
        self.reason = reason

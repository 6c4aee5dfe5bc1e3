"""What unwinds a body; no errors, and not for user code to catch."""

from __future__ import annotations


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


class AttemptPreempted(Interrupted):
    """The attempt makes room for an urgent task; the task goes on after it, from its finished steps."""


class AttemptHeldBack(Interrupted):
    """The attempt is given back because its provider takes no calls for a while; the task goes on when it does."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ContextOutOfReach(Interrupted):
    """A body that was moved to a worker process needs its attempt's context, and runs again where that is."""

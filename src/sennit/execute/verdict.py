"""How an attempt ended, decided from what its body did. Pure.

returned value ─► Succeeded | Retry, Snooze, Cancel values
raised         ─► Retried (policy says when) | Failed
interrupted    ─► by time-out: as if it raised TimeoutError;  by shutdown, by a fence, or in line for a permit: GivenBack;
                  from outside: nothing to say
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from random import Random

import msgspec

from sennit.errors import (
    AgentMissing,
    AskDenied,
    AskExpired,
    AttemptCancelled,
    AttemptHeldBack,
    AttemptPreempted,
    AttemptSuspended,
    BodyFailed,
    ClusterUnavailable,
    Interrupted,
    OutcomeUnknown,
    PayloadError,
    SennitError,
    StateTooLarge,
    WorkerCrashed,
)
from sennit.model.retry import Cancel, Retry, RetryPolicy, Snooze
from sennit.model.task import (
    Cancelled,
    Claimed,
    Crashed,
    Ending,
    ErrorInfo,
    Failed,
    GivenBack,
    Parked,
    Preempted,
    Retried,
    Slept,
    TaskOptions,
)
from sennit.model.thread import AskSpec

TRACEBACK_CHARS_MAX = 16_000

# The next attempt would meet the same: an answer stands, and so do the types.
_FINAL = (AgentMissing, AskDenied, AskExpired, OutcomeUnknown, PayloadError, StateTooLarge)

# A CPU body that found no cluster is offered again after this long, to whichever process asks first.
_CLUSTER_SNOOZE_S = 5.0


class Judge:
    """Turns what a body did into an ending."""

    def __init__(self, now_us: Callable[[], int], random: Random) -> None:
        self._now_us = now_us
        self._random = random

    def value(self, task: Claimed, policy: RetryPolicy, value: Retry | Snooze | Cancel) -> Ending:
        """Judge a value that is not a result."""
        match value:
            case Cancel(reason=reason):
                return Cancelled(task.claim, reason)
            case Snooze(after_s=after_s, reason=reason):
                return Slept(task.claim, self._in(after_s), reason or "snooze")
            case Retry(after_s=after_s, reason=reason):
                error = ErrorInfo(kind="Retry", message=reason)
                delay_s = self._delay_s(task, policy, None)
                if delay_s is None:
                    return Failed(task.claim, error)
                return Retried(task.claim, self._in(delay_s if after_s is None else after_s), error)

    def error(self, task: Claimed, policy: RetryPolicy, error: BaseException, asks: tuple[AskSpec, ...] = ()) -> Ending:
        """Judge an exception; `asks` are the questions that wait for an answer."""
        if isinstance(error, AttemptSuspended):
            if error.due_us is not None:
                return Slept(task.claim, error.due_us, error.reason)
            return Parked(task.claim, error.reason, asks)
        if isinstance(error, AttemptPreempted):
            return Preempted(task.claim)
        if isinstance(error, AttemptHeldBack):
            return GivenBack(task.claim)
        if isinstance(error, WorkerCrashed):
            return Crashed(task.claim, ErrorInfo(kind="crash", message=error.what))
        if isinstance(error, ClusterUnavailable):
            return Slept(task.claim, self._in(_CLUSTER_SNOOZE_S), "the cluster cannot be reached")
        info = describe(error)
        cause = error.original if isinstance(error, BodyFailed) and error.original is not None else error
        delay_s = None if isinstance(cause, _FINAL) else self._delay_s(task, policy, cause)
        if delay_s is None:
            return Failed(task.claim, info)
        return Retried(task.claim, self._in(delay_s), info)

    def interrupted(self, task: Claimed, policy: RetryPolicy, reason: str) -> Ending | None:
        """Judge an attempt that was interrupted for `reason`; None when the store knows already."""
        match reason:
            case "stopped":
                return None
            case "shutdown" | "in line" | "fenced":
                return GivenBack(task.claim)
            case _:
                return self.error(task, policy, TimeoutError(reason))

    def _delay_s(self, task: Claimed, policy: RetryPolicy, error: BaseException | None) -> float | None:
        retries = options_of(task).retries
        if retries is not None:
            policy = RetryPolicy(
                retries=retries, delay_s=policy.delay_s, factor=policy.factor, delay_s_max=policy.delay_s_max,
                jitter=policy.jitter, rules=policy.rules, never_on=policy.never_on,
            )  # fmt: skip
        return policy.next_delay_s(error, failures=task.failures + 1, jitter=self._random.random())

    def _in(self, delay_s: float) -> int:
        return self._now_us() + int(delay_s * 1_000_000)


_NO_OPTIONS = TaskOptions()


def options_of(task: Claimed) -> TaskOptions:
    """Return the per-call overrides that travelled with a task."""
    return _NO_OPTIONS if task.options is None else msgspec.json.decode(task.options, type=TaskOptions)


def unwound(error: BaseException) -> BaseException:
    """Return what ended a body. A `TaskGroup` wraps an interruption: the attempt is interrupted all the same."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    interruptions, failures = error.split(Interrupted)
    if interruptions is None or failures is not None:
        return error
    leaves: list[BaseException] = [interruptions]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in leaves):
        leaves = [
            part for leaf in leaves for part in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else (leaf,))
        ]
    return next((leaf for leaf in leaves if isinstance(leaf, AttemptCancelled)), leaves[0])


def describe(error: BaseException) -> ErrorInfo:
    """Return an exception as plain data. Never fails, whatever the exception's own `__str__` does."""
    if isinstance(error, BodyFailed):
        return ErrorInfo(
            kind=error.kind, message=error.message, traceback=error.remote_traceback[-TRACEBACK_CHARS_MAX:]
        )
    try:
        message = error.what if isinstance(error, SennitError) else str(error)
    except Exception as broken:  # noqa: BLE001 - user code in __str__
        message = f"<its __str__ raised {type(broken).__name__}>"
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001 - user code in __str__ or __repr__ of a cause
        text = f"<its traceback could not be formatted: {type(broken).__name__}>"
    kind = type(error).__name__ if not isinstance(error, Interrupted) else "interrupted"
    return ErrorInfo(
        kind=kind, message=message, traceback=text[-TRACEBACK_CHARS_MAX:], fix=getattr(error, "fix", "") or ""
    )

"""When a failed attempt is tried again.

A crash of the worker is not a failure of the handler: crashes have a count and a limit of their own (`crashes_max`),
so that a task which kills its worker ends as poison instead of running for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CRASHES_MAX: Final = 3
_EXPONENT_MAX: Final = 32  # 2**32 s is past any cap; keeps the float finite


@dataclass(frozen=True, slots=True)
class Retry:
    """A value a handler may return: this attempt failed, try again after `after_s`. Uses up a retry."""

    after_s: float | None = None
    reason: str = "the handler asked for a retry"


@dataclass(frozen=True, slots=True)
class Snooze:
    """A value a handler may return: not now, come back after `after_s`. Uses up nothing."""

    after_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """A value a handler may return: this task is not wanted any more; it ends as cancelled."""

    reason: str = "the handler cancelled it"


# Values that say how the attempt ends instead of being its result.
NOT_A_RESULT: Final = (Retry, Snooze, Cancel)


class Returned(Exception):
    """No error: a cpu body returned `value`, one of `NOT_A_RESULT`, and its pipe carries results and exceptions only."""

    def __init__(self, value: Retry | Snooze | Cancel) -> None:
        super().__init__(value)
        self.value = value


class NotRetryable(Exception):
    """Raise it (or a subclass) in a handler to fail at once, whatever the policy says."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An exception to a policy for some exception classes; the first rule that matches wins."""

    on: tuple[type[BaseException], ...]
    retries: int | None = None
    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how long.

    The delay after failure n is `delay_s * factor ** (n - 1)`, at most `delay_s_max`, and of that a uniformly random
    part of `jitter` is taken away, so that a thousand tasks that failed together do not come back together.
    Source: exponential backoff with jitter as in AWS Architecture Blog, Brooker 2015 ("equal jitter" at 0.5).

    Attributes:
        retries: further attempts after the first failure; 0 is none.
        never_on: exception classes that fail at once.
    """

    retries: int = 0
    delay_s: float = 1.0
    factor: float = 2.0
    delay_s_max: float = 3600.0
    jitter: float = 0.5
    rules: tuple[Rule, ...] = ()
    never_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, not {self.retries}")
        if self.delay_s < 0 or self.delay_s_max < 0:
            raise ValueError("delay_s and delay_s_max must not be negative")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, not {self.jitter}")
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, not {self.factor}")

    def next_delay_s(self, error: BaseException | None, *, failures: int, jitter: float) -> float | None:
        """Return the seconds to wait after the `failures`-th failure (1 is the first), or None to give up.

        Args:
            error: what was raised; None when the handler returned `Retry`.
            jitter: uniform in [0, 1); an argument, so that a test can pin it.

        Raises:
            ValueError: `failures` is below 1.
        """
        if failures < 1:
            raise ValueError(f"failures counts from 1, not {failures}")
        retries, delay_s = self.retries, self.delay_s
        if error is not None:
            if isinstance(error, (NotRetryable, *self.never_on)):
                return None
            rule = next((r for r in self.rules if isinstance(error, r.on)), None)
            if rule is not None:
                retries = self.retries if rule.retries is None else rule.retries
                delay_s = self.delay_s if rule.delay_s is None else rule.delay_s
        if failures > retries:
            return None
        full_s: float = min(self.delay_s_max, delay_s * self.factor ** min(failures - 1, _EXPONENT_MAX))
        return full_s * (1 - self.jitter * jitter)

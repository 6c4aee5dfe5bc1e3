"""What all errors have: a code, what, why and fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


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

    def __reduce__(self) -> tuple[Callable[..., SennitError], tuple[Any, ...]]:
        return _again, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n  ".join(parts)


def _again(kind: type[SennitError], args: tuple[Any, ...], state: dict[str, Any]) -> SennitError:
    """Return an error from its pickle or its copy: without `__init__`, whose arguments are of each kind's own."""
    builtin: Any = kind  # whose memory layout it has; another one's `__new__` refuses
    while builtin.__module__ != "builtins":
        builtin = builtin.__base__
    error: SennitError = builtin.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class SettingsError(SennitError, ValueError):
    """A setting is unknown, of the wrong type or out of its bounds."""

    code = "S100"
    exit_code = 78


class UsageError(SennitError, RuntimeError):
    """The API was called in a place where it cannot work."""

    code = "S101"
    exit_code = 2

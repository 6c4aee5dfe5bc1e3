"""What all errors have: a code, what, why and fix."""

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

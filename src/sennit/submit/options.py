"""What a submit can say besides the arguments: defaults on the decorator, overrides by `task.options(…)`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypedDict

import msgspec

from sennit.errors import SettingsError
from sennit.model.order import Priority
from sennit.model.task import OnConflict, OnParentFailed, TaskOptions
from sennit.submit.handle import Handle


class SubmitOptions(TypedDict, total=False):
    """Keywords of `task.options(…)`. Times in seconds.

    Attributes:
        after: one handle, or several, of tasks that must end first; their results are not injected.
        key, on_conflict: at most one retained task per (handler, key).
        delay_s: start this long after the parents are done; `at`: not before this moment (aware datetime).
        queue_timeout_s: fail if not started within; deadline_s: fail if not ended within; both from submit.
        timeout_s: per attempt; idle_timeout_s: per attempt without `heartbeat()`, step or log line.
    """

    queue: str
    priority: Priority | str
    thread_id: str | None
    key: str | None
    on_conflict: OnConflict
    after: Handle[Any] | Sequence[Handle[Any]]
    on_parent_failed: OnParentFailed
    delay_s: float
    at: datetime
    queue_timeout_s: float
    deadline_s: float
    retries: int
    timeout_s: float
    idle_timeout_s: float
    crashes_max: int


class Options(msgspec.Struct, kw_only=True, frozen=True):
    """`SubmitOptions`, checked and in the store's units."""

    queue: str
    priority: int = Priority.NORMAL
    thread_id: str | None = None
    key: str | None = None
    on_conflict: OnConflict = "existing"
    after: tuple[Any, ...] = ()
    on_parent_failed: OnParentFailed = "fail"
    delay_us: int = 0
    at: datetime | None = None
    queue_timeout_us: int = 0
    deadline_us: int = 0
    crashes_max: int | None = None  # as the settings say
    overrides: bytes | None = None

    def replaced(self, changes: SubmitOptions) -> Options:
        """Return these options with some changed.

        Raises:
            SettingsError: an unknown name or a value out of its bounds.
        """
        values: dict[str, Any] = {}
        overrides: dict[str, Any] = {}
        for name, value in changes.items():
            if name in {"retries", "timeout_s", "idle_timeout_s"}:
                overrides[name] = _positive(name, value, zero=name == "retries")
            elif name in {"delay_s", "queue_timeout_s", "deadline_s"}:
                values[name.removesuffix("_s") + "_us"] = int(
                    _positive(name, value, zero=name == "delay_s") * 1_000_000
                )
            elif name == "priority":
                values["priority"] = int(_priority(value))
            elif name == "after":
                values["after"] = tuple(_handles(value))
            elif name in _CHOICES:
                values[name] = _choice(name, value)
            elif name == "at":
                values["at"] = _aware(value)
            elif name == "crashes_max":
                values[name] = int(_positive(name, value, zero=False))
            elif name in {"queue", "thread_id", "key"}:
                values[name] = value
            else:
                raise SettingsError(
                    f"options() has no {name!r}", fix=f"it takes {', '.join(SubmitOptions.__annotations__)}"
                )
        if overrides:
            before = TaskOptions() if self.overrides is None else msgspec.json.decode(self.overrides, type=TaskOptions)
            values["overrides"] = msgspec.json.encode(msgspec.structs.replace(before, **overrides))
        return msgspec.structs.replace(self, **values)


_CHOICES = {"on_conflict": ("existing", "reject", "replace"), "on_parent_failed": ("fail", "run", "cancel")}


def _positive(name: str, value: Any, *, zero: bool) -> Any:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0 or (value == 0 and not zero):
        raise SettingsError(f"{name} must be a {'number of at least 0' if zero else 'positive number'}, not {value!r}")
    return value


def _priority(value: Any) -> Priority:
    try:
        return Priority.parse(value)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _choice(name: str, value: Any) -> Any:
    if value not in _CHOICES[name]:
        raise SettingsError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
    return value


def _aware(value: Any) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise SettingsError(
            f"at={value!r} is not a datetime with a time zone",
            why="the same clock reading is another moment elsewhere",
            fix="use datetime.now(UTC) + timedelta(…), or delay_s=",
        )
    return value


def _handles(value: Any) -> Sequence[Any]:
    """Accept one handle as well as several."""
    return value if isinstance(value, (list, tuple)) else (value,)

"""What a submit can say besides the arguments: defaults on the decorator, overrides by `task.options(…)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, Protocol, TypedDict, get_args

import msgspec

from sennit.errors import SettingsError
from sennit.model.admission import Entry, OnFull
from sennit.model.order import Priority
from sennit.model.provider import checked_provider_name
from sennit.model.route import checked_labels, route_of
from sennit.model.task import OnConflict, OnParentFailed, TaskOptions
from sennit.model.thread import OnBusy, checked_thread_id
from sennit.submit.handle import Handle


class NamesProvider(Protocol):
    """What `app.provider` returns, as far as options care."""

    @property
    def name(self) -> str:
        """`name` or `name/model`."""


class SubmitOptions(TypedDict, total=False):
    """Keywords of `task.options(…)`. Times in seconds.

    Attributes:
        after: one handle, or several, of tasks that must end first; their results are not injected.
        key, on_conflict: at most one retained task per (handler, key).
        delay_s: start this long after the parents are done; `at`: not before this moment (aware datetime).
        queue_timeout_s: fail if not started within; deadline_s: fail if not ended within; both from submit.
        timeout_s: per attempt; idle_timeout_s: per attempt without `heartbeat()`, step or log line.
        on_busy: the thread has open tasks: wait behind them (`enqueue`), `reject`, `interrupt` them, or `rollback`:
            interrupt them and take back what they wrote to the thread's state.
        on_full: the queue has `queue_max` waiting tasks: `block` until there is room, `reject`, or `shed` waiting tasks
            of lower priority. A task with parents, and a child, never finds it full.
        cache_s: a task of the same handler and arguments that is open, or succeeded no longer ago, stands for this one;
            0 is no cache. Equal arguments are equal JSON: how they are passed does not matter, but a default that is
            left out is not equal to one that is given. Results of other tasks cannot be among them.
        cache_tags: names by which `app.invalidate` drops the cached result.
        provider: whom its calls go to: what `app.provider` returns, or `name` or `name/model`. It is claimed with a permit
            for its first call, and holds no slot while the provider has no room. None is no provider.
        needs: labels, one or several: only a worker that has all of them runs it. Until there is one it waits.
        pinned: only a worker with the `version` of the app that submits it runs it.
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
    on_busy: OnBusy
    on_full: OnFull
    cache_s: float
    cache_tags: Sequence[str]
    provider: NamesProvider | str | None
    needs: str | Sequence[str]
    pinned: bool


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
    on_busy: OnBusy = "enqueue"
    on_full: OnFull | None = None  # as the settings say
    cache_us: int = 0
    cache_tags: tuple[str, ...] = ()
    provider: str = ""
    needs: tuple[str, ...] = ()
    pinned: bool = False

    def entry(self, *, queue_max: int, on_full: OnFull) -> Entry | None:
        """Return under which conditions such a task may enter, without its cache key; None is always."""
        on_busy = self.on_busy if self.thread_id is not None else "enqueue"
        if on_busy == "enqueue" and not queue_max and not self.cache_us:
            return None
        return Entry(
            on_busy=on_busy,
            queue_max=queue_max,
            on_full=self.on_full or on_full,
            cache_us=self.cache_us,
            cache_tags=self.cache_tags if self.cache_us else (),
        )

    def route(self, version: str) -> str:
        """Return what such a task needs of its worker, when it is submitted by code of this version.

        Raises:
            SettingsError: it is pinned, and the code has no version.
        """
        if self.pinned and not version:
            raise SettingsError(
                "a task is pinned to the version of its app, and the app has none",
                fix='say which: App(version="2026-11-21.1"), or SENNIT_VERSION in the environment',
            )
        return route_of(self.needs, version if self.pinned else "")

    def replaced(self, changes: SubmitOptions) -> Options:
        """Return these options with some changed.

        Raises:
            SettingsError: an unknown name or a value out of its bounds.
        """
        values: dict[str, Any] = {}
        overrides: dict[str, Any] = {}
        for name, value in changes.items():
            if name in _OVERRIDES:
                overrides[name] = _positive(name, value, zero=name == "retries")
            elif name in _TIMES:
                seconds = _positive(name, value, zero=name in {"delay_s", "cache_s"})
                values[name.removesuffix("_s") + "_us"] = int(seconds * 1_000_000)
            elif name in _CHOICES:
                values[name] = _choice(name, value)
            elif name in _CHECKS:
                values[name] = _CHECKS[name](value)
            else:
                raise SettingsError(
                    f"options() has no {name!r}", fix=f"it takes {', '.join(SubmitOptions.__annotations__)}"
                )
        if overrides:
            before = TaskOptions() if self.overrides is None else msgspec.json.decode(self.overrides, type=TaskOptions)
            values["overrides"] = msgspec.json.encode(msgspec.structs.replace(before, **overrides))
        return msgspec.structs.replace(self, **values)


_OVERRIDES = {"retries", "timeout_s", "idle_timeout_s"}
_TIMES = {"delay_s", "cache_s", "queue_timeout_s", "deadline_s"}
_CHOICES = {
    "on_conflict": get_args(OnConflict),
    "on_parent_failed": get_args(OnParentFailed),
    "on_busy": get_args(OnBusy),
    "on_full": get_args(OnFull),
}


def _positive(name: str, value: Any, *, zero: bool) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not is_number or value < 0 or (value == 0 and not zero):
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


def _tags(value: Any) -> tuple[str, ...]:
    """Accept one tag as well as several."""
    tags = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple, set)) else (None,)
    if not all(isinstance(tag, str) and tag for tag in tags):
        raise SettingsError(f"cache_tags must be names, not {value!r}", fix='for example cache_tags=["prices", "eu"]')
    return tags


def _provider(value: Any) -> str:
    """Accept a provider as well as its name."""
    if value is None:
        return ""
    name, slash, model = getattr(value, "name", value if isinstance(value, str) else repr(value)).partition("/")
    checked_provider_name(name)
    if slash and not model:
        raise SettingsError(f"provider={value!r} ends with a slash", fix='write "name", or "name/model"')
    return f"{name}{slash}{model}"


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"pinned must be True or False, not {value!r}", fix="the version is that of the app")
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "queue": lambda value: value,
    "key": lambda value: value,
    "priority": lambda value: int(_priority(value)),
    "thread_id": lambda value: None if value is None else checked_thread_id(value),
    "after": lambda value: tuple(_handles(value)),
    "at": _aware,
    "crashes_max": lambda value: int(_positive("crashes_max", value, zero=False)),
    "cache_tags": _tags,
    "provider": _provider,
    "needs": lambda value: () if value is None else checked_labels(value),
    "pinned": _switch,
}

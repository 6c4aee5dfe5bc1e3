"""What a body may call: `step`, `sleep`, `heartbeat`, and submit for children. All through one context variable.

A context belongs to one attempt. What it writes goes to the store under the claim token, so a stale attempt writes
nothing. When a task resumes, its handler runs again from the top and finished steps return what they returned before:
there are no determinism rules beyond "do work in steps", because a step is found by *what* it is (function, arguments,
and how many times that pair was met), not by when it runs.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec

from sennit.errors import AttemptCancelled, AttemptSuspended, UsageError
from sennit.model.task import Claim, Claimed, TaskSpec
from sennit.submit.codec import encode_value, result_decoder
from sennit.sync.ack import Ack, in_event_loop

T = TypeVar("T")
P = ParamSpec("P")

_current: ContextVar[Attempt | None] = ContextVar("sennit_attempt", default=None)


class StepStore(Protocol):
    """The part of the store a context needs."""

    def now_us(self) -> int:
        """The store's clock."""

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Keep a step's result while the attempt is held."""

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Submit children of a running attempt."""


class Attempt:
    """The context of one running attempt.

    Attributes:
        task: what was claimed.
        beat_us: when the body last gave a sign of life, store clock.
        lend, take_back: called when the body begins to wait for other tasks and when it no longer waits for any; the
            slot is free meanwhile.
    """

    def __init__(
        self,
        task: Claimed,
        store: StepStore,
        *,
        size_bytes_max: int,
        lend: Callable[[], None],
        take_back: Callable[[], None],
    ) -> None:
        self.task = task
        self.beat_us = store.now_us()
        self._lend = lend
        self._take_back = take_back
        self._waits = 0
        self._store = store
        self._size_bytes_max = size_bytes_max
        self._met: Counter[str] = Counter()
        self._children: list[TaskSpec] = []

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)

    def beat(self) -> None:
        """Note a sign of life."""
        self.beat_us = self._store.now_us()

    def key(self, what: str) -> str:
        """Return `what` with its occurrence in this attempt, counted from 0."""
        n = self._met[what]
        self._met[what] += 1
        return f"{what}#{n}"

    def recall(self, key: str) -> bytes | None:
        """Return the stored result of a finished step."""
        return self.task.steps.get(key)

    def remember(self, key: str, value: Any, what: str) -> Ack[bool]:
        """Store the result of a step."""
        self.beat()
        encoded = encode_value(value, what, self._size_bytes_max)
        self.task.steps[key] = encoded
        return self._store.save_step(self.task.claim, key, encoded)

    def begin_wait(self) -> None:
        """A wait for another task begins. A body may be in many at once (`gather`), and has one slot to lend."""
        self._waits += 1
        if self._waits == 1:
            self._lend()

    def end_wait(self) -> None:
        """One of these waits is over."""
        self._waits -= 1
        if not self._waits:
            self._take_back()

    # ------------------------------------------------------------ children

    def adopt(self, spec: TaskSpec) -> None:
        """Make `spec` a child: it commits with the attempt's result, or when somebody waits for it before that."""
        digest = hashlib.blake2b(spec.payload, digest_size=8).hexdigest()
        spec.parent_id = self.task.id
        spec.child_key = self.key(f"{spec.handler}|{digest}")
        self._children.append(spec)

    def take_children(self) -> tuple[TaskSpec, ...]:
        """Return and forget the children that are not stored yet."""
        children, self._children = tuple(self._children), []
        return children

    def flush(self) -> Ack[list[int]] | None:
        """Store the children now; None when there are none."""
        children = self.take_children()
        return self._store.add_children(self.task.claim, children) if children else None


def current() -> Attempt | None:
    """Return the attempt this code runs in, or None."""
    return _current.get()


def attempt_here(what: str) -> Attempt:
    """Return the attempt this code runs in.

    Raises:
        UsageError: outside of a task body.
    """
    attempt = _current.get()
    if attempt is None:
        raise UsageError(
            f"{what} was called outside of a task body",
            why="it belongs to one attempt of one task (in a cpu=True body it is not available)",
            fix="call it in a function decorated with @app.task that was submitted, not called directly",
        )
    return attempt


class Pending(Generic[T]):
    """Something a body waits for: `await` it in an async body, `.result()` in a sync one."""

    __slots__ = ("_in_async", "_in_sync")

    def __init__(self, in_async: Callable[[], Coroutine[Any, Any, T]], in_sync: Callable[[], T]) -> None:
        self._in_async = in_async
        self._in_sync = in_sync

    def __await__(self) -> Generator[Any, None, T]:
        return self._in_async().__await__()

    def result(self) -> T:
        """Do it here, in the OS thread of a sync body.

        Raises:
            UsageError: in an async body; use `await`.
        """
        if in_event_loop():
            raise UsageError("result() was called in an async body", fix="use `await` instead")
        return self._in_sync()


@overload
def step(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Pending[T]: ...
@overload
def step(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Pending[T]: ...
def step(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Pending[Any]:
    """Call `function` once for this task: its result is stored, and later attempts get it without calling again.

    A step is recognised by the function's name, its arguments and how often that pair occurred before in the attempt.
    The result comes back as the function's return annotation says. Outside of a body the function is just called.

    Raises:
        PayloadError: the result does not serialise; the function has run, nothing is stored.
        AttemptCancelled: the attempt is no longer held; nothing is stored.
    """
    attempt = current()
    if attempt is None:
        return Pending(lambda: _call(function, args, kwargs), lambda: function(*args, **kwargs))
    name = _name_of(function)
    key = attempt.key(f"{name}|{_digest((*_bound(function), *args), kwargs)}")
    what = f"the result of step {name}"

    async def in_async() -> Any:
        stored = attempt.recall(key)
        if stored is not None:
            return result_decoder(function)(stored)
        value = await _call(function, args, kwargs)
        _held(await attempt.remember(key, value, what))
        return value

    def in_sync() -> Any:
        stored = attempt.recall(key)
        if stored is not None:
            return result_decoder(function)(stored)
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            raise UsageError(f"step {name} is async and was called in a sync body", fix="make the handler async")
        _held(attempt.remember(key, value, what).wait())
        return value

    return Pending(in_async, in_sync)


def sleep(seconds: float) -> Pending[None]:
    """Go on after `seconds`, however long, across restarts. The slot is free meanwhile.

    The attempt ends here; when the time has come the handler runs again from the top, and finished steps are not
    repeated. Uses up no retry.
    """
    attempt = attempt_here("sleep()")
    key = attempt.key(f"sleep|{seconds}")

    def due_us() -> int | None:
        """Return when to go on; None when that has passed."""
        stored = attempt.recall(key)
        until = msgspec.json.decode(stored, type=int) if stored is not None else None
        if until is None:
            return attempt._store.now_us() + int(seconds * 1_000_000)  # noqa: SLF001 - same module
        return until if until > attempt._store.now_us() else None  # noqa: SLF001

    async def in_async() -> None:
        until = due_us()
        if until is None:
            return
        if attempt.recall(key) is None:
            _held(await attempt.remember(key, until, "a sleep"))
        children = attempt.flush()
        if children is not None:
            await children
        raise AttemptSuspended(due_us=until)

    def in_sync() -> None:
        until = due_us()
        if until is None:
            return
        if attempt.recall(key) is None:
            _held(attempt.remember(key, until, "a sleep").wait())
        children = attempt.flush()
        if children is not None:
            children.wait()
        raise AttemptSuspended(due_us=until)

    return Pending(in_async, in_sync)


def heartbeat() -> None:
    """Say that this body is alive: moves its `idle_timeout_s` on. Steps and log lines do so too."""
    attempt_here("heartbeat()").beat()


async def _call(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    value = function(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value


def _held(accepted: bool) -> None:  # noqa: FBT001 - the store's answer, as it comes
    if not accepted:
        raise AttemptCancelled("lease lost")


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name a step is known by: the same in every process, whatever kind of callable it is."""
    while isinstance(function, partial):
        function = function.func
    module = getattr(function, "__module__", None) or "builtins"
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _bound(function: Callable[..., Any]) -> tuple[Any, ...]:
    """Return what a partial or a bound method brings along: it tells calls apart just as arguments do."""
    if isinstance(function, partial):
        return (*_bound(function.func), *function.args, function.keywords)
    owner = getattr(function, "__self__", None)
    return () if owner is None or inspect.ismodule(owner) else (owner,)


def _digest(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Return what tells calls apart by their arguments; one that does not serialise counts by its type."""

    def by_type(value: Any) -> str:
        if hasattr(value, "model_dump_json"):
            return str(value.model_dump_json())
        return f"{type(value).__module__}.{type(value).__qualname__}"

    data = msgspec.json.encode([list(args), dict(sorted(kwargs.items()))], enc_hook=by_type)
    return hashlib.blake2b(data, digest_size=8).hexdigest()

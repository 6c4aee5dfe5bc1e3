"""What a body may call: `step`, `sleep`, `heartbeat`; here also for `attempt_here` and `current`, which find its attempt.

When a task resumes, its handler runs again from the top and finished steps return what they returned before: there are
no determinism rules beyond "do work in steps", because a step is found by *what* it is (function, arguments, and how many
times that pair was met), not by when it runs.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

import msgspec

from sennit.errors import AttemptCancelled, UsageError
from sennit.submit.attempt import Attempt, attempt_here, current
from sennit.submit.codec import result_decoder
from sennit.submit.registry import default_name
from sennit.sync.pending import Flow, Pending, got, run, run_blocking

__all__ = ["Attempt", "Pending", "attempt_here", "current", "heartbeat", "sleep", "step"]

T = TypeVar("T")
P = ParamSpec("P")


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
    name = _named(function)
    key = attempt.key(f"{name}|{_digest((*_bound(function), *args), kwargs)}")
    what = f"the result of step {name}"

    async def in_async() -> Any:
        stored = attempt.recall(key)
        if stored is not None:
            return result_decoder(function)(stored)
        if attempt.is_pressed:
            await run(attempt.make_room())
        if attempt.permit.is_lent:  # the body has given up the wait that it was lent for
            await run(attempt.go_on())
        with attempt.stepping(key):
            value = await _call(function, args, kwargs)
            _held(await attempt.remember(key, value, what))
        return value

    def in_sync() -> Any:
        stored = attempt.recall(key)
        if stored is not None:
            return result_decoder(function)(stored)
        if attempt.is_pressed:
            run_blocking(attempt.make_room())
        if attempt.permit.is_lent:
            run_blocking(attempt.go_on())
        with attempt.stepping(key):
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

    def flow() -> Flow[None]:
        stored, now_us = attempt.recall(key), attempt.store.now_us()
        if stored is not None:
            due_us = msgspec.json.decode(stored, type=int)
        else:
            due_us = now_us + int(seconds * 1_000_000)
            _held((yield from got(attempt.remember(key, due_us, "a sleep"))))
        if stored is None or due_us > now_us:
            yield from attempt.suspend("sleep", due_us=due_us)

    return Pending.of(flow)


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


def _named(function: Callable[..., Any]) -> str:
    """Return the name of a function, the same whether its module is imported or run as a script.

    Another name would be another step, and one process of a fleet would repeat what the other has done.
    """
    name = _name_of(function)
    if name.partition(".")[0] not in {"__main__", "__mp_main__"}:
        return name
    while isinstance(function, partial):
        function = function.func
    return default_name(function) if hasattr(function, "__qualname__") else name


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

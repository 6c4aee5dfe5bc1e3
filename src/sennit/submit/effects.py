"""`effect`: a call with a consequence outside, written down before it is made and after.

    effect(pay, …) ─► begun (durable) ─► pay(…) ─► committed with the result (durable) ─► the result
                         │                  └─ the process dies, or it raises
                         └─ a later attempt finds `begun` alone: nobody knows ─► check= | a person | OutcomeUnknown

A step that a crash cuts short is simply done again. An effect is not: a mail would be sent twice. What is written is the
ledger (`effect_ledger`), under the claim token, so a stale attempt writes nothing into it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeVar, cast, get_args, overload

from sennit.errors import AskDenied, AttemptSuspended, OutcomeUnknown, UsageError
from sennit.submit.asking import ask
from sennit.submit.attempt import Attempt, current
from sennit.submit.context import _bound, _call, _digest, _name_of, _named
from sennit.submit.effect_ledger import EffectView, Ledger, effects_of
from sennit.sync.ack import Ack
from sennit.sync.pending import Flow, Pending, got

__all__ = ["NOT_DONE", "EffectView", "NotDone", "OnUnknown", "effect", "effect_token", "effects_of"]

T = TypeVar("T")

OnUnknown = Literal["fail", "ask", "repeat"]

KEY_CHARS_MAX: Final = 200


class NotDone:
    """The type of `NOT_DONE`, which a `check` returns of an effect that did not take place."""

    def __repr__(self) -> str:
        return "NOT_DONE"


NOT_DONE: Final = NotDone()
_UNSTARTED: Final = object()


_token: ContextVar[str] = ContextVar("sennit_effect_token", default="")


@overload
def effect(
    function: Callable[..., Awaitable[T]],
    /,
    *args: Any,
    key: str | None = None,
    check: Callable[..., Any] | None = None,
    on_unknown: OnUnknown = "fail",
    not_done: tuple[type[BaseException], ...] = (),
    **kwargs: Any,
) -> Pending[T]: ...
@overload
def effect(
    function: Callable[..., T],
    /,
    *args: Any,
    key: str | None = None,
    check: Callable[..., Any] | None = None,
    on_unknown: OnUnknown = "fail",
    not_done: tuple[type[BaseException], ...] = (),
    **kwargs: Any,
) -> Pending[T]: ...
def effect(
    function: Callable[..., Any],
    /,
    *args: Any,
    key: str | None = None,
    check: Callable[..., Any] | None = None,
    on_unknown: OnUnknown = "fail",
    not_done: tuple[type[BaseException], ...] = (),
    **kwargs: Any,
) -> Pending[Any]:
    """Call `function` for its consequence, which no crash repeats: a mail, a payment, a push.

    It is written down as begun before the call, and as committed with the result after it; both are durable. A later
    attempt gets the result of what is committed. Of what was only begun (the process died, or the function raised)
    nobody knows whether it took place, and it is not done again unless somebody says that it did not.

    The function is the one consequence, and as short as can be: no steps, questions or sleeps in it. What cannot be
    excluded: an OS that stops a process between its last look at its lease and the first instruction of the function
    may let it act much later. Give the service `effect_token()` as its idempotency key where it takes one.

    Args:
        key: names the effect in this task; the same key is the same effect. Without it an effect is recognised as a step
            is: by the function's name, its arguments and how often that pair occurred before in the attempt.
        check: called with the same arguments when nobody knows; finds out, and returns the result if it did take place,
            `NOT_DONE` if it did not, to do it now. What it raises ends the attempt; the next one asks it again.
        on_unknown: without a check. `fail` raises OutcomeUnknown; `ask` asks in the inbox, and the task goes on from the
            answer; `repeat` does it again, for what may happen twice.
        not_done: exceptions of the function that prove that nothing took place (a refused connection, a 429): later
            attempts do it then.

    Outside of a body the function is just called.

    Raises:
        OutcomeUnknown: see `on_unknown`. Uncaught, the task fails without a retry.
        PayloadError: the result does not serialise. It took place, and is not committed.
        AttemptCancelled: the attempt is no longer held; nothing was done, or nothing is committed.
        UsageError: options that make no sense, a key that is being done right now, or a function that waits for a person.
    """
    _validate(key, check, on_unknown)
    attempt = current()
    if attempt is None:
        return Pending(lambda: _call(function, args, kwargs), lambda: function(*args, **kwargs))
    name = _named(function)
    told = attempt.key(f"{name}|{_digest((*_bound(function), *args), kwargs)}") if key is None else key
    ledger = Ledger(attempt, name, told, function)
    ledger.shown = name if key is None else key

    def flow() -> Flow[Any]:
        if ledger.committed is not None:
            return ledger.result()
        if attempt.is_pressed:
            yield from attempt.make_room()
        if attempt.permit.is_lent:
            yield from attempt.go_on()
        with ledger.alone():
            if ledger.is_open and check is not None:
                with attempt.stepping(ledger.key):
                    found = yield from _done(check, args, kwargs)
                    _must_run(found, check)
                    yield from ledger.void("check") if found is NOT_DONE else ledger.commit(found)
            elif ledger.is_open and on_unknown != "repeat":
                yield from _settled(ledger, on_unknown)
            if ledger.committed is not None:
                return ledger.result()
            with attempt.stepping(ledger.key):
                yield from ledger.begin()
                try:
                    # Inside the other: it ends at once when the attempt has ended while the mark was on its way.
                    with attempt.stepping(f"{ledger.key}|call"), _token_of(attempt, ledger.key):
                        value = yield from _done(function, args, kwargs)
                except not_done as error:
                    yield from ledger.void(type(error).__name__)
                    raise
                except AttemptSuspended as error:
                    raise UsageError(
                        f"effect {name} waits for somebody while it is begun",
                        why="the attempt would end in the middle of it, and nobody would know whether it took place",
                        fix="ask or sleep before it, in the body",
                    ) from error
                if value is _UNSTARTED:
                    yield from ledger.void("it is async, in a sync body")
                    _must_run(value, function)
                yield from ledger.commit(value)
        return value

    return Pending.of(flow)


def effect_token() -> str:
    """Return the idempotency key of the effect that this code is in: the same in every attempt, another for any other effect.

    Raises:
        UsageError: outside of an effect of a task.
    """
    token = _token.get()
    if not token:
        raise UsageError(
            "effect_token() was called outside of an effect", fix="call it in the function given to effect()"
        )
    return token


def _settled(ledger: Ledger, on_unknown: OnUnknown) -> Flow[None]:
    """Let a person say what became of it, or raise."""
    last = ledger.last
    began = 0 if last is None else last.attempt
    why = f"attempt {began} of task {ledger.attempt.task.id} began it, and ended before it could say what came of it"
    if on_unknown == "fail":
        raise OutcomeUnknown(
            ledger.shown,
            why=why,
            fix='look whether it did. Then give effect() a check= that finds out, or on_unknown="ask" to be asked in the '
            "inbox, and `sennit tasks retry` the task: it goes on from there",
        )
    question = f"Did {ledger.what} take place? {why[0].upper()}{why[1:]}."
    pending = ask(question, ledger.answer_type(), context={"effect": ledger.told})
    try:
        answer = yield from got(cast("Ack[Any]", _Both(pending.__await__, pending.result)))
    except AskDenied as error:
        raise OutcomeUnknown(ledger.shown, why=f"{why}; and {error.what}") from error
    if answer.done:
        yield from ledger.commit(answer.result)
    else:
        yield from ledger.void("a person")


# ---------------------------------------------------------------- calls


class _Both:
    """A wait with two faces, as an `Ack` has: flows wait for it in either colour."""

    def __init__(self, in_async: Callable[[], Generator[Any, None, Any]], in_sync: Callable[[], Any]) -> None:
        self._in_async = in_async
        self.wait = in_sync

    def __await__(self) -> Generator[Any, None, Any]:
        return self._in_async()


def _done(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
    """Call it, awaiting what is to be awaited."""

    def in_sync() -> Any:
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()  # nothing of it has run
            return _UNSTARTED
        return value

    both = _Both(lambda: _call(function, args, kwargs).__await__(), in_sync)
    return (yield from got(cast("Ack[Any]", both)))


def _must_run(value: Any, function: Callable[..., Any]) -> None:
    if value is _UNSTARTED:
        raise UsageError(f"{_name_of(function)} is async and was called in a sync body", fix="make the handler async")


@contextmanager
def _token_of(attempt: Attempt, key: str) -> Iterator[None]:
    task = attempt.task
    said = f"{task.id}|{task.created_us}|{key}".encode()
    token = _token.set(f"sennit-{hashlib.blake2b(said, digest_size=16).hexdigest()}")
    try:
        yield
    finally:
        _token.reset(token)


def _validate(key: str | None, check: object, on_unknown: str) -> None:
    """Refuse options that make no sense.

    Raises:
        UsageError: they do.
    """
    wrong = ""
    if key is not None and not (0 < len(key) <= KEY_CHARS_MAX and key.isprintable()):
        wrong = f"an effect's key is 1 to {KEY_CHARS_MAX} printable characters, not {key[:40]!r}"
    elif check is not None and not callable(check):
        wrong = f"check= is a function of the same arguments, not {check!r}"
    elif on_unknown not in get_args(OnUnknown):
        wrong = f'on_unknown is "fail", "ask" or "repeat", not {on_unknown!r}'
    elif check is not None and on_unknown != "fail":
        wrong = "check= and on_unknown= exclude each other: with a check there is nothing unknown"
    if wrong:
        raise UsageError(wrong, fix='effect(send, mail, key="welcome", check=was_sent)')

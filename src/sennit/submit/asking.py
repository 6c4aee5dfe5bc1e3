"""`ask` and `wait_event`: a body asks, and the task waits for the answer without holding anything.

    ask(…) ──noted──► await ──no answer yet──► the attempt ends, suspended ──► inbox … answer ──► the body runs again
                        └──answered──► the value                                                    and gets this far

A question is known by what it says, so a later attempt finds its answer among the task's steps. All that was asked
before the attempt suspends comes into the inbox together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

import msgspec

from sennit.errors import AskDenied, AskExpired, UsageError
from sennit.model.thread import NOTHING, Answer, AskKind, AskSpec, OnExpire
from sennit.submit.attempt import Attempt, attempt_here
from sennit.sync.pending import Flow, Pending, got
from sennit.sync.plain import Typed, typed

T = TypeVar("T")

_UNSET: Final[Any] = object()


@overload
def ask(
    question: str,
    *,
    proposal: Any = ...,
    allow_edit: bool = False,
    context: Any = None,
    expires_s: float | None = None,
    on_expire: OnExpire = "fail",
    default: bool = ...,
    assignee: str = "",
    escalate_to: str = "",
) -> Pending[bool]: ...
@overload
def ask(
    question: str,
    type: type[T],
    *,
    proposal: Any = ...,
    allow_edit: bool = False,
    context: Any = None,
    expires_s: float | None = None,
    on_expire: OnExpire = "fail",
    default: T = ...,
    assignee: str = "",
    escalate_to: str = "",
) -> Pending[T]: ...
@overload
def ask(
    question: str,
    type: Any,
    *,
    proposal: Any = ...,
    allow_edit: bool = False,
    context: Any = None,
    expires_s: float | None = None,
    on_expire: OnExpire = "fail",
    default: Any = ...,
    assignee: str = "",
    escalate_to: str = "",
) -> Pending[Any]: ...
def ask(
    question: str,
    type: Any = bool,  # noqa: A002 - the name of the API
    *,
    proposal: Any = _UNSET,
    allow_edit: bool = False,
    context: Any = None,
    expires_s: float | None = None,
    on_expire: OnExpire = "fail",
    default: Any = _UNSET,
    assignee: str = "",
    escalate_to: str = "",
) -> Pending[Any]:
    """Ask a person; the task goes on when somebody has answered. Meanwhile it holds no slot, OS thread or process.

    A yes-or-no question (`bool`) gives True when approved and False when rejected. Any other gives the answer as `type`.
    The body runs again from the top when the answer is there, and finished steps are not repeated.

    Args:
        type: of the answer; its JSON schema goes with the question, and answers are held against it.
        proposal: what is to be approved, shown with the question; of type `type`, approved it is the answer.
        allow_edit: the proposal may be changed by who approves it.
        context: anything that serialises, shown with the question.
        expires_s: from when it is asked.  on_expire: `fail` raises AskExpired, `default` gives `default`, `escalate` asks
            `escalate_to` for the same time again, and then fails.
        assignee: who is asked; a name for filters.

    Raises:
        AskDenied: it was rejected, and is no yes-or-no question. Uncaught, the task fails without a retry.
        AskExpired: nobody answered in time. Uncaught, the task fails without a retry.
        PayloadError: `proposal` or `default` is no `type`, or `context` does not serialise.
        UsageError: outside of a task body, in a cpu body, or the options contradict each other.
    """
    attempt, kind = attempt_here("ask()"), typed(type)
    if allow_edit and (proposal is _UNSET or type is bool):
        raise UsageError(
            "allow_edit=True needs a proposal and its type",
            why="what is edited is the proposal, and the edited one is the answer",
            fix="pass proposal=… and its type: ask(question, str, proposal=text, allow_edit=True)",
        )
    shown = typed(object) if type is bool else kind  # a yes-or-no question can be about anything
    return _asked(
        attempt,
        kind,
        "ask",
        f"{question}|{kind.name}",
        AskSpec(
            key="",
            question=question,
            schema=kind.schema(),
            context=NOTHING if context is None else _json(attempt, typed(object), context, "context"),
            proposal=NOTHING if proposal is _UNSET else _json(attempt, shown, proposal, "proposal"),
            allow_edit=allow_edit,
            expires_us=_expires_us(expires_s, on_expire, default, escalate_to),
            on_expire=on_expire,
            default=NOTHING if default is _UNSET else _json(attempt, kind, default, "default"),
            assignee=assignee,
            escalate_to=escalate_to,
        ),
    )


@overload
def wait_event(
    name: str, key: str = "", *, expires_s: float | None = None, on_expire: OnExpire = "fail", default: Any = ...
) -> Pending[Any]: ...
@overload
def wait_event(
    name: str,
    key: str = "",
    type: Callable[..., T] = ...,
    *,
    expires_s: float | None = None,
    on_expire: OnExpire = "fail",
    default: T = ...,
) -> Pending[T]: ...
def wait_event(
    name: str,
    key: str = "",
    type: Callable[..., Any] = object,  # noqa: A002 - the name of the API
    *,
    expires_s: float | None = None,
    on_expire: OnExpire = "fail",
    default: Any = _UNSET,
) -> Pending[Any]:
    """Wait for `app.signal(name, key, payload)`; return the payload as `type`. Waits as `ask` does.

    A signal that came before anybody waited for it is kept, and the first wait takes it.

    Raises:
        AskExpired: no signal came in time, and `on_expire` is not `default`.
        PayloadError: the payload is no `type`, or `default` is not.
        UsageError: outside of a task body, in a cpu body, or the options contradict each other.
    """
    attempt, kind = attempt_here("wait_event()"), typed(type)
    if on_expire == "escalate":
        raise UsageError("an event cannot be escalated: nobody is asked", fix='use on_expire="fail" or "default"')
    return _asked(
        attempt,
        kind,
        "event",
        f"{name}|{key}",
        AskSpec(
            key="",
            kind="event",
            name=name,
            event_key=key,
            expires_us=_expires_us(expires_s, on_expire, default, ""),
            on_expire=on_expire,
            default=NOTHING if default is _UNSET else _json(attempt, kind, default, "default"),
        ),
    )


def _asked(attempt: Attempt, kind: Typed[T], what: AskKind, said: str, draft: AskSpec) -> Pending[T]:
    """Note a question that has no answer yet, and return the wait for it."""
    about = b"|".join([said.encode(), bytes(draft.proposal), bytes(draft.context)])
    digest = hashlib.blake2b(about, digest_size=8).hexdigest()
    spec = msgspec.structs.replace(draft, key=attempt.key(f"{what}|{digest}"))
    stored = attempt.recall(spec.key)
    if stored is None:
        attempt.ask(spec)

    def flow() -> Flow[T]:
        if stored is None:
            yield from attempt.suspend(what)
        answer = msgspec.json.decode(stored or b"", type=Answer)
        title = spec.title
        match answer.state:
            case "answered":
                return kind.decode(answer.value or b"null", f"the answer to {title!r}")
            case "expired" if answer.value:
                return kind.decode(answer.value, f"the default of {title!r}")
            case "expired":
                raise AskExpired((yield from _id(attempt, spec)), question=title)
            case "denied" if kind.wanted is bool:
                return kind.decode(b"false", title)
            case "denied":
                ask_id = yield from _id(attempt, spec)
                raise AskDenied(ask_id, question=title, by=answer.by, reason=answer.reason)

    return Pending.of(flow)


def _id(attempt: Attempt, spec: AskSpec) -> Flow[int]:
    """Return the id of a closed question or wait, for the error."""
    views = yield from got(attempt.store.asks(states=(), task_id=attempt.task.id, kind=spec.kind, limit=10_000))
    return next((view.id for view in views if view.spec.key == spec.key), 0)


def _json(attempt: Attempt, kind: Typed[Any], value: Any, what: str) -> msgspec.Raw:
    return msgspec.Raw(kind.encode(value, f"the {what} of a question", attempt.size_bytes_max))


def _expires_us(expires_s: float | None, on_expire: str, default: Any, escalate_to: str) -> int:
    """Return the time in the store's unit, 0 for none.

    Raises:
        UsageError: the options contradict each other.
    """
    wrong = ""
    if on_expire not in ("fail", "default", "escalate"):
        wrong = f'on_expire is "fail", "default" or "escalate", not {on_expire!r}'
    elif expires_s is not None and not 0 < expires_s < 1e11:
        wrong = f"expires_s must be positive, not {expires_s!r}"
    elif expires_s is None and on_expire != "fail":
        wrong = f'on_expire="{on_expire}" without expires_s: it would never happen'
    elif (on_expire == "default") != (default is not _UNSET):
        wrong = 'default= and on_expire="default" belong together'
    elif (on_expire == "escalate") != bool(escalate_to):
        wrong = 'escalate_to= and on_expire="escalate" belong together'
    if wrong:
        raise UsageError(wrong, fix='for example expires_s=3600, on_expire="default", default=False')
    return 0 if expires_s is None else max(1, int(expires_s * 1_000_000))

"""Questions as the command line shows them: in a row, in full, as JSON, and how many of them need somebody."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from sennit.cli.forms import described, phrase
from sennit.cli.output import clipped, columns, padded, pretty, raw, rfc3339, safe, safe_lines, span
from sennit.model.thread import AskView
from sennit.store.protocol_threads import ThreadStore

ALL: Final = 10**9
"""A limit for those who count: a number that was cut off would be a lie."""

QUESTION_CHARS: Final = 70


def open_questions(store: ThreadStore) -> list[AskView]:
    """Return all questions that wait, oldest first."""
    return store.asks(limit=ALL).result()


def needs_you(asks: Sequence[AskView], now_us: int) -> str:
    """Return how many questions wait and for how long, for people."""
    if not asks:
        return "nothing waits for you"
    return f"{len(asks):,} waiting, oldest {span((now_us - asks[0].created_us) / 1e6)}"


def kind_of(ask: AskView) -> str:
    """Return what is to be done with a question: `approve` it, `edit` what it proposes, or answer it (`question`).

    Of a wait for an event it is `event`: nobody decides it.
    """
    if ask.spec.kind == "event":
        return "event"
    if ask.spec.allow_edit:
        return "edit"
    is_yes_or_no = (ask.spec.schema or {}).get("type") == "boolean"
    return "approve" if is_yes_or_no or ask.spec.proposal else "question"


def expiry(ask: AskView, now_us: int) -> str:
    """Return when an open question expires and what happens then, or "" if it does not."""
    if ask.expires_us is None:
        return ""
    left_s = (ask.expires_us - now_us) / 1e6
    match ask.spec.on_expire:
        case "escalate" if not ask.level:
            then = f"then {ask.spec.escalate_to} is asked"
        case "default":
            then = "then its default"
        case _:
            then = "then it fails"
    return f"in {span(left_s)}, {then}" if left_s > 0 else f"{span(-left_s)} ago, {then}"


def row(ask: AskView, now_us: int) -> list[object]:
    """Return the cells of `inbox ls`."""
    return [
        ask.id,
        span((now_us - ask.created_us) / 1e6),
        expiry(ask, now_us) or "never",
        clipped(safe(ask.thread_id or ""), 24),
        clipped(ask.spec.question, QUESTION_CHARS),
        kind_of(ask),
    ]


def event_row(ask: AskView, now_us: int) -> list[object]:
    """Return the cells of `inbox ls --events`."""
    task = f"{ask.task_id} {ask.handler}"
    return [
        *row(ask, now_us)[:4],
        task,
        clipped(safe(ask.spec.name), QUESTION_CHARS),
        clipped(safe(ask.spec.event_key), 40),
    ]


def events_wait(asks: Sequence[AskView], now_us: int) -> str:
    """Return how many waits for events there are and for how long, for people."""
    return needs_you(asks, now_us) if asks else "nothing waits for an event"


def outcome(ask: AskView) -> str:
    """Return what became of a question, for people."""
    if ask.state == "open" or ask.answer is None:
        return {"void": "void: its task has ended"}.get(ask.state, ask.state)
    said: str = ask.state
    if ask.answer.value:
        said += f": {msgspec.json.format(bytes(ask.answer.value), indent=-1).decode()}"
    if ask.answer.by:
        said += f", by {ask.answer.by}"
    return f"{said} ({ask.answer.reason})" if ask.answer.reason else said


def in_full(ask: AskView, now_us: int) -> Iterator[str]:
    """Yield the lines of `inbox show`; nothing in them moves the cursor."""
    spec = ask.spec
    yield f"{'event   ' if spec.kind == 'event' else 'question'}   {ask.id}@{ask.version}  {ask.state}"
    yield from _indented(safe_lines(spec.title))
    yield safe(f"task       {ask.task_id}  {ask.handler}" + (f"  thread {ask.thread_id}" if ask.thread_id else ""))
    asked = f"asked      {span((now_us - ask.created_us) / 1e6)} ago ({rfc3339(ask.created_us)})"
    yield safe(asked + (f", of {spec.assignee}" if spec.assignee else ""))
    if ask.level:
        yield safe(f"escalated  to {ask.assignee}, nobody else had answered in time")
    if ask.state == "open" and (when := expiry(ask, now_us)):
        yield safe(f"expires    {when}")
    for name, data in (("context", spec.context), ("proposal", spec.proposal), ("default", spec.default)):
        if data:
            yield name
            yield from _indented(pretty(data))
    yield safe(f"answer     {phrase(spec.schema)}")
    rows = [(field, words) for field, words in described(spec.schema) if field]
    width = max((columns(field) for field, _ in rows), default=0)
    yield from (safe(f"  {padded(field, width)}  {words}") for field, words in rows)
    if ask.state != "open":
        yield safe(f"decided    {outcome(ask)}" + (f", {rfc3339(ask.closed_us)}" if ask.closed_us else ""))
    else:
        yield f"do         {_commands(ask)}"


def _commands(ask: AskView) -> str:
    """Return the commands that close a question, the likely one first."""
    kind = kind_of(ask)
    if kind == "event":
        return safe(f"sennit signal {shlex.quote(ask.spec.name)} {shlex.quote(ask.spec.event_key)} PAYLOAD")
    ways = [] if kind == "question" else [f"sennit inbox approve {ask.id}"]
    if kind == "edit":
        is_object = (ask.spec.schema or {}).get("type", "object") == "object"
        ways.append(f"sennit inbox edit {ask.id} " + ("--set NAME=VALUE" if is_object else "--value JSON"))
    elif kind == "question":
        ways.append(f"sennit inbox respond {ask.id} ANSWER")
    return "  |  ".join([*ways, f"sennit inbox reject {ask.id} --reason WHY"])


def _indented(text: str) -> Iterator[str]:
    return (f"  {line}" for line in text.split("\n"))


def ask_json(ask: AskView) -> dict[str, Any]:
    """Return the keys of `sennit.ask/1`; a key may be added, none is taken away within version 1."""
    spec = ask.spec
    return {
        "schema": "sennit.ask/1",
        "id": ask.id,
        "version": ask.version,
        "state": ask.state,
        "kind": kind_of(ask),
        "question": spec.title,
        "event": {"name": spec.name, "key": spec.event_key} if spec.kind == "event" else None,
        "task_id": ask.task_id,
        "handler": ask.handler,
        "thread_id": ask.thread_id,
        "assignee": ask.assignee,
        "level": ask.level,
        "created_at": rfc3339(ask.created_us),
        "expires_at": rfc3339(ask.expires_us),
        "closed_at": rfc3339(ask.closed_us),
        "on_expire": spec.on_expire,
        "escalate_to": spec.escalate_to,
        "context": _raw(spec.context),
        "proposal": _raw(spec.proposal),
        "default": _raw(spec.default),
        "allow_edit": spec.allow_edit,
        "answer_schema": spec.schema,
        "answer": None if ask.answer is None else _raw(ask.answer.value),
        "by": "" if ask.answer is None else ask.answer.by,
        "reason": "" if ask.answer is None else ask.answer.reason,
    }


def _raw(value: msgspec.Raw) -> Any:
    return raw(bytes(value) or None)

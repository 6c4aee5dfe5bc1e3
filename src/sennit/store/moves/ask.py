"""Questions and waits for events: asked when a task suspends, closed once, and the answer is a step of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sennit.errors import AskClosed, AskNotFound, AskStale
from sennit.model.task import encode
from sennit.model.thread import NOTHING, Answer, AskKind, AskSpec, AskState, AskView, Decision
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves.outside import resume
from sennit.store.sql import statements

(
    _ASK, _BY_KEY, _REOPEN, _CLOSE, _STEP, _REVISE, _REVISION, _EXPIRED, _ESCALATE,
    _WAITS, _KEEP, _KEPT, _DROP_KEPT, _ONE, _OPEN, _LIST, _NEWEST,
) = statements("ask")  # fmt: skip


def put(connection: Connection, effects: Effects, task_id: int, asks: Sequence[AskSpec]) -> bool:
    """Store the questions of a task that suspends; True when one of them has its answer already."""
    answered = False
    for spec in asks:
        expires_us = effects.now_us + spec.expires_us if spec.expires_us else None
        row = (task_id, spec.key, spec.kind, spec.name, spec.event_key, encode(spec), spec.assignee, effects.now_us)
        new = connection.execute(_ASK, (*row, expires_us)).rowcount
        ask_id, state = connection.execute(_BY_KEY, (task_id, spec.key)).fetchone()
        if state == "void":
            new = connection.execute(_REOPEN, (*row[2:], expires_us, ask_id)).rowcount
        elif state != "open":
            answered = True
        if new and spec.kind == "event" and (kept := connection.execute(_KEPT, (spec.name, spec.event_key)).fetchone()):
            connection.execute(_DROP_KEPT, (kept[0],))
            _close(connection, effects, (ask_id, task_id, spec.key, spec.kind), _event(kept[1]))
            answered = True
        elif new:
            _revise(connection, effects, spec.kind)
            if expires_us is not None:
                effects.due(expires_us)
    return answered


def answer(connection: Connection, effects: Effects, decisions: Sequence[Decision]) -> list[AskView]:
    """Close questions; return them as they are then.

    Raises:
        AskNotFound, AskClosed, AskStale: the caller rolls all of them back.
    """
    for decision in decisions:
        ask = one(connection, decision.ask_id)
        if decision.version is not None and ask.version != decision.version and ask.state == "open":
            raise AskStale(ask.id, expected=decision.version, actual=ask.version)
        if ask.state != "open":
            raise AskClosed(ask.id, state=ask.state, by="" if ask.answer is None else ask.answer.by)
        _close(connection, effects, (ask.id, ask.task_id, ask.spec.key, ask.spec.kind), decision.answer)
    return [one(connection, decision.ask_id) for decision in decisions]


def signal(connection: Connection, effects: Effects, name: str, event_key: str, payload: bytes) -> int:
    """Answer every open wait for an event, or keep the signal; return how many tasks waited."""
    waits = connection.execute(_WAITS, (name, event_key)).fetchall()
    for row in waits:
        _close(connection, effects, row, _event(payload))
    if not waits:
        connection.execute(_KEEP, (name, event_key, payload, effects.now_us))
    return len({task_id for _, task_id, _, _ in waits})


def expire(connection: Connection, effects: Effects) -> None:
    """Deal with questions nobody answered in time, as each of them says."""
    for ask_id, task_id, key, kind, blob, level in connection.execute(_EXPIRED, (effects.now_us,)).fetchall():
        spec = msgspec.json.decode(blob, type=AskSpec)
        if spec.on_expire == "escalate" and not level:
            due_us = effects.now_us + spec.expires_us
            connection.execute(_ESCALATE, (spec.escalate_to, due_us, ask_id))
            effects.due(due_us)
            _revise(connection, effects, kind)
        else:
            value = spec.default if spec.on_expire == "default" else NOTHING
            _close(connection, effects, (ask_id, task_id, key, kind), Answer(state="expired", value=value))


def one(connection: Connection, ask_id: int) -> AskView:
    """Return one question.

    Raises:
        AskNotFound: no such row.
    """
    row = connection.execute(_ONE, (ask_id,)).fetchone()
    if row is None:
        raise AskNotFound(ask_id)
    return _view(row)


def asks(
    connection: Connection,
    *,
    states: Sequence[AskState],
    thread_id: str | None,
    task_id: int | None,
    assignee: str | None,
    kind: AskKind,
    after_id: int,
    newest_first: bool,
    limit: int,
) -> list[AskView]:
    """Return questions that match, or waits for events: oldest first, or newest."""
    filters = {
        "thread_id": thread_id, "task_id": task_id, "assignee": assignee, "kind": kind, "after_id": after_id, "n": limit,
    }  # fmt: skip
    if list(states) == ["open"] and not newest_first:
        return [_view(row) for row in connection.execute(_OPEN, filters)]
    filters["states"] = msgspec.json.encode(list(states)).decode() if states else None
    return [_view(row) for row in connection.execute(_NEWEST if newest_first else _LIST, filters)]


def revision(connection: Connection) -> int:
    """Return the inbox's revision."""
    found: int = connection.execute(_REVISION).fetchone()[0]
    return found


def _close(connection: Connection, effects: Effects, ask: tuple[int, int, str, str], answer: Answer) -> None:
    """Close an open question; the task finds the answer among its steps and goes on."""
    ask_id, task_id, key, kind = ask
    data = encode(answer)
    connection.execute(_CLOSE, (answer.state, data, effects.now_us, ask_id))
    connection.execute(_STEP, (task_id, key, data))
    _revise(connection, effects, kind)
    resume(connection, effects, task_id)


def _revise(connection: Connection, effects: Effects, kind: str) -> None:
    if kind == "ask":
        connection.execute(_REVISE)
        effects.inbox = True


def _event(payload: bytes) -> Answer:
    return Answer(state="answered", value=msgspec.Raw(payload))


def _view(row: tuple[Any, ...]) -> AskView:
    (
        ask_id, task_id, handler, thread_id, spec, state, version, level, assignee, created_us, expires_us, closed_us,
        answer,
    ) = row  # fmt: skip
    return AskView(
        id=ask_id, task_id=task_id, handler=handler, thread_id=thread_id,
        spec=msgspec.json.decode(spec, type=AskSpec), state=state, version=version, level=level, assignee=assignee,
        created_us=created_us, expires_us=expires_us, closed_us=closed_us,
        answer=None if answer is None else msgspec.json.decode(answer, type=Answer),
    )  # fmt: skip

"""Questions and waits for events in the memory store.

suspend ─► open ─► close: answered, denied, expired ─► the answer is a step of the task
├──► escalate: open, somebody else's, once
└──► void: the task has ended; asked again by a revived one, it is open again
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import msgspec

from sennit.model.task import encode
from sennit.model.thread import NOTHING, Answer, AskSpec, AskState
from sennit.store.memory_row import Row


@dataclass(slots=True, eq=False, kw_only=True)
class Ask:
    """One question or wait for an event; fields as in `AskView`."""

    id: int
    task_id: int
    spec: AskSpec
    assignee: str
    created_us: int
    expires_us: int | None
    state: AskState = "open"
    version: int = 1
    level: int = 0
    closed_us: int | None = None
    answer: Answer | None = None


@dataclass(slots=True, eq=False)
class Signal:
    """An event that came before anybody waited for it."""

    name: str
    event_key: str
    payload: bytes
    at_us: int


class Asks:
    """All asks, by id and by task and key, and the signals that are kept.

    Attributes:
        revision: grows with every question that is asked, changed or closed.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, Ask] = {}
        self.by_task: dict[int, dict[str, Ask]] = {}
        self.signals: list[Signal] = []
        self.revision = 0
        self.expiries: list[tuple[int, int]] = []  # a heap with dead entries
        self._ids = itertools.count(1)

    # ------------------------------------------------------------ asking

    def suspend(self, row: Row, specs: Sequence[AskSpec], *, now_us: int) -> bool:
        """Store the asks of a task that suspends; True when one of them has its answer already."""
        answered = False
        for spec in specs:
            ask = self.by_task.get(row.id, {}).get(spec.key)
            if ask is None or ask.state == "void":
                ask = self._store(row, spec, ask, now_us=now_us)
                self._take_signal(ask, row, now_us=now_us)
            answered = answered or ask.state != "open"
        return answered

    def _store(self, row: Row, spec: AskSpec, void: Ask | None, *, now_us: int) -> Ask:
        ask = Ask(
            id=next(self._ids) if void is None else void.id,
            task_id=row.id,
            spec=spec,
            assignee=spec.assignee,
            created_us=now_us,
            expires_us=None,
            version=1 if void is None else void.version,
        )
        self.by_id[ask.id] = self.by_task.setdefault(row.id, {})[spec.key] = ask
        self._set_expiry(ask, now_us=now_us)
        self._changed(ask, grow=void is not None)
        return ask

    def _set_expiry(self, ask: Ask, *, now_us: int) -> None:
        if ask.spec.expires_us:
            ask.expires_us = now_us + ask.spec.expires_us
            heappush(self.expiries, (ask.expires_us, ask.id))

    def _changed(self, ask: Ask, *, grow: bool = True) -> None:
        ask.version += grow
        self.revision += ask.spec.kind == "ask"

    # ------------------------------------------------------------ closing

    def close(self, ask: Ask, row: Row, answer: Answer, *, now_us: int) -> None:
        """Record what became of an open ask; its task finds it among its steps."""
        ask.state, ask.answer, ask.closed_us = answer.state, answer, now_us
        row.steps.setdefault(ask.spec.key, encode(answer))
        self._changed(ask)

    def void(self, task_id: int, *, now_us: int) -> None:
        """Close what a task that ends still asks."""
        for ask in self.by_task.get(task_id, {}).values():
            if ask.state == "open":
                ask.state, ask.closed_us = "void", now_us
                self._changed(ask)

    def drop_task(self, task_id: int) -> None:
        """Delete all asks of a task."""
        for ask in self.by_task.pop(task_id, {}).values():
            del self.by_id[ask.id]

    # ------------------------------------------------------------ events

    def waits(self, name: str, event_key: str) -> list[Ask]:
        """Return the open waits for an event, oldest first."""
        return [
            ask
            for ask in self.by_id.values()
            if ask.state == "open"
            and ask.spec.kind == "event"
            and (ask.spec.name, ask.spec.event_key) == (name, event_key)
        ]

    def _take_signal(self, ask: Ask, row: Row, *, now_us: int) -> None:
        """Answer a new wait with the oldest signal that is kept for it."""
        if ask.spec.kind != "event":
            return
        for signal in self.signals:
            if (signal.name, signal.event_key) == (ask.spec.name, ask.spec.event_key):
                self.signals.remove(signal)
                self.close(ask, row, event_answer(signal.payload), now_us=now_us)
                return

    # ------------------------------------------------------------ time

    def next_due_us(self) -> int | None:
        """Return when the next open ask expires, or None."""
        while self.expiries:
            due_us, ask_id = self.expiries[0]
            ask = self.by_id.get(ask_id)
            if ask is not None and ask.state == "open" and ask.expires_us == due_us:
                return due_us
            heappop(self.expiries)
        return None

    def expire(self, *, now_us: int) -> Iterator[tuple[Ask, Answer]]:
        """Deal with asks that nobody answered in time: pass them on, or yield them with the answer they get."""
        while (due_us := self.next_due_us()) is not None and due_us <= now_us:
            ask = self.by_id[heappop(self.expiries)[1]]
            if ask.spec.on_expire == "escalate" and not ask.level:
                ask.level, ask.assignee = 1, ask.spec.escalate_to
                self._set_expiry(ask, now_us=now_us)
                self._changed(ask)
            else:
                has_default = ask.spec.on_expire == "default"
                yield ask, Answer(state="expired", value=ask.spec.default if has_default else NOTHING)


def event_answer(payload: bytes) -> Answer:
    """Return what a wait for an event is answered with."""
    return Answer(state="answered", value=msgspec.Raw(payload))

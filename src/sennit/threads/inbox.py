"""The inbox: the questions that tasks have asked people, and how they are answered.

    list() ─► Question ─► .approve()  .reject()  .edit(value)  .respond(value)        decides what was looked at
    by id  ─► approve(7, 8)  reject(9, reason="…")  decide([…])                       decides whatever it is now

A question is decided once. An answer is held against the question's JSON schema before it is stored, and decisions that
are made together are recorded together or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sennit.errors import AnswerInvalid
from sennit.model.thread import Answer, AskKind, AskState, AskView, Decision
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.pending import Flow, Pending, got
from sennit.sync.plain import to_plain
from sennit.threads.answers import check_answer
from sennit.threads.watch import Watch


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it was looked at. If it has changed since, a decision is refused as stale."""

    inbox: Inbox
    view: AskView

    @property
    def id(self) -> int:
        """The id of the question."""
        return self.view.id

    @property
    def text(self) -> str:
        """What is asked; of a wait for an event, which."""
        return self.view.spec.title

    @property
    def state(self) -> AskState:
        """Open, or what became of it."""
        return self.view.state

    @property
    def proposal(self) -> Any:
        """What is to be approved, as plain data; None when nothing is proposed."""
        return _plain(self.view.spec.proposal)

    @property
    def context(self) -> Any:
        """What was shown with it, as plain data."""
        return _plain(self.view.spec.context)

    def approve(self, *, by: str = "") -> Pending[AskView]:
        """Say yes: to the question, or to what is proposed."""
        return self._decide(self.approval(by=by))

    def reject(self, reason: str = "", *, by: str = "") -> Pending[AskView]:
        """Say no."""
        return self._decide(self.rejection(reason, by=by))

    def edit(self, value: Any, *, by: str = "") -> Pending[AskView]:
        """Approve another value in place of the one that is proposed."""
        return self._decide(self.edition(value, by=by))

    def respond(self, value: Any, *, by: str = "") -> Pending[AskView]:
        """Answer with a value."""
        return self._decide(self.response(value, by=by))

    # ------------------------------------------------------------ the same for Inbox.decide

    def approval(self, *, by: str = "") -> Decision:
        """Return the decision that `approve` makes.

        Raises:
            AnswerInvalid: it needs a value.
        """
        self._refuse_event()
        spec = self.view.spec
        if (spec.schema or {}).get("type") == "boolean" or (spec.schema is None and not spec.proposal):
            return self._decision(msgspec.Raw(b"true"), by)
        if not spec.proposal:
            raise AnswerInvalid(
                f"question {self.id} cannot just be approved: {self.text}",
                ask_id=self.id,
                why="it asks for a value, and proposes none",
                fix="respond with a value",
            )
        return self._decision(spec.proposal, by)

    def rejection(self, reason: str = "", *, by: str = "") -> Decision:
        """Return the decision that `reject` makes."""
        self._refuse_event()
        answer = Answer(state="denied", by=by, reason=reason)
        return Decision(ask_id=self.id, answer=answer, version=self.view.version)

    def edition(self, value: Any, *, by: str = "") -> Decision:
        """Return the decision that `edit` makes.

        Raises:
            AnswerInvalid: the question does not allow it, or the value does not fit.
        """
        self._refuse_event()
        spec = self.view.spec
        if not spec.allow_edit or not spec.proposal:
            raise AnswerInvalid(
                f"question {self.id} cannot be edited: {self.text}",
                ask_id=self.id,
                why="it was asked without allow_edit=True" if spec.proposal else "nothing is proposed",
                fix="approve it, reject it, or respond with a value",
            )
        return self._decision(_json(self.id, value), by)

    def response(self, value: Any, *, by: str = "") -> Decision:
        """Return the decision that `respond` makes.

        Raises:
            AnswerInvalid: the value does not fit, or there is a proposal that may not be edited.
        """
        self._refuse_event()
        spec = self.view.spec
        if spec.proposal and not spec.allow_edit and bytes(_json(self.id, value)) != bytes(spec.proposal):
            raise AnswerInvalid(
                f"question {self.id} takes no other value than the one proposed: {self.text}",
                ask_id=self.id,
                why="it was asked without allow_edit=True",
                fix="approve it, or reject it",
            )
        return self._decision(_json(self.id, value), by)

    def _refuse_event(self) -> None:
        spec = self.view.spec
        if spec.kind == "event":
            raise AnswerInvalid(
                f"{self.id} is a wait for {spec.title}, and no question",
                ask_id=self.id,
                why="no person decides it: it ends when the event is signalled",
                fix="signal the event, with the same name and key",
            )

    def _decision(self, value: msgspec.Raw, by: str) -> Decision:
        check_answer(self.view, value)
        return Decision(ask_id=self.id, answer=Answer(state="answered", value=value, by=by), version=self.view.version)

    def _decide(self, decision: Decision) -> Pending[AskView]:
        def flow() -> Flow[AskView]:
            return (yield from got(self.inbox.store.answer([decision])))[0]

        return Pending.of(flow)


class Inbox:
    """The questions of one store. What its methods return is awaited, or asked for its `.result()`."""

    def __init__(self, store: Callable[[], ThreadStore]) -> None:
        self._store = store

    @property
    def store(self) -> ThreadStore:
        """The open store."""
        return self._store()

    def __repr__(self) -> str:
        return "<Inbox>"

    # ------------------------------------------------------------ looking

    def list(
        self,
        *,
        states: Sequence[AskState] = ("open",),
        thread_id: str | None = None,
        task_id: int | None = None,
        assignee: str | None = None,
        events: bool = False,
        limit: int = 100,
    ) -> Pending[Sequence[Question]]:
        """Return questions that match, oldest first; open ones unless `states` says otherwise (empty: all).

        With `events`, the waits for events instead: `question.view.spec` has `name` and `event_key`, and
        `app.signal(name, event_key, payload)` ends them; nobody can approve or reject one.
        """
        kind: AskKind = "event" if events else "ask"

        def flow() -> Flow[Sequence[Question]]:
            views = yield from got(
                self.store.asks(
                    states=states, thread_id=thread_id, task_id=task_id, assignee=assignee, kind=kind, limit=limit
                )
            )
            return [Question(self, view) for view in views]

        return Pending.of(flow)

    def show(self, ask_id: int) -> Pending[Question]:
        """Return one question.

        Raises:
            AskNotFound: no such question.
        """

        def flow() -> Flow[Question]:
            return Question(self, (yield from got(self.store.ask(ask_id))))

        return Pending.of(flow)

    def watch(self) -> Watch[Question]:
        """Return the open questions, then each that is new, has changed or is closed: `async for` or `for`.

        Each version is shown once, as far as it still is the present one at the next look; so a question that was asked
        and answered meanwhile is shown once, closed. Waits for events are not shown. Nothing polls; it goes on until it
        is left.
        """
        return Watch(self._store, lambda view: Question(self, view))

    # ------------------------------------------------------------ deciding

    def approve(self, *ids: int, by: str = "") -> Pending[Sequence[AskView]]:
        """Say yes to questions, all or none.

        Raises:
            AskNotFound, AskClosed: one does not exist, or takes no answer any more.
            AnswerInvalid: one needs a value.
        """
        return self._each(ids, lambda question: question.approval(by=by))

    def reject(self, *ids: int, reason: str = "", by: str = "") -> Pending[Sequence[AskView]]:
        """Say no to questions, all or none.

        Raises:
            AskNotFound, AskClosed: one does not exist, or takes no answer any more.
        """
        return self._each(ids, lambda question: question.rejection(reason, by=by))

    def edit(self, ask_id: int, value: Any, *, by: str = "") -> Pending[AskView]:
        """Approve another value in place of the one that is proposed.

        Raises:
            AskNotFound, AskClosed: it does not exist, or takes no answer any more.
            AnswerInvalid: it was asked without `allow_edit`, or the value does not fit.
        """
        return self._one(ask_id, lambda question: question.edition(value, by=by))

    def respond(self, ask_id: int, value: Any, *, by: str = "") -> Pending[AskView]:
        """Answer with a value.

        Raises:
            AskNotFound, AskClosed: it does not exist, or takes no answer any more.
            AnswerInvalid: the value does not fit the question.
        """
        return self._one(ask_id, lambda question: question.response(value, by=by))

    def decide(self, decisions: Iterable[Decision]) -> Pending[Sequence[AskView]]:
        """Record decisions of any kind, all or none: `decide([first.approval(), second.rejection("no")])`.

        Raises:
            AskNotFound, AskClosed: one does not exist, or takes no answer any more.
            AskStale: one has changed since it was looked at.
            AnswerInvalid: a value does not fit its question.
        """
        made = list(decisions)

        def flow() -> Flow[Sequence[AskView]]:
            for decision in made:
                if decision.answer.state == "answered":
                    check_answer((yield from got(self.store.ask(decision.ask_id))), decision.answer.value)
            return (yield from got(self.store.answer(made)))

        return Pending.of(flow)

    # ------------------------------------------------------------ inside

    def _one(self, ask_id: int, decide: Callable[[Question], Decision]) -> Pending[AskView]:
        def flow() -> Flow[AskView]:
            return (yield from self._decided([ask_id], decide))[0]

        return Pending.of(flow)

    def _each(self, ids: Sequence[int], decide: Callable[[Question], Decision]) -> Pending[Sequence[AskView]]:
        return Pending.of(lambda: self._decided(ids, decide))

    def _decided(self, ids: Sequence[int], decide: Callable[[Question], Decision]) -> Flow[Sequence[AskView]]:
        """Decide by id: whoever decides has looked at no version, so none is held against it."""
        decisions = []
        for ask_id in ids:
            view = yield from got(self.store.ask(ask_id))
            decisions.append(msgspec.structs.replace(decide(Question(self, view)), version=None))
        return (yield from got(self.store.answer(decisions)))


def _plain(value: msgspec.Raw) -> Any:
    return msgspec.json.decode(value) if value else None


def _json(ask_id: int, value: Any) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value, enc_hook=to_plain))
    except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
        raise AnswerInvalid(
            f"the answer to question {ask_id} does not serialise: {error}",
            ask_id=ask_id,
            why="it is stored as JSON",
            fix="answer with plain data, a dataclass, a msgspec struct or a pydantic model",
        ) from error

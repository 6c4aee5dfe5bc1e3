"""The contract, part 12: tasks ask, people answer."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
import pytest

from sennit.errors import AskClosed, AskNotFound, AskStale
from sennit.model.lifecycle import State
from sennit.model.task import Crashed, GivenBack
from sennit.model.thread import Answer, AskSpec, AskState, AskView, Decision
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, SECOND_US, Rig, got, in_threads

YES = Answer(state="answered", value=msgspec.Raw(b"true"), by="ann")
NO = Answer(state="denied", by="bob", reason="not today")
A, B, C = (AskSpec(key=key, question=f"{key}?") for key in "abc")


def event(key: str, event_key: str = "1", *, name: str = "paid") -> AskSpec:
    """Return a wait for an event."""
    return AskSpec(key=key, kind="event", name=name, event_key=event_key)


def say(rig: Rig, *asks: AskView, answer: Answer = YES) -> list[AskView]:
    """Answer questions."""
    return got(rig.store.answer([Decision(ask_id=ask.id, answer=answer) for ask in asks]))


def answers(rig: Rig, task_id: int) -> dict[str, Answer]:
    """Run the next attempt of a task as far as to see its answers, and give it back."""
    task = rig.run(task_id)
    rig.finish(GivenBack(task.claim))
    return {key: msgspec.json.decode(step, type=Answer) for key, step in task.steps.items()}


class AskContract:
    """Docstrings of `asks` and `ask`, and of `finish` for suspension."""

    def test_suspension_stores_its_asks(self, rig: Rig, clock: VirtualClock) -> None:
        spec = AskSpec(
            key="a", question="Publish?", schema={"type": "boolean"}, context=msgspec.Raw(b'{"n":1}'),
            proposal=msgspec.Raw(b'"text"'), allow_edit=True, expires_us=5 * SECOND_US, assignee="ann",
        )  # fmt: skip

        (ask,) = rig.ask(spec, thread_id="t", handler="h")

        assert rig.reason(ask.task_id) == (State.SUSPENDED, "ask")
        assert ask == AskView(
            id=ask.id, task_id=ask.task_id, handler="h", thread_id="t", spec=spec, assignee="ann",
            created_us=clock.now_us(), expires_us=clock.now_us() + 5 * SECOND_US,
        )  # fmt: skip
        assert got(rig.store.ask(ask.id)) == ask

    def test_each_task_and_key_is_stored_once(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(A)
        got(rig.store.resume([ask.task_id]))
        clock.advance(5)

        rig.park(rig.run(ask.task_id), AskSpec(key="a", question="again?"), B)

        first, second = got(rig.store.asks(task_id=ask.task_id))
        assert (first, second.spec) == (ask, B)
        assert rig.state(ask.task_id) is State.SUSPENDED

    def test_questions_are_listed_that_match_oldest_first(self, rig: Rig) -> None:
        one, two = rig.ask(A, B, thread_id="t")
        (three,) = rig.ask(AskSpec(key="a", assignee="ann"), thread_id="u")
        (four,) = rig.ask(A)
        say(rig, two)
        say(rig, four, answer=NO)

        def listed(**filters: object) -> list[int]:
            return [ask.id for ask in got(rig.store.asks(**filters))]  # type: ignore[arg-type]

        assert listed() == [one.id, three.id]
        assert listed(states=["open", "answered"]) == [one.id, two.id, three.id]
        assert listed(states=["denied"]) == [four.id]
        assert (listed(thread_id="t"), listed(task_id=three.task_id)) == ([one.id], [three.id])
        assert (listed(assignee="ann"), listed(assignee="bob")) == ([three.id], [])
        assert listed(limit=1) == [one.id]

    def test_waits_for_events_are_not_listed_but_shown_when_asked_for(self, rig: Rig) -> None:
        task = rig.start()
        before = rig.ask(A)
        rig.park(task, event("e"))
        after = rig.ask(A)

        assert [ask.id for ask in got(rig.store.asks())] == [before[0].id, after[0].id]
        (between,) = range(before[0].id + 1, after[0].id)
        assert got(rig.store.ask(between)).spec == event("e")
        assert [ask.id for ask in got(rig.store.asks(kind="event"))] == [between]
        assert got(rig.store.asks(kind="event", states=["answered"])) == []

    @pytest.mark.parametrize("states", [("open",), ()])
    def test_questions_after_an_id_and_the_newest_first(self, rig: Rig, states: Sequence[AskState]) -> None:
        ids = [rig.ask(A)[0].id for _ in range(4)]

        def listed(**filters: object) -> list[int]:
            return [ask.id for ask in got(rig.store.asks(states=states, **filters))]  # type: ignore[arg-type]

        assert (listed(after_id=ids[1]), listed(after_id=ids[-1])) == (ids[2:], [])
        assert (listed(newest_first=True), listed(newest_first=True, limit=1)) == (ids[::-1], ids[-1:])
        assert listed(after_id=ids[0], newest_first=True, limit=2) == [ids[3], ids[2]]

    def test_a_question_that_is_asked_again_keeps_its_place(self, rig: Rig, clock: VirtualClock) -> None:
        (first,) = rig.ask(A)
        (second,) = rig.ask(A)
        got(rig.store.cancel([first.task_id]))
        got(rig.store.revive([first.task_id]))
        clock.advance(1)
        rig.park(rig.run(first.task_id), A)

        assert [ask.id for ask in got(rig.store.asks())] == [first.id, second.id]
        assert [ask.id for ask in got(rig.store.asks(after_id=first.id))] == [second.id]

    def test_an_unknown_question_is_not_found(self, rig: Rig) -> None:
        with pytest.raises(AskNotFound) as unknown:
            got(rig.store.ask(10**12))

        assert unknown.value.ask_id == 10**12

    def test_the_questions_of_a_pruned_task_go_with_it(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(A)
        got(rig.store.cancel([ask.task_id]))
        clock.advance(1)

        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        with pytest.raises(AskNotFound):
            got(rig.store.ask(ask.id))
        (other,) = rig.ask(A)
        assert other.id > ask.id  # who still has the old link must not answer a question of somebody else


class AsksContract(AskContract):
    """Docstring of `answer`, and of `finish` for asks that are answered already."""

    @pytest.mark.parametrize("answer", [YES, NO])
    def test_the_answer_is_kept_with_the_steps_under_the_key_and_the_suspended_task_is_ready(
        self, rig: Rig, clock: VirtualClock, answer: Answer
    ) -> None:
        task = rig.start()
        got(rig.store.save_step(task.claim, "s", b"1"))
        rig.park(task, A)
        (ask,) = got(rig.store.asks())
        clock.advance(1)

        (decided,) = say(rig, ask, answer=answer)

        assert decided == got(rig.store.ask(ask.id))
        assert (decided.state, decided.answer, decided.closed_us) == (answer.state, answer, clock.now_us())
        assert decided.version > ask.version
        again = rig.run(task.id)
        assert (again.steps.pop("s"), list(again.steps)) == (b"1", ["a"])
        assert msgspec.json.decode(again.steps["a"], type=Answer) == answer

    def test_an_answer_is_still_there_after_a_crash_and_after_a_revival(self, rig: Rig) -> None:
        (ask,) = rig.ask(A)
        say(rig, ask)
        rig.finish(Crashed(rig.run(ask.task_id).claim, BOOM))
        rig.fail(rig.run(ask.task_id))
        got(rig.store.revive([ask.task_id]))

        assert answers(rig, ask.task_id) == {"a": YES}

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_several_asks_of_one_task_may_be_answered_in_any_order(self, rig: Rig, order: tuple[int, ...]) -> None:
        asks = rig.ask(A, B, C)
        task_id = asks[0].task_id
        for n in order[:2]:
            say(rig, asks[n])
            rig.park(rig.run(task_id), *(asks[k].spec for k in range(3) if k not in order[: order.index(n) + 1]))
            assert rig.state(task_id) is State.SUSPENDED

        say(rig, asks[order[2]], answer=NO)

        assert answers(rig, task_id) == {asks[n].spec.key: NO if n == order[2] else YES for n in order}

    def test_several_questions_may_be_decided_in_one_call(self, rig: Rig) -> None:
        asks = [*rig.ask(A, B), *rig.ask(A)]

        decided = got(
            rig.store.answer([Decision(ask_id=ask.id, answer=YES if ask.spec is A else NO) for ask in reversed(asks)])
        )

        assert [ask.id for ask in decided] == [ask.id for ask in reversed(asks)]
        assert rig.states(asks[0].task_id, asks[2].task_id) == [State.READY, State.READY]
        assert len(answers(rig, asks[0].task_id)) == 2

    def test_an_answer_that_comes_before_the_suspension_makes_the_task_ready_at_once(self, rig: Rig) -> None:
        first, second = rig.ask(A, B)
        say(rig, first)
        task = rig.run(first.task_id)
        say(rig, second)  # it runs: this answer is too late for its steps

        rig.park(task, B)

        assert rig.state(task.id) is State.READY
        assert answers(rig, task.id) == {"a": YES, "b": YES}

    def test_a_task_is_ready_at_once_when_one_of_its_asks_is_answered_already(self, rig: Rig) -> None:
        first, _ = rig.ask(A, B)
        got(rig.store.resume([first.task_id]))
        task = rig.run(first.task_id)
        say(rig, first)

        rig.park(task, A, B, C)

        assert rig.state(task.id) is State.READY
        assert [ask.spec.key for ask in got(rig.store.asks())] == ["b", "c"]

    # ------------------------------------------------------------ once

    @pytest.mark.parametrize("how", ["answered", "denied", "void"])
    def test_a_question_is_decided_once_by_the_first_answer_or_the_end_of_its_task(
        self, rig: Rig, how: AskState
    ) -> None:
        (ask,) = rig.ask(A)
        match how:
            case "answered":
                say(rig, ask)
            case "denied":
                say(rig, ask, answer=NO)
            case _:
                got(rig.store.cancel([ask.task_id]))
        closed = got(rig.store.ask(ask.id))

        with pytest.raises(AskClosed) as refused:
            say(rig, ask, answer=Answer(state="answered", by="eve"))

        by = closed.answer.by if closed.answer else ""
        assert (refused.value.ask_id, refused.value.state, refused.value.by) == (ask.id, how, by)
        assert (closed.state, got(rig.store.ask(ask.id))) == (how, closed)

    def test_of_eight_that_answer_at_once_one_is_heard(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        (ask,) = rigs[0].ask(A)
        heard: list[str] = []

        def answer(k: int) -> None:
            try:
                (view,) = say(rigs[k % 2], ask, answer=Answer(state="answered", by=str(k)))
            except AskClosed:
                return
            heard.append(view.answer.by if view.answer else "nobody")

        in_threads(8, answer)

        assert [kept.by for kept in answers(rigs[0], ask.task_id).values()] == heard

    @pytest.mark.parametrize("how", ["cancel", "fail", "succeed"])
    def test_the_open_questions_of_a_task_that_ends_are_void(self, rig: Rig, clock: VirtualClock, how: str) -> None:
        asks = rig.ask(A, B)
        say(rig, asks[0])
        task = rig.run(asks[0].task_id)
        clock.advance(1)
        match how:
            case "cancel":
                got(rig.store.cancel([task.id]))
            case "fail":
                rig.fail(task)
            case _:
                rig.succeed(task)

        states = [(ask.state, ask.closed_us) for ask in (got(rig.store.ask(ask.id)) for ask in asks)]
        assert states == [("answered", clock.now_us() - SECOND_US), ("void", clock.now_us())]
        assert got(rig.store.asks()) == []

    def test_a_revived_task_that_asks_again_waits_for_an_answer(self, rig: Rig) -> None:
        (ask,) = rig.ask(A)
        got(rig.store.cancel([ask.task_id]))
        got(rig.store.revive([ask.task_id]))

        rig.park(rig.run(ask.task_id), A)

        assert rig.state(ask.task_id) is State.SUSPENDED
        say(rig, *got(rig.store.asks()))
        assert answers(rig, ask.task_id) == {"a": YES}

    # ------------------------------------------------------------ all or none

    def test_one_that_is_not_there_or_closed_or_stale_refuses_all(self, rig: Rig) -> None:
        good, closed, stale = rig.ask(A, B, C)
        say(rig, closed)
        faults = {
            AskNotFound: Decision(ask_id=10**12, answer=YES),
            AskClosed: Decision(ask_id=closed.id, answer=YES),
            AskStale: Decision(ask_id=stale.id, answer=YES, version=stale.version + 1),
        }
        for fault, decision in faults.items():
            for decisions in (
                [Decision(ask_id=good.id, answer=YES), decision],
                [decision, Decision(ask_id=good.id, answer=YES)],
            ):
                with pytest.raises(fault):
                    got(rig.store.answer(decisions))

        assert got(rig.store.ask(good.id)) == good
        assert answers(rig, good.task_id) == {"b": YES}

    def test_one_that_is_decided_twice_in_one_call_is_not_open_the_second_time(self, rig: Rig) -> None:
        (ask,) = rig.ask(A)

        with pytest.raises(AskClosed):
            say(rig, ask, ask)

        assert got(rig.store.ask(ask.id)) == ask

    def test_a_decision_on_another_version_than_the_present_one_is_stale(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(AskSpec(key="a", expires_us=SECOND_US, on_expire="escalate", escalate_to="boss"))
        clock.advance(1)
        rig.fire()
        now = got(rig.store.ask(ask.id))

        with pytest.raises(AskStale) as stale:
            got(rig.store.answer([Decision(ask_id=ask.id, answer=YES, version=ask.version)]))

        assert (stale.value.ask_id, stale.value.expected, stale.value.actual) == (ask.id, ask.version, now.version)
        got(rig.store.answer([Decision(ask_id=ask.id, answer=YES, version=now.version)]))
        assert answers(rig, ask.task_id) == {"a": YES}

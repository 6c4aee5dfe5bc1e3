"""The contract, part 13: questions nobody answers in time."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import msgspec
import pytest

from sennit.errors import AskClosed
from sennit.model.lifecycle import State
from sennit.model.thread import Answer, AskSpec, AskView, Decision
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got

FAILS = AskSpec(key="a", expires_us=10 * SECOND_US)
HAS_DEFAULT = AskSpec(key="a", expires_us=10 * SECOND_US, on_expire="default", default=msgspec.Raw(b"[7]"))
ESCALATES = AskSpec(
    key="a", expires_us=10 * SECOND_US, on_expire="escalate", assignee="ann", escalate_to="boss",
)  # fmt: skip
EXPIRED = Answer(state="expired")


def kept_answer(rig: Rig, ask: AskView) -> Answer:
    """Run the task that asked and return what it finds."""
    task = rig.run(ask.task_id)
    return msgspec.json.decode(task.steps[ask.spec.key], type=Answer)


class ExpiryContract:
    """Docstring of `fire`, for asks, and of `AskSpec`."""

    def test_an_ask_that_expires_is_answered_with_expired(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(FAILS)
        clock.advance(9)
        rig.fire()
        assert (got(rig.store.ask(ask.id)), rig.state(ask.task_id)) == (ask, State.SUSPENDED)

        clock.advance(1)
        rig.fire()

        view = got(rig.store.ask(ask.id))
        assert (view.state, view.answer, view.closed_us) == ("expired", EXPIRED, clock.now_us())
        assert view.version > ask.version
        assert kept_answer(rig, ask) == EXPIRED

    def test_its_default_is_in_the_answer_when_on_expire_is_default(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(HAS_DEFAULT)

        clock.advance(10)
        rig.fire()

        assert got(rig.store.ask(ask.id)).state == "expired"
        assert kept_answer(rig, ask) == Answer(state="expired", value=msgspec.Raw(b"[7]"))

    def test_one_that_escalates_goes_to_whom_it_escalates_to_for_the_same_time_again(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        (ask,) = rig.ask(ESCALATES)

        clock.advance(10)
        rig.fire()

        view = got(rig.store.ask(ask.id))
        assert (view.state, view.assignee, view.level, view.version) == ("open", "boss", 1, ask.version + 1)
        assert view.expires_us == clock.now_us() + 10 * SECOND_US
        assert rig.state(ask.task_id) is State.SUSPENDED
        assert [found.id for found in got(rig.store.asks(assignee="boss"))] == [ask.id]
        assert got(rig.store.asks(assignee="ann")) == []

    def test_one_that_has_escalated_expires_the_second_time(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(ESCALATES)
        for _ in range(2):
            clock.advance(10)
            rig.fire()

        view = got(rig.store.ask(ask.id))
        assert (view.state, view.level, view.assignee) == ("expired", 1, "boss")
        assert kept_answer(rig, ask) == EXPIRED

    def test_a_wait_for_an_event_expires_as_a_question_does(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start()
        rig.park(task, AskSpec(key="e", kind="event", name="paid", event_key="1", expires_us=SECOND_US))

        clock.advance(1)
        rig.fire()

        assert msgspec.json.decode(rig.run(task.id).steps["e"], type=Answer) == EXPIRED
        assert got(rig.store.signal("paid", "1", b"1")) == 0

    def test_an_ask_without_a_time_never_expires(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(AskSpec(key="a"))
        assert rig.fire() is None

        clock.advance(10**9)
        rig.fire()

        assert got(rig.store.ask(ask.id)) == ask

    def test_the_time_of_an_ask_is_among_what_is_due_until_it_is_closed(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(ESCALATES)
        assert rig.fire() == clock.now_us() + 10 * SECOND_US
        clock.advance(10)
        assert rig.fire() == clock.now_us() + 10 * SECOND_US

        got(rig.store.answer([Decision(ask_id=ask.id, answer=Answer(state="answered"))]))

        assert rig.fire() is None

    def test_no_ask_is_due_of_a_task_that_has_ended(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(FAILS)
        got(rig.store.cancel([ask.task_id]))
        assert rig.fire() is None

        clock.advance(10)
        rig.fire()

        assert got(rig.store.ask(ask.id)).state == "void"

    def test_a_listener_is_told_when_an_ask_expires(self, rig: Rig, clock: VirtualClock) -> None:
        due_us = clock.now_us() + 10 * SECOND_US

        rig.ask(FAILS)

        rig.heard.wait_for(lambda: rig.heard.dues_us[-1:] == [due_us])

    @pytest.mark.parametrize("spec", [FAILS, HAS_DEFAULT])
    def test_an_answer_after_it_has_expired_is_refused(self, rig: Rig, clock: VirtualClock, spec: AskSpec) -> None:
        (ask,) = rig.ask(spec)
        clock.advance(10)
        rig.fire()

        with pytest.raises(AskClosed) as refused:
            got(rig.store.answer([Decision(ask_id=ask.id, answer=Answer(state="answered"))]))

        assert refused.value.state == "expired"

    def test_an_answer_before_it_expires_stands(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(HAS_DEFAULT)
        yes = Answer(state="answered", value=msgspec.Raw(b"1"))
        got(rig.store.answer([Decision(ask_id=ask.id, answer=yes)]))

        clock.advance(10)
        rig.fire()

        assert kept_answer(rig, ask) == yes

    def test_what_expires_serves_the_standing_order(self, rig: Rig, clock: VirtualClock) -> None:
        (ask,) = rig.ask(FAILS)
        rig.store.want("q", 1)
        clock.advance(10)

        rig.fire()

        rig.heard.wait_for(lambda: [(t.id, list(t.steps)) for t in rig.heard.claimed] == [(ask.task_id, ["a"])])

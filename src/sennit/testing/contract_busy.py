"""The contract, part 9: what happens to a task whose thread is busy."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import SubmitError, ThreadBusy
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.task import Slept, Succeeded
from sennit.model.thread import CONFIG, AskSpec, OnBusy, StateWrite
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import POLICIES, SECOND_US, Rig, got, in_threads

REJECT, INTERRUPT, ROLLBACK = (Entry(on_busy=on_busy) for on_busy in ("reject", "interrupt", "rollback"))
OPEN = ("waiting", "scheduled", "ready", "running", "suspended")

takes_over = pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])


def put_in_thread(rig: Rig, place: str, clock: VirtualClock) -> int:
    """Hand in a task of the thread `t` and bring it to the state `place`."""
    match place:
        case "waiting":
            return rig.put(thread_id="t", after=[rig.put(queue="other")])
        case "ready":
            return rig.put(thread_id="t")
    task = rig.start(thread_id="t")
    match place:
        case "scheduled":
            rig.finish(Slept(task.claim, clock.now_us() + SECOND_US))
        case "suspended":
            rig.park(task)
    return task.id


def version(expected: int, data: bytes, *, name: str = "state") -> StateWrite:
    """Return a write to the thread `t`."""
    return StateWrite(thread_id="t", name=name, expected=expected, data=data)


class RollbackContract:
    """Docstring of `Entry`: `rollback`."""

    def test_rollback_also_takes_back_what_the_cancelled_tasks_wrote(self, rig: Rig, clock: VirtualClock) -> None:
        rig.write(version(0, b'"before"'))
        task = rig.start(thread_id="t")
        rig.write(version(1, b'"one"'), version(2, b'"two"'), claim=task.claim)
        rig.put(thread_id="t")
        clock.advance(1)

        new = rig.put(thread_id="t", entry=ROLLBACK)

        assert rig.states(task.id, new) == [State.CANCELLED, State.READY]
        now = rig.remembered()
        assert (now.version, now.data, now.at_us) == (4, b'"before"', clock.now_us())
        assert rig.remembered(version=3).data == b'"two"'

    def test_what_was_rolled_back_has_not_happened_so_its_operations_may_be_done_again(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        write = StateWrite(thread_id="t", expected=0, data=b'"once"', operation_id="o")
        rig.write(write, claim=task.claim)
        rig.put(thread_id="t", entry=ROLLBACK)

        (view,) = rig.write(StateWrite(thread_id="t", expected=2, data=b'"again"', operation_id="o"))

        assert (view.version, view.data) == (3, b'"again"')

    def test_interrupt_leaves_what_the_cancelled_tasks_wrote(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        rig.write(version(0, b"1"), claim=task.claim)

        rig.put(thread_id="t", entry=INTERRUPT)

        assert (rig.remembered().version, rig.remembered().data) == (1, b"1")

    def test_rollback_writes_no_version_when_the_cancelled_tasks_wrote_none(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        rig.succeed(task)
        rig.write(version(0, b"1"))
        open_one = rig.start(thread_id="t")
        rig.write(version(0, b"9", name=CONFIG), claim=open_one.claim)

        rig.put(thread_id="t", entry=ROLLBACK)

        assert rig.state(open_one.id) is State.CANCELLED
        assert (rig.remembered().version, rig.remembered("t", CONFIG).version) == (1, 1)

    def test_rollback_leaves_what_tasks_wrote_that_have_succeeded(self, rig: Rig) -> None:
        done = rig.start(thread_id="t")
        rig.finish(Succeeded(done.claim, b"1", writes=(version(0, b'"kept"'),)))
        task = rig.start(thread_id="t")
        rig.write(version(1, b'"gone"'), claim=task.claim)

        rig.put(thread_id="t", entry=ROLLBACK)

        assert rig.remembered().data == b'"kept"'

    def test_what_a_cancelled_task_had_buffered_is_never_written(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")

        rig.put(thread_id="t", entry=ROLLBACK)

        assert rig.finish(Succeeded(task.claim, b"1", writes=(version(0, b"1"),))) == [False]
        assert rig.remembered().version == 0


class BusyContract(RollbackContract):
    """Docstring of `Entry`: `on_busy`."""

    def test_enqueue_waits_behind_the_open_tasks(self, rig: Rig) -> None:
        first = rig.start(thread_id="t")

        second = rig.put(thread_id="t", entry=Entry(on_busy="enqueue"))

        assert rig.reason(second) == (State.WAITING, "thread")
        rig.succeed(first)
        rig.run(second)

    @pytest.mark.parametrize("place", OPEN)
    def test_reject_raises_thread_busy_while_the_thread_has_an_open_task(
        self, rig: Rig, clock: VirtualClock, place: str
    ) -> None:
        task_id = put_in_thread(rig, place, clock)
        submitted = got(rig.store.ledger()).submitted

        with pytest.raises(ThreadBusy) as refused:
            rig.submit(rig.spec(), rig.spec(thread_id="t", entry=REJECT))

        assert (refused.value.thread_id, refused.value.task_id) == ("t", task_id)
        assert isinstance(refused.value, SubmitError)
        assert got(rig.store.ledger()).submitted == submitted

    def test_reject_accepts_a_task_when_its_thread_has_no_open_one(self, rig: Rig) -> None:
        rig.succeed(rig.start(thread_id="t"))
        rig.start(thread_id="other")

        rig.run(rig.put(thread_id="t", entry=REJECT))

    def test_of_eight_that_reject_at_once_one_is_stored(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        outcomes: list[str] = []

        def submit(k: int) -> None:
            try:
                rigs[k % 2].put(thread_id="t", entry=REJECT)
            except ThreadBusy:
                outcomes.append("busy")
            else:
                outcomes.append("stored")

        in_threads(8, submit)

        assert sorted(outcomes) == [*["busy"] * 7, "stored"]

    @takes_over
    @pytest.mark.parametrize("place", OPEN)
    def test_interrupt_and_rollback_cancel_the_open_tasks_and_have_the_turn(
        self, rig: Rig, clock: VirtualClock, place: str, on_busy: OnBusy
    ) -> None:
        old = [put_in_thread(rig, place, clock), *(rig.put(thread_id="t") for _ in range(2))]

        new = rig.put(thread_id="t", entry=Entry(on_busy=on_busy))

        assert rig.states(*old) == [State.CANCELLED] * 3
        errors = [error for i in old if (error := rig.view(i).error)]
        assert [error.kind for error in errors] == ["interrupted"] * 3
        assert all(str(new) in error.message for error in errors)
        rig.run(new)

    @takes_over
    def test_an_interrupted_attempt_is_told_and_refused(self, rig: Rig, on_busy: OnBusy) -> None:
        task = rig.start(thread_id="t")

        rig.put(thread_id="t", entry=Entry(on_busy=on_busy))

        rig.heard.wait_for(lambda: rig.heard.stopped == [task.claim])
        assert rig.finish(Succeeded(task.claim, b"1")) == [False]

    @takes_over
    def test_the_questions_of_an_interrupted_task_are_void(self, rig: Rig, on_busy: OnBusy) -> None:
        (ask,) = rig.ask(AskSpec(key="a"), thread_id="t")

        rig.put(thread_id="t", entry=Entry(on_busy=on_busy))

        assert got(rig.store.ask(ask.id)).state == "void"

    @takes_over
    def test_the_dependants_of_an_interrupted_task_follow_their_policies(self, rig: Rig, on_busy: OnBusy) -> None:
        task = rig.start(thread_id="t")
        dependants = [rig.put(after=[task.id], on_parent_failed=policy) for policy in POLICIES]

        rig.put(thread_id="t", entry=Entry(on_busy=on_busy))

        assert rig.states(*dependants) == list(POLICIES.values())

    @takes_over
    def test_tasks_of_other_threads_are_not_interrupted(self, rig: Rig, on_busy: OnBusy) -> None:
        ids = [rig.put(thread_id="other"), rig.put(), rig.put(thread_id="other")]
        before = rig.states(*ids)

        rig.put(thread_id="t", entry=Entry(on_busy=on_busy))

        assert rig.states(*ids) == before

    @takes_over
    def test_the_tasks_of_one_batch_do_not_interrupt_each_other(self, rig: Rig, on_busy: OnBusy) -> None:
        old = rig.start(thread_id="t")
        entry = Entry(on_busy=on_busy)

        first, second, third = rig.submit(*(rig.spec(thread_id="t", entry=entry) for _ in range(3)))

        assert rig.state(old.id) is State.CANCELLED
        assert rig.states(first, second, third) == [State.READY, State.WAITING, State.WAITING]

    @takes_over
    def test_a_batch_that_is_refused_interrupts_nobody(self, rig: Rig, on_busy: OnBusy) -> None:
        task = rig.start(thread_id="t")
        rig.write(version(0, b"1"), claim=task.claim)

        with pytest.raises(SubmitError):
            rig.submit(rig.spec(thread_id="t", entry=Entry(on_busy=on_busy)), rig.spec(after=[10**12]))

        assert (rig.state(task.id), rig.remembered().version) == (State.RUNNING, 1)
        rig.succeed(task)

    def test_a_success_whose_child_finds_its_thread_busy_is_a_failure_of_that_kind(self, rig: Rig) -> None:
        rig.start(thread_id="t")
        task = rig.start()

        assert rig.finish(Succeeded(task.claim, b"1", (rig.spec(thread_id="t", entry=REJECT),))) == [True]

        error = rig.view(task.id).error
        assert error is not None
        assert (rig.state(task.id), error.kind) == (State.FAILED, "ThreadBusy")

    @takes_over
    def test_with_parents_the_new_task_has_the_turn_and_waits_for_them(self, rig: Rig, on_busy: OnBusy) -> None:
        parent, old = rig.start(), rig.start(thread_id="t")

        new = rig.put(thread_id="t", after=[parent.id], entry=Entry(on_busy=on_busy))
        behind = rig.put(thread_id="t")

        assert rig.states(old.id, new) == [State.CANCELLED, State.WAITING]
        rig.succeed(parent)
        assert (rig.state(new), rig.reason(behind)) == (State.READY, (State.WAITING, "thread"))

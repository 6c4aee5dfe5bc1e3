"""The contract, part 3: attempts and tasks end."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import TaskNotFound
from sennit.model.lifecycle import State
from sennit.model.task import (
    Cancelled,
    Claim,
    Crashed,
    ErrorInfo,
    Failed,
    GivenBack,
    OnParentFailed,
    Parked,
    Retried,
    Slept,
    Succeeded,
)
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, POLICIES, Rig, got, in_threads


class EndingContract:
    """How one attempt ends; docstrings of `finish` and `save_step`."""

    def test_success_stores_the_result(self, rig: Rig) -> None:
        task = rig.start()

        rig.succeed(task, b'{"a":1}')

        view = rig.view(task.id)
        assert (view.state, view.result, view.attempt, view.error) == (State.SUCCEEDED, b'{"a":1}', 1, None)

    def test_success_stores_the_children_in_the_same_transaction(self, rig: Rig) -> None:
        task = rig.start()
        free, bound = rig.spec(parent_id=task.id), rig.spec(parent_id=task.id, after=[task.id])

        assert rig.finish(Succeeded(task.claim, b"3", (free, bound))) == [True]

        assert rig.states(free.ref.id, bound.ref.id) == [State.READY, State.READY]
        rig.run(free.ref.id)
        assert rig.run(bound.ref.id).parents == (b"3",)

    def test_a_child_waits_only_for_parents_that_are_open_when_its_submitter_succeeds(self, rig: Rig) -> None:
        task, other = rig.start(), rig.start()
        child = rig.spec(parent_id=task.id, after=[task.id, other.id])

        rig.finish(Succeeded(task.claim, b"1", (child,)))

        assert (rig.state(child.ref.id), rig.view(child.ref.id).waiting_for) == (State.WAITING, 1)
        rig.succeed(other, b"2")
        assert rig.run(child.ref.id).parents == (b"1", b"2")

    def test_children_of_one_success_may_wait_for_those_of_another_in_the_same_call(self, rig: Rig) -> None:
        one, two = rig.start(), rig.start()
        first = rig.spec(parent_id=one.id)
        second = rig.spec(parent_id=two.id, parents=(first.ref,))

        rig.finish(Succeeded(one.claim, b"1", (first,)), Succeeded(two.claim, b"2", (second,)))

        assert rig.states(first.ref.id, second.ref.id) == [State.READY, State.WAITING]

    def test_a_success_whose_children_are_refused_is_a_failure_and_the_other_endings_stand(self, rig: Rig) -> None:
        stored = rig.put(key="k", queue="other")
        tasks = [rig.start() for _ in range(5)]
        circle = rig.spec(), rig.spec()
        circle[0].parents, circle[1].parents = (circle[1].ref,), (circle[0].ref,)
        children = (
            (rig.spec(queue="other"),),
            (rig.spec(), rig.spec(after=[10**12])),
            circle,
            (rig.spec(), rig.spec(key="k", on_conflict="reject")),
            (),
        )

        endings = [Succeeded(task.claim, b"1", specs) for task, specs in zip(tasks, children, strict=True)]
        assert rig.finish(*endings) == [True] * 5

        views = [rig.view(task.id) for task in tasks]
        good, failed = State.SUCCEEDED, State.FAILED
        assert [v.state for v in views] == [good, failed, failed, failed, good]
        kinds = [v.error.kind for v in views if v.error]
        assert kinds == ["UnknownDependency", "CyclicDependency", "DuplicateKey"]
        assert [v.failures for v in views] == [0, 1, 1, 1, 0]
        assert got(rig.store.counts()) == {"other": {State.READY: 2}}
        assert rig.state(stored) is State.READY

    def test_refused_children_leave_no_trace(self, rig: Rig) -> None:
        old = rig.put(key="old")
        task = rig.start()
        keyed = rig.spec(key="new", parent_id=task.id, child_key="c")
        replacing = rig.spec(key="old", on_conflict="replace")

        rig.finish(Succeeded(task.claim, b"1", (keyed, replacing, rig.spec(after=[10**12]))))

        assert (rig.state(old), rig.view(old).key) == (State.READY, "old")
        assert rig.put(key="new") != keyed.ref.id
        assert rig.put(parent_id=task.id, child_key="c") != keyed.ref.id
        assert got(rig.store.ledger()).submitted == 4

    def test_the_dependants_of_a_success_whose_children_are_refused_follow_their_policies(self, rig: Rig) -> None:
        task = rig.start()
        dependants = [rig.put(after=[task.id], on_parent_failed=policy) for policy in POLICIES]

        rig.finish(Succeeded(task.claim, b"1", (rig.spec(after=[10**12]),)))

        assert rig.states(*dependants) == list(POLICIES.values())

    def test_a_child_that_replaces_a_task_of_the_same_call_makes_its_later_ending_refused(self, rig: Rig) -> None:
        early, task, late = rig.start(key="early"), rig.start(), rig.start(key="late")
        replacing = tuple(rig.spec(key=key, on_conflict="replace") for key in ("early", "late"))

        endings = Succeeded(early.claim, b"1"), Succeeded(task.claim, b"2", replacing), Succeeded(late.claim, b"3")
        assert rig.finish(*endings) == [True, True, False]

        assert rig.states(early.id, task.id, late.id) == [State.SUCCEEDED, State.SUCCEEDED, State.CANCELLED]

    def test_an_ending_is_accepted_once(self, rig: Rig) -> None:
        task = rig.start()

        assert rig.finish(Succeeded(task.claim, b"1"), Succeeded(task.claim, b"2")) == [True, False]
        assert rig.finish(Failed(task.claim, BOOM)) == [False]
        assert (rig.view(task.id).result, got(rig.store.ledger()).refused) == (b"1", 2)

    def test_an_ending_of_an_attempt_that_is_not_held_is_refused(self, rig: Rig) -> None:
        task = rig.start()
        ready = rig.put()
        strangers = [Claim(task.id, 2), Claim(ready, 0), Claim(ready, 1), Claim(10**12, 1)]
        endings = [
            make(claim)
            for claim in strangers
            for make in (
                lambda c: Succeeded(c, b"1", (rig.spec(),)),
                lambda c: Retried(c, 1, BOOM),
                lambda c: Crashed(c, BOOM),
                lambda c: Slept(c, 1),
                lambda c: Parked(c, ""),
                GivenBack,
                Cancelled,
                lambda c: Failed(c, BOOM),
            )
        ]

        assert rig.finish(*endings) == [False] * 32

        assert rig.states(task.id, ready) == [State.RUNNING, State.READY]
        assert (got(rig.store.ledger()).submitted, got(rig.store.ledger()).refused) == (2, 32)

    def test_eight_that_end_one_attempt_at_once_are_accepted_once(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        task = rigs[0].start()
        accepted: list[bool | None] = []

        in_threads(8, lambda k: accepted.extend(rigs[k % 2].finish(Succeeded(task.claim, b"%d" % k))))

        assert (accepted.count(True), accepted.count(False)) == (1, 7)

    def test_a_retry_counts_a_failure_and_makes_it_scheduled(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start()

        rig.retry(task, after_s=5)

        view = rig.view(task.id)
        assert (view.state, view.failures, view.crashes) == (State.SCHEDULED, 1, 0)
        assert view.due_us == clock.now_us() + 5_000_000
        clock.advance(5)
        got(rig.store.fire())
        again = rig.run(task.id)
        assert (again.attempt, again.failures, got(rig.store.ledger()).retried) == (2, 1, 1)

    def test_a_crash_counts_a_crash_and_makes_it_ready_at_once(self, rig: Rig) -> None:
        task = rig.start()

        assert rig.finish(Crashed(task.claim, BOOM)) == [True]

        again = rig.run(task.id)
        assert (again.attempt, again.failures, again.crashes, got(rig.store.ledger()).crashed) == (2, 0, 1, 1)

    def test_the_last_allowed_crash_is_poison(self, rig: Rig) -> None:
        task = rig.start(crashes_max=2)
        rig.finish(Crashed(task.claim, BOOM))

        rig.finish(Crashed(rig.run(task.id).claim, BOOM))

        view = rig.view(task.id)
        assert (view.state, view.crashes, view.error and view.error.kind) == (State.FAILED, 2, "poison")
        assert (got(rig.store.ledger()).crashed, got(rig.store.ledger()).failed) == (2, 1)

    def test_snooze_sleep_suspension_and_giving_back_count_nothing(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start()
        rig.finish(Slept(task.claim, clock.now_us() + 1, "snooze"))
        assert (rig.state(task.id), rig.view(task.id).reason) == (State.SCHEDULED, "snooze")
        clock.advance(1)
        got(rig.store.fire())
        rig.finish(Parked(rig.run(task.id).claim, "ask"))
        assert (rig.state(task.id), rig.view(task.id).reason) == (State.SUSPENDED, "ask")
        got(rig.store.resume([task.id]))
        rig.finish(GivenBack(rig.run(task.id).claim))
        assert rig.state(task.id) is State.READY

        again = rig.run(task.id)

        assert (again.attempt, again.failures, again.crashes) == (4, 0, 0)
        ledger = got(rig.store.ledger())
        assert (ledger.retried, ledger.crashed, ledger.refused) == (0, 0, 0)

    def test_given_back_a_task_keeps_its_place_in_the_order(self, rig: Rig, clock: VirtualClock) -> None:
        first = rig.start(priority=2)
        clock.advance(1)
        rig.put()
        clock.advance(1)

        rig.finish(GivenBack(first.claim))

        assert rig.claim()[0].id == first.id

    def test_taken_back_from_a_process_that_died_a_task_keeps_its_place_in_the_order(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        first = rig.start(priority=2)
        clock.advance(1)
        rig.put()
        clock.advance(1)

        rig.finish(Crashed(first.claim, BOOM))

        assert rig.claim()[0].id == first.id

    def test_failed_is_the_end(self, rig: Rig) -> None:
        task = rig.start()

        rig.fail(task)

        assert (rig.state(task.id), rig.view(task.id).error) == (State.FAILED, BOOM)

    def test_a_handler_may_cancel_its_own_task(self, rig: Rig) -> None:
        task = rig.start()

        assert rig.finish(Cancelled(task.claim, "not wanted")) == [True]

        view = rig.view(task.id)
        assert (view.state, view.error) == (State.CANCELLED, ErrorInfo(kind="cancelled", message="not wanted"))

    # ------------------------------------------------------------ steps

    def test_steps_come_back_in_later_attempts_and_the_first_result_stays(self, rig: Rig) -> None:
        task = rig.start()
        assert [got(rig.store.save_step(task.claim, k, v)) for k, v in (("a", b"1"), ("a", b"2"), ("b", b"3"))]
        rig.finish(GivenBack(task.claim))

        assert rig.run(task.id).steps == {"a": b"1", "b": b"3"}

    def test_a_step_of_an_attempt_that_is_not_held_is_refused(self, rig: Rig) -> None:
        task = rig.start()
        rig.finish(GivenBack(task.claim))
        again = rig.run(task.id)

        assert not got(rig.store.save_step(task.claim, "a", b"1"))
        assert not got(rig.store.save_step(Claim(10**12, 1), "a", b"1"))
        rig.finish(GivenBack(again.claim))
        assert (rig.run(task.id).steps, got(rig.store.ledger()).refused) == ({}, 2)


class FinishContract(EndingContract):
    """Docstrings of `resume` and `cancel`."""

    def test_resume_makes_suspended_tasks_ready_and_no_others(self, rig: Rig) -> None:
        task = rig.start()
        rig.finish(Parked(task.claim, "ask"))
        ready = rig.put()

        assert got(rig.store.resume([task.id, ready, 10**12])) == [True, False, False]
        assert got(rig.store.resume([task.id])) == [False]
        assert rig.states(task.id, ready) == [State.READY, State.READY]

    def test_a_suspended_task_is_resumed_once_by_four_at_once(self, rig: Rig) -> None:
        task = rig.start()
        rig.finish(Parked(task.claim, "ask"))
        resumed: list[bool] = []

        def resume(_: int) -> None:
            resumed.append(got(rig.store.resume([task.id])) == [True])

        in_threads(4, resume)

        assert sorted(resumed) == [False, False, False, True]

    def test_cancel_ends_live_tasks_whatever_state_they_are_in(self, rig: Rig) -> None:
        parked, running = rig.start(), rig.start()
        rig.finish(Parked(parked.claim, "ask"))
        ready, scheduled = rig.put(), rig.put(delay_us=9)
        waiting = rig.put(after=[rig.put(queue="other")])
        ids = [parked.id, running.id, ready, scheduled, waiting]

        assert got(rig.store.cancel(ids, reason="no need")) == [True] * 5

        assert rig.states(*ids) == [State.CANCELLED] * 5
        assert rig.view(ready).error == ErrorInfo(kind="cancelled", message="no need")
        assert rig.claim(9) == []

    def test_cancel_answers_false_for_one_that_has_ended(self, rig: Rig) -> None:
        ended = [rig.ended_as(s) for s in (State.SUCCEEDED, State.FAILED, State.CANCELLED)]
        live = rig.put()

        assert got(rig.store.cancel([*ended, live, live])) == [False, False, False, True, False]
        assert rig.state(ended[0]) is State.SUCCEEDED

    @pytest.mark.parametrize("policy", POLICIES)
    def test_cancel_ends_all_listed_tasks_before_their_dependants_are_looked_at(
        self, rig: Rig, policy: OnParentFailed
    ) -> None:
        parent = rig.put()
        child = rig.put(after=[parent], on_parent_failed=policy)
        grandchild = rig.put(after=[child], on_parent_failed=policy)

        assert got(rig.store.cancel([parent, child], reason="no need")) == [True, True]

        assert rig.states(parent, child, grandchild) == [State.CANCELLED, State.CANCELLED, POLICIES[policy]]
        error = rig.view(child).error
        assert error is not None
        assert error.message == "no need"

    def test_a_running_attempt_that_is_cancelled_is_told_and_refused(self, rig: Rig) -> None:
        task = rig.start()

        got(rig.store.cancel([task.id]))

        rig.heard.wait_for(lambda: rig.heard.stopped == [task.claim])
        assert rig.finish(Succeeded(task.claim, b"1")) == [False]
        assert not got(rig.store.save_step(task.claim, "a", b"1"))
        assert rig.state(task.id) is State.CANCELLED

    def test_an_attempt_cancelled_by_another_process_is_not_held_any_more(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        task = rig.start()

        got(other.store.cancel([task.id]))

        assert got(rig.store.heartbeat(rig.worker_id, rig.lease_us)) == []
        rig.heard.wait_for(lambda: rig.heard.stopped == [task.claim])

    def test_cancel_of_an_unknown_id_cancels_nothing(self, rig: Rig) -> None:
        task_id = rig.put()

        with pytest.raises(TaskNotFound) as unknown:
            got(rig.store.cancel([task_id, 10**12]))

        assert unknown.value.task_id == 10**12
        assert rig.state(task_id) is State.READY

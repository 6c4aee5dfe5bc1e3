"""The contract, part 22: tasks that have a provider are claimed with a permit for it."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import PermitLost
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.provider import CallReport, Rates
from sennit.model.task import (
    Cancelled,
    Claimed,
    Crashed,
    Ending,
    Failed,
    GivenBack,
    Parked,
    Preempted,
    Retried,
    Slept,
    Succeeded,
)
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_permits import pass_until, pause
from sennit.testing.contract_tools import BOOM, FULL_QUOTA, SECOND_US, Rig, got, in_threads

ENDINGS: dict[str, Callable[[Claimed], Ending]] = {
    "succeeds": lambda task: Succeeded(task.claim, b"1"),
    "fails": lambda task: Failed(task.claim, BOOM),
    "is retried": lambda task: Retried(task.claim, task.created_us + 5 * SECOND_US, BOOM),
    "sleeps": lambda task: Slept(task.claim, task.created_us + 5 * SECOND_US),
    "is suspended": lambda task: Parked(task.claim, "ask"),
    "is given back": lambda task: GivenBack(task.claim),
    "is preempted": lambda task: Preempted(task.claim),
    "crashes": lambda task: Crashed(task.claim, BOOM),
    "cancels itself": lambda task: Cancelled(task.claim),
}
ENDS = (*ENDINGS, "is cancelled", "is at its deadline", "is taken from a dead process")


def end(rig: Rig, task: Claimed, how: str, clock: VirtualClock) -> None:
    """Bring an attempt to an end; its task must have a deadline of 5 s if that is what ends it."""
    match how:
        case "is cancelled":
            got(rig.store.cancel([task.id]))
        case "is at its deadline":
            clock.advance(5)
            rig.fire()
        case "is taken from a dead process":
            got(rig.store.rescue(rig.worker_id))
        case _:
            assert rig.finish(ENDINGS[how](task)) == [True]


class ProviderTaskContract:
    """Docstring of the module: tasks."""

    def test_a_task_is_claimed_together_with_a_permit_that_has_its_id(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider(parallel=2)
        task_id = rig.put(provider="p/m")
        view = rig.view(task_id)
        assert (view.state, view.provider, view.reason) == (State.READY, "p/m", "")

        permit = rig.run(task_id).permit

        assert permit is not None
        assert (permit.id, permit.provider, permit.model) == (task_id, "p", "m")
        assert permit.granted_us == clock.now_us()
        assert (rig.pool().in_use, rig.pool().ready) == (1, 0)
        assert rig.start().permit is None

    def test_as_many_tasks_are_claimed_as_there_is_room_in_order(self, rig: Rig) -> None:
        rig.provider(parallel=3)
        ids = [rig.put(provider="p", priority=p) for p in (2, 1, 0, 1, 2)]

        assert [task.id for task in rig.claim(9)] == [ids[k] for k in (2, 1, 3)]
        assert rig.claim(9) == []

    def test_no_two_processes_claim_with_the_same_permit(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        rigs[0].provider(parallel=3)
        held: list[int] = []
        most = [0]

        def work(k: int) -> None:
            rig = rigs[k % 2]
            for _ in range(15):
                rig.put(provider="p")
                for task in rig.claim(3):
                    held.append(task.id)
                    most[0] = max(most[0], len(held))
                    held.remove(task.id)
                    rig.succeed(task)

        in_threads(4, work)
        while tasks := rigs[0].claim(3):
            rigs[0].finish(*(Succeeded(task.claim, b"1") for task in tasks))

        assert most[0] <= 3
        assert (got(rigs[0].store.counts()), rigs[0].pool().in_use) == ({}, 0)

    @pytest.mark.parametrize("how", ENDS)
    def test_however_an_attempt_ends_its_permit_is_free_for_the_call_that_waits(
        self, rig: Rig, open_rig: Callable[..., Rig], clock: VirtualClock, how: str
    ) -> None:
        other = open_rig()
        rig.provider()
        task = rig.start(provider="p", deadline_us=5 * SECOND_US)
        call = other.line_up(priority=3)
        assert other.waits(call)

        end(rig, task, how, clock)

        assert got(call).provider == "p"
        assert rig.pool().in_use == 1

    @pytest.mark.parametrize("how", ENDS)
    def test_however_an_attempt_ends_its_permit_is_free_for_the_order_that_stands(
        self, rig: Rig, open_rig: Callable[..., Rig], clock: VirtualClock, how: str
    ) -> None:
        other = open_rig()
        rig.provider()
        task = rig.start(provider="p", deadline_us=5 * SECOND_US)
        next_id = rig.put(provider="p", queue="other", priority=0)
        other.store.want("other", 1)
        other.store.look()
        assert rig.state(next_id) is State.READY

        end(rig, task, how, clock)

        other.heard.wait_for(lambda: [claimed.id for claimed in other.heard.claimed] == [next_id])

    def test_the_permit_of_a_task_may_be_returned_before_its_end_and_only_once(self, rig: Rig) -> None:
        rig.provider()
        task = rig.start(provider="p")
        assert got(rig.store.return_permit(task.id, CallReport()))
        calls = [rig.line_up(), rig.line_up()]
        got(calls[0])

        rig.succeed(task)

        assert rig.waits(calls[1])
        assert (rig.pool().in_use, rig.pool().succeeded) == (1, 1)

    def test_with_an_attempt_all_its_calls_are_over(self, rig: Rig) -> None:
        rig.provider(parallel=3)
        task = rig.start(provider="p")
        for _ in range(2):
            rig.permit(task_id=task.id)
        its_own, other = rig.line_up(task_id=task.id), rig.line_up()
        assert rig.waits(its_own, other)

        rig.succeed(task)

        with pytest.raises(PermitLost):
            got(its_own)
        assert got(other).provider == "p"
        assert (rig.pool().in_use, rig.pool().waiting) == (1, 0)

    def test_with_an_attempt_that_is_taken_back_the_calls_of_other_processes_for_it_are_over_too(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig, dead = open_rig(), open_rig()
        rig.provider(parallel=2)
        task = dead.start(provider="p")
        rig.permit(task_id=task.id)
        lost = rig.line_up(task_id=task.id)
        assert rig.waits(lost)

        got(rig.store.rescue(dead.worker_id))

        assert (rig.pool().in_use, rig.pool().waiting) == (0, 0)
        with pytest.raises(PermitLost):
            got(lost)

    def test_an_attempt_that_was_taken_back_does_not_return_the_permit_of_the_next_one(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig, frozen = open_rig(), open_rig()
        rig.provider()
        task_id = frozen.start(provider="p").id
        got(rig.store.rescue(frozen.worker_id))
        rig.run(task_id)

        assert not got(frozen.store.return_permit(task_id, FULL_QUOTA))

        assert (rig.pool().in_use, rig.pool().reason) == (1, "limit")

    def test_a_call_that_waits_comes_before_all_tasks(self, rig: Rig) -> None:
        rig.provider()
        held = rig.permit()
        urgent = rig.put(provider="p", priority=Priority.URGENT)
        rig.store.want("q", 1)
        call = rig.line_up(priority=Priority.LOW)
        assert rig.waits(call)

        rig.give_back(held)

        permit = got(call)
        assert rig.state(urgent) is State.READY
        rig.give_back(permit)
        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [urgent])

    def test_tasks_whose_provider_has_no_room_keep_no_other_from_being_claimed(self, rig: Rig) -> None:
        rig.provider("full")
        rig.provider("free")
        rig.permit("full")
        held_back = [rig.put(provider="full", priority=0) for _ in range(5)]
        other, plain = rig.put(provider="free"), rig.put()

        assert [task.id for task in rig.claim(2)] == [other, plain]

        assert rig.states(*held_back) == [State.READY] * 5
        assert rig.claim(9) == []
        assert rig.number(State.READY) == 5

    def test_an_order_is_served_past_tasks_that_are_held_back(self, rig: Rig) -> None:
        rig.provider()
        rig.permit()
        held_back = rig.put(provider="p", priority=0)
        rig.store.want("q", 1)

        plain = rig.put()

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [plain])
        assert rig.state(held_back) is State.READY

    def test_a_model_that_is_full_keeps_the_tasks_of_other_models_from_nothing(self, rig: Rig) -> None:
        rig.provider(parallel=5, models={"m": Rates(parallel=1)})
        ids = [rig.put(provider=provider) for provider in ("p/m", "p/m", "p/n", "p")]

        assert [task.id for task in rig.claim(9)] == [ids[0], ids[2], ids[3]]
        assert rig.reason(ids[1]) == (State.READY, "limit p")

    @pytest.mark.parametrize("how", ["limit", "pause"])
    def test_a_task_says_what_its_provider_holds_it_back_for(self, rig: Rig, clock: VirtualClock, how: str) -> None:
        rig.provider()
        task_id = rig.put(provider="p/m")
        if how == "limit":
            rig.permit()
        else:
            pause(rig, clock, "p")

        assert rig.reason(task_id) == (State.READY, f"{how} p")

    def test_tasks_that_were_held_back_are_claimed_when_their_time_comes(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider()
        pause(rig, clock, "p")
        task_id = rig.put(provider="p")
        rig.store.want("q", 1)

        pass_until(rig, clock, lambda: rig.state(task_id) is State.RUNNING, within_s=11)

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [task_id])
        assert any(due_us <= clock.now_us() for due_us in rig.heard.dues_us)

    def test_a_task_whose_provider_is_closed_is_claimed_with_a_permit_of_the_fallback(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        pause(rig, clock, "a")
        of_a, of_b = rig.put(provider="a"), rig.put(provider="b")

        tasks = rig.claim(9)

        assert [(task.id, task.permit and task.permit.provider) for task in tasks] == [(of_a, "b")]
        assert rig.reason(of_b) == (State.READY, "limit b")
        rig.succeed(tasks[0])
        assert [task.id for task in rig.claim(9)] == [of_b]

    def test_a_fallback_that_comes_free_serves_the_order_for_those_it_stands_in_for(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        pause(rig, clock, "a")
        held = rig.permit("b")
        task_id = rig.put(provider="a")
        rig.store.want("q", 1)
        assert rig.state(task_id) is State.READY

        rig.give_back(held)

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [task_id])

    def test_tasks_with_a_provider_stand_in_one_order_with_all_others(self, rig: Rig) -> None:
        rig.provider(parallel=9)
        ids = [rig.put(provider=provider) for provider in ("p", "", "x", "p/m", "")]

        assert [got(rig.store.position(i)) for i in ids] == [0, 1, 2, 3, 4]
        assert [task.id for task in rig.claim(9)] == ids

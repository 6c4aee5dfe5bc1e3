"""The contract, part 26: tasks claimed ahead of the slots, and taken over by who is idle."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sennit.errors import UsageError
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Claim, Claimed, Ref, Slept, Succeeded
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import Rig, got, in_threads


def hold(rig: Rig, *, slots: int, n_ahead: int) -> list[Claimed]:
    """Take what is ready for so many slots, and hold so many beyond; return what has begun."""
    rig.store.want_ahead("q", n_ahead)
    return take(rig, slots)


def take(rig: Rig, n: int) -> list[Claimed]:
    """Order so many tasks that must be there; return them."""
    before = len(rig.heard.claimed)
    rig.store.want("q", n)
    rig.heard.wait_for(lambda: len(rig.heard.claimed) >= before + n)
    return rig.heard.claimed[before:]


def put_all(rig: Rig, n: int, **options: Any) -> list[int]:
    """Hand in so many plain tasks."""
    return rig.submit(*(rig.spec(**options) for _ in range(n)))


def steal(rig: Rig, n_max: int = 100, *, queue: str = "q") -> list[Claimed]:
    """Take over what another process has not begun."""
    return got(rig.store.steal(rig.worker_id, queue, n_max))


class StealingContract:
    """Docstrings of `want_ahead` and `steal`."""

    # ------------------------------------------------------------ claimed ahead

    def test_an_order_that_is_served_in_full_claims_ahead(self, rig: Rig) -> None:
        ids = put_all(rig, 10)

        begun = hold(rig, slots=2, n_ahead=4)

        assert [task.id for task in begun] == ids[:2]
        assert rig.number(State.RUNNING) == 6
        assert rig.number(State.READY) == 4

    def test_claiming_ahead_needs_a_worker(self, make_store: Callable[[], Store]) -> None:
        store = make_store()

        with pytest.raises(UsageError):
            store.want_ahead("q", 1)

        store.close()

    def test_what_is_held_ahead_begins_when_a_slot_is_free_in_order_and_once(self, rig: Rig) -> None:
        ids = put_all(rig, 6)
        first, *_ = hold(rig, slots=1, n_ahead=4)

        assert got(rig.store.finish([Succeeded(first.claim, b"1")], want={"q": 1})) == [True]
        rig.heard.wait_for(lambda: len(rig.heard.claimed) == 2)
        take(rig, 4)

        assert [task.claim for task in rig.heard.claimed] == [Claim(i, 1) for i in ids]

    def test_what_has_begun_is_complete(self, rig: Rig) -> None:
        parent = rig.ended_as(State.SUCCEEDED)
        put_all(rig, 1)
        child = rig.put(after=[parent], payload=b"[[1],{}]", thread_id="t")
        hold(rig, slots=1, n_ahead=4)
        assert rig.state(child) is State.RUNNING

        (task,) = take(rig, 1)

        assert (task.id, task.payload, task.thread_id, task.parents) == (child, b"[[1],{}]", "t", (b"1",))

    def test_what_goes_first_in_the_order_begins_before_what_is_held(self, rig: Rig) -> None:
        put_all(rig, 6)
        hold(rig, slots=1, n_ahead=4)
        urgent = rig.put(priority=Priority.URGENT)

        (task,) = take(rig, 1)

        assert task.id == urgent

    def test_an_urgent_task_that_is_held_is_told_of_as_one_that_finds_no_slot(self, rig: Rig) -> None:
        urgent = put_all(rig, 2, priority=Priority.URGENT)

        (begun,) = hold(rig, slots=1, n_ahead=4)

        assert begun.id == urgent[0]
        rig.heard.wait_for(lambda: len(rig.heard.pressed) >= 2)  # the first is of when they became ready

    def test_tasks_with_a_provider_or_a_route_are_not_claimed_ahead_and_nothing_stands_before_them(
        self, rig: Rig
    ) -> None:
        rig.provider("p", parallel=10)
        put_all(rig, 4)
        hold(rig, slots=1, n_ahead=8)
        assert rig.number(State.RUNNING) == 4
        first = rig.put(provider="p", priority=Priority.HIGH)
        rig.put(provider="p")

        (task,) = take(rig, 1)

        assert task.id == first
        assert task.permit is not None
        assert (rig.number(State.RUNNING), rig.number(State.READY)) == (2, 4)

    def test_nothing_stands_before_them_when_the_order_comes_after_all_is_quiet(self, rig: Rig) -> None:
        rig.provider("p", parallel=10)
        put_all(rig, 4)
        hold(rig, slots=1, n_ahead=8)
        first = rig.put(provider="p", priority=Priority.HIGH)
        rig.hear_all()

        (task,) = take(rig, 1)

        assert task.id == first
        assert rig.number(State.READY) == 3

    def test_a_task_of_a_route_is_not_claimed_ahead_also_by_a_worker_that_may_run_it(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig = open_rig(labels=("gpu",))
        routed = [rig.put(route="gpu") for _ in range(3)]

        (task,) = hold(rig, slots=1, n_ahead=8)

        assert task.id == routed[0]
        assert rig.states(*routed[1:]) == [State.READY, State.READY]

    def test_a_task_that_is_held_says_so(self, rig: Rig) -> None:
        begun, held = put_all(rig, 2)

        hold(rig, slots=1, n_ahead=8)

        assert [rig.reason(begun), rig.reason(held)] == [(State.RUNNING, ""), (State.RUNNING, "ahead")]

    def test_a_task_of_a_thread_that_is_held_has_its_turn(self, rig: Rig) -> None:
        put_all(rig, 1)
        first, second = rig.put(thread_id="t"), rig.put(thread_id="t")

        hold(rig, slots=1, n_ahead=4)

        assert rig.states(first, second) == [State.RUNNING, State.WAITING]

    def test_an_attempt_starts_when_it_begins(self, rig: Rig, clock: VirtualClock) -> None:
        _, held = put_all(rig, 2)
        hold(rig, slots=1, n_ahead=4)
        assert rig.view(held).started_us is None
        clock.advance(5)

        take(rig, 1)

        assert rig.view(held).started_us == clock.now_us()

    def test_the_queue_time_out_goes_on_until_a_task_begins(self, rig: Rig, clock: VirtualClock) -> None:
        begins, waits = put_all(rig, 2, queue_timeout_us=5_000_000)
        hold(rig, slots=1, n_ahead=4)
        clock.advance(5)

        rig.fire()

        assert rig.states(begins, waits) == [State.RUNNING, State.FAILED]
        assert (rig.view(waits).started_us, got(rig.store.attempts(waits))) == (None, [])

    def test_the_queue_time_out_is_over_when_a_held_task_begins(self, rig: Rig, clock: VirtualClock) -> None:
        ids = put_all(rig, 3, queue_timeout_us=5_000_000)
        hold(rig, slots=1, n_ahead=4)
        take(rig, 2)
        clock.advance(5)

        assert rig.fire() is None

        assert rig.states(*ids) == [State.RUNNING] * 3

    def test_a_cancelled_order_gives_back_what_is_held_and_that_counts_nothing(self, rig: Rig) -> None:
        ids = put_all(rig, 4)
        hold(rig, slots=1, n_ahead=8)

        got(rig.store.unwant())

        assert rig.states(*ids) == [State.RUNNING] + [State.READY] * 3
        (again,) = rig.claim()
        assert (again.id, again.failures, again.crashes) == (ids[1], 0, 0)
        assert got(rig.store.attempts(ids[1])) == []

    def test_a_task_that_was_given_back_has_waited_until_it_began(self, rig: Rig, clock: VirtualClock) -> None:
        held = put_all(rig, 2)[1]
        hold(rig, slots=1, n_ahead=8)
        clock.advance(3)
        got(rig.store.unwant())
        clock.advance(4)
        (task,) = rig.claim()
        clock.advance(1)

        rig.finish(Slept(task.claim, rig.store.now_us() + 10_000_000))
        clock.advance(10)
        rig.fire()

        assert (task.claim, got(rig.store.waits(held))) == (Claim(held, 2), {"queue": 7_000_000})

    def test_after_that_nothing_is_claimed_ahead(self, rig: Rig) -> None:
        put_all(rig, 4)
        hold(rig, slots=1, n_ahead=8)
        got(rig.store.unwant())

        take(rig, 1)

        assert rig.number(State.RUNNING) == 2

    def test_a_worker_that_leaves_gives_back_what_is_held(self, rig: Rig) -> None:
        ids = put_all(rig, 3)
        hold(rig, slots=1, n_ahead=8)

        got(rig.store.leave())

        assert rig.states(*ids) == [State.RUNNING, State.READY, State.READY]

    def test_what_a_dead_worker_held_ahead_is_ready_and_counts_no_crash(self, open_rig: Callable[..., Rig]) -> None:
        dead, other = open_rig(), open_rig()
        begun, *held = put_all(dead, 3, crashes_max=1)
        hold(dead, slots=1, n_ahead=8)

        assert got(other.store.rescue(dead.worker_id)) == 3

        assert other.states(begun, *held) == [State.FAILED, State.READY, State.READY]
        assert [other.view(i).crashes for i in held] == [0, 0]
        assert got(other.store.ledger()).crashed == 1

    def test_a_held_task_that_is_cancelled_does_not_begin(self, rig: Rig) -> None:
        ids = put_all(rig, 3)
        hold(rig, slots=1, n_ahead=8)

        assert got(rig.store.cancel([ids[1]])) == [True]
        (task,) = take(rig, 1)

        assert task.id == ids[2]
        assert rig.state(ids[1]) is State.CANCELLED
        assert (rig.view(ids[1]).started_us, got(rig.store.attempts(ids[1]))) == (None, [])

    # ------------------------------------------------------------ taken over

    def test_half_is_taken_over_the_first_in_the_order_and_at_most_as_many_as_are_wanted(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        full, idle = open_rig(), open_rig()
        ids = put_all(full, 9)
        hold(full, slots=1, n_ahead=8)

        some, half, one = steal(idle, 2), steal(idle), steal(idle, 1)

        assert [task.id for task in some] == ids[1:3]
        assert [task.id for task in half] == ids[3:6]
        assert [task.id for task in one] == ids[6:7]
        assert steal(idle, 0) == []

    def test_at_least_one_is_taken_over_and_never_one_that_has_begun(self, open_rig: Callable[..., Rig]) -> None:
        full, idle = open_rig(), open_rig()
        put_all(full, 3)
        _, second = hold(full, slots=2, n_ahead=8)

        (last,) = steal(idle)

        assert last.id > second.id
        assert steal(idle) == []

    def test_it_is_taken_from_who_holds_the_most(self, open_rig: Callable[..., Rig]) -> None:
        some, most, idle = open_rig(), open_rig(), open_rig()
        put_all(some, 3)
        hold(some, slots=1, n_ahead=8)
        ids = put_all(most, 5)
        hold(most, slots=1, n_ahead=8)

        assert [task.id for task in steal(idle)] == ids[1:3]

    def test_what_is_taken_over_is_of_the_queue(self, open_rig: Callable[..., Rig]) -> None:
        full, idle = open_rig(), open_rig()
        put_all(full, 4)
        hold(full, slots=1, n_ahead=8)

        assert steal(idle, queue="other") == []

    def test_nobody_takes_over_his_own(self, rig: Rig) -> None:
        put_all(rig, 4)
        hold(rig, slots=1, n_ahead=8)

        assert steal(rig) == []

    def test_it_is_taken_over_as_the_next_attempt_complete_and_the_old_one_is_refused(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        full, idle = open_rig(), open_rig()
        put_all(full, 1)
        parent = full.spec(priority=Priority.URGENT)
        child = full.spec(payload=b"[[7],{}]", parents=(Ref(parent.ref.id),))
        full.submit(parent, child)
        full.succeed(full.run(parent.ref.id))
        hold(full, slots=1, n_ahead=8)

        (task,) = steal(idle)

        assert task.claim == Claim(child.ref.id, 2)
        assert (task.payload, task.parents, task.failures, task.crashes) == (b"[[7],{}]", (b"1",), 0, 0)
        assert full.finish(Succeeded(Claim(task.id, 1), b"0")) == [False]
        idle.succeed(task)
        assert full.view(task.id).result == b"1"

    def test_the_old_holder_does_not_begin_it(self, open_rig: Callable[..., Rig]) -> None:
        full, idle = open_rig(), open_rig()
        ids = put_all(full, 5)
        hold(full, slots=1, n_ahead=8)
        stolen = steal(idle)

        begun = take(full, 2)

        assert [task.id for task in stolen + begun] == ids[1:]

    def test_what_was_taken_over_counts_nothing_of_its_first_holder(self, open_rig: Callable[..., Rig]) -> None:
        full, idle, other = open_rig(), open_rig(), open_rig()
        put_all(full, 2)
        hold(full, slots=1, n_ahead=8)
        (task,) = steal(idle)

        got(other.store.rescue(full.worker_id))

        view = other.view(task.id)
        assert (view.state, view.worker_id, view.crashes) == (State.RUNNING, idle.worker_id, 0)
        assert got(idle.store.heartbeat(idle.worker_id, idle.lease_us)) == [task.claim]

    def test_a_worker_that_has_not_joined_or_has_left_takes_nothing_over(self, open_rig: Callable[..., Rig]) -> None:
        full, left = open_rig(), open_rig()
        put_all(full, 4)
        hold(full, slots=1, n_ahead=8)
        got(left.store.leave())

        assert steal(left) == []
        assert got(left.store.steal(10**9, "q", 1)) == []

    def test_an_order_that_finds_nothing_ready_takes_over(self, open_rig: Callable[..., Rig]) -> None:
        full, idle = open_rig(), open_rig()
        ids = put_all(full, 7)
        hold(full, slots=1, n_ahead=8)

        taken = take(idle, 3)

        assert [task.claim for task in taken] == [Claim(i, 2) for i in ids[1:4]]

    def test_an_end_that_frees_slots_takes_over_in_the_same_call(self, open_rig: Callable[..., Rig]) -> None:
        full, busy = open_rig(), open_rig()
        mine = put_all(busy, 2)
        ends = [Succeeded(task.claim, b"1") for task in take(busy, 2)]
        ids = put_all(full, 4)
        hold(full, slots=1, n_ahead=8)

        assert got(busy.store.finish(ends, want={"q": 2})) == [True, True]

        busy.heard.wait_for(lambda: len(busy.heard.claimed) == len(mine) + 2)
        assert [task.id for task in busy.heard.claimed[2:]] == ids[1:3]

    def test_no_slot_stays_free_while_another_process_holds_what_has_not_begun(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        some, most, idle = open_rig(), open_rig(), open_rig()
        put_all(some, 4)
        hold(some, slots=1, n_ahead=8)
        put_all(most, 7)
        hold(most, slots=1, n_ahead=8)

        take(idle, 9)

        assert steal(idle) == []

    def test_nothing_is_claimed_ahead_of_the_transaction_that_made_it_ready(self, rig: Rig) -> None:
        rig.store.want_ahead("q", 8)
        rig.store.want("q", 1)

        put_all(rig, 4)

        rig.heard.wait_for(lambda: len(rig.heard.claimed) == 1)
        assert rig.number(State.READY) == 3

    def test_tasks_are_taken_over_once_by_whomever(self, open_rig: Callable[..., Rig]) -> None:
        full, *thieves = [open_rig() for _ in range(5)]
        ids = put_all(full, 41)
        hold(full, slots=1, n_ahead=40)
        taken: list[list[Claimed]] = [[] for _ in thieves]

        def run(k: int) -> None:
            if k == len(thieves):
                take(full, 8)
            else:
                for _ in range(4):
                    taken[k].extend(steal(thieves[k], 2))

        in_threads(len(thieves) + 1, run)

        begun = [task.id for tasks in (*taken, full.heard.claimed) for task in tasks]
        assert sorted(begun) == sorted(set(begun))
        assert set(begun) <= set(ids)

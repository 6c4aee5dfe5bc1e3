"""The contract, part 16: a queue has so much room, and what is urgent gets some."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sennit.errors import QueueFull, StoreUnavailable, SubmitError, TaskNotFound
from sennit.model.admission import RETRY_AFTER_MAX_S, RETRY_AFTER_MIN_S, Bounds, Entry, OnFull
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Crashed, Failed, GivenBack, Preempted, Retried, Slept, Succeeded
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_cache import CacheContract
from sennit.testing.contract_tools import BOOM, POLICIES, SECOND_US, TIMEOUT_S, Rig, got, in_threads

BOUND, SHED = Entry(queue_max=3, on_full="reject"), Entry(queue_max=3, on_full="shed")


def fill(rig: Rig, n: int = 3, **options: Any) -> list[int]:
    """Hand in tasks that wait for a slot."""
    return rig.submit(*(rig.spec(**options) for _ in range(n)))


def is_full(rig: Rig, entry: Entry = BOUND, **options: Any) -> bool:
    """Hand in one more; say whether the queue was full for it."""
    try:
        rig.put(entry=entry, **options)
    except QueueFull:
        return True
    return False


class FullContract:
    """Docstring of `Entry`, for full queues."""

    @pytest.mark.parametrize("on_full", ["reject", "block"])
    def test_at_the_bound_a_task_is_refused(self, rig: Rig, on_full: OnFull) -> None:
        entry = Entry(queue_max=3, on_full=on_full)
        for _ in range(3):
            assert not is_full(rig, entry)

        with pytest.raises(QueueFull) as full:
            rig.submit(rig.spec(entry=entry))

        assert isinstance(full.value, SubmitError)
        assert (full.value.queue, full.value.queue_max) == ("q", 3)
        assert RETRY_AFTER_MIN_S <= full.value.retry_after_s <= RETRY_AFTER_MAX_S
        assert got(rig.store.ledger()).submitted == 3

    def test_a_queue_without_a_bound_is_never_full(self, rig: Rig) -> None:
        fill(rig, 100)

        assert not is_full(rig, Entry())

    def test_every_queue_has_a_bound_of_its_own(self, rig: Rig) -> None:
        fill(rig, 3, queue="other")

        assert not is_full(rig)
        assert is_full(rig, queue="other")

    def test_what_waits_for_a_slot_or_for_its_turn_counts(self, rig: Rig) -> None:
        fill(rig, 1)
        fill(rig, 2, thread_id="t")

        assert (rig.number(State.READY), rig.number(State.WAITING)) == (2, 1)
        assert is_full(rig)

    def test_what_runs_sleeps_is_suspended_or_waits_for_parents_does_not_count(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        parent, asleep, parked = rig.start(), rig.start(), rig.start()
        rig.finish(Slept(asleep.claim, clock.now_us() + SECOND_US))
        rig.park(parked)
        rig.put(delay_us=SECOND_US)
        rig.put(after=[parent.id])

        assert [is_full(rig) for _ in range(4)] == [False, False, False, True]

    def test_a_batch_enters_whole_or_not_at_all(self, rig: Rig) -> None:
        with pytest.raises(QueueFull):
            rig.submit(*(rig.spec(entry=BOUND) for _ in range(4)))
        assert got(rig.store.ledger()).submitted == 0

        rig.submit(*(rig.spec(entry=BOUND) for _ in range(3)))
        with pytest.raises(QueueFull):
            rig.submit(rig.spec(entry=BOUND, queue="other"), rig.spec(entry=BOUND))

        assert got(rig.store.ledger()).submitted == 3

    def test_room_is_made_by_a_claim_and_by_an_end(self, rig: Rig) -> None:
        ids = fill(rig)
        rig.run(ids[0])
        assert [is_full(rig), is_full(rig)] == [False, True]

        got(rig.store.cancel([ids[1]]))

        assert [is_full(rig), is_full(rig)] == [False, True]

    def test_a_task_with_parents_never_finds_the_queue_full(self, rig: Rig) -> None:
        done = rig.ended_as(State.SUCCEEDED)
        ids = fill(rig)

        assert not is_full(rig, after=[ids[0]])
        assert not is_full(rig, after=[done])
        assert not is_full(rig, SHED, after=[done])
        assert rig.number(State.READY) == 5

    def test_a_child_of_a_running_attempt_never_finds_the_queue_full(self, rig: Rig) -> None:
        one, two = rig.start(), rig.start()
        fill(rig)
        early, late = (rig.spec(entry=BOUND, parent_id=task.id) for task in (one, two))

        got(rig.store.add_children(one.claim, [early]))
        assert rig.finish(Succeeded(two.claim, b"1", (late,))) == [True]

        assert rig.states(two.id, early.ref.id, late.ref.id) == [State.SUCCEEDED, State.READY, State.READY]

    @pytest.mark.parametrize("how", ["revive", "retry", "give back", "crash"])
    def test_a_task_that_comes_back_never_finds_the_queue_full(self, rig: Rig, clock: VirtualClock, how: str) -> None:
        task = rig.start(entry=BOUND)
        fill(rig)
        match how:
            case "revive":
                rig.finish(Failed(task.claim, BOOM))
                got(rig.store.revive([task.id]))
            case "retry":
                rig.finish(Retried(task.claim, clock.now_us(), BOOM))
                rig.fire()
            case "give back":
                rig.finish(GivenBack(task.claim))
            case _:
                rig.finish(Crashed(task.claim, BOOM))

        assert rig.state(task.id) is State.READY

    def test_of_many_at_once_as_many_enter_as_there_is_room(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        refused: list[bool] = []

        in_threads(8, lambda k: refused.extend([is_full(rigs[k % 2], Entry(queue_max=9)) for _ in range(4)]))

        assert (refused.count(False), refused.count(True)) == (9, 23)
        assert rigs[0].number(State.READY) == 9

    # ------------------------------------------------------------ shed

    def test_shed_cancels_the_last_in_the_order_of_lower_priority(self, rig: Rig, clock: VirtualClock) -> None:
        normal, low = rig.put(), rig.put(priority=Priority.LOW)
        clock.advance(1)
        last = rig.put(priority=Priority.LOW)

        first, second, third = (rig.put(entry=SHED, priority=Priority.HIGH) for _ in range(3))

        assert rig.states(last, low, normal) == [State.CANCELLED] * 3
        error = rig.view(last).error
        assert error is not None
        assert (error.kind, str(first) in error.message) == ("shed", True)
        assert rig.states(first, second, third) == [State.READY] * 3
        assert is_full(rig, SHED, priority=Priority.HIGH)

    def test_shed_cancels_no_task_of_the_same_or_a_higher_priority(self, rig: Rig) -> None:
        ids = [rig.put(priority=priority) for priority in (Priority.NORMAL, Priority.HIGH, Priority.URGENT)]

        assert is_full(rig, SHED, priority=Priority.NORMAL)
        assert is_full(rig, SHED, priority=Priority.LOW)

        assert rig.states(*ids) == [State.READY] * 3

    def test_shed_cancels_no_task_of_another_queue_or_one_that_has_started(self, rig: Rig) -> None:
        started, running = rig.start(priority=Priority.LOW), rig.start(priority=Priority.LOW)
        rig.finish(GivenBack(started.claim))
        ids = [started.id, running.id, *fill(rig, 2, priority=Priority.HIGH), *fill(rig, 3, queue="other", priority=3)]
        before = rig.states(*ids)

        assert is_full(rig, SHED, priority=Priority.HIGH)

        assert rig.states(*ids) == before

    def test_shed_cancels_as_many_as_needed_or_nobody(self, rig: Rig) -> None:
        low, high = fill(rig, 2, priority=Priority.LOW), rig.put(priority=Priority.HIGH)

        def batch(n: int) -> list[int]:
            return rig.submit(*(rig.spec(entry=SHED, priority=Priority.HIGH) for _ in range(n)))

        with pytest.raises(QueueFull):
            batch(3)
        assert rig.states(*low, high) == [State.READY] * 3

        assert rig.states(*batch(2), *low) == [*[State.READY] * 2, *[State.CANCELLED] * 2]

    def test_shed_makes_room_in_a_queue_that_is_over_its_bound_or_cancels_nobody(self, rig: Rig) -> None:
        high, low = fill(rig, 4, priority=Priority.HIGH), fill(rig, 1, priority=Priority.LOW)
        assert is_full(rig, SHED)
        assert rig.states(*low) == [State.READY]

        more = fill(rig, 2, priority=Priority.LOW)
        got(rig.store.cancel(high[:2]))
        assert not is_full(rig, SHED)

        assert (rig.states(*high[2:]), rig.states(*low, *more)) == ([State.READY] * 2, [State.CANCELLED] * 3)

    def test_the_dependants_of_a_task_that_was_shed_follow_their_policies(self, rig: Rig) -> None:
        low = fill(rig, 3, priority=Priority.LOW)[-1]
        dependants = [rig.put(after=[low], on_parent_failed=policy, queue="other") for policy in POLICIES]

        rig.put(entry=SHED)

        assert (rig.state(low), rig.states(*dependants)) == (State.CANCELLED, list(POLICIES.values()))


class RoomWatchContract:
    """Docstring of `wait_room`."""

    def test_it_resolves_at_once_when_fewer_wait(self, rig: Rig) -> None:
        fill(rig, 2)

        got(rig.store.wait_room("q", 3))

    @pytest.mark.parametrize("how", ["claim", "cancel"])
    def test_it_resolves_as_soon_as_fewer_wait_in_whatever_process(
        self, open_rig: Callable[..., Rig], how: str
    ) -> None:
        rig, other = open_rig(), open_rig()
        ids = fill(rig, 4)
        here, there = rig.store.wait_room("q", 3), other.store.wait_room("q", 3)

        rig.run(ids[0])
        rig.store.look()
        other.store.look()
        assert (here.done, there.done) == (False, False)
        if how == "claim":
            rig.run(ids[1])
        else:
            got(rig.store.cancel(ids[1:2]))
        other.store.look()

        got(here)
        got(there)

    def test_tasks_that_wait_for_their_turn_count_for_it(self, rig: Rig) -> None:
        first, _, third = fill(rig, 3, thread_id="t")
        watch = rig.store.wait_room("q", 2)
        task = rig.run(first)
        rig.hear_all()
        assert not watch.done

        got(rig.store.cancel([third]))

        got(watch)
        rig.succeed(task)

    def test_close_fails_it_while_it_waits(self, make_store: Callable[[], Store], rig: Rig) -> None:
        fill(rig)
        store = make_store()
        watch = store.wait_room("q", 1)

        store.close()

        with pytest.raises(StoreUnavailable):
            watch.result(timeout_s=TIMEOUT_S)


class PositionContract:
    """Docstring of `position`."""

    def test_it_is_how_many_tasks_of_the_queue_are_claimed_before(self, rig: Rig, clock: VirtualClock) -> None:
        low, normal, urgent = (rig.put(priority=priority) for priority in (3, 2, 0))
        clock.advance(1)
        fill(rig, 2, queue="other", priority=0)
        later = rig.put()
        order = [urgent, normal, later, low]

        assert [got(rig.store.position(i)) for i in order] == [0, 1, 2, 3]
        rig.run(urgent)
        assert [got(rig.store.position(i)) for i in order] == [None, 0, 1, 2]

    def test_while_it_waits_for_its_turn_only_tasks_of_its_own_thread_count(self, rig: Rig) -> None:
        fill(rig, 5)
        first, second, third = (rig.put(thread_id="t") for _ in range(3))

        assert [got(rig.store.position(i)) for i in (first, second, third)] == [5, 1, 2]

    def test_it_is_none_unless_the_task_is_ready_or_waits_for_its_turn(self, rig: Rig, clock: VirtualClock) -> None:
        running, asleep, parked = rig.start(), rig.start(), rig.start()
        rig.finish(Slept(asleep.claim, clock.now_us() + SECOND_US))
        rig.park(parked)
        waiting, ended = rig.put(after=[running.id]), rig.ended_as(State.SUCCEEDED)

        ids = running.id, asleep.id, parked.id, waiting, ended
        assert [got(rig.store.position(i)) for i in ids] == [None] * 5

    def test_an_unknown_task_has_no_position(self, rig: Rig) -> None:
        with pytest.raises(TaskNotFound):
            got(rig.store.position(10**12))


class PressContract:
    """Docstrings of `Listener.on_pressed` and `Preempted`."""

    def test_a_listener_hears_of_an_urgent_task_for_which_no_order_is_left(self, rig: Rig) -> None:
        rig.put(priority=Priority.URGENT)

        rig.heard.wait_for(lambda: "q" in rig.heard.pressed)

    def test_a_listener_hears_of_an_urgent_task_that_another_process_handed_in(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig, other = open_rig(), open_rig()

        other.put(priority=Priority.URGENT)
        rig.store.look()

        rig.heard.wait_for(lambda: "q" in rig.heard.pressed)

    def test_a_listener_hears_nothing_of_an_urgent_task_that_it_gets(self, rig: Rig) -> None:
        rig.store.want("q", 1)

        _, urgent = rig.submit(rig.spec(), rig.spec(priority=Priority.URGENT))

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [urgent])
        rig.hear_all()
        assert rig.heard.pressed == []

    @pytest.mark.parametrize("priority", [Priority.HIGH, Priority.NORMAL, Priority.LOW])
    def test_a_listener_hears_nothing_of_tasks_that_are_not_urgent(self, rig: Rig, priority: Priority) -> None:
        rig.put(priority=priority)

        rig.hear_all()

        assert rig.heard.pressed == []

    def test_a_listener_hears_of_an_urgent_task_when_it_becomes_ready(self, rig: Rig) -> None:
        parent = rig.run(rig.put())
        rig.put(priority=Priority.URGENT, after=[parent.id])
        rig.hear_all()
        assert rig.heard.pressed == []

        rig.succeed(parent)

        rig.heard.wait_for(lambda: "q" in rig.heard.pressed)

    @pytest.mark.parametrize("bounds", [Bounds(threads_max=1)], indirect=True)
    @pytest.mark.parametrize("how", ["gets room", "is given back"])
    def test_a_listener_hears_of_an_urgent_task_that_another_process_made_ready(
        self, open_rig: Callable[..., Rig], how: str
    ) -> None:
        rig, other = open_rig(), open_rig()
        if how == "gets room":
            task = other.start(thread_id="one")
            other.put(thread_id="two", priority=Priority.URGENT)
        else:
            task = other.start(priority=Priority.URGENT)
        rig.store.look()
        rig.hear_all()
        rig.heard.pressed.clear()

        other.finish(Succeeded(task.claim, b"1") if how == "gets room" else GivenBack(task.claim))
        rig.store.look()

        rig.heard.wait_for(lambda: "q" in rig.heard.pressed)

    def test_a_preempted_task_gets_the_place_of_one_that_is_ready_from_now(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(priority=Priority.NORMAL)
        clock.advance(1)
        before = rig.put()
        clock.advance(1)

        assert rig.finish(Preempted(task.claim)) == [True]

        clock.advance(1)
        after = rig.put()
        assert [claimed.id for claimed in rig.claim(3)] == [before, task.id, after]

    def test_a_preempted_task_keeps_its_steps_and_counts_nothing(self, rig: Rig) -> None:
        task = rig.start()
        got(rig.store.save_step(task.claim, "a", b"1"))

        rig.finish(Preempted(task.claim))

        again = rig.run(task.id)
        assert (again.attempt, again.failures, again.crashes, again.steps) == (2, 0, 0, {"a": b"1"})
        ledger = got(rig.store.ledger())
        assert (ledger.retried, ledger.crashed, ledger.refused) == (0, 0, 0)
        assert rig.finish(Preempted(task.claim)) == [False]


class EntryContract(CacheContract, FullContract, RoomWatchContract, PositionContract, PressContract):
    """Docstrings of `store.protocol_threads`: admission."""

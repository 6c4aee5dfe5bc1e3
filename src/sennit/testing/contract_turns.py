"""The contract, part 8: the tasks of a thread take turns."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Crashed, Ending, Failed, GivenBack, Parked, Preempted, Retried, Slept, Succeeded
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_busy import BusyContract
from sennit.testing.contract_room import ENDINGS, WAITS_FOR_TURN, RoomContract, end
from sennit.testing.contract_tools import BOOM, SECOND_US, Rig, got, in_threads


class TurnContract:
    """Docstring of `store.protocol_threads`: turns."""

    def test_only_the_first_of_the_open_tasks_of_a_thread_becomes_ready(self, rig: Rig) -> None:
        first, *others = rig.submit(*(rig.spec(thread_id="t") for _ in range(3)))
        others.append(rig.put(thread_id="t", priority=Priority.URGENT))

        assert rig.state(first) is State.READY
        assert [rig.reason(i) for i in others] == [WAITS_FOR_TURN] * 3
        assert [task.id for task in rig.claim(9)] == [first]

    def test_the_tasks_of_a_thread_run_in_the_order_they_were_handed_in(self, rig: Rig, clock: VirtualClock) -> None:
        one, two, three, four = (rig.spec(thread_id="t") for _ in range(4))
        order = rig.submit(three, one)  # as handed in, whatever the ids are
        order += [*rig.submit(four), *rig.submit(two)]

        done = []
        while tasks := rig.claim(9):
            done += [task.id for task in tasks]
            rig.finish(*(Succeeded(task.claim, b"1") for task in tasks))
            clock.advance(1)

        assert done == order

    @pytest.mark.parametrize("how", ENDINGS)
    def test_the_turn_is_kept_until_the_task_ends_then_the_next_has_it(
        self, rig: Rig, clock: VirtualClock, how: str
    ) -> None:
        task = rig.start(thread_id="t", crashes_max=1, deadline_us=5 * SECOND_US)
        second, third = rig.put(thread_id="t"), rig.put(thread_id="t")
        assert [rig.reason(i) for i in (second, third)] == [WAITS_FOR_TURN] * 2

        end(rig, task, how, clock)

        assert (rig.state(second), rig.reason(third)) == (State.READY, WAITS_FOR_TURN)

    def test_the_turn_is_kept_while_the_task_is_scheduled_retried_or_suspended(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        delayed = rig.put(thread_id="t", delay_us=SECOND_US)
        second = rig.put(thread_id="t")
        seen = [rig.reason(second)]
        for how in ("sleep", "retry", "park"):
            clock.advance(1)
            rig.fire()
            task = rig.run(delayed)
            due_us = clock.now_us() + SECOND_US
            endings: dict[str, Ending] = {
                "sleep": Slept(task.claim, due_us),
                "retry": Retried(task.claim, due_us, BOOM),
                "park": Parked(task.claim, "ask"),
            }
            rig.finish(endings[how])
            assert rig.claim() == []
            seen.append(rig.reason(second))

        assert seen == [WAITS_FOR_TURN] * 4
        got(rig.store.resume([delayed]))
        rig.succeed(rig.run(delayed))
        assert rig.run(second).attempt == 1

    @pytest.mark.parametrize("ending", [GivenBack, Preempted, lambda claim: Crashed(claim, BOOM)])
    def test_the_turn_is_kept_while_the_task_goes_back_into_the_order(
        self, rig: Rig, ending: Callable[..., GivenBack]
    ) -> None:
        task = rig.start(thread_id="t")
        second = rig.put(thread_id="t", priority=Priority.URGENT)

        rig.finish(ending(task.claim))

        assert (rig.state(task.id), rig.reason(second)) == (State.READY, WAITS_FOR_TURN)
        assert rig.run(task.id).attempt == 2

    def test_the_turn_is_kept_when_the_process_that_ran_the_task_dies(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        task = dead.start(thread_id="t")
        second = rig.put(thread_id="t")

        got(rig.store.rescue(dead.worker_id))

        assert (rig.state(task.id), rig.reason(second)) == (State.READY, WAITS_FOR_TURN)

    def test_the_turn_is_kept_while_the_task_waits_for_its_parents(self, rig: Rig) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id], thread_id="t")
        second = rig.put(thread_id="t")
        assert (rig.state(child), rig.reason(second)) == (State.WAITING, WAITS_FOR_TURN)

        rig.succeed(parent)

        assert (rig.state(child), rig.reason(second)) == (State.READY, WAITS_FOR_TURN)

    def test_a_task_that_has_its_turn_still_waits_for_its_parents(self, rig: Rig) -> None:
        first, parent = rig.start(thread_id="t"), rig.start()
        child = rig.put(after=[parent.id], thread_id="t")

        rig.succeed(first)
        assert (rig.state(child), rig.claim()) == (State.WAITING, [])
        rig.succeed(parent, b"7")

        assert rig.run(child).parents == (b"7",)

    def test_a_task_whose_parents_are_done_still_waits_for_its_turn(self, rig: Rig) -> None:
        first, parent = rig.start(thread_id="t"), rig.start()
        child = rig.put(after=[parent.id], thread_id="t")

        rig.succeed(parent)
        assert rig.reason(child) == WAITS_FOR_TURN
        rig.succeed(first)

        assert rig.state(child) is State.READY

    def test_a_task_may_wait_for_the_one_before_it_in_its_thread(self, rig: Rig) -> None:
        parent, child = rig.spec(thread_id="t"), rig.spec(thread_id="t")
        child.parents = (parent.ref,)
        rig.submit(parent, child)

        rig.succeed(rig.run(parent.ref.id), b"3")

        assert rig.run(child.ref.id).parents == (b"3",)

    def test_dependencies_in_a_batch_do_not_change_the_order_of_its_threads(self, rig: Rig) -> None:
        parent, second = rig.spec(), rig.spec(thread_id="t")
        first = rig.spec(thread_id="t", parents=(parent.ref,))
        rig.submit(parent, first, second)

        rig.succeed(rig.run(parent.ref.id))

        assert (rig.state(first.ref.id), rig.reason(second.ref.id)) == (State.READY, WAITS_FOR_TURN)

    def test_in_a_batch_a_parent_goes_before_its_dependants_in_their_thread(self, rig: Rig) -> None:
        parent = rig.spec(thread_id="t")
        child = rig.spec(thread_id="t", parents=(parent.ref,))
        rig.submit(child, parent)

        rig.succeed(rig.run(parent.ref.id))

        rig.run(child.ref.id)

    def test_a_task_with_a_delay_is_scheduled_when_it_has_its_turn(self, rig: Rig, clock: VirtualClock) -> None:
        first = rig.start(thread_id="t")
        second = rig.put(thread_id="t", delay_us=5 * SECOND_US)
        assert rig.reason(second) == WAITS_FOR_TURN

        rig.succeed(first)

        assert rig.state(second) is State.SCHEDULED
        clock.advance(5)
        rig.fire()
        assert rig.state(second) is State.READY

    def test_one_that_ends_while_it_waits_for_its_turn_is_passed_over(self, rig: Rig, clock: VirtualClock) -> None:
        first = rig.start(thread_id="t")
        parent = rig.start()
        cancelled, late = rig.put(thread_id="t"), rig.put(thread_id="t", queue_timeout_us=SECOND_US)
        failed, last = rig.put(thread_id="t", after=[parent.id]), rig.put(thread_id="t")

        got(rig.store.cancel([cancelled]))
        rig.fail(parent)
        clock.advance(1)
        rig.fire()
        rig.succeed(first)

        assert rig.states(cancelled, late, failed) == [State.CANCELLED, State.FAILED, State.FAILED]
        rig.run(last)

    def test_the_whole_line_of_a_thread_may_be_cancelled_at_once(self, rig: Rig) -> None:
        ids = [rig.start(thread_id="t").id, *(rig.put(thread_id="t") for _ in range(5))]

        got(rig.store.cancel(ids))

        assert rig.states(*ids) == [State.CANCELLED] * 6
        rig.run(rig.put(thread_id="t"))

    def test_tasks_without_a_thread_and_of_other_threads_do_not_wait(self, rig: Rig) -> None:
        ids = [rig.put(thread_id=thread_id) for thread_id in ("a", "a", "b", None, None)]

        assert [rig.state(i) for i in ids] == [State.READY, State.WAITING, *[State.READY] * 3]

    def test_a_thread_spans_queues_and_handlers(self, rig: Rig) -> None:
        first = rig.start(thread_id="t")
        second = rig.put(thread_id="t", queue="other", handler="another")
        assert rig.reason(second) == WAITS_FOR_TURN

        rig.succeed(first)

        assert [task.id for task in rig.claim(queue="other")] == [second]

    def test_the_children_of_a_success_have_their_turns_behind_what_waits(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        waiting = rig.put(thread_id="t")
        children = tuple(rig.spec(thread_id="t", parent_id=task.id) for _ in range(2))

        rig.finish(Succeeded(task.claim, b"1", children))

        order = []
        for _ in range(3):
            (one,) = rig.claim(9)
            order.append(one.id)
            rig.succeed(one)
        assert order == [waiting, *(spec.ref.id for spec in children)]

    def test_what_the_end_of_a_turn_makes_ready_serves_the_standing_order(self, rig: Rig) -> None:
        first = rig.start(thread_id="t")
        second = rig.put(thread_id="t")
        rig.store.want("q", 1)

        rig.succeed(first)

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [second])

    def test_a_thread_with_many_tasks_takes_turns_with_the_others(self, rig: Rig, clock: VirtualClock) -> None:
        rig.submit(*(rig.spec(thread_id="busy") for _ in range(60)))
        clock.advance(0.001)
        for thread_id in ("a", "b"):
            rig.submit(*(rig.spec(thread_id=thread_id) for _ in range(10)))
            clock.advance(0.001)

        served: Counter[str | None] = Counter()
        for _ in range(30):
            (task,) = rig.claim()
            clock.advance(0.001)
            rig.succeed(task)
            served[task.thread_id] += 1
            assert max(served.values()) - min(served[thread_id] for thread_id in ("busy", "a", "b")) <= 1

    def test_no_two_tasks_of_a_thread_run_at_once_and_all_run_in_order(self, open_rig: Callable[..., Rig]) -> None:
        rigs, threads = (open_rig(), open_rig()), [f"t{k}" for k in range(5)]
        handed_in = [rigs[0].spec(thread_id=threads[k % 5], priority=k % 4) for k in range(300)]
        rigs[0].submit(*handed_in)
        seen: dict[str, list[tuple[str, int]]] = {thread_id: [] for thread_id in threads}

        def work(k: int) -> None:
            while got(rigs[0].store.ledger()).live:
                for task in rigs[k % 2].claim(2):
                    line = seen[str(task.thread_id)]
                    line.append(("start", task.id))
                    line.append(("end", task.id))  # before the end is recorded: what follows can only start after it
                    rigs[k % 2].succeed(task)

        in_threads(6, work)

        for thread_id, line in seen.items():
            ids = [spec.ref.id for spec in handed_in if spec.thread_id == thread_id]
            assert line == [(what, i) for i in ids for what in ("start", "end")]


class TurnsContract(TurnContract, RoomContract, BusyContract):
    """Docstring of `revive`, for tasks of a thread."""

    def test_a_revived_task_of_a_thread_is_next_in_it(self, rig: Rig) -> None:
        old = rig.start(thread_id="t")
        holder, waiting = rig.put(thread_id="t"), rig.put(thread_id="t")
        rig.finish(Failed(old.claim, BOOM))
        task = rig.run(holder)

        got(rig.store.revive([old.id]))

        assert [rig.reason(i) for i in (old.id, waiting)] == [WAITS_FOR_TURN] * 2
        rig.succeed(task)
        assert (rig.state(old.id), rig.reason(waiting)) == (State.READY, WAITS_FOR_TURN)
        assert rig.run(old.id).attempt == 2

    def test_a_revived_task_has_the_turn_at_once_when_its_thread_has_no_open_task(self, rig: Rig) -> None:
        old = rig.start(thread_id="t")
        rig.fail(old)

        got(rig.store.revive([old.id]))

        assert (rig.state(old.id), rig.reason(rig.put(thread_id="t"))) == (State.READY, WAITS_FOR_TURN)

    @pytest.mark.parametrize("busy", [False, True])
    def test_several_that_are_revived_in_one_call_end_up_in_their_thread_in_the_order_they_are_named(
        self, rig: Rig, *, busy: bool
    ) -> None:
        ids = [rig.put(thread_id="t") for _ in range(3)]
        got(rig.store.cancel(ids))
        holder = rig.start(thread_id="t") if busy else None

        assert got(rig.store.revive(ids)) == [True] * 3
        if holder is not None:
            assert [rig.reason(i) for i in ids] == [WAITS_FOR_TURN] * 3
            rig.succeed(holder)

        order = []
        for _ in ids:
            (task,) = rig.claim(9)
            order.append(task.id)
            rig.succeed(task)
        assert order == ids

    def test_a_revived_task_takes_the_turn_over_from_one_that_still_waits_for_its_parents(self, rig: Rig) -> None:
        old = rig.start(thread_id="t")
        parent = rig.start()
        child = rig.put(thread_id="t", after=[parent.id])
        rig.fail(old)

        got(rig.store.revive([old.id]))

        assert rig.state(old.id) is State.READY
        rig.succeed(parent)
        assert rig.reason(child) == WAITS_FOR_TURN
        rig.succeed(rig.run(old.id))
        rig.run(child)

"""The contract, part 10: threads take room, and there is so much of it."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import (
    Cancelled,
    Claimed,
    Crashed,
    Ending,
    GivenBack,
    Parked,
    Preempted,
    Retried,
    Slept,
    Succeeded,
)
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, SECOND_US, Rig, got, in_threads

WAITS_FOR_TURN = (State.WAITING, "thread")
WAITS_FOR_ROOM = (State.WAITING, "threads_max")

one_thread_at_a_time = pytest.mark.parametrize("bounds", [Bounds(threads_max=1)], indirect=True)
two_threads_at_a_time = pytest.mark.parametrize("bounds", [Bounds(threads_max=2)], indirect=True)

ENDINGS = ("succeeds", "fails", "is cancelled", "cancels itself", "is poison", "is at its deadline")


def end(rig: Rig, task: Claimed, how: str, clock: VirtualClock) -> None:
    """Bring an attempt, and with it its task, to an end; it must be made with `crashes_max=1` and a deadline of 5 s."""
    match how:
        case "succeeds":
            rig.succeed(task)
        case "fails":
            rig.fail(task)
        case "cancels itself":
            rig.finish(Cancelled(task.claim))
        case "is poison":
            rig.finish(Crashed(task.claim, BOOM))
        case "is at its deadline":
            clock.advance(5)
            rig.fire()
        case _:
            got(rig.store.cancel([task.id]))
    assert not rig.state(task.id).live


class RoomContract:
    """Docstring of `store.protocol_threads`: bounds."""

    @two_threads_at_a_time
    def test_at_most_so_many_tasks_that_have_a_thread_are_ready_or_running_at_once(self, rig: Rig) -> None:
        running = rig.start(thread_id="a")
        ready = rig.put(thread_id="b")
        others = [rig.put(thread_id=thread_id, queue=queue) for thread_id, queue in (("c", "q"), ("d", "other"))]

        assert rig.states(running.id, ready) == [State.RUNNING, State.READY]
        assert [rig.reason(i) for i in others] == [WAITS_FOR_ROOM] * 2
        rig.succeed(running)
        assert (rig.state(others[0]), rig.reason(others[1])) == (State.READY, WAITS_FOR_ROOM)

    @one_thread_at_a_time
    def test_tasks_without_a_thread_need_no_room_and_take_none(self, rig: Rig) -> None:
        rig.start(thread_id="a")
        free = [rig.put() for _ in range(3)]
        other = rig.put(thread_id="b")

        assert (rig.states(*free), rig.reason(other)) == ([State.READY] * 3, WAITS_FOR_ROOM)

    @one_thread_at_a_time
    def test_they_get_room_in_the_order_in_which_they_would_have_been_ready(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        running = rig.start(thread_id="a")
        low, normal = rig.put(thread_id="b", priority=Priority.LOW), rig.put(thread_id="c")
        clock.advance(1)
        later, urgent = rig.put(thread_id="d"), rig.put(thread_id="e", priority=Priority.URGENT)

        order = []
        for _ in range(4):
            rig.succeed(running)
            (running,) = rig.claim(9)
            order.append(running.id)

        assert order == [urgent, normal, later, low]

    @one_thread_at_a_time
    @pytest.mark.parametrize("how", ["handed in", "released by a parent", "due"])
    def test_of_those_that_would_be_ready_in_one_moment_the_first_in_the_order_gets_room(
        self, rig: Rig, clock: VirtualClock, how: str
    ) -> None:
        parent = rig.start()
        options: dict[str, dict[str, Any]] = {
            "handed in": {}, "released by a parent": {"after": [parent.id]}, "due": {"delay_us": SECOND_US},
        }  # fmt: skip
        chosen = options[how]

        low, urgent = rig.submit(
            rig.spec(thread_id="a", priority=Priority.LOW, **chosen), rig.spec(thread_id="b", priority=0, **chosen)
        )
        rig.succeed(parent)
        clock.advance(1)
        rig.fire()

        assert (rig.state(urgent), rig.reason(low)) == (State.READY, WAITS_FOR_ROOM)

    @one_thread_at_a_time
    @pytest.mark.parametrize("how", ENDINGS)
    def test_the_end_of_a_task_makes_room(self, rig: Rig, clock: VirtualClock, how: str) -> None:
        task = rig.start(thread_id="a", crashes_max=1, deadline_us=5 * SECOND_US)
        other = rig.put(thread_id="b")
        assert rig.reason(other) == WAITS_FOR_ROOM

        end(rig, task, how, clock)

        assert rig.state(other) is State.READY

    @one_thread_at_a_time
    @pytest.mark.parametrize("how", ["sleep", "retry", "park"])
    def test_one_that_is_scheduled_or_suspended_makes_room_and_waits_for_room_when_it_goes_on(
        self, rig: Rig, clock: VirtualClock, how: str
    ) -> None:
        task = rig.start(thread_id="a")
        got(rig.store.save_step(task.claim, "s", b"1"))
        other = rig.put(thread_id="b")
        due_us = clock.now_us() + SECOND_US
        endings: dict[str, Ending] = {
            "sleep": Slept(task.claim, due_us),
            "retry": Retried(task.claim, due_us, BOOM),
            "park": Parked(task.claim, "ask"),
        }

        rig.finish(endings[how])
        held = rig.run(other)
        clock.advance(1)
        rig.fire()
        got(rig.store.resume([task.id]))
        assert rig.reason(task.id) == WAITS_FOR_ROOM
        rig.succeed(held)

        again = rig.run(task.id)
        failures = 1 if how == "retry" else 0
        assert (again.attempt, again.failures, again.crashes, again.steps) == (2, failures, 0, {"s": b"1"})

    @one_thread_at_a_time
    @pytest.mark.parametrize("ending", [GivenBack, lambda claim: Crashed(claim, BOOM)])
    def test_one_that_goes_back_into_the_order_keeps_its_room(self, rig: Rig, ending: Callable[..., GivenBack]) -> None:
        task = rig.start(thread_id="a")
        other = rig.put(thread_id="b", priority=Priority.URGENT)

        rig.finish(ending(task.claim))

        assert (rig.state(task.id), rig.reason(other)) == (State.READY, WAITS_FOR_ROOM)

    @one_thread_at_a_time
    def test_a_preempted_task_leaves_its_room_to_one_that_would_have_been_ready_before(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        task = rig.start(thread_id="a")
        clock.advance(1)
        other = rig.put(thread_id="b", priority=Priority.URGENT)
        clock.advance(1)

        rig.finish(Preempted(task.claim))

        assert (rig.state(other), rig.reason(task.id)) == (State.READY, WAITS_FOR_ROOM)
        rig.succeed(rig.run(other))
        assert rig.run(task.id).attempt == 2

    @one_thread_at_a_time
    def test_one_that_waits_for_room_may_be_cancelled(self, rig: Rig) -> None:
        running = rig.start(thread_id="a")
        ids = [rig.put(thread_id="b"), rig.put(thread_id="b"), rig.put(thread_id="c")]

        got(rig.store.cancel([ids[0], ids[2]]))
        rig.succeed(running)

        assert rig.states(*ids) == [State.CANCELLED, State.READY, State.CANCELLED]

    @two_threads_at_a_time
    def test_with_many_processes_at_once_the_bound_holds_and_nobody_is_left_waiting(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rigs = open_rig(), open_rig()
        held: list[int] = []
        most = [0]

        def work(k: int) -> None:
            rig = rigs[k % 2]
            for n in range(25):
                rig.put(thread_id=f"t{k}-{n % 3}")
                for task in rig.claim(3):
                    held.append(task.id)
                    most[0] = max(most[0], len(held))
                    held.remove(task.id)
                    rig.succeed(task)

        in_threads(4, work)
        while tasks := rigs[0].claim(3):
            rigs[0].finish(*(Succeeded(task.claim, b"1") for task in tasks))

        assert most[0] <= 2
        assert got(rigs[0].store.counts()) == {}

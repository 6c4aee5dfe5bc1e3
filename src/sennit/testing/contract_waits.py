"""The contract, part 24: for how long a task has waited, and for what."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import pytest

from sennit.errors import TaskNotFound
from sennit.model.task import GivenBack, Parked
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_permits import pause
from sennit.testing.contract_tools import SECOND_US, Rig, got


def waits(rig: Rig, task_id: int) -> dict[str, float]:
    """Return seconds by reason."""
    return {reason: us / SECOND_US for reason, us in got(rig.store.waits(task_id)).items()}


class WaitsContract:
    """Docstring of `waits`."""

    def test_until_its_parents_have_ended_it_waits_for_them_and_then_in_the_queue(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        parents = rig.start(), rig.start()
        child = rig.put(after=[task.id for task in parents])
        for task in parents:
            clock.advance(2)
            rig.succeed(task)
        clock.advance(3)

        rig.run(child)

        clock.advance(9)
        assert waits(rig, child) == {"dependencies": 4, "queue": 3}
        assert waits(rig, parents[0].id) == {}

    @pytest.mark.parametrize("how", ["limit", "pause"])
    def test_from_when_it_was_wanted_it_waits_for_room_at_its_provider(
        self, rig: Rig, clock: VirtualClock, how: str
    ) -> None:
        rig.provider()
        if how == "pause":
            pause(rig, clock, "p", for_s=60)
        held = rig.permit() if how == "limit" else None
        task_id = rig.put(provider="p")
        clock.advance(3)
        assert rig.claim() == []
        clock.advance(4)

        if held is not None:
            rig.give_back(held)
        else:
            got(rig.store.steer_provider("p", "reset"))

        permit = rig.run(task_id).permit
        assert permit is not None
        assert (permit.waited_us, permit.reason) == (4 * SECOND_US, how)
        assert waits(rig, task_id) == {"queue": 3, how: 4}

    def test_the_whole_of_a_wait_counts_for_what_held_it_back_last(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider()
        held = rig.permit()
        task_id = rig.put(provider="p")
        assert rig.claim() == []
        clock.advance(2)
        rig.give_back(held)
        pause(rig, clock, "p", for_s=60)
        assert rig.claim() == []
        clock.advance(3)

        got(rig.store.steer_provider("p", "reset"))
        rig.run(task_id)

        assert waits(rig, task_id) == {"pause": 5}

    def test_its_further_calls_wait_too_and_waits_add_up(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider(parallel=2)
        task = rig.start(provider="p")
        held = rig.permit()
        for _ in range(2):
            call = rig.line_up(task_id=task.id)
            assert rig.waits(call)
            clock.advance(2)
            rig.give_back(held)
            held = got(call)

        assert waits(rig, task.id) == {"limit": 4}

    @pytest.mark.parametrize(("reason", "kind"), [("ask", "human"), ("event", "event"), ("budget", "budget")])
    def test_one_that_is_suspended_waits_for_what_it_says(
        self, rig: Rig, clock: VirtualClock, reason: str, kind: str
    ) -> None:
        task = rig.start()
        clock.advance(1)
        assert rig.finish(Parked(task.claim, reason)) == [True]
        clock.advance(7)

        assert got(rig.store.resume([task.id])) == [True]

        assert waits(rig, task.id) == {kind: 7}

    def test_the_queue_is_waited_in_until_the_first_start(self, rig: Rig, clock: VirtualClock) -> None:
        task_id = rig.put()
        clock.advance(2)
        rig.finish(GivenBack(rig.run(task_id).claim))
        clock.advance(5)

        rig.succeed(rig.run(task_id))

        assert waits(rig, task_id) == {"queue": 2}

    def test_a_task_that_is_not_stored_has_no_waits(self, rig: Rig) -> None:
        with pytest.raises(TaskNotFound):
            got(rig.store.waits(10**12))

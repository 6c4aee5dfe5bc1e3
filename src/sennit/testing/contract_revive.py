"""The contract, part 5: ended tasks come back."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import pytest

from sennit.errors import TaskNotFound
from sennit.model.lifecycle import State
from sennit.model.task import Crashed, GivenBack, Succeeded
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, Rig, got


class ReviveContract:
    """Docstring of `revive`."""

    @pytest.mark.parametrize("ended", [State.FAILED, State.CANCELLED])
    def test_a_failed_or_cancelled_task_is_ready_again(self, rig: Rig, ended: State) -> None:
        task_id = rig.ended_as(ended)

        assert got(rig.store.revive([task_id])) == [True]

        view = rig.view(task_id)
        assert (view.state, view.error, view.done_us) == (State.READY, None, None)
        assert got(rig.store.ledger()).live == 1
        rig.succeed(rig.run(task_id))
        ledger = got(rig.store.ledger())
        assert (ledger.submitted, ledger.succeeded, ledger.failed, ledger.cancelled) == (1, 1, 0, 0)

    def test_it_answers_false_for_others(self, rig: Rig) -> None:
        ids = [rig.ended_as(State.SUCCEEDED), rig.put(), rig.put(delay_us=5)]

        assert got(rig.store.revive(ids)) == [False, False, False]
        assert rig.states(*ids) == [State.SUCCEEDED, State.READY, State.SCHEDULED]

    def test_an_unknown_id_revives_nothing(self, rig: Rig) -> None:
        task_id = rig.ended_as(State.FAILED)

        with pytest.raises(TaskNotFound):
            got(rig.store.revive([task_id, 10**12]))

        assert rig.state(task_id) is State.FAILED

    def test_a_revived_task_has_fresh_counts_its_steps_and_the_next_attempt(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        task = rig.start(crashes_max=2)
        got(rig.store.save_step(task.claim, "a", b"1"))
        rig.retry(task)
        clock.advance(1)
        got(rig.store.fire())
        for _ in range(2):
            rig.finish(Crashed(rig.run(task.id).claim, BOOM))

        got(rig.store.revive([task.id]))

        again = rig.run(task.id)
        assert (again.failures, again.crashes, again.attempt, again.steps) == (0, 0, 4, {"a": b"1"})

    def test_a_token_of_before_is_refused_after_it(self, rig: Rig) -> None:
        task = rig.start()
        rig.fail(task)
        got(rig.store.revive([task.id]))
        rig.run(task.id)

        assert rig.finish(Succeeded(task.claim, b"1")) == [False]

    @pytest.mark.parametrize("limit", ["deadline_us", "queue_timeout_us"])
    @pytest.mark.parametrize("ended_by", ["the limit", "cancel"])
    def test_a_revived_task_has_no_time_limits(self, rig: Rig, clock: VirtualClock, limit: str, ended_by: str) -> None:
        task_id = rig.put(**{limit: 5_000_000})
        if ended_by == "cancel":
            got(rig.store.cancel([task_id]))
        else:
            clock.advance(6)
            got(rig.store.fire())
        assert not rig.state(task_id).live

        got(rig.store.revive([task_id]))
        clock.advance(60)
        got(rig.store.fire())

        assert rig.state(task_id) is State.READY
        assert rig.run(task_id).deadline_us is None

    def test_a_waiting_task_waits_again_for_a_revived_parent(self, rig: Rig) -> None:
        first, second = rig.start(), rig.start()
        child = rig.put(after=[first.id, second.id], on_parent_failed="run")
        rig.fail(first)

        got(rig.store.revive([first.id]))
        assert rig.view(child).waiting_for == 2
        rig.succeed(rig.run(first.id), b"1")

        assert rig.state(child) is State.WAITING
        rig.succeed(second, b"2")
        assert rig.run(child).parents == (b"1", b"2")

    def test_a_task_that_failed_with_its_parent_runs_when_it_is_revived(self, rig: Rig) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id])
        rig.fail(parent)

        got(rig.store.revive([child]))

        assert rig.run(child).parents == (None,)
        assert rig.state(parent.id) is State.FAILED

    def test_parents_keep_their_places_when_one_was_pruned(self, rig: Rig, clock: VirtualClock) -> None:
        old = rig.ended_as(State.SUCCEEDED)
        clock.advance(10)
        parent = rig.start()
        rig.succeed(parent, b"2")
        child = rig.start(after=[old, parent.id])
        rig.fail(child)
        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        got(rig.store.revive([child.id]))

        assert rig.run(child.id).parents == (None, b"2")

    def test_a_revived_task_keeps_its_key(self, rig: Rig) -> None:
        task = rig.start(key="k")
        rig.fail(task)

        got(rig.store.revive([task.id]))

        assert rig.submit(rig.spec(key="k")) == [task.id]

    def test_a_task_revived_twice_is_ready_once(self, rig: Rig) -> None:
        task_id = rig.ended_as(State.FAILED)

        assert got(rig.store.revive([task_id, task_id])) == [True, False]

        task = rig.run(task_id)
        assert rig.claim() == []
        rig.finish(GivenBack(task.claim))
        assert [t.id for t in rig.claim(5)] == [task_id]

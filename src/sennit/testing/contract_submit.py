"""The contract, part 1: tasks are handed in."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import CyclicDependency, DuplicateKey, LeaseLost, TaskNotFound, UnknownDependency
from sennit.model.lifecycle import State
from sennit.model.task import Claim, OnParentFailed, Parked, Retried, Succeeded
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, POLICIES, Rig, got, in_threads

PLACES = ("waiting", "scheduled", "ready", "running", "suspended", "succeeded", "failed", "cancelled")


def put_with_key_in(rig: Rig, place: str) -> int:
    """Hand in a task with the key `k` and bring it to the state `place`."""
    match place:
        case "waiting":
            return rig.put(key="k", after=[rig.put(queue="other")])
        case "scheduled":
            return rig.put(key="k", delay_us=1_000_000)
        case "ready":
            return rig.put(key="k")
    task = rig.start(key="k")
    match place:
        case "suspended":
            rig.finish(Parked(task.claim, "ask"))
        case "succeeded":
            rig.succeed(task)
        case "failed":
            rig.fail(task)
        case "cancelled":
            got(rig.store.cancel([task.id]))
    return task.id


class IdContract:
    """Docstring of `take_ids`."""

    def test_ids_are_unique_over_two_processes_and_grow(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        taken: list[list[int]] = [[], [], [], []]

        def take(k: int) -> None:
            for n in (1, 7, 1024, 3, 2000):
                taken[k] += rigs[k % 2].store.take_ids(n)

        in_threads(4, take)

        assert len({i for ids in taken for i in ids}) == 4 * 3035
        assert all(ids == sorted(ids) for ids in taken)


class SubmitContract(IdContract):
    """Docstrings of `submit` and `add_children`."""

    # ------------------------------------------------------------ where a task goes

    def test_what_was_acknowledged_is_seen_by_another_process(self, open_rig: Callable[..., Rig]) -> None:
        task_id = open_rig().put(payload=b'[["x"],{}]')

        assert open_rig().view(task_id).payload == b'[["x"],{}]'

    def test_the_ids_come_back_in_the_order_of_the_specs(self, rig: Rig) -> None:
        specs = [rig.spec() for _ in range(5)]

        assert rig.submit(*reversed(specs)) == [s.ref.id for s in reversed(specs)]
        assert rig.submit() == []

    def test_a_task_with_open_parents_waits_with_a_delay_is_scheduled_else_is_ready(self, rig: Rig) -> None:
        parent = rig.put()
        waiting, scheduled = rig.put(after=[parent]), rig.put(delay_us=5)

        assert rig.states(parent, waiting, scheduled) == [State.READY, State.WAITING, State.SCHEDULED]
        assert rig.view(waiting).waiting_for == 1
        assert rig.view(scheduled).due_us == rig.view(scheduled).created_us + 5

    def test_a_delay_starts_when_the_last_parent_is_done(self, rig: Rig, clock: VirtualClock) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id], delay_us=10_000_000)
        clock.advance(60)
        rig.succeed(parent)

        assert rig.state(child) is State.SCHEDULED
        assert rig.view(child).due_us == clock.now_us() + 10_000_000
        clock.advance(10)
        got(rig.store.fire())
        assert rig.state(child) is State.READY

    def test_a_parent_that_has_succeeded_does_not_count_as_open(self, rig: Rig) -> None:
        done = rig.ended_as(State.SUCCEEDED)

        assert rig.state(rig.put(after=[done])) is State.READY
        assert rig.state(rig.put(after=[done, rig.put()])) is State.WAITING

    @pytest.mark.parametrize("ended", [State.FAILED, State.CANCELLED])
    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_parent_that_has_failed_or_was_cancelled_applies_the_policy_at_once(
        self, rig: Rig, policy: OnParentFailed, ended: State
    ) -> None:
        parent = rig.ended_as(ended)

        child = rig.put(after=[parent], on_parent_failed=policy)

        assert rig.state(child) is POLICIES[policy]
        error = rig.view(child).error
        assert (error is None) if policy == "run" else (error is not None and error.kind == f"parent_{ended}")

    def test_a_parent_named_twice_is_waited_for_once(self, rig: Rig) -> None:
        parent, other = rig.start(), rig.start()
        child = rig.put(after=[parent.id, other.id, parent.id])
        assert rig.view(child).waiting_for == 2

        rig.succeed(parent, b"1")
        assert rig.view(child).waiting_for == 1
        rig.succeed(other, b"2")

        assert rig.run(child).parents == (b"1", b"2", b"1")

    def test_one_failed_parent_decides_although_another_is_open(self, rig: Rig) -> None:
        parents = [rig.ended_as(State.FAILED), rig.put()]

        assert rig.state(rig.put(after=parents)) is State.FAILED
        assert rig.state(rig.put(after=parents, on_parent_failed="run")) is State.WAITING

    def test_parents_may_be_in_the_same_batch_before_or_after(self, rig: Rig) -> None:
        parent = rig.spec()
        before, after = rig.spec(parents=(parent.ref,)), rig.spec(parents=(parent.ref,))

        rig.submit(before, parent, after)

        assert rig.states(before.ref.id, parent.ref.id, after.ref.id) == [State.WAITING, State.READY, State.WAITING]

    def test_a_failed_parent_decides_over_a_whole_chain_of_one_batch(self, rig: Rig) -> None:
        first = rig.spec(after=[rig.ended_as(State.FAILED)])
        second = rig.spec(parents=(first.ref,), on_parent_failed="cancel")
        third = rig.spec(parents=(second.ref,), on_parent_failed="run")

        rig.submit(third, second, first)

        ids = first.ref.id, second.ref.id, third.ref.id
        assert rig.states(*ids) == [State.FAILED, State.CANCELLED, State.READY]

    # ------------------------------------------------------------ all or none

    def test_an_unknown_parent_refuses_the_whole_batch(self, rig: Rig) -> None:
        good, bad = rig.spec(), rig.spec(after=[10**12])

        with pytest.raises(UnknownDependency) as refused:
            rig.submit(good, bad)

        assert refused.value.parent_ids == (10**12,)
        with pytest.raises(TaskNotFound):
            rig.view(good.ref.id)
        assert got(rig.store.ledger()).submitted == 0

    def test_a_circle_refuses_the_whole_batch(self, rig: Rig) -> None:
        good, one, two = rig.spec(), rig.spec(), rig.spec()
        one.parents, two.parents = (two.ref,), (one.ref,)

        with pytest.raises(CyclicDependency) as refused:
            rig.submit(good, one, two)

        assert set(refused.value.cycle) == {one.ref.id, two.ref.id}
        assert got(rig.store.ledger()).submitted == 0

    def test_a_task_that_waits_for_itself_is_a_circle(self, rig: Rig) -> None:
        task = rig.spec()
        task.parents = (task.ref,)

        with pytest.raises(CyclicDependency):
            rig.submit(task)

    def test_a_parent_that_was_pruned_is_unknown(self, rig: Rig, clock: VirtualClock) -> None:
        parent = rig.ended_as(State.SUCCEEDED)
        clock.advance(1)
        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        with pytest.raises(UnknownDependency):
            rig.put(after=[parent])

    # ------------------------------------------------------------ keys

    @pytest.mark.parametrize("place", PLACES)
    def test_existing_stores_nothing_and_returns_that_id_also_in_the_ref(self, rig: Rig, place: str) -> None:
        stored = put_with_key_in(rig, place)
        before = got(rig.store.ledger())
        again = rig.spec(key="k")

        assert rig.submit(again) == [stored]

        assert again.ref.id == stored
        assert rig.state(stored) == place
        assert got(rig.store.ledger()) == before

    def test_a_dependant_of_the_same_batch_waits_for_the_task_that_existed(self, rig: Rig) -> None:
        stored = rig.start(key="k")
        again = rig.spec(key="k")
        child = rig.spec(parents=(again.ref,))

        rig.submit(child, again)
        rig.succeed(stored, b'"result"')

        assert rig.run(child.ref.id).parents == (b'"result"',)

    def test_two_parents_may_turn_out_to_be_the_same_task(self, rig: Rig) -> None:
        one, two = rig.spec(key="k"), rig.spec(key="k")
        child = rig.spec(parents=(one.ref, two.ref))

        first, second, _ = rig.submit(one, two, child)
        parent = rig.run(first)
        assert (second, rig.state(child.ref.id)) == (first, State.WAITING)
        rig.succeed(parent, b"7")

        assert rig.run(child.ref.id).parents == (b"7", b"7")

    def test_reject_raises_duplicate_key_and_stores_nothing(self, rig: Rig) -> None:
        stored = rig.put(key="k")

        with pytest.raises(DuplicateKey) as refused:
            rig.submit(rig.spec(), rig.spec(key="k", on_conflict="reject"))

        assert (refused.value.handler, refused.value.key, refused.value.task_id) == ("work", "k", stored)
        assert got(rig.store.ledger()).submitted == 1

    @pytest.mark.parametrize("place", PLACES)
    def test_replace_cancels_the_old_task_if_it_is_live_and_passes_the_key_on(self, rig: Rig, place: str) -> None:
        old = put_with_key_in(rig, place)

        new = rig.put(key="k", on_conflict="replace")

        assert rig.state(old) is (State.CANCELLED if State(place).live else State(place))
        assert (rig.view(old).key, rig.view(new).key) == (None, "k")
        assert rig.submit(rig.spec(key="k")) == [new]

    def test_a_replaced_running_attempt_is_told_and_refused(self, rig: Rig) -> None:
        old = rig.start(key="k")

        rig.put(key="k", on_conflict="replace")

        rig.heard.wait_for(lambda: rig.heard.stopped == [old.claim])
        assert rig.finish(Succeeded(old.claim, b"1")) == [False]

    def test_replacing_a_task_applies_the_policies_of_its_dependants(self, rig: Rig) -> None:
        old = rig.put(key="k")
        children = [rig.put(after=[old], on_parent_failed=policy) for policy in POLICIES]

        rig.put(key="k", on_conflict="replace")

        assert rig.states(*children) == list(POLICIES.values())

    def test_the_same_key_twice_in_one_batch_is_one_task(self, rig: Rig) -> None:
        ids = rig.submit(rig.spec(key="k"), rig.spec(key="k"))

        assert ids[0] == ids[1]
        assert got(rig.store.ledger()).submitted == 1

    def test_the_last_of_one_batch_replaces_the_others(self, rig: Rig) -> None:
        ids = rig.submit(*(rig.spec(key="k", on_conflict="replace") for _ in range(3)))

        assert rig.states(*ids) == [State.CANCELLED, State.CANCELLED, State.READY]
        assert rig.submit(rig.spec(key="k")) == [ids[2]]

    def test_the_same_key_of_another_handler_is_another_task(self, rig: Rig) -> None:
        assert rig.put(key="k", handler="a") != rig.put(key="k", handler="b")

    def test_of_eight_that_submit_one_key_at_once_one_is_stored(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        ids: list[int] = []

        in_threads(8, lambda k: ids.append(rigs[k % 2].put(key="k")))

        assert len(ids) == 8
        assert len(set(ids)) == 1
        assert got(rigs[0].store.ledger()).submitted == 1

    def test_a_child_key_that_a_task_of_the_same_parent_has_returns_that_task(self, rig: Rig) -> None:
        one, other = rig.start(), rig.start()
        child = rig.put(parent_id=one.id, child_key="c")

        assert rig.put(parent_id=one.id, child_key="c") == child
        assert rig.put(parent_id=other.id, child_key="c") != child
        assert rig.put(parent_id=one.id, child_key="d") != child

    # ------------------------------------------------------------ children

    def test_add_children_submits_for_a_running_attempt(self, rig: Rig) -> None:
        task = rig.start()
        spec = rig.spec(parent_id=task.id, child_key="c")

        assert got(rig.store.add_children(task.claim, [spec])) == [spec.ref.id]
        assert got(rig.store.add_children(task.claim, [rig.spec(parent_id=task.id, child_key="c")])) == [spec.ref.id]
        assert rig.view(spec.ref.id).parent_id == task.id

    def test_add_children_of_an_attempt_that_is_not_held_stores_nothing(self, rig: Rig) -> None:
        task = rig.start()
        rig.retry(task)
        for claim in (task.claim, Claim(task.id, 99), Claim(10**12, 1)):
            with pytest.raises(LeaseLost) as lost:
                got(rig.store.add_children(claim, [rig.spec()]))
            assert (lost.value.task_id, lost.value.attempt) == claim

        assert (got(rig.store.ledger()).submitted, got(rig.store.ledger()).refused) == (1, 3)

    # ------------------------------------------------------------ races

    def test_children_handed_in_while_their_parent_ends_are_never_left_waiting(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rigs, rounds = (open_rig(), open_rig()), 60
        rigs[0].submit(*(rigs[0].spec() for _ in range(rounds)))
        tasks = rigs[0].claim(rounds)

        def race(k: int) -> None:
            for task in tasks:
                if k == 0:
                    rigs[0].succeed(task)
                else:
                    rigs[k % 2].put(after=[task.id], queue="children")

        in_threads(4, race)

        assert got(rigs[0].store.counts()) == {"children": {State.READY: 3 * rounds}}

    def test_batches_of_endings_and_of_children_on_the_same_parents_do_not_lose_any(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rigs, rounds, width = (open_rig(), open_rig()), 30, 12
        rigs[0].submit(*(rigs[0].spec() for _ in range(rounds * width)))
        tasks = rigs[0].claim(rounds * width)
        batches = [tasks[i : i + width] for i in range(0, len(tasks), width)]

        def race(k: int) -> None:
            for batch in batches:
                if k < 2:
                    assert all(rigs[k].finish(*(Succeeded(task.claim, b"1") for task in batch[k::2])))
                else:
                    parents = [task.id for task in batch[k : k + 8]]
                    specs = [rigs[k - 2].spec(after=parents, queue="children") for _ in range(k)]
                    rigs[k - 2].submit(*specs)

        in_threads(4, race)

        assert got(rigs[0].store.counts()) == {"children": {State.READY: 5 * rounds}}

    def test_a_child_of_a_parent_that_is_tried_again_goes_on_waiting(self, rig: Rig) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id])

        rig.finish(Retried(parent.claim, rig.store.now_us() + 1, BOOM))

        assert rig.state(child) is State.WAITING

"""The contract, part 2: tasks are claimed, one by one and by standing order."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from sennit.errors import UsageError
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Claim, GivenBack, Succeeded
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got, in_threads


class ClaimOrderContract:
    """Who is next; docstrings of `claim` and `model.order`."""

    def test_a_batch_is_claimed_in_the_order_of_priority_then_of_id(self, rig: Rig) -> None:
        priorities = [Priority((7 * k) % 4) for k in range(30)]
        ids = [rig.put(priority=p) for p in priorities]

        claimed = [task.id for n in (11, 1, 30) for task in rig.claim(n)]

        assert claimed == [i for _, i in sorted(zip(priorities, ids, strict=True))]

    def test_a_low_task_that_waited_long_enough_goes_before_a_normal_one(self, rig: Rig, clock: VirtualClock) -> None:
        low = rig.put(priority=Priority.LOW)
        clock.advance(5 * 60)
        early = rig.put(priority=Priority.NORMAL)
        clock.advance(6 * 60)
        late = rig.put(priority=Priority.NORMAL)

        assert [task.id for task in rig.claim(3)] == [early, low, late]

    def test_a_task_of_another_queue_is_not_claimed(self, rig: Rig) -> None:
        rig.put(queue="other")

        assert rig.claim(5) == []

    def test_at_most_n_are_claimed(self, rig: Rig) -> None:
        rig.submit(*(rig.spec() for _ in range(5)))

        assert [len(rig.claim(n)) for n in (0, 2, 9, 1)] == [0, 2, 3, 0]

    def test_none_is_claimed_twice_by_whomever_it_is_called(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        ids = rigs[0].submit(*(rigs[0].spec(payload=b"%d" % k, priority=k % 4) for k in range(2000)))
        claimed: list[tuple[int, bytes]] = []

        def work(k: int) -> None:
            while tasks := rigs[k % 2].claim(7):
                claimed.extend((task.id, task.payload) for task in tasks)
                assert all(rigs[k % 2].finish(*(Succeeded(task.claim, b"1") for task in tasks)))

        in_threads(8, work)

        assert sorted(claimed) == [(i, b"%d" % k) for k, i in enumerate(ids)]
        assert got(rigs[0].store.ledger()).succeeded == 2000

    def test_what_is_claimed_carries_all_a_worker_needs(self, rig: Rig, clock: VirtualClock) -> None:
        parents = [rig.ended_as(State.SUCCEEDED), rig.ended_as(State.FAILED)]
        task_id = rig.put(
            handler="h", payload=b"[[1],{}]", thread_id="t", options=b'{"retries":2}', after=[*parents, parents[0]][:2],
            on_parent_failed="run", deadline_us=9_000_000, priority=Priority.HIGH,
        )  # fmt: skip

        task = rig.run(task_id)

        assert (task.handler, task.queue, task.payload, task.thread_id) == ("h", "q", b"[[1],{}]", "t")
        assert (task.options, task.created_us, task.deadline_us) == (
            b'{"retries":2}', clock.now_us(), clock.now_us() + 9_000_000,
        )  # fmt: skip
        assert (task.attempt, task.failures, task.crashes, task.parents) == (1, 0, 0, (b"1", None))
        assert (task.steps, task.claim, task.priority) == ({}, (task_id, 1), Priority.HIGH)

    def test_the_attempt_grows_with_every_claim(self, rig: Rig) -> None:
        task = rig.start()
        attempts = [task.attempt]
        for _ in range(3):
            rig.finish(GivenBack(task.claim))
            task = rig.run(task.id)
            attempts.append(task.attempt)

        assert attempts == [1, 2, 3, 4]

    def test_a_claim_renews_the_lease_when_that_is_more_than_half_used(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig = open_rig(lease_s=10)
        joined_us = clock.now_us()

        def expire_s() -> float:
            (worker,) = got(rig.store.workers())
            return (worker.expire_us - joined_us) / 1e6

        rig.put()
        clock.advance(4)
        rig.claim()
        assert expire_s() == 10
        clock.advance(2)
        rig.put()
        rig.claim()
        assert expire_s() == 16


class ClaimContract(ClaimOrderContract):
    """Docstrings of `join`, `leave`, `want`, `unwant`, `claim` and `look`."""

    def test_a_worker_is_listed_from_when_it_joins_until_it_leaves(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()

        assert {w.id for w in got(rig.store.workers())} == {rig.worker_id, other.worker_id}
        got(other.store.leave())
        assert {w.id for w in got(rig.store.workers())} == {rig.worker_id}

    def test_a_worker_that_has_not_joined_claims_nothing(self, rig: Rig) -> None:
        task_id = rig.put()

        assert got(rig.store.claim(10**9, "q", 1)) == []
        assert rig.state(task_id) is State.READY

    def test_what_a_worker_held_when_it_left_stays_held_until_rescued(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        task = other.start()

        got(other.store.leave())

        assert rig.state(task.id) is State.RUNNING
        assert got(rig.store.rescue(other.worker_id)) == 1
        assert rig.state(task.id) is State.READY

    def test_what_a_worker_held_when_it_left_keeps_its_lease_until_that_lapses(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, other = open_rig(), open_rig(lease_s=10)
        task = other.start()
        got(other.store.leave())
        clock.advance(9)
        assert got(rig.store.fire()) == clock.now_us() + SECOND_US
        assert (rig.state(task.id), [w.id for w in got(rig.store.workers())]) == (State.RUNNING, [rig.worker_id])

        clock.advance(1)
        got(rig.store.fire())

        assert rig.state(task.id) is State.READY

    def test_a_worker_that_left_claims_nothing(self, rig: Rig) -> None:
        rig.start()
        task_id = rig.put()

        got(rig.store.leave())

        assert rig.claim() == []
        assert rig.state(task_id) is State.READY

    def test_a_worker_that_left_gets_nothing_for_its_old_order(self, rig: Rig) -> None:
        rig.store.want("q", 3)
        got(rig.store.leave())

        assert rig.state(rig.put()) is State.READY

    # ------------------------------------------------------------ the standing order

    def test_an_order_needs_a_worker_that_has_joined(self, make_store: Callable[[], Store], rig: Rig) -> None:
        task = rig.start()
        store = make_store()

        with pytest.raises(UsageError):
            store.want("q", 1)
        with pytest.raises(UsageError):
            got(store.finish([Succeeded(task.claim, b"1")], want={"q": 1}))

        assert rig.state(task.id) is State.RUNNING
        store.close()

    def test_a_worker_taken_for_dead_is_registered_again_by_its_next_order(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, frozen = open_rig(), open_rig(lease_s=10)
        task = frozen.start()
        clock.advance(11)
        got(rig.store.fire())
        assert [w.id for w in got(rig.store.workers())] == [rig.worker_id]

        frozen.store.want("q", 1)

        frozen.heard.wait_for(lambda: [t.claim for t in frozen.heard.claimed] == [Claim(task.id, 2)])
        assert {w.id for w in got(rig.store.workers())} == {rig.worker_id, frozen.worker_id}
        assert got(rig.store.fire()) == clock.now_us() + frozen.lease_us

    def test_an_order_is_served_in_order(self, rig: Rig) -> None:
        ids = [rig.put(priority=p) for p in (3, 0, 2, 1)]

        rig.store.want("q", 3)

        rig.heard.wait_for(lambda: len(rig.heard.claimed) == 3)
        assert [task.id for task in rig.heard.claimed] == [ids[1], ids[3], ids[2]]

    def test_a_task_that_becomes_ready_later_serves_what_is_left_of_the_order(self, rig: Rig) -> None:
        first = rig.put()
        rig.store.want("q", 2)
        rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [first])

        second = rig.put()

        rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [first, second])
        assert rig.state(rig.put()) is State.READY

    def test_orders_add_up(self, rig: Rig) -> None:
        rig.store.want("q", 1)
        rig.store.want("q", 2)

        rig.submit(*(rig.spec() for _ in range(5)))

        rig.heard.wait_for(lambda: len(rig.heard.claimed) == 3)
        assert rig.number(State.READY) == 2

    def test_every_queue_has_its_own_order(self, rig: Rig) -> None:
        rig.store.want("a", 1)
        rig.store.want("b", 2)

        rig.submit(*(rig.spec(queue=queue) for queue in "aaabbb"))

        rig.heard.wait_for(lambda: Counter(t.queue for t in rig.heard.claimed) == {"a": 1, "b": 2})
        assert rig.number(State.READY, queue="a") + rig.number(State.READY, queue="b") == 3

    def test_what_a_parent_releases_serves_the_order(self, rig: Rig) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id])
        rig.store.want("q", 1)

        rig.succeed(parent, b'"r"')

        rig.heard.wait_for(lambda: [(t.id, t.parents) for t in rig.heard.claimed] == [(child, (b'"r"',))])

    def test_an_order_given_with_endings_gets_what_they_release(self, rig: Rig) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id])

        got(rig.store.finish([Succeeded(parent.claim, b"1")], want={"q": 1}))

        rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [child])

    def test_an_order_is_never_over_served(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        for rig in rigs:
            rig.store.want("q", 40)

        in_threads(4, lambda k: [rigs[k % 2].put() for _ in range(30)])
        for rig in rigs:
            rig.store.look()

        for rig in rigs:
            rig.heard.wait_for(lambda heard=rig.heard: len(heard.claimed) == 40)  # type: ignore[misc]
            got(rig.store.unwant())
        assert (rigs[0].number(State.RUNNING), rigs[0].number(State.READY)) == (80, 40)
        assert len({t.id for rig in rigs for t in rig.heard.claimed}) == 80

    def test_orders_raised_while_tasks_come_are_served_to_the_last(self, rig: Rig) -> None:
        gate = threading.Barrier(2)

        def race(k: int) -> None:
            for _ in range(100):
                gate.wait(10)
                if k:
                    rig.store.want("q", 1)
                else:
                    rig.put()

        in_threads(2, race)

        rig.heard.wait_for(lambda: len(rig.heard.claimed) == 100)

    def test_after_unwant_nothing_more_is_claimed(self, rig: Rig) -> None:
        rig.store.want("q", 5)

        got(rig.store.unwant())

        assert rig.state(rig.put()) is State.READY

    # ------------------------------------------------------------ look

    def test_look_serves_the_order_from_what_another_process_stored(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        rig.store.want("q", 1)

        task_id = other.put()
        rig.store.look()

        rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [task_id])

    def test_look_serves_the_watches_from_what_another_process_stored(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        task = other.start()
        watch = rig.store.watch(task.id)

        other.succeed(task, b"5")
        rig.store.look()

        assert got(watch).result == b"5"

    def test_look_finds_nothing_when_there_is_nothing(self, rig: Rig) -> None:
        before = got(rig.store.ledger())

        rig.store.look()

        assert got(rig.store.ledger()) == before

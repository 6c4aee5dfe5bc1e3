"""The contract, part 6: time passes, processes die, schedules come round."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from sennit.errors import UnknownDependency
from sennit.model.lifecycle import State
from sennit.model.task import Failed, GivenBack, Parked, Slept, Succeeded
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, SECOND_US, Rig, got, in_threads


class DeathContract:
    """Docstrings of `heartbeat` and `rescue`."""

    def test_a_heartbeat_returns_what_is_held_now(self, rig: Rig) -> None:
        tasks = [rig.start() for _ in range(4)]
        rig.succeed(tasks[0])
        got(rig.store.cancel([tasks[1].id]))

        assert got(rig.store.heartbeat(rig.worker_id, rig.lease_us)) == [tasks[2].claim, tasks[3].claim]

    def test_a_heartbeat_renews_the_lease(self, open_rig: Callable[..., Rig], clock: VirtualClock) -> None:
        rig, other = open_rig(lease_s=10), open_rig()
        task = rig.start()
        for _ in range(3):
            clock.advance(9)
            assert got(rig.store.heartbeat(rig.worker_id, rig.lease_us)) == [task.claim]

        got(other.store.fire())

        assert rig.state(task.id) is State.RUNNING

    def test_lease_until_us_is_what_the_store_knows_after_joining_claiming_and_beating(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig = open_rig(lease_s=10)

        def known_us() -> tuple[int, int]:
            (worker,) = got(rig.store.workers())
            return rig.store.lease_until_us, worker.expire_us

        assert known_us() == (clock.now_us() + 10_000_000,) * 2
        clock.advance(8)
        rig.store.want("q", 1)
        rig.put()
        rig.heard.wait_for(lambda: len(rig.heard.claimed) == 1)
        assert known_us() == (clock.now_us() + 10_000_000,) * 2
        clock.advance(3)
        got(rig.store.heartbeat(rig.worker_id, rig.lease_us))
        assert known_us() == (clock.now_us() + 10_000_000,) * 2
        got(rig.store.leave())
        assert rig.store.lease_until_us == 0

    def test_what_a_worker_tells_of_itself_is_what_others_see(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        told = msgspec.structs.replace(rig.worker, fenced=2, drains=True)

        got(rig.store.describe(told))

        seen = {worker.id: worker for worker in got(other.store.workers())}
        assert (seen[rig.worker_id].fenced, seen[rig.worker_id].drains) == (2, True)
        assert seen[rig.worker_id].expire_us == rig.store.lease_until_us
        got(rig.store.leave())
        got(rig.store.describe(told))
        assert {worker.id for worker in got(other.store.workers())} == {other.worker_id}

    @pytest.mark.parametrize("how", ["its lease lapsed", "it was rescued"])
    def test_a_heartbeat_registers_a_forgotten_worker_again(
        self, open_rig: Callable[..., Rig], clock: VirtualClock, how: str
    ) -> None:
        rig, frozen = open_rig(), open_rig(lease_s=10)
        task = frozen.start()
        if how == "its lease lapsed":
            clock.advance(11)
            got(rig.store.fire())
        else:
            got(rig.store.rescue(frozen.worker_id))
        assert frozen.claim() == []

        assert got(frozen.store.heartbeat(frozen.worker_id, frozen.lease_us)) == []

        again = frozen.run(task.id)
        assert got(frozen.store.heartbeat(frozen.worker_id, frozen.lease_us)) == [again.claim]
        assert {w.id for w in got(rig.store.workers())} == {rig.worker_id, frozen.worker_id}
        assert got(rig.store.fire()) == clock.now_us() + frozen.lease_us

    def test_rescue_takes_back_all_a_worker_held_each_as_one_crash(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        mine, theirs = rig.start(), [dead.start() for _ in range(3)]

        assert got(rig.store.rescue(dead.worker_id)) == 3

        assert rig.states(mine.id, *(t.id for t in theirs)) == [State.RUNNING, *[State.READY] * 3]
        assert {rig.view(t.id).crashes for t in theirs} == {1}
        assert got(rig.store.ledger()).crashed == 3

    def test_rescue_is_harmless_when_repeated(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        task = dead.start()
        rescued: list[int] = []

        in_threads(4, lambda _: rescued.append(got(rig.store.rescue(dead.worker_id))))

        assert sorted(rescued) == [0, 0, 0, 1]
        assert rig.view(task.id).crashes == 1

    def test_a_rescued_worker_is_known_to_be_dead_and_holds_nothing(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        dead.start()

        got(rig.store.rescue(dead.worker_id))

        assert [w.id for w in got(rig.store.workers())] == [rig.worker_id]
        assert got(dead.store.heartbeat(dead.worker_id, dead.lease_us)) == []

    def test_every_write_of_a_rescued_attempt_is_refused(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        stale = dead.start()
        got(rig.store.rescue(dead.worker_id))
        fresh = rig.run(stale.id)

        assert dead.finish(Succeeded(stale.claim, b"1"), Parked(stale.claim, "")) == [False, False]
        assert not got(dead.store.save_step(stale.claim, "a", b"1"))
        assert (fresh.attempt, got(rig.store.ledger()).refused) == (2, 3)
        rig.succeed(fresh, b"2")
        assert rig.view(stale.id).result == b"2"

    def test_rescue_ends_what_has_crashed_too_often_as_poison(self, open_rig: Callable[..., Rig]) -> None:
        rig = open_rig()
        task_id = rig.put(crashes_max=3)
        child = rig.put(after=[task_id])
        for _ in range(3):
            dead = open_rig()
            dead.run(task_id)
            got(rig.store.rescue(dead.worker_id))

        view = rig.view(task_id)
        assert (view.state, view.crashes, view.error and view.error.kind) == (State.FAILED, 3, "poison")
        assert rig.state(child) is State.FAILED


class FireContract:
    """Docstring of `fire`."""

    def test_scheduled_tasks_become_ready_when_their_time_has_come(self, rig: Rig, clock: VirtualClock) -> None:
        slept, delayed = rig.start(), rig.put(delay_us=2 * SECOND_US)
        rig.finish(Slept(slept.claim, clock.now_us() + SECOND_US))

        got(rig.store.fire())
        assert rig.states(slept.id, delayed) == [State.SCHEDULED, State.SCHEDULED]
        clock.advance(1)
        got(rig.store.fire())
        assert rig.states(slept.id, delayed) == [State.READY, State.SCHEDULED]
        clock.advance(1)
        got(rig.store.fire())
        assert rig.states(slept.id, delayed) == [State.READY, State.READY]

    def test_fire_returns_when_the_next_is_due_or_none(self, rig: Rig, clock: VirtualClock) -> None:
        assert got(rig.store.fire()) is None
        start_us = clock.now_us()
        for delay_s in (5, 2, 9):
            rig.put(delay_us=delay_s * SECOND_US)
        cancelled = rig.put(delay_us=SECOND_US)
        got(rig.store.cancel([cancelled]))

        due_s = []
        while (due_us := got(rig.store.fire())) is not None:
            due_s.append((due_us - start_us) / SECOND_US)
            clock.advance((due_us - clock.now_us()) / SECOND_US)

        assert due_s == [2, 5, 9]
        assert rig.number(State.READY) == 3

    @pytest.mark.parametrize("released_by", ["its parent", "its turn"])
    def test_fire_returns_when_that_is_due_which_it_has_scheduled_itself(
        self, rig: Rig, clock: VirtualClock, released_by: str
    ) -> None:
        first = rig.put(deadline_us=SECOND_US, thread_id="t")
        if released_by == "its turn":
            second = rig.put(thread_id="t", delay_us=3 * SECOND_US)
        else:
            second = rig.put(after=[first], delay_us=3 * SECOND_US, on_parent_failed="run")
        clock.advance(1)

        assert got(rig.store.fire()) == clock.now_us() + 3 * SECOND_US

        assert rig.states(first, second) == [State.FAILED, State.SCHEDULED]

    def test_a_listener_is_told_of_a_deadline_earlier_than_any_before(self, rig: Rig, clock: VirtualClock) -> None:
        rig.put(delay_us=60 * SECOND_US)
        rig.heard.wait_for(lambda: rig.heard.dues_us[-1:] == [clock.now_us() + 60 * SECOND_US])

        rig.put(delay_us=5 * SECOND_US)

        rig.heard.wait_for(lambda: rig.heard.dues_us[-1:] == [clock.now_us() + 5 * SECOND_US])

    def test_what_fire_makes_ready_serves_the_standing_order(self, rig: Rig, clock: VirtualClock) -> None:
        task_id = rig.put(delay_us=3600 * SECOND_US)
        rig.store.want("q", 1)
        clock.advance(3600)

        got(rig.store.fire())

        rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [task_id])

    def test_a_deadline_fails_a_task_in_any_live_state(self, rig: Rig, clock: VirtualClock) -> None:
        limit = {"deadline_us": 5 * SECOND_US}
        parked, sleeping = rig.start(**limit), rig.start(**limit)
        rig.finish(Parked(parked.claim, "ask"), Slept(sleeping.claim, clock.now_us() + 60 * SECOND_US))
        retried, running = rig.start(**limit), rig.start(**limit)
        rig.retry(retried, after_s=60)
        ready, delayed = rig.put(**limit), rig.put(**limit, delay_us=60 * SECOND_US)
        waiting = rig.put(**limit, after=[rig.put(queue="other")])
        ids = [parked.id, sleeping.id, retried.id, running.id, ready, delayed, waiting]

        clock.advance(5)
        got(rig.store.fire())

        assert rig.states(*ids) == [State.FAILED] * 7
        assert {error.kind for i in ids if (error := rig.view(i).error)} == {"deadline"}

    def test_a_running_attempt_at_its_deadline_is_told_and_refused(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(deadline_us=5 * SECOND_US)
        clock.advance(5)

        got(rig.store.fire())

        rig.heard.wait_for(lambda: rig.heard.stopped == [task.claim])
        assert rig.finish(Succeeded(task.claim, b"1")) == [False]

    def test_a_deadline_applies_the_policies_of_dependants(self, rig: Rig, clock: VirtualClock) -> None:
        parent = rig.put(deadline_us=5 * SECOND_US)
        failed, run = rig.put(after=[parent]), rig.put(after=[parent], on_parent_failed="run")
        clock.advance(5)

        got(rig.store.fire())

        assert rig.states(parent, failed, run) == [State.FAILED, State.FAILED, State.READY]

    def test_a_task_that_ended_in_time_is_left_alone_by_its_deadline(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(deadline_us=5 * SECOND_US)
        rig.succeed(task)
        clock.advance(6)

        assert got(rig.store.fire()) is None
        assert rig.state(task.id) is State.SUCCEEDED

    def test_no_limit_is_due_of_a_task_that_has_ended(self, rig: Rig) -> None:
        limits = {"deadline_us": 5 * SECOND_US, "queue_timeout_us": 4 * SECOND_US}
        parent, failed, cancelled = rig.start(), rig.start(**limits), rig.start(**limits)
        succeeded = [rig.start(**limits) for _ in range(3)]
        rig.put(**limits, key="k")
        rig.put(after=[parent.id], **limits)
        assert got(rig.store.fire()) is not None

        rig.finish(*(Succeeded(task.claim, b"1") for task in succeeded), Failed(failed.claim, BOOM))
        rig.finish(Failed(parent.claim, BOOM))
        got(rig.store.cancel([cancelled.id]))
        rig.put(key="k", on_conflict="replace")

        assert got(rig.store.fire()) is None

    def test_no_queue_time_out_is_due_of_a_task_that_was_claimed(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(queue_timeout_us=4 * SECOND_US)
        rig.finish(GivenBack(task.claim))

        assert got(rig.store.fire()) is None
        clock.advance(5)
        got(rig.store.fire())

        assert rig.state(task.id) is State.READY

    def test_a_queue_time_out_fails_what_was_never_claimed(self, rig: Rig, clock: VirtualClock) -> None:
        limit = {"queue_timeout_us": 5 * SECOND_US}
        claimed, given_up = rig.start(**limit), rig.put(**limit)
        retried = rig.start(**limit)
        rig.retry(retried, after_s=60)

        clock.advance(5)
        got(rig.store.fire())

        assert rig.states(claimed.id, retried.id, given_up) == [State.RUNNING, State.SCHEDULED, State.FAILED]
        error = rig.view(given_up).error
        assert error is not None
        assert error.kind == "queue_timeout"

    def test_a_lapsed_lease_is_rescued(self, open_rig: Callable[..., Rig], clock: VirtualClock) -> None:
        rig, frozen = open_rig(), open_rig(lease_s=10)
        task = frozen.start()
        clock.advance(9)
        got(rig.store.fire())
        assert rig.state(task.id) is State.RUNNING

        clock.advance(1)
        got(rig.store.fire())

        assert (rig.state(task.id), rig.view(task.id).crashes) == (State.READY, 1)
        assert frozen.finish(Succeeded(task.claim, b"1")) == [False]
        got(frozen.store.heartbeat(frozen.worker_id, frozen.lease_us))
        frozen.heard.wait_for(lambda: frozen.heard.stopped == [task.claim])

    def test_a_worker_that_holds_nothing_has_nothing_to_be_rescued(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, idle = open_rig(), open_rig(lease_s=10)
        clock.advance(11)

        assert got(rig.store.fire()) is None

        idlers = (
            set() if rig.store.spans_hosts else {idle.worker_id}
        )  # there an idle worker beats, and this one does not
        assert {w.id for w in got(rig.store.workers())} == {rig.worker_id} | idlers
        idle.run(idle.put())
        assert {w.id for w in got(rig.store.workers())} == {rig.worker_id, idle.worker_id}

    def test_the_lease_of_another_is_among_what_is_due_until_it_lapses(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, other = open_rig(), open_rig(lease_s=10)

        assert got(rig.store.fire()) == clock.now_us() + other.lease_us
        assert got(other.store.fire()) == clock.now_us() + rig.lease_us
        clock.advance(10)
        assert got(rig.store.fire()) is None


class TimeContract(DeathContract, FireContract):
    """Docstrings of `put_schedule` and `run_schedule`."""

    def test_a_schedule_is_remembered_unless_it_is_known(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()

        assert got(rig.store.put_schedule("nightly", 100)) == 100
        assert got(other.store.put_schedule("nightly", 200)) == 100
        assert got(other.store.put_schedule("hourly", 200)) == 200

    def test_running_a_schedule_moves_it_and_submits_in_one_transaction(self, rig: Rig) -> None:
        got(rig.store.put_schedule("nightly", 100))
        spec = rig.spec()

        assert got(rig.store.run_schedule("nightly", due_us=100, next_us=200, specs=[spec]))

        assert rig.state(spec.ref.id) is State.READY
        assert got(rig.store.put_schedule("nightly", 0)) == 200

    @pytest.mark.parametrize("name", ["nightly", "unknown"])
    def test_a_schedule_that_is_not_at_its_time_stores_nothing(self, rig: Rig, name: str) -> None:
        got(rig.store.put_schedule("nightly", 100))

        assert not got(rig.store.run_schedule(name, due_us=99, next_us=200, specs=[rig.spec()]))

        assert got(rig.store.put_schedule("nightly", 0)) == 100
        assert got(rig.store.ledger()).submitted == 0

    def test_a_schedule_whose_tasks_are_refused_does_not_move(self, rig: Rig) -> None:
        got(rig.store.put_schedule("nightly", 100))

        with pytest.raises(UnknownDependency):
            got(rig.store.run_schedule("nightly", due_us=100, next_us=200, specs=[rig.spec(after=[10**12])]))

        assert got(rig.store.put_schedule("nightly", 0)) == 100

    def test_of_eight_that_run_a_schedule_at_once_one_does(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        got(rigs[0].store.put_schedule("nightly", 0))
        ran: list[bool] = []

        def run(k: int) -> None:
            store = rigs[k % 2].store
            ran.extend(
                got(store.run_schedule("nightly", due_us=n, next_us=n + 1, specs=[rigs[k % 2].spec()]))
                for n in range(10)
            )

        in_threads(8, run)

        assert (ran.count(True), got(rigs[0].store.ledger()).submitted) == (10, 10)

    def test_a_crash_and_a_failure_are_told_apart_in_the_attempts(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start()
        rig.retry(task)
        clock.advance(1)
        got(rig.store.fire())
        rig.run(task.id)
        got(rig.store.rescue(rig.worker_id))

        attempts = got(rig.store.attempts(task.id))

        assert [(a.attempt, a.error and a.error.kind) for a in attempts] == [(1, BOOM.kind), (2, "crash")]

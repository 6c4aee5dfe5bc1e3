"""The contract, part 7: what others see, and what is kept how long."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import StoreUnavailable, TaskNotFound
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Cancelled, LogLine, Parked
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, SECOND_US, TIMEOUT_S, Rig, got


class WatchContract:
    """Docstring of `watch`."""

    def test_a_watch_resolves_when_the_task_has_ended(self, rig: Rig) -> None:
        task = rig.start()
        watches = [rig.store.watch(task.id) for _ in range(3)]
        assert not any(watch.done for watch in watches)

        rig.succeed(task, b"5")

        outcomes = [got(watch) for watch in watches]
        assert {(o.state, o.attempt, o.result, o.error) for o in outcomes} == {(State.SUCCEEDED, 1, b"5", None)}

    @pytest.mark.parametrize("ended", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_a_watch_resolves_at_once_if_the_task_has_ended(self, rig: Rig, ended: State) -> None:
        task_id = rig.ended_as(ended)

        outcome = got(rig.store.watch(task_id))

        assert outcome.state is ended
        assert (outcome.error is None) == (ended is State.SUCCEEDED)

    def test_a_watch_of_a_dependant_resolves_when_its_parent_fails(self, rig: Rig) -> None:
        parent = rig.start()
        watch = rig.store.watch(rig.put(after=[parent.id]))

        rig.fail(parent)

        assert got(watch).state is State.FAILED

    def test_a_watch_lasts_over_a_retry(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start()
        watch = rig.store.watch(task.id)
        rig.retry(task)
        clock.advance(1)
        got(rig.store.fire())
        assert not watch.done

        rig.succeed(rig.run(task.id), b"2")

        assert (got(watch).result, got(watch).attempt) == (b"2", 2)

    def test_a_watch_of_an_unknown_task_raises(self, rig: Rig) -> None:
        with pytest.raises(TaskNotFound) as unknown:
            got(rig.store.watch(10**12))
        assert unknown.value.task_id == 10**12

    def test_watches_set_while_tasks_end_all_resolve(self, rig: Rig) -> None:
        rig.submit(*(rig.spec() for _ in range(50)))
        tasks = rig.claim(50)
        watches = []
        for task in tasks:
            watches.append(rig.store.watch(task.id))
            rig.succeed(task)
            watches.append(rig.store.watch(task.id))

        assert {got(watch).state for watch in watches} == {State.SUCCEEDED}


class ListContract:
    """Docstrings of `task`, `tasks`, `counts`, `attempts`, `log`, `logs`, `workers`, `ledger`."""

    def test_a_task_is_shown_with_all_its_facts(self, rig: Rig, clock: VirtualClock) -> None:
        task_id = rig.put(handler="h", payload=b"[[1],{}]", priority=Priority.HIGH, thread_id="t", key="k", parent_id=7)
        rig.run(task_id)

        view = rig.view(task_id)

        assert (view.id, view.handler, view.queue, view.payload) == (task_id, "h", "q", b"[[1],{}]")
        assert (view.priority, view.thread_id, view.key, view.parent_id) == (Priority.HIGH, "t", "k", 7)
        assert (view.state, view.attempt, view.worker_id) == (State.RUNNING, 1, rig.worker_id)
        assert (view.created_us, view.started_us, view.done_us) == (clock.now_us(), clock.now_us(), None)

    def test_an_unknown_task_is_not_found(self, rig: Rig) -> None:
        with pytest.raises(TaskNotFound):
            rig.view(10**12)

    def test_tasks_are_listed_newest_first_without_payload_and_result(self, rig: Rig) -> None:
        done = rig.ended_as(State.SUCCEEDED)
        ids = [rig.put() for _ in range(3)]

        views = got(rig.store.tasks())

        assert [v.id for v in views] == [*reversed(ids), done]
        assert {(v.payload, v.result) for v in views} == {(b"", None)}
        assert [v.id for v in got(rig.store.tasks(limit=2))] == [ids[2], ids[1]]

    def test_tasks_are_listed_by_state_queue_handler_and_thread(self, rig: Rig) -> None:
        failed = rig.ended_as(State.FAILED)
        parked = rig.start()
        rig.finish(Parked(parked.claim, "ask"))
        a = rig.put(queue="a", handler="x", thread_id="t")
        b = rig.put(queue="b", handler="x", delay_us=5)

        def listed(**filters: object) -> list[int]:
            return [v.id for v in got(rig.store.tasks(**filters))]  # type: ignore[arg-type]

        assert listed(states=[State.FAILED, State.SUSPENDED]) == [parked.id, failed]
        assert listed(states=[State.SCHEDULED]) == [b]
        assert listed(queue="a") == listed(thread_id="t") == [a]
        assert listed(handler="x") == [b, a]
        assert listed(handler="x", states=[State.READY], queue="b") == []

    def test_every_live_state_is_shown_as_it_is(self, rig: Rig) -> None:
        parked, running = rig.start(), rig.start()
        rig.finish(Parked(parked.claim, "ask"))
        ready, scheduled = rig.put(), rig.put(delay_us=5)
        waiting = rig.put(after=[ready])

        shown = {v.id: (v.state, v.waiting_for, v.reason) for v in got(rig.store.tasks())}

        assert shown[parked.id] == (State.SUSPENDED, 0, "ask")
        assert shown[waiting] == (State.WAITING, 1, "")
        assert [shown[i][0] for i in (running.id, ready, scheduled)] == [State.RUNNING, State.READY, State.SCHEDULED]
        assert got(rig.store.counts()) == {"q": {state: 1 for state in State if state.live}}

    def test_counts_are_of_live_tasks_by_queue_and_state(self, rig: Rig) -> None:
        assert got(rig.store.counts()) == {}
        rig.ended_as(State.SUCCEEDED)
        rig.submit(*(rig.spec(queue=q) for q in "aab"))

        assert got(rig.store.counts()) == {"a": {State.READY: 2}, "b": {State.READY: 1}}

    def test_the_attempts_that_failed_crashed_or_were_cancelled_are_listed_oldest_first(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        task = rig.start()
        for _ in range(2):
            rig.retry(task)
            clock.advance(1)
            got(rig.store.fire())
            task = rig.run(task.id)
        rig.succeed(task)
        failed = rig.ended_as(State.FAILED)
        cancelled = rig.ended_as(State.CANCELLED)
        gave_up = rig.start()
        rig.finish(Cancelled(gave_up.claim, "not wanted"))

        attempts = got(rig.store.attempts(task.id))

        assert [(a.attempt, a.error, a.worker_id) for a in attempts] == [(n, BOOM, rig.worker_id) for n in (1, 2)]
        assert [a.ended_us for a in attempts] == [clock.now_us() - 2 * SECOND_US, clock.now_us() - SECOND_US]
        others = [[a.outcome for a in got(rig.store.attempts(i))] for i in (failed, cancelled, gave_up.id, 10**12)]
        assert others == [["failed"], ["cancelled"], ["cancelled"], []]

    def test_log_lines_come_back_oldest_first_after_a_sequence_number(self, rig: Rig) -> None:
        tasks = [rig.start(), rig.start()]
        for n in range(5):
            lines = [LogLine(task_id=t.id, attempt=1, at_us=n, level="info", text=f"{t.id}:{n}") for t in tasks]
            got(rig.store.log(lines))

        lines = got(rig.store.logs(tasks[0].id))
        later = got(rig.store.logs(tasks[0].id, after_seq=lines[1].seq, limit=2))

        assert [(line.text, line.at_us) for line in lines] == [(f"{tasks[0].id}:{n}", n) for n in range(5)]
        assert later == lines[2:4]
        assert sorted({line.seq for line in lines}) == [line.seq for line in lines]

    def test_workers_are_listed_with_what_they_run(self, open_rig: Callable[..., Rig], clock: VirtualClock) -> None:
        rig = open_rig(lease_s=10)
        rig.start()
        rig.start()

        (worker,) = got(rig.store.workers())

        assert (worker.id, worker.role, worker.pid, worker.queues) == (
            rig.worker_id,
            "worker",
            rig.worker.pid,
            {"q": 100},
        )
        assert (worker.running, worker.expire_us) == (2, clock.now_us() + 10 * SECOND_US)

    def test_the_ledger_counts_each_task_once(self, rig: Rig) -> None:
        for state, n in ((State.SUCCEEDED, 3), (State.FAILED, 2), (State.CANCELLED, 1)):
            for _ in range(n):
                rig.ended_as(state)
        rig.put()

        ledger = got(rig.store.ledger())

        assert (ledger.submitted, ledger.live, ledger.missing) == (7, 1, 0)
        assert (ledger.succeeded, ledger.failed, ledger.cancelled) == (3, 2, 1)


class PruneContract:
    """Docstring of `prune`."""

    def test_tasks_that_ended_before_are_deleted_with_all_that_belongs_to_them(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        task = rig.start(key="k", parent_id=7, child_key="c")
        got(rig.store.log([LogLine(task_id=task.id, attempt=1, at_us=0, level="info", text="x")]))
        rig.fail(task)
        clock.advance(1)
        kept = rig.ended_as(State.SUCCEEDED)

        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 1

        with pytest.raises(TaskNotFound):
            rig.view(task.id)
        assert (got(rig.store.attempts(task.id)), got(rig.store.logs(task.id))) == ([], [])
        assert [v.id for v in got(rig.store.tasks())] == [kept]
        assert rig.put(key="k", parent_id=7, child_key="c") != task.id

    def test_the_ledger_balances_after_pruning(self, rig: Rig, clock: VirtualClock) -> None:
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
            rig.ended_as(state)
        rig.put()
        clock.advance(1)

        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        ledger = got(rig.store.ledger())
        assert (ledger.submitted, ledger.live, ledger.pruned, ledger.missing) == (4, 1, 3, 0)

    def test_at_most_limit_are_deleted_oldest_first(self, rig: Rig, clock: VirtualClock) -> None:
        ids = []
        for _ in range(5):
            ids.append(rig.ended_as(State.SUCCEEDED))
            clock.advance(1)

        assert got(rig.store.prune(before_us=clock.now_us(), limit=2)) == 2
        assert [v.id for v in got(rig.store.tasks())] == ids[:1:-1]
        assert got(rig.store.prune(before_us=clock.now_us(), limit=9)) == 3
        assert got(rig.store.prune(before_us=clock.now_us(), limit=9)) == 0

    def test_a_parent_that_a_live_task_needs_is_kept(self, rig: Rig, clock: VirtualClock) -> None:
        parent = rig.start()
        rig.succeed(parent, b"5")
        child = rig.put(after=[parent.id, rig.start().id])
        clock.advance(1)

        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 0
        got(rig.store.cancel([child]))
        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 1
        assert rig.state(child) is State.CANCELLED

    def test_pruning_keeps_live_tasks_however_old(self, rig: Rig, clock: VirtualClock) -> None:
        task_id = rig.put()
        clock.advance(10**6)

        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 0
        assert rig.state(task_id) is State.READY


class LookContract(WatchContract, ListContract, PruneContract):
    """Docstrings of `now_us` and `close`, and of the protocol itself."""

    def test_it_is_a_store_and_says_where(self, rig: Rig) -> None:
        assert isinstance(rig.store, Store)
        assert "://" in rig.store.url

    def test_the_clock_counts_microseconds_since_the_epoch_and_does_not_go_back(self, rig: Rig) -> None:
        times = [rig.store.now_us() for _ in range(100)]

        assert times == sorted(times)
        assert 10**15 < times[0] < 10**17

    def test_close_finishes_what_was_queued(self, make_store: Callable[[], Store], rig: Rig) -> None:
        store = make_store()
        acks = [store.submit([rig.spec()]) for _ in range(20)]

        store.close()

        ids = [i for ack in acks for i in ack.result(timeout_s=TIMEOUT_S)]
        assert rig.states(*ids) == [State.READY] * 20

    def test_calls_after_close_raise_store_unavailable(self, make_store: Callable[[], Store], rig: Rig) -> None:
        store = make_store()
        spec = rig.spec()
        store.close()

        for call in (
            lambda: store.submit([spec]).result(timeout_s=TIMEOUT_S),
            lambda: store.task(1).result(timeout_s=TIMEOUT_S),
            lambda: store.watch(1).result(timeout_s=TIMEOUT_S),
            lambda: store.heartbeat(1, 1).result(timeout_s=TIMEOUT_S),
            lambda: store.state("t").result(timeout_s=TIMEOUT_S),
            lambda: store.answer([]).result(timeout_s=TIMEOUT_S),
            lambda: store.watch_inbox(-1).result(timeout_s=TIMEOUT_S),
            lambda: store.wait_room("q", 1).result(timeout_s=TIMEOUT_S),
            lambda: store.take_ids(5000),
        ):
            with pytest.raises(StoreUnavailable):
                call()

    def test_close_is_idempotent(self, make_store: Callable[[], Store]) -> None:
        store = make_store()
        for _ in range(3):
            store.close()

    def test_close_fails_pending_watches_with_store_unavailable(
        self, make_store: Callable[[], Store], rig: Rig
    ) -> None:
        task_id = rig.put()
        store = make_store()
        watch = store.watch(task_id)

        store.close()

        with pytest.raises(StoreUnavailable):
            watch.result(timeout_s=TIMEOUT_S)

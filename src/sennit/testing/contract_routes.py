"""The contract, part 25: tasks that need something of their worker, labels or a version of the code."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.model.admission import Bounds, Entry
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Claimed, GivenBack, Parked, RouteView, Slept, Succeeded
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got


class RoutesContract:
    """Docstrings of `claim`, `tasks` and `routes`, and of `model.route`."""

    # ------------------------------------------------------------ who claims

    def test_a_task_goes_only_to_a_worker_that_has_all_it_needs(self, open_rig: Callable[..., Rig]) -> None:
        plain, eu, gpu = open_rig(), open_rig(labels=("eu",)), open_rig(labels=("eu", "gpu", "nvme"))
        task_id = plain.put(route="eu,gpu")

        assert (plain.claim(5), eu.claim(5)) == ([], [])
        assert [task.id for task in gpu.claim(5)] == [task_id]

    def test_a_pinned_task_goes_only_to_a_worker_of_its_version(self, open_rig: Callable[..., Rig]) -> None:
        old, new, none = open_rig(version="1"), open_rig(version="2"), open_rig()
        first, second = old.put(route="=1"), new.put(route="=2")

        assert none.claim(5) == []
        assert [task.id for task in new.claim(5)] == [second]
        assert [task.id for task in old.claim(5)] == [first]

    def test_a_pinned_task_that_needs_labels_needs_both(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(version="1"), open_rig(labels=("gpu",), version="2"), open_rig(labels=("gpu",), version="1")
        task_id = rigs[0].put(route="gpu,=1")

        assert [[task.id for task in rig.claim()] for rig in rigs] == [[], [], [task_id]]

    def test_a_worker_with_every_label_runs_whatever_labels_are_needed(self, open_rig: Callable[..., Rig]) -> None:
        rig = open_rig(labels=("*",))
        ids = [rig.put(route=route) for route in ("gpu", "eu,gpu", "")]

        assert [task.id for task in rig.claim(5)] == ids

    def test_tasks_of_all_routes_that_a_worker_may_run_are_claimed_in_one_order(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig = open_rig(labels=("eu", "gpu"), version="1")
        routes = ["", "gpu", "=1", "eu", "eu,gpu", "eu,gpu,=1", ""]
        ids = [rig.put(route=routes[k % 7], priority=Priority((5 * k) % 4)) for k in range(42)]
        rig.put(route="us")
        rig.put(route="gpu,=2")

        claimed = [task.id for n in (1, 10, 3, 100) for task in rig.claim(n)]

        assert claimed == sorted(ids, key=lambda i: ((5 * ids.index(i)) % 4, i))

    def test_plain_tasks_behind_one_that_nobody_here_may_run_are_not_held_up(self, rig: Rig) -> None:
        stuck = rig.put(route="gpu", priority=Priority.URGENT)
        plain = [rig.put() for _ in range(3)]

        assert [task.id for task in rig.claim(5)] == plain
        assert rig.state(stuck) is State.READY

    def test_the_standing_order_passes_over_what_the_worker_may_not_run(self, open_rig: Callable[..., Rig]) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        plain.store.want("q", 2)
        gpu.store.want("q", 1)

        routed = plain.put(route="gpu")
        gpu.heard.wait_for(lambda: [task.id for task in gpu.heard.claimed] == [routed])
        ids = [plain.put(), plain.put(route="eu"), plain.put()]

        plain.heard.wait_for(lambda: len(plain.heard.claimed) == 2)
        assert [task.id for task in plain.heard.claimed] == [ids[0], ids[2]]
        assert plain.state(ids[1]) is State.READY

    def test_a_routed_task_that_becomes_ready_later_serves_the_order_of_a_worker_that_may_run_it(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        gpu.store.want("q", 5)
        plain.store.want("q", 5)
        parent = plain.put(handler="parent")
        (task,) = self._claimed_by(plain, gpu)
        child = plain.put(route="gpu", after=[parent])

        assert got(plain.store.finish([Succeeded(task.claim, b"1")])) == [True]

        gpu.heard.wait_for(lambda: child in [task.id for task in gpu.heard.claimed])

    def _claimed_by(self, *rigs: Rig) -> list[Claimed]:
        """Return what the first of them that is told of something has claimed."""
        told = rigs[0].heard
        while not any(rig.heard.claimed for rig in rigs):
            told.wait_for(lambda: any(rig.heard.claimed for rig in rigs))
        return [task for rig in rigs for task in rig.heard.claimed]

    @pytest.mark.parametrize("straight", [True, False])
    def test_a_routed_task_never_starts_in_a_process_that_may_not_run_it(self, rig: Rig, *, straight: bool) -> None:
        rig.store.want("q", 5)
        ids = rig.submit(*(rig.spec(route="gpu") for _ in range(1 if straight else 3)))

        rig.hear_all()

        assert rig.heard.claimed == []
        assert rig.states(*ids) == [State.READY] * len(ids)

    def test_a_task_keeps_its_route_through_retry_delay_crash_and_going_back(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        task_id = plain.put(route="gpu", delay_us=SECOND_US)
        clock.advance(2)
        plain.fire()
        assert plain.claim(5) == []
        task = gpu.run(task_id)
        gpu.retry(task)
        clock.advance(2)
        plain.fire()
        for _ in range(2):
            assert plain.claim(5) == []
            task = gpu.run(task_id)
            gpu.finish(GivenBack(task.claim))
        task = gpu.run(task_id)
        gpu.finish(Parked(task.claim, "test"))
        got(plain.store.resume([task_id]))
        assert plain.claim(5) == []
        task = gpu.run(task_id)
        assert got(plain.store.rescue(gpu.worker_id)) == 1

        assert plain.claim(5) == []
        assert (plain.state(task_id), plain.view(task_id).route) == (State.READY, "gpu")

    def test_a_revived_task_keeps_its_route(self, open_rig: Callable[..., Rig]) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        task_id = plain.put(route="gpu")
        gpu.fail(gpu.run(task_id))

        assert got(plain.store.revive([task_id])) == [True]

        assert plain.claim(5) == []
        assert gpu.run(task_id).attempt == 2

    def test_a_task_of_a_thread_keeps_its_route_when_its_turn_comes(self, open_rig: Callable[..., Rig]) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        first, second = plain.put(thread_id="t"), plain.put(thread_id="t", route="gpu")
        task = plain.run(first)

        plain.succeed(task)

        assert plain.claim(5) == []
        assert gpu.run(second).id == second

    def test_a_routed_task_with_a_provider_is_claimed_with_a_permit(self, open_rig: Callable[..., Rig]) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        plain.provider(parallel=2)
        ids = [plain.put(route="gpu", provider="p"), plain.put(provider="p"), plain.put(route="gpu", provider="p")]

        assert [task.id for task in plain.claim(5)] == [ids[1]]
        claimed = gpu.claim(5)

        assert [(task.id, task.permit is not None) for task in claimed] == [(ids[0], True)]
        assert (plain.pool().in_use, plain.pool().ready) == (2, 1)

    # ------------------------------------------------------------ what is seen

    def test_of_a_ready_task_that_no_living_worker_may_run_the_reason_says_so(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        plain, other = open_rig(version="2"), open_rig(labels=("gpu",))
        ids = [
            plain.put(route="gpu,nvme"),
            plain.put(route="=1"),
            plain.put(route="gpu", queue="z"),
            plain.put(route="gpu"),
        ]

        assert [plain.reason(i)[1] for i in ids] == [
            "no worker with gpu, nvme", "no worker with version 1", "no worker with gpu", "",
        ]  # fmt: skip
        assert [view.reason for view in got(plain.store.tasks(queue="z"))] == ["no worker with gpu"]
        got(other.store.leave())
        assert plain.reason(ids[3]) == (State.READY, "no worker with gpu")

    def test_routes_counts_the_open_tasks_of_each_whatever_state_they_are_in(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig = open_rig(labels=("gpu",), version="1")
        now_us = clock.now_us()
        parent = rig.put()
        parked, slept, held = (rig.start(route="=1") for _ in range(3))
        rig.finish(Parked(parked.claim, "test"), Slept(slept.claim, now_us + SECOND_US))
        rig.put(route="=1", after=[parent])
        rig.put(route="=1")
        rig.put(route="eu,=1")
        rig.put(route="gpu", queue="z")
        rig.succeed(rig.start(route="gpu"))
        assert rig.state(held.id) is State.RUNNING

        views = got(rig.store.routes())

        assert sorted(views, key=str) == sorted(
            [
                RouteView(queue="q", version="1", live=5, ready=1, workers=1),
                RouteView(queue="q", needs=("eu",), version="1", live=1, ready=1, workers=0),
                RouteView(queue="z", needs=("gpu",), live=1, ready=1, workers=0),
            ],
            key=str,
        )

    def test_a_worker_is_listed_with_its_labels_and_its_version(self, open_rig: Callable[..., Rig]) -> None:
        rig = open_rig(labels=("eu", "gpu"), version="7")

        (worker,) = got(rig.store.workers())

        assert (worker.labels, worker.version) == (("eu", "gpu"), "7")

    def test_the_position_of_a_task_counts_those_that_a_worker_for_it_runs_before_it(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        plain = open_rig()
        ids = [plain.put(route=route) for route in ("gpu", "", "eu", "gpu", "")]

        def positions() -> list[int | None]:
            return [got(plain.store.position(i)) for i in ids]

        assert positions() == [0, 0, 1, 2, 1]
        gpu = open_rig(labels=("gpu",))
        assert positions() == [0, 1, 1, 2, 3]
        got(gpu.store.leave())
        assert positions() == [0, 0, 1, 2, 1]

    # ------------------------------------------------------------ pressing and shedding

    def test_an_urgent_routed_task_presses_only_workers_that_may_run_it(self, open_rig: Callable[..., Rig]) -> None:
        plain, gpu = open_rig(), open_rig(labels=("gpu",))
        for rig in (plain, gpu):
            rig.store.want("q", 1)
        plain.put()
        plain.put()
        gpu.heard.wait_for(lambda: len(gpu.heard.claimed) == 1)
        plain.heard.wait_for(lambda: len(plain.heard.claimed) == 1)

        plain.put(route="gpu", priority=Priority.URGENT)

        gpu.heard.wait_for(lambda: gpu.heard.pressed == ["q"])
        plain.hear_all()
        assert plain.heard.pressed == []

    @pytest.mark.parametrize("bounds", [Bounds()], indirect=True)
    def test_a_full_queue_counts_the_tasks_of_all_routes_and_sheds_the_last(self, rig: Rig) -> None:
        ids = [rig.put(route=route, priority=Priority.LOW) for route in ("gpu", "", "eu")]

        rig.put(entry=Entry(queue_max=3, on_full="shed"))

        assert rig.states(*ids) == [State.READY, State.READY, State.CANCELLED]

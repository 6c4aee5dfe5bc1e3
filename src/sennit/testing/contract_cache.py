"""The contract, part 15: cached results stand for tasks."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.task import Succeeded
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got, in_threads


def cached(key: str = "k", *, cache_s: float = 60, tags: tuple[str, ...] = (), **options: Any) -> Entry:
    """Return an entry whose result is cached."""
    return Entry(cache_us=round(cache_s * SECOND_US), cache_key=key, cache_tags=tags, **options)


class CacheContract:
    """Docstrings of `Entry`, for cached results, and of `invalidate`."""

    def test_a_task_that_succeeded_no_longer_ago_stands_for_it(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(entry=cached(cache_s=10))
        clock.advance(100)
        rig.succeed(task)
        clock.advance(9)
        before = got(rig.store.ledger())
        spec = rig.spec(entry=cached(cache_s=10))

        assert rig.submit(spec) == [task.id]

        assert (spec.ref.id, got(rig.store.ledger())) == (task.id, before)

    def test_a_task_that_succeeded_longer_ago_does_not(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(entry=cached(cache_s=10))
        rig.succeed(task)
        clock.advance(11)

        new = rig.put(entry=cached(cache_s=10))

        assert (new == task.id, rig.state(new)) == (False, State.READY)
        assert rig.put(entry=cached(cache_s=10)) == new

    def test_the_time_counts_that_the_new_task_says(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(entry=cached(cache_s=10))
        rig.succeed(task)
        clock.advance(50)

        assert rig.put(entry=cached(cache_s=60)) == task.id
        assert rig.put(entry=cached(cache_s=20)) != task.id

    @pytest.mark.parametrize("place", ["ready", "running", "scheduled", "suspended", "waiting"])
    def test_a_task_that_is_open_stands_for_it_however_old(self, rig: Rig, clock: VirtualClock, place: str) -> None:
        match place:
            case "waiting":
                task_id = rig.put(entry=cached(), after=[rig.put(queue="other")])
            case "scheduled":
                task_id = rig.put(entry=cached(), delay_us=SECOND_US)
            case "ready":
                task_id = rig.put(entry=cached())
            case _:
                task = rig.start(entry=cached())
                task_id = task.id
                if place == "suspended":
                    rig.park(task)
        clock.advance(10**6)

        assert rig.put(entry=cached()) == task_id

    @pytest.mark.parametrize("ended", [State.FAILED, State.CANCELLED])
    def test_a_task_that_failed_or_was_cancelled_does_not(self, rig: Rig, ended: State) -> None:
        task = rig.start(entry=cached())
        if ended is State.FAILED:
            rig.fail(task)
        else:
            got(rig.store.cancel([task.id]))

        new = rig.put(entry=cached())

        assert new != task.id
        assert rig.put(entry=cached()) == new

    def test_another_key_or_handler_is_another_call(self, rig: Rig) -> None:
        task_id = rig.put(entry=cached("k"))

        others = {rig.put(entry=cached("l")), rig.put(entry=cached("k"), handler="h")}

        assert len(others | {task_id}) == 3

    def test_a_task_without_a_cached_result_is_stored_each_time(self, rig: Rig) -> None:
        rig.put(entry=cached())

        assert rig.put(entry=Entry(cache_key="k")) != rig.put(entry=Entry(cache_key="k"))

    def test_dependants_of_the_same_batch_wait_for_the_task_that_stands_for_it(self, rig: Rig) -> None:
        task = rig.start(entry=cached())
        again = rig.spec(entry=cached())
        child = rig.spec(parents=(again.ref,))

        rig.submit(child, again)
        rig.succeed(task, b'"result"')

        assert rig.run(child.ref.id).parents == (b'"result"',)

    def test_the_same_call_twice_in_one_batch_is_one_task(self, rig: Rig) -> None:
        first, second = rig.submit(rig.spec(entry=cached()), rig.spec(entry=cached()))

        assert first == second
        assert got(rig.store.ledger()).submitted == 1

    def test_a_batch_that_is_refused_stands_for_nothing(self, rig: Rig) -> None:
        refused = rig.spec(entry=cached())
        with pytest.raises(LookupError):
            rig.submit(refused, rig.spec(after=[10**12]))

        new = rig.put(entry=cached())

        assert (new == refused.ref.id, rig.state(new)) == (False, State.READY)

    def test_children_that_are_refused_stand_for_nothing(self, rig: Rig) -> None:
        task = rig.start()
        children = rig.spec(entry=cached()), rig.spec(after=[10**12])
        rig.finish(Succeeded(task.claim, b"1", children))

        new = rig.put(entry=cached())

        assert (new == children[0].ref.id, rig.state(new)) == (False, State.READY)

    def test_of_eight_that_make_one_call_at_once_one_is_stored(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        ids: list[int] = []

        in_threads(8, lambda k: ids.append(rigs[k % 2].put(entry=cached())))

        assert (len(ids), len(set(ids))) == (8, 1)
        assert got(rigs[0].store.ledger()).submitted == 1

    def test_a_cached_result_is_found_before_a_busy_thread_or_a_full_queue(self, rig: Rig) -> None:
        entry = cached(on_busy="reject", queue_max=1, on_full="reject")
        task_id = rig.put(entry=entry, thread_id="t")

        assert rig.put(entry=entry, thread_id="t") == task_id

    def test_a_pruned_task_stands_for_nothing(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start(entry=cached())
        rig.succeed(task)
        clock.advance(1)
        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        assert rig.put(entry=cached()) != task.id

    # ------------------------------------------------------------ invalidate

    def test_cached_results_are_forgotten_by_tag(self, rig: Rig) -> None:
        entries = cached("a", tags=("x", "y")), cached("b", tags=("x",)), cached("c", tags=("z",)), cached("d")
        ids = [rig.put(entry=entry) for entry in entries]
        for task in rig.claim(9):
            rig.succeed(task)

        assert got(rig.store.invalidate(tags=["x", "y", "nobody"])) == 2

        again = [rig.put(entry=entry) for entry in entries]
        assert [new == old for new, old in zip(again, ids, strict=True)] == [False, False, True, True]
        assert got(rig.store.invalidate(tags=["z"])) == 1

    def test_cached_results_are_forgotten_by_handler_and_key(self, rig: Rig) -> None:
        ids = [rig.put(entry=cached("k"), handler=handler) for handler in "ab"]

        assert got(rig.store.invalidate(keys=[("a", "k"), ("a", "other")])) == 1
        assert got(rig.store.invalidate(keys=[("a", "k")])) == 0

        assert rig.put(entry=cached("k"), handler="b") == ids[1]
        assert rig.put(entry=cached("k"), handler="a") not in ids

    def test_one_found_by_tag_and_by_key_is_counted_once(self, rig: Rig) -> None:
        rig.put(entry=cached("k", tags=("x",)))

        assert got(rig.store.invalidate(tags=["x"], keys=[("work", "k")])) == 1

    def test_open_tasks_go_on_when_they_stand_for_nothing_any_more(self, rig: Rig) -> None:
        old = rig.start(entry=cached(tags=("x",)))

        got(rig.store.invalidate(tags=["x"]))
        new = rig.put(entry=cached(tags=("x",)))

        assert rig.states(old.id, new) == [State.RUNNING, State.READY]
        rig.succeed(old)
        assert rig.put(entry=cached()) == new

    def test_a_new_task_takes_the_place_of_an_old_one_with_its_own_tags(self, rig: Rig, clock: VirtualClock) -> None:
        rig.succeed(rig.start(entry=cached(tags=("old",), cache_s=1)))
        clock.advance(2)

        rig.put(entry=cached(tags=("new",), cache_s=1))

        assert [got(rig.store.invalidate(tags=[tag])) for tag in ("old", "new")] == [0, 1]

"""The memory store keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sennit.model.admission import Bounds, Entry
from sennit.model.lifecycle import State
from sennit.model.thread import AskSpec, StateWrite
from sennit.store.memory import MemoryStore
from sennit.store.memory_cache import Cached
from sennit.store.memory_rows import Row, Rows
from sennit.testing.contract import StoreContract, VirtualClock
from sennit.testing.contract_tools import Rig, got, running_loop


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self, clock: VirtualClock, bounds: Bounds) -> Callable[[], MemoryStore]:
        return MemoryStore(now_us=clock.now_us, bounds=bounds).connect


# ---------------------------------------------------------------- what the protocol leaves open


@pytest.fixture
def rig() -> Iterator[Rig]:
    """One process at a store of its own, with room for one thread, that keeps two versions."""
    with running_loop() as loop:
        rig = Rig(MemoryStore(now_us=VirtualClock().now_us, bounds=Bounds(threads_max=1, state_versions=2)), loop)
        yield rig
        rig.check()
        rig.store.close()


def written(rig: Rig, task_id: int, *data: bytes) -> None:
    """Write versions of the state of `t` under the claim of the next task, which is this one."""
    claim = rig.run(task_id).claim
    for value in data:
        rig.write(StateWrite(thread_id="t", expected=rig.remembered().version, data=value), claim=claim)


def test_of_those_that_become_ready_at_once_the_first_in_the_order_gets_the_room(rig: Rig) -> None:
    low, urgent = rig.submit(rig.spec(thread_id="a", priority=3), rig.spec(thread_id="b", priority=0))

    assert (rig.reason(low), rig.state(urgent)) == ((State.WAITING, "threads_max"), State.READY)


def test_a_batch_stands_in_its_thread_as_it_was_handed_in_but_each_task_after_its_parents(rig: Rig) -> None:
    one, two, three, four = (rig.spec(thread_id="t") for _ in range(4))
    two.parents, three.parents = (four.ref,), (one.ref,)
    rig.submit(one, two, three, four)

    done = []
    while tasks := rig.claim():
        done.append(tasks[0].id)
        rig.succeed(tasks[0])

    assert done == [spec.ref.id for spec in (one, three, four, two)]


@pytest.mark.parametrize("how", ["one by one", "together"])
def test_a_revived_task_before_its_parent_in_a_thread_does_not_wait_for_it(rig: Rig, how: str) -> None:
    holder = rig.start(thread_id="t")
    parent = rig.put(thread_id="t")
    child = rig.put(thread_id="t", after=[parent])
    got(rig.store.cancel([child] if how == "one by one" else [parent, child]))

    got(rig.store.revive([child] if how == "one by one" else [child, parent]))
    rig.succeed(holder)

    rig.succeed(rig.run(child))
    rig.succeed(rig.run(parent))


def test_a_task_that_waits_only_for_room_does_not_wait_again_for_a_revived_parent(rig: Rig) -> None:
    parent = rig.ended_as(State.FAILED)
    room = rig.start(thread_id="a")
    child = rig.put(thread_id="t", after=[parent], on_parent_failed="run")
    assert rig.reason(child) == (State.WAITING, "threads_max")

    got(rig.store.revive([parent]))
    rig.succeed(room)

    assert rig.states(parent, child) == [State.READY, State.READY]


def test_a_rollback_past_what_is_kept_goes_back_as_far_as_it_can(rig: Rig) -> None:
    rig.write(StateWrite(thread_id="t", expected=0, data=b'"kept"'))
    written(rig, rig.put(thread_id="t"), b"1", b"2", b"3", b"4")

    rig.put(thread_id="t", entry=Entry(on_busy="rollback"))

    assert rig.remembered().data == b"3"


def test_a_task_that_was_rolled_back_leaves_nothing_to_roll_back_with_the_next(rig: Rig) -> None:
    written(rig, rig.put(thread_id="t"), b"1")
    second = rig.put(thread_id="t", entry=Entry(on_busy="rollback"))

    written(rig, second, b"2")
    rig.put(thread_id="t", entry=Entry(on_busy="rollback"))

    assert (rig.remembered().data, rig.remembered().version) == (b"null", 4)


def test_a_rollback_to_before_the_thread_was_forgotten_goes_back_to_nothing(rig: Rig) -> None:
    rig.write(StateWrite(thread_id="t", expected=0, data=b"1"))
    got(rig.store.forget_thread("t"))
    written(rig, rig.put(thread_id="t"), b"2")

    rig.put(thread_id="t", entry=Entry(on_busy="rollback"))

    assert (rig.remembered().version, rig.remembered().data) == (3, b"null")


def test_another_process_with_more_room_lets_those_in_that_wait(rig: Rig) -> None:
    assert isinstance(rig.store, MemoryStore)
    rig.start(thread_id="a")
    waits = rig.put(thread_id="b")
    with running_loop() as loop:
        wide = rig.store.connect(bounds=Bounds())
        Rig(wide, loop)
        wide.close()

    assert rig.state(waits) is State.READY


# ---------------------------------------------------------------- verify

BREAKS: dict[str, Callable[[Rows, Row], object]] = {
    "has the turn of thread": lambda rows, row: rows.turns.holders.update(t=row.id),
    "which has no open task": lambda rows, row: rows.turns.holders.update(u=row.id),
    "not in the line": lambda rows, row: rows.turns.lines["t"].pop(row.id),
    "waits for 2 things": lambda _, row: setattr(row, "need", 2),
    "does not have the turn": lambda _, row: setattr(row, "state", State.SUSPENDED),
    "wait for their turn and": lambda rows, _: rows.turns.behind.update(q=1),
    "have room and are not": lambda rows, row: rows.turns.active.add(row.id),
    "will get none": lambda _, row: setattr(row, "gated", True),
    "tasks are ready and": lambda rows, _: rows.queued.update(q=1),
    "is open and its task": lambda rows, _: setattr(rows.tasks[rows.asks.by_id[1].task_id], "state", State.FAILED),
    "no timer says so": lambda rows, _: rows.asks.expiries.clear(),
    "does not know it": lambda rows, _: setattr(rows.asks.by_id[1], "state", "answered"),
    "is not found by its task": lambda rows, _: rows.asks.by_task.clear(),
    "has the versions": lambda rows, _: rows.states.chains["t", "state"].versions.clear(),
    "remembers other operations": lambda rows, _: rows.states.chains["t", "state"].operations.clear(),
    "stands for the call": lambda rows, _: rows.cache.calls.update({("h", "k"): Cached(10**12, ())}),
}


@pytest.mark.parametrize("sentence", BREAKS)
def test_verify_finds_what_is_broken(sentence: str) -> None:
    store = MemoryStore(now_us=VirtualClock().now_us)
    with running_loop() as loop:
        rig = Rig(store, loop)
        rig.ask(AskSpec(key="a", expires_us=1), thread_id="t")
        rig.write(StateWrite(thread_id="t", expected=0, data=b"1", operation_id="o"))
        waits = rig.put(thread_id="t")
        rig.check()

        BREAKS[sentence](store._rows, store._rows.tasks[waits])

        assert any(sentence in found for found in got(store.verify()))
        store.close()

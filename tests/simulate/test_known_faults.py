"""Faults of the runtime that the simulator has found, each in its smallest form: they are mended and stay so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from random import Random

import msgspec
import pytest

from sennit.errors import StoreFull
from sennit.model.admission import Bounds, Entry
from sennit.model.lifecycle import State
from sennit.model.task import Claim, Ref, TaskSpec, WorkerInfo
from sennit.model.thread import StateWrite
from sennit.store.memory import MemoryStore
from sennit.store.memory_seats import Worker
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.sync.ack import Ack
from sennit.testing.seeds import run_seeds
from sennit.testing.simbodies import Move, call
from sennit.testing.simfleet import LEASE_S, Fleet, Shape, steady_us
from sennit.testing.simloop import SimLoop

ONE_SLOT_EACH = Shape(
    workers=2, slots={"a": 1, "b": 1, "cpu": 1}, schedules=(), delay_s_max=0.0, crash_probability=0.0,
    trouble_probability=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    logger = logging.getLogger("sennit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def submit(fleet: Fleet, moves: list[Move], queue: str, *, is_sync: bool = False) -> Handle[object]:
    (handle,) = fleet.client.submit_calls([call(moves, is_sync=is_sync, **SubmitOptions(queue=queue))])
    return handle


def fleet_of(random: Random, loop: SimLoop) -> Fleet:
    return Fleet(random, loop, ONE_SLOT_EACH, truth=MemoryStore(now_us=steady_us(loop)))


async def taken_for_dead_with_an_owed_slot(random: Random, loop: SimLoop) -> None:
    fleet = fleet_of(random, loop)
    fleet.start("w0")
    submit(fleet, [("children", 1), ("wait", 0), ("work", 4.3)], "a")
    await asyncio.sleep(5.2)  # the child has ended: its parent works, in a slot that is ordered for the next one, too
    loop.freeze("w0")  # just before its body ends
    fleet.start("w1")
    await asyncio.sleep(2 * LEASE_S)  # w1 has rescued the task
    store = fleet._processes["w0"].store
    assert store is not None
    store.heartbeat = lambda *_: Ack.failed_with(StoreFull("the disk is full"))  # type: ignore[method-assign]
    loop.thaw("w0")
    await asyncio.sleep(1)
    del store.heartbeat  # there is room again
    loop.kill("w1")
    await asyncio.sleep(1)
    async with asyncio.timeout(60):
        await submit(fleet, [("work", 1.0)], "b")


async def given_up_while_it_waits(random: Random, loop: SimLoop) -> None:
    fleet = fleet_of(random, loop)
    fleet.start("w0")
    submit(fleet, [("work", 60.0)], "a")
    waits = submit(fleet, [("children", 1), ("wait", 0)], "b", is_sync=True)  # for a child in queue a
    await asyncio.sleep(1)
    await waits.cancel()
    await asyncio.sleep(6)  # it is given up
    for _ in range(2):
        submit(fleet, [("work", 5.0)], "b")
    await asyncio.sleep(20)


def test_a_worker_that_was_taken_for_dead_works_again_although_it_owed_the_slot_that_it_freed() -> None:
    run_seeds(taken_for_dead_with_an_owed_slot, range(100))


def test_a_sync_body_that_is_given_up_while_it_waits_frees_its_slot_once() -> None:
    run_seeds(given_up_while_it_waits, range(20))


def test_a_task_takes_the_place_in_a_full_queue_of_the_one_it_interrupts_although_that_waits_for_room() -> None:
    store = MemoryStore(bounds=Bounds(threads_max=1))
    entry = Entry(on_busy="interrupt", queue_max=1, on_full="reject")
    ahead, waits, new = (
        TaskSpec(ref=Ref(task_id), handler="h", queue=queue, payload=b"{}", thread_id=thread_id, entry=entry)
        for task_id, queue, thread_id in zip(store.take_ids(3), "abb", "xyy", strict=True)
    )
    store.submit([ahead]).wait()
    store.submit([waits]).wait()

    store.submit([new]).wait()

    assert store.task(waits.ref.id).wait().state is State.CANCELLED


def test_a_change_that_a_rollback_could_not_take_back_is_not_made_again() -> None:
    """Versions before it are dropped already. Found by converse, seed 429; SqliteStore does the same."""
    store = MemoryStore(bounds=Bounds(state_versions=1))
    task, new = (
        TaskSpec(
            ref=Ref(task_id), handler="h", queue="q", payload=b"{}", thread_id="t", entry=Entry(on_busy="rollback")
        )
        for task_id in store.take_ids(2)
    )
    claim = claimed_by_somebody(store, task)
    saved = StateWrite(thread_id="t", expected=1, data=b'["before", "saved"]', operation_id="save")
    store.write_states([StateWrite(thread_id="t", expected=0, data=b'["before"]')]).wait()
    store.write_states([saved], claim=claim).wait()
    store.write_states([StateWrite(thread_id="t", expected=2, data=b'["before", "saved", "after"]')]).wait()
    store.submit([new]).wait()
    back = store.state("t").wait()

    (again,) = store.write_states([msgspec.structs.replace(saved, expected=back.version)]).wait()

    assert back.data is not None
    assert b"saved" not in back.data or again.version <= back.version


def claimed_by_somebody(store: MemoryStore, spec: TaskSpec) -> Claim:
    """Store a task and return its first claim; nobody beats for it, which no clock notices here."""
    store.submit([spec]).wait()
    worker = WorkerInfo(id=store.take_ids(1)[0], pid=1, host="host", boot_id="boot")
    store._database.workers[worker.id] = Worker(worker, 10**9, store.now_us() + 10**9)
    (task,) = store.claim(worker.id, spec.queue, 1).wait()
    return task.claim

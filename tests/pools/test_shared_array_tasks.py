"""Shared arrays as arguments of tasks: in OS threads, on the loop, in worker processes of the app, and in other workers."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sennit import App, Handle
from sennit.errors import PayloadError, TaskFailed
from sennit.submit.registry import Task
from sennit.sync import array_holds
from sennit.sync.arrays import SharedArray, SharedArrayPool
from tests.crash.nursery import Nursery
from tests.pools.array_child import Child

WAIT_S = 30.0  # below the time-out of a test: then the error says who holds what
MIB = 1 << 20

# ---------------------------------------------------------------- bodies


def double(values: SharedArray, by: float = 2.0) -> tuple[int, float]:
    values.array[:] *= by
    return os.getpid(), float(values.array.sum())


def double_view(values: np.ndarray) -> tuple[int, float]:
    values *= 2.0
    return os.getpid(), float(values.sum())


async def double_async(values: SharedArray) -> tuple[int, float]:
    return double(values)


def look_nested(groups: dict[str, list[SharedArray]], maybe: SharedArray | None = None) -> list[float]:
    return [float(values.array.sum()) for group in groups.values() for values in group] + [-1.0] * (maybe is None)


def look_typed(values: NDArray[np.float64]) -> tuple[float, bool]:
    return float(values.sum()), values.flags.writeable


def fail(values: SharedArray, view: np.ndarray) -> None:
    views = [values.array[1:], view[2:]]
    raise ValueError(f"{len(views)} views are on my stack")


def give_back(values: SharedArray) -> SharedArray:
    values[0] = 8.0
    return values


def make_own(rows: int) -> SharedArray:
    pool = SharedArrayPool(bytes_max=MIB)
    return pool.acquire(rows)


def segments_open(_: int) -> int:
    gc.collect()  # what a body before this one has left behind is not what is counted
    return array_holds.is_open()


@pytest.fixture
def pool() -> Iterator[SharedArrayPool]:
    with SharedArrayPool(bytes_max=4 * MIB) as made:
        yield made


class Fleet:
    """An app with one worker process, and its tasks by name."""

    def __init__(self, app: App) -> None:
        self.opened = threading.Event()
        self.tasks: dict[str, Task[..., Any]] = {"gate": app.task(name="gate")(self.gate)}
        self.tasks["here.double_async"] = app.task(name="here.double_async", retries=5)(double_async)
        bodies: tuple[Callable[..., Any], ...] = (
            double,
            double_view,
            look_nested,
            look_typed,
            fail,
            give_back,
            make_own,
        )
        for body in (*bodies, segments_open):
            name, retries = body.__name__, 5 * (body.__name__ == "double")
            self.tasks[f"here.{name}"] = app.task(name=f"here.{name}", retries=retries)(body)
            self.tasks[f"cpu.{name}"] = app.task(name=f"cpu.{name}", cpu=True, retries=retries)(body)

    def gate(self) -> None:
        self.opened.wait()

    def submit(self, name: str, *args: Any, **kwargs: Any) -> Handle[Any]:
        return self.tasks[name].submit(*args, **kwargs)

    def run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.submit(name, *args, **kwargs).result(WAIT_S)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One for all tests here: a worker process takes half a second of a core to start."""
    app = App(f"sqlite:///{tmp_path_factory.mktemp('arrays')}/fleet.db", cpu_slots=1)
    made = Fleet(app)
    with app:
        yield made


# ---------------------------------------------------------------- the way in


@pytest.mark.parametrize(
    "handler", ["here.double", "here.double_view", "here.double_async", "cpu.double", "cpu.double_view"]
)
def test_a_body_works_on_the_memory_of_who_submits(fleet: Fleet, pool: SharedArrayPool, handler: str) -> None:
    with pool.acquire(100_000) as values:
        values[:] = 1.0
        pid, total = fleet.run(handler, values)

        assert (values.array == 2.0).all()
        assert total == 200_000.0
        assert (pid == os.getpid()) == handler.startswith("here")
    pool.acquire(4 * MIB, "u1", timeout_s=WAIT_S).release()  # all of the pool: waits until nobody has anything


@pytest.mark.parametrize("kind", ["here", "cpu"])
def test_annotations_of_all_kinds_are_understood(fleet: Fleet, pool: SharedArrayPool, kind: str) -> None:
    with pool.share([1.0, 2.0]) as a, pool.share([4.0]) as b, pool.acquire(0) as empty, a.readonly() as seen:
        nested = fleet.submit(f"{kind}.look_nested", {"x": [a, b], "y": [empty]})
        optional = fleet.submit(f"{kind}.look_nested", {}, maybe=a)

        assert nested.result(WAIT_S) == [3.0, 4.0, 0.0, -1.0]
        assert optional.result(WAIT_S) == []
        assert fleet.run(f"{kind}.look_typed", a) == (3.0, True)
        assert fleet.run(f"{kind}.look_typed", seen) == (3.0, False)


def test_the_row_of_a_task_is_small(fleet: Fleet, pool: SharedArrayPool) -> None:
    with pool.acquire(400_000) as values:
        payload, _ = fleet.tasks["cpu.double"].handler.codec.encode((values,), {}, 1000)

    assert len(payload) < 400


def test_a_call_with_a_shared_array_has_no_cache_key(fleet: Fleet, pool: SharedArrayPool) -> None:
    with pool.acquire(4) as values, pytest.raises(PayloadError, match="no content that is known"):
        fleet.tasks["cpu.double"].handler.codec.key((values,), {})


def test_a_released_array_cannot_be_submitted_or_returned(fleet: Fleet, pool: SharedArrayPool) -> None:
    values = pool.acquire(4)
    values.release()

    with pytest.raises(PayloadError, match="after its release"):
        fleet.submit("here.double", values)
    with pytest.raises(PayloadError, match="after its release"):
        fleet.tasks["here.double"].handler.codec.encode_result(values, 1000)


def test_a_second_task_finds_the_memory_mapped_and_an_ended_pool_is_unmapped(fleet: Fleet) -> None:
    with SharedArrayPool(bytes_max=MIB) as first, first.acquire(100) as values:
        fleet.run("cpu.double", values)
        one_more = fleet.run("cpu.segments_open", 0)
        fleet.run("cpu.double", values)
        assert fleet.run("cpu.segments_open", 0) == one_more >= 1
    with SharedArrayPool(bytes_max=MIB) as second, second.acquire(100) as values:
        fleet.run("cpu.double", values)

        assert fleet.run("cpu.segments_open", 0) == one_more


# ---------------------------------------------------------------- the end of a body


@pytest.mark.parametrize("kind", ["here", "cpu"])
def test_a_body_that_raises_has_let_go(fleet: Fleet, pool: SharedArrayPool, kind: str) -> None:
    with pool.acquire(100) as values, pytest.raises(TaskFailed, match="2 views are on my stack"):
        fleet.run(f"{kind}.fail", values, values)
    pool.acquire(4 * MIB, "u1", timeout_s=WAIT_S).release()  # all of the pool: waits until nobody has anything


@pytest.mark.parametrize("kind", ["here", "cpu"])
def test_a_body_may_return_the_array_it_got(fleet: Fleet, pool: SharedArrayPool, kind: str) -> None:
    with pool.acquire(100) as values:
        with fleet.run(f"{kind}.give_back", values) as same:
            assert isinstance(same, SharedArray)
            same[1] = 9.0

        assert values.array[:2].tolist() == [8.0, 9.0]


def test_a_worker_process_cannot_return_an_array_of_its_own(fleet: Fleet) -> None:
    with pytest.raises(TaskFailed, match="had acquired itself") as caught:
        fleet.run("cpu.make_own", 10)

    assert "pass it as an argument" in str(caught.value)


# ---------------------------------------------------------------- it is gone


@pytest.mark.parametrize("kind", ["here", "cpu"])
def test_a_task_that_starts_after_the_release_fails_once_and_says_why(
    fleet: Fleet, pool: SharedArrayPool, kind: str
) -> None:
    fleet.opened.clear()
    gate = fleet.submit("gate")
    values = pool.acquire(100)
    handle = fleet.tasks[f"{kind}.double"].options(after=gate).submit(values)
    values.release()
    other = pool.acquire(100)  # the same block
    other[:] = 1.0
    fleet.opened.set()
    with pytest.raises(TaskFailed, match="was released") as caught:
        handle.result(WAIT_S)

    assert "keep the array until the result is there" in str(caught.value)
    assert handle.view().result().attempt == 1
    assert (other.array == 1.0).all()


# ---------------------------------------------------------------- other workers of the same store

SERVE = """
from sennit import App
from tests.pools.test_shared_array_tasks import Fleet
app = App(given, cpu_slots=1)
Fleet(app)
app.__enter__()
"""


def test_another_worker_of_the_store_has_the_same_memory(
    nursery: Nursery, pool: SharedArrayPool, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    app = App(url)
    fleet = Fleet(app)
    with closing(app), closing(Child(nursery)) as worker, pool.acquire(1000) as values:
        worker.run(SERVE, url)
        values[:] = 1.0
        pid, total = fleet.run("here.double", values)

        assert pid == worker.pid
        assert total == values.array.sum() == 2000.0
        assert worker.run("out = array_holds.is_open()") == 0  # not its child: it keeps nothing mapped
        worker.run("app.__exit__(None, None, None)")


def test_a_task_that_waits_when_its_submitter_is_killed_fails_and_says_what_to_do(
    nursery: Nursery, tmp_path: Path
) -> None:
    app = App(f"sqlite:///{tmp_path}/fleet.db", cpu_slots=1)
    Fleet(app)
    with closing(Child(nursery)) as submitter:
        task_id = submitter.run(
            "from sennit import App\n"
            "from tests.pools.test_shared_array_tasks import Fleet\n"
            "pool = SharedArrayPool(bytes_max=4096); a = pool.acquire(10)\n"
            "out = Fleet(App(given)).submit('here.double', a).id",
            f"sqlite:///{tmp_path}/fleet.db",
        )
        submitter.kill()
    with app, pytest.raises(TaskFailed, match="its memory is gone") as caught:
        app.handle(task_id).result(WAIT_S)

    assert "plain numpy array, which is stored in a file" in str(caught.value)

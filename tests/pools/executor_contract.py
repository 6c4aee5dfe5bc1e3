"""The contract of `concurrent.futures.Executor` as tests: what its documentation says, sentence by sentence.

A class derives from `ExecutorContract` and says in `source` how such a pool is made; tests/pools/test_executors.py runs
it for the standard pool, which is the control: a sentence that does not hold there is not in the contract.
`map` and `wait` are in executor_many.py; how a pool ends, with the interpreter too, is in executor_endings.py.

`source` is the text of a module with `make_pool(workers, **options)`, so that a child process can make one, too.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
)
from typing import Any, ClassVar, TypeVar

import pytest

LONG_S = 30.0  # until a test that hangs gives up

Make = Callable[..., Executor]
T = TypeVar("T")


class Hold:
    """A body that says when it has begun and stays until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.let_go.wait(LONG_S)
        return "held"


def os_threads(prefix: str) -> list[threading.Thread]:
    return [os_thread for os_thread in threading.enumerate() if os_thread.name.startswith(prefix)]


def fail(error: BaseException) -> None:
    raise error


def identity(value: T) -> T:
    return value


class ExecutorContract:
    source: ClassVar[str]

    @pytest.fixture
    def make(self) -> Iterator[Make]:
        """Makes pools; a test leaves none behind."""
        module: dict[str, Any] = {}
        exec(self.source, module)
        made: list[Executor] = []

        def make(workers: int = 2, **options: Any) -> Executor:
            made.append(module["make_pool"](workers, **options))
            return made[-1]

        yield make
        for pool in made:
            pool.shutdown(cancel_futures=True)

    @pytest.fixture
    def hold(self) -> Iterator[Hold]:
        hold = Hold()
        yield hold
        hold.let_go.set()

    # ------------------------------------------------------------ submit

    def test_submit_calls_with_all_arguments_and_returns_a_future(self, make: Make) -> None:
        def body(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        future = make().submit(body, 1, 2, fn=3, self=4)

        assert isinstance(future, Future)
        assert future.result(LONG_S) == ((1, 2), {"fn": 3, "self": 4})
        assert future.exception() is None
        assert future.done()

    def test_a_body_runs_in_an_os_thread_of_the_pool_that_has_its_prefix(self, make: Make) -> None:
        name = make(thread_name_prefix="contract-name").submit(lambda: threading.current_thread().name).result(LONG_S)

        assert name.startswith("contract-name")

    def test_as_many_bodies_run_at_once_as_there_are_workers(self, make: Make) -> None:
        barrier = threading.Barrier(4)
        pool = make(4)

        places = [pool.submit(barrier.wait, LONG_S) for _ in range(4)]

        assert sorted(place.result(LONG_S) for place in places) == [0, 1, 2, 3]

    def test_never_more_bodies_run_at_once_than_there_are_workers(self, make: Make) -> None:
        lock = threading.Lock()
        running: list[int] = []
        seen: list[int] = []

        def body(number: int) -> None:
            with lock:
                running.append(number)
                seen.append(len(running))
            threading.Event().wait(0.0005)
            with lock:
                running.remove(number)

        list(make(3).map(body, range(60)))

        assert len(seen) == 60
        assert max(seen) <= 3

    def test_one_worker_is_one_os_thread(self, make: Make) -> None:
        assert len(set(make(1).map(lambda _: threading.get_ident(), range(50)))) == 1

    def test_a_body_may_submit_to_its_own_pool_and_wait_while_another_worker_is_free(self, make: Make) -> None:
        pool = make(3)

        def parent() -> int:
            return pool.submit(lambda: pool.submit(identity, 7).result(LONG_S)).result(LONG_S)

        assert pool.submit(parent).result(LONG_S) == 7

    def test_os_threads_may_submit_side_by_side(self, make: Make) -> None:
        pool = make(2)
        results: list[int] = []

        def submit_many(first: int) -> None:
            results.extend(future.result(LONG_S) for future in [pool.submit(identity, first + n) for n in range(100)])

        submitters = [threading.Thread(target=submit_many, args=(first,)) for first in range(0, 800, 100)]
        for submitter in submitters:
            submitter.start()
        for submitter in submitters:
            submitter.join(LONG_S)

        assert sorted(results) == list(range(800))

    def test_an_event_loop_can_use_it(self, make: Make) -> None:
        pool = make()

        async def ask() -> list[int]:
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*(loop.run_in_executor(pool, identity, n) for n in range(20)))

        assert asyncio.run(ask()) == list(range(20))

    @pytest.mark.parametrize("workers", [0, -1])
    def test_a_pool_needs_a_worker(self, make: Make, workers: int) -> None:
        with pytest.raises(ValueError):
            make(workers)

    # ------------------------------------------------------------ what a body raises

    def test_an_exception_is_the_same_object_with_the_line_that_raised_it_and_the_line_that_asked(
        self, make: Make
    ) -> None:
        error = KeyError("lost")
        future = make().submit(fail, error)

        assert future.exception(LONG_S) is error
        with pytest.raises(KeyError) as caught:
            future.result(LONG_S)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[0].startswith("test_an_exception_is_the_same_object")
        assert names[-1] == "fail"

    def test_an_exception_keeps_its_cause(self, make: Make) -> None:
        def body() -> None:
            try:
                fail(LookupError("first"))
            except LookupError as error:
                raise RuntimeError("second") from error

        error = make().submit(body).exception(LONG_S)

        assert isinstance(error, RuntimeError)
        assert isinstance(error.__cause__, LookupError)

    @pytest.mark.parametrize("kind", [BaseException, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
    def test_whatever_a_body_raises_goes_to_its_future_and_the_worker_goes_on(
        self, make: Make, kind: type[BaseException]
    ) -> None:
        pool = make(1)

        assert type(pool.submit(fail, kind("x")).exception(LONG_S)) is kind
        assert pool.submit(identity, 5).result(LONG_S) == 5

    def test_a_finished_item_keeps_nothing_alive(self, make: Make) -> None:
        class Argument:
            pass

        def body(_: Argument) -> None:
            raise ValueError  # A traceback that holds the argument, and no cycle of the test's own.

        pool, argument = make(1), Argument()
        alive = weakref.ref(argument)
        gc.disable()  # Nothing may have to be found in a cycle.
        try:
            future = pool.submit(body, argument)
            future.exception(LONG_S)
            del argument, future
            pool.submit(identity, 1).result(LONG_S)  # One worker: when this has run the other item is put away.
            assert alive() is None
        finally:
            gc.enable()

    # ------------------------------------------------------------ cancel

    def test_a_pending_future_can_be_cancelled_and_a_running_or_finished_one_cannot(
        self, make: Make, hold: Hold
    ) -> None:
        pool = make(1)
        running = pool.submit(hold)
        assert hold.begun.wait(LONG_S)
        ran: list[int] = []
        pending = pool.submit(ran.append, 1)

        assert running.running()
        assert not running.cancel()
        assert not pending.running()
        assert pending.cancel()
        hold.let_go.set()
        assert running.result(LONG_S) == "held"
        assert not running.cancel()
        pool.shutdown()
        assert pending.cancelled()
        assert pending.done()
        assert ran == []
        with pytest.raises(CancelledError):
            pending.result()

    def test_waiting_has_a_time_limit_that_leaves_the_body_alone(self, make: Make, hold: Hold) -> None:
        future = make(1).submit(hold)

        with pytest.raises(TimeoutError):
            future.result(timeout=0)
        with pytest.raises(TimeoutError):
            future.exception(timeout=0)
        hold.let_go.set()
        assert future.result(LONG_S) == "held"

    # ------------------------------------------------------------ done callbacks

    def test_callbacks_get_the_future_in_the_order_they_were_added(self, make: Make, hold: Hold) -> None:
        calls: list[tuple[str, Future[str]]] = []
        last = threading.Event()
        future = make(1).submit(hold)
        future.add_done_callback(lambda done: calls.append(("first", done)))
        future.add_done_callback(lambda done: calls.append(("second", done)))
        future.add_done_callback(lambda done: last.set())

        hold.let_go.set()

        assert last.wait(LONG_S)
        assert calls == [("first", future), ("second", future)]

    def test_a_callback_of_a_finished_future_is_called_at_once(self, make: Make) -> None:
        future = make().submit(identity, 1)
        future.result(LONG_S)
        callers: list[int] = []

        future.add_done_callback(lambda _: callers.append(threading.get_ident()))

        assert callers == [threading.get_ident()]

    def test_a_callback_that_raises_is_logged_and_costs_nobody_anything(
        self, make: Make, hold: Hold, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make(1)
        future = pool.submit(hold)
        after = threading.Event()
        future.add_done_callback(lambda _: fail(ValueError("of a callback")))
        future.add_done_callback(lambda _: after.set())
        hold.let_go.set()

        assert after.wait(LONG_S)
        assert pool.submit(identity, 2).result(LONG_S) == 2
        assert "of a callback" in caplog.text

    def test_a_callback_is_told_of_a_cancelled_future(self, make: Make, hold: Hold) -> None:
        pool = make(1)
        pool.submit(hold)
        assert hold.begun.wait(LONG_S)
        pending = pool.submit(identity, 1)
        told: list[bool] = []
        pending.add_done_callback(lambda done: told.append(done.cancelled()))

        pending.cancel()

        assert told == [True]

    # ------------------------------------------------------------ initializer

    def test_the_initializer_runs_once_in_each_worker_before_its_items(self, make: Make) -> None:
        local, barrier = threading.local(), threading.Barrier(3)

        def prepare(first: int, second: int) -> None:
            local.ready = [*getattr(local, "ready", []), first + second]

        def body() -> list[int]:
            barrier.wait(LONG_S)
            return list(local.ready)

        pool = make(3, initializer=prepare, initargs=(20, 22))

        assert [future.result(LONG_S) for future in [pool.submit(body) for _ in range(3)]] == [[42]] * 3

    def test_initializers_that_wait_for_each_other_all_start(self, make: Make) -> None:
        pool = make(3, initializer=threading.Barrier(3).wait, initargs=(LONG_S,))

        assert list(pool.map(identity, range(3))) == [0, 1, 2]

    @pytest.mark.parametrize("kind", [ValueError, SystemExit])
    def test_a_failing_initializer_breaks_the_pool_for_pending_and_later_work(
        self, make: Make, hold: Hold, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
    ) -> None:
        def prepare() -> None:
            hold()
            raise kind("of the initializer")

        pool = make(1, initializer=prepare)
        pending = [pool.submit(identity, n) for n in range(5)]
        hold.let_go.set()

        assert all(isinstance(future.exception(LONG_S), BrokenExecutor) for future in pending)
        with pytest.raises(BrokenExecutor):
            pool.submit(identity, 6)
        assert "of the initializer" in caplog.text

    def test_an_initializer_that_cannot_be_called_is_refused(self, make: Make) -> None:
        with pytest.raises(TypeError):
            make(1, initializer=5)

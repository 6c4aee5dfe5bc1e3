"""AsyncBatcher: as `batch`, for the coroutines of one event loop.

    await batcher(a) ┐ one turn of the loop          ┌ a's result
    await batcher(b) ┘ ─► task: await fn([a, b]) ────┤
    await batcher(c) ··waits··► task: fn([c, …])     └ b's result

A batch runs in an asyncio task of its own, so no caller's cancellation reaches it; who is cancelled before it begins
leaves it. When nothing is under way, a batch begins at the end of the loop's turn: the coroutines that are ready together
go together, and a lone one waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from sennit.errors import BatcherClosed, BatcherFull, UsageError
from sennit.sync.batch_answers import Answer, answering, fill_in
from sennit.sync.batch_line import BatchStatistics, Call, Limits, Line, WhenFull, raises_when_full

__all__ = ["INSIDE", "AsyncBatcher"]

T = TypeVar("T")
R = TypeVar("R")

INSIDE: Final[ContextVar[object]] = ContextVar("sennit-batcher", default=None)
"""The batcher whose function this code is called by."""


class _Call(Call[T], Generic[T, R]):
    __slots__ = ("future",)

    def __init__(self, item: T, size_bytes: int, added_s: float, future: asyncio.Future[R]) -> None:
        super().__init__(item, size_bytes, added_s)
        self.future = future


class AsyncBatcher(Generic[T, R]):
    """Groups the calls of coroutines: `await batcher(item)` is the result of one item.

        async with AsyncBatcher(fetch_many, items_max=50, in_flight_max=4) as fetch:
            pages = await asyncio.gather(*(fetch(url) for url in urls))

    It belongs to the first event loop it is used on, and is used from that loop's OS thread only.

    Args:
        fn: as for `Batcher`; async, or not. If not, it is called on the loop, which stands still meanwhile: right for a
            numpy operation, wrong for I/O.
        executor: where `fn`, which is not async then, is called instead.
        when_full: at `waiting_max`: "wait" holds `submit` until there is room; "error" raises `BatcherFull`, to callers
            of `batcher(item)` too.
        items_max, age_s_max, bytes_max, size_of, gather, in_flight_max, waiting_max, split_on_error: as for `Batcher`.

    Raises:
        SettingsError: a bound is out of its bounds.
    """

    def __init__(
        self,
        fn: Callable[[list[T]], Sequence[R | Exception] | Awaitable[Sequence[R | Exception]]],
        *,
        items_max: int = 10,
        age_s_max: float = 0.05,
        bytes_max: int | None = None,
        size_of: Callable[[T], int] | None = None,
        gather: bool = False,
        in_flight_max: int = 1,
        waiting_max: int | None = None,
        when_full: WhenFull = "wait",
        split_on_error: bool = False,
        executor: Executor | None = None,
    ) -> None:
        if executor is not None and inspect.iscoroutinefunction(fn):
            raise UsageError(f"{fn!r} is async, and an executor cannot await it", fix="leave `executor` out")
        self._fn = fn
        self._executor = executor
        self._limits: Limits[T] = Limits(
            items_max=items_max,
            age_s_max=age_s_max,
            bytes_max=bytes_max,
            size_of=size_of,
            gather=gather,
            in_flight_max=in_flight_max,
            waiting_max=waiting_max,
        )
        self._raises_when_full = raises_when_full(when_full)
        self._split = split_on_error
        self._context = contextvars.copy_context()
        self._context.run(INSIDE.set, self)
        self._line: Line[_Call[T, R]] = Line(self._limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way: dict[asyncio.Task[None], list[_Call[T, R]]] = {}
        self._door: deque[asyncio.Future[None]] = deque()  # of those that wait for room
        self._at_rest: list[asyncio.Future[None]] = []  # of those that wait for the end
        self._looks_soon = False
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ calling

    async def __call__(self, item: T) -> R:
        """Return the result of this item.

        Raises:
            BatcherClosed: it is closed, or closing took longer than it was given.
            BatcherFull: `waiting_max` items wait and `when_full` is "error".
            BatchFailed: the batch ended without an answer for this item.
            UsageError: from another event loop, or from inside `fn`, which would wait for itself.
            Exception: what `fn` raised, or returned in this place.
        """
        loop = self._here()
        if INSIDE.get() is self:
            raise UsageError(
                "a batch function called its own AsyncBatcher",
                why="the one would wait for the other; what the function starts counts as inside it",
            )
        if self._raises_when_full:
            self._check_room()
        call = self._join(item, loop)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._leave(call)
            raise

    async def submit(self, item: T) -> asyncio.Future[R]:
        """Wait until there is room, and return a future of the result. Cancelled in time, the item leaves.

        Raises:
            BatcherClosed: it is closed. BatcherFull: there is no room and `when_full` is "error".
            UsageError: from another event loop.
        """
        loop = self._here()
        while self._line.full and not self._line.closing:
            if self._raises_when_full or INSIDE.get() is self:
                self._check_room()
            opened = loop.create_future()
            self._door.append(opened)
            try:
                await opened
            except asyncio.CancelledError:
                if not opened.cancelled():
                    self._open_door(1)  # it was our turn: another's now
                raise
        call = self._join(item, loop)
        call.future.add_done_callback(partial(self._cancelled, call))
        return call.future

    def statistics(self) -> BatchStatistics:
        """Return what it has done so far."""
        return self._line.statistics()

    def _here(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise UsageError(
                    "an AsyncBatcher was called from a second event loop",
                    why="its batches and the futures of its callers live on the first one",
                    fix="make one per loop; for OS threads use Batcher",
                )
            self._loop = loop
        return loop

    def _check_room(self) -> None:
        if self._line.full and not self._line.closing:
            raise BatcherFull(self._limits.waiting_max or 0)

    def _join(self, item: T, loop: asyncio.AbstractEventLoop) -> _Call[T, R]:
        size_bytes = self._limits.size(item)
        if self._line.closing:
            raise BatcherClosed("the batcher is closed")
        call: _Call[T, R] = _Call(item, size_bytes, loop.time(), loop.create_future())
        self._line.add(call)
        why = self._line.due(call.added_s)
        if why in ("count", "bytes"):
            self._look()
        elif why is not None and not self._looks_soon:
            self._looks_soon = True
            loop.call_soon(self._look_now, context=self._context)
        elif why is None:
            self._keep_time(loop)
        return call

    def _leave(self, call: _Call[T, R]) -> None:
        if self._line.remove(call):
            self._open_door(1)
            self._rest()

    def _cancelled(self, call: _Call[T, R], future: asyncio.Future[R]) -> None:
        if future.cancelled():
            self._leave(call)

    def _open_door(self, count: int) -> None:
        while count > 0 and self._door:
            opened = self._door.popleft()
            if not opened.done():
                opened.set_result(None)
                count -= 1

    # ------------------------------------------------------------ batches

    def _look_now(self) -> None:
        self._looks_soon = False
        self._look()

    def _look(self, at_s: float = 0.0) -> None:
        """Begin what is due, and see to it that what will be due by age is seen then."""
        loop = self._loop
        if loop is None:
            return
        now_s = max(at_s, loop.time())  # a timer may be early by the clock's resolution
        while (why := self._line.due(now_s)) is not None:
            taken = self._line.take(why, now_s)
            batch = [call for call in taken if not call.future.done()]
            self._open_door(len(taken))
            self._line.begun_without(why, len(taken) - len(batch), nobody_left=not batch)
            if not batch:
                continue
            answers: list[Answer[R] | None] = [None] * len(batch)
            task = loop.create_task(self._run(batch, answers), context=self._context.copy())
            self._under_way[task] = batch
            task.add_done_callback(partial(self._over, batch, answers))
        self._keep_time(loop)
        self._rest()

    def _keep_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have one timer for the oldest. One that is early by then, because younger ones are left, is set anew."""
        until_s = self._line.next_s()
        if until_s is not None and self._timer is None:
            self._timer = loop.call_at(until_s, self._time_is_up, until_s, context=self._context)

    def _time_is_up(self, at_s: float) -> None:
        self._timer = None
        self._look(at_s)

    async def _run(self, batch: list[_Call[T, R]], answers: list[Answer[R] | None]) -> None:
        flow = answering([call.item for call in batch], answers, split=self._split)
        try:
            part = next(flow)
            while True:
                try:
                    results = await self._call_function(part)
                except Exception as error:  # noqa: BLE001 - the flow makes answers of it
                    part = flow.throw(error)
                else:
                    part = flow.send(results)
                self._line.splits += 1
        except StopIteration:
            pass
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError) as stop:
            fill_in(answers, stop)
            raise
        except BaseException as stop:  # noqa: BLE001 - all who wait have it as the cause of theirs
            fill_in(answers, stop)

    async def _call_function(self, part: list[T]) -> Any:
        if self._executor is not None:
            call = partial(contextvars.copy_context().run, self._fn, part)
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        results = self._fn(part)
        return await results if inspect.isawaitable(results) else results

    def _over(self, batch: list[_Call[T, R]], answers: list[Answer[R] | None], task: asyncio.Task[None]) -> None:
        """End a batch: hand out its answers, and begin what is due now."""
        if None in answers:  # cancelled before its first step
            fill_in(answers, asyncio.CancelledError())
        if not task.cancelled():
            task.exception()  # an exit that the loop has raised already; every caller has it as the cause of theirs
        self._under_way.pop(task, None)
        self._line.under_way -= 1
        for call, answer in zip(batch, answers, strict=True):
            if answer is not None:
                self._line.failed += answer.error is not None
                _hand(call.future, answer)
        self._look()

    # ------------------------------------------------------------ the end

    async def close(self, timeout_s: float | None = None) -> bool:
        """Take nothing more, run what waits at once, and wait for it. Closing again waits again.

        Args:
            timeout_s: seconds; what has no answer by then gets `BatcherClosed`, and batches under way are cancelled.

        Returns:
            Whether everything was answered by `fn`.

        Raises:
            UsageError: from inside `fn`, or from another event loop.
        """
        loop = self._here()
        if INSIDE.get() is self:
            raise UsageError("a batch function closed its own AsyncBatcher", why="the one would wait for the other")
        self._line.closing = True
        self._open_door(len(self._door))  # to learn that it is closed
        self._look()
        if not self._line.at_rest:
            rest = loop.create_future()
            self._at_rest.append(rest)
            await asyncio.wait([rest], timeout=timeout_s)
            if not rest.done():
                self._give_up(timeout_s)
                return False
        return True

    async def __aenter__(self) -> AsyncBatcher[T, R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def _rest(self) -> None:
        if self._line.at_rest:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for rest in self._at_rest:
                if not rest.done():
                    rest.set_result(None)
            self._at_rest.clear()

    def _give_up(self, timeout_s: float | None) -> None:
        why = f"the function had not come back after {timeout_s} s"
        for call in [*self._line.waiting, *(call for batch in self._under_way.values() for call in batch)]:
            if not call.future.done():
                closed = BatcherClosed("the batcher was closed before this item had an answer", why=why)
                call.future.set_exception(closed)
        self._line.waiting.clear()
        for task in self._under_way:
            task.cancel()


def _hand(future: asyncio.Future[R], answer: Answer[R]) -> None:
    if future.done():  # its caller was cancelled
        return
    if answer.error is not None:
        future.set_exception(answer.error)
    else:
        future.set_result(answer.get())

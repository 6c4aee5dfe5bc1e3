"""Batcher: many callers, one call. What is asked for while a batch is under way makes up the next one.

    caller 1 ─ fn([a]) ────────► a's result
    caller 2 ─ b ··waits··┐
    caller 3 ─ c ··waits··┴ fn([b, c]) ─► b's result, c's result

So nobody waits for company: a lone caller runs `fn` at once, in its own OS thread, and batches grow by themselves as soon
as calls come faster than `fn` answers (group commit does the same). Count, age and bytes are the bounds of what gathers.

Who runs a batch: the caller of its first item, who is blocked anyway. No OS thread of the batcher stands between, and a
wake-up that would only pass the baton on is saved. One of its own exists for items that nobody waits with (`submit`) and
for the age of the oldest; idle, it sleeps on a lock. `batch_async` has the same for an event loop, `batch_line` the rules.
"""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from sennit.errors import BatcherClosed, BatcherFull, UsageError
from sennit.sync.ack import in_event_loop
from sennit.sync.batch_answers import Answer, answering, fill_in
from sennit.sync.batch_async import INSIDE, AsyncBatcher
from sennit.sync.batch_calls import Batch, Begun, OsThreadCall, OwnThreads, hand, starts
from sennit.sync.batch_line import BatchStatistics, Limits, Line, WhenFull, raises_when_full
from sennit.sync.clock import monotonic_s
from sennit.sync.forks import drop_after_fork

__all__ = ["AsyncBatcher", "BatchStatistics", "Batcher"]

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Groups calls from OS threads: `batcher(item)` waits for its result, `batcher.submit(item)` returns a `Future`.

        embed = Batcher(client.embed, items_max=64, bytes_max=8_000, size_of=count_tokens, in_flight_max=4)
        vector = embed("one text")                  # in each of 100 OS threads

    Usable alone, from any number of OS threads. On an event loop use `AsyncBatcher`, which takes the same arguments.

    Args:
        fn: gets a list of items, returns a list with one result per item in their order. An exception object in the
            place of a result is raised to that caller. If `fn` raises, each caller of the batch gets the error, as an
            exception object of its own. It runs in a copy of the context (`contextvars`) in which the batcher was made,
            not in that of one of the callers.
        items_max: of one batch.
        age_s_max: seconds; who has waited so long starts a batch beside those under way, if `in_flight_max` lets it.
            With `in_flight_max=1` and without `gather` it changes nothing.
        bytes_max, size_of: bound of one batch in what `size_of(item)` counts: bytes, tokens, rows. An item that is larger
            goes alone.
        gather: wait for `items_max`, `bytes_max` or `age_s_max` also when nothing is under way: fewer calls, and a lone
            caller waits `age_s_max` each time. For what costs per call, not per second.
        in_flight_max: batches under way at the same time; more than 1 is for I/O. Batches begin in the order of the calls.
        waiting_max: items that may wait; None: any number. A caller that waits for its result sends no second one, so
            this bounds what `submit` piles up.
        when_full: at `waiting_max`: "wait" holds `submit` until there is room; "error" raises `BatcherFull`, to callers
            of `batcher(item)` too.
        split_on_error: the items are independent, and may be done twice: when `fn` raises, it is called again with each
            half, so that only the items that fail get the error. For k bad ones of n, up to about 2·k·log2(n) calls more.

    Raises:
        SettingsError: a bound is out of its bounds.
    """

    def __init__(
        self,
        fn: Callable[[list[T]], Sequence[R | Exception]],
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
    ) -> None:
        if inspect.iscoroutinefunction(fn):
            raise UsageError(f"{fn!r} is async, and a Batcher calls it without a loop", fix="use AsyncBatcher")
        self._fn = fn
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
        self._begin_empty()
        drop_after_fork(self)

    def _begin_empty(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # there is room, or rest
        self._line: Line[OsThreadCall[T, R]] = Line(self._limits)
        self._under_way: list[Batch[T, R]] = []
        self._own = OwnThreads(self._limits.in_flight_max + 1)  # one more, to keep the time
        self._keeping_time = False
        self._closing = threading.Event()  # wakes the one that keeps the time

    def drop_after_fork(self) -> None:
        """Begin anew in a forked child: the callers, and who runs their batches, are OS threads of the parent."""
        self._begin_empty()

    # ------------------------------------------------------------ calling

    def __call__(self, item: T) -> R:
        """Return the result of this item; blocks the OS thread until its batch is over.

        Raises:
            BatcherClosed: it is closed, or closing took longer than it was given.
            BatcherFull: `waiting_max` items wait and `when_full` is "error".
            BatchFailed: the batch ended without an answer for this item.
            UsageError: on an event loop, or from inside `fn`, which would wait for itself.
            Exception: what `fn` raised, or returned in this place.
        """
        self._check_caller()
        call: OsThreadCall[T, R] = OsThreadCall(item, self._limits.size(item))
        try:
            with self._lock:
                if self._raises_when_full:
                    self._check_room()
                self._join(call)
                begun = self._begin(call)
                if call.batch is None:
                    call.gate = threading.Lock()
                    call.gate.acquire()
            self._follow_up(begun)
            while call.answer is None and call.batch is None and call.gate is not None:
                call.gate.acquire()
            if call.batch is not None and call.answer is None:
                self._run(call.batch)
            elif call.batch is not None:  # close() has given up on it before we could begin
                self._follow_up(self._over(call.batch, [each.answer for each in call.batch], None, 0))
        except BaseException:
            self._give_up(call)
            raise
        return call.answer.get()  # type: ignore[union-attr] # its batch is over

    def submit(self, item: T, *, timeout_s: float | None = None) -> Future[R]:
        """Return a `Future` of the result; an OS thread of the batcher runs the batch. Cancelled in time, it leaves.

        Args:
            timeout_s: how long to wait for room; None: as long as it takes.

        Raises:
            BatcherClosed: it is closed.
            BatcherFull: there was no room in time; at once if `when_full` is "error", and on an event loop.
        """
        call: OsThreadCall[T, R] = OsThreadCall(item, self._limits.size(item))
        call.future = future = Future[R]()
        future.add_done_callback(partial(self._cancelled, call))
        may_wait = not (self._raises_when_full or in_event_loop() or INSIDE.get() is self)
        with self._lock:
            if may_wait:
                self._changed.wait_for(lambda: not self._line.full or self._line.closing, timeout_s)
            self._check_room()
            self._join(call)
            begun = self._begin(None)
        self._follow_up(begun)
        return future

    def statistics(self) -> BatchStatistics:
        """Return what it has done so far."""
        with self._lock:
            return self._line.statistics()

    def _check_caller(self) -> None:
        if in_event_loop():
            raise UsageError(
                "a Batcher was called on an event loop",
                why="it would block every other coroutine of the loop until the batch is over",
                fix="use AsyncBatcher, or `await asyncio.wrap_future(batcher.submit(item))`",
            )
        self._check_inside("called")

    def _check_inside(self, did: str) -> None:
        if INSIDE.get() is self:
            raise UsageError(f"a batch function {did} its own Batcher", why="the one would wait for the other")

    def _check_room(self) -> None:
        if self._line.full and not self._line.closing:
            raise BatcherFull(self._limits.waiting_max or 0)

    def _join(self, call: OsThreadCall[T, R]) -> None:
        if self._line.closing:
            raise BatcherClosed("the batcher is closed")
        self._line.add(call)

    # ------------------------------------------------------------ beginning, running and ending batches

    def _begin(self, here: OsThreadCall[T, R] | None) -> Begun[T, R]:
        """Begin what is due and say who runs it; the caller holds the lock, and calls `_follow_up` after it."""
        begun: Begun[T, R] = Begun([], keep_time=False)
        now_s = monotonic_s()
        while (why := self._line.due(now_s)) is not None:
            taken = self._line.take(why, now_s)
            batch = [call for call in taken if starts(call)]
            self._line.begun_without(why, len(taken) - len(batch), nobody_left=not batch)
            if batch:
                self._lead(batch, here, begun)
            if self._limits.waiting_max is not None:
                self._changed.notify_all()
        if self._line.next_s() is not None and not self._keeping_time:
            self._keeping_time = True
            begun = begun._replace(keep_time=True)
        return begun

    def _lead(self, batch: Batch[T, R], here: OsThreadCall[T, R] | None, begun: Begun[T, R]) -> None:
        """Find who runs a batch: the caller that is awake, else the first that waits, else an OS thread of our own."""
        waiting = [call for call in batch if call.future is None and call.answer is None and not call.gone]
        leader = here if here in waiting else next(iter(waiting), None)
        if leader is None:
            begun.unled.append(batch)
        else:
            leader.batch = batch
            if leader.gate is not None:
                leader.gate.release()  # with the lock held: no interrupt of ours comes between the two
        self._under_way.append(batch)  # last: an interrupt before this leaves no batch that nobody runs

    def _follow_up(self, begun: Begun[T, R], *, serving: bool = False) -> Batch[T, R] | None:
        """Do what `_begin` found; the lock is free. Return a batch to run, if `serving` and there is one."""
        mine = begun.unled.pop(0) if serving and begun.unled else None
        for batch in begun.unled:
            self._own.start(self._serve, batch)
        if begun.keep_time:
            self._own.start(self._keep_time)
        return mine

    def _run(self, batch: Batch[T, R], *, serving: bool = False) -> Batch[T, R] | None:
        """Run a batch in this OS thread; return the next one, if `serving` and nobody else is there to run it."""
        answers: list[Answer[R] | None] = [None] * len(batch)
        stop: BaseException | None = None
        splits = 0
        try:
            try:
                splits = self._call_function(batch, answers) - 1
            except BaseException as error:  # an exit, or an interrupt of the caller whose turn it was
                stop = error
                if not serving:  # else all who wait have it as the cause of theirs
                    raise
        finally:
            begun = self._over(batch, answers, stop, splits)
            mine = self._follow_up(begun, serving=serving)
        return mine

    def _call_function(self, batch: Batch[T, R], answers: list[Answer[R] | None]) -> int:
        """Return how many calls it took."""
        flow = answering([call.item for call in batch], answers, split=self._split)
        calls = 0
        try:
            part = next(flow)
            while True:
                calls += 1
                try:
                    results = self._context.copy().run(self._fn, part)
                except Exception as error:  # noqa: BLE001 - the flow makes answers of it
                    part = flow.throw(error)
                else:
                    part = flow.send(results)
        except StopIteration:
            return calls

    def _over(
        self, batch: Batch[T, R], answers: list[Answer[R] | None], stop: BaseException | None, splits: int
    ) -> Begun[T, R]:
        """End a batch, hand out its answers, and begin what is due now."""
        fill_in(answers, stop or RuntimeError("the batch was interrupted"))
        with self._lock:
            self._under_way = [other for other in self._under_way if other is not batch]
            self._line.under_way = len(self._under_way)
            self._line.splits += splits
            begun = self._begin(None)
            futures = self._settle(batch, answers)
            if self._line.at_rest:
                self._changed.notify_all()
        for future, answer in futures:
            hand(future, answer)
        return begun

    def _settle(self, batch: Batch[T, R], answers: Sequence[Answer[R] | None]) -> list[tuple[Future[R], Answer[R]]]:
        """Give each caller of a batch its answer, once, and wake it; futures are for the caller to hand it to."""
        futures = []
        for call, answer in zip(batch, answers, strict=True):
            if call.answer is None and answer is not None:
                call.answer = answer
                self._line.failed += answer.error is not None
                if call.future is not None:
                    futures.append((call.future, answer))
                    call.future = None  # it holds the call by `_cancelled`: no cycle
                elif call.gate is not None and call.batch is None and not call.gone:
                    call.gate.release()
        return futures

    def _give_up(self, call: OsThreadCall[T, R]) -> None:
        """Let a caller go that was interrupted; who has no answer of the batch it was to run gets one by somebody else."""
        with self._lock:
            call.gone = True
            begun: Begun[T, R] = Begun([], keep_time=False)
            if not self._line.remove(call) and call.batch is not None:
                batch, call.batch = call.batch, None
                self._under_way = [other for other in self._under_way if other is not batch]
                if rest := [other for other in batch if other is not call and other.answer is None]:
                    self._lead(rest, None, begun)
            self._line.under_way = len(self._under_way)  # the interrupt may have come between the two
            more = self._begin(None)
            begun = Begun(begun.unled + more.unled, more.keep_time)
            self._changed.notify_all()
        self._follow_up(begun)

    def _cancelled(self, call: OsThreadCall[T, R], future: Future[R]) -> None:
        if future.cancelled():
            with self._lock:
                self._line.remove(call)
                self._changed.notify_all()

    # ------------------------------------------------------------ OS threads of our own

    def _serve(self, batch: Batch[T, R] | None) -> None:
        while batch is not None:
            batch = self._run(batch, serving=True)

    def _keep_time(self) -> None:
        """Begin batches by age for as long as something waits that is not due otherwise."""
        while True:
            with self._lock:
                begun = self._begin(None)
                until_s = self._line.next_s()
                self._keeping_time = until_s is not None
            self._follow_up(begun)
            if until_s is None:
                return
            self._closing.wait(max(0.0, until_s - monotonic_s()))

    # ------------------------------------------------------------ the end

    def close(self, timeout_s: float | None = None) -> bool:
        """Take nothing more, run what waits at once, and wait for it. Closing again waits again.

        Args:
            timeout_s: seconds; what has no answer by then gets `BatcherClosed`, also if `fn` still has it. An OS thread
                inside `fn` stays there until it comes back.

        Returns:
            Whether everything was answered by `fn`.

        Raises:
            UsageError: from inside `fn`.
        """
        self._check_inside("closed")
        with self._lock:
            self._line.closing = True
            self._closing.set()
            begun = self._begin(None)
            self._changed.notify_all()
        self._follow_up(begun)
        with self._lock:
            drained = self._changed.wait_for(lambda: self._line.at_rest, timeout_s)
            left = [] if drained else [*self._line.waiting, *(call for batch in self._under_way for call in batch)]
            self._line.waiting.clear()
            why = f"the function had not come back after {timeout_s} s"
            given_up: list[Answer[R] | None] = [
                Answer(None, BatcherClosed("the batcher was closed before this item had an answer", why=why))
                for _ in left
            ]
            futures = self._settle(left, given_up)
        for future, answer in futures:
            hand(future, answer)
        self._own.let_end()
        return drained

    def __enter__(self) -> Batcher[T, R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

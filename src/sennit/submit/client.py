"""The client: calls become specs, specs go to the store, results come back. Starts no workers.

A client works the same in a script, in an async program, in a notebook cell and inside a body; only the waiting
differs: where an event loop runs in this OS thread, nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec

from sennit.errors import ResultTimeout, SennitError, SettingsError, TaskCancelled, TaskFailed, UsageError
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.route import route_words
from sennit.model.settings import Settings
from sennit.model.task import ErrorInfo, Outcome, Ref, TaskSpec, TaskView, WorkerInfo
from sennit.store.protocol import Store
from sennit.submit.context import current
from sennit.submit.entrance import Entrance
from sennit.submit.handle import Handle
from sennit.submit.options import Options
from sennit.submit.registry import Call, Handler
from sennit.submit.talk import refuse_own_thread
from sennit.sync.ack import Ack, in_event_loop
from sennit.sync.clock import monotonic_s
from sennit.sync.pending import run, run_blocking

if TYPE_CHECKING:
    import sqlite3

    from sennit.model.admission import OnFull

_log = logging.getLogger("sennit")

T = TypeVar("T")
U = TypeVar("U")


class SubmitsInTransaction(Protocol):
    """A store that can submit in a transaction of the caller."""

    def submit_in(self, connection: sqlite3.Connection, specs: Sequence[TaskSpec]) -> list[int]:
        """Store `specs` with the caller's commit."""


class Client:
    """Hands in and waits, for one store.

    Args:
        store: returns the open store; called as late as the first use.
        works: True when this very process serves a queue, so nobody needs to be told that no worker does.
    """

    def __init__(self, store: Callable[[], Store], settings: Settings, works: Callable[[str], bool]) -> None:
        self._store = store
        self.settings = settings
        self._works = works
        self._entrance = Entrance()

    # ------------------------------------------------------------ handing in

    def submit_calls(self, calls: Iterable[Call]) -> list[Handle[Any]]:
        """Hand in several calls, all or none; children when called inside a body, and those never wait for room.

        More than `queue_max` that may wait for room go in in parts, in order, each all or none; if one is refused, those
        after it are too.

        Raises:
            QueueFull: no room within `admission_timeout_s`, for each part anew (in async code: told by the handles).
        """
        with _no_cycle_search():
            calls = list(calls)
            if not calls:
                return []
            store, attempt = self._store(), current()
            specs = self._specs(calls, store.take_ids(len(calls)))
            if attempt is not None:
                for spec in specs:
                    attempt.adopt(spec)
                return self._handles(calls, specs, None)
            if not self.settings.queue_max and not self._entrance.waiting:
                stored = store.submit(specs)
                if not in_event_loop():
                    stored.result()
                return self._handles(calls, specs, stored)
        # Outside of it: this may take as long as a queue is full.
        parts = self._entrance.submit(store, specs, self.settings.admission_timeout_s)
        acks = chain.from_iterable(repeat(ack, n) for n, ack in parts)
        return [self._handle(call, spec, ack) for call, spec, ack in zip(calls, specs, acks, strict=True)]

    def submit_in(self, connection: sqlite3.Connection, call: Call) -> Handle[Any]:
        """Hand in one call as part of the caller's own transaction on the same database; it cannot wait for room in it.

        Raises:
            QueueFull, ThreadBusy: as the options say; `block` is `reject` here.
            UsageError: the store is not SQLite, or the connection is of another database.
        """
        store = self._store()
        if not hasattr(store, "submit_in"):
            raise UsageError(f"submit_in needs a SQLite store, and this is {store.url}")
        # No id from the store's blocks: a new block is a write, which would wait for the caller's transaction.
        specs = self._specs([call], [0])
        cast("SubmitsInTransaction", store).submit_in(connection, specs)
        return self._handle(call, specs[0], None)

    def specs(self, calls: Sequence[Call]) -> list[TaskSpec]:
        """Return what would be handed in, for schedules: their runs are few, and never find a queue full."""
        specs = self._specs(calls, self._store().take_ids(len(calls)))
        for spec in specs:
            if spec.entry is not None:
                spec.entry = msgspec.structs.replace(spec.entry, queue_max=0)
        return specs

    def _specs(self, calls: Sequence[Call], ids: Sequence[int]) -> list[TaskSpec]:
        """Return what is handed in. Calls of one handler with the same options differ in little: they are copies."""
        size_bytes_max = self.settings.payload_bytes_max
        specs: list[TaskSpec] = []
        handler, options, pattern = None, None, None
        for call, task_id in zip(calls, ids, strict=True):
            if call.options is not options or call.handler is not handler or pattern is None:
                handler, options = call.handler, call.options
                pattern = self._pattern(handler, options)
            payload, parents = call.handler.codec.encode(call.args, call.kwargs, size_bytes_max)
            spec = copy(pattern)
            spec.ref, spec.payload = Ref(task_id), payload
            if call.options.cache_us:
                spec.entry = _with_key(spec.entry, call, parents)
            for handle in call.options.after:
                if handle.ref not in parents:
                    parents.append(handle.ref)
            if parents:
                spec.parents = tuple(parents)
            specs.append(spec)
        return specs

    def _pattern(self, handler: Handler, options: Options) -> TaskSpec:
        settings = self.settings
        return TaskSpec(
            ref=Ref(0), handler=handler.name, queue=options.queue, payload=b"", priority=options.priority,
            on_parent_failed=options.on_parent_failed, thread_id=options.thread_id, key=options.key,
            on_conflict=options.on_conflict, delay_us=options.delay_us if options.at is None else _us_until(options.at),
            queue_timeout_us=options.queue_timeout_us, deadline_us=options.deadline_us,
            crashes_max=options.crashes_max or settings.crashes_max, options=options.overrides, provider=options.provider,
            route=options.route(settings.version),
            entry=options.entry(queue_max=settings.queue_max, on_full=cast("OnFull", settings.on_full)),
        )  # fmt: skip

    def _handles(self, calls: Sequence[Call], specs: Sequence[TaskSpec], stored: Ack[Any] | None) -> list[Handle[Any]]:
        return [self._handle(call, spec, stored) for call, spec in zip(calls, specs, strict=True)]

    def _handle(self, call: Call, spec: TaskSpec, stored: Ack[Any] | None) -> Handle[Any]:
        return Handle(self, spec.ref, spec.handler, spec.queue, stored, call.handler.codec.decode_result)

    def handle_of(self, task_id: int, handler: Handler | None) -> Handle[Any]:
        """Return a handle for a task by its id; without a handler its result is plain JSON."""
        decode = msgspec.json.decode if handler is None else handler.codec.decode_result
        name, queue = ("", "") if handler is None else (handler.name, handler.options.queue)
        return Handle(self, Ref(task_id), name, queue, None, decode)

    # ------------------------------------------------------------ waiting

    async def wait_for(self, handle: Handle[Any]) -> Outcome:
        """Return how the task ended. Inside a body the slot is free meanwhile."""
        return (await self.wait_for_all([handle]))[0]

    async def wait_for_all(self, handles: Sequence[Handle[Any]]) -> list[Outcome]:
        """Return how several tasks ended, in order; all are watched from the start."""
        attempt = current()
        if attempt is not None:
            flushed = attempt.flush()
            if flushed is not None:
                await flushed
        for handle in handles:
            await handle.stored()
        store = self._store()
        watched = [store.watch(handle.id) for handle in handles]
        if all(ack.done for ack in watched):
            return [await ack for ack in watched]
        await run(refuse_own_thread(attempt, store, handles, watched))
        notice = self._notice_later(handles[0])
        if attempt is not None:
            attempt.begin_wait()
        try:
            outcomes = [await ack for ack in watched]
        finally:
            if attempt is not None:
                attempt.end_wait()
            if notice is not None:
                notice.cancel()
        if attempt is not None:
            await run(attempt.go_on())
        return outcomes

    def _notice_later(self, handle: Handle[Any]) -> asyncio.TimerHandle | None:
        if self._works(handle.queue):
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(self.settings.no_worker_notice_s, self._notice, handle)

    def wait_for_blocking(self, handles: Sequence[Handle[Any]], timeout_s: float | None) -> list[Outcome]:
        """The same for sync code; `timeout_s` is for all of them together."""
        if in_event_loop():
            raise UsageError(
                "result() was called inside a running event loop",
                why="it would block every other coroutine of this loop",
                fix="write `await handle` instead of `handle.result()`",
            )
        attempt = current()
        flushed = None if attempt is None else attempt.flush()
        if flushed is not None:
            flushed.wait()
        for handle in handles:
            submitted = handle.submitted()
            if submitted is not None:
                submitted.wait()
        store = self._store()
        watched = [store.watch(handle.id) for handle in handles]
        run_blocking(refuse_own_thread(attempt, store, handles, watched))
        waits = None if all(ack.done for ack in watched) else attempt
        notice_s = None if all(self._works(handle.queue) for handle in handles) else self.settings.no_worker_notice_s
        patience = _Patience(timeout_s, notice_s, self._notice)
        if waits is not None:
            waits.begin_wait()
        try:
            outcomes = [patience.wait(handle, ack) for handle, ack in zip(handles, watched, strict=True)]
        finally:
            if waits is not None:
                waits.end_wait()
        if waits is not None:
            run_blocking(waits.go_on())
        return outcomes

    def _notice(self, handle: Handle[Any]) -> None:
        """Say on the log when nobody serves the queue that somebody waits for."""
        store = self._store()

        def say(task: TaskView, workers: Sequence[WorkerInfo]) -> None:
            if task.state.live and not any(w.may_run(task.route, task.queue) for w in workers):
                needed = f" with {route_words(task.route)}" if task.route else ""
                _log.warning(
                    "task %d (%s) waits and no worker%s serves queue %r; start one: sennit worker MODULE:APP --db %s",
                    task.id, task.handler, needed, task.queue, store.url,
                )  # fmt: skip

        def looked(task: Ack[TaskView], workers: Ack[list[WorkerInfo]]) -> None:
            with suppress(SennitError):  # the store was closed meanwhile: whoever waits is told so
                say(task.wait(), workers.wait())

        task = store.task(handle.id)
        store.workers().add_done_callback(lambda workers: looked(task, workers))  # reads are answered in order

    def value_of(self, handle: Handle[Any], outcome: Outcome) -> Any:
        """Return the result, or raise what became of the task."""
        match outcome.state:
            case State.SUCCEEDED:
                return handle.decode(outcome.result or b"null")
            case State.CANCELLED:
                reason = outcome.error.message if outcome.error else ""
                raise TaskCancelled(f"task {handle.id} was cancelled", task_id=handle.id, why=reason)
            case _:
                error = outcome.error or ErrorInfo(kind="unknown")
                raise TaskFailed(
                    task_id=handle.id,
                    kind=error.kind,
                    message=error.message,
                    remote_traceback=error.traceback,
                    attempts=outcome.attempt,
                    fix=error.fix,
                )

    # ------------------------------------------------------------ the rest of a handle

    def cancel_task(self, handle: Handle[Any], reason: str) -> Ack[bool]:
        """Cancel one task; a child that was not stored yet is stored first, so that there is something to cancel."""
        attempt = current()
        if attempt is not None:
            attempt.flush()
        return self._once_stored(handle, lambda s: s.cancel([handle.id], reason=reason), lambda all_: all_[0])

    def view_of(self, handle: Handle[Any]) -> Ack[TaskView]:
        """Look at one task."""
        return self._once_stored(handle, lambda s: s.task(handle.id), lambda view: view)

    def position_of(self, handle: Handle[Any]) -> Ack[int | None]:
        """Return how many tasks are before one."""
        return self._once_stored(handle, lambda s: s.position(handle.id), lambda position: position)

    def invalidate(self, call: Call) -> Ack[int]:
        """Forget the cached result of a call."""
        key = call.handler.codec.key(call.args, call.kwargs)
        return self._store().invalidate(keys=[(call.handler.name, key)])

    def _once_stored(self, handle: Handle[Any], ask: Callable[[Store], Ack[T]], pick: Callable[[T], U]) -> Ack[U]:
        """Ask the store about a task, but not before it is stored: only then is its id final."""
        answer: Ack[U] = Ack()
        attempt = current()
        stored = (attempt.flush() if attempt is not None else None) or handle.submitted() or Ack.done_with(None)

        def asked(ack: Ack[T]) -> None:
            try:
                answer.resolve(pick(ack.wait()))
            except Exception as error:  # noqa: BLE001 - handed on to the waiter
                answer.reject(error)

        def is_stored(ack: Ack[Any]) -> None:
            try:
                ack.wait()
            except Exception as error:  # noqa: BLE001 - handed on to the waiter
                answer.reject(error)
            else:
                ask(self._store()).add_done_callback(asked)

        stored.add_done_callback(is_stored)
        return answer


def _with_key(entry: Entry | None, call: Call, parents: Sequence[Ref]) -> Entry:
    """Return the entry of a call whose result is cached, under the key of its arguments."""
    if parents:
        raise SettingsError(
            f"a call of {call.handler.name} has cache_s, and results of other tasks among its arguments",
            why="a cached result is found by the arguments, and those are not known yet",
            fix="call it with options(cache_s=0), or submit it when the results are there",
        )
    return msgspec.structs.replace(entry or Entry(), cache_key=call.handler.codec.key(call.args, call.kwargs))


def _us_until(at: datetime) -> int:
    return max(0, (at - datetime.now(UTC)) // timedelta(microseconds=1))


@contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Keep the cyclic garbage collector out of a submit.

    A fan-out makes objects by the hundred thousand, all of which stay, and the collector would walk them again and
    again: measured, half the time of a bulk submit. What is garbage is found by the first search after it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Patience:
    """How long a blocking wait goes on, and when it says that nobody works on what it waits for."""

    def __init__(self, timeout_s: float | None, notice_s: float | None, say: Callable[[Handle[Any]], None]) -> None:
        now_s = monotonic_s()
        self._until_s = None if timeout_s is None else now_s + timeout_s
        self._say_at_s = None if notice_s is None else now_s + notice_s
        self._say = say

    def wait(self, handle: Handle[Any], watched: Ack[Outcome]) -> Outcome:
        """Return the outcome.

        Raises:
            ResultTimeout: the time is up.
        """
        while True:
            now_s = monotonic_s()
            if self._say_at_s is not None and now_s >= self._say_at_s and not watched.done:
                self._say_at_s = None
                self._say(handle)
            if self._until_s is not None and now_s >= self._until_s and not watched.done:
                raise ResultTimeout(
                    f"task {handle.id} ({handle.handler}) has not ended in time",
                    task_id=handle.id,
                    fix="it goes on; ask again, or cancel it",
                )
            moments_s = [at_s for at_s in (self._until_s, self._say_at_s) if at_s is not None]
            try:
                return watched.wait(max(0.0, min(moments_s) - now_s) if moments_s else None)
            except TimeoutError:
                if watched.done:
                    return watched.wait()

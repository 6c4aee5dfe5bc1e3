"""The half of the simulator that asyncio sees: its contract, on virtual time, in an order drawn from a seed.

    task steps ready:  a  b  c        ┐
    lanes of callbacks: main, w-1 …   ├─ one drawn at random, run; nothing ready: jump to the next deadline
    timers (a heap)                   ┘

Why this order is one that a real loop could show is argued in `simloop`, which adds processes and faults.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import heapq
import math
import sys
import threading
import weakref
from asyncio.log import logger
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast

from sennit.errors import Deadlock, StepLimit, UnhandledError, UsageError
from sennit.testing.clock import EPOCH_US
from sennit.testing.simparts import (
    PROCESS,
    Process,
    SimFuture,
    SimHandle,
    SimTask,
    SimTimer,
    callback_name,
    complete,
    has_unseen_error,
    raise_unseen,
    unwind_all,
    waiting,
)
from sennit.testing.trace import Step, Tape

__all__ = ["MAIN", "STEP_LIMIT", "SeededLoop"]

MAIN: Final = "main"
"""The process of everything that was not spawned inside `SimLoop.process`; it cannot be killed."""

STEP_LIMIT: Final = 100_000

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_Context = dict[str, Any]
_ExceptionHandler = Callable[[asyncio.AbstractEventLoop, _Context], object]


if TYPE_CHECKING:
    # The type stubs call what AbstractEventLoop leaves out "abstract", so that nobody could make a SimLoop. At run time
    # those methods (sockets, signals, child processes) raise NotImplementedError, which is the answer we want.
    _Loop = asyncio.BaseEventLoop
else:
    _Loop = asyncio.AbstractEventLoop


class SeededLoop(_Loop):
    """asyncio's contract without sockets, signals or OS threads; `run_in_executor` runs the body as one step.

    Args:
        seed: fixes the whole run.
        step_limit: steps until `StepLimit`; a loop that polls would never end, since time stands still for it.
        stall_probability: chance, per step, that time jumps to the next timer although something could run.
        stall_s_max: the longest such jump, in seconds.
        on_step: told every step and event just before it happens.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        step_limit: int = STEP_LIMIT,
        stall_probability: float = 0.0,
        stall_s_max: float = 60.0,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.seed = seed
        self.steps = 0
        self._random = Random(seed)
        self._step_limit = step_limit
        self._stall_probability = stall_probability
        self._stall_s_max = stall_s_max
        self._time_s = 0.0
        self._clock_offset_us = EPOCH_US
        self._serial = 0
        self._main = Process(MAIN)
        self._processes = {MAIN: self._main}
        self._ready: list[SimHandle | Process] = []
        self._timers: list[tuple[float, float, int, SimTimer]] = []  # deadline, tie-break by chance, serial, timer
        self._tasks: dict[int, SimTask] = {}  # all that are not done, the killed ones too, by serial
        self._asyncgens: dict[int, tuple[weakref.ref[AsyncGenerator[Any, Any]], Process]] = {}  # by id()
        self._tape = Tape(on_step)
        self._failed: list[SimTask] = []  # ended by an error that perhaps nobody will look at
        self._unhandled: list[_Context] = []
        self._exception_handler: _ExceptionHandler | None = None
        self._debug = False
        self._closed = False
        self._os_thread_id: int | None = None  # of the running loop
        self._guests: set[int] = set()  # OS threads that run only while the loop's own waits for them

    # ------------------------------------------------------------ time

    def time(self) -> float:
        """Return virtual seconds since the loop was made; never goes back."""
        return self._time_s

    def now_us(self) -> int:
        """Return the virtual wall clock, microseconds since the Unix epoch; `step_clock` may set it back."""
        return self._clock_offset_us + round(self._time_s * 1_000_000)

    def _advance(self, within_s: float = math.inf) -> bool:
        """Go to the next deadline and make its timers due; False if there is none within this many seconds."""
        timers = self._timers
        while timers and (timers[0][3].cancelled() or not timers[0][3].process.alive):
            heapq.heappop(timers)
        if not timers or timers[0][0] > self._time_s + within_s:
            return False
        self._time_s = timers[0][0]
        while timers and timers[0][0] <= self._time_s:
            self._join_lane(heapq.heappop(timers)[3])
        return True

    def trace(self) -> tuple[str, ...]:
        """Return the last 60 steps and events, oldest first."""
        return self._tape.lines()

    # ------------------------------------------------------------ callbacks and timers

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Schedule a callback; those of one process run in the order they came, tasks between them in any."""
        self._check_closed()
        owner = getattr(callback, "__self__", None)
        if type(owner) is SimTask:
            process = owner.process
            handle = SimHandle(callback, args, self, context, process, owner)
            if process.alive:
                (process.parked if process.frozen else self._ready).append(handle)
        else:
            handle = SimHandle(callback, args, self, context, self._process_of(context), None)
            self._join_lane(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Do as `call_soon`.

        Raises:
            UsageError: called from another OS thread, whose timing no seed decides.
        """
        if self._os_thread_id not in (None, threading.get_ident()) and threading.get_ident() not in self._guests:
            raise UsageError(
                "a simulation has one OS thread, and another one called it",
                fix="replace the pool by run_in_executor, which the simulation runs as a step",
            )
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback `delay` virtual seconds from now."""
        return self.call_at(self._time_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback at `time() == when`; at once if that has passed."""
        self._check_closed()
        timer = SimTimer(when, callback, args, self, context, self._process_of(context))
        if when <= self._time_s:
            self._join_lane(timer)
        else:
            self._serial += 1
            heapq.heappush(self._timers, (when, self._random.random(), self._serial, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio.TimerHandle.cancel; the heap drops cancelled timers when they come up."""

    def _process_of(self, context: contextvars.Context | None) -> Process:
        if context is None:
            return PROCESS.get(self._main)
        return context.get(PROCESS, self._main)

    def _join_lane(self, handle: SimHandle | SimTimer) -> None:
        process = handle.process
        if process.alive and not handle.cancelled():
            if not process.callbacks:
                (process.parked if process.frozen else self._ready).append(process)
            process.callbacks.append(handle)

    # ------------------------------------------------------------ tasks and futures

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future that hashes by serial number."""
        self._serial += 1
        return SimFuture(loop=self, serial=self._serial, process=PROCESS.get(self._main))

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[_T]:
        """Start a task of the current process (that of `context`, if given); unnamed ones are `task-<serial>`."""
        self._check_closed()
        self._serial = serial = self._serial + 1
        task = SimTask(
            coro,
            loop=self,
            name=f"task-{serial}" if name is None else str(name),
            context=contextvars.copy_context() if context is None else context,
            serial=serial,
            process=self._process_of(context),
        )
        self._tasks[serial] = task
        return cast("asyncio.Task[_T]", task)

    def run_in_executor(self, executor: Any, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:  # noqa: ARG002
        """Run a sync body as one later step of this process, whatever the executor."""
        future: asyncio.Future[_T] = self.create_future()
        self.call_soon(complete, future, functools.partial(func, *args))
        return future

    # ------------------------------------------------------------ running

    def run_until_complete(self, future: Generator[Any, None, _T] | Awaitable[_T]) -> _T:
        """Run until this is done and return its result; other tasks stay where they are.

        A task that has failed and that nobody has awaited by then counts as unhandled.

        Raises:
            Deadlock, StepLimit, UnhandledError: the simulation found that; else whatever the future raises.
        """
        if asyncio._get_running_loop() is not None:  # noqa: SLF001  # documented for loops
            raise RuntimeError("Cannot run the event loop while another loop is running")
        main = asyncio.ensure_future(cast("Awaitable[_T]", future), loop=self)
        hooks, collects = sys.get_asyncgen_hooks(), gc.isenabled()
        gc.disable()  # a collection in mid-run, and the finalizers it calls, would not be part of the seed
        sys.set_asyncgen_hooks(firstiter=self._asyncgen_started, finalizer=self._asyncgen_dropped)
        self._os_thread_id = threading.get_ident()
        asyncio._set_running_loop(self)  # noqa: SLF001
        try:
            self._run_until_done(main)
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001
            self._os_thread_id = None
            sys.set_asyncgen_hooks(*hooks)
            if collects:
                gc.enable()
        result = main.result()
        self._raise_unhandled()
        return result

    def _run_until_done(self, main: asyncio.Future[Any]) -> None:
        while not main.done():
            if self._ready:
                if self.steps >= self._step_limit:
                    raise StepLimit(self._step_limit)
                if self._stall_probability and self._random.random() < self._stall_probability:
                    self._advance(within_s=self._stall_s_max)
                self._step()
            elif not self._advance():
                self._raise_unhandled()  # a task that failed unseen is why the others wait for ever
                raise Deadlock(tuple(waiting(self._tasks.values())))
            if self._unhandled:
                self._raise_unhandled()

    def _step(self) -> None:
        ready = self._ready
        at = int(self._random.random() * len(ready))
        entry, ready[at] = ready[at], ready[-1]
        ready.pop()
        if isinstance(entry, Process):
            handle: SimHandle | SimTimer = entry.callbacks.popleft()
            if entry.callbacks:
                ready.append(entry)
        else:
            handle = entry
        process, task = handle.process, handle.task
        if handle.cancelled() or not self._may_step(process):
            return
        self.steps += 1
        process.steps += 1
        if task is None:
            self._tape.add(Step(self._time_s, process.name, "", callback_name(handle)))
        else:
            self._tape.add_task(self._time_s, process.name, task)
        handle._run()  # noqa: SLF001  # asyncio's own: runs in its context, reports what it raises
        if task is not None and task.done():
            self._tasks.pop(task.serial, None)
            if has_unseen_error(task):
                self._failed.append(task)

    def _may_step(self, process: Process) -> bool:  # noqa: ARG002  # SimLoop injects crashes here
        return True

    def is_running(self) -> bool:
        """Return whether `run_until_complete` is under way."""
        return self._os_thread_id is not None

    # ------------------------------------------------------------ errors nobody awaits

    def call_exception_handler(self, context: _Context) -> None:
        """Hand an error that nobody awaits to the handler; one of a killed process is dropped.

        Without a handler it ends the run as `UnhandledError`: a simulation that logs its faults proves nothing.
        """
        source = context.get("handle") or context.get("task") or context.get("future")
        process = source.process if isinstance(source, (SimHandle, SimTimer, SimTask, SimFuture)) else self._main
        if process.alive:
            handler = self._exception_handler or SeededLoop.default_exception_handler
            handler(self, context)

    def default_exception_handler(self, context: _Context) -> None:
        """Keep the error for `UnhandledError`; log it if no run is under way, as asyncio does."""
        if self.is_running():
            self._unhandled.append(context)
        else:
            logger.error("%s: %r", context["message"], context.get("exception"))

    def set_exception_handler(self, handler: _ExceptionHandler | None) -> None:
        """Replace what happens to errors that nobody awaits; None for the default."""
        self._exception_handler = handler

    def get_exception_handler(self) -> _ExceptionHandler | None:
        """Return the handler set, or None."""
        return self._exception_handler

    def _raise_unhandled(self) -> None:
        """Raise what no one awaited: of callbacks after each step, of failed tasks when the main one is done."""
        if self._unhandled:
            context = self._unhandled.pop(0)
            error = context.get("exception")
            raise UnhandledError(f"{context['message']}: {error!r}", fix="handle the error in the callback") from error
        for task in self._failed:
            raise_unseen(task)

    # ------------------------------------------------------------ async generators

    def _asyncgen_started(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._asyncgens[id(generator)] = (weakref.ref(generator), PROCESS.get(self._main))

    def _asyncgen_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        # With a hook that does nothing Python drops a generator without unwinding it: right for the dead.
        _, process = self._asyncgens.pop(id(generator))
        if process.alive:
            context = contextvars.copy_context()
            context.run(PROCESS.set, process)
            self.create_task(generator.aclose(), context=context)

    async def shutdown_asyncgens(self) -> None:
        """Close the async generators of living processes that are still open."""
        known = [(reference(), process) for reference, process in self._asyncgens.values()]
        living = [generator for generator, process in known if generator is not None and process.alive]
        await asyncio.gather(*(generator.aclose() for generator in living))

    async def shutdown_default_executor(self) -> None:
        """Do nothing: `run_in_executor` has no OS threads here."""

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """End the simulated world: what still waits, killed or not, is unwound and reaches nothing any more."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        for process in [*self._processes.values(), self._main]:
            process.alive = False
        unwind_all(self._tasks, loop=self)
        self._failed.clear()
        self._ready.clear()
        self._timers.clear()
        self._closed = True

    def is_closed(self) -> bool:
        """Return whether `close` was called."""
        return self._closed

    def _check_closed(self) -> None:
        if self._closed:
            raise RuntimeError("Event loop is closed")

    def get_debug(self) -> bool:
        """Return whether asyncio's debug mode is on."""
        return self._debug

    def set_debug(self, enabled: bool) -> None:  # noqa: FBT001  # asyncio's signature
        """Turn asyncio's debug mode on or off (slower; handles know where they were made)."""
        self._debug = enabled

"""CPU-bound bodies run here: a few warm worker processes, one pipe each, and an honest word about every end.

    run(job) ──► idle child, or a new one, or a queue ──► Answer | Failure     the child stays warm
                                                     └──► end of the pipe      WorkerCrashed(exitcode)

A child is started by the fork server (a clean process without OS threads, so a fork is safe and takes milliseconds), or
spawned where there is none. Its parent never blocks on it: the pipe is an asyncio stream, the exit is a readable
descriptor. Stopping a body means killing its process: nothing else is sure to work, and the next job gets a fresh one.

Scripts must start their work under `if __name__ == "__main__":`, as with `multiprocessing`: children import the script.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import multiprocessing.util  # First: its exit hook must be registered before ours, the last one registered runs first.
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sennit.errors import BodyFailed, SettingsError, UsageError, WorkerCrashed
from sennit.execute.process_child import Answer, Failure, Request
from sennit.execute.process_handle import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.context import ForkServerContext, SpawnContext
    from pathlib import Path

__all__ = ["Job", "ProcessPool", "ProcessPoolStatistics", "to_error"]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One call for a worker process. Two jobs are never equal: the object itself is the handle for `kill`.

    Attributes:
        handler_ref: `module:qualname` of the function, or of an object whose `function` it is.
        payload: what the runner decodes.
    """

    handler_ref: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class ProcessPoolStatistics:
    """A snapshot; `answered` (returned or raised) and `crashed` count since the pool was made."""

    processes: int
    processes_idle: int
    processes_starting: int
    processes_max: int
    waiting: int
    running: int
    answered: int
    crashed: int


class ProcessPool:
    """Up to `processes_max` warm worker processes, started on demand. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        processes_max: int,
        runner: str = "sennit.execute.process_child:call_json",
        memory_bytes_max: int | None = None,
        preload: Sequence[str] = (),
        array_folder: Path | None = None,
    ) -> None:
        """Start with no process.

        Args:
            processes_max: how many jobs run at once.
            runner: `module:qualname` of `runner(function, payload) -> bytes`, called in the worker process.
            memory_bytes_max: limit of each process's address space; a body over it fails with MemoryError.
            preload: modules for the fork server to import once, so that children start with them. The fork server is
                one per program: this has no effect if it already runs, and replaces the program's own list.
            array_folder: where large numpy arrays of results go; None: inside the result.

        Raises:
            SettingsError: a bound is not positive.
        """
        if processes_max < 1 or (memory_bytes_max is not None and memory_bytes_max < 1):
            raise SettingsError(
                f"a pool of processes_max={processes_max}, memory_bytes_max={memory_bytes_max} cannot run anything",
                fix="use at least one process, and None or a positive number of bytes",
            )
        self.processes_max = processes_max
        self._runner = runner
        self._array_folder = "" if array_folder is None else str(array_folder)
        self._memory_bytes_max = memory_bytes_max
        self._context = _context(preload)
        self._children: set[ChildProcess] = set()
        self._dying: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []
        self._running: dict[Job, ChildProcess] = {}
        self._waiting: dict[Job, asyncio.Future[ChildProcess]] = {}
        self._starts: set[asyncio.Task[None]] = set()
        self._answered = 0
        self._crashed = 0
        self._closed = False
        atexit.register(self._end_children)

    async def run(self, job: Job) -> bytes:
        """Run `job` in a worker process and return what the runner returned.

        To cancel this coroutine is to `kill` the job.

        Raises:
            BodyFailed: the body raised; `original` is the exception if it can be pickled.
            WorkerCrashed: the process ended without an answer, or `kill` ended it.
            UsageError: the pool is closed.
            OSError: no process can be started.
        """
        if self._closed:
            raise UsageError("the process pool is closed", why="its owner is stopping", fix="run before close()")
        child = await self._acquire(job)
        self._running[job] = child
        try:
            reply = await child.ask(Request(job.handler_ref, job.payload, self._array_folder))
        except BaseException as error:
            self._crashed += isinstance(error, WorkerCrashed)
            self._discard(child)
            raise
        finally:
            del self._running[job]
        self._answered += 1
        self._release(child)
        if isinstance(reply, Answer):
            return reply.payload
        raise to_error(reply)

    def kill(self, job: Job) -> bool:
        """Stop `job` now: its process, and whatever it has started, is killed; `run` raises `WorkerCrashed`.

        Returns:
            False if the job is neither running nor waiting.
        """
        if (child := self._running.get(job)) is not None:
            child.kill(by_request=True)
            return True
        if (waiter := self._waiting.pop(job, None)) is not None and not waiter.done():
            waiter.set_exception(WorkerCrashed(None, by_request=True))
            return True
        return False

    def kill_all(self) -> None:
        """Kill every worker process, whatever it runs. Any OS thread may call this; the loop may be blocked."""
        for child in list(self._children):
            child.kill(by_request=True)

    async def close(self, *, grace_s: float = 2.0) -> None:
        """Kill what runs, let idle processes end by themselves, and return when all are gone.

        Args:
            grace_s: how long an idle process may take; user code in it may have left OS threads or exit hooks.
        """
        self._closed = True
        for job in (*self._running, *self._waiting):
            self.kill(job)
        await asyncio.gather(*self._starts, return_exceptions=True)
        children = self._children | self._dying
        for child in children:
            child.hang_up()
        if children:
            await asyncio.wait([child.exited for child in children], timeout=grace_s)
        for child in children:
            child.kill()
            await child.wait_closed()
        atexit.unregister(self._end_children)

    def in_line(self, job: Job) -> bool:
        """Return False: a job that waits for a process here waits for its own kind, and that is its own time."""
        del job
        return False

    def pids(self) -> list[int]:
        """Return the ids of the worker processes there are."""
        return [child.pid for child in self._children]

    def statistics(self) -> ProcessPoolStatistics:
        """Return the counts of this moment."""
        return ProcessPoolStatistics(
            processes=len(self._children),
            processes_idle=len(self._idle),
            processes_starting=len(self._starts),
            processes_max=self.processes_max,
            waiting=len(self._waiting),
            running=len(self._running),
            answered=self._answered,
            crashed=self._crashed,
        )

    # ------------------------------------------------------------ children come and go

    async def _acquire(self, job: Job) -> ChildProcess:
        if self._idle:
            return self._idle.pop()
        waiter: asyncio.Future[ChildProcess] = asyncio.get_running_loop().create_future()
        self._waiting[job] = waiter
        self._grow()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiting.pop(job, None)
            if not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())  # It was given a process in the moment it was cancelled.
            raise

    def _grow(self) -> None:
        """Start a process for every job that waits for none yet, as far as there is room."""
        while len(self._starts) < len(self._waiting) and len(self._children) + len(self._starts) < self.processes_max:
            start = asyncio.create_task(self._start(), name="sennit-start-worker-process")
            self._starts.add(start)

    async def _start(self) -> None:
        failure: Exception | None = None
        try:
            child = await ChildProcess.start(self._context, self._runner, self._memory_bytes_max, self._forget)
        except Exception as error:  # noqa: BLE001  it belongs to the job that waits for this process
            failure = error
        self._starts.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        if failure is None:
            self._children.add(child)
            self._release(child)
        elif (waiter := self._next_waiter()) is not None:
            waiter.set_exception(failure)
            self._grow()

    def _next_waiter(self) -> asyncio.Future[ChildProcess] | None:
        """Take out the job that has waited longest."""
        while self._waiting:
            waiter = self._waiting.pop(next(iter(self._waiting)))
            if not waiter.done():
                return waiter
        return None

    def _release(self, child: ChildProcess) -> None:
        """Give a free child to the job that has waited longest."""
        if self._closed or child.is_doomed:
            self._discard(child)
        elif (waiter := self._next_waiter()) is not None:
            waiter.set_result(child)
        else:
            self._idle.append(child)

    def _discard(self, child: ChildProcess) -> None:
        """Kill the child; whoever waits gets another."""
        child.kill()
        child.hang_up()
        self._children.discard(child)
        if not child.exited.done():
            self._dying.add(child)
        if not self._closed:
            self._grow()

    def _forget(self, child: ChildProcess) -> None:
        """The process of this child has ended, by our doing or not."""
        self._dying.discard(child)
        if child in self._idle:
            self._idle.remove(child)
            self._discard(child)

    def _end_children(self) -> None:
        """At the end of a program that did not close the pool: multiprocessing would wait for its processes for ever."""
        for child in self._children | self._dying:
            child.drop_after_fork()


def _context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(["__main__", *preload])
    return context


def to_error(failure: Failure) -> BodyFailed:
    """Return what a body raised in another process as an exception here."""
    original: BaseException | None = None
    if failure.pickled is not None:
        try:
            original = pickle.loads(failure.pickled)  # noqa: S301  from our own child, which has tried it
        except Exception:  # noqa: BLE001  its class cannot be made in this process; its text still tells
            original = None
    return BodyFailed(kind=failure.kind, message=failure.message, remote_traceback=failure.traceback, original=original)

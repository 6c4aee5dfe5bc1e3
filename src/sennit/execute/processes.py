"""CPU-bound bodies run here: a few warm worker processes and an honest word about every end.

    run(job) ──► free child, or a new one, or ahead into a busy one, or a line ──► Answer | Failure
                                                     └──► end of the process      WorkerCrashed(exitcode)

A child is started by the fork server (a clean process without OS threads, so a fork is safe and takes milliseconds), or
spawned where there is none. Its parent never blocks on it: the pipe is a transport of the loop, the exit is a readable
descriptor. Stopping a body means killing its process: nothing else is sure to work, and the next job gets a fresh one.

With `prefetch`, jobs are sent ahead to busy children, which then begin the next one without asking. What was sent ahead
and has not begun is never lost with its child and never stuck behind a long job: it is taken back, and goes first.

Scripts must start their work under `if __name__ == "__main__":`, as with `multiprocessing`: children import the script.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import multiprocessing.util  # First: its exit hook must be registered before ours, the last one registered runs first.
from dataclasses import replace
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Final, cast

from sennit.errors import SettingsError, UsageError, WorkerCrashed
from sennit.execute.process_child import Answer, Request, Terms
from sennit.execute.process_handle import Call, ChildProcess
from sennit.execute.process_job import Job, ProcessPoolStatistics, to_error
from sennit.execute.process_line import Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.context import ForkServerContext, SpawnContext
    from pathlib import Path

__all__ = ["Job", "ProcessPool", "ProcessPoolStatistics", "to_error"]

PREFETCH_MAX: Final = 64
"""More than this ahead of a child only makes its line longer."""

# A child that has computed for so long gets nothing ahead, and what it has goes to others. Sending ahead saves about
# 0.1 ms of round trip: from here on that is below 2 %, and a job behind a long one would wait for all of it.
_LONG_S: Final = 0.005

# How long a process that was replaced may take to end.
_RETIRE_GRACE_S: Final = 5.0


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
        prefetch: int = 0,
        recycle_tasks: int = 0,
        recycle_bytes: int = 0,
        nodes: Sequence[frozenset[int]] = (),
    ) -> None:
        """Start with no process.

        Args:
            processes_max: how many jobs run at once.
            runner: `module:qualname` of `runner(function, payload) -> bytes`, called in the worker process.
            memory_bytes_max: limit of each process's address space; a body over it fails with MemoryError.
            preload: modules for the fork server to import once, so that children start with them. The fork server is
                one per program: this has no effect if it already runs, or if the program has a list of its own.
            array_folder: where large numpy arrays of results go; None: inside the result.
            prefetch: how many jobs are sent ahead to a child that is busy, when none is free.
            recycle_tasks: a process is replaced after so many jobs; 0 is never.
            recycle_bytes: a process is replaced after a job that leaves it with more resident memory of its own; 0 is never.
            nodes: the cores of each NUMA node; with more than one, each process is pinned to one of them, in balance.

        Raises:
            SettingsError: a bound is not positive, or negative where 0 is off.
        """
        if processes_max < 1 or (memory_bytes_max is not None and memory_bytes_max < 1):
            raise SettingsError(
                f"a pool of processes_max={processes_max}, memory_bytes_max={memory_bytes_max} cannot run anything",
                fix="use at least one process, and None or a positive number of bytes",
            )
        if not 0 <= prefetch <= PREFETCH_MAX or recycle_tasks < 0 or recycle_bytes < 0:
            raise SettingsError(
                f"prefetch={prefetch}, recycle_tasks={recycle_tasks}, recycle_bytes={recycle_bytes} make no sense",
                fix=f"prefetch lies between 0 and {PREFETCH_MAX}; the others are 0 (never) or more",
            )
        self.processes_max = processes_max
        self._array_folder = "" if array_folder is None else str(array_folder)
        self._prefetch = prefetch
        self._terms = Terms(runner, memory_bytes_max or 0, recycle_tasks, recycle_bytes)
        self._nodes = tuple(nodes) if len(nodes) > 1 else (frozenset[int](),)
        self._on_nodes = [0] * len(self._nodes)  # how many processes are pinned to each
        self._context = _context(preload)
        self._children: set[ChildProcess] = set()
        self._dying: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []
        self._calls: dict[Job, Call] = {}
        self._waiting = Line()
        self._starts: set[asyncio.Task[None]] = set()
        self._answered = 0
        self._crashed = 0
        self._taken_back = 0
        self._recycled = 0
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
        request = Request(job.handler_ref, job.payload, self._array_folder, job.runner_ref)
        self._calls[job] = call = Call(request, asyncio.get_running_loop().create_future())
        self._waiting.add(call)
        self._dispatch()
        try:
            reply = await call.answer
        except asyncio.CancelledError:
            self.kill(job)
            raise
        finally:
            del self._calls[job]
        if isinstance(reply, Answer):
            return reply.payload
        raise to_error(reply)

    def kill(self, job: Job) -> bool:
        """Stop `job` now: its process, and whatever it has started, is killed; `run` raises `WorkerCrashed`.

        A job that has not begun is only taken out of the line. Other jobs are not touched: those that were sent ahead
        to the process of this one go on in another.

        Returns:
            False if the job neither runs nor waits: it has ended, its answer may still be on the way.
        """
        call = self._calls.get(job)
        if call is None or call.is_over:
            return False
        if call in self._waiting:
            self._waiting.remove(call)
            call.end(WorkerCrashed(None, by_request=True))
            return True
        child = cast("ChildProcess", call.child)
        back = child.take_back()  # Nothing begins there from here on, so what has begun is certain.
        if call in back:
            call.end(WorkerCrashed(None, by_request=True))
            child.give_back([other for other in back if other is not call])
            if not child.line:
                self._free(child)
                self._dispatch()
            return True
        if child.line[-1] is not call:  # A later one has begun: this one has answered.
            child.give_back(back)
            return False
        child.kill(by_request=True)
        self._to_front(back)
        self._dispatch()
        return True

    def interrupt(self, job: Job) -> bool:
        """Raise `AttemptCancelled` in the body of `job`, at its next Python instruction, so that it unwinds.

        Returns:
            False if it has not begun, or has ended: then nothing was done.
        """
        call = self._calls.get(job)
        if call is None or call.is_over or call in self._waiting:
            return False
        child = cast("ChildProcess", call.child)
        back = child.take_back()
        if call in back or child.line[-1] is not call:
            child.give_back(back)
            return False
        child.interrupt(call)
        self._to_front(back)
        self._dispatch()
        return True

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
        for job in list(self._calls):
            self.kill(job)
        for call in list(self._waiting):  # Sent ahead to a process that was killed for another.
            self._waiting.remove(call)
            call.end(WorkerCrashed(None, by_request=True))
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
        """Return whether a moved job waits for a process. A declared one waits for its own kind: that is its own time."""
        call = self._calls.get(job)
        return call is not None and bool(job.runner_ref) and call in self._waiting

    def pids(self) -> list[int]:
        """Return the ids of the worker processes there are."""
        return [child.pid for child in self._children]

    def statistics(self) -> ProcessPoolStatistics:
        """Return the counts of this moment."""
        sent = [len(child.line) for child in self._children | self._dying]
        return ProcessPoolStatistics(
            processes=len(self._children),
            processes_idle=len(self._idle),
            processes_starting=len(self._starts),
            processes_max=self.processes_max,
            waiting=len(self._waiting),
            running=sum(sent),
            answered=self._answered,
            crashed=self._crashed,
            ahead=sum(length - 1 for length in sent if length),
            taken_back=self._taken_back,
            recycled=self._recycled,
        )

    # ------------------------------------------------------------ who gets what

    def _dispatch(self) -> None:
        """Give what waits to free children, then ahead to busy ones, and start processes for the rest."""
        while self._waiting and (child := self._next_idle() or self._next_ahead()) is not None:
            child.send(self._waiting.pop())
        self._grow()

    def _next_idle(self) -> ChildProcess | None:
        while self._idle:
            child = self._idle.pop()
            if not child.is_doomed:  # By `kill_all`, from another OS thread: its end is on the way.
                return child
        return None

    def _next_ahead(self) -> ChildProcess | None:
        """Return the busy child with the shortest line that still gets one ahead."""
        if not self._prefetch or self._has_room():
            return None
        long_before_s = asyncio.get_running_loop().time() - _LONG_S
        able = [
            child
            for child in self._children
            if not child.is_doomed and 0 < len(child.line) <= self._prefetch and child.busy_since_s > long_before_s
        ]
        return min(able, key=lambda child: len(child.line), default=None)

    def answered(self, child: ChildProcess, *, is_last: bool) -> None:
        """A child has answered; it may have begun the next one already."""
        self._answered += 1
        if self._prefetch:
            self._free_hostages()
        if is_last:
            self._recycled += 1
            self._children.discard(child)
            self._dying.add(child)
            self._to_front(child.take_back())
            child.retire(_RETIRE_GRACE_S)
        elif not child.line:
            self._free(child)
        self._dispatch()

    def _free(self, child: ChildProcess) -> None:
        """A child has nothing to do. When nothing waits it gets what another has ahead, from the longest line."""
        if child.is_doomed:
            return
        if not self._waiting and self._prefetch:
            longest = max(self._children, key=lambda other: len(other.line))
            if len(longest.line) > 1:
                self._to_front(_ahead_of(longest))
        self._idle.append(child)

    def _free_hostages(self) -> None:
        """Take back what was sent ahead to children that turn out to run a long job."""
        long_before_s = asyncio.get_running_loop().time() - _LONG_S
        for child in self._children:
            if len(child.line) > 1 and child.busy_since_s < long_before_s:
                self._to_front(_ahead_of(child))

    def _to_front(self, calls: Iterable[Call]) -> None:
        """Calls that were sent ahead wait again, before those that never were."""
        for call in reversed(list(calls)):
            self._waiting.add_first(call)
            self._taken_back += 1

    # ------------------------------------------------------------ children come and go

    def _has_room(self) -> bool:
        return len(self._children) + len(self._starts) < self.processes_max

    def _grow(self) -> None:
        """Start a process for every job that waits for none yet, as far as there is room."""
        while len(self._starts) < len(self._waiting) and self._has_room() and not self._closed:
            start = asyncio.create_task(self._start(), name="sennit-start-worker-process")
            self._starts.add(start)

    async def _start(self) -> None:
        failure: Exception | None = None
        node = min(range(len(self._nodes)), key=self._load_of)
        self._on_nodes[node] += 1
        terms = replace(self._terms, cpus=self._nodes[node])
        try:
            child = await ChildProcess.start(self._context, terms, self, node=node)
        except Exception as error:  # noqa: BLE001  it belongs to the job that waits for this process
            failure = error
            if not isinstance(error, WorkerCrashed):  # Else `ended` was told.
                self._on_nodes[node] -= 1
        self._starts.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        if failure is None:
            self._children.add(child)
            if self._closed:
                child.hang_up()
            else:
                self._free(child)
        elif self._waiting:
            self._waiting.pop().end(failure)
        self._dispatch()

    def _load_of(self, node: int) -> float:
        """Return how many processes there are for each core of a node."""
        return self._on_nodes[node] / max(1, len(self._nodes[node]))

    def ended(self, child: ChildProcess, begun: list[Call], left: list[Call]) -> None:
        """A child is gone, by our doing or not."""
        self._on_nodes[child.node] -= 1
        self._children.discard(child)
        self._dying.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        for call in begun:
            self._crashed += 1
            call.end(WorkerCrashed(child.exited.result(), by_request=child.killed_by_request))
        if self._closed:
            for call in left:
                call.end(WorkerCrashed(None, by_request=True))
        else:
            self._to_front(left)
            self._dispatch()

    def _end_children(self) -> None:
        """At the end of a program that did not close the pool: multiprocessing would wait for its processes for ever."""
        for child in self._children | self._dying:
            child.drop_after_fork()


def _ahead_of(child: ChildProcess) -> list[Call]:
    """Take back what was sent ahead to a child, not what it begins next."""
    back = child.take_back()
    if back and not child.line:
        child.give_back(back[:1])
        return back[1:]
    return back


def _context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # The list is one per program, and cannot be asked for: only the one that Python begins with is replaced.
    if preload and getattr(forkserver._forkserver, "_preload_modules", None) == ["__main__"]:  # noqa: SLF001
        context.set_forkserver_preload(["__main__", *preload])
    return context

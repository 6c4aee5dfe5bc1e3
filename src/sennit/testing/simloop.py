"""An event loop whose time is virtual, whose order is drawn from a seed, and whose processes can be killed.

    loop = SimLoop(seed=7)
    with loop.process("worker-1"):                    # all that is spawned in here belongs to this process
        loop.create_task(worker.run())
    loop.crash_points("worker-1", 0.01)               # SIGKILL before one step in a hundred
    loop.run_until_complete(scenario())               # hours of leases and retries pass in milliseconds

*A step* is one turn of one task, from an await to the next: nothing else runs meanwhile, as on any asyncio loop.

**Order.** Stock asyncio runs ready handles first in, first out, so that it shows one schedule out of very many. Here the
next step is drawn at random, but only where a real run could differ: *which task* goes next is a matter of chance (of
network, load, another machine); the order of plain callbacks is not, `call_soon` documents it. So ready task steps are
shuffled freely (a task has at most one, its own order cannot break), while plain callbacks and due timers of one process
form one lane that stays first in, first out, and the lane as a whole is shuffled among the tasks. Timers of one
process run in the order of their deadlines; equal deadlines are a tie that either may win, for under virtual time "the
same instant" stands for "too close to tell". A callback that is a method of a task, as in
`call_soon(task.cancel)`, counts as that task's. Locks, queues, events, `TaskGroup` and `timeout` are asyncio's own and
need no more than this.

**Time** stands still while anything can run and then jumps to the next timer. `stall_probability` lets it jump although
something could run: a machine too slow for its own deadlines. `now_us()` is the wall clock, which `step_clock` sets.

**Processes** share memory here, so what crosses between them should be what also would outside: a store, an event that
stands for a signal. An `asyncio.Lock` that a killed process holds stays locked. `kill` is SIGKILL: no handle, timer,
`finally` or callback of that process runs again. Python cannot drop a suspended coroutine without unwinding it, so the
dead are kept until `close()` and unwound there: the loop is over then, whatever their `finally` blocks schedule is
dropped and what they raise is of no account. `freeze` is SIGSTOP: steps and timers pile up until `thaw`, time goes on.

**The same seed gives the same run**, if the code asks only the loop for time and its own `random.Random` for chance.
Tasks and futures of this loop hash by serial number, so that a set of them (`asyncio.wait`, `TaskGroup`) has the same
order in every run. A set of `str` has not, unless PYTHONHASHSEED is fixed: sort it.

Source: the idea of one seed for schedule and faults is FoundationDB's simulation and TigerBeetle's VOPR.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context

from sennit.errors import UsageError
from sennit.testing.seededloop import MAIN, STEP_LIMIT, SeededLoop
from sennit.testing.simparts import PROCESS, Process, owner_of
from sennit.testing.trace import Step

__all__ = ["SimLoop"]


class SimLoop(SeededLoop):
    """A seeded loop with processes to kill and freeze, and a wall clock to set; arguments as of `SeededLoop`."""

    def __init__(
        self,
        seed: int = 0,
        *,
        step_limit: int = STEP_LIMIT,
        stall_probability: float = 0.0,
        stall_s_max: float = 60.0,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        super().__init__(
            seed, step_limit=step_limit, stall_probability=stall_probability, stall_s_max=stall_s_max, on_step=on_step
        )
        self.before_step: Callable[[str, int], bool] | None = None
        """Asked with a process name and how many steps it has made; True kills it instead of making the next."""
        self._crash_probability: dict[str, float] = {}
        self._clock_watches: list[tuple[Callable[[], object], Context]] = []

    def step_clock(self, delta_us: int) -> None:
        """Set the wall clock forward or back, as an administrator or NTP would; timers do not notice."""
        self._clock_offset_us += delta_us
        self.note(f"the wall clock is set by {delta_us:+} us")
        for on_set, context in self._clock_watches:
            self.call_soon(on_set, context=context)

    def watch_clock(self, on_set: Callable[[], object]) -> Callable[[], None]:
        """Call `on_set` in this process whenever the wall clock was set, as the kernel tells it; return how to stop."""
        watch = (on_set, copy_context())
        self._clock_watches.append(watch)
        return lambda: self._clock_watches.remove(watch)

    @contextmanager
    def another_os_thread(self) -> Iterator[None]:
        """Let the calling OS thread use the loop; it must only run while the loop's own waits for it (`simpool`)."""
        self._guests.add(threading.get_ident())
        try:
            yield
        finally:
            self._guests.discard(threading.get_ident())

    def note(self, text: str, *, process: str = MAIN) -> None:
        """Add a line of your own to the trace."""
        self._tape.add(Step(self._time_s, process, "", text))

    @contextmanager
    def process(self, name: str) -> Iterator[None]:
        """Let tasks, callbacks and timers made in this block belong to the process `name`, and all they make in turn.

        A name that was killed starts anew. Only spawn in here: a task that awaits inside the block keeps its own
        process, but the timers it waits for would die with the other one.
        """
        process = self._processes.get(name)
        if process is None or not process.alive:
            process = self._processes[name] = Process(name)
        token = PROCESS.set(process)
        try:
            yield
        finally:
            PROCESS.reset(token)

    def kill(self, name: str) -> None:
        """End a process as SIGKILL does; one that kills itself still runs on to its next await.

        Raises:
            UsageError: no process of this name lives, or it is the main one.
        """
        process = self._living(name)
        if process is self._main:
            raise UsageError("the main process of a simulation cannot be killed", fix="spawn in loop.process(name)")
        self.note("killed", process=name)
        process.alive = False
        self._ready = [entry for entry in self._ready if owner_of(entry) is not process]
        for task in self._tasks.values():
            if task.process is process:
                asyncio.tasks._unregister_task(task)  # noqa: SLF001  # documented for loops: "Extending asyncio"
        for waiter in process.death_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def freeze(self, name: str) -> None:
        """Stop a process as SIGSTOP does; `UsageError` if none of this name lives."""
        process = self._living(name)
        if not process.frozen:
            self.note("frozen", process=name)
            process.frozen = True
            process.freezes += 1
            process.parked = [entry for entry in self._ready if owner_of(entry) is process]
            self._ready = [entry for entry in self._ready if owner_of(entry) is not process]

    def thaw(self, name: str) -> None:
        """Let a frozen process go on as SIGCONT does; `UsageError` if none of this name lives."""
        process = self._living(name)
        if process.frozen:
            self.note("thawed", process=name)
            process.frozen = False
            self._ready += process.parked
            process.parked = []

    def freezes(self, name: str) -> int:
        """Return how often this process was frozen so far: if that has not changed, it has not stood still."""
        return self._processes[name].freezes

    def is_alive(self, name: str) -> bool:
        """Return whether a process of this name was started and not killed since; frozen ones live."""
        process = self._processes.get(name)
        return process is not None and process.alive

    async def wait_killed(self, name: str) -> None:
        """Return when this process is killed, by whatever cause (as a pidfd tells); `UsageError` if it does not live."""
        waiter = self.create_future()
        self._living(name).death_waiters.append(waiter)
        await waiter

    def crash_points(self, name: str, probability: float) -> None:
        """Kill this process, and those that take its name later, before each of its steps with this probability."""
        self._crash_probability[name] = probability

    def _living(self, name: str) -> Process:
        process = self._processes.get(name)
        if process is None or not process.alive:
            raise UsageError(f"no process {name!r} lives in this simulation", why="it was not started, or killed")
        return process

    # ------------------------------------------------------------ crashes

    def _may_step(self, process: Process) -> bool:
        if process is self._main or not (self._crash_probability or self.before_step):
            return True
        probability = self._crash_probability.get(process.name, 0.0)
        crashes = probability > 0 and self._random.random() < probability
        if crashes or (self.before_step is not None and self.before_step(process.name, process.steps)):
            self.kill(process.name)
        return process.alive

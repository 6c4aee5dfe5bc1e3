"""The working half of `AdaptiveThreadPoolExecutor`: its OS threads, who of them sleeps, and who looks at the figures.

    submit ──► queue ──► a worker that is awake takes it, and calls the next one first if more is queued
                 │
                 └─ more work than `size` workers: one more keeps *watch*, the only timed sleeper, and only now
                                                        │ figures
    parked ◄── nothing to do, or more awake than size   └──────► KneeFinder ──► size

One worker is called at a time, and whoever comes calls the next before its own body: workers come as fast as bodies
block, and a burst of quick bodies does not wake a crowd. The one parked last is called first, so the others do get
idle; each sleeps once for `idle_s` and ends. The last `workers_min` sleep without a time limit.

OS threads refer to this core, never to the executor, so an executor that nobody holds is collected and its OS threads
end. One lock guards everything here; bodies, futures and waking are outside of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from functools import partial
from time import perf_counter, process_time
from typing import Any, Final

from sennit.execute.adaptive_queue import ItemQueue
from sennit.execute.adaptive_samples import Sampler
from sennit.execute.executor_parts import (
    Door,
    Parker,
    ThreadPoolBroken,
    WorkItem,
    initialize,
    settle_logged,
    start_os_thread,
)
from sennit.execute.knee import Figures, KneeFinder
from sennit.execute.workload import demand_s, run_queue_s
from sennit.sync.forks import drop_after_fork

__all__ = ["Core", "Worker"]

REOPEN_S: Final = 0.001  # After the queue ran dry: no new figures before that, or a slow submitter would pay for each.
WATCH_S: Final = 0.05


class Role(Enum):
    """What a worker was called for."""

    NONE = "none"
    WORK = "work"
    WATCH = "watch"


class Worker:
    """One OS thread. Its attributes are the core's."""

    __slots__ = ("called", "fresh", "idle_mark", "native_id", "os_thread", "parker", "role")

    def __init__(self) -> None:
        self.parker = Parker()
        self.role = Role.NONE
        self.fresh = True  # Its OS thread has not begun.
        self.called = False  # For work, and it has not woken up yet.
        self.os_thread: threading.Thread | None = None
        self.native_id = 0
        self.idle_mark = (0.0, 0.0)


class Core:
    """What the executor and its OS threads share. `_locked` in a name: the caller holds `lock`."""

    def __init__(
        self,
        *,
        name: str,
        knee: KneeFinder,
        sampler: Sampler,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        idle_s: float,
        down_at: float,
        threads_min: int,
    ) -> None:
        self.door = Door()
        self.knee = knee
        self.sampler = sampler
        self.lock = threading.Lock()
        self.ended = threading.Condition(self.lock)
        self.room = threading.Condition(self.lock)
        self.submitters = 0  # They wait for room.
        self.threads_min = threads_min
        self.queue = ItemQueue()
        self.workers: set[Worker] = set()
        self.threads = 0
        self.threads_peak = 0
        self.running = 0
        self.finished = 0
        self._name = name
        self._serial = 0
        self._initializer = initializer
        self._initargs = initargs
        self._idle_s = idle_s
        self._down_at = down_at
        self._size_initial = knee.size
        self._parked: list[Worker] = []
        self._calling = False  # Somebody was called for work and has not woken up yet.
        self._arriving = 0  # Called for work, and not at the queue yet: waking up, or in the initializer.
        self._watcher: Worker | None = None
        self._tick_at_s = 0.0
        self._demand_ended_s = 0.0
        self._busy_s = 0.0
        self._busy_since_s = perf_counter()
        drop_after_fork(self)

    # ------------------------------------------------------------ calling workers

    def next_call_locked(self) -> Worker | None:
        """Return who is to be woken or started for what is queued (`call`); None: nobody, or not yet."""
        if (self._calling and not self.knee.quiet) or self.queue.count <= self._arriving:
            return None
        if self.running < self.knee.size:
            self._set_running_locked(self.running + 1)
            converted = not self._parked and self._watcher is not None and self.threads >= self.knee.size_max
            worker = self._watcher if converted else None
            if worker is None:
                worker = self._appoint_locked()
            else:
                self._watcher = None
            worker.role = Role.WORK
            worker.called = self._calling = True
            self._arriving += 1
            return None if converted and worker.fresh else worker  # Who starts it is on the way already.
        if self._watcher is None and self.running < self.knee.size_max:
            self._watcher = worker = self._appoint_locked()
            worker.role = Role.WATCH
            return worker
        return None

    def _appoint_locked(self) -> Worker:
        if self._parked:
            return self._parked.pop()
        worker = Worker()
        self.workers.add(worker)
        self.threads += 1
        self.threads_peak = max(self.threads_peak, self.threads)
        return worker

    def call(self, worker: Worker) -> None:
        """Wake or start whom `next_call_locked` named; without the lock.

        Raises:
            RuntimeError: no OS thread can be started (a UsageError: the interpreter is exiting), and there is none.
        """
        if not worker.fresh:
            worker.parker.unpark()
            return
        self._serial += 1
        try:
            start_os_thread(
                partial(self.live, worker), name=f"{self._name}_{self._serial - 1}", wake=worker.parker.unpark
            )
        except RuntimeError:
            with self.lock:
                self._not_started_locked(worker)
                alone = self.threads == 0
            if alone:
                raise

    def call_again(self, worker: Worker) -> None:
        """Have it wake, or write it off: a signal's handler raised while it was called."""
        with self.lock:
            if worker.fresh and worker in self.workers:
                self._not_started_locked(worker)
        worker.parker.unpark()

    def withdraw(self, item: WorkItem) -> bool:
        """Take back an item that was just queued. False if somebody has taken it."""
        with self.lock:
            withdrawn = self.queue.withdraw(item)
            if withdrawn and self.submitters:
                self.room.notify()
        return withdrawn

    def _not_started_locked(self, worker: Worker) -> None:
        self.workers.discard(worker)
        self.threads -= 1
        if worker is self._watcher:
            self._watcher = None
        self._uncall_locked(worker)
        self.knee.refused(self.threads, now_s=perf_counter())
        self.ended.notify_all()

    def _uncall_locked(self, worker: Worker) -> None:
        """It will not come."""
        if worker.role is Role.WORK:
            self._awake_locked(worker)
            self._arriving -= 1
            self._set_running_locked(self.running - 1)

    def _awake_locked(self, worker: Worker) -> None:
        """It has woken up, so the next one may be called."""
        if worker.called:
            worker.called = self._calling = False

    def _arrive_locked(self, worker: Worker) -> tuple[WorkItem | None, Worker | None]:
        self._awake_locked(worker)
        self._arriving -= 1
        return self._take_locked()

    def _call_on(self, worker: Worker) -> None:
        """Call another worker from a worker, which goes on itself if no other can be started."""
        try:
            self.call(worker)
        except RuntimeError:
            return

    def _set_running_locked(self, running: int) -> None:
        """Keep the integral that utilisation is taken from."""
        now_s = perf_counter()
        self._busy_s += self.running * (now_s - self._busy_since_s)
        self._busy_since_s = now_s
        self.running = running

    def busy_s_locked(self, now_s: float) -> float:
        """Return the seconds of work of all workers together, ever."""
        return self._busy_s + self.running * (now_s - self._busy_since_s)

    # ------------------------------------------------------------ the life of an OS thread

    def live(self, worker: Worker) -> None:
        """Run one item after the other until there is no more reason to."""
        worker.native_id = threading.get_native_id()
        worker.os_thread = threading.current_thread()
        with self.lock:
            if worker not in self.workers:  # Its start was interrupted: it was written off.
                return
            worker.fresh = False
            self._awake_locked(worker)
            call = self.next_call_locked()
        if call is not None:
            self._call_on(call)  # Before the initializer, which may take long, or wait for that of another.
        if not initialize(self._initializer, self._initargs):
            self._break_down(worker)
            return
        item = self._wait(worker)
        while item is not None:
            now_s = perf_counter()
            if now_s >= self.sampler.due_at_s:
                self.sampler.measure(item, now_s)
            item.run()
            now_s = perf_counter()
            item = None  # An OS thread that sleeps keeps no arguments, results or errors alive.
            call = None
            with self.lock:
                self.finished += 1
                if self.queue.count:
                    if now_s >= self._tick_at_s:
                        self._tick_locked(now_s, None)
                    item, call = self._take_locked()
                else:
                    self._stop_running_locked()
            if item is None:
                item = self._wait(worker)
            elif call is not None:
                self._call_on(call)

    def _take_locked(self) -> tuple[WorkItem | None, Worker | None]:
        """By a worker that counts as running: return an item and who is to be called; or None, and it does not run."""
        if self.queue.count and self.running <= self.knee.size:
            item = self.queue.pop()
            if self.submitters:
                self.room.notify()
            return item, self.next_call_locked()
        self._stop_running_locked()
        return None, None

    def _stop_running_locked(self) -> None:
        self._set_running_locked(self.running - 1)
        if self.knee.watching and not self.queue.count:
            self.knee.dry(self._figures(self._busy_since_s, None))
            self._tick_at_s = self._busy_since_s + REOPEN_S

    # ------------------------------------------------------------ sleeping

    def _wait(self, worker: Worker) -> WorkItem | None:
        """Sleep, by a worker that does not count as running; return an item, or None to end."""
        while True:
            role = self._role(worker) or self._sleep(worker)
            if role is Role.NONE:
                return None
            if role is Role.WATCH:
                item, call = self._watch(worker)
            else:
                with self.lock:
                    item, call = self._arrive_locked(worker)
            if call is not None:
                self._call_on(call)
            if item is not None:
                return item

    def _role(self, worker: Worker) -> Role | None:
        """Return what it is to do now; NONE: end; None: sleep, it stands among the parked."""
        with self.lock:
            role, worker.role = worker.role, Role.NONE
            if role is not Role.NONE:
                return role
            if self._may_end_locked():
                self._leave_locked(worker)
                return Role.NONE
            if self.queue.count and self._watcher is None and self.running < self.knee.size_max:
                self._watcher = worker
                return Role.WATCH
            self._parked.append(worker)
            return None

    def _sleep(self, worker: Worker) -> Role:
        """Sleep among the parked; return what it was called for, NONE to end."""
        with self.lock:
            timeout_s = self._rest_locked(worker)
        while True:
            woken = worker.parker.park(timeout_s)
            with self.lock:
                role, worker.role = worker.role, Role.NONE
                if role is not Role.NONE:
                    return role
                if self._may_end_locked() or (not woken and self._is_surplus_locked(worker)):
                    self._parked.remove(worker)
                    self._leave_locked(worker)
                    return Role.NONE
                timeout_s = self._rest_locked(worker)

    def _rest_locked(self, worker: Worker) -> float:
        """Return for how long to sleep, in seconds; -1 is for ever."""
        now_s = perf_counter()
        worker.idle_mark = (now_s, self.busy_s_locked(now_s))
        return self._idle_s if self.threads > self.threads_min else -1

    def _is_surplus_locked(self, worker: Worker) -> bool:
        """Nobody called it for `idle_s`. May it end? Never while the others are busy."""
        if self.queue.count or self.threads <= self.threads_min:
            return False
        now_s = perf_counter()
        since_s, busy_s = worker.idle_mark
        used_s = self.busy_s_locked(now_s) - busy_s
        return used_s <= self._down_at * self.threads * (now_s - since_s)

    def _may_end_locked(self) -> bool:
        """Is nothing queued, and nothing to come?"""
        if self.queue.count or not (self.door.closed or self.door.broken or self.door.interpreter_exiting):
            return False
        self.door.closed = True
        return True

    def _leave_locked(self, worker: Worker) -> None:
        """This OS thread is none of the pool's any more; by one that neither runs nor is parked."""
        self.workers.discard(worker)
        self.threads -= 1
        self._demand_ended_s += demand_s(worker.native_id)
        if (self.door.closed or self.door.broken) and self._parked:
            self._parked[
                -1
            ].parker.unpark()  # It may have looked while items were queued; it leaves and wakes the next.
        elif not self.running:
            self.knee.resize(max(min(self.knee.size, self.threads), self._size_initial))
        self.ended.notify_all()

    # ------------------------------------------------------------ watch and figures

    def _watch(self, worker: Worker) -> tuple[WorkItem | None, Worker | None]:
        """Look at the figures while work is queued and nobody comes to take it; take an item once there is room."""
        while True:
            demanded_s = self._demand_s()
            with self.lock:
                if worker.role is Role.WORK:  # Called by somebody who found no other OS thread.
                    worker.role = Role.NONE
                    return self._arrive_locked(worker)
                if not self.queue.count:
                    self._watcher = None
                    worker.role = Role.NONE
                    return None, None
                due_s = self._tick_locked(perf_counter(), demanded_s)
                if self.running < self.knee.size and not self._calling:
                    self._watcher = None
                    worker.role = Role.NONE
                    self._set_running_locked(self.running + 1)
                    return self._take_locked()
            self._watch_sleep(worker, max(due_s, WATCH_S))

    def _watch_sleep(self, worker: Worker, duration_s: float) -> None:
        """Sleep, and see how much later it goes on for want of the GIL: the watch is a GIL probe, too."""
        began_s, runq_s = perf_counter(), run_queue_s(worker.native_id)
        if not worker.parker.park(duration_s):
            late_s = perf_counter() - began_s - duration_s - (run_queue_s(worker.native_id) - runq_s)
            self.sampler.note_wait(max(late_s, 0.0))

    def _tick_locked(self, now_s: float, demanded_s: float | None) -> float:
        """Let the knee be looked for, while work is queued. Return when again, in seconds."""
        due_s = self.knee.tick(self._figures(now_s, demanded_s))
        self._tick_at_s = now_s + due_s
        return due_s

    def _figures(self, now_s: float, demanded_s: float | None) -> Figures:
        return Figures(now_s, self.finished, process_time(), self.running, demanded_s, self.sampler.kind)

    def _demand_s(self) -> float:
        """Return how long the pool's OS threads computed or could have; 15-30 µs each, so only the watch reads it."""
        with self.lock:
            ids = [worker.native_id for worker in self.workers if worker.native_id]
            ended_s = self._demand_ended_s
        return ended_s + sum(map(demand_s, ids))

    # ------------------------------------------------------------ ends

    def _break_down(self, worker: Worker) -> None:
        """The initializer has failed in this worker: nothing will run any more."""
        with self.lock:
            self.door.broken = True
            items = self.queue.drain()
            self._uncall_locked(worker)
            if worker is self._watcher:
                self._watcher = None
            self._leave_locked(worker)
            self.room.notify_all()
        self.wake_all()
        settle_logged(items, lambda item: item.fail(ThreadPoolBroken()))

    def let_go(self) -> None:
        """Nobody holds the executor any more: finish what is queued, then end. A weakref callback: takes no lock."""
        self.door.closed = True
        self.wake_all()

    def wake_all(self) -> None:
        """Have every OS thread look again whether it is to end. Takes no lock."""
        for worker in list(self.workers):
            worker.parker.unpark()

    def drop_after_fork(self) -> None:
        """In a forked child: the lock may have been held by an OS thread that is not there."""
        self.lock = threading.Lock()
        self.ended = threading.Condition(self.lock)
        self.room = threading.Condition(self.lock)

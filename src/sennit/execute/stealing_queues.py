"""The queues and sleepers behind `WorkStealingExecutor`: who takes whose work, and who wakes whom.

A worker has two queues. What came from *outside* is begun oldest first, so that nobody waits longest for coming early.
What its own tasks have submitted, their *children*, are begun newest first, and before the others: of a tree of 2^14
tasks at most some 25 are queued that way on 4 workers, and 6,000 if all is begun oldest first, which took half as long
again (3.11, two cores). A thief takes from the other end: the newest from outside, the oldest children.

What is behind the word "queue". Python has no compare-and-swap, so nothing here is lock-free. `deque` promises that
one append and one pop are atomic, with and without a GIL, and owner and thief rely on that alone. Each queue has a lock
for what is more than one step: *append unless closed, and see whether anybody sleeps*. A submit takes that one lock.

No wake-up is lost, because both sides write before they read, in the order that the queue's lock gives them:

    submit:  lock { append the item;  does anybody sleep? }          → yes: wake one
    park:    say "I sleep";  for each queue: lock { is it empty? }   → one is not: do not sleep

One wake at a time: while a woken worker is on its way nobody else is woken, and if it finds more work than it takes, it
wakes the next. A thief that brings home more than one item does so too: while it carried them no other could see them.

Sources: steal half, and the chain of wakes: the Go scheduler (runtime/proc.go, runqsteal and wakep); write-before-read
instead of a counter of jobs: Rayon's sleep module (rayon-core/src/sleep/README.md). The code is our own.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from random import Random
from typing import Any, Final

from sennit.execute.executor_parts import (
    Door,
    Parker,
    ThreadPoolBroken,
    WorkItem,
    initialize,
    settle,
    settle_logged,
    start_os_thread,
)

__all__ = ["StealingQueues", "StealingWorker"]

# Every 61st item is one from outside, so that tasks which submit for ever do not keep those waiting for ever.
# Source: schedtick of the Go scheduler (runtime/proc.go), which looks at its global queue as often.
OUTSIDE_EVERY: Final = 61

_here = threading.local()  # .worker: the StealingWorker whose OS thread this is


class StealingWorker:
    """One OS thread and its queues. Only its own OS thread writes the counts."""

    __slots__ = (
        "children",
        "executed",
        "lock",
        "os_thread",
        "parker",
        "parks",
        "pool",
        "queue",
        "random",
        "steals",
        "stolen",
        "wakes",
    )

    def __init__(self, pool: StealingQueues, random: Random) -> None:
        self.pool = pool
        self.random = random
        self.queue: deque[WorkItem] = deque()  # from outside; left: oldest, the owner's end
        self.children: deque[WorkItem] = deque()  # right: newest, the owner's end
        self.lock = threading.Lock()  # of appends; pops need none
        self.parker = Parker()
        self.os_thread: threading.Thread
        self.executed = self.steals = self.stolen = self.parks = self.wakes = 0

    def live(self) -> None:
        """Run items until the pool has ended and nothing is queued."""
        _here.worker = self
        pool, queue, children = self.pool, self.queue, self.children
        with pool.lock:
            if self not in pool.workers:  # A signal's handler has raised in its start, and so out of the submit.
                return
        if not initialize(pool.initializer, pool.initargs):
            pool.break_down()
            return
        while True:
            try:
                item = children.pop() if children and self.executed % OUTSIDE_EVERY else queue.popleft()
            except IndexError:  # Also when a thief was quicker, or the turn is with what there is none of.
                found = pool.find(self)
                if found is None:
                    return
                item = found
                del found
            if item.run():
                self.executed += 1
            del item  # Or its result would live until the next one comes.


class StealingQueues:
    """What the OS threads share. `lock` guards `idle`, `waking` and the list of workers; no queue is under it."""

    def __init__(
        self,
        *,
        workers_max: int,
        name: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        seed: int,
    ) -> None:
        self.workers_max = workers_max
        self.name = name
        self.initializer = initializer
        self.initargs = initargs
        self.seed = seed
        self.door = Door()
        self.owner: weakref.ref[Executor] | None = None
        self.abandoned = False
        self.has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()  # Python 3.13 has it
        self.workers: list[StealingWorker] = []  # grows only
        self.queues: list[deque[WorkItem]] = []  # theirs: `any` of it is the quickest look at all
        self.lock = threading.Lock()
        self.idle: list[StealingWorker] = []  # the one parked last is woken first
        self.waking = False  # a woken worker is on its way to look for work
        self.turn = 0
        self.fate: Callable[[WorkItem], None] | None = None  # what becomes of queued items, if they are not to run

    # ------------------------------------------------------------ work comes

    def put(self, item: WorkItem) -> None:
        """Queue an item and see to it that somebody comes for it."""
        self.door.check()
        worker: StealingWorker | None = getattr(_here, "worker", None)
        if worker is not None and worker.pool is self:
            queue = worker.children
        else:
            worker = self._choose()
            if worker is None:
                if self._start(item):
                    return
                worker = self.workers[0]
            queue = worker.queue
        with worker.lock:
            if self.door.closed or self.door.broken:
                self.door.check()
            queue.append(item)
            anybody_sleeps = bool(self.idle)
        if anybody_sleeps:
            self.wake_one()
        elif len(self.workers) < self.workers_max:
            self._start(None)

    def _choose(self) -> StealingWorker | None:
        """Return whose queue takes the next item from outside; None: a worker that is to start. A guess needs no lock."""
        workers = self.workers
        if not self.waking:
            try:
                return self.idle[-1]
            except IndexError:
                if len(workers) < self.workers_max:
                    return None
        self.turn = turn = self.turn + 1  # Two submits at once may get the same turn: no harm.
        return workers[turn % len(workers)]

    def _start(self, item: WorkItem | None) -> bool:
        """Start one more OS thread, which begins with `item`. False if the pool is full or the system refuses.

        Without an item also after `shutdown`: what was queued by then may be worth another OS thread.

        Raises:
            UsageError: the pool is closed.
            RuntimeError: the system refuses, and the pool has no OS thread to leave the item to.
        """
        with self.lock:
            index = len(self.workers)
            if index >= self.workers_max:
                return False
            if item is not None:
                self.door.check()
            worker = StealingWorker(self, Random(f"{self.seed}-{index}"))
            if item is not None:
                worker.queue.append(item)
            try:
                worker.os_thread = start_os_thread(worker.live, name=f"{self.name}_{index}", wake=worker.parker.unpark)
            except RuntimeError:
                if index:
                    return False
                raise
            self.workers.append(worker)
            self.queues += (worker.queue, worker.children)
        return True

    def call_one(self) -> None:
        """Have one more worker look for work: one that sleeps, else a new one."""
        if self.idle:
            self.wake_one()
        elif len(self.workers) < self.workers_max:
            self._start(None)

    def wake_one(self) -> None:
        """Call one sleeping worker to look for work, unless one is on its way."""
        with self.lock:
            if self.idle and not self.waking:
                # In this order an exception between two lines (a signal's handler runs in the main OS thread) only
                # wakes somebody for nothing: what a worker that wakes finds in `idle` tells it what was done.
                self.idle[-1].parker.unpark()
                self.idle.pop()
                self.waking = True

    # ------------------------------------------------------------ a worker without work

    def find(self, worker: StealingWorker) -> WorkItem | None:
        """Return an item for a worker whose queue is empty, sleeping until there is one; None when it is to end.

        What it sees besides that item, and what it has brought home with it, is for the next: it calls one.
        """
        item = self._take(worker)
        while item is None:
            if self._is_ending():
                self.close()
                if not self._is_anything_queued():
                    return None
            else:
                self._park(worker)
            item = self._take(worker)
        if any(self.queues):
            self.call_one()
        return item

    def _take(self, worker: StealingWorker) -> WorkItem | None:
        """Return the next item of its own queue, or one of the half it steals; None if there is none anywhere."""
        if not any(self.queues):
            return None
        with suppress(IndexError):
            return worker.queue.popleft()
        with suppress(IndexError):
            return worker.children.pop()
        victims = [other for other in self.workers if other.queue or other.children]
        if len(victims) > 1:
            worker.random.shuffle(victims)
        for victim in victims:
            if loot := _half(victim.queue, victim.queue.pop):
                loot.reverse()
                return self._bring_home(worker, loot, worker.queue)
            if loot := _half(victim.children, victim.children.popleft):
                return self._bring_home(worker, loot, worker.children)
        return None

    def _bring_home(self, thief: StealingWorker, loot: list[WorkItem], home: deque[WorkItem]) -> WorkItem | None:
        """Put stolen items, oldest first, into the thief's queue of that kind, all but the oldest: that one runs now."""
        thief.steals += 1
        thief.stolen += len(loot)
        with thief.lock:
            fate = self.fate
            if fate is None:
                home.extend(loot[1:])
        if fate is not None:  # They were to be cancelled while nobody saw them.
            settle_logged(loot, fate)
            return None
        return loot[0]

    def _park(self, worker: StealingWorker) -> None:
        """Sleep until called; not if something is queued by the time that everybody can see this one sleeps."""
        with self.lock:
            self.idle.append(worker)
        if not self._is_anything_queued():
            worker.parks += 1
            worker.parker.park()
        with self.lock:
            if worker in self.idle:
                self.idle.remove(worker)
            else:
                # From here on a submit wakes the next; what was queued before, this worker sees when it looks now.
                self.waking = False
                worker.wakes += 1

    def _is_anything_queued(self) -> bool:
        if not self.has_gil:
            for worker in tuple(self.workers):
                with worker.lock:  # Orders this OS thread's writes before its reads, as the submits' are.
                    pass
        return any(self.queues)

    # ------------------------------------------------------------ the end

    def _is_ending(self) -> bool:
        door = self.door
        return door.closed or door.broken or self.abandoned or door.interpreter_exiting

    def close(self) -> None:
        """Refuse work. On return every item that was let in is in a queue, in a thief's hands or run."""
        with self.lock:
            self.door.closed = True
        for worker in tuple(self.workers):
            with worker.lock:  # Who is in the middle of a submit puts the item down; who comes next sees `closed`.
                pass

    def discard(self, fate: Callable[[WorkItem], None]) -> None:
        """After `close`: do with every queued item what `fate` does, also with those a thief carries just now.

        Raises:
            BaseException: one that a done callback has let out, after the last item.
        """
        self.fate = self.fate or fate
        items: list[WorkItem] = []
        for worker in tuple(self.workers):
            with worker.lock:
                for queue in (worker.queue, worker.children):
                    with suppress(IndexError):  # Its owner may take one meanwhile: that one runs.
                        while True:
                            items.append(queue.popleft())
        settle(items, self.fate)

    def break_down(self) -> None:
        """An initializer has failed: nothing runs any more that has not begun."""
        self.door.broken = True
        self.close()
        try:
            self.discard(lambda item: item.fail(ThreadPoolBroken()))
        finally:
            self.wake_all()

    def wake_all(self) -> None:
        """Have every worker look whether it is to end. Takes no lock."""
        for worker in tuple(self.workers):
            worker.parker.unpark()

    def abandon(self, _owner: object) -> None:
        """Nobody holds the executor any more. The collector may call this in the middle of anything: it takes no lock."""
        self.abandoned = True
        self.wake_all()


def _half(queue: deque[WorkItem], pop: Callable[[], WorkItem]) -> list[WorkItem]:
    """Take half of a queue, of one item that one."""
    loot: list[WorkItem] = []
    with suppress(IndexError):  # Its owner may be quicker: what was taken until then is ours.
        for _ in range((len(queue) + 1) // 2):
            loot.append(pop())  # noqa: PERF401
    return loot

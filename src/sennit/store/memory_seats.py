"""What the connections of one memory store share, and the seat that each of them has at it.

A seat is what one process is to the store: its registration, its standing order and its listener. Listeners are called
under the lock, so that what they are told comes in the order of the commits; `call_soon_threadsafe` never blocks.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sennit.errors import UsageError
from sennit.model.task import Claim, Claimed, ErrorInfo, Outcome, WorkerInfo
from sennit.store import memory_ahead as ahead
from sennit.store.memory_locks import Locks
from sennit.store.memory_look import outcome
from sennit.store.memory_rows import Rows
from sennit.store.protocol import Listener
from sennit.sync.ack import Ack, call_in
from sennit.sync.clock import NowUs

Settled = tuple[Ack[Any], Any, BaseException | None]


@dataclass(slots=True)
class Worker:
    """A registered process. One that left while it held tasks stays, unseen, until they are rescued."""

    info: WorkerInfo
    lease_us: int
    expire_us: int
    left: bool = False

    def renew_half_used(self, *, now_us: int) -> None:
        """Renew the lease of a process that was idle and did not beat."""
        if self.expire_us < now_us + self.lease_us // 2:
            self.expire_us = now_us + self.lease_us


class Database:
    """The data, its lock, and who is connected. Callers of its methods hold the lock."""

    def __init__(self, now_us: NowUs) -> None:
        self.now_us = now_us
        self.lock = threading.RLock()
        self.rows = Rows()
        self.locks = Locks()
        self.ids = itertools.count(1)
        self.log_seqs = itertools.count(1)
        self.workers: dict[int, Worker] = {}
        self.schedules: dict[str, int] = {}
        self.seat_numbers = itertools.count(1)
        self.seats: deque[Seat] = deque()  # who was served last is last
        self.watches: dict[int, list[tuple[Seat, Ack[Outcome]]]] = {}
        self.inbox_watches: list[tuple[Seat, Ack[int], int]] = []  # the revision that was seen
        self.room_watches: list[tuple[Seat, Ack[None], str, int]] = []  # queue, queue_max

    def claim(self, worker_id: int, queue: str, n: int, *, now_us: int) -> list[Claimed]:
        """Claim for a registered worker; a forgotten one gets nothing, because nobody would rescue it."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.left:
            return []
        worker.renew_half_used(now_us=now_us)
        return self.rows.claim(worker_id, queue, n, takes=worker.info.may_run, now_us=now_us)

    def steal(self, worker_id: int, queue: str, n_max: int, *, now_us: int) -> list[Claimed]:
        """Take over what others have claimed ahead; a forgotten worker gets nothing."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.left:
            return []
        worker.renew_half_used(now_us=now_us)
        return ahead.steal(self.rows, worker_id, queue, n_max, now_us=now_us)

    def living(self) -> list[WorkerInfo]:
        """Return the workers that take tasks."""
        return [worker.info for worker in self.workers.values() if not worker.left and not worker.info.drains]

    def rescue(self, worker_id: int, why: str, *, now_us: int) -> int:
        """Take back all a worker holds and forget it; its attempts are told, if they can hear it."""
        held = list(self.rows.held.get(worker_id, {}).values())
        for row in held:
            self.rows.stopped.append((worker_id, row.claim))
            if row.is_ahead:  # it never ran
                self.rows.put_back(row)
                continue
            self.rows.crash(row, ErrorInfo(kind="crash", message=why), now_us=now_us)
        self.rows.providers.drop_holder(worker_id)
        self.workers.pop(worker_id, None)
        return len(held)

    def drop_locks(self, worker_id: int, *, now_us: int) -> None:
        """A process is dead: what it holds of locks is free. One whose lease has lapsed keeps them for their time."""
        for seat in [seat for seat in self.seats if seat.worker_id == worker_id]:
            self.locks.drop_seat(seat, now_us=now_us)

    def rescue_lapsed(self, *, now_us: int) -> None:
        """Rescue the workers whose lease is over and who hold something."""
        for worker_id in [i for i, w in self.workers.items() if w.expire_us <= now_us and self.holds(i)]:
            self.rescue(worker_id, f"the lease of worker {worker_id}, which ran it, has lapsed", now_us=now_us)

    def holds(self, worker_id: int) -> bool:
        """Return whether a worker runs a task, holds a permit or waits for one: then its death is somebody's business."""
        return worker_id in self.rows.held or self.rows.providers.permits.is_known(worker_id)

    def next_due_us(self, *, asked_by: int | None) -> int | None:
        """Return when the next thing is due. A worker's own lease is the business of its heartbeat.

        A lease counts until it lapses, also when nothing is held under it now: a claim may not renew it.
        """
        now_us = self.now_us()
        others = ((i, w.expire_us) for i, w in self.workers.items() if i != asked_by)
        leases = [expire_us for i, expire_us in others if self.holds(i) or expire_us > now_us]
        task_due_us = self.rows.next_due_us()
        dues = leases if task_due_us is None else [task_due_us, *leases]
        dues += self.locks.next_due()
        return min([*dues, *self.rows.providers.wakes(self.rows.ready.providers())], default=None)

    def settle(self, *, now_us: int, threads_max: int) -> list[Settled]:
        """End a transaction: hand on turns, serve the standing orders, tell the listeners; return what to resolve."""
        rows = self.rows
        rows.settle(now_us=now_us, threads_max=threads_max)
        rows.providers.serve()
        self._serve(now_us=now_us)
        self._press()
        for seat in self.seats:
            seat.tell(rows.stopped)
        settled: list[Settled] = []
        for row in rows.ended:
            settled += [(ack, outcome(row), None) for _, ack in self.watches.pop(row.id, ())]
        rows.stopped.clear()
        rows.ended.clear()
        settled += rows.providers.settled
        rows.providers.settled.clear()
        settled += self.locks.settled
        self.locks.settled.clear()
        return settled + self._settle_inbox() + self._settle_rooms()

    def _settle_inbox(self) -> list[Settled]:
        revision, watches = self.rows.asks.revision, self.inbox_watches
        self.inbox_watches = [watch for watch in watches if watch[2] >= revision]
        return [(ack, revision, None) for _, ack, seen in watches if seen < revision]

    def _settle_rooms(self) -> list[Settled]:
        watches, self.room_watches = self.room_watches, []
        settled: list[Settled] = []
        for watch in watches:
            _, ack, queue, queue_max = watch
            if queue_max <= 0 or self.rows.load(queue) < queue_max:
                settled.append((ack, None, None))
            else:
                self.room_watches.append(watch)
        return settled

    def abandon(self, seat: Seat) -> list[Ack[Any]]:
        """Forget what a seat waits for; return its acks."""
        abandoned: list[Ack[Any]] = []
        for task_id, watches in self.watches.items():
            abandoned += [ack for watcher, ack in watches if watcher is seat]
            self.watches[task_id] = [watch for watch in watches if watch[0] is not seat]
        abandoned += [ack for watcher, ack, _ in self.inbox_watches if watcher is seat]
        abandoned += [ack for watcher, ack, _, _ in self.room_watches if watcher is seat]
        self.inbox_watches = [watch for watch in self.inbox_watches if watch[0] is not seat]
        self.room_watches = [watch for watch in self.room_watches if watch[0] is not seat]
        abandoned += self.locks.abandon(seat, now_us=self.now_us())
        return abandoned + self.rows.providers.abandon(seat.holder, is_gone=seat.worker is None)

    def _press(self) -> None:
        """Tell of urgent tasks that became ready, if one is still there, those who have no order left for it."""
        for queue in self.rows.pressed:
            urgent = {row.spec.route for row in self.rows.ready.rows(queue) if row.is_urgent}
            for seat in self.seats:
                seat.tell_pressed(queue, urgent | ahead.urgent_routes(self.rows, seat.worker_id, queue))
        self.rows.pressed.clear()

    def _serve(self, *, now_us: int) -> None:
        """Hand out ready tasks in turns of one, so that nobody's large order starves another's small one."""
        turns = deque(seat for seat in self.seats if seat.wants)
        served: dict[Seat, list[Claimed]] = {}
        while turns:
            seat = turns.popleft()
            task = seat.serve_one(now_us=now_us)
            if task is not None:
                served.setdefault(seat, []).append(task)
                turns.append(seat)
        for seat in self.seats:
            if stolen := seat.steal(now_us=now_us):
                served.setdefault(seat, []).extend(stolen)
        for seat, tasks in served.items():
            self.seats.remove(seat)
            self.seats.append(seat)
            seat.tell_claimed(tasks)
            seat.claim_ahead({task.queue for task in tasks}, now_us=now_us)
        self.rows.fresh.clear()


class Seat:
    """One process at the database. Callers of its methods hold the lock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listener: tuple[Listener, asyncio.AbstractEventLoop] | None = None
        self._told_due_us: int | None = None
        self.worker: Worker | None = None
        self.wants: dict[str, int] = {}
        self.wants_ahead: dict[str, int] = {}
        self._wanted: set[str] = set()  # queues for which there ever was an order
        self._number = next(database.seat_numbers)

    @property
    def worker_id(self) -> int | None:
        """The worker that has joined here, or None."""
        return None if self.worker is None else self.worker.info.id

    @property
    def holder(self) -> int:
        """Under which name this process holds permits: that of its worker, or one that no worker has."""
        return -self._number if self.worker is None else self.worker.info.id

    def is_needed(self, *, now_us: int) -> None:
        """See to it that this process has a lease, if it has a worker: what it holds from now on hangs on it."""
        if self.worker is not None:
            if self.worker.info.id not in self._database.workers:
                self.renew(self.worker.info.id, self.worker.lease_us, now_us=now_us)
            self.worker.renew_half_used(now_us=now_us)

    def join(self, worker: Worker, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """Register a worker.

        Raises:
            UsageError: another one has joined here.
        """
        if self.worker_id not in (None, worker.info.id):
            raise UsageError(
                f"this store object is already joined by worker {self.worker_id}",
                fix="one worker per store object: call leave(), or open another with connect()",
            )
        self.worker = self._database.workers[worker.info.id] = worker
        self._listener, self._told_due_us = (listener, loop), None
        self._database.rows.turns.look_for_room()  # this process may have other bounds

    def describe(self, info: WorkerInfo) -> None:
        """Replace what others know of the worker that has joined here."""
        if self.worker is not None and self.worker.info.id == info.id:
            self.worker.info = info

    def leave(self) -> None:
        """Forget the standing order and the registration; what is held keeps its lease."""
        self.cancel_order()
        if self.worker is not None:
            self.worker.left = True
            if not self._database.holds(self.worker.info.id):
                self._database.workers.pop(self.worker.info.id, None)
        self.worker = self._listener = None

    def renew(self, worker_id: int, lease_us: int, *, now_us: int) -> None:
        """Renew a lease; register our own worker again if it was taken for dead."""
        workers = self._database.workers
        if self.worker is not None and self.worker_id == worker_id:
            workers.setdefault(worker_id, self.worker)
        if worker_id in workers:
            workers[worker_id].lease_us = lease_us
            workers[worker_id].expire_us = now_us + lease_us

    def want(self, more: Mapping[str, int], *, now_us: int) -> None:
        """Raise the standing order; a worker that was taken for dead shows that it is not.

        Raises:
            UsageError: no worker has joined here.
        """
        if self.worker is None:
            raise UsageError("a standing order needs a worker", fix="call join() first")
        if self.worker.info.id not in self._database.workers:
            self.renew(self.worker.info.id, self.worker.lease_us, now_us=now_us)
        for queue, n in more.items():
            if n > 0:
                self.wants[queue] = self.wants.get(queue, 0) + n
                self._wanted.add(queue)

    def cancel_order(self) -> None:
        """Take no more for the standing order, and give back what is held ahead."""
        self.wants.clear()
        self.wants_ahead.clear()
        if self.worker is not None:
            ahead.give_all_back(self._database.rows, self.worker.info.id)

    def want_ahead(self, queue: str, n: int) -> None:
        """Hold so many tasks beyond the order.

        Raises:
            UsageError: no worker has joined here.
        """
        if self.worker is None:
            raise UsageError("a standing order needs a worker", fix="call join() first")
        self.wants_ahead[queue] = n

    def serve_one(self, *, now_us: int) -> Claimed | None:
        """Claim one task for the standing order, or begin one that is held ahead; None when nothing fits."""
        if self.worker is None:
            return None
        for queue in self.wants:
            task = ahead.begin_first(self._database.rows, self.worker.info.id, queue, now_us=now_us)
            tasks = [task] if task else self._database.claim(self.worker.info.id, queue, 1, now_us=now_us)
            if tasks:
                self._took(queue, 1)
                return tasks[0]
        return None

    def _took(self, queue: str, n: int) -> None:
        left = self.wants.pop(queue) - n
        if left:
            self.wants[queue] = left  # and last: the queues of one order take turns, too

    def steal(self, *, now_us: int) -> list[Claimed]:
        """Take over what others have not begun, for what is left of the order."""
        stolen: list[Claimed] = []
        if self.worker is not None:
            for queue, left in list(self.wants.items()):
                tasks: list[Claimed] = []
                while more := self._database.steal(self.worker.info.id, queue, left - len(tasks), now_us=now_us):
                    tasks += more
                if tasks:
                    self._took(queue, len(tasks))
                    stolen += tasks
        return stolen

    def claim_ahead(self, queues: Collection[str], *, now_us: int) -> None:
        """After the order was served in full: hold more, of what was ready before."""
        rows = self._database.rows
        if self.worker is not None:
            for queue in sorted(queues):
                n = self.wants_ahead.get(queue, 0)
                if n and queue not in self.wants and queue not in rows.fresh:
                    ahead.refill(rows, self.worker.info.id, queue, n, now_us=now_us)

    def tell_claimed(self, tasks: list[Claimed]) -> None:
        """Pass on what the standing order got."""
        if self._listener is not None:
            listener, loop = self._listener
            call_in(loop, listener.on_claimed, tasks)

    def tell_pressed(self, queue: str, routes: Collection[str]) -> None:
        """Tell the listener of an urgent task in a queue of this process, of one of `routes`, for which no order is left."""
        if self._listener is None or self.worker is None or queue in self.wants:
            return
        if not any(self.worker.info.may_run(route) for route in routes):
            return
        if queue in self.worker.info.queues or queue in self._wanted:
            listener, loop = self._listener
            call_in(loop, listener.on_pressed, queue)

    def tell(self, stopped: Sequence[tuple[int, Claim]]) -> None:
        """Tell the listener which of its attempts were stopped, and of a deadline earlier than it knows."""
        if self._listener is None:
            return
        listener, loop = self._listener
        mine = [claim for worker_id, claim in stopped if worker_id == self.worker_id]
        if mine:
            call_in(loop, listener.on_stop, mine)
        due_us = self._database.next_due_us(asked_by=self.worker_id)
        if due_us is not None and (self._told_due_us is None or due_us < self._told_due_us):
            self._told_due_us = due_us
            call_in(loop, listener.on_due, due_us)

    def told_due(self) -> int | None:
        """Return when the next thing is due; from now on only an earlier time is news."""
        self._told_due_us = self._database.next_due_us(asked_by=self.worker_id)
        return self._told_due_us

    def tell_death(self, worker_id: int) -> None:
        """Tell the listener that another process is gone."""
        if self._listener is not None:
            listener, loop = self._listener
            call_in(loop, listener.on_death, worker_id)

"""The desk: what the SQLite store does around the moves of one transaction.

    begin ─► (moves) ─► before_commit: serve the standing order, count, leave word ─► COMMIT ─► after_commit: tell

Serving the standing order *before* the commit is what makes a submit, or the end of a parent, and the start of the
next body one fsync apart instead of two. Everything here except `order` is touched by the writer's OS thread only.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sennit.errors import UsageError
from sennit.model.task import Claim, Claimed, Outcome, WorkerInfo
from sennit.store.connect import closed
from sennit.store.effects import Effects
from sennit.store.ids import reserve
from sennit.store.liveness import LifeLock
from sennit.store.moves import claim as claims
from sennit.store.moves import look, time
from sennit.store.order import Order
from sennit.store.peers import Peers
from sennit.store.protocol import Listener
from sennit.store.wakeup import Bell, Hint, ring
from sennit.store.watches import Watches
from sennit.sync.ack import Ack, call_in
from sennit.sync.clock import boot_id

if TYPE_CHECKING:
    from sennit.store.sqlite import SqliteStore

_LOOK_AGAIN_MS = 1000
_EVERYTHING = Hint.READY | Hint.DONE | Hint.STOP | Hint.TIMER | Hint.PEER

_COUNT = "UPDATE sennit_ledger SET n = n + ? WHERE name = ?"


class Desk:
    """Implements `writer.Batch` for one process."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.order = Order()
        self.refused = 0  # for the ledger: an operation that raises takes its effects with it
        self._joined = False
        self._registering = False
        self._folder = store.path.with_name(store.path.name + "-live")
        self._worker: WorkerInfo | None = None
        self._client_id = 0
        self._lease_us = 0
        self._lease_until_us = 0
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: LifeLock | None = None
        self._bell: Bell | None = None
        self._ear: threading.Thread | None = None
        self.peers = Peers(self._folder)
        self._watches = Watches()
        self._look_all = False
        self._missed = False  # a transaction failed: the next one looks at everything
        # Prepared before the commit, told after it.
        self._claimed: list[Claimed] = []
        self._taken: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._stopped: list[Claim] = []
        self._rings: list[tuple[int, list[str]]] = []
        self._met: list[WorkerInfo] = []

    @property
    def worker_id(self) -> int:
        """This process's id in the store; 0 before it has joined."""
        return 0 if self._worker is None else self._worker.id

    # ------------------------------------------------------------ around one transaction

    def begin(self, connection: sqlite3.Connection) -> Effects:
        del connection
        return Effects(self._store.now_us())

    def before_commit(self, connection: sqlite3.Connection, effects: list[Effects]) -> None:
        if self._missed:
            effects.append(again := Effects(self._store.now_us()))
            self._heard(connection, again, hints=_EVERYTHING)
        ready: set[str] = set().union(*(e.ready for e in effects))
        effects.append(self._serve(connection, ready))
        counts: Counter[str] = Counter()
        for effect in effects:
            counts.update(effect.counts)
        counts["refused"] += self.refused
        self.count(connection, counts)
        hints = self._leave_word(connection, effects)
        self._watches.settle(connection, (i for e in effects for i in e.ended))
        if any(self._left.get(q, 0) == 0 for q in ready):  # nobody here, or no slot left here, to take the rest
            hints |= Hint.READY
        if any(e.ended for e in effects):
            hints |= Hint.DONE
        if any(e.renewed for e in effects):
            hints |= Hint.TIMER
        if self._worker is None and any(e.due_us is not None for e in effects):
            hints |= Hint.TIMER  # a client may be gone before the time comes
        if any(e.joined for e in effects):
            hints |= Hint.PEER | Hint.TIMER  # its lease is something that may become due
        if hints:
            others = time.peers(connection, self.worker_id)
            if others:
                self._rings.append((hints, list(others.values())))
            if hints & Hint.PEER:
                self._meet(connection)

    def _serve(self, connection: sqlite3.Connection, ready: set[str]) -> Effects:
        """Claim for the standing order; return what that means for others."""
        effects = Effects(self._store.now_us())
        worker = self._worker
        if worker is None:
            return effects
        self._taken = self.order.take(None if self._look_all else ready)
        self._look_all = False
        for queue, n in self._taken.items():
            tasks = claims.claim(connection, effects, worker_id=worker.id, queue=queue, n=n)
            self._claimed += tasks
            self._left[queue] = n - len(tasks)
        if self._claimed:
            self.register_again(connection, effects, worker.id, self._lease_us)
            if effects.now_us > self._lease_until_us - self._lease_us // 2:  # it was idle, and did not beat
                time.heartbeat(connection, effects, worker.id, self._lease_us)
                self._lease_until_us = effects.now_us + self._lease_us
                effects.renewed = True
        return effects

    def register_again(self, connection: sqlite3.Connection, effects: Effects, worker_id: int, lease_us: int) -> None:
        """Write our own row again if we were taken for dead: what we claim from now on must have a lease."""
        worker = self._worker
        if worker is not None and worker.id == worker_id and not time.registered(connection, worker_id):
            time.join(connection, effects, worker, lease_us)
            self._lease_until_us = effects.now_us + lease_us
            effects.renewed = True

    def heartbeat(self, connection: sqlite3.Connection, effects: Effects, worker_id: int, lease_us: int) -> list[Claim]:
        """Renew a lease, hear what was stopped meanwhile, return what is held."""
        self.tell_stops(connection, effects)
        self.register_again(connection, effects, worker_id, lease_us)
        if worker_id == self.worker_id:
            self._lease_until_us = effects.now_us + lease_us
        return time.heartbeat(connection, effects, worker_id, lease_us)

    def count(self, connection: sqlite3.Connection, counts: Counter[str]) -> None:
        """Add to the ledger."""
        rows = [(n, name) for name, n in counts.items() if n]
        if rows:
            connection.executemany(_COUNT, rows)

    def _leave_word(self, connection: sqlite3.Connection, effects: list[Effects]) -> int:
        """Note attempts that were stopped: ours are told after the commit, those of others through their row."""
        others: dict[int, list[Claim]] = {}
        for effect in effects:
            for worker_id, stopped in effect.stops.items():
                if worker_id == self.worker_id:
                    self._stopped += stopped
                else:
                    others.setdefault(worker_id, []).extend(stopped)
        if not others:
            return 0
        time.post_stops(connection, others)
        return Hint.STOP

    def after_commit(self, effects: list[Effects]) -> None:
        self._missed = False
        self.order.put_back({q: n for q, n in self._left.items() if n})
        self._watches.after_commit()
        claimed, stopped, rings, met = self._forget()
        due = [e.due_us for e in effects if e.due_us is not None]
        if self._loop is not None and (claimed or stopped or due or met):
            call_in(self._loop, self._tell, claimed, stopped, min(due, default=None), met)
        for hints, addresses in rings:
            ring(addresses, hints)

    def after_rollback(self) -> None:
        if self._registering:
            self._worker = self._listener = self._loop = None
            self._joined = False
        self.order.put_back(self._taken)
        self._watches.after_rollback()
        self._forget()
        self._missed = True
        if self._bell is not None:
            ring([self._bell.address], 0)  # the ear looks again soon, if nobody else writes before

    def _forget(self) -> tuple[list[Claimed], list[Claim], list[tuple[int, list[str]]], list[WorkerInfo]]:
        prepared = self._claimed, self._stopped, self._rings, self._met
        self._claimed, self._stopped, self._rings, self._met = [], [], [], []
        self._taken, self._left, self.refused, self._registering = {}, {}, 0, False
        return prepared

    def _tell(self, claimed: list[Claimed], stopped: list[Claim], due_us: int | None, met: list[WorkerInfo]) -> None:
        """On the listener's loop."""
        listener, loop = self._listener, self._loop
        if listener is None or loop is None:
            return
        if claimed:
            listener.on_claimed(claimed)
        if stopped:
            listener.on_stop(stopped)
        if due_us is not None:
            listener.on_due(due_us)
        if met:
            self.peers.watch(met, listener, loop)

    # ------------------------------------------------------------ joining and leaving

    def join(self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, lease_us: int) -> Ack[None]:
        """Register this process as a worker."""

        def operation(connection: sqlite3.Connection, effects: Effects) -> None:
            if self._worker is not None and self._worker.role == "worker":
                raise UsageError("this store object has joined already", fix="open a second store for a second worker")
            try:
                self._register(connection, effects, worker, lease_us)
            except BaseException:
                self._joined = False
                raise
            self._listener, self._loop = listener, loop
            self._meet(connection)

        self._joined = True  # at once: an order may follow before the ack is there
        return self._store.put(operation)

    def raise_order(self, wants: Mapping[str, int]) -> None:
        """Raise the standing order; the next transaction serves it.

        Raises:
            UsageError: no worker has joined here.
        """
        if not self._joined:
            raise UsageError("a standing order needs a worker", fix="call join() first")
        self.order.add(wants)

    def _register(self, connection: sqlite3.Connection, effects: Effects, worker: WorkerInfo, lease_us: int) -> None:
        """Take the life lock, open the bell, write the row. A client that becomes a worker gives up its first row."""
        if self._worker is not None:
            time.leave(connection, effects, self._worker.id)
        elif self._life is not None:
            self._life.release()  # of a registration that is over, or was rolled back
            self._life = None
        self._folder.mkdir(exist_ok=True)
        life = LifeLock.hold(self._folder, str(worker.id))
        try:
            if self._bell is None:
                self._bell = Bell.open(self._folder, str(worker.id))
                self._ear = threading.Thread(target=self._listen, args=(self._bell,), name="sennit-ear", daemon=True)
                self._ear.start()
            worker = msgspec.structs.replace(worker, bell=self._bell.address, started_us=effects.now_us)
            time.join(connection, effects, worker, lease_us)
        except BaseException:
            life.release()
            raise
        if self._life is not None:
            self._life.release()
        self._life, self._worker, self._registering = life, worker, True
        self._lease_us = lease_us
        self._lease_until_us = effects.now_us + lease_us

    def _register_as_client(self, connection: sqlite3.Connection, effects: Effects) -> None:
        """A process that waits for results needs a bell that workers can ring."""
        self._client_id = self._client_id or reserve(connection, 1)[0]
        client = WorkerInfo(
            id=self._client_id, pid=os.getpid(), host=socket.gethostname(), boot_id=boot_id(), role="client"
        )
        self._register(connection, effects, client, 0)

    def leave(self) -> Ack[None]:
        """Unregister."""
        self._joined = False
        self.order.clear()

        def operation(connection: sqlite3.Connection, effects: Effects) -> None:
            self.order.clear()  # of what a transaction put back meanwhile
            if self._worker is not None:
                time.leave(connection, effects, self._worker.id)
            if self._loop is not None:
                call_in(self._loop, self.peers.close)
            self._worker = self._listener = self._loop = None

        return self._store.put(operation)

    def end(self) -> None:
        """After the last transaction: give up bell and life lock, fail the watches that wait."""
        if self._life is not None:
            self._life.release()
            self._life = None
        if self._bell is not None:
            bell, self._bell = self._bell, None
            ring([bell.address], 0)  # wakes the ear, which sees that it is over
        if self._loop is not None:  # leaving failed
            call_in(self._loop, self.peers.close)
        self._watches.fail(closed(self._store.path))

    # ------------------------------------------------------------ hearing

    def _listen(self, bell: Bell) -> None:
        """The ear: an OS thread that sleeps until another process rings. Ends when the bell is given up.

        While the store cannot be written (full, locked) nobody may ring again for what was missed: then, and only then,
        it looks by itself.
        """
        waiter = select.poll()
        waiter.register(bell.fileno(), select.POLLIN)
        while True:
            if not waiter.poll(_LOOK_AGAIN_MS if self._missed else None):
                self._store.look()
                continue
            hints = bell.drain()
            if self._bell is not bell:
                break
            if hints:
                self._store.put(partial(self._heard, hints=hints))
        bell.close()

    def _heard(self, connection: sqlite3.Connection, effects: Effects, *, hints: int) -> None:
        """Look at what the hints point to."""
        if hints & Hint.READY:
            self._look_all = True
        if hints & Hint.DONE:
            self._watches.settle_others(connection, now_us=effects.now_us)
        if hints & Hint.STOP:
            self.tell_stops(connection, effects)
        if hints & Hint.TIMER:
            effects.due(effects.now_us)  # the listener fires what is due and learns what is next
        if hints & Hint.PEER:
            self._meet(connection)

    def look(self, connection: sqlite3.Connection, effects: Effects) -> None:
        """Look at everything."""
        self._heard(connection, effects, hints=Hint.READY | Hint.DONE | Hint.STOP)

    def tell_stops(self, connection: sqlite3.Connection, effects: Effects) -> None:
        """Take the word that other processes left for us."""
        del effects
        if self._worker is not None:
            self._stopped += time.take_stops(connection, self._worker.id)

    def announce(self, connection: sqlite3.Connection, effects: Effects, stored: Effects) -> None:
        """Adopt the effects of a transaction that was not ours (`submit_in`) and may have been rolled back.

        What it ended is looked up and what it stopped stands in rows, so that only what was committed is told.
        """
        effects.ready |= stored.ready
        effects.ended += stored.ended
        if stored.due_us is not None:
            effects.due(stored.due_us)
        if stored.stops:
            self.tell_stops(connection, effects)
            effects.stops = {worker_id: [] for worker_id in stored.stops}  # nothing to add, only somebody to ring

    def _meet(self, connection: sqlite3.Connection) -> None:
        """Take note of all other processes, to watch them."""
        self._met = [w for w in look.workers(connection) if w.id != self.worker_id]

    # ------------------------------------------------------------ watching results

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Resolve when the task has ended."""
        ack: Ack[Outcome] = Ack()
        if self._worker is None and not self._client_id:
            self._client_id = self._store.take_ids(1)[0]  # here, because it may wait for the writer

        def operation(connection: sqlite3.Connection, effects: Effects) -> Outcome | None:
            outcome = look.outcome(connection, task_id)
            if outcome is None:
                if self._worker is None:
                    self._register_as_client(connection, effects)
                self.register_again(connection, effects, self.worker_id, self._lease_us)
                self._watches.add(task_id, ack, now_us=effects.now_us)
            return outcome

        def looked(first: Ack[Outcome | None]) -> None:
            try:
                outcome = first.wait()
            except Exception as error:  # noqa: BLE001 - handed on to the waiter
                ack.reject(error)
            else:
                if outcome is not None:
                    ack.resolve(outcome)

        self._store.put(operation).add_done_callback(looked)
        return ack

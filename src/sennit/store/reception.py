"""The reception: what a process asks of the desk, and what it hears from others, between two transactions.

    join ─► order ─► submit, finish, heartbeat ─► leave          a ring ─► look at the rows it points to

Everything here except `order` is touched by the writer's OS thread only. What happens around the moves of a transaction is
the desk's (`desk`), which is a reception too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sennit.errors import UsageError
from sennit.model.task import Claim, Claimed, Ending, Outcome, TaskSpec, WorkerInfo
from sennit.store.callers import Callers
from sennit.store.caretaker import Caretaker
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.lock_waiters import LockWaiters
from sennit.store.membership import Membership
from sennit.store.moves import ahead, entry, straight, time
from sennit.store.moves import finish as finishes
from sennit.store.moves.submit import submit
from sennit.store.operations import Finish
from sennit.store.order import Order
from sennit.store.permits import Permits
from sennit.store.protocol import Listener
from sennit.store.wakeup import Hint
from sennit.store.watches import Watches
from sennit.sync.ack import Ack

if TYPE_CHECKING:
    from sennit.store.row_store import RowStore

EVERYTHING = Hint(255)


class Reception:
    """What one process has at its store."""

    def __init__(self, store: RowStore) -> None:
        self._store = store
        self.order = Order()
        self.refused = 0  # for the ledger: an operation that raises takes its effects with it
        self.members = Membership(
            store.live, store.ears, on_rung=self._rung, missed=lambda: self._missed,
            now_us=store.now_us if store.spans_hosts else None,
        )  # fmt: skip
        self._watches = Watches(store.put, self.members.be_known)
        self.callers = Callers(store.put, self.members)
        self.permits = Permits(store.put, self.members)
        self.locks = LockWaiters(store.put, self.members)
        self.caretaker = Caretaker(store, self.members)
        self._look_all = False
        self._look_urgent = False  # others said so; told here after the order was served, and not passed on
        self._missed = False  # a transaction failed: the next one looks at everything
        # Prepared before the commit, told after it.
        self._claimed: list[Claimed] = []
        self._taken: dict[str, int] = {}
        self._straight: Counter[str] = Counter()
        self._left: dict[str, int] = {}
        self._stopped: list[Claim] = []
        self._rings: list[tuple[int, list[str]]] = []
        self._pressed: list[str] = []
        self._grown: Counter[str] = Counter()  # queues of which more is held ahead than before

    def effects(self) -> Effects:
        """Open the effects of an operation."""
        return self.effects_at(self._store.transaction_us())

    def effects_at(self, now_us: int) -> Effects:
        """Open the effects of an operation in a transaction of that time."""
        return Effects(now_us, self._store.bounds)

    # ------------------------------------------------------------ joining and leaving

    def join(self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, lease_us: int) -> Ack[None]:
        """Register this process as a worker."""

        def operation(connection: Connection, effects: Effects) -> None:
            self.members.join(connection, effects, worker, listener, loop, lease_us=lease_us)
            entry.note_bounds(connection, self._store.bounds)

        self.members.joined = True  # at once: an order may follow before the ack is there
        return self._store.put(operation)

    def raise_order(self, wants: Mapping[str, int]) -> None:
        """Raise the standing order; the next transaction serves it.

        Raises:
            UsageError: no worker has joined here.
        """
        if not self.members.joined:
            raise UsageError("a standing order needs a worker", fix="call join() first")
        self.order.add(wants)

    def cancel_order(self, connection: Connection, effects: Effects) -> None:
        """Take no more for the order; what was claimed beyond it goes back."""
        self.order.clear()
        for queue in self.order.ever_ahead:
            ahead.give_back(connection, effects, worker_id=self.members.id, queue=queue)

    def leave(self, *, for_good: bool = False) -> Ack[None]:
        """Unregister; as a client it stays while somebody here calls or waits, unless that is over too."""
        self.members.joined = False
        self.order.clear()

        def operation(connection: Connection, effects: Effects) -> None:
            self.cancel_order(connection, effects)  # also what a transaction put back meanwhile
            self._watches.keep(())
            self.members.leave(connection, effects)
            waits = self._watches.is_waiting or self.callers.is_waiting or self.permits.has_rows(connection)
            if (waits or self.locks.has_rows(connection)) and not for_good:
                self.members.be_known(connection, effects)

        return self._store.put(operation)

    def end(self) -> None:
        """After the last transaction: give up what others know us by, fail the watches that wait."""
        self.caretaker.end()
        self.members.end()
        self._watches.fail(self._store.closed())
        self.callers.fail(self._store.closed())
        self.permits.fail(self._store.closed())
        self.locks.fail(self._store.closed())

    # ------------------------------------------------------------ what this process holds

    def submit(self, connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> list[int]:
        """Store `specs`. One that the standing order would claim at once runs without having been ready."""
        if self._store.hand_over and len(specs) == 1 and straight.is_plain(specs[0]) and self.members.is_worker:
            claimed = self._start(connection, effects, specs[0])
            if claimed is not None:
                self._claimed.append(claimed)
                return [claimed.id]
        return submit(connection, effects, specs)

    def _start(self, connection: Connection, effects: Effects, spec: TaskSpec) -> Claimed | None:
        if not self.order.take_one(spec.queue):
            return None
        self._straight[spec.queue] += 1
        claimed = None
        try:
            claimed = straight.start(connection, effects, spec, worker_id=self.members.id)
        finally:
            if claimed is None:
                self._straight[spec.queue] -= 1
                self.order.put_back({spec.queue: 1})
        return claimed

    def finish(self, endings: Sequence[Ending]) -> Ack[list[bool | None]]:
        """Record how attempts ended."""
        self._watches.go([ending.claim.task_id for ending in endings])
        return self._store.put(Finish(endings))

    def still_held(self, connection: Connection, claim: Claim) -> bool:
        """Whether a write of this attempt is valid; if not, its end will not be recorded here either."""
        held = finishes.still_held(connection, claim)
        if not held:
            self._watches.go([claim.task_id])
        return held

    def heartbeat(self, connection: Connection, effects: Effects, worker_id: int, lease_us: int) -> list[Claim]:
        """Renew a lease, hear what was stopped meanwhile, return what is held."""
        self._tell_stops(connection)
        held = self.members.heartbeat(connection, effects, worker_id, lease_us)
        if worker_id == self.members.id:
            self._watches.keep([claim.task_id for claim in held])
        return held

    # ------------------------------------------------------------ hearing

    def _rung(self, hints: int) -> None:
        """On the ear's OS thread; without hints it is our own wish to look again."""
        self._store.put(partial(self._heard, hints=hints))

    def _heard(self, connection: Connection, effects: Effects, *, hints: int) -> None:
        """Look at what the hints point to."""
        if hints & Hint.READY:
            self._look_all = True
        if hints & Hint.DONE:
            self._look_for_ends(connection, effects)
        if hints & Hint.STOP:
            self._tell_stops(connection)
        if hints & Hint.TIMER:
            effects.due(effects.now_us)  # the listener fires what is due and learns what is next
        if hints & Hint.PEER:
            self.members.meet(connection)
        if hints & Hint.INBOX:
            self.callers.look_inbox(connection)
        if hints & Hint.ROOM:
            self.callers.look_rooms(connection)
            self.permits.look(connection)
            self.locks.look(connection)
        if hints & Hint.PRESSED:
            self._look_urgent = True

    def _look_for_ends(self, connection: Connection, effects: Effects) -> None:
        """See which of the tasks that are watched here have ended elsewhere."""
        self._watches.settle_others(connection, now_us=effects.now_us)

    def look(self, connection: Connection, effects: Effects) -> None:
        """Look at everything."""
        self._heard(connection, effects, hints=EVERYTHING & ~(Hint.TIMER | Hint.PEER))

    def _tell_stops(self, connection: Connection) -> None:
        """Take the word that other processes left for us."""
        if self.members.worker is not None:
            self._stopped += time.take_stops(connection, self.members.id)

    def announce(self, connection: Connection, effects: Effects, stored: Effects) -> None:
        """Adopt the effects of a transaction that was not ours (`submit_in`) and may have been rolled back.

        What it ended is looked up and what it stopped stands in rows, so that only what was committed is told.
        """
        effects.ready |= stored.ready
        effects.urgent |= stored.urgent
        effects.routes |= stored.routes
        effects.inbox |= stored.inbox
        effects.ended += stored.ended
        if stored.due_us is not None:
            effects.due(stored.due_us)
        if stored.calls is not None:
            effects.for_calls().touched |= stored.calls.touched
            others = [refused for refused in stored.calls.refused if refused[0] not in self.members.ids]
            effects.for_calls().refused += others  # to be rung: they look for themselves
            self.permits.look(connection)
        if stored.stops:
            self._tell_stops(connection)
            effects.stops = {worker_id: [] for worker_id in stored.stops}  # nothing to add, only somebody to ring

    # ------------------------------------------------------------ waiting

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Resolve when the task has ended."""
        return self._watches.watch(task_id)

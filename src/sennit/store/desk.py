"""The desk: what the SQLite store does around the moves of one transaction.

    begin ─► (moves) ─► before_commit: serve the standing order, count, leave word ─► COMMIT ─► after_commit: tell

Serving the standing order *before* the commit is what makes a submit, or the end of a parent, and the start of the
next body one fsync apart instead of two. Everything here except `order` is touched by the writer's OS thread only.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sennit.errors import LeaseLost, UsageError
from sennit.model.task import Claim, Claimed, Ending, Outcome, TaskSpec, WorkerInfo
from sennit.store.callers import Callers
from sennit.store.caretaker import Caretaker
from sennit.store.connect import closed
from sennit.store.effects import Effects
from sennit.store.membership import Membership
from sennit.store.moves import claim as claims
from sennit.store.moves import entry, straight, time, turn
from sennit.store.moves import finish as finishes
from sennit.store.moves.submit import submit
from sennit.store.order import Order
from sennit.store.permits import Permits
from sennit.store.protocol import Listener
from sennit.store.wakeup import Hint, ring
from sennit.store.watches import Watches
from sennit.store.writer import Settled
from sennit.sync.ack import Ack, LoopCall, call_in

if TYPE_CHECKING:
    from sennit.store.sqlite import SqliteStore

T = TypeVar("T")

_EVERYTHING = Hint(255)
_COUNT = "UPDATE sennit_ledger SET n = n + ? WHERE name = ?"


class Desk:
    """Implements `writer.Batch` for one process."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.order = Order()
        self.refused = 0  # for the ledger: an operation that raises takes its effects with it
        self.members = Membership(store.path, on_rung=self._rung, missed=lambda: self._missed)
        self._watches = Watches(store.put, self.members.be_known)
        self.callers = Callers(store.put, self.members)
        self.permits = Permits(store.put, self.members)
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

    # ------------------------------------------------------------ around one transaction

    def begin(self, connection: sqlite3.Connection) -> Effects:
        del connection
        return self.effects()

    def effects(self) -> Effects:
        """Open the effects of an operation."""
        return Effects(self._store.now_us(), self._store.bounds)

    def before_commit(self, connection: sqlite3.Connection, effects: list[Effects]) -> None:
        if self._missed:
            effects.append(again := self.effects())
            self._heard(connection, again, hints=_EVERYTHING)
        if any(e.room for e in effects):
            effects.append(admitted := self.effects())
            turn.admit(connection, admitted)
        if calls := [e.calls for e in effects if e.calls is not None]:
            effects.append(served := self.effects())
            self.permits.serve(connection, served, calls)
        ready: set[str] = set().union(*(e.ready for e in effects))
        effects.append(self._serve(connection, ready))
        counts = Counter(refused=self.refused)
        for effect in effects:
            counts.update(effect.counts)
        self.count(connection, counts)
        hints = self._leave_word(connection, effects)
        self._watches.settle_riding(connection, now_us=effects[-1].now_us)
        self._watches.settle(connection, (i for e in effects for i in e.ended))
        hints |= self._hints(effects, ready) | self._look_for_callers(connection, effects)
        if calls or self.permits.is_used:
            self._keep_permits(connection, effects)
        if hints:
            others = self.members.bells(connection)
            if others:
                self._rings.append((hints, others))
            if hints & Hint.PEER:
                self.members.meet(connection)

    def _serve(self, connection: sqlite3.Connection, ready: set[str]) -> Effects:
        """Claim for the standing order; return what that means for others."""
        effects = self.effects()
        if not self.members.is_worker:
            return effects
        self._taken = self.order.take(None if self._look_all else ready)
        self._look_all = False
        leased = True
        for queue, n in self._taken.items():
            taken = claims.claim(
                connection, effects, worker_id=self.members.id, queue=queue, n=n, pools=self.permits.pools
            )
            self._claimed += taken.tasks
            self._left[queue] = n - len(taken.tasks)
            leased = leased and taken.leased
        if self._claimed or not leased:  # also while it goes on waiting: it must be one that others ring
            self.members.has_claimed(connection, effects, leased=leased)
        return effects

    def _keep_permits(self, connection: sqlite3.Connection, effects: list[Effects]) -> None:
        """Write what was changed of providers; see whose calls were decided about."""
        self.permits.flush(effects[-1])
        others = self.permits.keep(e.calls for e in effects if e.calls is not None)
        if others:
            bells = time.peers(connection, self.members.id)
            self._rings.append((Hint.ROOM, [bell for worker_id, bell in bells.items() if worker_id in others]))

    def _hints(self, effects: list[Effects], ready: set[str]) -> int:
        """Return what others must look at, beside the word that was left for them."""
        hints = 0
        if any(self._left.get(q, 0) == 0 for q in ready):  # nobody here, or no slot left here, to take the rest
            hints |= Hint.READY
        for effect in effects:
            if effect.ended:
                hints |= Hint.DONE
            if effect.renewed or (effect.due_us is not None and not self.members.is_worker):
                hints |= Hint.TIMER  # a client fires nothing, and may be gone before the time comes
            if effect.joined:
                hints |= Hint.PEER | Hint.TIMER  # its lease is something that may become due
        return hints

    def _look_for_callers(self, connection: sqlite3.Connection, effects: list[Effects]) -> int:
        """See to those who wait for something that is no task, here; return what others must look at for theirs."""
        hints = 0
        if any(e.inbox for e in effects):
            hints |= Hint.INBOX
            self.callers.look_inbox(connection)
        if any(e.claimed or e.ended for e in effects) and connection.execute(entry.ANY_BLOCKED).fetchone()[0]:
            hints |= Hint.ROOM
            self.callers.look_rooms(connection)
        if any(e.urgent for e in effects) and self._press(connection, set[str]().union(*(e.urgent for e in effects))):
            hints |= Hint.PRESSED
        if self._look_urgent:
            self._look_urgent = False
            self._press(connection, set(() if self.members.worker is None else self.members.worker.queues))
        return hints

    def _press(self, connection: sqlite3.Connection, queues: set[str]) -> bool:
        """True when an urgent task is left in one of `queues`; our own listener is told if we have no slot for it."""
        pools = partial(self.permits.pools, connection, self.effects())
        pressed = [q for q in queues if entry.is_pressed(connection, q, pools)]
        if self.members.is_worker:
            used_up = [q for q in pressed if not self._left.get(q, 0) and self.order.used_up(q)]
            self._pressed += [q for q in used_up if q not in self._pressed]
        return bool(pressed)

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
                if worker_id == self.members.id:
                    self._stopped += stopped
                else:
                    others.setdefault(worker_id, []).extend(stopped)
        if not others:
            return 0
        time.post_stops(connection, others)
        return Hint.STOP

    def after_commit(self, effects: list[Effects], settled: list[Settled]) -> list[LoopCall]:
        self._missed = False
        self.order.put_back({q: n for q, n in self._left.items() if n})
        settled += self._watches.after_commit()
        if self.permits.has_news:
            settled += self.permits.after_commit()
            if self.permits.is_refused and not self.members.is_worker:
                self.caretaker.glance()
        self.callers.after_commit()
        claimed, stopped, pressed, rings = self._forget()
        met, is_back = self.members.after_commit()
        if is_back:
            self._store.put(partial(self._heard, hints=_EVERYTHING))
        dues = [e.due_us for e in effects if e.due_us is not None]
        due_us = min(dues) if dues else None
        if self.permits.is_waiting or self.permits.has_loose or self.caretaker.is_awake:
            is_worker = self.members.is_worker
            self.caretaker.beat(holds=self.permits.has_loose and is_worker)
            self.caretaker.care(waits=self.permits.is_waiting and not is_worker, due_us=due_us, met=met)
        if claimed:
            self._watches.come([task.id for task in claimed])
        lost = [claim.task_id for claim in stopped]
        lost += [error.task_id for _, _, error in settled if isinstance(error, LeaseLost)]
        if lost and self._watches.go(lost):
            self._rung(0)
        calls: list[LoopCall] = []
        if self.members.loop is not None and (claimed or stopped or due_us is not None or met or pressed):
            tell = partial(self._tell, claimed, stopped, due_us, met, pressed)
            calls.append((self.members.loop, tell))
        if rings:
            # Acknowledged is also rung: whoever gets an ack may end the process. What is ours need not wait for that.
            for loop, call in calls:
                call_in(loop, call)
            for hints, addresses in rings:
                ring(addresses, hints)
            return []
        return calls

    def after_rollback(self) -> None:
        self._missed = True  # before the ear is woken, which asks for it
        self.members.after_rollback()
        self.order.put_back(self._taken)
        self.order.put_back(self._straight)
        self._watches.after_rollback()
        self.callers.after_rollback()
        self.permits.after_rollback()
        self._forget()

    def _forget(self) -> tuple[list[Claimed], list[Claim], list[str], list[tuple[int, list[str]]]]:
        prepared = self._claimed, self._stopped, self._pressed, self._rings
        self._claimed, self._stopped, self._pressed, self._rings = [], [], [], []
        self._taken, self._left, self._straight, self.refused = {}, {}, Counter(), 0
        return prepared

    def _tell(
        self,
        claimed: list[Claimed],
        stopped: list[Claim],
        due_us: int | None,
        met: list[WorkerInfo],
        pressed: list[str],
    ) -> None:
        """On the listener's loop."""
        listener, loop = self.members.listener, self.members.loop
        if listener is None or loop is None:
            return
        if claimed:
            listener.on_claimed(claimed)
        if stopped:
            listener.on_stop(stopped)
        if due_us is not None:
            listener.on_due(due_us)
        if met:
            self.members.peers.watch(met, listener.on_death, loop)
        for queue in pressed:
            listener.on_pressed(queue)

    # ------------------------------------------------------------ joining and leaving

    def join(self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, lease_us: int) -> Ack[None]:
        """Register this process as a worker."""

        def operation(connection: sqlite3.Connection, effects: Effects) -> None:
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

    def leave(self, *, for_good: bool = False) -> Ack[None]:
        """Unregister; as a client it stays while somebody here calls or waits, unless that is over too."""
        self.members.joined = False
        self.order.clear()

        def operation(connection: sqlite3.Connection, effects: Effects) -> None:
            self.order.clear()  # of what a transaction put back meanwhile
            self._watches.keep(())
            self.members.leave(connection, effects)
            waits = self._watches.is_waiting or self.callers.is_waiting or self.permits.has_rows(connection)
            if waits and not for_good:
                self.members.be_known(connection, effects)

        return self._store.put(operation)

    def end(self) -> None:
        """After the last transaction: give up what others know us by, fail the watches that wait."""
        self.caretaker.end()
        self.members.end()
        self._watches.fail(closed(self._store.path))
        self.callers.fail(closed(self._store.path))
        self.permits.fail(closed(self._store.path))

    # ------------------------------------------------------------ what this process holds

    def submit(self, connection: sqlite3.Connection, effects: Effects, specs: Sequence[TaskSpec]) -> list[int]:
        """Store `specs`. One that the standing order would claim at once runs without having been ready."""
        if len(specs) == 1 and straight.is_plain(specs[0]) and self.members.is_worker:
            claimed = self._start(connection, effects, specs[0])
            if claimed is not None:
                self._claimed.append(claimed)
                return [claimed.id]
        return submit(connection, effects, specs)

    def _start(self, connection: sqlite3.Connection, effects: Effects, spec: TaskSpec) -> Claimed | None:
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
        return self._store.put(lambda connection, effects: finishes.finish(connection, effects, endings))

    def still_held(self, connection: sqlite3.Connection, claim: Claim) -> bool:
        """Whether a write of this attempt is valid; if not, its end will not be recorded here either."""
        held = finishes.still_held(connection, claim)
        if not held:
            self._watches.go([claim.task_id])
        return held

    def heartbeat(self, connection: sqlite3.Connection, effects: Effects, worker_id: int, lease_us: int) -> list[Claim]:
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

    def _heard(self, connection: sqlite3.Connection, effects: Effects, *, hints: int) -> None:
        """Look at what the hints point to."""
        if hints & Hint.READY:
            self._look_all = True
        if hints & Hint.DONE:
            self._watches.settle_others(connection, now_us=effects.now_us)
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
        if hints & Hint.PRESSED:
            self._look_urgent = True

    def look(self, connection: sqlite3.Connection, effects: Effects) -> None:
        """Look at everything."""
        self._heard(connection, effects, hints=_EVERYTHING & ~(Hint.TIMER | Hint.PEER))

    def _tell_stops(self, connection: sqlite3.Connection) -> None:
        """Take the word that other processes left for us."""
        if self.members.worker is not None:
            self._stopped += time.take_stops(connection, self.members.id)

    def announce(self, connection: sqlite3.Connection, effects: Effects, stored: Effects) -> None:
        """Adopt the effects of a transaction that was not ours (`submit_in`) and may have been rolled back.

        What it ended is looked up and what it stopped stands in rows, so that only what was committed is told.
        """
        effects.ready |= stored.ready
        effects.urgent |= stored.urgent
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

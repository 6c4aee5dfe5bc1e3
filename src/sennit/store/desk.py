"""The desk: what a store with rows does around the moves of one transaction.

    begin ─► (moves) ─► before_commit: serve the standing order, count, leave word ─► COMMIT ─► after_commit: tell

Serving the standing order *before* the commit is what makes a submit, or the end of a parent, and the start of the
next body one fsync apart instead of two. Everything here except `order` is touched by the writer's OS thread only.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TypeVar

from sennit.errors import LeaseLost
from sennit.model.task import Claim, Claimed, WorkerInfo
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import ahead, entry, time, turn
from sennit.store.moves import claim as claims
from sennit.store.moves.claim import Taken
from sennit.store.reception import EVERYTHING, Reception
from sennit.store.sql import Statement
from sennit.store.wakeup import Hint
from sennit.store.writer import Settled
from sennit.sync.ack import LoopCall, call_in

T = TypeVar("T")

# Claimed, stopped, pressed queues, rings: prepared before the commit, told after it.
Prepared = tuple[list[Claimed], list[Claim], list[str], list[tuple[int, list[str]]]]
_COUNT = Statement(
    "UPDATE sennit_ledger SET n = n + ? WHERE name = ?",
    "UPDATE sennit_ledger SET n = n + ? WHERE name = ? AND shard = 0",  # the others belong to `postgres_hot`
)


class Desk(Reception):
    """Implements `writer.Batch` for one process."""

    # ------------------------------------------------------------ around one transaction

    def begin(self, connection: Connection) -> Effects:
        del connection
        return self.effects()

    def before_commit(self, connection: Connection, effects: list[Effects]) -> None:
        if self._missed:
            effects.append(again := self.effects())
            self._heard(connection, again, hints=EVERYTHING)
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
        if news := [e.locks for e in effects if e.locks is not None]:
            self._ring_room(connection, self.locks.keep(connection, news))
        if hints:
            self.tell_others(connection, hints)
            if hints & Hint.PEER:
                self.members.meet(connection)

    def tell_others(self, connection: Connection, hints: int) -> None:
        """Have other processes look, after the commit."""
        others = self.members.bells(connection)
        if others:
            self._rings.append((hints, others))

    def _serve(self, connection: Connection, ready: set[str]) -> Effects:
        """Claim for the standing order; return what that means for others."""
        effects = self.effects()
        if not self.members.is_worker:
            return effects
        if not self._store.hand_over and not self._look_all:
            if ready or self.order.fresh:  # the next transaction is for that
                self._rung(Hint.READY | Hint.PRESSED)
            return effects
        self._taken = self.order.take(None if self._look_all else ready)
        self._look_all = False
        leased = True
        for queue, n in self._taken.items():
            taken = self._take(connection, effects, queue, n, is_fresh=queue in ready)
            self._claimed += taken.tasks
            self._left[queue] = n - len(taken.tasks)
            leased = leased and taken.leased
        if self._claimed or not leased:  # also while it goes on waiting: it must be one that others ring
            self.members.has_claimed(connection, effects, leased=leased)
        return effects

    def _take(self, connection: Connection, effects: Effects, queue: str, n: int, *, is_fresh: bool) -> Taken:
        """Take `n` tasks of a queue for slots that are free; when there are not so many, what others have not begun."""
        me, pools, n_ahead = self.members.id, self.permits.pools, self.order.ahead(queue)
        if n_ahead:
            # What has just become ready is for those who have a slot for it; what is left of it is for the next time.
            n_ahead = 0 if is_fresh else n_ahead
            taken, held, more = ahead.serve(
                connection, effects, worker_id=me, queue=queue, n=n, n_ahead=n_ahead, pools=pools
            )
            if more > 0:
                is_urgent = ahead.any_urgent(connection, worker_id=me, queue=queue)
                self.note_ahead(queue, 0 if held else more, is_urgent=is_urgent)
        else:
            taken = claims.claim(connection, effects, worker_id=me, queue=queue, n=n, pools=pools)
        while taken.any_ahead and taken.leased and len(taken.tasks) < n:
            stolen = ahead.steal(connection, effects, worker_id=me, queue=queue, n_max=n - len(taken.tasks))
            if not stolen:
                break
            taken.tasks.extend(stolen)
        return taken

    def note_ahead(self, queue: str, first: int, *, is_urgent: bool) -> None:
        """More of a queue is held than before: so many as the `first` ones, and an urgent one waits for a slot here.

        Only of the first others are told: whoever has had room since then has taken over what there was.
        """
        if first:
            self._grown[queue] += first
        if is_urgent and queue not in self._pressed:
            self._pressed.append(queue)

    def _keep_permits(self, connection: Connection, effects: list[Effects]) -> None:
        """Write what was changed of providers; see whose calls were decided about."""
        self.permits.flush(effects[-1])
        others = self.permits.keep(e.calls for e in effects if e.calls is not None)
        self._ring_room(connection, others)

    def _ring_room(self, connection: Connection, worker_ids: set[int]) -> None:
        """Have these processes look at what they wait for."""
        if worker_ids:
            bells = time.peers(connection, self.members.id)
            self._rings.append((Hint.ROOM, [bell for worker_id, bell in bells.items() if worker_id in worker_ids]))

    def _hints(self, effects: list[Effects], ready: set[str]) -> int:
        """Return what others must look at, beside the word that was left for them."""
        hints = Hint.READY if self._grown else 0
        if any(self._left.get(q, 0) == 0 for q in ready):  # nobody here, or no slot left here, to take the rest
            hints |= Hint.READY
        if any(not self.members.may_run(route) for e in effects for route in e.routes):  # it is for others
            hints |= Hint.READY
        for effect in effects:
            if effect.ended:
                hints |= Hint.DONE
            if effect.renewed or (effect.due_us is not None and self._is_for_others(effect.due_us, effect.now_us)):
                hints |= Hint.TIMER
            if effect.joined:
                hints |= Hint.PEER | Hint.TIMER  # its lease is something that may become due
        return hints

    def _is_for_others(self, due_us: int, now_us: int) -> bool:
        """True for a deadline of a client: it fires nothing, and may be gone before the time comes.

        What is due now is what others have told us, and is not told back: two clients would never stop.
        """
        return not self.members.is_worker and due_us > now_us

    def _look_for_callers(self, connection: Connection, effects: list[Effects]) -> int:
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

    def _press(self, connection: Connection, queues: set[str]) -> bool:
        """True when an urgent task is left in one of `queues`; our own listener is told if we have no slot for it."""
        pools = partial(self.permits.pools, connection, self.effects())
        routes = {q: found for q in queues if (found := entry.pressed_routes(connection, q, pools))}
        if self.members.is_worker:
            ours = [q for q, found in routes.items() if any(map(self.members.may_run, found))]
            used_up = [q for q in ours if not self._left.get(q, 0) and self.order.used_up(q)]
            used_up += [q for q in queues if q not in routes and self._holds_urgent(connection, q)]
            self._pressed += [q for q in used_up if q not in self._pressed]
        return bool(routes)

    def _holds_urgent(self, connection: Connection, queue: str) -> bool:
        return bool(self.order.ahead(queue)) and ahead.any_urgent(connection, worker_id=self.members.id, queue=queue)

    def count(self, connection: Connection, counts: Counter[str]) -> None:
        """Add to the ledger."""
        rows = [(n, name) for name, n in counts.items() if n]
        if rows:
            connection.executemany(_COUNT, rows)

    def has_noted(self) -> None:
        """The view of an agent was stored in this transaction: tell those who follow, where they do not see commits."""

    def _leave_word(self, connection: Connection, effects: list[Effects]) -> int:
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
        settled += self.locks.after_commit()
        if self.locks.take_refused() and not self.members.is_worker:
            self.caretaker.glance()
        self.callers.after_commit()
        claimed, stopped, pressed, rings = self._forget()
        met, is_back = self.members.after_commit()
        if is_back:
            self._store.put(partial(self._heard, hints=EVERYTHING))
        dues = [us for us in (self.locks.take_due(), *(e.due_us for e in effects)) if us is not None]
        due_us = min(dues) if dues else None
        is_waiting = self.permits.is_waiting or self.locks.is_waiting
        if is_waiting or self.permits.has_loose or self.caretaker.is_awake:
            is_worker = self.members.is_worker
            self.caretaker.beat(holds=self.permits.has_loose and is_worker)
            self.caretaker.care(waits=is_waiting and not is_worker, due_us=due_us, met=met)
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
                self._store.ears.ring(addresses, hints)
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
        self.locks.after_rollback()
        self._forget()

    def _forget(self) -> Prepared:
        prepared = self._claimed, self._stopped, self._pressed, self._rings
        self._claimed, self._stopped, self._pressed, self._rings = [], [], [], []
        self._taken, self._left, self._straight, self.refused = {}, {}, Counter(), 0
        self._grown = Counter()
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

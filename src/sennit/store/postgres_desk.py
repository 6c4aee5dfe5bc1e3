"""The desk of a process at PostgreSQL: whom to ring is kept in rows, and plain transactions run side by side.

    room in a queue, or a watch ─► said once, alone ─► others ring for READY, DONE ─► rung for nothing ─► taken back, passed on

A process that has said nothing is not rung for these two, so a fleet of idle machines sleeps through the work of others, and
one new task wakes two of those that have room for it instead of all. Whoever is rung and leaves tasks behind rings two more,
and is rung no more for a queue of which it took none: so it goes on until somebody has them all, or nobody has room.
"""

# ruff: noqa: D102 - `writer.Batch` says what its methods are for

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from sennit.model.task import Claim, Claimed, GivenBack, Outcome
from sennit.store.database import Connection
from sennit.store.desk import Desk, Prepared
from sennit.store.effects import Effects
from sennit.store.moves import finish as finishes
from sennit.store.operations import Beside
from sennit.store.postgres_follow import NEWS, followers
from sennit.store.wakeup import Hint
from sennit.store.writer import Settled
from sennit.sync.ack import LoopCall

if TYPE_CHECKING:
    from sennit.store.row_store import RowStore

_RUNG_AT_LEAST: Final = 2  # one of them may be dead, and nobody knows yet
_KINDS_MAX: Final = 20_000
_QUIET: Final = Hint.READY | Hint.DONE
_HEARING: Final = "SELECT bell, hears, hungry FROM sennit_worker WHERE id <> ? AND bell <> ''"
_HEAR: Final = "UPDATE sennit_worker SET hears = ?, hungry = ? WHERE id = ?"
_ANY_LEFT: Final = (
    "SELECT q FROM unnest(?::text[]) AS q WHERE EXISTS (SELECT 1 FROM sennit_ready AS r WHERE r.queue = q)"
)


class PostgresDesk(Desk):
    """Implements `writer.Batch` for one process.

    Attributes:
        hears: what others know that it must be rung for.
        hungry: the queues that they know it has room in.
        with_permit: tasks that were claimed here with one.
        on_commit: called after each commit of this process, on the writer's OS thread.
    """

    def __init__(self, store: RowStore) -> None:
        super().__init__(store)
        self.hears = 0
        self.hungry: frozenset[str] = frozenset()
        self.with_permit: set[int] = set()
        self.on_commit: Callable[[], object] = bool
        self._says: tuple[int, frozenset[str]] | None = None  # what others know when this transaction is committed
        self._was_rung = False  # for tasks
        self._doubted: list[Claim] = []
        self._threaded: dict[int, bool] = {}
        self._ended_here: dict[int, Outcome] = {}
        self._fresh: frozenset[str] = frozenset()
        self._for_others: set[str] = set()
        self._must_look = False  # another transaction must follow that has the pen to itself
        self._ready_n: Counter[str] = Counter()
        self._blocked = False
        self._has_noted = False

    # ------------------------------------------------------------ alone

    def before_commit(self, connection: Connection, effects: list[Effects]) -> None:
        if self._doubted:
            effects.append(again := self.effects())
            finishes.finish(connection, again, [GivenBack(claim) for claim in self._doubted])
        super().before_commit(connection, effects)
        if self._has_noted:
            self.ring_followers(followers(connection))
        if self.members.worker is not None:
            self._forget_what_was_said(effects)
            self._pass_on(connection)
            hears, hungry = self._known()
            wants = self._wants(), self._room()
            if any(e.joined for e in effects) or wants[0] & ~hears or wants[1] - hungry:
                if wants[0] & ~hears:  # those that ended before this was said
                    self._watches.settle_all(connection)
                self._say(connection, hears | wants[0], hungry | wants[1])

    def _forget_what_was_said(self, effects: list[Effects]) -> None:
        """The row is a new one."""
        if any(e.joined for e in effects):
            self._says, self.hears, self.hungry = None, 0, frozenset()

    def _known(self) -> tuple[int, frozenset[str]]:
        """Return what others know, or will when this is committed."""
        return self._says or (self.hears, self.hungry)

    def _say(self, connection: Connection, hears: int, hungry: frozenset[str]) -> None:
        connection.execute(_HEAR, (hears, json.dumps(sorted(hungry)), self.members.id))
        self._says = hears, hungry

    def _wants(self) -> int:
        """Return what this process must be rung for, beside tasks."""
        return int(Hint.DONE) if self._watches.is_waiting else 0

    def _room(self) -> frozenset[str]:
        """Return the queues of which this process can take more."""
        if not self.members.is_worker:
            return frozenset()
        return frozenset(q for q, n in self._left.items() if n > 0) | self.order.wanting

    def has_noted(self) -> None:
        self._has_noted = True

    def ring_followers(self, addresses: list[str]) -> None:
        """Have those look who follow what is logged and said of agents."""
        if addresses:
            self._rings.append((NEWS, addresses))

    def _pass_on(self, connection: Connection) -> None:
        """After this process was rung for tasks: ring others for what it leaves, and have itself rung no more for nothing."""
        hears, hungry = self._known()
        if not self._was_rung or not (full := hungry - self._room()):
            return
        needless = full - {task.queue for task in self._claimed}
        if needless:
            self._say(connection, hears, hungry - needless)
        left = [q for (q,) in connection.execute(_ANY_LEFT, (sorted(full),)).fetchall()]
        if left:
            self._ring_some(connection, dict.fromkeys(left, _RUNG_AT_LEAST))

    def _ring_some(self, connection: Connection, wanted: Mapping[str, int]) -> None:
        """Have so many processes look that have room in these queues."""
        rows = connection.execute(_HEARING, (self.members.id,)).fetchall()
        chosen: set[str] = set()
        for queue, n in wanted.items():
            hungry = [bell for bell, hears, queues in rows if hears & Hint.READY or queue in json.loads(queues)]
            chosen.update(random.sample(hungry, min(n, len(hungry))))  # no secret
        if chosen:
            self._rings.append((int(Hint.READY), sorted(chosen)))

    def tell_others(self, connection: Connection, hints: int) -> None:
        """Have other processes look: all of them, but for READY and DONE those that want to be told."""
        # Known are plain tasks of a transaction that shares the pen. Others may be for one process only: all are rung.
        if hints & Hint.READY and self._ready_n and not self._for_others:
            hints &= ~Hint.READY
            here = Counter(task.queue for task in self._claimed)
            wanted = {q: max(_RUNG_AT_LEAST, n - here[q]) for q, n in self._ready_n.items() if not self._left.get(q)}
            self._ring_some(connection, wanted)
        if not hints:
            return
        quiet, loud = hints & _QUIET, hints & ~_QUIET
        bells: dict[str, int] = {}
        for bell, hears, queues in connection.execute(_HEARING, (self.members.id,)).fetchall():
            wants = loud | (quiet & (hears | (Hint.READY if queues != "[]" else 0)))
            if wants:
                bells[bell] = wants
        for wants in set(bells.values()):
            self._rings.append((wants, [bell for bell, hint in bells.items() if hint == wants]))

    def _rung(self, hints: int) -> None:
        heard = partial(self._heard, hints=hints)
        self._store.put(Beside(heard) if hints and not hints & ~_QUIET else heard)

    def _heard(self, connection: Connection, effects: Effects, *, hints: int) -> None:
        super()._heard(connection, effects, hints=hints)
        self._was_rung |= bool(hints & Hint.READY)
        hears, hungry = self._known()
        if hints & hears & Hint.DONE and not self._watches.is_waiting:
            self._say(connection, hears & ~Hint.DONE, hungry)

    def _look_for_ends(self, connection: Connection, effects: Effects) -> None:
        del effects
        self._watches.settle_all(connection)

    def doubt(self) -> None:
        """Nobody knows whether this transaction was committed: the next one hands back what it may have claimed.

        Until that is committed none shares the pen (`is_calm`), so no later claim of the same attempt can be meant.
        """
        self._doubted += [task.claim for task in self._claimed]

    def after_rollback(self) -> None:
        self.hears, self.hungry = 0, frozenset()  # perhaps it is another server now, that has not heard of it
        super().after_rollback()

    def after_commit(self, effects: list[Effects], settled: list[Settled]) -> list[LoopCall]:
        self._doubted = []
        if self.with_permit:
            self.with_permit.difference_update(i for e in effects for i in e.ended)
        self.hears, self.hungry = self._known()
        self.on_commit()
        must_look = self._must_look
        calls = super().after_commit(effects, settled)
        if must_look:
            self._store.put(self._look_alone)
        return calls

    def _look_alone(self, connection: Connection, effects: Effects) -> None:
        del connection, effects
        self._look_all = True

    def _forget(self) -> Prepared:
        for task in self._claimed:
            self._threaded[task.id] = task.thread_id is not None
            if task.permit is not None:
                self.with_permit.add(task.id)
        if len(self.with_permit) > _KINDS_MAX:  # the database knows it too, at the price of another try
            self.with_permit.clear()
        if len(self._threaded) > _KINDS_MAX:
            self._threaded = dict(list(self._threaded.items())[-_KINDS_MAX // 2 :])
        self._says, self._ended_here, self._for_others, self._must_look = None, {}, set(), False
        self._has_noted = False
        self._ready_n, self._blocked, self._fresh, self._was_rung = Counter(), False, frozenset(), False
        return super()._forget()

    # ------------------------------------------------------------ side by side

    @property
    def is_calm(self) -> bool:
        """False while something must be looked at that needs the pen alone."""
        looks = self._missed or self._look_urgent or self._doubted
        return self._store.hand_over and not looks  # the shared pen is how these transactions hand over

    @property
    def has_thread_bound(self) -> bool:
        """True when tasks of threads wait for room."""
        return bool(self._store.bounds.threads_max)

    @property
    def state_versions(self) -> int:
        """How many versions of a thread's state are kept."""
        return self._store.bounds.state_versions

    def is_threaded(self, task_id: int) -> bool:
        """False when a task is known to have no thread."""
        return self._threaded.get(task_id, True)

    def take_orders(self) -> Mapping[str, int]:
        """Return what is wanted of each queue; it counts as taken."""
        if not self.members.is_worker:
            return {}
        self._taken = self.order.take(None)
        self._fresh = self.order.was_fresh
        return self._taken

    def became_ready(self, queue: str, n: int) -> None:
        """So many tasks of `queue` became ready in this transaction."""
        self._ready_n[queue] += n

    def some_are_for_others(self, queue: str) -> None:
        """Tasks became ready in a queue that want a permit or certain workers."""
        self._for_others.add(queue)

    def have_ended(self, outcomes: Mapping[int, Outcome]) -> None:
        """Tasks have ended in this transaction."""
        self._ended_here.update(outcomes)

    def took(
        self, queue: str, n: int, tasks: Sequence[Claimed], *, leased: bool, renewed: bool, lanes: bool, blocked: bool,
        is_ready: bool, now_us: int,
    ) -> None:  # fmt: skip
        """Take note of what was claimed for the standing order."""
        self._claimed += tasks
        self._left[queue] = n - len(tasks)
        if renewed:
            self.members.was_renewed(now_us)
        news = self._look_all or is_ready or queue in self._fresh or queue in self._for_others
        if not leased or (lanes and news and self._left[queue]):
            self._must_look = True
        self._blocked |= blocked

    def note_ahead(self, queue: str, first: int, *, is_urgent: bool) -> None:
        super().note_ahead(queue, first, is_urgent=is_urgent)
        if first:
            self._ready_n[queue] += first

    def others_hold_what_is_wanted(self) -> None:
        """Taking over needs the pen alone."""
        self._must_look = True

    def finish_hot(self, connection: Connection, effects: list[Effects], *, refused: Callable[[int], object]) -> None:
        """Do what `before_commit` does, for a transaction that shares the pen."""
        if self.refused:
            refused(self.refused)
        self._watches.settle_known(self._ended_here)
        self._watches.settle_riding(connection, now_us=effects[0].now_us)
        ready: set[str] = set().union(*(e.ready for e in effects))
        hints = self._hints(effects, ready)
        if self._for_others:
            hints |= Hint.READY
            self._must_look = True
        if self._blocked and any(e.claimed or e.ended for e in effects):
            hints |= Hint.ROOM
            self.callers.look_rooms(connection)
        urgent: set[str] = set().union(*(e.urgent for e in effects))
        if urgent and self._press(connection, urgent):
            hints |= Hint.PRESSED
        if hints:
            self.tell_others(connection, hints)
        if hints & Hint.PEER:
            self.members.meet(connection)
        self._look_all = False
        if self.members.worker is not None:
            self._forget_what_was_said(effects)
            self._pass_on(connection)
            hears, hungry = self._known()
            if self._wants() & ~hears or self._room() - hungry:
                self._must_look = True  # to say so, alone

    def begin_again(self) -> None:
        """The transaction was undone, and is run again alone."""
        self.order.restore(self._taken, self._straight)
        self.members.after_rollback()
        self._watches.after_rollback()
        self.callers.after_rollback()
        self.permits.after_rollback()
        self.locks.after_rollback()
        self._forget()

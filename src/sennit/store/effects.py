"""What one operation of a transaction means for others, told only after the commit."""

from __future__ import annotations

from collections import Counter

from sennit.errors import LimitError
from sennit.model.admission import Bounds
from sennit.model.lock import LockGrant
from sennit.model.order import Priority
from sennit.model.provider import Permit
from sennit.model.task import Claim


class Calls:
    """What an operation means for calls to providers. Served once per transaction, before it is committed.

    Attributes:
        asked: permits that are wanted: id → whether it is waited for.
        touched: providers that may have room now.
        spent: a budget is, or may be.
        granted: to which process.  refused: of which process, and why.
    """

    __slots__ = ("asked", "granted", "refused", "spent", "touched")

    def __init__(self) -> None:
        self.asked: dict[int, bool] = {}
        self.touched: set[str] = set()
        self.spent = False
        self.granted: list[tuple[int, Permit]] = []
        self.refused: list[tuple[int, int, LimitError]] = []

    def add(self, other: Calls) -> None:
        """Take over what a part of the operation means."""
        self.asked |= other.asked
        self.touched |= other.touched
        self.spent |= other.spent
        self.granted += other.granted
        self.refused += other.refused


class LockNews:
    """What an operation means for those who wait for locks.

    Attributes:
        granted: to which process, for which request.
        earlier: processes whose timer is too late now.
    """

    __slots__ = ("earlier", "granted")

    def __init__(self) -> None:
        self.granted: list[tuple[int, int, LockGrant]] = []
        self.earlier: set[int] = set()


class Effects:
    """Collected while an operation runs; dropped with it when it is rolled back.

    Attributes:
        bounds: what this process enforces.
        now_us: the store clock, read once under the write lock, so it grows from commit to commit.
        ready: queues in which a task became ready.  urgent: those in which an urgent one did.
        routes: what those that became ready need of their worker; plain ones are not among them.
        ended: tasks that ended.
        stops: worker id → attempts that were stopped from outside.
        due_us: the earliest deadline this operation has set.
        counts: what to add to the ledger.
        joined, renewed: a process joined; a lease was renewed after an idle time.
        room: a thread has become active or idle, and who gets the room must be decided.
        inbox: a question was asked, changed or closed.  claimed: tasks were claimed.
        calls: what it means for calls to providers; None, the usual case, is nothing.
        locks: the same for locks.
    """

    __slots__ = (
        "bounds",
        "calls",
        "claimed",
        "counts",
        "due_us",
        "ended",
        "inbox",
        "joined",
        "locks",
        "now_us",
        "ready",
        "renewed",
        "room",
        "routes",
        "stops",
        "urgent",
    )

    def __init__(self, now_us: int, bounds: Bounds) -> None:
        self.now_us = now_us
        self.bounds = bounds
        self.ready: set[str] = set()
        self.urgent: set[str] = set()
        self.routes: set[str] = set()
        self.ended: list[int] = []
        self.stops: dict[int, list[Claim]] = {}
        self.due_us: int | None = None
        self.counts: Counter[str] = Counter()
        self.joined = False
        self.renewed = False
        self.inbox = False
        self.room = False
        self.claimed = False
        self.calls: Calls | None = None
        self.locks: LockNews | None = None

    def for_locks(self) -> LockNews:
        """Return what it means for locks, to add to it."""
        if self.locks is None:
            self.locks = LockNews()
        return self.locks

    def for_calls(self) -> Calls:
        """Return what it means for calls, to add to it."""
        if self.calls is None:
            self.calls = Calls()
        return self.calls

    def became_ready(self, queue: str, priority: int, route: str = "") -> None:
        """Note that a task of `queue` became ready."""
        self.ready.add(queue)
        if route:
            self.routes.add(route)
        if priority == Priority.URGENT:
            self.urgent.add(queue)

    def due(self, at_us: int) -> None:
        """Note a deadline."""
        if self.due_us is None or at_us < self.due_us:
            self.due_us = at_us

    def add(self, other: Effects) -> None:
        """Take over the effects of a part of this operation that was run apart."""
        self.ready |= other.ready
        self.urgent |= other.urgent
        self.routes |= other.routes
        self.ended += other.ended
        for worker_id, stopped in other.stops.items():
            self.stops.setdefault(worker_id, []).extend(stopped)
        if other.due_us is not None:
            self.due(other.due_us)
        self.counts.update(other.counts)
        self.joined |= other.joined
        self.renewed |= other.renewed
        self.inbox |= other.inbox
        self.room |= other.room
        if other.calls is not None:
            self.for_calls().add(other.calls)

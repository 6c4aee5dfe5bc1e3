"""Locks at the desk: who waits for one in this process, and what became of them.

    acquire ─► asks, in a transaction ─┬─ granted in it, or in a later one of ours ──────────┬─► told after the commit
                                       └─ granted by another process, which rings ─► look ───┘

Touched by the writer's OS thread only. What a transaction gives is told after its commit, and forgotten when it is
rolled back; the rows are looked at again by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from sennit.errors import LockLost, LockTimeout, SennitError
from sennit.model.lock import LockGrant, LockRequest
from sennit.store.callers import begin_to_wait
from sennit.store.database import Connection
from sennit.store.effects import Effects, LockNews
from sennit.store.membership import Membership
from sennit.store.moves import lock
from sennit.store.writer import Settled
from sennit.sync.ack import Ack, resolve_all

T = TypeVar("T")

_GIVEN_UP = "it was given up while it waited, or this process was taken for dead"


class Put(Protocol):
    """The writer's `put`."""

    def __call__(self, operation: Callable[[Connection, Effects], T], /) -> Ack[T]:
        """Queue an operation."""


class LockWaiters:
    """The wishes of one process.

    Args:
        put: queues an operation.
        members: this process as the others see it; whoever holds a lock must be one whose death they notice.

    Attributes:
        due_us: when the first lock that somebody waits for is over, as far as a transaction has just seen.
    """

    def __init__(self, put: Put, members: Membership) -> None:
        self._put = put
        self._members = members
        self._waiting: dict[int, tuple[LockRequest, Ack[LockGrant]]] = {}
        self._found: dict[int, LockGrant | SennitError] = {}
        self.due_us: int | None = None
        self._is_refused = False

    @property
    def is_waiting(self) -> bool:
        """True while somebody waits: then this process must notice when a lock is over."""
        return bool(self._waiting)

    # ------------------------------------------------------------ from any OS thread

    def acquire(self, request: LockRequest) -> Ack[LockGrant]:
        """Resolve with a grant."""
        ack: Ack[LockGrant] = Ack()

        def begin(connection: Connection, effects: Effects) -> None:
            self._waiting[request.id] = request, ack
            effects.for_locks()
            try:
                lock.ask(connection, effects, request, worker_id=self._members.id)
            except LockTimeout:
                self._is_refused = True
                raise

        return begin_to_wait(self._put, self._members, ack, begin, drop=lambda: self._waiting.pop(request.id, None))

    def give_up(self, request_id: int) -> Ack[bool]:
        """Wait no longer; release what has come meanwhile."""

        def operation(connection: Connection, effects: Effects) -> bool:
            if request_id in self._waiting:
                self._found[request_id] = LockLost(self._waiting[request_id][0].name, 0, why=_GIVEN_UP)
            return lock.give_up(connection, effects, request_id)

        return self._put(operation)

    def close(self, error: SennitError) -> None:
        """Before the last transaction: what this store object holds and wants is over."""

        def operation(connection: Connection, effects: Effects) -> None:
            self.fail(error)
            lock.free(connection, effects, self._members.ids)

        self._put(operation)

    # ------------------------------------------------------------ inside a transaction

    def has_rows(self, connection: Connection) -> bool:
        """Return whether this process holds locks or waits for some."""
        return lock.has_rows(connection, self._members.ids)

    def keep(self, connection: Connection, news: Iterable[LockNews]) -> set[int]:
        """Keep what was given to this process; return the processes that must look for themselves."""
        others: set[int] = set()
        for some in news:
            others |= some.earlier
            for worker_id, request_id, grant in some.granted:
                if request_id in self._waiting:
                    self._found.setdefault(request_id, grant)
                else:
                    others.add(worker_id)
        self._see_due(connection)
        return others - self._members.ids

    def look(self, connection: Connection) -> None:
        """See what others have done about the wishes of this process."""
        if not self._waiting:
            return
        rows = lock.became(connection, self._members.ids)
        for request_id, (request, _) in self._waiting.items():
            grant = rows.get(request_id, LockLost(request.name, 0, why=_GIVEN_UP))
            if grant is not None:
                self._found.setdefault(request_id, grant)
        self._see_due(connection)

    def _see_due(self, connection: Connection) -> None:
        if self._waiting.keys() - self._found.keys():
            self.due_us = lock.next_due(connection)

    # ------------------------------------------------------------ after it

    def after_commit(self) -> list[Settled]:
        """Return who is to be told what."""
        found, self._found = self._found, {}
        told: list[Settled] = []
        for request_id, answer in found.items():
            _, ack = self._waiting.pop(request_id)
            told.append((ack, answer, None) if isinstance(answer, LockGrant) else (ack, None, answer))
        return told

    def take_refused(self) -> bool:
        """Return whether one that does not wait was refused: the dead may hold what it wanted. Once."""
        is_refused, self._is_refused = self._is_refused, False
        return is_refused

    def take_due(self) -> int | None:
        """Return when the next lock is over that somebody waits for, once."""
        due_us, self.due_us = self.due_us, None
        return due_us

    def after_rollback(self) -> None:
        """Forget what was given."""
        self._found.clear()
        self.due_us = None

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing will come."""
        waiting, self._waiting = self._waiting, {}
        self._found.clear()
        resolve_all([(ack, None, error) for _, ack in waiting.values()])

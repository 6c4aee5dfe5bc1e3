"""Permits at the desk: calls of this process that wait, and the serving of all that wait, once per transaction.

    (moves) ─► serve calls ─► queues for the standing order ─► flush ─► COMMIT ─► tell, ring

Touched by the writer's OS thread only. What a transaction gives is told after its commit, and forgotten when it is
rolled back; the rows are looked at again by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from sennit.errors import LimitError, ProviderBusy
from sennit.model.provider import CallReport, Permit, PermitRequest
from sennit.store.callers import begin_to_wait
from sennit.store.database import Connection
from sennit.store.effects import Calls, Effects
from sennit.store.membership import Membership
from sennit.store.moves import over, permit
from sennit.store.moves.provider import Pools
from sennit.store.writer import Settled
from sennit.sync.ack import Ack, resolve_all

T = TypeVar("T")

Answer = Permit | LimitError


class Put(Protocol):
    """The writer's `put`."""

    def __call__(self, operation: Callable[[Connection, Effects], T], /) -> Ack[T]:
        """Queue an operation."""


class Permits:
    """The calls of one process that wait, and the providers as the present transaction sees them.

    Args:
        put: queues an operation.
        members: this process as the others see it; whoever calls must be one whose death they notice.

    Attributes:
        is_refused: the last transaction that told somebody anything has refused one that does not wait.
    """

    def __init__(self, put: Put, members: Membership) -> None:
        self._put = put
        self._members = members
        self._waiting: dict[int, tuple[PermitRequest, Ack[Permit]]] = {}
        self._loose: set[int] = set()
        self._found: dict[int, Answer] = {}
        self._pools: Pools | None = None
        self.is_refused = False

    @property
    def is_used(self) -> bool:
        """True when the end of this transaction has looked at providers."""
        return self._pools is not None

    @property
    def has_news(self) -> bool:
        """True when there is something to tell after the commit."""
        return bool(self._found)

    @property
    def has_loose(self) -> bool:
        """True while this process has, or waits for, permits that are no attempt's: no attempt keeps their lease up."""
        return bool(self._loose)

    @property
    def is_waiting(self) -> bool:
        """True while a call of this process waits."""
        return bool(self._waiting)

    # ------------------------------------------------------------ from any OS thread

    def take(self, request: PermitRequest) -> Ack[Permit]:
        """Resolve when one call may be made."""
        ack: Ack[Permit] = Ack()

        def begin(connection: Connection, effects: Effects) -> None:
            if self._members.is_worker:
                self._members.has_claimed(connection, effects, leased=True)
            permit.ask(connection, effects, request, worker_id=self._members.id)
            self._waiting[request.id] = request, ack
            if request.task_id is None:
                self._loose.add(request.id)

        return begin_to_wait(self._put, self._members, ack, begin, drop=lambda: self._drop(request.id))

    def _drop(self, permit_id: int) -> None:
        self._waiting.pop(permit_id, None)
        self._loose.discard(permit_id)

    def give_back(self, permit_id: int, report: CallReport | None) -> Ack[bool]:
        """A call is over, or is not wanted any more; False when this process has no such permit."""

        def operation(connection: Connection, effects: Effects) -> bool:
            self._loose.discard(permit_id)
            return permit.give_back(connection, effects, permit_id, report, worker_ids=self._members.ids)

        return self._put(operation)

    def has_rows(self, connection: Connection) -> bool:
        """Return whether this process has permits, or waits for some, that do not go with an attempt of its own."""
        return over.has_calls(connection, self._members.ids)

    def close(self, error: BaseException) -> None:
        """Before the last transaction: the calls of this store object are over."""

        def operation(connection: Connection, effects: Effects) -> None:
            self.fail(error)
            if self._members.ids:
                over.free_store(connection, effects, self._members.ids)

        self._put(operation)

    # ------------------------------------------------------------ inside a transaction

    def pools(self, connection: Connection, effects: Effects) -> Pools:
        """Return the providers, for what is done at the end of a transaction; `flush` ends it."""
        if self._pools is None:
            self._pools = Pools(connection, effects.now_us, effects.bounds)
        return self._pools

    def serve(self, connection: Connection, effects: Effects, calls: Iterable[Calls]) -> None:
        """Serve the calls that wait; note in which queues tasks may be claimed now."""
        all_calls = Calls()
        for some in calls:
            all_calls.add(some)
        pools = self.pools(connection, effects)
        mine = effects.for_calls()
        if all_calls.spent:
            permit.refuse_spent(connection, effects)
            pools.forget_lines()
        # With a budget any provider may stand in again, or stand in no more.
        touched = None if all_calls.spent else all_calls.touched | mine.touched
        permit.serve(connection, effects, pools, touched, asked=all_calls.asked)
        effects.ready |= permit.queues_of(connection, pools, touched)

    def flush(self, effects: Effects) -> None:
        """Write what the transaction has changed of providers."""
        if self._pools is not None:
            pools, self._pools = self._pools, None
            pools.flush(effects)

    def keep(self, calls: Iterable[Calls]) -> set[int]:
        """Keep what was decided about calls of this process; return the processes of the others."""
        others = set()
        for some in calls:
            given = [(worker_id, granted.id, granted) for worker_id, granted in some.granted]
            answers: list[tuple[int, int, Answer]] = [*given, *some.refused]
            for worker_id, permit_id, answer in answers:
                if permit_id in self._waiting:
                    self._found[permit_id] = answer
                else:
                    others.add(worker_id)
        return others

    def look(self, connection: Connection) -> None:
        """See what others have decided about calls of this process."""
        if self._waiting:
            for permit_id in self._waiting.keys() - permit.waiting_of(connection, self._members.ids):
                answer = permit.became(connection, self._waiting[permit_id][0])
                if answer is not None:
                    self._found.setdefault(permit_id, answer)

    # ------------------------------------------------------------ after it

    def after_commit(self) -> list[Settled]:
        """Return who is to be told what."""
        found, self._found = self._found, {}
        told: list[Settled] = []
        self.is_refused = any(isinstance(answer, ProviderBusy) for answer in found.values())
        for permit_id, answer in found.items():
            _, ack = self._waiting.pop(permit_id)
            if isinstance(answer, Permit):
                told.append((ack, answer, None))
            else:
                told.append((ack, None, answer))
                self._loose.discard(permit_id)
        return told

    def after_rollback(self) -> None:
        """Forget what was decided."""
        self._found, self._pools = {}, None

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing will come."""
        waiting, self._waiting = self._waiting, {}
        self._found.clear()  # decided in this very transaction: nobody is there to be told
        self._loose.clear()
        resolve_all([(ack, None, error) for _, ack in waiting.values()])

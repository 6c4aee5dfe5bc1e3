"""Who waits in this process for something that is no task: a change of the inbox, room in a queue.

Touched by the writer's OS thread only. What a transaction finds out is told after its commit, and forgotten when it is
rolled back; the rows are looked at again by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.membership import Membership
from sennit.store.moves import ask, entry
from sennit.sync.ack import Ack, resolve_all

T = TypeVar("T")

Operation = Callable[[Connection, Effects], None]
Put = Callable[[Operation], Ack[None]]


def begin_to_wait(
    put: Put, members: Membership, ack: Ack[T], begin: Operation, *, drop: Callable[[], object] = lambda: None
) -> Ack[T]:
    """Begin to wait for something other processes may bring about; `drop` is called when that fails."""

    def operation(connection: Connection, effects: Effects) -> None:
        members.be_known(connection, effects)
        begin(connection, effects)

    def begun(first: Ack[None]) -> None:
        try:
            first.wait()
        except Exception as error:  # noqa: BLE001 - handed on to the waiter
            drop()
            ack.reject(error)

    put(operation).add_done_callback(begun)
    return ack


class Callers:
    """Acks of those who wait, and what was found for them.

    Args:
        put: queues an operation.
        members: this process as the others see it; whoever waits must be one that they can ring.
    """

    def __init__(self, put: Put, members: Membership) -> None:
        self._put = put
        self._members = members
        self._inbox: list[tuple[int, Ack[int]]] = []
        self._rooms: dict[str, list[tuple[int, Ack[None]]]] = {}
        self._revision: int | None = None
        self._roomy: list[tuple[str, int, Ack[None]]] = []

    @property
    def is_waiting(self) -> bool:
        """True while somebody waits."""
        return bool(self._inbox or self._rooms)

    def wait_inbox(self, seen: int) -> Ack[int]:
        """Resolve when the inbox's revision is greater than `seen`."""
        ack: Ack[int] = Ack()

        def begin(connection: Connection, _: Effects) -> None:
            if (seen, ack) not in self._inbox:  # a transaction that is run once more asks again
                self._inbox.append((seen, ack))
            self.look_inbox(connection)

        return begin_to_wait(self._put, self._members, ack, begin)

    def wait_room(self, queue: str, most: int) -> Ack[None]:
        """Resolve when fewer than `most` tasks of a queue wait; whoever claims there is to ring this process."""
        ack: Ack[None] = Ack()

        def begin(connection: Connection, _: Effects) -> None:
            rooms = self._rooms.setdefault(queue, [])
            if (most, ack) not in rooms:
                rooms.append((most, ack))
            connection.execute(entry.BLOCK, (self._members.id, queue))
            self.look_rooms(connection, [queue])

        return begin_to_wait(self._put, self._members, ack, begin)

    def look_inbox(self, connection: Connection) -> None:
        """See how far the inbox is."""
        if self._inbox:
            self._revision = ask.revision(connection)

    def look_rooms(self, connection: Connection, queues: Iterable[str] | None = None) -> None:
        """See whether there is room in `queues`; None is all that somebody waits for."""
        for queue in list(self._rooms) if queues is None else queues:
            waiting = self._rooms.get(queue, [])
            if not waiting:
                continue
            n = entry.waiting(connection, queue, max(most for most, _ in waiting))
            roomy = [(queue, most, ack) for most, ack in waiting if n < most]
            self._roomy += roomy
            if len(roomy) == len(waiting):
                connection.execute(entry.UNBLOCK, (self._members.id, queue))

    def after_commit(self) -> None:
        """Tell what was found."""
        if self._revision is not None:
            revision, self._revision = self._revision, None
            told = [(seen, ack) for seen, ack in self._inbox if revision > seen]
            self._inbox = [(seen, ack) for seen, ack in self._inbox if revision <= seen]
            resolve_all([(ack, revision, None) for _, ack in told])
        roomy, self._roomy = self._roomy, []
        for queue, most, ack in roomy:
            waiting = self._rooms.get(queue, [])
            if (most, ack) in waiting:
                waiting.remove((most, ack))
            if not waiting:
                self._rooms.pop(queue, None)
        resolve_all([(ack, None, None) for _, _, ack in roomy])

    def after_rollback(self) -> None:
        """Forget what was found."""
        self._revision, self._roomy = None, []

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing will come."""
        inbox, self._inbox = self._inbox, []
        rooms, self._rooms = self._rooms, {}
        resolve_all([(ack, None, error) for _, ack in inbox])
        resolve_all([(ack, None, error) for waiting in rooms.values() for _, ack in waiting])

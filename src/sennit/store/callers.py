"""Who waits in this process for something that is no task: a change of the inbox, room in a queue.

Touched by the writer's OS thread only. What a transaction finds out is told after its commit, and forgotten when it is
rolled back; the rows are looked at again by the next one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from sennit.store.moves import ask, entry
from sennit.sync.ack import Ack, resolve_all


class Callers:
    """Acks of those who wait, and what was found for them."""

    def __init__(self) -> None:
        self._inbox: list[tuple[int, Ack[int]]] = []
        self._rooms: dict[str, list[tuple[int, Ack[None]]]] = {}
        self._revision: int | None = None
        self._roomy: list[tuple[str, int, Ack[None]]] = []

    def wait_inbox(self, connection: sqlite3.Connection, seen: int, ack: Ack[int]) -> None:
        """Wait until the inbox's revision is greater than `seen`."""
        self._inbox.append((seen, ack))
        self.look_inbox(connection)

    def wait_room(self, connection: sqlite3.Connection, worker_id: int, queue: str, most: int, ack: Ack[None]) -> None:
        """Wait until fewer than `most` tasks of a queue wait; whoever claims there is to ring this process."""
        self._rooms.setdefault(queue, []).append((most, ack))
        connection.execute(entry.BLOCK, (worker_id, queue))
        self.look_rooms(connection, worker_id, [queue])

    def look_inbox(self, connection: sqlite3.Connection) -> None:
        """See how far the inbox is."""
        if self._inbox:
            self._revision = ask.revision(connection)

    def look_rooms(self, connection: sqlite3.Connection, worker_id: int, queues: Iterable[str] | None) -> None:
        """See whether there is room in `queues`; None is all that somebody waits for."""
        for queue in list(self._rooms) if queues is None else queues:
            waiting = self._rooms.get(queue, [])
            if not waiting:
                continue
            n = entry.waiting(connection, queue, max(most for most, _ in waiting))
            roomy = [(queue, most, ack) for most, ack in waiting if n < most]
            self._roomy += roomy
            if len(roomy) == len(waiting):
                connection.execute(entry.UNBLOCK, (worker_id, queue))

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

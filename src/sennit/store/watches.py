"""The results this process waits for. Touched by the writer's OS thread only.

What a transaction finds out is told after its commit, and forgotten when it is rolled back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from sennit.model.task import Outcome
from sennit.store.moves import look
from sennit.sync.ack import Ack, resolve_all


class Watches:
    """Task id → who waits for its outcome."""

    def __init__(self) -> None:
        self._acks: dict[int, list[Ack[Outcome]]] = {}
        self._found: list[tuple[int, Outcome]] = []
        self._looked_us = 0  # what others ended before this is known
        self._looks_us = 0

    def add(self, task_id: int, ack: Ack[Outcome], *, now_us: int) -> None:
        """Wait for an open task."""
        if not self._acks:
            self._looked_us = self._looks_us = now_us
        self._acks.setdefault(task_id, []).append(ack)

    def settle(self, connection: sqlite3.Connection, task_ids: Iterable[int]) -> None:
        """Look whether these have ended."""
        for task_id in task_ids:
            if task_id in self._acks:
                outcome = look.outcome(connection, task_id)
                if outcome is not None:
                    self._found.append((task_id, outcome))

    def settle_others(self, connection: sqlite3.Connection, *, now_us: int) -> None:
        """Look at what ended since the last look, in whatever process; not at all that is watched."""
        if self._acks:
            self._looks_us = now_us
            self.settle(connection, [i for i, _ in look.ended_since(connection, self._looked_us)])

    def after_commit(self) -> None:
        """Tell what was found."""
        self._looked_us = self._looks_us
        found, self._found = self._found, []
        if found:
            resolve_all([(ack, outcome, None) for i, outcome in found for ack in self._acks.pop(i, ())])

    def after_rollback(self) -> None:
        """Forget what was found; it is found again by the next look."""
        self._looks_us, self._found = self._looked_us, []

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing will come."""
        waiting, self._acks = self._acks, {}
        resolve_all([(ack, None, error) for acks in waiting.values() for ack in acks])

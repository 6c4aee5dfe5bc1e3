"""A task that is in no narrow table is put into one: `ready` or `timer`."""

from __future__ import annotations

import sqlite3

from sennit.model.order import next_tag_us, order_us
from sennit.store.effects import Effects
from sennit.store.sql import statements

READY, TIMER = statements("sqlite", "place")

_TAG = "SELECT tag_us FROM sennit_fair WHERE thread_id = ?"
_SET_TAG = "INSERT OR REPLACE INTO sennit_fair (thread_id, tag_us) VALUES (?, ?)"


def make_ready(
    connection: sqlite3.Connection,
    effects: Effects,
    task_id: int,
    *,
    queue: str,
    priority: int,
    thread_id: str | None,
    counts: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Put a task that is in no narrow table into `ready`; `counts` are attempt, failures, crashes so far."""
    tags = Tags(connection, effects.now_us)
    place = order_us(priority, now_us=effects.now_us, tag_us=tags.take(thread_id))
    connection.execute(READY, (queue, place, task_id, *counts))
    tags.save()
    effects.ready.add(queue)


def put_back(
    connection: sqlite3.Connection,
    effects: Effects,
    task_id: int,
    *,
    queue: str,
    place_us: int,
    counts: tuple[int, int, int],
) -> None:
    """Put a task back into `ready` at the place in the order it had."""
    connection.execute(READY, (queue, place_us, task_id, *counts))
    effects.ready.add(queue)


def schedule(
    connection: sqlite3.Connection,
    effects: Effects,
    task_id: int,
    *,
    due_us: int,
    reason: str,
    counts: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Put a task that is in no narrow table into `timer`."""
    connection.execute(TIMER, (due_us, task_id, *counts, reason))
    effects.due(due_us)


class Tags:
    """Fair tags of threads within one operation: read once, written once."""

    def __init__(self, connection: sqlite3.Connection, now_us: int) -> None:
        self._connection = connection
        self._now_us = now_us
        self._tags: dict[str, int] = {}

    def take(self, thread_id: str | None) -> int:
        """Return the tag for the thread's next task and move it on; 0 without a thread."""
        if thread_id is None:
            return 0
        tag_us = self._tags.get(thread_id)
        if tag_us is None:
            row = self._connection.execute(_TAG, (thread_id,)).fetchone()
            tag_us = 0 if row is None else row[0]
        self._tags[thread_id] = next_tag_us(tag_us, now_us=self._now_us)
        return max(tag_us, self._now_us)

    def save(self) -> None:
        """Write the tags that were taken."""
        if self._tags:
            self._connection.executemany(_SET_TAG, list(self._tags.items()))

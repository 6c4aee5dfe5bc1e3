"""A task that is in no narrow table is put into one: `ready` or `timer`."""

from __future__ import annotations

from typing import NamedTuple

from sennit.model.order import order_us
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves.turn import has_room
from sennit.store.sql import statements

READY, TIMER, _READY_AGAIN = statements("place")
_TASK = "SELECT priority, provider, route FROM sennit_task WHERE id = ?"


class Place(NamedTuple):
    """What says where a task waits once it is ready."""

    queue: str
    priority: int
    thread_id: str | None
    provider: str
    route: str


def make_ready(
    connection: Connection,
    effects: Effects,
    task_id: int,
    place: Place,
    *,
    counts: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Put a task that is in no narrow table, and has its thread's turn, into `ready`, or among those that wait for room.

    `counts` are attempt, failures, crashes so far.
    """
    queue, priority, thread_id, provider, route = place
    place_us = order_us(priority, now_us=effects.now_us)
    if thread_id is not None and not has_room(connection, effects, task_id, place_us=place_us, counts=counts):
        return
    connection.execute(READY, (queue, provider, route, place_us, task_id, *counts))
    effects.became_ready(queue, priority, route)


def put_back(
    connection: Connection,
    effects: Effects,
    task_id: int,
    *,
    queue: str,
    place_us: int,
    counts: tuple[int, int, int],
) -> None:
    """Put a task back into `ready` at the place in the order it had."""
    priority, provider, route = connection.execute(_TASK, (task_id,)).fetchone()
    connection.execute(_READY_AGAIN, (queue, provider, route, place_us, task_id, *counts, effects.now_us))
    effects.became_ready(queue, priority, route)


def schedule(
    connection: Connection,
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

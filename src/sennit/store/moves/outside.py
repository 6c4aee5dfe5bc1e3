"""Somebody from outside decides about a task: cancel it, resume it, revive it."""

from __future__ import annotations

from collections.abc import Sequence

from sennit.model.lifecycle import State
from sennit.model.task import ErrorInfo
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import look, wait
from sennit.store.moves.end import stop
from sennit.store.moves.place import Place, make_ready
from sennit.store.moves.turn import reenter
from sennit.store.sql import statements

(_UNPARK,) = statements("resume")
_REOPEN, _WAIT_AGAIN, _PLACE = statements("revive")


def cancel(connection: Connection, effects: Effects, task_ids: Sequence[int], reason: str) -> list[bool]:
    """End open tasks; False for one that has ended.

    Raises:
        TaskNotFound: the caller rolls back.
    """
    live = {i for i in task_ids if look.outcome(connection, i) is None}
    stop(connection, effects, sorted(live), State.CANCELLED, ErrorInfo(kind="cancelled", message=reason))
    answers = []
    for task_id in task_ids:
        answers.append(task_id in live)
        live.discard(task_id)  # named twice, it was cancelled once
    return answers


def resume(connection: Connection, effects: Effects, task_id: int) -> bool:
    """Make a suspended task ready; False for any other."""
    rows = connection.execute(_UNPARK, (task_id,)).fetchall()
    if rows:
        *counts, reason, since_us = rows[0]
        wait.resumed(connection, task_id, reason, effects.now_us - since_us)
        place(connection, effects, task_id, tuple(counts))
    return bool(rows)


def revive(connection: Connection, effects: Effects, task_ids: Sequence[int]) -> list[bool]:
    """Make failed or cancelled tasks ready; False for any other, and for one named before. Their limits went with them.

    Raises:
        TaskNotFound: the caller rolls back.
    """
    revived: set[int] = set()
    answers: list[bool] = []
    lines: dict[str, list[tuple[int, str, tuple[int, int, int]]]] = {}
    for task_id in task_ids:
        ended = look.outcome(connection, task_id)
        answers.append(ended is not None and ended.state is not State.SUCCEEDED and task_id not in revived)
        if ended is None or not answers[-1]:
            continue
        revived.add(task_id)
        connection.execute(_REOPEN, (task_id,))
        connection.execute(_WAIT_AGAIN, (task_id,))
        effects.counts[str(ended.state)] -= 1
        counts = (ended.attempt, 0, 0)
        queue, _, thread_id, *_ = connection.execute(_PLACE, (task_id,)).fetchone()
        if thread_id is None:
            place(connection, effects, task_id, counts)
        else:
            lines.setdefault(thread_id, []).append((task_id, queue, counts))
    for thread_id, tasks in lines.items():
        if reenter(connection, thread_id, tasks) is not None:
            place(connection, effects, tasks[0][0], tasks[0][2])
    return answers


def place(connection: Connection, effects: Effects, task_id: int, counts: tuple[int, int, int]) -> None:
    """Put a task that is in no narrow table at the place of one that is ready from now."""
    where = Place(*connection.execute(_PLACE, (task_id,)).fetchone())
    make_ready(connection, effects, task_id, where, counts=counts)

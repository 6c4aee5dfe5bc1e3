"""Reads: tasks, counts, history, and the check of every promise about the rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import msgspec

from sennit.errors import TaskNotFound
from sennit.model.lifecycle import ENDED_BY_CODE, State
from sennit.model.order import Priority
from sennit.model.provider import split_name
from sennit.model.task import AttemptView, ErrorInfo, Ledger, LogLine, Outcome, TaskView, WorkerInfo
from sennit.store.moves.provider import Pools
from sennit.store.sql import statements

_TASKS, _COUNTS, _ATTEMPTS, _LOGS, _WORKERS, _LEDGER, _OUTCOME, _ENDED_SINCE = statements("sqlite", "look")
_PROMISES = statements("sqlite", "verify")


def tasks(
    connection: sqlite3.Connection,
    pools: Pools,
    *,
    task_id: int | None = None,
    states: Sequence[State] = (),
    queue: str | None = None,
    handler: str | None = None,
    thread_id: str | None = None,
    limit: int = 100,
) -> list[TaskView]:
    """Return the newest tasks that match; payload and result only for one by id."""
    codes = {state: code for code, state in ENDED_BY_CODE.items()}
    wanted = msgspec.json.encode([codes.get(s, str(s)) for s in states]).decode() if states else None
    filters = {"id": task_id, "states": wanted, "queue": queue, "handler": handler, "thread_id": thread_id, "n": limit}
    reason = cache(partial(_held_for, pools))
    return [_view(row, reason) for row in connection.execute(_TASKS, filters).fetchall()]


def _held_for(pools: Pools, lane: str) -> str:
    """Return what a ready task is held back for by its provider; "" when there is a permit for it."""
    offer = pools.offer(lane)
    return "" if offer.pool is not None else f"{offer.room.reason or 'limit'} {split_name(lane)[0]}"


def task(connection: sqlite3.Connection, task_id: int, pools: Pools) -> TaskView:
    """Return one task.

    Raises:
        TaskNotFound: no such row.
    """
    found = tasks(connection, pools, task_id=task_id, limit=1)
    if not found:
        raise TaskNotFound(task_id)
    return found[0]


def _view(row: tuple[Any, ...], held_for: Callable[[str], str]) -> TaskView:
    (
        task_id, handler, queue, priority, thread_id, key, parent_id, created_us, ended, done_us, error,
        attempt, failures, crashes, worker_id, started_us, state, due_us, need, reason, result, payload,
        provider,
    ) = row  # fmt: skip
    if provider and state == State.READY and not ended:
        reason = held_for(provider)
    return TaskView(
        id=task_id, handler=handler, queue=queue, priority=Priority(priority), thread_id=thread_id, key=key,
        parent_id=parent_id, created_us=created_us, done_us=done_us, attempt=attempt, failures=failures,
        crashes=crashes, worker_id=worker_id, started_us=started_us, due_us=due_us, waiting_for=need, reason=reason,
        state=ENDED_BY_CODE[ended] if ended else State(state), result=result, payload=payload,
        provider=provider, error=_error(error),
    )  # fmt: skip


def _error(blob: bytes | None) -> ErrorInfo | None:
    return None if blob is None else msgspec.json.decode(blob, type=ErrorInfo)


def outcome(connection: sqlite3.Connection, task_id: int) -> Outcome | None:
    """Return how a task ended, or None while it is open.

    Raises:
        TaskNotFound: no such row.
    """
    row = connection.execute(_OUTCOME, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFound(task_id)
    if not row[0]:
        return None
    return Outcome(ENDED_BY_CODE[row[0]], row[1], row[2], _error(row[3]))


def ended_since(connection: sqlite3.Connection, since_us: int) -> list[tuple[int, int]]:
    """Return (id, done_us) of tasks that ended at or after `since_us`, oldest first."""
    return connection.execute(_ENDED_SINCE, (since_us,)).fetchall()


def counts(connection: sqlite3.Connection) -> dict[str, dict[State, int]]:
    """Return queue → state → live tasks."""
    found: dict[str, dict[State, int]] = {}
    for queue, state, n in connection.execute(_COUNTS):
        found.setdefault(queue, {})[State(state)] = n
    return found


def attempts(connection: sqlite3.Connection, task_id: int) -> list[AttemptView]:
    """Return the attempts that did not succeed."""
    return [
        AttemptView(attempt=a, outcome=o, worker_id=w, started_us=s, ended_us=e, error=_error(error))
        for a, o, w, s, e, error in connection.execute(_ATTEMPTS, (task_id,))
    ]


def logs(connection: sqlite3.Connection, task_id: int, *, after_seq: int, limit: int) -> list[LogLine]:
    """Return log lines, oldest first."""
    return [
        LogLine(seq=seq, task_id=task, attempt=attempt, at_us=at_us, level=level, text=text)
        for seq, task, attempt, at_us, level, text in connection.execute(_LOGS, (task_id, after_seq, limit))
    ]


def workers(connection: sqlite3.Connection) -> list[WorkerInfo]:
    """Return the registered processes, and those that left while they held something: these have no bell."""
    return [
        msgspec.structs.replace(
            msgspec.json.decode(info, type=WorkerInfo), bell=bell, expire_us=expire_us, running=running
        )
        for info, bell, expire_us, running in connection.execute(_WORKERS)
    ]


def ledger(connection: sqlite3.Connection) -> Ledger:
    """Return the counts; one statement, so all of one moment."""
    return Ledger(**dict(connection.execute(_LEDGER).fetchall()))


def verify(connection: sqlite3.Connection) -> list[str]:
    """Return every broken promise as a sentence. In one transaction, or they are of several moments."""
    broken = [row[0] for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]
    if broken:
        return broken  # what rows say that cannot be read soundly proves nothing
    for promise in _PROMISES:
        broken += [row[0] for row in connection.execute(promise)]
    return broken

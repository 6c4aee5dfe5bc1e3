"""Reads: tasks, counts, history, and the check of every promise about the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any

import msgspec

from sennit.errors import TaskNotFound
from sennit.model.lifecycle import ENDED_BY_CODE, State
from sennit.model.order import Priority
from sennit.model.provider import split_name
from sennit.model.task import AttemptView, ErrorInfo, Ledger, LogLine, Outcome, RouteView, TaskView, WorkerInfo, encode
from sennit.store.database import Connection
from sennit.store.moves.provider import Pools
from sennit.store.routes import no_worker, route_view
from sennit.store.sql import Statement, statements

(
    _TASKS, _COUNTS, _ATTEMPTS, _LOGS, _WORKERS, _LEDGER, _OUTCOME, _ENDED_SINCE, _ROUTES, _OUTCOMES, _ENDED_OF,
) = statements("look")  # fmt: skip
_PROMISES = statements("verify")
_CHECK = Statement("PRAGMA quick_check", "SELECT 'ok'")  # PostgreSQL keeps its pages by checksums of its own


def tasks(
    connection: Connection,
    pools: Pools,
    workers: Callable[[], Sequence[WorkerInfo]],
    *,
    task_id: int | None = None,
    states: Sequence[State] = (),
    queue: str | None = None,
    handler: str | None = None,
    thread_id: str | None = None,
    limit: int = 100,
) -> list[TaskView]:
    """Return the newest tasks that match; payload and result only for one by id.

    Args:
        workers: returns those that live; asked only when a ready task needs a certain one.
    """
    codes = {state: code for code, state in ENDED_BY_CODE.items()}
    wanted = msgspec.json.encode([str(codes.get(s, s)) for s in states]).decode() if states else None
    filters = {"id": task_id, "states": wanted, "queue": queue, "handler": handler, "thread_id": thread_id, "n": limit}
    held = cache(partial(_held_for, pools))
    living = cache(workers)
    return [_view(row, held, living) for row in connection.execute(_TASKS, filters).fetchall()]


def _held_for(pools: Pools, lane: str) -> str:
    """Return what a ready task is held back for by its provider; "" when there is a permit for it."""
    offer = pools.offer(lane)
    return "" if offer.pool is not None else f"{offer.room.reason or 'limit'} {split_name(lane)[0]}"


def task(connection: Connection, task_id: int, pools: Pools, workers: Callable[[], Sequence[WorkerInfo]]) -> TaskView:
    """Return one task.

    Raises:
        TaskNotFound: no such row.
    """
    found = tasks(connection, pools, workers, task_id=task_id, limit=1)
    if not found:
        raise TaskNotFound(task_id)
    return found[0]


def _view(
    row: tuple[Any, ...], held_for: Callable[[str], str], workers: Callable[[], Sequence[WorkerInfo]]
) -> TaskView:
    (
        task_id, handler, queue, priority, thread_id, key, parent_id, created_us, ended, done_us, error,
        attempt, failures, crashes, worker_id, started_us, state, due_us, need, reason, result, payload,
        provider, route,
    ) = row  # fmt: skip
    is_ready = state == State.READY and not ended
    if provider and is_ready:
        reason = held_for(provider)
    if route and is_ready and not any(worker.may_run(route, queue) for worker in workers()):
        reason = no_worker(route)
    return TaskView(
        id=task_id, handler=handler, queue=queue, priority=Priority(priority), thread_id=thread_id, key=key,
        parent_id=parent_id, created_us=created_us, done_us=done_us, attempt=attempt, failures=failures,
        crashes=crashes, worker_id=worker_id, started_us=started_us, due_us=due_us, waiting_for=need, reason=reason,
        state=ENDED_BY_CODE[ended] if ended else State(state), result=result, payload=payload or b"",
        provider=provider, route=route, error=_error(error),
    )  # fmt: skip


def _error(blob: bytes | None) -> ErrorInfo | None:
    return None if blob is None else msgspec.json.decode(blob, type=ErrorInfo)


def outcome(connection: Connection, task_id: int) -> Outcome | None:
    """Return how a task ended, or None while it is open.

    Raises:
        TaskNotFound: no such row.
    """
    row = connection.execute(_OUTCOME, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFound(task_id)
    return _outcome(row) if row[1] else None


def outcomes(connection: Connection, task_ids: Collection[int]) -> dict[int, Outcome | None]:
    """Return how tasks ended, None for one that is open; an unknown one is left out."""
    rows = _rows_of(connection, _OUTCOMES, task_ids)
    return {row[0]: _outcome(row) if row[1] else None for row in rows}


def ended_of(connection: Connection, task_ids: Collection[int]) -> dict[int, Outcome]:
    """Return how those of `task_ids` ended that have."""
    return {row[0]: _outcome(row) for row in _rows_of(connection, _ENDED_OF, task_ids) if row[1]}


def _rows_of(connection: Connection, statement: str, task_ids: Collection[int]) -> list[tuple[Any, ...]]:
    """Return the rows of tasks; of one, as mostly, without making a list of it for the database."""
    if len(task_ids) == 1:
        return connection.execute(_OUTCOME, tuple(task_ids)).fetchall()
    return connection.execute(statement, (encode(list(task_ids)),)).fetchall()


def _outcome(row: tuple[Any, ...]) -> Outcome:
    _, state, attempt, result, error = row
    return Outcome(ENDED_BY_CODE[state], attempt, result, _error(error))


def ended_since(connection: Connection, since_us: int) -> list[tuple[int, int]]:
    """Return (id, done_us) of tasks that ended at or after `since_us`, oldest first."""
    return connection.execute(_ENDED_SINCE, (since_us,)).fetchall()


def counts(connection: Connection) -> dict[str, dict[State, int]]:
    """Return queue → state → live tasks."""
    found: dict[str, dict[State, int]] = {}
    for queue, state, n in connection.execute(_COUNTS):
        found.setdefault(queue, {})[State(state)] = n
    return found


def routes(connection: Connection, workers: Callable[[], Sequence[WorkerInfo]]) -> list[RouteView]:
    """Return what open tasks need of their worker."""
    rows = connection.execute(_ROUTES).fetchall()
    living = workers() if rows else []
    return [route_view(queue, route, live=live, ready=ready, workers=living) for queue, route, live, ready in rows]


def attempts(connection: Connection, task_id: int) -> list[AttemptView]:
    """Return the attempts that did not succeed."""
    return [
        AttemptView(attempt=a, outcome=o, worker_id=w, started_us=s, ended_us=e, error=_error(error))
        for a, o, w, s, e, error in connection.execute(_ATTEMPTS, (task_id,))
    ]


def logs(connection: Connection, task_id: int, *, after_seq: int, limit: int) -> list[LogLine]:
    """Return log lines, oldest first."""
    return [
        LogLine(seq=seq, task_id=task, attempt=attempt, at_us=at_us, level=level, text=text)
        for seq, task, attempt, at_us, level, text in connection.execute(_LOGS, (task_id, after_seq, limit))
    ]


def workers(connection: Connection) -> list[WorkerInfo]:
    """Return the registered processes, and those that left while they held something: these have no bell."""
    return [
        msgspec.structs.replace(
            msgspec.json.decode(info, type=WorkerInfo), bell=bell, expire_us=expire_us, running=running
        )
        for info, bell, expire_us, running in connection.execute(_WORKERS)
    ]


def ledger(connection: Connection) -> Ledger:
    """Return the counts; one statement, so all of one moment."""
    return Ledger(**dict(connection.execute(_LEDGER).fetchall()))


def verify(connection: Connection) -> list[str]:
    """Return every broken promise as a sentence. In one transaction, or they are of several moments."""
    broken = [row[0] for row in connection.execute(_CHECK) if row[0] != "ok"]
    if broken:
        return broken  # what rows say that cannot be read soundly proves nothing
    for promise in _PROMISES:
        broken += [row[0] for row in connection.execute(promise)]
    return broken

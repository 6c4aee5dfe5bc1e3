"""Coding agents as people see them: the view that an attempt gave last, and what has become of its task since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from sennit.model.agent import AgentStatus, AgentView
from sennit.model.lifecycle import ENDED_BY_CODE
from sennit.model.task import Claim, encode
from sennit.store.agent_views import Noted, noted, seen, status_of, viewed
from sennit.store.database import Connection
from sennit.store.sql import statements

_NOTE, _NEWEST, _LIVE, _OF, _COUNTS, _INFO = statements("agent")
_NEWER_THAN_ALL: Final = 2**63 - 1


def note(connection: Connection, row: Noted) -> None:
    """Keep a view. Whether the attempt is held is the caller's to know."""
    connection.execute(_NOTE, row)


def agents(
    connection: Connection, *, live: bool | None, task_ids: Sequence[int], before_id: int | None, limit: int
) -> list[AgentView]:
    """Return the agents that match, of the newest task first."""
    if before_id is None:
        before_id = _NEWER_THAN_ALL
    if task_ids:
        views = _of(connection, task_ids)
        wanted = (view for view in views if view.task_id < before_id and live in (None, view.is_live))
        return sorted(wanted, key=lambda view: -view.task_id)[:limit]
    filters = {"before_id": before_id, "n": limit}
    if live:
        return _views(connection.execute(_LIVE, filters))
    return _views(connection.execute(_NEWEST, {**filters, "ended": int(live is not None)}))


def _of(connection: Connection, task_ids: Sequence[int]) -> list[AgentView]:
    return _views(connection.execute(_OF, (encode(sorted(set(task_ids))),)))


def _views(rows: Iterable[tuple[bytes, int, int | None, int | None]]) -> list[AgentView]:
    return [
        seen(viewed(info), ended=ENDED_BY_CODE.get(state), done_us=done_us, later=later)
        for info, state, done_us, later in rows
    ]


def counts(connection: Connection) -> dict[str, dict[AgentStatus, int]]:
    """Return handler → status → number of all that are kept."""
    counted: dict[str, dict[AgentStatus, int]] = {}
    for handler, said, state, later, n in connection.execute(_COUNTS):
        status = status_of(said, ended=ENDED_BY_CODE.get(state), later=later)
        of_handler = counted.setdefault(handler, {})
        of_handler[status] = of_handler.get(status, 0) + n
    return counted


def release(connection: Connection, task_id: int) -> AgentView | None:
    """Forget the worktree of an agent, and return its view from then on."""
    row = connection.execute(_INFO, (task_id,)).fetchone()
    if row is None:
        return None
    view = viewed(row[0])
    note(connection, noted(Claim(task_id, view.attempt), msgspec.structs.replace(view, worktree="")))
    return _of(connection, [task_id])[0]

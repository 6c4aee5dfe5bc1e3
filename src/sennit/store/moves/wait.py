"""How long a task has waited, and for what: added up where a wait ends, the rest follows from its times."""

from __future__ import annotations

from sennit.errors import TaskNotFound
from sennit.store.database import Connection
from sennit.store.sql import statements

_ADD, _BEGUN, _WAITS, _TIMES = statements("wait")
_SUSPENDED = {"event": "event", "budget": "budget"}


def add(connection: Connection, task_id: int, reason: str, us: int, *, is_early: bool = False) -> None:
    """Note that a task has waited; `is_early`: it has not been started before."""
    if us > 0:
        connection.execute(_ADD, (task_id, reason, us, us if is_early else 0))


def resumed(connection: Connection, task_id: int, reason: str, us: int) -> None:
    """Note that a task was suspended for `reason`: a person, unless it says otherwise."""
    add(connection, task_id, _SUSPENDED.get(reason, "human"), us)


def begun(connection: Connection, task_id: int, started_us: int) -> None:
    """Note the first start of a task whose first attempt leaves nothing in the history."""
    connection.execute(_BEGUN, (task_id, started_us))


def waits(connection: Connection, task_id: int) -> dict[str, int]:
    """Return µs by reason.

    Raises:
        TaskNotFound: no such row.
    """
    times = connection.execute(_TIMES, (task_id,)).fetchone()
    if times is None:
        raise TaskNotFound(task_id)
    created_us, started_us, parents_us = times
    rows = connection.execute(_WAITS, (task_id,)).fetchall()
    found = {reason: us for reason, us, _ in rows}
    dependencies_us = max(0, (parents_us or created_us) - created_us)
    if started_us is not None:
        found["queue"] = max(0, started_us - created_us - dependencies_us - sum(early_us for _, _, early_us in rows))
        found["dependencies"] = min(dependencies_us, started_us - created_us)
    return {reason: us for reason, us in found.items() if us}

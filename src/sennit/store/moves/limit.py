"""Time limits are lifted: all of them when a task ends, the queue time-out with the first claim."""

from __future__ import annotations

from collections.abc import Sequence

from sennit.model.task import encode
from sennit.store.database import Connection
from sennit.store.sql import statements

_LIFT, _LIFT_QUEUE_TIMEOUT = statements("limit")


def lift(connection: Connection, ended: Sequence[int]) -> None:
    """Forget the limits of tasks that have ended."""
    connection.execute(_LIFT, (encode(ended),))


def started(connection: Connection, task_ids: Sequence[int]) -> None:
    """Forget the queue time-outs of tasks that were claimed; the claim has seen that there are limits."""
    connection.execute(_LIFT_QUEUE_TIMEOUT, (encode(task_ids),))

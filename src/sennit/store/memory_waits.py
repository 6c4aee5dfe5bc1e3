"""For how long tasks have waited, and for what, in the memory store.

submit ─► dependencies ─► queue, limit, rate, pause, breaker ─► first start ─► human, event, budget, limit … ─► end
"""

from __future__ import annotations

from sennit.store.memory_row import Row
from sennit.store.memory_rows import Rows


def waits(rows: Rows, row: Row) -> dict[str, int]:
    """Return µs by reason; the queue is what no other reason explains, until the first start."""
    found = dict(row.waits)
    if row.begun_us is not None:
        until_start_us = row.begun_us - row.created_us
        parents = (rows.tasks[i].done_us for i in row.parents if i in rows.tasks)
        ended_us = max((done_us for done_us in parents if done_us is not None), default=row.created_us)
        found["dependencies"] = min(max(0, ended_us - row.created_us), until_start_us)
        found["queue"] = max(0, until_start_us - found["dependencies"] - row.early_us)
    return {reason: us for reason, us in sorted(found.items()) if us}

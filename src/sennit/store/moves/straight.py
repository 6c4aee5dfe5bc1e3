"""nothing ─► running: a plain task for which this process has a slot, while nobody is in front of it.

What submit and claim would do one after the other in this transaction, without the row in `ready` that would live in
between. It is a tenth of the time from an idle submit to the first line of the body.
"""

from __future__ import annotations

from sennit.model.order import order_us
from sennit.model.task import Claimed, TaskSpec
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.sql import statements

_IS_FREE, _RUN = statements("straight")
_PLAIN_TASK = statements("submit")[4]


def is_plain(spec: TaskSpec) -> bool:
    """True for a task that nothing can hold back, refuse or find again."""
    held_back = spec.parents or spec.delay_us or spec.queue_timeout_us or spec.deadline_us
    named = (spec.key, spec.parent_id, spec.child_key, spec.thread_id, spec.entry)
    return not held_back and not spec.provider and not spec.route and named == (None, None, None, None, None)


def start(connection: Connection, effects: Effects, spec: TaskSpec, *, worker_id: int) -> Claimed | None:
    """Store a plain task as claimed by `worker_id`; None, and nothing is stored, when it has to queue."""
    if not connection.execute(_IS_FREE, {"queue": spec.queue, "worker_id": worker_id}).fetchone()[0]:
        return None
    task_id, queue, now_us = spec.ref.id, spec.queue, effects.now_us
    connection.execute(
        _PLAIN_TASK,
        (task_id, spec.handler, queue, spec.priority, spec.payload, spec.options, spec.crashes_max, now_us),
    )
    place_us = order_us(spec.priority, now_us=now_us)  # it has one: given back, it takes this place
    connection.execute(_RUN, (task_id, worker_id, queue, place_us, now_us))
    effects.counts["submitted"] += 1
    effects.claimed = True
    return Claimed(
        id=task_id, attempt=1, handler=spec.handler, queue=queue, payload=spec.payload, options=spec.options,
        created_us=now_us, priority=spec.priority, ready_us=now_us,
    )  # fmt: skip

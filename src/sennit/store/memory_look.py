"""What the memory store shows: views of rows, counts, and the promises that `verify` checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import Ledger, Outcome, TaskView
from sennit.store.memory_rows import Row, Rows


def outcome(row: Row) -> Outcome:
    """Return how an ended task ended."""
    return Outcome(state=row.state, attempt=row.attempt, result=row.result, error=row.error)


def view(row: Row, *, full: bool) -> TaskView:
    """Return one task as others see it; payload and result only when `full`."""
    spec = row.spec
    return TaskView(
        id=row.id,
        handler=spec.handler,
        queue=spec.queue,
        state=row.state,
        priority=Priority(spec.priority),
        attempt=row.attempt,
        failures=row.failures,
        crashes=row.crashes,
        thread_id=spec.thread_id,
        key=row.key,
        parent_id=spec.parent_id,
        created_us=row.created_us,
        due_us=row.due_us,
        started_us=row.started_us,
        done_us=row.done_us,
        waiting_for=row.need if row.state is State.WAITING else 0,
        worker_id=row.worker_id,
        reason=row.reason,
        result=row.result if full else None,
        error=row.error,
        payload=spec.payload if full else b"",
    )


def select(
    rows: Rows, *, states: Sequence[State], queue: str | None, handler: str | None, thread_id: str | None, limit: int
) -> list[TaskView]:
    """Return the newest tasks that match, newest first."""
    found: list[TaskView] = []
    for task_id in sorted(rows.tasks, reverse=True):
        if len(found) == limit:
            break
        row = rows.tasks[task_id]
        wanted = ((queue, row.spec.queue), (handler, row.spec.handler), (thread_id, row.spec.thread_id))
        if (not states or row.state in states) and all(want in (None, have) for want, have in wanted):
            found.append(view(row, full=False))
    return found


def counts(rows: Rows) -> dict[str, dict[State, int]]:
    """Return queue → state → number of live tasks."""
    counted: dict[str, dict[State, int]] = {}
    for (queue, state), n in Counter((r.spec.queue, r.state) for r in rows.tasks.values() if r.state.live).items():
        counted.setdefault(queue, {})[state] = n
    return counted


def ledger(rows: Rows) -> Ledger:
    """Return the counts; `live` comes from the rows, the others were kept move by move."""
    live = sum(row.state.live for row in rows.tasks.values())
    kept = ("submitted", "succeeded", "failed", "cancelled", "retried", "crashed", "refused", "pruned")
    return Ledger(live=live, **{name: rows.tally[name] for name in kept})


def verify(rows: Rows) -> list[str]:
    """Return every broken promise as a sentence."""
    return [*_broken_rows(rows), *_broken_indexes(rows), *_broken_counts(rows)]


def _broken_rows(rows: Rows) -> Iterator[str]:
    for row in rows.tasks.values():
        open_parents = sum(p in rows.tasks and rows.tasks[p].state.live for p in set(row.parents))
        if row.state is State.WAITING and row.need != open_parents:
            yield f"task {row.id} waits for {row.need} parents and {open_parents} are open"
        if row.state is State.WAITING and not row.need:
            yield f"task {row.id} waits for nothing"
        if row.state.live == (row.done_us is not None):
            yield f"task {row.id} is {row.state} and done_us is {row.done_us}"
        if (row.state is State.SCHEDULED) != (row.due_us is not None):
            yield f"task {row.id} is {row.state} and due_us is {row.due_us}"
        if (row.state is State.RUNNING) != (row.worker_id is not None):
            yield f"task {row.id} is {row.state} and worker_id is {row.worker_id}"


def _broken_indexes(rows: Rows) -> Iterator[str]:
    ready = {(queue, *entry) for queue, heap in rows.ready.items() for entry in heap}
    timers = {(due_us, task_id) for due_us, task_id, kind in rows.dues if kind == "timer"}
    held = {(worker_id, task_id) for worker_id, tasks in rows.held.items() for task_id in tasks}
    for row in rows.tasks.values():
        if row.state is State.READY and (row.spec.queue, row.order_us, row.id) not in ready:
            yield f"task {row.id} is ready and cannot be claimed"
        if row.due_us is not None and (row.due_us, row.id) not in timers:
            yield f"task {row.id} is scheduled and no timer will wake it"
        if row.worker_id is not None and (row.worker_id, row.id) not in held:
            yield f"task {row.id} runs and worker {row.worker_id} does not hold it"
        if row.key is not None and rows.keys.get((row.spec.handler, row.key)) != row.id:
            yield f"task {row.id} has the key {row.key!r} and is not found by it"
    for worker_id, task_id in held:
        if task_id not in rows.tasks or rows.tasks[task_id].worker_id != worker_id:
            yield f"worker {worker_id} holds task {task_id}, which it does not run"


def _broken_counts(rows: Rows) -> Iterator[str]:
    kept = ledger(rows)
    if not kept.balanced:
        yield f"the ledger says {kept.submitted} submitted and {kept.missing} of them are missing"
    ended = sum(not row.state.live for row in rows.tasks.values())
    if kept.succeeded + kept.failed + kept.cancelled != ended + kept.pruned:
        yield f"the ledger counts other ends than the {ended} stored and {kept.pruned} pruned tasks"

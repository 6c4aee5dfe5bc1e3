"""Retention in the memory store: old ended tasks go with all that belongs to them, and what nobody asked for in time."""

from __future__ import annotations

from sennit.store.memory_rows import Row, Rows


def prune(rows: Rows, *, before_us: int, limit: int) -> int:
    """Delete up to `limit` tasks that ended before `before_us`, oldest first; return how many.

    With them go, without a limit, the signals that were kept and the operations that were remembered since before then.
    """
    ended = [(row.done_us, row.id) for row in rows.tasks.values() if row.done_us is not None]
    pruned = 0
    for done_us, task_id in sorted(ended):
        if pruned == limit or done_us >= before_us:
            break
        row = rows.tasks[task_id]
        if not _is_needed(rows, row):
            _delete(rows, row)
            pruned += 1
    rows.tally["pruned"] += pruned
    rows.states.prune(before_us=before_us)
    rows.asks.signals = [signal for signal in rows.asks.signals if signal.at_us >= before_us]
    return pruned


def _is_needed(rows: Rows, row: Row) -> bool:
    """True while a live task needs this one's result: it depends on it, or submitted it and may run again.

    And while a worktree of its agent is there: nobody else knows where it lies.
    """
    if row.agent is not None and row.agent.worktree:
        return True
    submitter = None if row.spec.parent_id is None else rows.tasks.get(row.spec.parent_id)
    if submitter is not None and submitter.state.live:
        return True
    return any(rows.tasks[child_id].state.live for child_id in rows.children.get(row.id, ()))


def _delete(rows: Rows, row: Row) -> None:
    del rows.tasks[row.id]
    rows.drop_key(row)
    rows.cache.drop_task(row.id)
    rows.asks.drop_task(row.id)
    rows.providers.budgets.drop_task(row.id)
    if row.spec.parent_id is not None and row.spec.child_key is not None:
        del rows.child_keys[row.spec.parent_id, row.spec.child_key]
    rows.children.pop(row.id, None)
    for parent_id in row.parents:
        rows.children.get(parent_id, {}).pop(row.id, None)

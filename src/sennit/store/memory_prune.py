"""Retention in the memory store: old ended tasks go, with all that belongs to them."""

from __future__ import annotations

from sennit.store.memory_rows import Row, Rows


def prune(rows: Rows, *, before_us: int, limit: int, now_us: int) -> int:
    """Delete up to `limit` tasks that ended before `before_us`, oldest first; return how many."""
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
    rows.tags_us = {thread_id: tag_us for thread_id, tag_us in rows.tags_us.items() if tag_us > now_us}
    return pruned


def _is_needed(rows: Rows, row: Row) -> bool:
    """True while a live task needs this one's result: it depends on it, or submitted it and may run again."""
    submitter = None if row.spec.parent_id is None else rows.tasks.get(row.spec.parent_id)
    if submitter is not None and submitter.state.live:
        return True
    return any(rows.tasks[child_id].state.live for child_id in rows.children.get(row.id, ()))


def _delete(rows: Rows, row: Row) -> None:
    del rows.tasks[row.id]
    rows.drop_key(row)
    if row.spec.parent_id is not None and row.spec.child_key is not None:
        del rows.child_keys[row.spec.parent_id, row.spec.child_key]
    rows.children.pop(row.id, None)
    for parent_id in row.parents:
        rows.children.get(parent_id, {}).pop(row.id, None)

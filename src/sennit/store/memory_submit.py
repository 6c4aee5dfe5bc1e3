"""Handing in to the memory store: first decide all of it, then store all of it.

`Plan.add` may refuse and changes nothing; `Plan.store` cannot fail. So a refused batch leaves no trace without an undo
log, and one plan may take the children of many attempts before anything of them is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sennit.errors import DuplicateKey, UnknownDependency, UsageError
from sennit.model.graph import order_batch, parents_outside
from sennit.model.lifecycle import Event, State
from sennit.model.task import ErrorInfo, TaskSpec
from sennit.store.memory_rows import Row, Rows

K = TypeVar("K")


@dataclass(slots=True)
class Batch:
    """What one call hands in, decided.

    Attributes:
        ids: one per spec, of the stored task that stands for it.
        new: the rows to store.
        keys, child_keys: the keys that the new rows take.
        replaced: tasks that give their key to a new one.
    """

    specs: Sequence[TaskSpec]
    ids: list[int] = field(default_factory=list)
    new: dict[int, Row] = field(default_factory=dict)
    keys: dict[tuple[str, str], int] = field(default_factory=dict)
    child_keys: dict[tuple[int, str], int] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)


class Plan:
    """Decides batches on top of what is stored and of the batches decided before."""

    def __init__(self, rows: Rows, *, now_us: int) -> None:
        self._rows = rows
        self._now_us = now_us
        self._new: set[int] = set()
        self._keys: dict[tuple[str, str], int] = {}
        self._child_keys: dict[tuple[int, str], int] = {}
        self.replaced: set[int] = set()

    def add(self, specs: Sequence[TaskSpec]) -> Batch:
        """Decide one batch. One that is refused leaves the plan as it was.

        Raises:
            UnknownDependency, CyclicDependency, DuplicateKey: see `Store.submit`.
            UsageError: an id is already stored.
        """
        batch = Batch(specs)
        stored_as: dict[int, int] = {}
        for spec in specs:
            task_id = self._find(spec, batch)
            if task_id is None:
                task_id = self._take(spec, batch)
            stored_as[spec.ref.id] = task_id
            batch.ids.append(task_id)
        for row in batch.new.values():
            row.parents = tuple(stored_as.get(p.id, p.id) for p in row.spec.parents)
        self._check_parents({row.id: row.parents for row in batch.new.values()})
        self._new.update(batch.new)
        self._keys.update(batch.keys)
        self._child_keys.update(batch.child_keys)
        self.replaced.update(batch.replaced)
        return batch

    def _find(self, spec: TaskSpec, batch: Batch) -> int | None:
        """Return the stored (or planned) task that stands for `spec`, or None when it is to be stored."""
        if spec.parent_id is not None and spec.child_key is not None:
            child_key = (spec.parent_id, spec.child_key)
            child_id = _first(child_key, batch.child_keys, self._child_keys, self._rows.child_keys)
            if child_id is not None:
                return child_id
        if spec.key is None:
            return None
        task_id = _first((spec.handler, spec.key), batch.keys, self._keys, self._rows.keys)
        if task_id is None or spec.on_conflict == "existing":
            return task_id
        if spec.on_conflict == "reject":
            raise DuplicateKey(spec.handler, spec.key, task_id)
        batch.replaced.append(task_id)
        return None

    def _take(self, spec: TaskSpec, batch: Batch) -> int:
        task_id = spec.ref.id
        if task_id in self._rows.tasks or task_id in self._new or task_id in batch.new:
            raise UsageError(f"task {task_id} is already stored", fix="take a fresh id for every submitted task")
        if spec.key is not None:
            batch.keys[spec.handler, spec.key] = task_id
        if spec.parent_id is not None and spec.child_key is not None:
            batch.child_keys[spec.parent_id, spec.child_key] = task_id
        batch.new[task_id] = Row(id=task_id, spec=spec, key=spec.key, created_us=self._now_us)
        return task_id

    def _check_parents(self, parents: Mapping[int, tuple[int, ...]]) -> None:
        strangers = parents_outside(parents) - self._rows.tasks.keys() - self._new
        if strangers:
            raise UnknownDependency(tuple(sorted(strangers)))
        order_batch(parents)

    def store(self, batch: Batch) -> list[int]:
        """Store a decided batch; return its ids."""
        rows, now_us = self._rows, self._now_us
        self._cancel_replaced(batch, among=rows.tasks)
        failed_parents = [_insert(rows, row) for row in batch.new.values()]
        self._cancel_replaced(batch, among=batch.new)
        for row, failed_parent in zip(batch.new.values(), failed_parents, strict=True):
            if row.state is not State.WAITING:
                continue  # an earlier one of the batch has decided it
            if failed_parent is not None:
                rows.settle_policy(row, failed_parent, now_us=now_us)
            elif not row.need:
                rows.parents_done(row, now_us=now_us)
        for spec, task_id in zip(batch.specs, batch.ids, strict=True):
            spec.ref.id = task_id
        return batch.ids

    def _cancel_replaced(self, batch: Batch, *, among: Mapping[int, Row]) -> None:
        error = ErrorInfo(kind="cancelled", message="replaced by a newer task with the same key")
        for row in [among[i] for i in batch.replaced if i in among]:
            self._rows.drop_key(row)
            if row.state.live:
                self._rows.stop([row], Event.CANCEL, error, now_us=self._now_us)


def _first(key: K, *maps: Mapping[K, int]) -> int | None:
    """Return what the first of `maps` that has `key` says."""
    return next((found[key] for found in maps if key in found), None)


def _insert(rows: Rows, row: Row) -> Row | None:
    """Put a row and its edges into the tables; return a parent whose end decides it at once, or None."""
    spec = row.spec
    rows.tasks[row.id] = row
    rows.tally["submitted"] += 1
    if row.key is not None:
        rows.keys[spec.handler, row.key] = row.id
    if spec.parent_id is not None and spec.child_key is not None:
        rows.child_keys[spec.parent_id, spec.child_key] = row.id
    rows.watch_time_outs(row)
    decides = None
    for parent_id in dict.fromkeys(row.parents):
        rows.children.setdefault(parent_id, {})[row.id] = None
        parent = rows.tasks.get(parent_id)
        if parent is None or parent.state.live:  # None: later in this batch
            row.need += 1
        elif parent.state is not State.SUCCEEDED and spec.on_parent_failed != "run":
            decides = decides or parent
    return decides

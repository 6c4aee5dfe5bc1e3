"""Handing in to the memory store: first decide all of it, then store all of it.

`Plan.add` may refuse and changes nothing; `Plan.store` cannot fail. So a refused batch leaves no trace without an undo
log. What is decided holds until the next move: a plan is stored at once, or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sennit.errors import DuplicateKey, UnknownDependency, UsageError
from sennit.model.graph import order_batch, parents_outside
from sennit.model.lifecycle import Event, State
from sennit.model.task import ErrorInfo, TaskSpec
from sennit.store.memory_entry import Admission
from sennit.store.memory_rows import Row, Rows


class Plan:
    """What one call hands in.

    Attributes:
        ids: one per spec, of the stored task that stands for it.

    Args:
        versions_max: how many versions of a state are kept when one is rolled back.
        is_children: handed in by a running attempt.
        ending: the task whose success hands them in.
    """

    def __init__(
        self, rows: Rows, *, now_us: int, versions_max: int, is_children: bool = False, ending: int | None = None
    ) -> None:
        self.ids: list[int] = []
        self._rows = rows
        self._now_us = now_us
        self._versions_max = versions_max
        self._admission = Admission(rows, now_us=now_us, bounded=not is_children, ending=ending)
        self._specs: Sequence[TaskSpec] = ()
        self._new: dict[int, Row] = {}
        self._keys: dict[tuple[str, str], int] = {}
        self._child_keys: dict[tuple[int, str], int] = {}
        self._replaced: list[int] = []

    def add(self, specs: Sequence[TaskSpec]) -> None:
        """Decide the batch.

        Raises:
            UnknownDependency, CyclicDependency, DuplicateKey, ThreadBusy, QueueFull: see `Store.submit`.
            UsageError: an id is already stored.
        """
        self._specs = specs
        stored_as: dict[int, int] = {}
        for spec in specs:
            task_id = self._find(spec)
            if task_id is None:
                task_id = self._take(spec)
            stored_as[spec.ref.id] = task_id
            self.ids.append(task_id)
        for row in self._new.values():
            row.parents = tuple(stored_as.get(p.id, p.id) for p in row.spec.parents)
        self._check_parents({row.id: row.parents for row in self._new.values()})

    def _find(self, spec: TaskSpec) -> int | None:
        """Return the stored (or planned) task that stands for `spec`, or None when it is to be stored.

        One that replaces another is always stored: whoever asks for that does not want an old result.
        """
        if spec.parent_id is not None and spec.child_key is not None:
            child_key = (spec.parent_id, spec.child_key)
            child_id = self._child_keys.get(child_key, self._rows.child_keys.get(child_key))
            if child_id is not None:
                return child_id
        if spec.key is not None:
            key = (spec.handler, spec.key)
            task_id = self._keys.get(key, self._rows.keys.get(key))
            if task_id is not None:
                if spec.on_conflict == "existing":
                    return task_id
                if spec.on_conflict == "reject":
                    raise DuplicateKey(spec.handler, spec.key, task_id)
                self._replaced.append(task_id)
                self._admission.take_away([self._rows.tasks[task_id]] if task_id in self._rows.tasks else [])
                return None
        return self._admission.find_cached(spec)

    def _take(self, spec: TaskSpec) -> int:
        task_id = spec.ref.id
        if task_id in self._rows.tasks or task_id in self._new:
            raise UsageError(f"task {task_id} is already stored", fix="take a fresh id for every submitted task")
        self._admission.admit(spec)
        if spec.key is not None:
            self._keys[spec.handler, spec.key] = task_id
        if spec.parent_id is not None and spec.child_key is not None:
            self._child_keys[spec.parent_id, spec.child_key] = task_id
        self._new[task_id] = Row(id=task_id, spec=spec, key=spec.key, created_us=self._now_us)
        return task_id

    def _check_parents(self, parents: Mapping[int, tuple[int, ...]]) -> None:
        strangers = parents_outside(parents) - self._rows.tasks.keys()
        if strangers:
            raise UnknownDependency(tuple(sorted(strangers)))
        order_batch(parents)

    def store(self) -> list[int]:
        """Store what was decided; return its ids."""
        rows, now_us = self._rows, self._now_us
        self._cancel_replaced(among=rows.tasks)
        self._admission.clear_the_way(versions_max=self._versions_max)
        new = self._in_order()
        failed_parents = [_insert(rows, row) for row in new]
        self._cancel_replaced(among=self._new)
        self._admission.note_calls()
        for row, failed_parent in zip(new, failed_parents, strict=True):
            if row.state is not State.WAITING or row.gated:
                continue  # an earlier one of the batch has decided it
            if failed_parent is not None:
                rows.settle_policy(row, failed_parent, now_us=now_us)
            elif not row.need:
                rows.parents_done(row, now_us=now_us)
        for spec, task_id in zip(self._specs, self.ids, strict=True):
            spec.ref.id = task_id
        return self.ids

    def _in_order(self) -> list[Row]:
        """Return the new rows as they were handed in, but each after its parents: in a thread they come first, too."""
        return [self._new[i] for i in order_batch({row.id: row.parents for row in self._new.values()})]

    def _cancel_replaced(self, *, among: Mapping[int, Row]) -> None:
        error = ErrorInfo(kind="cancelled", message="replaced by a newer task with the same key")
        for row in [among[i] for i in self._replaced if i in among]:
            self._rows.drop_key(row)
            if row.state.live:
                self._rows.stop([row], Event.CANCEL, error, now_us=self._now_us)


def _insert(rows: Rows, row: Row) -> Row | None:
    """Put a row, its edges and its place in its thread into the tables; return a parent whose end decides it, or None."""
    spec = row.spec
    rows.tasks[row.id] = row
    rows.tally["submitted"] += 1
    if row.key is not None:
        rows.keys[spec.handler, row.key] = row.id
    if spec.parent_id is not None and spec.child_key is not None:
        rows.child_keys[spec.parent_id, spec.child_key] = row.id
    rows.watch_time_outs(row)
    rows.turns.enter(row)
    decides = None
    for parent_id in dict.fromkeys(row.parents):
        rows.children.setdefault(parent_id, {})[row.id] = None
        parent = rows.tasks.get(parent_id)
        if parent is None or parent.state.live:  # None: later in this batch
            row.need += 1
        elif parent.state is not State.SUCCEEDED and spec.on_parent_failed != "run":
            decides = decides or parent
    return decides

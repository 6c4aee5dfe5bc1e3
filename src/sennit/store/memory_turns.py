"""Turns in the memory store: the open tasks of a thread stand in a line, and one of them has the turn.

    enter ─► line ─► has the turn ─► gate ─► has room ─► ready, running ─► leave: the turn goes on, the room too
                          ▲            ▲                       │
                          └─ revive    └──────── rest ◄────────┘ (scheduled, suspended: keeps the turn, gives up the room)

Turns and room are handed on at the end of a transaction (`pass_on`, `admit`), when it is known who has ended. So of all
that become ready in one transaction those get room that are first in the order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from sennit.model.lifecycle import State
from sennit.store.memory_row import Row


class Turns:
    """Who stands where in which thread.

    Attributes:
        lines: thread → its open tasks, by id, in their order.
        holders: thread → the task that has the turn.
        behind: queue → how many of its tasks wait for their turn.
        active: tasks that have a thread and are ready or running: they have room.
        gated: tasks that wait for room.
    """

    def __init__(self) -> None:
        self.lines: dict[str, OrderedDict[int, Row]] = {}
        self.holders: dict[str, int] = {}
        self.behind: Counter[str] = Counter()
        self.active: set[int] = set()
        self.gated: dict[int, Row] = {}
        self._gates: list[tuple[int, int]] = []  # their order, a heap with dead entries
        self._free: dict[str, None] = {}
        self._room_moved = False

    def line(self, thread_id: str) -> list[Row]:
        """Return the open tasks of a thread, the one that has the turn first."""
        return list(self.lines.get(thread_id, {}).values())

    def holds(self, row: Row) -> bool:
        """Return whether this open task has the turn of its thread; always True without a thread."""
        return row.spec.thread_id is None or self.holders.get(row.spec.thread_id) == row.id

    # ------------------------------------------------------------ the line

    def enter(self, row: Row) -> None:
        """Put a new task at the end of its thread's line; with the turn when nobody is there."""
        thread_id = row.spec.thread_id
        if thread_id is None:
            return
        line = self.lines.setdefault(thread_id, OrderedDict())
        if line:
            self._wait(row)
        else:
            self.holders[thread_id] = row.id
        line[row.id] = row

    def come_back(self, thread_id: str, rows: Sequence[Row]) -> None:
        """Put revived tasks next in the line, in this order; a holder that still waits for its parents is passed."""
        line = self.lines.get(thread_id, OrderedDict())
        holder = line.get(self.holders.get(thread_id, 0))
        front: list[Row] = []
        if holder is not None and (holder.state is not State.WAITING or holder.gated):
            front, waits = [holder], rows
        else:
            self.holders[thread_id] = rows[0].id
            waits = [*rows[1:], holder] if holder is not None else rows[1:]
        for row in waits:
            self._wait(row)
        self.lines[thread_id] = OrderedDict((row.id, row) for row in [*front, *rows, *line.values()])

    def leave(self, row: Row) -> None:
        """Take a task that ends out of its line."""
        thread_id = row.spec.thread_id
        if thread_id is None:
            return
        self.rest(row)
        self.ungate(row)
        if self.holders.get(thread_id) == row.id:
            del self.holders[thread_id]
            self._free[thread_id] = None
        else:
            self.behind[row.spec.queue] -= 1
        line = self.lines[thread_id]
        del line[row.id]
        if not line:
            del self.lines[thread_id]

    def pass_on(self) -> Iterator[Row]:
        """Give each free turn to who is next; yield those that wait for nothing else."""
        for thread_id in self._free:
            line = self.lines.get(thread_id)
            if line is None or thread_id in self.holders:
                continue
            row = next(iter(line.values()))
            self.holders[thread_id] = row.id
            self.behind[row.spec.queue] -= 1
            row.need -= 1
            if not row.need:
                yield row
        self._free.clear()

    def _wait(self, row: Row) -> None:
        row.need += 1
        self.behind[row.spec.queue] += 1

    # ------------------------------------------------------------ room

    def gate(self, row: Row) -> None:
        """Let a task that could be ready wait for room, at its place in the order."""
        row.state, row.gated, row.need = State.WAITING, True, 1
        self.gated[row.id] = row
        heappush(self._gates, (row.order_us, row.id))
        self._room_moved = True

    def ungate(self, row: Row) -> None:
        """It waits for something else again, or for nothing any more."""
        row.gated = False
        self.gated.pop(row.id, None)

    def rest(self, row: Row) -> None:
        """Take the room from a task that is neither ready nor running any more."""
        if row.id in self.active:
            self.active.discard(row.id)
            self._room_moved = True

    def look_for_room(self) -> None:
        """Have the next `admit` look, though nobody came or went: the bound may be another one."""
        self._room_moved = True

    def admit(self, threads_max: int) -> Iterator[Row]:
        """Give the room there is to those who wait for it, in order; yield them. 0 is room for all."""
        if not self._room_moved:
            return
        self._room_moved = False
        while self._gates and (not threads_max or len(self.active) < threads_max):
            order_us, task_id = heappop(self._gates)
            row = self.gated.get(task_id)
            if row is not None and row.order_us == order_us:  # else it has ended, or waits for something else
                self.ungate(row)
                row.need = 0
                self.active.add(task_id)
                yield row

"""The rows of the memory store and every move between states: what SQL does elsewhere, in plain Python.

A row has one `state`, so it is in one place by construction; a move sets it to what `lifecycle.move` answers and
nothing else does. Beside the rows there are only indexes: `ready` and `dues` are heaps whose dead entries (the row has
moved on) are dropped when they come to the top, `held` says who runs what, `children` are the edges.

Nothing here locks, knows a clock or tells anybody: callers hold the store's lock, pass `now_us`, and afterwards take
what there is to tell from `ended` and `stopped`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal, assert_never

from sennit.model.lifecycle import Event, State, move
from sennit.model.order import next_tag_us, order_us
from sennit.model.task import (
    AttemptView,
    Cancelled,
    Claim,
    Claimed,
    Crashed,
    Ending,
    ErrorInfo,
    Failed,
    GivenBack,
    LogLine,
    Parked,
    Retried,
    Slept,
    Succeeded,
    TaskSpec,
)

Due = Literal["timer", "deadline", "queue_timeout"]


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One task and all that belongs to it.

    Attributes:
        parents: as the spec lists them, so that results keep their places; the same task may be there twice.
        unlimited: revived; the deadline and the queue time-out counted from submit and mean nothing any more.
        need: parents that are still open.
    """

    id: int
    spec: TaskSpec
    parents: tuple[int, ...] = ()
    key: str | None
    created_us: int
    unlimited: bool = False
    state: State = State.WAITING
    need: int = 0
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    order_us: int = 0
    due_us: int | None = None
    started_us: int | None = None
    worker_id: int | None = None
    done_us: int | None = None
    reason: str = ""
    result: bytes | None = None
    error: ErrorInfo | None = None
    steps: dict[str, bytes] = field(default_factory=dict)
    attempts: list[AttemptView] = field(default_factory=list)
    logs: list[LogLine] = field(default_factory=list)

    @property
    def claim(self) -> Claim:
        """The claim token of the last attempt."""
        return Claim(self.id, self.attempt)

    @property
    def deadline_us(self) -> int | None:
        """When the task as a whole fails, or None."""
        if self.unlimited or not self.spec.deadline_us:
            return None
        return self.created_us + self.spec.deadline_us

    @property
    def queue_timeout_us(self) -> int | None:
        """When the task fails unless it was claimed once, or None."""
        if self.unlimited or self.attempt or not self.spec.queue_timeout_us:
            return None
        return self.created_us + self.spec.queue_timeout_us

    def due_of(self, kind: Due) -> int | None:
        """When this is due for the row as it is now; None when it does not apply any more."""
        if not self.state.live:
            return None
        match kind:
            case "timer":
                return self.due_us
            case "deadline":
                return self.deadline_us
            case "queue_timeout":
                return self.queue_timeout_us


class Rows:
    """All tasks, their indexes and their moves."""

    def __init__(self) -> None:
        self.tasks: dict[int, Row] = {}
        self.keys: dict[tuple[str, str], int] = {}
        self.child_keys: dict[tuple[int, str], int] = {}
        self.children: dict[int, dict[int, None]] = {}
        self.ready: dict[str, list[tuple[int, int]]] = {}
        self.held: dict[int, dict[int, Row]] = {}
        self.dues: list[tuple[int, int, Due]] = []
        self.tags_us: dict[str, int] = {}
        self.tally: Counter[str] = Counter()
        self.ended: list[Row] = []
        self.stopped: list[tuple[int, Claim]] = []

    # ------------------------------------------------------------ becoming ready

    def parents_done(self, row: Row, *, now_us: int) -> None:
        """Move a waiting task on: to ready, or first to its delay."""
        if row.spec.delay_us > 0:
            row.state, row.reason = move(row.state, Event.DELAY), "delay"
            self._set_timer(row, now_us + row.spec.delay_us)
        else:
            self.make_ready(row, Event.PARENTS_DONE, now_us=now_us)

    def make_ready(self, row: Row, event: Event, *, now_us: int) -> None:
        """Move a task to the place in the order that it has from now on."""
        ready = move(row.state, event)
        tag_us, thread_id = 0, row.spec.thread_id
        if thread_id is not None:
            tag_us = self.tags_us.get(thread_id, 0)
            self.tags_us[thread_id] = next_tag_us(tag_us, now_us=now_us)
        row.order_us = order_us(row.spec.priority, now_us=now_us, tag_us=tag_us)
        row.state, row.due_us, row.reason = ready, None, ""
        self._push_ready(row)

    def _push_ready(self, row: Row) -> None:
        heappush(self.ready.setdefault(row.spec.queue, []), (row.order_us, row.id))

    def _set_timer(self, row: Row, due_us: int) -> None:
        row.due_us = due_us
        heappush(self.dues, (due_us, row.id, "timer"))

    def watch_time_outs(self, row: Row) -> None:
        """Put the deadline and the queue time-out, if there are any, among what is due."""
        if row.deadline_us is not None:
            heappush(self.dues, (row.deadline_us, row.id, "deadline"))
        if row.queue_timeout_us is not None:
            heappush(self.dues, (row.queue_timeout_us, row.id, "queue_timeout"))

    # ------------------------------------------------------------ claiming

    def claim(self, worker_id: int, queue: str, n: int, *, now_us: int) -> list[Claimed]:
        """Take at most `n` ready tasks, smallest `order_us` first, then smallest id."""
        heap = self.ready.get(queue, [])
        claimed: list[Claimed] = []
        while heap and len(claimed) < n:
            order, task_id = heappop(heap)
            row = self.tasks.get(task_id)
            if row is None or row.state is not State.READY or row.order_us != order:
                continue
            row.state = move(row.state, Event.CLAIM)
            row.attempt += 1
            row.started_us, row.worker_id = now_us, worker_id
            self.held.setdefault(worker_id, {})[task_id] = row
            claimed.append(self._claimed(row))
        return claimed

    def _claimed(self, row: Row) -> Claimed:
        spec = row.spec
        parents = (self.tasks.get(p) for p in row.parents)  # a parent may be pruned when a task is revived
        return Claimed(
            id=row.id,
            attempt=row.attempt,
            handler=spec.handler,
            queue=spec.queue,
            payload=spec.payload,
            created_us=row.created_us,
            failures=row.failures,
            crashes=row.crashes,
            thread_id=spec.thread_id,
            options=spec.options,
            parents=tuple(None if p is None else p.result for p in parents),
            steps=dict(row.steps),
            deadline_us=row.deadline_us,
        )

    def holder(self, claim: Claim) -> Row | None:
        """Return the row of a claim token that is held, else None."""
        row = self.tasks.get(claim.task_id)
        return row if row is not None and row.state is State.RUNNING and row.attempt == claim.attempt else None

    # ------------------------------------------------------------ an attempt ends

    def finish(self, row: Row, ending: Ending, *, now_us: int) -> None:
        """Record how the running attempt of `row` ended."""
        match ending:
            case Succeeded():
                self._let_go(row)
                self.end(row, Event.SUCCEED, now_us=now_us, result=ending.result)
            case Failed():
                self._close_attempt(row, "failed", ending.error, now_us=now_us)
                row.failures += 1
                self.end(row, Event.FAIL, now_us=now_us, error=ending.error)
            case Cancelled():
                error = ErrorInfo(kind="cancelled", message=ending.reason)
                self._close_attempt(row, "cancelled", error, now_us=now_us)
                self.end(row, Event.CANCEL, now_us=now_us, error=error, reason=ending.reason)
            case Retried():
                self._close_attempt(row, "retried", ending.error, now_us=now_us)
                row.failures += 1
                self.tally["retried"] += 1
                row.state, row.reason = move(row.state, Event.RETRY), "retry"
                self._set_timer(row, ending.due_us)
            case Slept():
                self._let_go(row)
                row.state, row.reason = move(row.state, Event.SLEEP), ending.reason
                self._set_timer(row, ending.due_us)
            case Parked():
                self._let_go(row)
                row.state, row.reason = move(row.state, Event.SUSPEND), ending.reason
            case GivenBack():
                self._let_go(row)
                row.state = move(row.state, Event.GIVE_BACK)
                self._push_ready(row)  # with the old order_us
            case Crashed():
                self.crash(row, ending.error, now_us=now_us)
            case _:
                assert_never(ending)

    def crash(self, row: Row, error: ErrorInfo, *, now_us: int) -> None:
        """Take a running task from a process that is gone: ready again, or poison."""
        self._close_attempt(row, "crashed", error, now_us=now_us)
        row.crashes += 1
        self.tally["crashed"] += 1
        if row.crashes < row.spec.crashes_max:
            row.state = move(row.state, Event.LEASE_LOST)
            self._push_ready(row)  # with the old order_us
            return
        poison = ErrorInfo(
            kind="poison",
            message=f"it took its worker down {row.crashes} times; the last time: {error.message}",
            fix="find out what kills the process (memory?), then revive the task",
        )
        self.end(row, Event.POISON, now_us=now_us, error=poison)

    def _close_attempt(self, row: Row, outcome: str, error: ErrorInfo | None, *, now_us: int) -> None:
        view = AttemptView(
            attempt=row.attempt,
            outcome=outcome,
            worker_id=row.worker_id,
            started_us=row.started_us,
            ended_us=now_us,
            error=error,
        )
        row.attempts.append(view)
        self._let_go(row)

    def _let_go(self, row: Row) -> None:
        if row.worker_id is not None:
            held = self.held[row.worker_id]
            del held[row.id]
            if not held:
                del self.held[row.worker_id]
            row.worker_id = None

    # ------------------------------------------------------------ a task ends

    def end(
        self,
        row: Row,
        event: Event,
        *,
        now_us: int,
        result: bytes | None = None,
        error: ErrorInfo | None = None,
        reason: str = "",
    ) -> None:
        """End one task and do to its dependants what follows from it."""
        self._end_one(row, event, now_us=now_us, result=result, error=error, reason=reason)
        self._cascade([row], now_us=now_us)

    def stop(self, rows: Sequence[Row], event: Event, error: ErrorInfo, *, now_us: int) -> None:
        """End live tasks from outside; a running attempt is to be told.

        All of `rows` end before any dependant is looked at: one that is in `rows` itself ends as its parent did.
        """
        for row in rows:
            if row.worker_id is not None:
                self.stopped.append((row.worker_id, row.claim))
                self._close_attempt(row, str(move(row.state, event)), error, now_us=now_us)
            self._end_one(row, event, now_us=now_us, result=None, error=error, reason=error.message)
        self._cascade(rows, now_us=now_us)

    def _end_one(
        self, row: Row, event: Event, *, now_us: int, result: bytes | None, error: ErrorInfo | None, reason: str
    ) -> None:
        row.state = move(row.state, event)
        row.done_us, row.due_us = now_us, None
        row.result, row.error, row.reason = result, error, reason
        self.tally[row.state] += 1
        self.ended.append(row)

    def _cascade(self, ended: Iterable[Row], *, now_us: int) -> None:
        """Release or end the dependants of ended tasks, and theirs. A loop: chains may be deeper than the stack."""
        parents = deque(ended)
        while parents:
            parent = parents.popleft()
            for child_id in self.children.get(parent.id, ()):
                child = self.tasks[child_id]
                if child.state is not State.WAITING:
                    continue
                if parent.state is State.SUCCEEDED or child.spec.on_parent_failed == "run":
                    child.need -= 1
                    if not child.need:
                        self.parents_done(child, now_us=now_us)
                else:
                    self.end_by_policy(child, parent, now_us=now_us)
                    parents.append(child)

    def end_by_policy(self, child: Row, parent: Row, *, now_us: int) -> None:
        """End a waiting task because of how `parent` ended; its own dependants are the caller's."""
        kind = "parent_failed" if parent.state is State.FAILED else "parent_cancelled"
        error = ErrorInfo(kind=kind, message=f"task {parent.id}, which this one waited for, has {parent.state}")
        event = Event.CANCEL if child.spec.on_parent_failed == "cancel" else Event.PARENT_FAILED
        self._end_one(child, event, now_us=now_us, result=None, error=error, reason=error.message)

    def settle_policy(self, child: Row, parent: Row, *, now_us: int) -> None:
        """`end_by_policy`, with all that follows from it."""
        self.end_by_policy(child, parent, now_us=now_us)
        self._cascade([child], now_us=now_us)

    # ------------------------------------------------------------ coming back

    def revive(self, row: Row, *, now_us: int) -> None:
        """Make an ended task ready: fresh counts, no time limits; its steps stay, its attempts go on counting."""
        self.tally[row.state] -= 1
        row.failures = row.crashes = 0
        row.unlimited = True
        row.done_us = row.result = row.error = None
        self.make_ready(row, Event.REVIVE, now_us=now_us)
        for child_id in self.children.get(row.id, ()):
            child = self.tasks[child_id]
            if child.state is State.WAITING:  # it had counted this parent as done (`run`), and now waits for it again
                child.need += 1

    def drop_key(self, row: Row) -> None:
        """Make the key of a row free, unless another row has it already."""
        if row.key is not None and self.keys.get((row.spec.handler, row.key)) == row.id:
            del self.keys[row.spec.handler, row.key]
        row.key = None

    # ------------------------------------------------------------ time

    def next_due_us(self) -> int | None:
        """Return when the next timer, deadline or queue time-out is due, or None."""
        while self.dues:
            due_us, task_id, kind = self.dues[0]
            row = self.tasks.get(task_id)
            if row is not None and row.due_of(kind) == due_us:
                return due_us
            heappop(self.dues)
        return None

    def fire(self, *, now_us: int) -> None:
        """Do all that is due by `now_us`. Limits come first: what is too late does not become ready."""
        due: list[tuple[int, int, Due]] = []
        while (due_us := self.next_due_us()) is not None and due_us <= now_us:
            due.append(heappop(self.dues))
        for due_us, task_id, kind in sorted(due, key=lambda entry: entry[2] == "timer"):
            row = self.tasks[task_id]
            if row.due_of(kind) != due_us:
                continue  # another limit was first
            if kind == "timer":
                self.make_ready(row, Event.TIME_CAME, now_us=now_us)
            else:
                waited_s = (now_us - row.created_us) / 1e6
                error = ErrorInfo(kind=kind, message=f"not {_WANTED[kind]} {waited_s:.3f} s after it was handed in")
                self.stop([row], Event.DEADLINE, error, now_us=now_us)


_WANTED = {"deadline": "done", "queue_timeout": "started"}

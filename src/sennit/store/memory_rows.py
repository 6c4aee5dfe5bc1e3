"""The rows of the memory store and every move between states: what SQL does elsewhere, in plain Python.

A move sets the `state` of a row to what `lifecycle.move` answers; only a task that finds no room, or is revived and not
first in its thread, waits instead (`turns`). Beside the rows there are only indexes: `ready` and `dues` are heaps whose
dead entries (the row has moved on) are dropped when they come to the top, `queued` counts who is ready, `held` says who
runs what, `children` are the edges. What belongs to threads has modules of its own: `turns`, `states`, `asks`, `cache`;
so have `providers`.

Nothing here locks, knows a clock or tells anybody: callers hold the store's lock, pass `now_us`, end each transaction
with `settle`, and afterwards take what there is to tell from `ended`, `stopped` and `pressed`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import assert_never

from sennit.model.lifecycle import Event, State, move
from sennit.model.order import order_us, ready_us
from sennit.model.provider import BudgetView
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
    Parked,
    Preempted,
    Retried,
    Slept,
    Succeeded,
)
from sennit.model.thread import Answer
from sennit.store.memory_asks import Ask, Asks
from sennit.store.memory_cache import Cache
from sennit.store.memory_providers import Found, Providers
from sennit.store.memory_ready import Ready
from sennit.store.memory_row import Due, Row
from sennit.store.memory_states import States
from sennit.store.memory_turns import Turns

__all__ = ["Row", "Rows"]


class Rows:
    """All tasks, their indexes and their moves."""

    def __init__(self) -> None:
        self.tasks: dict[int, Row] = {}
        self.keys: dict[tuple[str, str], int] = {}
        self.child_keys: dict[tuple[int, str], int] = {}
        self.children: dict[int, dict[int, None]] = {}
        self.ready = Ready(self.tasks)
        self.held: dict[int, dict[int, Row]] = {}
        self.dues: list[tuple[int, int, Due]] = []
        self.queued: Counter[str] = Counter()
        self.turns = Turns()
        self.states = States()
        self.asks = Asks()
        self.cache = Cache()
        self.providers = Providers(self.tasks.get)
        self.tally: Counter[str] = Counter()
        self.ended: list[Row] = []
        self.stopped: list[tuple[int, Claim]] = []
        self.pressed: set[str] = set()
        self.fresh: set[str] = set()  # queues in which a task became ready in this transaction

    def load(self, queue: str) -> int:
        """Return how many tasks of a queue wait for a slot, for their thread's turn or for room."""
        gated = sum(row.spec.queue == queue for row in self.turns.gated.values())
        return self.queued[queue] + self.turns.behind[queue] + gated

    def settle(self, *, now_us: int, threads_max: int) -> None:
        """End a transaction: free turns go to who is next, then room to who is first in the order."""
        for row in self.turns.pass_on():
            self.parents_done(row, now_us=now_us)
        for row in self.turns.admit(threads_max):
            self._push_ready(row, move(row.state, Event.PARENTS_DONE))

    # ------------------------------------------------------------ becoming ready

    def parents_done(self, row: Row, *, now_us: int) -> None:
        """Move a waiting task on: to ready, or first to its delay, which one that was revived has behind it."""
        if row.spec.delay_us > 0 and not row.unlimited:
            row.state, row.reason = move(row.state, Event.DELAY), "delay"
            self._set_timer(row, now_us + row.spec.delay_us)
        else:
            self.make_ready(row, Event.PARENTS_DONE, now_us=now_us)

    def make_ready(self, row: Row, event: Event, *, now_us: int) -> None:
        """Move a task to the place in the order that it has from now on; one of a thread when there is room."""
        ready = move(row.state, event)
        if event is Event.RESUME:
            row.note_resumed(now_us=now_us)
        row.order_us = order_us(row.spec.priority, now_us=now_us)
        row.due_us, row.reason = None, ""
        if row.spec.thread_id is None:
            self._push_ready(row, ready)
        else:
            self.turns.gate(row)

    def _push_ready(self, row: Row, ready: State) -> None:
        queue, row.state, row.ready_us = row.spec.queue, ready, self.providers.now_us
        self.ready.push(row)
        self.queued[queue] += 1
        self.fresh.add(queue)
        if row.is_urgent:
            self.pressed.add(queue)

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

    def claim(
        self,
        worker_id: int,
        queue: str,
        n: int,
        *,
        takes: Callable[[str], bool],
        now_us: int,
        is_ahead: bool = False,
    ) -> list[Claimed]:
        """Take at most `n` ready tasks, smallest `order_us` first, then smallest id; past those without a permit.

        `takes` says whether the worker may run tasks of a route. What `is_ahead` has not begun.
        """
        providers, claimed = self.providers, list[Claimed]()
        providers.serve()
        also = providers.spent if providers.budgets.accounts else None
        while len(claimed) < n:
            first = self.ready.first(queue, takes=takes, may=providers.may_go, also=also)
            if first is None:
                break
            row, answer = first
            row.state = move(row.state, Event.CLAIM)
            self.queued[queue] -= 1
            row.attempt += 1
            row.started_us, row.worker_id = None if is_ahead else now_us, worker_id
            self.held.setdefault(worker_id, {})[row.id] = row
            task = self._claimed(row)
            if isinstance(answer, BudgetView):
                task.spent = answer
            elif isinstance(answer, Found) and answer.place is not None:
                task.permit = providers.grant_task(row, answer.place, holder=worker_id)
            row.is_ahead = is_ahead
            if row.begun_us is None and not is_ahead:
                row.begun_us = now_us
            claimed.append(task)
        providers.look_who_is_held()
        return claimed

    def begin(self, row: Row, *, now_us: int) -> Claimed:
        """A task that was claimed ahead begins."""
        row.is_ahead, row.started_us = False, now_us
        row.begun_us = now_us if row.begun_us is None else row.begun_us
        return self._claimed(row)

    def take_over(self, row: Row, worker_id: int, *, now_us: int) -> Claimed:
        """It begins in another process, as the next attempt."""
        self._let_go(row)
        row.attempt += 1
        row.worker_id = worker_id
        self.held.setdefault(worker_id, {})[row.id] = row
        return self.begin(row, now_us=now_us)

    def put_back(self, row: Row) -> None:
        """It will not begin here: ready, at the place it had; nothing is counted."""
        self._let_go(row)
        self._push_ready(row, move(row.state, Event.GIVE_BACK))

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
            priority=spec.priority,
            ready_us=ready_us(spec.priority, order_us=row.order_us),
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
                self.turns.rest(row)
            case Slept():
                self._let_go(row)
                row.state, row.reason = move(row.state, Event.SLEEP), ending.reason
                self._set_timer(row, ending.due_us)
                self.turns.rest(row)
            case Parked():
                self._let_go(row)
                row.state, row.reason, row.parked_us = move(row.state, Event.SUSPEND), ending.reason, now_us
                self.turns.rest(row)
                if self.asks.suspend(row, ending.asks, now_us=now_us):
                    self.make_ready(row, Event.RESUME, now_us=now_us)
            case GivenBack():
                self._let_go(row)
                self._push_ready(row, move(row.state, Event.GIVE_BACK))  # with the old order_us
            case Preempted():
                self._let_go(row)
                self.turns.rest(row)
                self.make_ready(row, Event.GIVE_BACK, now_us=now_us)
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
            self._push_ready(row, move(row.state, Event.LEASE_LOST))  # with the old order_us
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
            row.worker_id, row.is_ahead = None, False
            self.providers.end_attempt(row.id)

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
            if row.is_ahead:  # nothing runs, and nothing has
                self._let_go(row)
            elif row.worker_id is not None:
                self.stopped.append((row.worker_id, row.claim))
                self._close_attempt(row, str(move(row.state, event)), error, now_us=now_us)
            self._end_one(row, event, now_us=now_us, result=None, error=error, reason=error.message)
        self._cascade(rows, now_us=now_us)

    def _end_one(
        self, row: Row, event: Event, *, now_us: int, result: bytes | None, error: ErrorInfo | None, reason: str
    ) -> None:
        if row.state is State.READY:
            self.queued[row.spec.queue] -= 1
        row.state = move(row.state, event)
        self.turns.leave(row)
        self.asks.void(row.id, now_us=now_us)
        self.providers.end_attempt(row.id)
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
                if child.state is not State.WAITING or child.is_alone:
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

    def revive(self, rows: Sequence[Row], *, now_us: int) -> None:
        """Make ended tasks ready: fresh counts, no time limits; their steps stay, their attempts go on counting.

        In a thread they are next, in this order, and one without the turn waits for that alone.
        """
        lines: dict[str, list[Row]] = {}
        for row in rows:
            self.tally[row.state] -= 1
            row.failures = row.crashes = row.need = 0
            row.unlimited = True
            row.done_us = row.result = row.error = None
            move(row.state, Event.REVIVE)
            row.state, row.reason = State.WAITING, ""
            if row.spec.thread_id is not None:
                lines.setdefault(row.spec.thread_id, []).append(row)
            for child_id in self.children.get(row.id, ()):
                child = self.tasks[child_id]
                if child.state is State.WAITING and not child.is_alone:  # it had counted this parent as done (`run`)
                    child.need += 1
        for thread_id, line in lines.items():
            self.turns.come_back(thread_id, line)
        for row in rows:
            if not row.need:
                self.make_ready(row, Event.PARENTS_DONE, now_us=now_us)

    def open_parents(self, row: Row) -> int:
        """Return how many parents a task waits for."""
        if row.is_alone:
            return 0
        return sum(p in self.tasks and self.tasks[p].state.live for p in set(row.parents))

    def decide(self, ask: Ask, answer: Answer, *, now_us: int) -> None:
        """Close an open ask; its task finds the answer among its steps, and goes on if it is suspended."""
        row = self.tasks[ask.task_id]
        self.asks.close(ask, row, answer, now_us=now_us)
        if row.state is State.SUSPENDED:
            self.make_ready(row, Event.RESUME, now_us=now_us)

    def drop_key(self, row: Row) -> None:
        """Make the key of a row free, unless another row has it already."""
        if row.key is not None and self.keys.get((row.spec.handler, row.key)) == row.id:
            del self.keys[row.spec.handler, row.key]
        row.key = None

    # ------------------------------------------------------------ time

    def next_due_us(self) -> int | None:
        """Return when the next timer, deadline, queue time-out or end of an ask is due, or None."""
        dues = (self._next_due_of_tasks_us(), self.asks.next_due_us())
        return min((due_us for due_us in dues if due_us is not None), default=None)

    def _next_due_of_tasks_us(self) -> int | None:
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
        while (due_us := self._next_due_of_tasks_us()) is not None and due_us <= now_us:
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
        for ask, answer in self.asks.expire(now_us=now_us):
            self.decide(ask, answer, now_us=now_us)


_WANTED = {"deadline": "done", "queue_timeout": "started"}

"""What a store promises. Each sentence of a docstring here has a test of its name in `sennit.testing.contract`.

A store keeps every open task in exactly one narrow table (`model.lifecycle.TABLES`) and moves it in one transaction
per call. Methods return an `Ack`: it resolves only after the commit, so what was acknowledged is durable. They may be
called from any OS thread and never block it (`take_ids` may, for one commit).

A worker does not ask for work again and again: it leaves a *standing order* with `want`, and the store serves it in
the very transaction that makes a task ready (or as soon after as the backend can), calling `Listener.on_claimed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from sennit.model.lifecycle import State
from sennit.model.task import (
    AttemptView,
    Claim,
    Claimed,
    Ending,
    Ledger,
    LogLine,
    Outcome,
    RouteView,
    TaskSpec,
    TaskView,
    WorkerInfo,
)
from sennit.store.protocol_agents import AgentStore
from sennit.store.protocol_locks import LockStore
from sennit.store.protocol_providers import ProviderStore
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.ack import Ack


class Listener(Protocol):
    """What a store tells the process that joined it; always called on the event loop given to `join`."""

    def on_claimed(self, tasks: list[Claimed]) -> None:
        """Part of the standing order was served: these attempts are ours."""

    def on_stop(self, claims: list[Claim]) -> None:
        """These attempts were cancelled or taken back; their writes are refused from now on."""

    def on_due(self, due_us: int) -> None:
        """A deadline exists at `due_us`, store clock, perhaps earlier than any known before."""

    def on_death(self, worker_id: int) -> None:
        """The process of this worker has died; what it held can be rescued."""

    def on_pressed(self, queue: str) -> None:
        """An urgent task of `queue` that this worker may run is ready, and none of its standing order is left for it."""


@runtime_checkable
class Store(ThreadStore, ProviderStore, LockStore, AgentStore, Protocol):
    """A durable backend. `testing.contract.StoreContract` runs against SQLite, memory and anybody's own."""

    url: str

    def now_us(self) -> int:
        """Return the store's clock, µs since the epoch. It does not step when the wall clock does."""

    def close(self) -> None:
        """Finish what was queued, then release everything. Idempotent.

        Calls after it raise StoreUnavailable, and watches that still wait fail with it.
        """

    # ------------------------------------------------------------ handing in

    def take_ids(self, n: int) -> Sequence[int]:
        """Return `n` task ids that no other call in any process returns, growing."""

    def submit(self, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Store all of `specs` or none; return their ids.

        A task with open parents waits; with a delay it is scheduled; else it is ready.
        A parent that has already succeeded does not count as open; one that failed or was cancelled applies
        `on_parent_failed` at once. A parent named twice is waited for once.
        Parents may be in the same batch, before or after.
        With a key that a stored task of the same handler has: `existing` stores nothing and returns that id (also in
        `spec.ref.id`), `reject` raises DuplicateKey, `replace` cancels the old task if it is live and passes the key on.
        A child key that a stored task of the same parent has returns that task.
        Of the tasks of a thread only one at a time becomes ready, in the order they were handed in.
        With `entry`: a cached result stands for the task; a busy thread or a full queue is dealt with as it says. A task
        with parents, and a child of a running attempt, never finds the queue full.

        Raises:
            UnknownDependency: a parent is neither stored nor in the batch.
            CyclicDependency: parents inside the batch form a circle.
            DuplicateKey: see above.
            ThreadBusy, QueueFull: see `Entry`.
        """

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Submit on behalf of a running attempt, before it ends.

        Raises:
            LeaseLost: the attempt is no longer held; nothing was stored, and the ledger counts it as refused.
        """

    # ------------------------------------------------------------ claiming

    def join(
        self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, *, lease_us: int
    ) -> Ack[None]:
        """Register this process; from now on it can claim and is told. One worker per store object."""

    def describe(self, worker: WorkerInfo) -> Ack[None]:
        """Tell others something new about the worker that has joined here: what `workers` says of it.

        Its lease and its bell stay. One that drains does not count among those that may run a task. Harmless when it has left.
        """

    @property
    def spans_hosts(self) -> bool:
        """Whether processes of several machines are at it: then an idle worker beats, too, for only its lease tells."""

    @property
    def lease_until_us(self) -> int:
        """Until when this process holds what it holds, store clock, as of its last commit; 0 without a worker.

        Never later than what the store knows: it is counted from before the transaction that renewed.
        """

    def leave(self) -> Ack[None]:
        """Forget the standing order and the registration.

        What the worker held when it left keeps its lease until that lapses, or until it is rescued.
        """

    def want(self, queue: str, n: int) -> None:
        """Raise the standing order for `queue` by `n` tasks.

        It is served in order: smallest `order_us` first, then smallest id.
        It is never over-served: at most as many tasks are claimed as were wanted.
        A task that becomes ready later serves what is left of the order.
        A worker that was taken for dead is registered again by its next order.

        Raises:
            UsageError: no worker has joined here.
        """

    def unwant(self) -> Ack[None]:
        """Cancel the whole standing order, and what is held ahead; after the ack nothing more is claimed for it."""

    def want_ahead(self, queue: str, n: int) -> None:
        """Hold up to `n` tasks of `queue` beyond the standing order: claimed *ahead*, and not begun.

        They are claimed when the order is served in full, of what was ready before; the listener is told of each when it
        begins. An order is served with what is first, of those held ahead and those that are ready, and what is held begins
        in the transaction that serves it. Tasks with a provider or a route are not claimed ahead; where such are ready in
        a queue, and when the order is cancelled or the worker leaves, all that is held of it is given back.
        An order that finds too little ready is served with what other processes hold ahead, as by `steal`, again and again.
        A queue time-out goes on until a task begins.

        Raises:
            UsageError: no worker has joined here.
        """

    def steal(self, worker_id: int, queue: str, n_max: int) -> Ack[list[Claimed]]:
        """Take over tasks of `queue` that another process has claimed ahead; they begin now.

        From the one that holds the most: half, at least one, at most `n_max`, the first in the order; never one that has begun.
        Each is taken over as its next attempt: what the other still says of it is refused. It counts as no failure and
        no crash. A worker that has not joined, or has left, takes nothing.
        """

    def claim(self, worker_id: int, queue: str, n: int) -> Ack[list[Claimed]]:
        """Take at most `n` ready tasks of `queue`, in order; none twice, by whomever it is called.

        A worker that has not joined, or has left, claims nothing.
        A task with a route goes only to a worker that has all the labels it needs, and the version it is pinned to; the
        standing order passes over the others, and a plain task behind them is not held up.
        Renews the worker's lease when that is more than half used.
        """

    def look(self) -> None:
        """Somebody rang: serve the standing order and the watches from what is stored now."""

    # ------------------------------------------------------------ ending

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool | None]]:
        """Record how attempts ended; True per ending that was accepted.

        An ending is accepted once, and only while the attempt is held: False means discard it.
        None means that it writes to a thread whose state has moved on: nothing of it was recorded, the attempt is held.
        Success stores the result, the children and the writes, and releases dependants, in one transaction.
        When its children are refused it is recorded as a failure of that kind; the other endings of the call stand.
        Failure and cancellation apply `on_parent_failed` to dependants, transitively, in the same transaction:
        `fail` fails them, `cancel` cancels them, `run` releases them.
        A retry counts a failure and a crash counts a crash; snooze, sleep, suspension and giving back count nothing.
        The `crashes_max`-th crash ends the task as failed, kind `poison`.
        Given back, or taken back from a process that died, a task keeps its place in the order; a preempted one gets the
        place of one that is ready from now.
        Suspension stores its asks, each task and key once. When one of them is answered already, or is a wait for an
        event of which a signal is kept, the task is ready at once.

        Args:
            want: raise the standing order in the same transaction, after the endings; if that fails, it is raised all
                the same.

        Raises:
            UsageError: `want` and no worker has joined here.
        """

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Keep the result of a step, if the attempt is still held; the first result for a key stays.

        Steps come back in `Claimed.steps` of later attempts.
        """

    def resume(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        """Make suspended tasks ready again; False for one that is not suspended."""

    def cancel(self, task_ids: Sequence[int], *, reason: str = "") -> Ack[list[bool]]:
        """End live tasks as cancelled, whatever state they are in; False for one that has ended.

        All of `task_ids` end before their dependants are looked at.
        A running attempt is told (`Listener.on_stop`) and its writes are refused from then on.
        Its open questions are void.

        Raises:
            TaskNotFound: an id is not in the store; nothing was cancelled.
        """

    def revive(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        """Make failed or cancelled tasks ready again, with fresh counts and their finished steps; False for others.

        Lifts their time limits. A task that waits and had counted a revived parent as done waits for it again.
        A task of a thread is next in it; it takes the turn over from one that still waits for its parents.

        Raises:
            TaskNotFound: an id is not in the store.
        """

    # ------------------------------------------------------------ time and death

    def heartbeat(self, worker_id: int, lease_us: int) -> Ack[list[Claim]]:
        """Renew the lease; return what the worker holds now. What it thinks it holds and is not here, it has lost.

        Registers again a worker that joined here and was taken for dead since.
        """

    def rescue(self, worker_id: int) -> Ack[int]:
        """Take back all a dead worker held, each as one crash; return how many. Harmless when repeated.

        What it had only claimed ahead is ready again, and counts nothing.
        """

    def fire(self) -> Ack[int | None]:
        """Do all that is due and return when the next is, or None.

        Scheduled tasks become ready, deadlines and queue time-outs fail tasks, lapsed leases are rescued.
        Asks that expire are answered with `expired`, or go to whom they escalate to for the same time again.
        No limit is due of a task that has ended, and no queue time-out of one that has begun.
        The lease of another is among what is due until it lapses; one's own is the business of `heartbeat`.
        """

    # ------------------------------------------------------------ schedules

    def put_schedule(self, name: str, next_us: int) -> Ack[int]:
        """Remember when a schedule runs next, unless it is known; return what holds now. Wall clock, µs."""

    def run_schedule(self, name: str, *, due_us: int, next_us: int, specs: Sequence[TaskSpec]) -> Ack[bool]:
        """Move a schedule from `due_us` to `next_us` and submit `specs`, in one transaction.

        False, and nothing is stored, when it is not at `due_us` any more: another process was first.
        """

    # ------------------------------------------------------------ looking

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Resolve when the task has ended, at once if it has.

        Raises:
            TaskNotFound: not in the store.
        """

    def task(self, task_id: int) -> Ack[TaskView]:
        """Return one task.

        Raises:
            TaskNotFound: not in the store.
        """

    def tasks(
        self,
        *,
        states: Sequence[State] = (),
        queue: str | None = None,
        handler: str | None = None,
        thread_id: str | None = None,
        limit: int = 100,
    ) -> Ack[list[TaskView]]:
        """Return the newest tasks that match, newest first, without payload and result.

        Of a ready task that no living worker of its queue may run the reason says so: `no worker with gpu`.
        """

    def counts(self) -> Ack[dict[str, dict[State, int]]]:
        """Return queue → state → number of live tasks."""

    def routes(self) -> Ack[list[RouteView]]:
        """Return what open tasks need of their worker, by queue and route; plain ones are left out.

        Counts each once, whatever state it is in: a suspended task needs its worker as well, when it goes on.
        """

    def attempts(self, task_id: int) -> Ack[list[AttemptView]]:
        """Return the attempts that failed, crashed or were cancelled, oldest first."""

    def log(self, lines: Sequence[LogLine]) -> Ack[None]:
        """Keep log lines of attempts."""

    def logs(self, task_id: int, *, after_seq: int = 0, limit: int = 1000) -> Ack[list[LogLine]]:
        """Return log lines of a task after `after_seq`, oldest first."""

    def workers(self) -> Ack[list[WorkerInfo]]:
        """Return the processes that have joined and are not known to be dead.

        A worker of another machine whose lease has lapsed counts as dead where the store spans hosts.
        """

    def ledger(self) -> Ack[Ledger]:
        """Return the counts, all of one moment."""

    def verify(self) -> Ack[list[str]]:
        """Return every broken promise found in the stored rows, as sentences; empty is sound."""

    def prune(self, *, before_us: int, limit: int) -> Ack[int]:
        """Delete up to `limit` tasks that ended before `before_us`, with all that belongs to them; return how many.

        A task that a live one still needs (as parent) is kept, and one whose agent has a worktree.
        """

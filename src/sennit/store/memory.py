"""The reference store: everything the protocol promises, in plain Python, in this process, gone with it.

    MemoryStore ─┐
    MemoryStore ─┼─► one Database: a lock, the rows, the workers      each MemoryStore stands for one process
    MemoryStore ─┘

An operation takes the lock, moves rows, and before it lets go serves the standing orders: that is its transaction. It
refuses before it changes anything, so an error needs no undoing. Acks are resolved after the lock is free, because
their callbacks are anybody's code.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence

import msgspec

from sennit.errors import ConcurrentModificationError, Fenced, SubmitError
from sennit.model.admission import Bounds
from sennit.model.lifecycle import Event, State
from sennit.model.task import (
    AttemptView,
    Claim,
    Claimed,
    Ending,
    ErrorInfo,
    Failed,
    Ledger,
    LogLine,
    Outcome,
    RouteView,
    Succeeded,
    TaskSpec,
    TaskView,
    WorkerInfo,
)
from sennit.store import memory_look as look
from sennit.store.memory_agents import AgentFace
from sennit.store.memory_locks import Fences
from sennit.store.memory_prune import prune
from sennit.store.memory_seats import Database, Worker
from sennit.store.memory_submit import Plan
from sennit.store.memory_threads import UNBOUNDED
from sennit.store.memory_verify import verify
from sennit.store.protocol import Listener
from sennit.sync.ack import Ack
from sennit.sync.clock import NowUs, steady_clock, uptime_us, wall_us


class MemoryStore(AgentFace):
    """One process's connection to a store in memory; `connect` makes further ones on the same data.

    For tests. Time passes in it only for who fires: without a worker nobody does, and what waits for a time waits on.
    """

    url = "memory://"
    spans_hosts = False

    def __init__(self, *, now_us: NowUs | None = None, bounds: Bounds = UNBOUNDED) -> None:
        """Open a new, empty store.

        Args:
            now_us: its clock, µs since the epoch; by default the steady one.
            bounds: what this process enforces, and those made by `connect`.
        """
        self._sit_down(Database(now_us or steady_clock(wall_us() - uptime_us())), bounds)

    def connect(self, *, bounds: Bounds | None = None) -> MemoryStore:
        """Return another connection to the same data, as another process would have it, by default with our bounds."""
        other = MemoryStore.__new__(MemoryStore)
        other._sit_down(self._database, bounds or self._bounds)  # noqa: SLF001 - same class
        return other

    # ------------------------------------------------------------ handing in

    def take_ids(self, n: int) -> Sequence[int]:
        """Return fresh ids."""
        with self._transaction():
            return list(itertools.islice(self._database.ids, n))

    def submit(self, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Store all of `specs` or none."""
        return self._do(lambda now_us: self._submit(specs, now_us=now_us))

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Submit on behalf of a running attempt."""

        def operation(now_us: int) -> list[int]:
            self._held(claim)
            return self._submit(specs, now_us=now_us, is_children=True)

        return self._do(operation)

    def _submit(self, specs: Sequence[TaskSpec], *, now_us: int, is_children: bool = False) -> list[int]:
        plan = self._plan(now_us=now_us, is_children=is_children)
        plan.add(specs)
        return plan.store()

    def _plan(self, *, now_us: int, is_children: bool = False, ending: int | None = None) -> Plan:
        versions_max = self._bounds.state_versions
        return Plan(self._rows, now_us=now_us, versions_max=versions_max, is_children=is_children, ending=ending)

    # ------------------------------------------------------------ claiming

    def join(
        self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, *, lease_us: int
    ) -> Ack[None]:
        """Register this process."""
        return self._do(lambda now_us: self._seat.join(Worker(worker, lease_us, now_us + lease_us), listener, loop))

    def describe(self, worker: WorkerInfo) -> Ack[None]:
        """Tell others something new about the worker that has joined here."""
        return self._do(lambda _: self._seat.describe(worker))

    @property
    def lease_until_us(self) -> int:
        """Until when this process holds what it holds; 0 without a worker."""
        worker = self._seat.worker
        return 0 if worker is None else worker.expire_us

    def leave(self) -> Ack[None]:
        """Forget the standing order and the registration."""
        return self._do(lambda _: self._seat.leave())

    def want(self, queue: str, n: int) -> None:
        """Raise the standing order."""
        with self._transaction() as now_us:
            self._seat.want({queue: n}, now_us=now_us)

    def unwant(self) -> Ack[None]:
        """Cancel the standing order."""
        return self._do(lambda _: self._seat.cancel_order())

    def want_ahead(self, queue: str, n: int) -> None:
        """Hold so many tasks beyond the standing order."""
        with self._transaction():
            self._seat.want_ahead(queue, n)

    def steal(self, worker_id: int, queue: str, n_max: int) -> Ack[list[Claimed]]:
        """Take over what another process has claimed ahead."""
        return self._do(lambda now_us: self._database.steal(worker_id, queue, n_max, now_us=now_us))

    def claim(self, worker_id: int, queue: str, n: int) -> Ack[list[Claimed]]:
        """Take at most `n` ready tasks."""
        return self._do(lambda now_us: self._database.claim(worker_id, queue, n, now_us=now_us))

    def look(self) -> None:
        """Serve what can be served, which nothing here is ever left of; say again that urgent tasks wait for a slot."""
        with self._transaction():
            self._rows.pressed.update(self._rows.ready.queues)

    # ------------------------------------------------------------ ending

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool | None]]:
        """Record how attempts ended, one after the other."""

        def operation(now_us: int) -> list[bool | None]:
            if want:
                self._seat.want(want, now_us=now_us)  # first: the slots are free, whatever becomes of the endings
            return [self._finish(ending, now_us=now_us) for ending in endings]

        return self._do(operation)

    def _finish(self, ending: Ending, *, now_us: int) -> bool | None:
        row = self._rows.holder(ending.claim)
        if row is None:
            self._rows.tally["refused"] += 1
            return False
        if not isinstance(ending, Succeeded):
            self._rows.finish(row, ending, now_us=now_us)
            return True
        fences = Fences(self._database.locks, now_us=now_us)
        try:
            writes = self._rows.states.plan(ending.writes, task_id=row.id, now_us=now_us, check=fences.check)
        except ConcurrentModificationError:
            return None
        except Fenced as error:  # as with children
            refusal = ErrorInfo(kind="Fenced", message=error.what, fix=error.fix)
            self._rows.finish(row, Failed(ending.claim, refusal), now_us=now_us)
            return True
        plan = self._plan(now_us=now_us, is_children=True, ending=row.id)
        try:
            plan.add(ending.children)
        except SubmitError as error:  # concerns this attempt only, not the other endings of the call
            self._rows.finish(row, Failed(ending.claim, ErrorInfo.of_refusal(error)), now_us=now_us)
            return True
        fences.learn()
        self._rows.states.store(writes, versions_max=self._bounds.state_versions)
        self._rows.finish(row, ending, now_us=now_us)
        plan.store()
        return True

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Keep the result of a step."""

        def operation(_: int) -> bool:
            row = self._rows.holder(claim)
            if row is None:
                self._rows.tally["refused"] += 1
                return False
            row.steps.setdefault(key, result)
            return True

        return self._do(operation)

    def resume(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        """Make suspended tasks ready again."""

        def resume_one(task_id: int, now_us: int) -> bool:
            row = self._rows.tasks.get(task_id)
            if row is None or row.state is not State.SUSPENDED:
                return False
            self._rows.make_ready(row, Event.RESUME, now_us=now_us)
            return True

        return self._do(lambda now_us: [resume_one(i, now_us) for i in task_ids])

    def cancel(self, task_ids: Sequence[int], *, reason: str = "") -> Ack[list[bool]]:
        """End live tasks as cancelled."""

        def operation(now_us: int) -> list[bool]:
            found = [self._row(i) for i in task_ids]
            live = {row.id: row for row in found if row.state.live}
            error = ErrorInfo(kind="cancelled", message=reason)
            self._rows.stop(list(live.values()), Event.CANCEL, error, now_us=now_us)
            return [live.pop(i, None) is not None for i in task_ids]

        return self._do(operation)

    def revive(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        """Make failed or cancelled tasks ready again."""

        def operation(now_us: int) -> list[bool]:
            found = [self._row(i) for i in task_ids]
            ended = {row.id: row for row in found if row.state in (State.FAILED, State.CANCELLED)}
            self._rows.revive(list(ended.values()), now_us=now_us)
            return [ended.pop(i, None) is not None for i in task_ids]

        return self._do(operation)

    # ------------------------------------------------------------ time and death

    def heartbeat(self, worker_id: int, lease_us: int) -> Ack[list[Claim]]:
        """Renew the lease. A worker that was taken for dead is registered again: it has lost all and may go on."""

        def operation(now_us: int) -> list[Claim]:
            self._seat.renew(worker_id, lease_us, now_us=now_us)
            return sorted(row.claim for row in self._rows.held.get(worker_id, {}).values())

        return self._do(operation)

    def rescue(self, worker_id: int) -> Ack[int]:
        """Take back all a dead worker held."""
        why = f"worker {worker_id}, which ran it, has died"

        def operation(now_us: int) -> int:
            rescued = self._database.rescue(worker_id, why, now_us=now_us)
            self._database.drop_locks(worker_id, now_us=now_us)
            return rescued

        return self._do(operation)

    def fire(self) -> Ack[int | None]:
        """Do all that is due."""

        def operation(now_us: int) -> int | None:
            self._rows.fire(now_us=now_us)
            self._database.rescue_lapsed(now_us=now_us)
            self._database.locks.expire(now_us=now_us)
            self._rows.settle(
                now_us=now_us, threads_max=self._bounds.threads_max
            )  # a turn that is passed on may be due
            return self._seat.told_due()

        return self._do(operation)

    # ------------------------------------------------------------ schedules

    def put_schedule(self, name: str, next_us: int) -> Ack[int]:
        """Remember when a schedule runs next, unless it is known."""
        return self._do(lambda _: self._database.schedules.setdefault(name, next_us))

    def run_schedule(self, name: str, *, due_us: int, next_us: int, specs: Sequence[TaskSpec]) -> Ack[bool]:
        """Move a schedule on and submit `specs`, unless another process was first."""

        def operation(now_us: int) -> bool:
            if self._database.schedules.get(name) != due_us:
                return False
            self._submit(specs, now_us=now_us)
            self._database.schedules[name] = next_us
            return True

        return self._do(operation)

    # ------------------------------------------------------------ looking

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Resolve when the task has ended."""

        def watch() -> Ack[Outcome]:
            row = self._row(task_id)
            if not row.state.live:
                return Ack.done_with(look.outcome(row))
            ack: Ack[Outcome] = Ack()
            self._database.watches.setdefault(task_id, []).append((self._seat, ack))
            return ack

        return self._watch(watch)

    def task(self, task_id: int) -> Ack[TaskView]:
        """Return one task."""
        return self._do(lambda _: look.view(self._rows, self._row(task_id), self._database.living(), full=True))

    def tasks(
        self,
        *,
        states: Sequence[State] = (),
        queue: str | None = None,
        handler: str | None = None,
        thread_id: str | None = None,
        limit: int = 100,
    ) -> Ack[list[TaskView]]:
        """Return the newest tasks that match, newest first."""
        return self._do(
            lambda _: look.select(
                self._rows,
                self._database.living(),
                states=states,
                queue=queue,
                handler=handler,
                thread_id=thread_id,
                limit=limit,
            )
        )

    def counts(self) -> Ack[dict[str, dict[State, int]]]:
        """Return queue → state → number of live tasks."""
        return self._do(lambda _: look.counts(self._rows))

    def routes(self) -> Ack[list[RouteView]]:
        """Return what open tasks need of their worker."""
        return self._do(lambda _: look.routes(self._rows, self._database.living()))

    def attempts(self, task_id: int) -> Ack[list[AttemptView]]:
        """Return the attempts that ended without success."""
        return self._do(lambda _: list(self._rows.tasks[task_id].attempts) if task_id in self._rows.tasks else [])

    def log(self, lines: Sequence[LogLine]) -> Ack[None]:
        """Keep log lines; those of a task that is not stored go nowhere."""

        def operation(_: int) -> None:
            for line in lines:
                row = self._rows.tasks.get(line.task_id)
                if row is not None:
                    row.logs.append(msgspec.structs.replace(line, seq=next(self._database.log_seqs)))

        return self._do(operation)

    def logs(self, task_id: int, *, after_seq: int = 0, limit: int = 1000) -> Ack[list[LogLine]]:
        """Return log lines of a task."""

        def operation(_: int) -> list[LogLine]:
            row = self._rows.tasks.get(task_id)
            return [] if row is None else [line for line in row.logs if line.seq > after_seq][:limit]

        return self._do(operation)

    def workers(self) -> Ack[list[WorkerInfo]]:
        """Return the registered processes."""

        def info(worker: Worker) -> WorkerInfo:
            running = len(self._rows.held.get(worker.info.id, ()))
            return msgspec.structs.replace(worker.info, expire_us=worker.expire_us, running=running)

        return self._do(lambda _: [info(w) for w in self._database.workers.values() if not w.left])

    def ledger(self) -> Ack[Ledger]:
        """Return the counts."""
        return self._do(lambda _: look.ledger(self._rows))

    def verify(self) -> Ack[list[str]]:
        """Return every broken promise found in the rows."""
        return self._do(lambda _: verify(self._rows))

    def prune(self, *, before_us: int, limit: int) -> Ack[int]:
        """Delete old ended tasks."""

        def operation(_: int) -> int:
            self._database.locks.prune(before_us=before_us)
            return prune(self._rows, before_us=before_us, limit=limit)

        return self._do(operation)

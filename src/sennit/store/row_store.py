"""What the stores with rows have in common: every method is one transaction of moves, whatever the database.

    calls ─► writer (own OS thread, group commit) ─► moves/*.py ─► commit ─► acks, claims, watches, bells
    looks ─► reader (own OS thread, own connection)

What happens *around* the moves is the desk's: the standing order is served inside the transaction that made a task
ready, and after the commit others are told. State that only the writer's OS thread touches (`Desk`) needs no lock.
Reads have a connection and an OS thread of their own, so a long listing holds nobody up.
"""

# ruff: noqa: D102 - the promises stand in store/protocol.py, once

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sennit.errors import StoreUnavailable, UsageError
from sennit.model.admission import Bounds
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
from sennit.store.database import Backend, Connection
from sennit.store.desk import Desk
from sennit.store.ears import Ears
from sennit.store.effects import Effects
from sennit.store.ids import IdBlocks
from sennit.store.moves import ahead, look, outside, time
from sennit.store.moves import claim as claims
from sennit.store.moves import finish as finishes
from sennit.store.moves import lock as locks
from sennit.store.moves.entry import known_bounds
from sennit.store.moves.provider import Pools
from sennit.store.moves.submit import submit
from sennit.store.operations import AddChildren, Beside, SaveStep, Submit
from sennit.store.protocol import Listener
from sennit.store.reader import Reader
from sennit.store.row_agents import RowAgents
from sennit.store.row_locks import RowLocks
from sennit.store.row_providers import RowProviders
from sennit.store.row_threads import RowThreads
from sennit.store.writer import Writer
from sennit.sync.ack import Ack
from sennit.sync.clock import NowUs

T = TypeVar("T")


class RowStore(RowThreads, RowProviders, RowLocks, RowAgents):
    """`sennit.store.protocol.Store` on tables; its promises are the docstrings there.

    Args:
        connection: the writer's own.
        live: the folder in which processes of this host find each other.
        ears: how processes ring each other.
        pen: held around each transaction of the writer.
        bounds: what this process enforces in the store; None is what the worker enforces that joined last.
        now_us: the store's clock.
        hand_over: a task that becomes ready is claimed in the transaction that made it so, if this process can take it;
            else in a transaction of its own.
    """

    spans_hosts = False

    def __init__(
        self,
        connection: Connection,
        backend: Backend,
        *,
        live: Path,
        ears: Ears,
        pen: AbstractContextManager[Any],
        bounds: Bounds | None,
        now_us: NowUs,
        batch_max: int,
        hand_over: bool = True,
    ) -> None:
        self._backend = backend
        self.hand_over = hand_over
        self._now_us = now_us
        self.live = live
        self.ears = ears
        self.bounds = known_bounds(connection) if bounds is None else bounds
        self._closing = threading.Lock()
        self._desk = self.make_desk()
        self._writer = self.make_writer(connection, pen, batch_max)
        self._reader = Reader(backend)
        self._ids = IdBlocks(self._writer)

    def make_desk(self) -> Desk:
        """Return what does the work around the moves."""
        return Desk(self)

    def make_writer(self, connection: Connection, pen: AbstractContextManager[Any], batch_max: int) -> Writer[Effects]:
        """Return who runs operations in transactions."""
        return Writer(connection, self._backend, pen=pen, batch=self._desk, batch_max=batch_max)

    def now_us(self) -> int:
        return self._now_us()

    def transaction_us(self) -> int:
        """Return the time of the writer's transaction."""
        return self._now_us()

    def closed(self) -> StoreUnavailable:
        """Return the error of a call that came after `close`."""
        return self._backend.closed()

    def close(self) -> None:
        with self._closing:
            self._ids.give_back()
            self._desk.caretaker.close()
            self._desk.permits.close(self.closed())
            self._desk.locks.close(self.closed())
            self._desk.leave(for_good=True)
            self._writer.close()
            self._reader.close()

    # ------------------------------------------------------------ handing in

    def take_ids(self, n: int) -> Sequence[int]:
        return self._ids.take(n)

    def submit(self, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        return self._writer.put(Submit(self._desk, specs))

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        return self._writer.put(AddChildren(self._desk, claim, specs))

    # ------------------------------------------------------------ claiming

    def join(
        self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, *, lease_us: int
    ) -> Ack[None]:
        return self._desk.join(worker, listener, loop, lease_us)

    def describe(self, worker: WorkerInfo) -> Ack[None]:
        return self._writer.put(lambda connection, _: self._desk.members.describe(connection, worker))

    @property
    def lease_until_us(self) -> int:
        return self._desk.members.lease_until_us

    def leave(self) -> Ack[None]:
        return self._desk.leave()

    def want(self, queue: str, n: int) -> None:
        self._desk.raise_order({queue: n})
        self._writer.put(Beside(_nothing))  # a transaction serves what was raised

    def unwant(self) -> Ack[None]:
        return self._writer.put(self._desk.cancel_order)

    def want_ahead(self, queue: str, n: int) -> None:
        self._desk.raise_order({})
        self._desk.order.set_ahead(queue, n)

    def claim(self, worker_id: int, queue: str, n: int) -> Ack[list[Claimed]]:
        def operation(connection: Connection, effects: Effects) -> list[Claimed]:
            if not time.registered(connection, worker_id):
                return []  # nobody would rescue what it held
            time.renew_if_half_used(connection, effects, worker_id)
            return claims.claim(connection, effects, worker_id=worker_id, queue=queue, n=n).tasks

        return self._writer.put(operation)

    def steal(self, worker_id: int, queue: str, n_max: int) -> Ack[list[Claimed]]:
        def operation(connection: Connection, effects: Effects) -> list[Claimed]:
            if not time.registered(connection, worker_id):
                return []
            time.renew_if_half_used(connection, effects, worker_id)
            return ahead.steal(connection, effects, worker_id=worker_id, queue=queue, n_max=n_max)

        return self._writer.put(operation)

    def look(self) -> None:
        self._writer.put(self._desk.look)

    # ------------------------------------------------------------ ending

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool | None]]:
        if want:
            try:
                self._desk.raise_order(want)
            except UsageError as error:
                return Ack.failed_with(error)
        return self._desk.finish(endings)

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        return self._writer.put(SaveStep(self._desk, claim, key, result))

    def resume(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        return self._writer.put(lambda c, fx: [outside.resume(c, fx, i) for i in task_ids])

    def cancel(self, task_ids: Sequence[int], *, reason: str = "") -> Ack[list[bool]]:
        return self._writer.put(lambda c, fx: outside.cancel(c, fx, task_ids, reason))

    def revive(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        return self._writer.put(lambda c, fx: outside.revive(c, fx, task_ids))

    # ------------------------------------------------------------ time and death

    def heartbeat(self, worker_id: int, lease_us: int) -> Ack[list[Claim]]:
        def operation(connection: Connection, effects: Effects) -> list[Claim]:
            return self._desk.heartbeat(connection, effects, worker_id, lease_us)

        return self._writer.put(Beside(operation))

    def rescue(self, worker_id: int) -> Ack[int]:

        def operation(connection: Connection, effects: Effects) -> int:
            rescued = finishes.rescue(connection, effects, worker_id, "the process of its worker died")
            locks.free(connection, effects, [worker_id])
            if (
                self.spans_hosts
            ):  # what it was about to take is ready again, and whoever was rung for it has passed it over
                self._desk.look(connection, effects)
            return len(rescued)

        return self._writer.put(operation)

    def fire(self) -> Ack[int | None]:
        return self._writer.put(lambda c, fx: time.fire(c, fx, worker_id=self._desk.members.id))

    # ------------------------------------------------------------ schedules

    def put_schedule(self, name: str, next_us: int) -> Ack[int]:
        def operation(connection: Connection, _: Effects) -> int:
            connection.execute("INSERT INTO sennit_schedule VALUES (?, ?) ON CONFLICT DO NOTHING", (name, next_us))
            held: int = connection.execute("SELECT next_us FROM sennit_schedule WHERE name = ?", (name,)).fetchone()[0]
            return held

        return self._writer.put(operation)

    def run_schedule(self, name: str, *, due_us: int, next_us: int, specs: Sequence[TaskSpec]) -> Ack[bool]:
        def operation(connection: Connection, effects: Effects) -> bool:
            moved = connection.execute(
                "UPDATE sennit_schedule SET next_us = ? WHERE name = ? AND next_us = ?", (next_us, name, due_us)
            )
            if moved.rowcount:
                submit(connection, effects, specs)
            return bool(moved.rowcount)

        return self._writer.put(operation)

    # ------------------------------------------------------------ looking

    def watch(self, task_id: int) -> Ack[Outcome]:
        return self._desk.watch(task_id)

    def task(self, task_id: int) -> Ack[TaskView]:
        return self._reader.put(
            lambda c: look.task(c, task_id, self._pools(c), partial(self._desk.members.peers.working, c))
        )

    def tasks(
        self,
        *,
        states: Sequence[State] = (),
        queue: str | None = None,
        handler: str | None = None,
        thread_id: str | None = None,
        limit: int = 100,
    ) -> Ack[list[TaskView]]:
        def query(connection: Connection) -> list[TaskView]:
            return look.tasks(
                connection, self._pools(connection), partial(self._desk.members.peers.working, connection),
                states=states, queue=queue, handler=handler, thread_id=thread_id, limit=limit,
            )  # fmt: skip

        return self._reader.put(query)

    def _pools(self, connection: Connection) -> Pools:
        """Return the providers, to look at."""
        return Pools(connection, self.now_us(), self.bounds)

    def routes(self) -> Ack[list[RouteView]]:
        return self._reader.put(lambda c: look.routes(c, partial(self._desk.members.peers.working, c)))

    def counts(self) -> Ack[dict[str, dict[State, int]]]:
        return self._reader.put(look.counts)

    def attempts(self, task_id: int) -> Ack[list[AttemptView]]:
        return self._reader.put(lambda c: look.attempts(c, task_id))

    def log(self, lines: Sequence[LogLine]) -> Ack[None]:
        rows = [(line.task_id, line.attempt, line.at_us, line.level, line.text) for line in lines]

        def operation(connection: Connection, _: Effects) -> None:
            connection.executemany(
                "INSERT INTO sennit_log (task_id, attempt, at_us, level, text) VALUES (?, ?, ?, ?, ?)", rows
            )

        return self._writer.put(Beside(operation))

    def logs(self, task_id: int, *, after_seq: int = 0, limit: int = 1000) -> Ack[list[LogLine]]:
        return self._reader.put(lambda c: look.logs(c, task_id, after_seq=after_seq, limit=limit))

    def workers(self) -> Ack[list[WorkerInfo]]:
        return self._reader.put(self._desk.members.peers.living)

    def ledger(self) -> Ack[Ledger]:
        return self._reader.put(look.ledger)

    def verify(self) -> Ack[list[str]]:
        return self._reader.put(look.verify)

    def prune(self, *, before_us: int, limit: int) -> Ack[int]:
        return self._writer.put(lambda c, fx: time.prune(c, fx, before_us=before_us, limit=limit))

    # ------------------------------------------------------------ for the Desk

    def put(self, operation: Callable[[Connection, Effects], T]) -> Ack[T]:
        """Queue any operation on the writer."""
        return self._writer.put(operation)


def _nothing(_connection: Connection, _effects: Effects) -> None:
    pass

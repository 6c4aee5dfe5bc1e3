"""The threads' half of the memory store: state, questions and admission, as `store.protocol_threads` promises them.

Under it lies `Connection`: one process's seat at the shared data, and what a transaction is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from sennit.errors import (
    AskClosed,
    AskNotFound,
    AskStale,
    LeaseLost,
    SennitError,
    StoreUnavailable,
    TaskNotFound,
    ThreadBusy,
)
from sennit.model.admission import Bounds
from sennit.model.task import Claim
from sennit.model.thread import STATE, AskKind, AskState, AskView, Decision, StateView, StateWrite, ThreadView
from sennit.store import memory_look as look
from sennit.store.memory_asks import Ask, Signal, event_answer
from sennit.store.memory_locks import Fences
from sennit.store.memory_rows import Row
from sennit.store.memory_seats import Database, Seat
from sennit.sync.ack import Ack, resolve_all

T = TypeVar("T")

UNBOUNDED: Final = Bounds()


class Connection:
    """One process's seat at a database."""

    def _sit_down(self, database: Database, bounds: Bounds = UNBOUNDED) -> None:
        self._database = database
        self._rows = database.rows
        self._bounds = bounds
        self._seat = Seat(database)
        self._closed = False
        with database.lock:
            database.seats.append(self._seat)

    def now_us(self) -> int:
        """Return the store's clock."""
        return self._database.now_us()

    def close(self) -> None:
        """Close this connection. Its watches fail; a worker that has not left looks dead to the others."""
        database, seat = self._database, self._seat
        with database.lock:
            if self._closed:
                return
            self._closed = True
            self._rows.providers.begin(now_us=database.now_us(), parallel=self._bounds.provider_parallel)
            database.seats.remove(seat)
            abandoned = database.abandon(seat)
            settled = database.settle(now_us=database.now_us(), threads_max=self._bounds.threads_max)
            if seat.worker_id is not None:
                for other in database.seats:
                    other.tell_death(seat.worker_id)
        resolve_all([*((ack, None, _closed()) for ack in abandoned), *settled])

    @contextmanager
    def _transaction(self) -> Iterator[int]:
        """Hold the lock and yield the time; then serve and tell, and without the lock resolve the watches."""
        database = self._database
        with database.lock:
            if self._closed:
                raise _closed()
            now_us = database.now_us()
            self._rows.providers.begin(now_us=now_us, parallel=self._bounds.provider_parallel)
            yield now_us
            settled = database.settle(now_us=now_us, threads_max=self._bounds.threads_max)
        resolve_all(settled)

    def _do(self, operation: Callable[[int], T]) -> Ack[T]:
        try:
            with self._transaction() as now_us:
                value = operation(now_us)
        except SennitError as error:
            return Ack.failed_with(error)
        return Ack.done_with(value)

    def _watch(self, watch: Callable[[], Ack[T]]) -> Ack[T]:
        """Do what `watch` does in a transaction and return its ack, which a later transaction may resolve."""
        try:
            with self._transaction():
                return watch()
        except SennitError as error:
            return Ack.failed_with(error)

    def _row(self, task_id: int) -> Row:
        row = self._rows.tasks.get(task_id)
        if row is None:
            raise TaskNotFound(task_id)
        return row

    def _held(self, claim: Claim) -> Row:
        """Return the row of a claim that is held; else it is counted as refused."""
        row = self._rows.holder(claim)
        if row is None:
            self._rows.tally["refused"] += 1
            raise LeaseLost(*claim)
        return row


class ThreadFace(Connection):
    """What the store promises about threads."""

    # ------------------------------------------------------------ state

    def state(self, thread_id: str, name: str = STATE, *, version: int | None = None) -> Ack[StateView]:
        """Return a version, by default the present one."""
        return self._do(lambda _: self._rows.states.state(thread_id, name, version=version))

    def write_states(self, writes: Sequence[StateWrite], *, claim: Claim | None = None) -> Ack[list[StateView]]:
        """Write new versions, all or none."""

        def operation(now_us: int) -> list[StateView]:
            task_id = None if claim is None else self._held(claim).id
            fences = Fences(self._database.locks, now_us=now_us)
            planned = self._rows.states.plan(writes, task_id=task_id, now_us=now_us, check=fences.check)
            fences.learn()
            return self._rows.states.store(planned, versions_max=self._bounds.state_versions)

        return self._do(operation)

    def state_history(self, thread_id: str, name: str = STATE, *, limit: int = 100) -> Ack[list[StateView]]:
        """Return the versions that still have data."""
        return self._do(lambda _: self._rows.states.history(thread_id, name, limit=limit))

    def threads(self, *, limit: int = 100) -> Ack[list[ThreadView]]:
        """Return threads that have an open task or a state."""
        return self._do(lambda _: look.threads(self._rows, limit=limit))

    def forget_thread(self, thread_id: str) -> Ack[bool]:
        """Delete the state and config of a thread."""

        def operation(now_us: int) -> bool:
            line = self._rows.turns.line(thread_id)
            if line:
                raise ThreadBusy(thread_id, line[0].id)
            return self._rows.states.forget(thread_id, now_us=now_us)

        return self._do(operation)

    # ------------------------------------------------------------ questions

    def asks(
        self,
        *,
        states: Sequence[AskState] = ("open",),
        thread_id: str | None = None,
        task_id: int | None = None,
        assignee: str | None = None,
        kind: AskKind = "ask",
        after_id: int = 0,
        newest_first: bool = False,
        limit: int = 100,
    ) -> Ack[list[AskView]]:
        """Return questions that match, oldest first."""
        return self._do(
            lambda _: look.select_asks(
                self._rows,
                states=states,
                thread_id=thread_id,
                task_id=task_id,
                assignee=assignee,
                kind=kind,
                after_id=after_id,
                newest_first=newest_first,
                limit=limit,
            )
        )

    def ask(self, ask_id: int) -> Ack[AskView]:
        """Return one question or wait for an event."""
        return self._do(lambda _: look.ask_view(self._rows, self._ask(ask_id)))

    def answer(self, decisions: Sequence[Decision]) -> Ack[list[AskView]]:
        """Decide questions, all or none."""

        def operation(now_us: int) -> list[AskView]:
            decided: dict[int, Ask] = {}
            for decision in decisions:
                ask = self._ask(decision.ask_id)
                earlier = next((d.answer for d in decisions if ask.id in decided and d.ask_id == ask.id), ask.answer)
                if ask.state != "open" or ask.id in decided:
                    state = ask.state if earlier is ask.answer or earlier is None else earlier.state
                    raise AskClosed(ask.id, state=state, by="" if earlier is None else earlier.by)
                if decision.version not in (None, ask.version):
                    raise AskStale(ask.id, expected=decision.version or 0, actual=ask.version)
                decided[ask.id] = ask
            for decision in decisions:
                self._rows.decide(decided[decision.ask_id], decision.answer, now_us=now_us)
            return [look.ask_view(self._rows, ask) for ask in decided.values()]

        return self._do(operation)

    def _ask(self, ask_id: int) -> Ask:
        ask = self._rows.asks.by_id.get(ask_id)
        if ask is None:
            raise AskNotFound(ask_id)
        return ask

    def signal(self, name: str, event_key: str, payload: bytes) -> Ack[int]:
        """Answer every open wait for an event, or keep the signal."""

        def operation(now_us: int) -> int:
            waits = self._rows.asks.waits(name, event_key)
            for ask in waits:
                self._rows.decide(ask, event_answer(payload), now_us=now_us)
            if not waits:
                self._rows.asks.signals.append(Signal(name, event_key, payload, now_us))
            return len({ask.task_id for ask in waits})

        return self._do(operation)

    def watch_inbox(self, seen: int) -> Ack[int]:
        """Resolve when the inbox's revision is greater than `seen`."""

        def watch() -> Ack[int]:
            ack: Ack[int] = Ack()
            self._database.inbox_watches.append((self._seat, ack, seen))  # resolved by this transaction if it can be
            return ack

        return self._watch(watch)

    # ------------------------------------------------------------ admission

    def invalidate(self, *, tags: Sequence[str] = (), keys: Sequence[tuple[str, str]] = ()) -> Ack[int]:
        """Forget cached results."""
        return self._do(lambda _: self._rows.cache.invalidate(tags=tags, keys=keys))

    def wait_room(self, queue: str, queue_max: int) -> Ack[None]:
        """Resolve when fewer than `queue_max` tasks of `queue` wait."""

        def watch() -> Ack[None]:
            ack: Ack[None] = Ack()
            self._database.room_watches.append((self._seat, ack, queue, queue_max))
            return ack

        return self._watch(watch)

    def position(self, task_id: int) -> Ack[int | None]:
        """Return how many tasks are claimed before this one."""
        return self._do(lambda _: look.position(self._rows, self._row(task_id), self._database.living()))


def _closed() -> StoreUnavailable:
    return StoreUnavailable("this store is closed", why="close() was called on it", fix="open it again")

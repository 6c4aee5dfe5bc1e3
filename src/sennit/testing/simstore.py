"""A memory store whose every call takes time: before it is applied, and again before anybody hears of it.

    call ─► queue ─(random time)─► applied, on the shared data ─(random time)─► ack or listener, in order

So a crash can fall between "asked" and "applied" and between "applied" and "acknowledged", which is where durable
systems lose or repeat work. Each simulated process has one; it dies and freezes with the process, because its timers
do. Calls of one process are applied in the order they were made, several at once now and then, as in a group commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

from sennit.errors import SennitError, StoreFull
from sennit.model.agent import AgentView
from sennit.model.lifecycle import State
from sennit.model.provider import CallReport
from sennit.model.task import Claim, Ending, Succeeded, TaskSpec, WorkerInfo
from sennit.model.thread import AskView, Decision, StateView, StateWrite
from sennit.store.memory import MemoryStore
from sennit.store.protocol import Listener
from sennit.sync.ack import Ack
from sennit.testing.simaudit import Audit
from sennit.testing.simpool import SimAck
from sennit.testing.simturns import stored_anew

__all__ = ["Inbox", "SlowStore"]

T = TypeVar("T")


class Inbox:
    """Delivers into one process, in the order of posting, each after a random virtual time, whoever posts.

    The store takes it for the event loop of its listener: it has the one method that the store calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, random: Random, *, delay_s_max: float) -> None:
        self._loop = loop
        self._random = random
        self._delay_s_max = delay_s_max
        self._context: Context = copy_context()  # of the process that opened it; others post from theirs
        self._posts: deque[Callable[[], object]] = deque()

    def call_soon_threadsafe(self, function: Callable[..., object], *args: Any) -> None:
        """Post a call."""
        self._posts.append(partial(function, *args))
        if len(self._posts) == 1:
            self._wait()

    def _wait(self) -> None:
        self._loop.call_later(self._random.random() * self._delay_s_max, self._deliver, context=self._context)

    def _deliver(self) -> None:
        """Deliver what has come, or part of it."""
        for _ in range(self._random.randint(1, len(self._posts))):
            self._posts[0]()
            self._posts.popleft()
        if self._posts:
            self._wait()


class SlowStore(MemoryStore):
    """One simulated process's connection to `shared`. Make it in the process it belongs to.

    Args:
        delay_s_max: how long, at most, before a call is applied, and again before its ack.
        trouble: asked per call whether the disk is full for it: it is refused and nothing of it is done.
    """

    def __init__(
        self,
        shared: MemoryStore,
        loop: asyncio.AbstractEventLoop,
        random: Random,
        *,
        delay_s_max: float,
        trouble: Callable[[], bool],
        audit: Audit,
    ) -> None:
        self._sit_down(shared._database, shared._bounds)  # noqa: SLF001 - same class
        self._loop = loop
        self._random = random
        self._delay_s_max = delay_s_max
        self._trouble = trouble
        self._audit = audit
        self._inbox = Inbox(loop, random, delay_s_max=delay_s_max)
        self._calls: deque[Callable[[], None]] = deque()
        self._applies = False
        self._is_sure = False

    # ------------------------------------------------------------ time passes

    def _later(self, apply: Callable[[], Ack[T]], *, refused: Callable[[], None] | None = None) -> Ack[T]:
        """Queue a call; `refused` runs instead of it when the disk is full."""
        answer: Ack[T] = SimAck()
        is_sure = self._is_sure

        def call() -> None:
            if not is_sure and self._trouble():
                if refused is not None:
                    refused()
                done: Ack[T] = Ack.failed_with(StoreFull("the simulated disk is full"))
            else:
                done = apply()
            done.add_done_callback(lambda ack: self._inbox.call_soon_threadsafe(_pass_on, ack, answer))

        self._calls.append(call)
        if len(self._calls) == 1:
            self._wait()
        return answer

    def _wait(self) -> None:
        self._loop.call_later(self._random.random() * self._delay_s_max, self._apply_some)

    def _apply_some(self) -> None:
        self._applies = True
        try:
            for _ in range(self._random.randint(1, len(self._calls))):
                self._calls[0]()
                self._calls.popleft()
                self._audit.after_commit()
        finally:
            self._applies = False
        if self._calls:
            self._wait()

    @contextmanager
    def _surely(self) -> Iterator[None]:
        """What is called in here meets no trouble: a process that cannot join or leave only ends."""
        self._is_sure = True
        try:
            yield
        finally:
            self._is_sure = False

    def _do(self, operation: Callable[[int], T]) -> Ack[T]:
        if self._applies:
            return super()._do(operation)
        return self._later(lambda: MemoryStore._do(self, operation))  # noqa: SLF001 - same class

    def _watch(self, watch: Callable[[], Ack[T]]) -> Ack[T]:
        """Watch; another process's commit may resolve it, and the answer takes its time all the same."""
        if self._applies:
            return super()._watch(watch)
        with self._surely():
            return self._later(lambda: MemoryStore._watch(self, watch))  # noqa: SLF001 - same class

    # ------------------------------------------------------------ calls with something special

    def join(
        self, worker: WorkerInfo, listener: Listener, loop: asyncio.AbstractEventLoop, *, lease_us: int
    ) -> Ack[None]:
        """Join; the listener is told through the inbox."""
        del loop
        inbox = cast("asyncio.AbstractEventLoop", self._inbox)
        with self._surely():
            return super().join(worker, listener, inbox, lease_us=lease_us)

    def leave(self) -> Ack[None]:
        """Leave."""
        with self._surely():
            return super().leave()

    def unwant(self) -> Ack[None]:
        """Cancel the standing order."""
        with self._surely():
            return super().unwant()

    def want(self, queue: str, n: int) -> None:
        """Raise the standing order."""

        def apply() -> Ack[None]:
            MemoryStore.want(self, queue, n)
            return Ack.done_with(None)

        with self._surely():
            self._later(apply)

    def want_ahead(self, queue: str, n: int) -> None:
        """Hold tasks beyond the standing order."""

        def apply() -> Ack[None]:
            MemoryStore.want_ahead(self, queue, n)
            return Ack.done_with(None)

        with self._surely():
            self._later(apply)

    def return_permit(self, permit_id: int, report: CallReport | None = None) -> Ack[bool]:
        """Return a permit."""
        with self._surely():
            return super().return_permit(permit_id, report)

    # ------------------------------------------------------------ calls under the eyes of the audit

    def submit(self, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Store tasks."""
        return self._later(partial(self._with_keys, specs, lambda: MemoryStore.submit(self, specs)))

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Store children of a running attempt."""
        return self._later(partial(self._with_keys, specs, lambda: MemoryStore.add_children(self, claim, specs)))

    def _with_keys(self, specs: Sequence[TaskSpec], store: Callable[[], Ack[list[int]]]) -> Ack[list[int]]:
        keys, entries = self._audit.keys, self._audit.entries
        fresh_ids, waiting = keys.before(specs), entries.before(specs)
        done = store()
        try:
            done.wait()
        except SennitError as error:
            keys.refused(specs, error)
            entries.refused(specs, error, waiting)
        else:
            keys.stored(specs, fresh_ids)
            self._entered(specs, fresh_ids)
        return done

    def _entered(self, specs: Sequence[TaskSpec], fresh_ids: Sequence[int]) -> None:
        fresh = stored_anew(specs, fresh_ids)
        self._audit.turns.stored(fresh)
        self._audit.entries.stored(specs, fresh)
        for spec in fresh:
            if spec.entry is not None and spec.entry.on_busy == "rollback" and spec.thread_id is not None:
                self._audit.states.interrupted(spec.thread_id)

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool | None]]:
        """Record ends."""

        def apply() -> Ack[list[bool | None]]:
            keys = self._audit.keys
            before = self._audit.before_endings(endings)
            born = [(e.claim, e.children, keys.before(e.children)) for e in endings if isinstance(e, Succeeded)]
            done = MemoryStore.finish(self, endings, want=want)
            accepted = done.wait()
            self._audit.after_endings(endings, before, accepted)
            ended = {e.claim for e, did in zip(endings, accepted, strict=True) if did}
            for claim, children, fresh_ids in born:
                if claim in ended and self._audit.view(claim.task_id).state is State.SUCCEEDED:
                    keys.stored(children, fresh_ids)
                    self._audit.turns.stored(stored_anew(children, fresh_ids))
            for ending, did in zip(endings, accepted, strict=True):
                if isinstance(ending, Succeeded):
                    self._audit.states.finished(ending, did)
            return done

        def raise_order() -> None:
            for queue, n in (want or {}).items():
                MemoryStore.want(self, queue, n)

        return self._later(apply, refused=raise_order)

    def put_schedule(self, name: str, next_us: int) -> Ack[int]:
        """Remember a schedule."""

        def apply() -> Ack[int]:
            done = MemoryStore.put_schedule(self, name, next_us)
            self._audit.cron.remembered(name, done.wait())
            return done

        with self._surely():
            return self._later(apply)

    def run_schedule(self, name: str, *, due_us: int, next_us: int, specs: Sequence[TaskSpec]) -> Ack[bool]:
        """Submit runs of a schedule."""

        def apply() -> Ack[bool]:
            done = MemoryStore.run_schedule(self, name, due_us=due_us, next_us=next_us, specs=specs)
            if done.wait():
                self._audit.cron.submitted(name, specs)
            return done

        return self._later(apply)

    def revive(self, task_ids: Sequence[int]) -> Ack[list[bool]]:
        """Revive tasks."""

        def apply() -> Ack[list[bool]]:
            done = MemoryStore.revive(self, task_ids)
            with suppress(SennitError):  # what refuses it is told to whoever asked
                self._audit.turns.revived(i for i, did in zip(task_ids, done.wait(), strict=True) if did)
            return done

        return self._later(apply)

    def write_states(self, writes: Sequence[StateWrite], *, claim: Claim | None = None) -> Ack[list[StateView]]:
        """Write states, and look what came of it, also when they were refused."""

        def apply() -> Ack[list[StateView]]:
            done = MemoryStore.write_states(self, writes, claim=claim)
            self._audit.states.written((write.thread_id for write in writes), saved=claim is not None)
            return done

        return self._later(apply)

    def answer(self, decisions: Sequence[Decision]) -> Ack[list[AskView]]:
        """Decide asks."""

        def apply() -> Ack[list[AskView]]:
            before = self._audit.asks.before(decisions)
            done = MemoryStore.answer(self, decisions)
            refused: SennitError | None = None
            try:
                done.wait()
            except SennitError as error:
                refused = error
            self._audit.asks.decided(decisions, before, refused)
            return done

        return self._later(apply)

    def signal(self, name: str, event_key: str, payload: bytes) -> Ack[int]:
        """Send a signal."""

        def apply() -> Ack[int]:
            done = MemoryStore.signal(self, name, event_key, payload)
            self._audit.asks.signals[int(payload)] = (event_key, done.wait())
            return done

        return self._later(apply)

    def invalidate(self, *, tags: Sequence[str] = (), keys: Sequence[tuple[str, str]] = ()) -> Ack[int]:
        """Drop cached results."""

        def apply() -> Ack[int]:
            self._audit.entries.invalidated()
            return MemoryStore.invalidate(self, tags=tags, keys=keys)

        return self._later(apply)

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Save a step."""

        def apply() -> Ack[bool]:
            held = self._audit.holds(claim)
            done = MemoryStore.save_step(self, claim, key, result)
            self._audit.after_step(claim, result, held=held, accepted=done.wait())
            return done

        return self._later(apply)

    def note_agent(self, claim: Claim, view: AgentView) -> Ack[bool]:
        """Keep the view of an agent."""

        def apply() -> Ack[bool]:
            held = self._audit.holds(claim)
            done = MemoryStore.note_agent(self, claim, view)
            self._audit.agents.noted(claim, view, held=held, accepted=done.wait())
            return done

        return self._later(apply)


def _pass_on(source: Ack[T], target: Ack[T]) -> None:
    try:
        value = source.wait()
    except Exception as error:  # noqa: BLE001 - delivered to whoever asked
        target.reject(error)
    else:
        target.resolve(value)

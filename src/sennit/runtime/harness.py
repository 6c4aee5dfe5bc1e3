"""`app.testing()`: the real runtime on a store in memory and a clock that jumps.

    submit … ─► drain: engine starts ─► all that is ready runs ─► quiet? jump to what is due next ─► … ─► engine stops

Nothing runs between drains, so a test can look at what was handed in before it lets it run. It is *quiet* when every
attempt that runs waits for another task and nothing is ready (a task that asks somebody holds nothing); only then does
time jump, so an hour of retries passes at once and no body is overtaken by the clock. A body's own waits
(`asyncio.sleep`, I/O) and `timeout_s` take real time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec

from sennit.errors import UsageError
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.provider import CallReport, Permit, PermitRequest
from sennit.model.route import EVERYTHING
from sennit.model.settings import Settings
from sennit.model.task import Claim, Ending, Ledger, Outcome, TaskView
from sennit.model.thread import AskView, Decision
from sennit.runtime.bridge import LoopThread
from sennit.runtime.engine import Engine
from sennit.runtime.stores import bounds_of
from sennit.store.memory import MemoryStore
from sennit.store.protocol import Store
from sennit.submit.context import current
from sennit.submit.registry import Registry, Task
from sennit.sync.ack import Ack, call_in
from sennit.sync.plain import to_plain
from sennit.sync.virtual import VirtualClock
from sennit.threads.inbox import Inbox

T = TypeVar("T")

__all__ = ["AsyncHarness", "Harness", "SyncHarness", "Testing"]

DAY_S: Final = 86_400.0

_LEASE_S: Final = 3600.0  # renewed at every jump, so that no jump makes an attempt look dead
_ALL: Final = 10**9
# Turns of the loop that bodies get to go on after what they waited for has ended, before time jumps past them.
_TURNS: Final = 20


class HarnessStore(MemoryStore):
    """A memory store that knows which attempts wait, and says when that may have changed."""

    def __init__(self, clock: VirtualClock, bounds: Bounds) -> None:
        super().__init__(now_us=clock.now_us, bounds=bounds)
        self._waits: dict[Claim, list[Ack[Any]]] = {}
        self._on_change: Callable[[], object] = bool

    def on_change(self, tell: Callable[[], object]) -> None:
        """Have `tell` called, in any OS thread, whenever an attempt has ended or begun to wait."""
        self._on_change = tell

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Watch; note it when a body asks."""
        return self._noted(super().watch(task_id))

    def take_permit(self, request: PermitRequest) -> Ack[Permit]:
        """Take a permit; note it when a body waits in line."""
        ack = super().take_permit(request)
        return self._noted(ack) if request.wait else ack

    def return_permit(self, permit_id: int, report: CallReport | None = None) -> Ack[bool]:
        """Return a permit: others may go on, or a pause begins."""
        done = super().return_permit(permit_id, report)
        self._on_change()
        return done

    def _noted(self, ack: Ack[T]) -> Ack[T]:
        attempt = current()
        if attempt is not None:
            self._waits.setdefault(attempt.task.claim, []).append(ack)
        self._on_change()
        return ack

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool | None]]:
        """Record ends."""
        done = super().finish(endings, want=want)
        for ending in endings:
            self._waits.pop(ending.claim, None)
        self._on_change()
        return done

    def answer(self, decisions: Sequence[Decision]) -> Ack[list[AskView]]:
        """Decide questions: their tasks go on."""
        decided = super().answer(decisions)
        self._on_change()
        return decided

    def signal(self, name: str, event_key: str, payload: bytes) -> Ack[int]:
        """Answer waits for an event: their tasks go on."""
        answered = super().signal(name, event_key, payload)
        self._on_change()
        return answered

    def expiry_us(self) -> int | None:
        """Return when the next question or wait for an event expires."""
        with self._transaction():
            return self._rows.asks.next_due_us()

    def is_quiet(self, queues: Mapping[str, int]) -> bool:
        """Return whether nothing goes on by itself: none of `queues` has a task to claim, and all that runs waits.

        A ready task that has a reason is one whose provider has no room.
        """
        counts = self.counts().wait()
        if any(slots and State.READY in counts.get(queue, {}) for queue, slots in queues.items()):
            ready = self.tasks(states=[State.READY], limit=_ALL).wait()
            if any(not view.reason and queues.get(view.queue) for view in ready):
                return False
        return all(
            any(not ack.done for ack in self._waits.get(Claim(view.id, view.attempt), ()))
            for view in self.tasks(states=[State.RUNNING], limit=_ALL).wait()
        )


class Harness:
    """What a test holds: the store's tasks, the clock, and the inbox with the questions that the tasks have asked."""

    def __init__(self, store: HarnessStore, clock: VirtualClock, make_engine: Callable[[], Engine]) -> None:
        self.store = store
        self.clock = clock
        self.inbox = Inbox(lambda: store)
        self._make_engine = make_engine

    @property
    def tasks(self) -> list[TaskView]:
        """All tasks, in the order they were handed in."""
        views = self.store.tasks(limit=_ALL).wait()
        return [self.store.task(view.id).wait() for view in reversed(views)]

    def submitted(self, handler: Task[..., Any] | str, **arguments: Any) -> list[TaskView]:
        """Return the tasks of a handler that were handed in with (at least) these arguments; empty if there is none."""
        name = handler if isinstance(handler, str) else handler.name
        wanted = {key: _as_json(value) for key, value in arguments.items()}
        return [view for view in self.tasks if view.handler == name and _has(view.payload, wanted)]

    async def _drain(self, until_s: float | None) -> Ledger:
        """Run what is ready, and what becomes due within `until_s`; None is a day, if no question expires in it."""
        waits_for_answers = until_s is None
        until_s = DAY_S if until_s is None else until_s
        end_us = self.clock.now_us() + round(until_s * 1_000_000)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self.store.on_change(lambda: call_in(loop, changed.set))
        engine = self._make_engine()
        await engine.start()
        try:
            while True:
                await self._wait_quiet(engine.queues, changed)
                due_us = await self.store.fire()
                if due_us is None or due_us > end_us or (waits_for_answers and due_us == self.store.expiry_us()):
                    break
                await self._jump(due_us, engine.worker_id)
        finally:
            await engine.stop(0.0)
        return await self.store.ledger()

    async def _wait_quiet(self, queues: Mapping[str, int], changed: asyncio.Event) -> None:
        while True:
            changed.clear()
            if not self.store.is_quiet(queues):
                await changed.wait()
                continue
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if self.store.is_quiet(queues):
                return

    async def _jump(self, due_us: int, worker_id: int) -> None:
        """Let time pass; the lease first, since a jump may be longer. Memory answers at once: no step in between."""
        self.clock.advance(max(0, due_us - self.clock.now_us()) / 1_000_000)
        await self.store.heartbeat(worker_id, round(_LEASE_S * 1_000_000))
        await self.store.fire()

    async def _advance(self, seconds: float) -> Ledger:
        """Let `seconds` pass, running what becomes due on the way."""
        end_us = self.clock.now_us() + round(seconds * 1_000_000)
        ledger = await self._drain(seconds)
        self.clock.advance(max(0, end_us - self.clock.now_us()) / 1_000_000)
        return ledger


class SyncHarness(Harness):
    """The harness of `with app.testing() as t`."""

    def __init__(self, store: HarnessStore, clock: VirtualClock, make_engine: Callable[[], Engine]) -> None:
        super().__init__(store, clock, make_engine)
        self._bridge = LoopThread()

    def drain(self, until_s: float | None = None) -> Ledger:
        """Run everything that is ready or becomes so within `until_s` of virtual time; return the counts.

        By default that is a day, and ends before a question or a wait for an event would expire: answer it in `inbox` and
        drain again, or let it expire with `advance`.
        """
        return self._bridge.run(self._drain(until_s))

    def advance(self, seconds: float) -> Ledger:
        """Let `seconds` of virtual time pass, running what becomes due on the way; return the counts."""
        return self._bridge.run(self._advance(seconds))

    def close(self) -> None:
        """End the loop."""
        self._bridge.close()


class AsyncHarness(Harness):
    """The harness of `async with app.testing() as t`; bodies run on the test's own loop."""

    async def drain(self, until_s: float | None = None) -> Ledger:
        """Run everything that is ready or becomes so within `until_s` of virtual time; return the counts.

        By default that is a day, and ends before a question or a wait for an event would expire: answer it in `inbox` and
        drain again, or let it expire with `advance`.
        """
        return await self._drain(until_s)

    async def advance(self, seconds: float) -> Ledger:
        """Let `seconds` of virtual time pass, running what becomes due on the way; return the counts."""
        return await self._advance(seconds)


class Testing:
    """What `app.testing()` returns: enter it with `with` or `async with`.

    Args:
        exchange: puts a store in the place of the app's and returns that one; it goes back at the end.
        on_stop: ends what bodies share that is of one event loop.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        queues: Callable[[], dict[str, int]],
        exchange: Callable[[Store | None], Store | None],
        on_stop: Callable[[], Awaitable[None]],
    ) -> None:
        self._on_stop = on_stop
        self._registry = registry
        self._settings = replace(
            settings, lease_s=_LEASE_S, labels=EVERYTHING, cluster=""
        )  # a test has all kinds of machines
        self._queues = queues
        self._exchange = exchange
        self._store: HarnessStore | None = None
        self._outer: Store | None = None
        self._sync: SyncHarness | None = None

    def _open(self) -> tuple[HarnessStore, VirtualClock, Callable[[], Engine]]:
        if self._store is not None:
            raise UsageError("this app.testing() is entered already", fix="call app.testing() again for another one")
        clock = VirtualClock()
        store = self._store = HarnessStore(clock, bounds_of(self._settings))
        self._outer = self._exchange(store)

        def make_engine() -> Engine:
            return Engine(
                store, self._registry, self._settings, queues=self._queues(), schedules=(), on_stop=self._on_stop
            )

        return store, clock, make_engine

    def _close(self) -> None:
        self._exchange(self._outer)
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> SyncHarness:
        self._sync = SyncHarness(*self._open())
        return self._sync

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sync is not None:
            self._sync.close()
        self._close()

    async def __aenter__(self) -> AsyncHarness:
        return AsyncHarness(*self._open())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=to_plain))


def _has(payload: bytes, wanted: Mapping[str, Any]) -> bool:
    arguments = msgspec.json.decode(payload)
    return all(key in arguments and arguments[key] == value for key, value in wanted.items())

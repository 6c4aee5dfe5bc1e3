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
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

from sennit.errors import StoreFull
from sennit.model.task import Claim, Ending, Outcome, WorkerInfo
from sennit.store.memory import MemoryStore
from sennit.store.protocol import Listener
from sennit.sync.ack import Ack
from sennit.testing.simaudit import Audit

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
        self._sit_down(shared._database)  # noqa: SLF001 - same class
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
        answer: Ack[T] = Ack()
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

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Watch; another process's commit may resolve it."""
        with self._surely():
            return self._later(lambda: MemoryStore.watch(self, task_id))

    def finish(self, endings: Sequence[Ending], *, want: Mapping[str, int] | None = None) -> Ack[list[bool]]:
        """Record ends, under the eyes of the audit."""

        def apply() -> Ack[list[bool]]:
            before = self._audit.before_endings(endings)
            done = MemoryStore.finish(self, endings, want=want)
            self._audit.after_endings(endings, before, done.wait())
            return done

        def raise_order() -> None:
            for queue, n in (want or {}).items():
                MemoryStore.want(self, queue, n)

        return self._later(apply, refused=raise_order)

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Save a step, under the eyes of the audit."""

        def apply() -> Ack[bool]:
            held = self._audit.holds(claim)
            done = MemoryStore.save_step(self, claim, key, result)
            self._audit.after_step(claim, result, held=held, accepted=done.wait())
            return done

        return self._later(apply)


def _pass_on(source: Ack[T], target: Ack[T]) -> None:
    try:
        value = source.wait()
    except Exception as error:  # noqa: BLE001 - delivered to whoever asked
        target.reject(error)
    else:
        target.resolve(value)

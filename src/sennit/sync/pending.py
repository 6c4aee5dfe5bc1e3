"""Pending: one piece of work with two faces, `await x` in async code and `x.result()` in sync code.

    def flow():                                   written once, with no colour
        view = yield from got(store.state(…))     every wait is an Ack that is handed out …
        return decode(view.data)

    run(flow)           … and awaited here
    run_blocking(flow)  … or waited for in this OS thread

A flow sees cancellation and interrupts as exceptions at its `yield from`, just as a coroutine would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sennit.errors import UsageError
from sennit.sync.ack import Ack, in_event_loop

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """Yielded by a flow that wants to let others go first."""

    seconds: float


Flow = Generator[Ack[Any] | Pause, Any, T]


def got(ack: Ack[T]) -> Flow[T]:
    """Wait for an ack inside a flow, as in the drawing above."""
    value: T = yield ack
    return value


async def run(flow: Flow[T]) -> T:
    """Run a flow on the event loop."""
    try:
        wait = next(flow)
        while True:
            try:
                value = await (asyncio.sleep(wait.seconds) if isinstance(wait, Pause) else wait)
            except BaseException as error:  # noqa: BLE001 - the flow's own business, a cancellation too
                wait = flow.throw(error)
            else:
                wait = flow.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


def run_blocking(flow: Flow[T]) -> T:
    """Run a flow in this OS thread."""
    try:
        wait = next(flow)
        while True:
            try:
                value = threading.Event().wait(wait.seconds) if isinstance(wait, Pause) else wait.wait()
            except BaseException as error:  # noqa: BLE001 - the flow's own business, an interrupt too
                wait = flow.throw(error)
            else:
                wait = flow.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


class Pending(Generic[T]):
    """Something to wait for, begun by the wait: `await` it in async code, `.result()` it in sync code."""

    __slots__ = ("_in_async", "_in_sync")

    def __init__(self, in_async: Callable[[], Coroutine[Any, Any, T]], in_sync: Callable[[], T]) -> None:
        self._in_async = in_async
        self._in_sync = in_sync

    @classmethod
    def of(cls, flow: Callable[[], Flow[T]]) -> Pending[T]:
        """Return the two faces of a flow; each wait begins it anew."""
        return cls(lambda: run(flow()), lambda: run_blocking(flow()))

    def __await__(self) -> Generator[Any, None, T]:
        return self._in_async().__await__()

    def result(self) -> T:
        """Do it here and now, blocking this OS thread.

        Raises:
            UsageError: on an event loop; use `await`.
        """
        if in_event_loop():
            raise UsageError("result() was called in async code", fix="use `await` instead")
        return self._in_sync()

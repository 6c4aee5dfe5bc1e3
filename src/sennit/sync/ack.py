"""Ack: a result that another OS thread will deliver; `await` it in async code, `.result()` it in sync code.

The store's writer resolves hundreds of acks after one commit, and tells its listener besides. `resolve_all` wakes each
event loop once for all of that: `call_soon_threadsafe` costs tens of µs (a write to the loop's self-pipe), setting a
future about one. What is more, the loop that wakes wants the GIL, which the waking OS thread still has: every further
system call hands it to and fro. So the wake-up is the last thing that is done.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Generic, TypeVar

from sennit.errors import UsageError

T = TypeVar("T")

_lock = threading.Lock()  # guards the hand-over between `_settle` and a new waiter; held for nanoseconds
_UNSET: Any = object()

_Todo = tuple[Callable[[Any], object], Any]  # a function and its argument
_Waiter = tuple[asyncio.AbstractEventLoop, _Todo]

LoopCall = tuple[asyncio.AbstractEventLoop, Callable[[], object]]
"""What is to be called, and on which loop."""


class Ack(Generic[T]):
    """One future result, for any number of waiters in any event loop or OS thread."""

    __slots__ = ("_callbacks", "_error", "_value", "_waiters")

    def __init__(self) -> None:
        self._value: T = _UNSET
        self._error: BaseException | None = None
        self._waiters: list[_Waiter] | None = None
        self._callbacks: list[Callable[[Ack[T]], None]] | None = None

    @classmethod
    def done_with(cls, value: T) -> Ack[T]:
        """Return an ack that already holds `value`."""
        ack = cls()
        ack._value = value
        return ack

    @classmethod
    def failed_with(cls, error: BaseException) -> Ack[T]:
        """Return an ack that already holds `error`."""
        ack = cls()
        ack._error = error
        return ack

    @property
    def done(self) -> bool:
        """True once a value or an error is there."""
        return self._value is not _UNSET or self._error is not None

    @property
    def succeeded(self) -> bool:
        """True once a value is there."""
        return self._value is not _UNSET

    def resolve(self, value: T) -> None:
        """Deliver the result; for one ack. Many at once: `resolve_all`."""
        resolve_all([(self, value, None)])

    def reject(self, error: BaseException) -> None:
        """Deliver an error."""
        resolve_all([(self, None, error)])

    def add_done_callback(self, callback: Callable[[Ack[T]], None]) -> None:
        """Call `callback(self)` when done: at once if it is, else in the OS thread that resolves it."""
        with _lock:
            if not self.done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback(self)

    def call_when_done(self, loop: asyncio.AbstractEventLoop, callback: Callable[[Ack[T]], object]) -> None:
        """Call `callback(self)` on `loop` when done, never from inside this call; not at all if the loop is closed."""
        if not self._add_waiter((loop, (callback, self))):
            call_in(loop, callback, self)

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            if self._add_waiter((loop, (_wake, future))):
                yield from future
        return self._get()

    def _add_waiter(self, waiter: _Waiter) -> bool:
        """Return False, and add nothing, when it is done."""
        with _lock:
            if self.done:
                return False
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            return True

    def result(self, timeout_s: float | None = None) -> T:
        """Block this OS thread until done.

        Raises:
            UsageError: called on an event loop's OS thread, which it would block; use `await`.
            TimeoutError: not done within `timeout_s`.
        """
        if not self.done and in_event_loop():
            raise UsageError(
                "result() was called inside a running event loop",
                why="it would block every other coroutine of this loop",
                fix="write `await x` instead of `x.result()`",
            )
        return self.wait(timeout_s)

    def wait(self, timeout_s: float | None = None) -> T:
        """Like `result`, for waits known to be as short as one commit: allowed on a loop's OS thread."""
        if not self.done:
            # A bare lock and not an Event: a Ctrl-C inside Event.wait can leave the Event's inner lock held, and then
            # the writer that resolves this ack would hang.
            gate = threading.Lock()
            gate.acquire()
            self.add_done_callback(lambda _: gate.release())
            if not gate.acquire(timeout=-1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)):
                raise TimeoutError(f"not done within {timeout_s} s")
        return self._get()

    def _get(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value


def in_event_loop() -> bool:
    """True when the calling OS thread runs an event loop right now."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - documented for this use; get_running_loop raises


def resolve_all(settled: Iterable[tuple[Ack[Any], Any, BaseException | None]], calls: Sequence[LoopCall] = ()) -> None:
    """Deliver many results, waking each event loop once. Each is (ack, value, error).

    Args:
        calls: made on their loops before anybody there who waits goes on, with the same wake-up.
    """
    wake: dict[asyncio.AbstractEventLoop, list[_Todo]] = {}
    for loop, function in calls:
        wake.setdefault(loop, []).append((_call, function))
    callbacks: list[tuple[Callable[[Ack[Any]], None], Ack[Any]]] = []
    with _lock:
        for ack, value, error in settled:
            if error is None:
                ack._value = value  # noqa: SLF001 - same module
            else:
                ack._error = error  # noqa: SLF001
            if ack._waiters is not None:  # noqa: SLF001
                for loop, todo in ack._waiters:  # noqa: SLF001
                    wake.setdefault(loop, []).append(todo)
                ack._waiters = None  # noqa: SLF001
            if ack._callbacks is not None:  # noqa: SLF001
                callbacks += [(c, ack) for c in ack._callbacks]  # noqa: SLF001
                ack._callbacks = None  # noqa: SLF001
    for callback, ack in callbacks:
        try:
            callback(ack)
        except Exception:
            # One listener's bug must not keep the others, or the writer that calls us, from going on.
            logging.getLogger("sennit").exception("a callback of an ack failed")
    here = asyncio._get_running_loop() if wake else None  # noqa: SLF001
    for loop, todos in wake.items():
        if loop is here:
            _do_here(loop, todos)
        else:
            call_in(loop, _do_all, todos)


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> bool:
    """`call_soon_threadsafe`, but False instead of an error when the loop is closed: nobody listens any more."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False
    return True


def _do_all(todos: Iterable[_Todo]) -> None:
    """On the loop. One that fails must not keep the others from being told."""
    left = iter(todos)
    try:
        for function, argument in left:
            try:
                function(argument)
            except Exception as error:  # noqa: BLE001 - as the loop does with every callback
                what = {"message": "a listener or a callback of an ack failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(what)
    except BaseException:  # Ctrl-C: the loop may be run once more, to clean up, and wait for what is left
        asyncio.get_running_loop().call_soon(_do_all, list(left))
        raise


def _do_here(loop: asyncio.AbstractEventLoop, todos: list[_Todo]) -> None:
    """We are on the loop ourselves: its futures can be set at once, and nothing is called from inside our caller."""
    for function, argument in todos:
        if function is _wake:
            _wake(argument)
        else:
            loop.call_soon(function, argument)


def _call(function: Callable[[], object]) -> None:
    function()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():  # the waiter may have been cancelled
        future.set_result(None)

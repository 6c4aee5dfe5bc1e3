"""Sync bodies in a simulation: each has an OS thread of its own, and a baton sees to it that only one of all runs.

    loop ── a step of the body's task: baton ─► OS thread runs … until it blocks (an ack, a pause) or ends
      ▲                                                                                            │
      └──────────────────────────────────────────── baton back ◄───────────────────────────────────┘

So a sync body blocks in the middle of its own stack, as in reality, and still the seed alone decides: the body is a task
of the simulated loop, and when it goes on is drawn like the step of any other task. It dies and freezes with its process.

What is not modelled: the kernel may also switch between two bytecodes. Here a body is only overtaken where it blocks, the
way an async body is only overtaken where it awaits. An interrupt, too, strikes when the body comes back from what blocks
it, which is what the real pool does to one that is blocked outside Python.
"""

from __future__ import annotations

import asyncio
import threading
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sennit.errors import UsageError
from sennit.sync.ack import Ack
from sennit.testing.simloop import SimLoop

__all__ = ["SimAck", "SimPool", "pause", "when_given_up"]

T = TypeVar("T")

_here: Final = threading.local()  # .strand, in the OS thread of one


class _Dropped(BaseException):
    """The simulation is over: a body that still blocks is unwound, and what it does meanwhile reaches nobody."""


class _Strand:
    """One sync body and its OS thread."""

    def __init__(self, loop: SimLoop, run: Callable[[], None]) -> None:
        self.ended = False
        self.interrupt: type[BaseException] | None = None
        self.waits_for: asyncio.Future[None] = loop.create_future()
        self.when_given_up: Callable[[], None] = lambda: None
        self._loop = loop
        self._run = run
        self._started = False
        self._dropped = False
        self._baton = _held_lock()
        self._back = _held_lock()

    # ------------------------------------------------------------ on the loop's OS thread

    def go_on(self) -> None:
        """Let it run until it blocks or ends."""
        if self._started:
            self._baton.release()
        else:
            self._started = True
            start_new_thread(self._main, ())  # `Thread` would wait for it to start: one switch more
        self._back.acquire()

    def drop(self) -> None:
        """Unwind it, unless it has ended."""
        if self._started and not self.ended:
            self._dropped = True
            self.go_on()

    # ------------------------------------------------------------ on its own OS thread

    def _main(self) -> None:
        _here.strand = self
        try:
            with self._loop.another_os_thread():
                self._run()
        except _Dropped:
            pass
        finally:
            self.ended = True
            self._back.release()

    def block(self, arrange: Callable[[asyncio.Future[None]], object]) -> None:
        """Give the baton back until the future that is handed to `arrange` is done."""
        if not self._dropped:
            self.waits_for = self._loop.create_future()
            arrange(self.waits_for)
            self._back.release()
            self._baton.acquire()
        if self._dropped:
            raise _Dropped
        if self.interrupt is not None:
            exc_type, self.interrupt = self.interrupt, None
            raise exc_type


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _strand_here() -> _Strand | None:
    strand: _Strand | None = getattr(_here, "strand", None)
    return strand


class SimAck(Ack[T]):
    """An ack that a sync body can wait for: it gives the baton back meanwhile."""

    __slots__ = ()

    def wait(self, timeout_s: float | None = None) -> T:
        """Block until done.

        Raises:
            UsageError: on the loop's own OS thread it would wait for ever; a `timeout_s` is not simulated.
        """
        if not self.done:
            strand = _strand_here()
            if strand is None or timeout_s is not None:
                raise UsageError("this would block a simulated event loop", fix="await it")
            strand.block(lambda future: self.add_done_callback(lambda _: _set(future)))
        return self._get()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def pause(seconds: float) -> None:
    """Be `time.sleep` in a simulated sync body."""
    strand = _strand_here()
    if strand is None:
        raise UsageError("pause() was called outside of a simulated sync body", fix="await asyncio.sleep")
    strand.block(lambda future: future.get_loop().call_later(seconds, _set, future))


def when_given_up(function: Callable[[], None]) -> None:
    """Have `function` called when the sync body that calls this is abandoned."""
    strand = _strand_here()
    if strand is not None:
        strand.when_given_up = function


class _Ticket:
    """One submitted body: `queued`, `running`, `ended` or `abandoned`."""

    def __init__(self, done: Callable[[Any, BaseException | None], None]) -> None:
        self.done = done
        self.state = "queued"
        self.interrupted = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.strand: _Strand | None = None
        self.task: asyncio.Task[None] | None = None


class SimPool:
    """`execute.pool.BodyPool` on a simulated loop: the same methods, and the same promises, on virtual time."""

    def __init__(self, *, loop: SimLoop, threads_max: int, result_bursts: bool = True) -> None:
        del threads_max, result_bursts  # as many as are wanted, and each result by itself
        self._loop = loop
        self._closed = False

    def submit(self, fn: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> _Ticket:
        """Run `fn()` on a strand, then `done(result, error)` on the loop.

        Raises:
            UsageError: the pool is closed.
        """
        if self._closed:
            raise UsageError("the pool is closed", why="its owner is stopping", fix="submit before close()")
        ticket = _Ticket(done)
        ticket.task = self._loop.create_task(self._drive(ticket, fn), name="sync body")
        return ticket

    async def _drive(self, ticket: _Ticket, fn: Callable[[], Any]) -> None:
        if ticket.state != "queued":
            return

        def run() -> None:
            try:
                ticket.result = fn()
            except _Dropped:
                raise
            except BaseException as error:  # noqa: BLE001 - of any kind, as in the pool
                ticket.error = error

        ticket.state = "running"
        ticket.strand = strand = _Strand(self._loop, run)
        try:
            strand.go_on()
            while not strand.ended:
                await strand.waits_for
                strand.go_on()
        finally:
            strand.drop()
        if ticket.state == "running":
            self._end(ticket)

    def _end(self, ticket: _Ticket) -> None:
        ticket.state = "ended"
        self._loop.call_soon(lambda: ticket.done(ticket.result, ticket.error))

    def interrupt(self, ticket: _Ticket, exc_type: type[BaseException]) -> bool:
        """Raise `exc_type()` in the body when it comes back from what blocks it; False if it has ended."""
        if ticket.state == "queued":
            ticket.error = exc_type()
            self._end(ticket)
            return True
        if ticket.state != "running" or ticket.interrupted or ticket.strand is None:
            return False
        ticket.interrupted = True
        ticket.strand.interrupt = exc_type
        return True

    def abandon(self, ticket: _Ticket) -> bool:
        """Give a body up: it goes on, and `done` will not be called; False if it has ended."""
        if ticket.state not in {"queued", "running"}:
            return False
        ticket.state = "abandoned"
        if ticket.strand is not None:
            ticket.strand.when_given_up()
        return True

    def close(self) -> None:
        """Refuse new bodies."""
        self._closed = True

"""What our two executors share: an item of work, a place to sleep, and the three ways a pool can end.

    submit ─► Door.check ─► WorkItem ─► an OS thread of the pool: item.run() ─► its future
                 │ refuses after: shutdown · a failed initializer · the interpreter's exit · a fork

The contract is that of `concurrent.futures.ThreadPoolExecutor`, to the letter (tests/pools/executor_contract.py):
what was accepted before the interpreter exits still runs, an executor that nobody holds any more finishes its
work and its OS threads end, and one initializer that fails breaks the pool.

One thing is stricter. A forked child has none of its parent's OS threads, and the queues it sees are its parent's
work: there the standard pool takes items that nobody will run, and a child forked *by a task* goes on to run the
parent's queue a second time. Here a pool belongs to the process that made it: in a child, `submit` refuses, `shutdown`
does nothing, and a child that comes back out of a task's body ends there, as a script would.

Source: the contract is read off CPython 3.11, Lib/concurrent/futures/thread.py; the code is our own.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from contextlib import suppress
from typing import Any, Final

from sennit.errors import PoolBroken, UsageError
from sennit.sync.forks import end_forked_child

__all__ = ["Door", "Parker", "ThreadPoolBroken", "WorkItem", "initialize", "settle", "settle_logged", "start_os_thread"]

_log = logging.getLogger("sennit")


class ThreadPoolBroken(PoolBroken, BrokenThreadPool):
    """`sennit.errors.PoolBroken` as the pools raise it: the standard pool's error, too."""


# ---------------------------------------------------------------- one item of work


class WorkItem:
    """One submitted call and the future that will know how it ended."""

    __slots__ = ("args", "fn", "future", "kwargs")

    def __init__(
        self, future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.future = future
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def run(self) -> bool:
        """Run the call in this OS thread and settle its future; never raises.

        Every exception goes to the future, also `SystemExit` and `KeyboardInterrupt`. One that a *done callback* lets
        out, if it is no `Exception`, is logged: it must not cost the pool an OS thread.

        A child that the call forked and that comes back out of it ends here (see the head of this file).

        Returns:
            False if the future was cancelled before, and nothing ran.
        """
        future, fn, args, kwargs = self.future, self.fn, self.args, self.kwargs
        forks = _forks
        try:
            if not future.set_running_or_notify_cancel():
                return False
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  the caller gets it, whatever it is
                if forks != _forks:
                    end_forked_child(error)
                future.set_exception(error)
            else:
                if forks != _forks:
                    end_forked_child(None)
                future.set_result(result)
        except BaseException:  # noqa: BLE001  logged; an OS thread of the pool outlives it
            _log.exception("what a future of a pool called raised")
        finally:
            # The error's traceback holds this frame: without these names it holds neither itself nor the arguments.
            del self, future, fn, args, kwargs
        return True

    def cancel(self) -> None:
        """Cancel the future; whoever waits for it learns so at once."""
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()

    def fail(self, error: BaseException) -> None:
        """Settle the future with `error` without running the call, unless it was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


def settle(items: Iterable[WorkItem], how: Callable[[WorkItem], None]) -> None:
    """Call `how` on every item; what a done callback raises must not leave the next future pending.

    Call it without the pool's lock: done callbacks run here.

    Raises:
        BaseException: the first that was raised, after the last item.
    """
    first: BaseException | None = None
    for item in items:
        try:
            how(item)
        except BaseException as error:  # noqa: BLE001  raised below
            first = first or error
    if first is not None:
        raise first


def settle_logged(items: Iterable[WorkItem], how: Callable[[WorkItem], None]) -> None:
    """`settle` in an OS thread of a pool, where nobody would see what a done callback raises but the log."""
    try:
        settle(items, how)
    except BaseException:  # noqa: BLE001  logged
        _log.exception("what a future of a pool called raised")


def initialize(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bool:
    """Run a pool's initializer in this OS thread. False if it raised: the error is logged and the pool is broken."""
    if initializer is None:
        return True
    try:
        initializer(*initargs)
    except BaseException:  # noqa: BLE001  logged, and the pool is broken
        _log.exception("the initializer of a pool has failed")
        return False
    return True


# ---------------------------------------------------------------- sleeping


class Parker:
    """Where one OS thread sleeps until somebody wakes it; a wake that comes first is kept, a second one is not.

    `unpark` takes no lock, so a weakref callback may call it at any moment, also in the middle of the pool's own code.
    """

    __slots__ = ("_gate",)

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()

    def park(self, timeout_s: float = -1) -> bool:
        """Sleep until `unpark`, by the OS thread that owns this. False if `timeout_s` ran out; -1 waits for ever."""
        return self._gate.acquire(timeout=timeout_s)

    def unpark(self) -> None:
        """Let the owner go on, now or when it parks next."""
        with suppress(RuntimeError):  # It was unparked already.
            self._gate.release()


# ---------------------------------------------------------------- the three ways a pool ends, and forks

_lock = threading.Lock()  # Guards what follows; held while an OS thread starts, so that the exit misses none.
_exiting = False
_workers: weakref.WeakKeyDictionary[threading.Thread, Callable[[], None]] = weakref.WeakKeyDictionary()
_forks = 0  # How many forks lie between the first process and this one.


class Door:
    """Whether a pool takes work. Read and written under its pool's own lock, `wrong_process` excepted.

    The exit can begin between a submit's `check` and its item's arrival. So a worker that ends because the interpreter
    exits sets `closed` under that same lock, having seen there that nothing is queued: what comes later is refused.
    """

    __slots__ = ("_forks", "broken", "closed")

    def __init__(self) -> None:
        self.closed = False
        self.broken = False
        self._forks = _forks

    @property
    def wrong_process(self) -> bool:
        """True in a forked child: the pool's locks may be held for ever there, so ask this before taking one."""
        return self._forks != _forks

    @property
    def interpreter_exiting(self) -> bool:
        """True once the interpreter has begun to exit: workers finish what is queued, then end."""
        return _exiting

    def check(self) -> None:
        """Let a submit in, or say why not.

        Raises:
            PoolBroken: an initializer has failed.
            UsageError: (a RuntimeError) after `shutdown`, while the interpreter exits, or in a forked child.
        """
        if not (self.closed or self.broken or _exiting or self._forks != _forks):
            return
        if self._forks != _forks:
            raise UsageError(
                "cannot schedule new futures in a forked child",
                why="the pool and its OS threads belong to the process that made it",
                fix="make a pool of its own in the child",
            )
        if self.broken:
            raise ThreadPoolBroken
        if _exiting:  # Asked before `closed`, which an idle worker sets when it sees the exit.
            raise UsageError(
                "cannot schedule new futures after interpreter shutdown",
                why="the interpreter is exiting; it still runs what was accepted before",
                fix="submit before the main OS thread ends",
            )
        raise UsageError("cannot schedule new futures after shutdown", fix="make a new pool, or submit earlier")


def start_os_thread(target: Callable[[], None], *, name: str, wake: Callable[[], None]) -> threading.Thread:
    """Start an OS thread of a pool that the interpreter's exit wakes and joins.

    Args:
        target: its life. It must end soon after `wake` when `interpreter_exiting` and nothing is queued.
        name: of the OS thread.
        wake: called once, from the exiting OS thread; it must not refer to the executor or the OS thread, which would
            then live for ever.

    Raises:
        UsageError: the interpreter is exiting.
        RuntimeError: the system refuses another OS thread.
    """
    # Not daemons, which exit would stop in the middle of an item; only where no hook runs early enough to wake them.
    os_thread = threading.Thread(target=target, name=name, daemon=not _HOOKED_EARLY)
    with _lock:
        if _exiting:
            raise UsageError("cannot schedule new futures after interpreter shutdown")
        _workers[os_thread] = wake  # First: a signal's handler may raise in `start`, when the OS thread runs already.
        try:
            os_thread.start()
        except RuntimeError:
            del _workers[os_thread]
            raise
    return os_thread


def _finish_before_exit() -> None:
    """Let every pool run what it has accepted: the main OS thread waits here, before it joins all others."""
    global _exiting  # noqa: PLW0603  there is one interpreter
    with _lock:
        _exiting = True
    workers = list(_workers.items())
    for _, wake in workers:
        wake()
    for os_thread, _ in workers:
        if os_thread.is_alive():  # One whose start was interrupted may never have begun.
            os_thread.join()


def _forget_the_parent() -> None:
    """In a forked child: none of these OS threads exist, and one that is gone may hold the lock."""
    global _lock, _workers, _forks  # noqa: PLW0603
    _lock = threading.Lock()
    _workers = weakref.WeakKeyDictionary()
    _forks += 1


# The private hook is the one concurrent.futures.thread uses itself: only what is registered there runs *before* the
# interpreter joins all OS threads, parked ones included. Hooks run last in, first out, so ours before the standard
# pool's, whose results our items may still wait for.
_register_early = getattr(threading, "_register_atexit", None)
_HOOKED_EARLY: Final = _register_early is not None
try:
    (_register_early or atexit.register)(_finish_before_exit)
except RuntimeError:  # Imported for the first time while the interpreter exits.
    _exiting = True

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parent)

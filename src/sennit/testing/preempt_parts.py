"""What `preempt` puts in the place of `threading`'s parts while a schedule is open.

Only the bottom is replaced: Lock, RLock, starting and joining OS threads, sleeping, the monotonic clock, and the C queue.
Condition, Event, Semaphore, Barrier, Queue and executors are Python above these and run as they are.

A replaced part asks whether the calling OS thread belongs to the schedule; any other gets the real thing.
"""

from __future__ import annotations

import _thread
import concurrent.futures._base
import concurrent.futures.thread
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Final, NamedTuple, Protocol

from sennit.errors import UsageError

__all__ = ["Member", "Patches", "ScheduledLock", "ScheduledRLock", "Scheduler", "Unwind", "Waitable"]

_RealLock: Final = _thread.allocate_lock
_RealRLock: Final = threading.RLock
_LOCK_TYPE: Final = type(_RealLock())
_RLOCK_TYPE: Final = type(_RealRLock())
_REAL_JOIN: Final = threading.Thread.join
# sleep: none of ours; the real one, for OS threads outside the schedule
_REAL_SLEEP: Final = time.sleep
_INNER_FILES: Final = {
    threading.__file__,
    queue.__file__,
    __file__,
    __file__.replace("_parts", ""),
    __file__.replace("_parts", "_schedule"),
}
# 3.13 starts OS threads by another function, with arguments of its own.
_START: Final = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
_SCANNED: Final = (concurrent.futures._base, concurrent.futures.thread, queue)  # noqa: SLF001


@functools.cache
def real_path(file: str) -> str:
    """Return the path by which files are compared."""
    return os.path.realpath(file)


class Place(NamedTuple):
    """A line of code; told only when somebody reads it, because it is noted at every switch."""

    code: CodeType | None = None
    line: int | None = None

    @classmethod
    def of(cls, frame: FrameType | None) -> Place:
        """Return the place of the innermost frame that is neither `threading`'s nor ours."""
        while frame is not None and frame.f_code.co_filename in _INNER_FILES:
            frame = frame.f_back
        return NOWHERE if frame is None else cls(frame.f_code, frame.f_lineno)

    def __str__(self) -> str:
        return (
            "its beginning or end"
            if self.code is None
            else f"{self.code.co_qualname} ({Path(self.code.co_filename).name}:{self.line})"
        )


NOWHERE: Final = Place()


class Unwind(SystemExit):
    """Ends an OS thread whose schedule is over."""


class Waitable:
    """Something one can wait for; `owner` is who would have to let go of it, if that is known."""

    __slots__ = ("_made", "_name", "owner", "waiters")

    def __init__(self, name: str, made: Place | None = None) -> None:
        self._name = name
        self._made = made
        self.owner: Member | None = None
        self.waiters: list[Member] = []

    def __str__(self) -> str:
        name = self._name if self._made is None else f"{self._name} of {self._made}"
        return name if self.owner is None else f"{name}, held by {self.owner.name},"


class Member:
    """One OS thread of a schedule. It runs while the baton is its; otherwise it waits at its gate."""

    __slots__ = (
        "deadline_s", "ended", "finished", "gate", "ident", "name", "number",
        "place", "stuck", "thread", "timed_out", "waits_for",
    )  # fmt: skip

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.ident = 0
        self.gate = _RealLock()
        self.gate.acquire()
        self.thread: threading.Thread | None = None
        self.ended = Waitable(f"the end of {name}")
        self.waits_for: Waitable | None = None
        self.deadline_s = 0.0
        self.timed_out = False
        self.finished = False
        self.stuck = False
        self.place = NOWHERE


class Scheduler(Protocol):
    """What the parts need of `Schedule`."""

    unwinding: bool

    def here(self) -> Member | None:
        """Return the member that this OS thread is."""

    def point(self) -> None:
        """Perhaps let another one go on first."""

    def block(self, on: Waitable, deadline_s: float | None = None) -> bool:
        """Wait; False: the deadline came first."""

    def wake_one(self, on: Waitable) -> None:
        """Let one go on."""

    def now_s(self) -> float:
        """Return the virtual time."""

    def begin(self, start: Callable[[Callable[[], object]], object], bootstrap: Callable[[], object]) -> object:
        """Start an OS thread of the schedule."""

    def join(self, thread: threading.Thread, timeout_s: float | None) -> bool:
        """Wait for its end."""

    def trace_hook(self, frame: FrameType, event: str, arg: object) -> Any:
        """Hook for `sys.settrace`."""


class ScheduledLock:
    """A `threading.Lock` whose waiting the scheduler sees. Around a real one, for OS threads outside the schedule."""

    __slots__ = ("__weakref__", "_gate", "_lock", "_scheduler")

    def __init__(self, scheduler: Scheduler, name: str, made: Place | None = None, *, signal: bool = False) -> None:
        self._scheduler = scheduler
        self._lock = _RealLock()
        self._gate = _Signal(name, made) if signal else Waitable(name, made)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - Lock's own
        """Do as `threading.Lock.acquire`, with `timeout` in virtual seconds."""
        scheduler = self._scheduler
        me = scheduler.here()
        if me is None:
            return self._lock.acquire(blocking, timeout)
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        scheduler.point()
        deadline_s = None if timeout < 0 else scheduler.now_s() + timeout
        while not self._lock.acquire(blocking=False):
            if not blocking or timeout == 0 or not scheduler.block(self._gate, deadline_s):
                return False
        if type(self._gate) is Waitable:
            self._gate.owner = me
        return True

    def release(self) -> None:
        """Do as `threading.Lock.release`."""
        self._gate.owner = None
        self._lock.release()
        if self._scheduler.here() is not None:
            self._scheduler.wake_one(self._gate)
            self._scheduler.point()

    def locked(self) -> bool:
        """Return whether somebody has it."""
        return self._lock.locked()

    _is_owned = locked  # for threading.Condition, which else tries to acquire it

    def _at_fork_reinit(self) -> None:
        self._lock = _RealLock()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<ScheduledLock {self._gate}>"


class _Signal(Waitable):
    """A lock that is acquired twice by its waiter and released by another: its holder is no owner."""


class ScheduledRLock:
    """A `threading.RLock` whose waiting the scheduler sees."""

    __slots__ = ("__weakref__", "_count", "_lock", "_owner")

    def __init__(self, scheduler: Scheduler, name: str, made: Place | None = None) -> None:
        self._lock = ScheduledLock(scheduler, name, made)
        self._owner = 0
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - RLock's own
        """Do as `threading.RLock.acquire`."""
        me = _thread.get_ident()
        if self._owner != me:
            if not self._lock.acquire(blocking, timeout):
                return False
            self._owner = me
        self._count += 1
        return True

    def release(self) -> None:
        """Do as `threading.RLock.release`."""
        if self._owner != _thread.get_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = 0
            self._lock.release()

    def _is_owned(self) -> bool:
        return self._owner == _thread.get_ident()

    def _release_save(self) -> int:
        count, self._count, self._owner = self._count, 0, 0
        self._lock.release()
        return count

    def _acquire_restore(self, count: int) -> None:
        self._lock.acquire()
        self._owner, self._count = _thread.get_ident(), count

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # noqa: SLF001
        self._owner = self._count = 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


_opened: Scheduler | None = None


def open_schedule() -> Scheduler | None:
    """Return the schedule that is open in this process."""
    return _opened


class Patches:
    """Puts a schedule's parts in and takes them out again."""

    def __init__(self, scheduler: Scheduler, modules: Sequence[ModuleType]) -> None:
        self._scheduler = scheduler
        self._modules = (*modules, *_SCANNED)
        self._saved: list[tuple[object, str, object]] = []
        self._spare: dict[int, object] = {}

    def put_in(self) -> None:
        """Replace; raises UsageError if another schedule is open."""
        global _opened  # noqa: PLW0603 - `threading` is the process's, and so is this
        if _opened is not None:
            raise UsageError("a schedule is open in this process", fix="close it first; schedules do not nest")
        _opened = self._scheduler
        stand_ins = self._stand_ins()
        self._replace(threading, "Lock", stand_ins[id(threading.Lock)])
        self._replace(threading, "RLock", stand_ins[id(threading.RLock)])
        self._replace(threading, "_allocate_lock", self._make_signal)
        self._replace(threading, "_time", stand_ins[id(time.monotonic)])
        self._replace(threading, "excepthook", self._except_hook(threading.excepthook))
        self._replace(threading, "_trace_hook", self._scheduler.trace_hook)
        self._replace(threading, _START, self._starter(getattr(threading, _START)))
        self._replace(threading.Thread, "join", self._joiner())
        for name in ("sleep", "monotonic", "perf_counter", "monotonic_ns", "perf_counter_ns"):
            self._replace(time, name, stand_ins[id(getattr(time, name))])
        for module in self._modules:
            for name, value in list(vars(module).items()):
                if id(value) in stand_ins:
                    self._replace(module, name, stand_ins[id(value)])
                elif type(value) is _LOCK_TYPE:
                    self._replace(module, name, ScheduledLock(self._scheduler, f"{module.__name__}.{name}"))
                elif type(value) is _RLOCK_TYPE:
                    self._replace(module, name, ScheduledRLock(self._scheduler, f"{module.__name__}.{name}"))

    def take_out(self) -> None:
        """Put everything back."""
        global _opened  # noqa: PLW0603
        for owner, name, value in reversed(self._saved):
            setattr(owner, name, value)
        self._saved.clear()
        _opened = None

    def _replace(self, owner: object, name: str, value: object) -> None:
        self._saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _stand_ins(self) -> dict[int, object]:
        """Return what stands in for which real function, by its id."""
        scheduler = self._scheduler

        def make_lock() -> object:
            return _RealLock() if scheduler.here() is None else ScheduledLock(scheduler, "the Lock", _caller())

        def make_rlock() -> object:
            return _RealRLock() if scheduler.here() is None else ScheduledRLock(scheduler, "the RLock", _caller())

        def make_queue() -> object:
            return real_queue() if scheduler.here() is None else queue._PySimpleQueue()  # type: ignore[attr-defined] # noqa: SLF001

        def sleep(seconds: float) -> None:
            if scheduler.here() is None:
                _REAL_SLEEP(seconds)
            elif seconds <= 0:
                scheduler.point()
            else:
                scheduler.block(Waitable(f"{seconds:g} s to pass"), scheduler.now_s() + seconds)

        def clock(real: Callable[[], Any], unit: float) -> Callable[[], Any]:
            return lambda: real() if scheduler.here() is None else type(unit)(scheduler.now_s() * unit)

        real_queue = queue.SimpleQueue
        found: dict[int, object] = {
            id(threading.Lock): make_lock,
            id(threading.RLock): make_rlock,
            id(_thread.allocate_lock): make_lock,
            id(queue.SimpleQueue): make_queue,
            id(_REAL_SLEEP): sleep,
        }
        for real, unit in (
            (time.monotonic, 1.0),
            (time.perf_counter, 1.0),
            (time.monotonic_ns, 1_000_000_000),
            (time.perf_counter_ns, 1_000_000_000),
        ):
            found[id(real)] = clock(real, unit)
        return found

    def _make_signal(self) -> object:
        """Stand in for what `threading.Condition.wait` makes to be woken by."""
        if self._scheduler.here() is None:
            return _RealLock()
        return ScheduledLock(self._scheduler, "a signal asked for by code", _caller(), signal=True)

    def _starter(self, real: Callable[..., object]) -> Callable[..., object]:
        def start(function: Callable[..., object], *args: Any, **options: Any) -> object:
            if self._scheduler.here() is None:
                return real(function, *args, **options)
            return self._scheduler.begin(lambda life: real(life, *args, **options), function)

        return start

    def _except_hook(self, real: Callable[..., object]) -> Callable[..., object]:
        return lambda args: None if self._scheduler.unwinding else real(args)

    def _joiner(self) -> Callable[..., None]:
        def join(thread: threading.Thread, timeout: float | None = None) -> None:
            if self._scheduler.here() is None or thread is threading.current_thread():
                _REAL_JOIN(thread, timeout)
            elif self._scheduler.join(thread, timeout):
                _REAL_JOIN(thread, None)  # it has ended but for its last few instructions

        return join


def forget(thread: threading.Thread, timeout_s: float) -> None:
    """Wait, in real time, until an OS thread that has left its schedule is gone."""
    if thread.ident is None:  # unwound before its first instruction
        threading._limbo.pop(thread, None)  # type: ignore[attr-defined] # noqa: SLF001
    else:
        _REAL_JOIN(thread, timeout_s)


def _caller() -> Place:
    return Place.of(sys._getframe(1))  # noqa: SLF001

"""One seed's order of OS threads: a baton that only its holder gives away, and who may get it next.

    runnable: [main, 0, 2]      one drawn at each point, or when the holder blocks or ends
    waitables: lock ─► 1, 3     released: one of them, drawn, becomes runnable and tries again
    sleepers: 4 at 3.2 s        nobody is runnable: the clock jumps; no sleeper either: OsThreadDeadlock

The OS thread that opens the schedule is its member `main`. Everything here is read and written by the holder alone.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any, Final, Self, TypeAlias

from sennit.errors import OsThreadDeadlock, SimulationError, StepLimit
from sennit.testing.preempt_parts import Member, Patches, Place, Unwind, Waitable, forget, real_path

__all__ = ["STEP_LIMIT", "Schedule"]

STEP_LIMIT: Final = 20_000
TRACE_SWITCHES: Final = 40
STUCK_S: Final = 20.0  # no step for so long in real time: somebody blocks where no scheduler can see it

# Chance of a switch per point, one of these per seed. Most races need one or two preemptions at the right place, so the
# small ones find what many switches would wash out; the large one finds what needs a crowd.
SWITCH_CHANCES: Final = (0.5, 0.2, 0.05)
# Chance, per decision, that the earliest time-out comes although something could run; a longer one than this never does,
# because nobody is kept from running for so long.
TIME_OUT_CHANCE: Final = 0.05
STALL_S_MAX: Final = 1.0
UNWIND_POINTS: Final = 500  # how far one may go on that does not wait, when the others are done
STEP_S: Final = 1e-6  # what the virtual clock advances by per step

_Trace: TypeAlias = Callable[[FrameType, str, Any], Any]


class Schedule:
    """One seed's order of OS threads. While it is open (`with`), those started by them belong to it, and so do their locks.

    OS threads that were there before run as ever, unseen; they must not share locks with those inside.

    `Schedule(seed).run([f, g])` opens it for the run. Code whose locks are made before the bodies run makes them inside:

        with Schedule(seed) as schedule:
            queue = Queue()
            schedule.run([queue.get, lambda: queue.put(1)])

    Args:
        seed: fixes the whole run, as long as the bodies have no other source of chance (time, `id()`, sets of strings).
        watch: modules (or paths of files) whose lines are points. The files of the bodies always are.
        opcodes: switch between any two instructions of those files, not only between lines: what a free-threaded build
            may do. About four times the points.
        step_limit: points until `StepLimit`.
    """

    def __init__(
        self,
        seed: int,
        *,
        watch: Sequence[ModuleType | str] = (),
        opcodes: bool = False,
        step_limit: int = STEP_LIMIT,
    ) -> None:
        self.seed = seed
        self.opcodes = opcodes
        self.steps = 0
        self.fingerprint = 0  # of the switches made; two seeds with the same one ran the same schedule
        self._random = Random(seed)
        self._chance = self._random.choice(SWITCH_CHANCES)
        self._step_limit = step_limit
        modules = [item for item in watch if isinstance(item, ModuleType)]
        self._files = {item for item in watch if isinstance(item, str)}
        self._files.update(real_path(module.__file__) for module in modules if module.__file__)
        self._watched: dict[CodeType, bool] = {}
        self._patches = Patches(self, modules)
        self._main = Member("main", 0)
        self._members = [self._main]
        self._running = self._main
        self._runnable = [self._main]
        self._sleepers: list[Member] = []  # blocked with a deadline
        self._jumped_s = 0.0
        self._switches: deque[tuple[str, Place, str]] = deque(maxlen=TRACE_SWITCHES)
        self._failure: BaseException | None = None
        self.unwinding = False
        self._points_left = 0
        self._open = False
        self._collects = False

    # ------------------------------------------------------------ opening and closing

    def __enter__(self) -> Self:
        self._patches.put_in()
        self._open = True
        self._main.ident = threading.get_ident()
        self._collects = gc.isenabled()
        gc.disable()  # finalizers at a time that no seed decides
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._unwind_all()
        finally:
            self._patches.take_out()
            self._open = False
            if self._collects:
                gc.enable()

    def run(self, bodies: Sequence[Callable[[], object]]) -> None:
        """Run each body in an OS thread of its own until all have ended; OS threads they have started may go on.

        Raises:
            OsThreadDeadlock: nobody can go on. StepLimit: too many points. SimulationError: somebody blocks where the
                scheduler cannot see it. Else what the first body raises.
        """
        if not self._open:
            with self:
                self.run(bodies)
            return
        plain = [_unwrapped(body) for body in bodies]
        for function in plain:
            code = getattr(function, "__code__", None)
            if code is not None:
                self._files.add(real_path(code.co_filename))
        lined_up = Waitable("the start")
        finished = Waitable("the bodies")
        left = len(bodies)
        started = False

        def guarded(body: Callable[[], object]) -> None:
            nonlocal left
            if not started:
                self.block(lined_up)
            try:
                body()
            except Unwind:
                return
            except BaseException as raised:  # noqa: BLE001 - `run` raises it
                if self.unwinding:
                    return  # what became of Unwind on the way; the failure is another one, and known
                self._fail(raised)
            left -= 1
            if not left:
                self.wake_all(finished)

        for number, body in enumerate(bodies):
            name = f"{number}:{getattr(plain[number], '__name__', 'body')}"
            threading.Thread(target=guarded, args=(body,), name=name, daemon=True).start()
        started = True
        self.wake_all(lined_up)
        while left:
            self.block(finished)

    def _unwind_all(self) -> None:
        """End what still waits by an exception that is no business of its code.

        One that does not wait goes on until it does, so that no `finally` is cut in half, but not for ever.
        """
        self.unwinding = True
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # a pool whose worker is unwound would report a crash
        for member in self._members[1:]:
            if not member.finished and not member.stuck:
                self._awaken(member)
                self._points_left = UNWIND_POINTS
                self._hand_to(self._main, member)
        for member in self._members[1:]:
            if member.thread is not None and not member.stuck:
                forget(member.thread, STUCK_S)
        logging.disable(disabled)

    # ------------------------------------------------------------ who goes on

    def here(self) -> Member | None:
        """Return the member that this OS thread is; None for one that the schedule does not know."""
        running = self._running
        return running if self._open and running.ident == threading.get_ident() else None

    def point(self, frame: FrameType | None = None) -> None:
        """Perhaps let another one go on first. Called by the one that runs."""
        if not self._open:
            return  # one that was stuck has come loose, and runs free
        if self.unwinding:
            self._points_left -= 1
            if self._points_left < 0 and self._running is not self._main:
                raise Unwind
            return
        self.steps += 1
        if self.steps > self._step_limit:
            self._fail(StepLimit(self._step_limit))
            self._leave(self._running)
            raise Unwind
        if self._random.random() < self._chance and len(self._runnable) + len(self._sleepers) > 1:
            self._go_on(self._running, frame)

    def block(self, on: Waitable, deadline_s: float | None = None) -> bool:
        """Wait until somebody wakes `on`. False if the virtual clock reached `deadline_s` first."""
        me = self._running
        if self.unwinding:
            if me is self._main:
                return False
            raise Unwind
        on.waiters.append(me)
        me.waits_for, me.timed_out = on, False
        self._runnable.remove(me)
        if deadline_s is not None:
            me.deadline_s = deadline_s
            self._sleepers.append(me)
        me.place = Place.of(sys._getframe(1))  # noqa: SLF001
        self._go_on(me, None)
        if self.unwinding and me is not self._main:
            raise Unwind
        return not me.timed_out

    def wake_one(self, on: Waitable) -> None:
        """Let one of those that wait go on, drawn by the seed; who comes first may be overtaken, as by the OS."""
        if on.waiters:
            self._awaken(on.waiters[int(self._random.random() * len(on.waiters))])

    def wake_all(self, on: Waitable) -> None:
        """Let all that wait go on."""
        for member in list(on.waiters):
            self._awaken(member)

    def now_s(self) -> float:
        """Return virtual seconds since the schedule was made."""
        return self._jumped_s + self.steps * STEP_S

    def _awaken(self, member: Member) -> None:
        if member.waits_for is not None:
            member.waits_for.waiters.remove(member)
            member.waits_for = None
            if member in self._sleepers:
                self._sleepers.remove(member)
            self._runnable.append(member)

    def _go_on(self, me: Member, frame: FrameType | None) -> None:
        """Draw who goes on and wait until it is `me` again."""
        other = self._draw()
        if other is me:
            self._raise_failure(me)
            return
        self._switches.append((me.name, Place.of(frame or sys._getframe(1)), other.name))  # noqa: SLF001
        self.fingerprint = hash((self.fingerprint, self.steps, other.number))
        self._hand_to(me, other)

    def _draw(self) -> Member:
        runnable = self._runnable
        if self._sleepers and (not runnable or self._random.random() < TIME_OUT_CHANCE):
            first = min(self._sleepers, key=lambda member: member.deadline_s)
            if not runnable or first.deadline_s <= self.now_s() + STALL_S_MAX:
                self._jumped_s = max(self._jumped_s, first.deadline_s - self.steps * STEP_S)
                first.timed_out = True
                self._awaken(first)
        if not runnable:
            self._fail(OsThreadDeadlock(self._cycle(), self._waiting()))
        if self._failure is not None:
            return self._main
        return runnable[int(self._random.random() * len(runnable))]

    def _hand_to(self, me: Member, other: Member) -> None:
        self._running = other
        other.gate.release()
        if me is self._main:
            steps = -1
            while not me.gate.acquire(timeout=STUCK_S):
                if steps == self.steps:
                    raise self._stuck()
                steps = self.steps
            self._raise_failure(me)
        elif not me.finished:
            me.gate.acquire()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._awaken(self._main)

    def _leave(self, me: Member) -> None:
        """Hand over to main, which raises the failure; `me` is unwound when its turn comes."""
        self._raise_failure(me)
        self._hand_to(me, self._main)

    def _raise_failure(self, me: Member) -> None:
        if me is self._main and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    # ------------------------------------------------------------ OS threads that come and go

    def begin(self, start: Callable[[Callable[[], object]], object], bootstrap: Callable[[], object]) -> object:
        """Start an OS thread that runs `bootstrap` when its turn comes; called by the one that runs."""
        thread = getattr(bootstrap, "__self__", None)
        thread = thread if isinstance(thread, threading.Thread) else None
        member = Member(thread.name if thread is not None else f"os-thread-{len(self._members)}", len(self._members))
        member.thread = thread

        def life() -> None:
            member.ident = threading.get_ident()
            member.gate.acquire()
            sys.settrace(self.trace_hook)
            try:
                if not self.unwinding:
                    bootstrap()
            except BaseException:
                if not self.unwinding:  # else it is Unwind, or what became of it on the way
                    raise
            finally:
                sys.settrace(None)
                self._end(member)

        self._members.append(member)
        self._runnable.append(member)
        return start(life)

    def _end(self, member: Member) -> None:
        member.finished = True
        if not self._open:
            return
        self._runnable.remove(member)
        self.wake_all(member.ended)
        if self.unwinding:
            self._hand_to(member, self._main)
        else:
            self._go_on(member, None)

    def join(self, thread: threading.Thread, timeout_s: float | None) -> bool:
        """Wait until the OS thread has ended; True if the schedule knows it and it has."""
        for member in self._members:
            if member.thread is thread:
                deadline_s = None if timeout_s is None else self.now_s() + max(timeout_s, 0.0)
                while not member.finished:
                    if not self.block(member.ended, deadline_s):
                        return False
        return True

    def trace_hook(self, frame: FrameType, event: str, arg: object) -> _Trace | None:  # noqa: ARG002 - sys.settrace's
        """`sys.settrace` hook of every member: follow only watched code."""
        code = frame.f_code
        watched = self._watched.get(code)
        if watched is None:
            watched = self._watched[code] = real_path(code.co_filename) in self._files
        if not watched:
            return None
        frame.f_trace_opcodes = self.opcodes
        self.point(frame)
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> _Trace:  # noqa: ARG002
        if event != "exception" and not (self.opcodes and event == "line"):
            self.point(frame)
        return self._step

    # ------------------------------------------------------------ what is reported

    def trace(self) -> tuple[str, ...]:
        """Return the last switches, oldest first: who stopped where, and who went on."""
        return tuple(f"{name}  at {place}  →  {other}" for name, place, other in self._switches)

    def _waiting(self) -> tuple[str, ...]:
        return tuple(
            f"{member.name} waits for {member.waits_for} in {member.place}"
            for member in self._members
            if member.waits_for is not None and member is not self._main
        )

    def _cycle(self) -> tuple[str, ...]:
        """Return a line per OS thread that waits for the next one's lock, the last for the first's; () if none."""
        for member in self._members:
            path: list[Member] = []
            at: Member | None = member
            while at is not None and at.waits_for is not None and at not in path:
                path.append(at)
                at = at.waits_for.owner
            if at is not None and at is member and path:
                return tuple(f"{one.name} waits for {one.waits_for} in {one.place}" for one in path)
        return ()

    def _stuck(self) -> SimulationError:
        member = self._running
        member.stuck = True
        frame = sys._current_frames().get(member.ident)  # noqa: SLF001
        return SimulationError(
            f"{member.name} has made no step for {STUCK_S:g} s in {Place.of(frame)}",
            why="it blocks where the scheduler cannot see it: a lock made before the schedule was opened, a socket, a pipe",
            fix="make the locks inside `make_case`, and put the module that holds a global one into `watch`",
        )


def _unwrapped(body: Callable[[], object]) -> object:
    """Return the function behind partials and bound methods."""
    function: object = body
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__func__", function)

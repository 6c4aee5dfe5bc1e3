"""Where the fake provider works on its answers: at once, in a line, or all of them slower together.

slots = 0          every answer takes its time, however many there are: a service in the cloud
slots = 2, queue   ██ ██ ·· ·· ··   two are worked on, the others wait in line: a local server with a queue
slots = 2, share   ▄▄ ▄▄ ▄▄ ▄▄ ▄▄   all five go on, each at 2/5 of full speed: a local server that batches
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

# Rounding errors of the virtual time.
_TOLERANCE_S = 1e-9


class SharedTime:
    """Processor sharing: n jobs go on at min(1, slots/n) of full speed each.

    Virtual time runs at that speed; a job that needs s seconds is done when s of it have passed. So an arrival or an end costs
    O(log n) and moves no other job. Source: the textbook construction of fair queueing (Demers, Keshav, Shenker 1989).
    """

    def __init__(self) -> None:
        self.slots = 0
        self._virtual_s = 0.0
        self._at_s = 0.0
        self._jobs: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def work(self, seconds: float) -> None:
        """Return when so many seconds of work are done; cancelled, the others go on faster."""
        loop = asyncio.get_running_loop()
        self._advance(loop.time())
        job = (self._virtual_s + seconds, next(self._numbers), loop.create_future())
        heapq.heappush(self._jobs, job)
        self._set_timer(loop)
        try:
            await job[2]
        except asyncio.CancelledError:
            if job in self._jobs:
                self._advance(loop.time())
                self._jobs.remove(job)
                heapq.heapify(self._jobs)
                self._set_timer(loop)
            raise

    def set_slots(self, slots: int) -> None:
        """Go on at another speed; 0 is full speed for all."""
        loop = asyncio.get_running_loop()
        self._advance(loop.time())
        self.slots = slots
        self._set_timer(loop)

    def _speed(self) -> float:
        return min(1.0, self.slots / len(self._jobs)) if self.slots and self._jobs else 1.0

    def _advance(self, now_s: float) -> None:
        self._virtual_s += (now_s - self._at_s) * self._speed()
        self._at_s = now_s

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._jobs:
            left_s = max(0.0, self._jobs[0][0] - self._virtual_s) / self._speed()
            self._timer = loop.call_later(left_s, self._finish, loop)

    def _finish(self, loop: asyncio.AbstractEventLoop) -> None:
        self._advance(loop.time())
        while self._jobs and self._jobs[0][0] <= self._virtual_s + _TOLERANCE_S:
            future = heapq.heappop(self._jobs)[2]
            if not future.done():
                future.set_result(None)
        self._set_timer(loop)


class Line:
    """First come, first served, by so many servers."""

    def __init__(self) -> None:
        self.slots = 0
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait until it is our turn; `leave` must follow."""
        if self._has_room() and not self._waiting:
            self._busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was our turn at the same moment: the next one's now
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Let the next one in."""
        self._busy -= 1
        self._let_in()

    def set_slots(self, slots: int) -> None:
        """Serve so many at once; those inside stay. 0 is any number."""
        self.slots = slots
        self._let_in()

    def _has_room(self) -> bool:
        return not self.slots or self._busy < self.slots

    def _let_in(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)


class Bench:
    """The one place of a server where answers are worked on."""

    def __init__(self) -> None:
        self._time = SharedTime()
        self._line = Line()
        self._mode: Literal["free", "share", "queue"] = "free"

    def configure(self, slots: int, mode: Literal["share", "queue"]) -> None:
        """Work so from now on; what is in service ends as it began, at the new number of slots."""
        self._mode = mode if slots else "free"
        self._time.set_slots(slots if mode == "share" else 0)
        self._line.set_slots(slots if mode == "queue" else 0)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Have a place at the bench; waits for it where there is a line."""
        if self._mode != "queue":
            yield
            return
        await self._line.enter()
        try:
            yield
        finally:
            self._line.leave()

    async def work(self, seconds: float) -> None:
        """Spend so many seconds of work."""
        if self._mode == "share":
            await self._time.work(seconds)
        elif seconds > 0:
            await asyncio.sleep(seconds)

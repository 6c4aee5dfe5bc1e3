"""Which callbacks keep an event loop, and where they stand while they do.

    asyncio.Handle._run ─► note the start ─► the callback ─► over BLOCK_S_MIN? counted, with the stack that was seen
                                  ▲
    sampler: an OS thread that sleeps exactly until the running step would be too long, then looks at its stack

A step that returns in time costs two clock readings. The sampler has nothing to do while no loop is in a step.
"""

# ruff: noqa: SLF001 - the watch stands where asyncio calls a callback

from __future__ import annotations

import asyncio
import sys
import threading
from _thread import get_ident
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Final

from sennit.observe.profile.facts import BLOCK_S_MIN, BlockFacts
from sennit.observe.profile.places import Origin, describe, is_of_sennit, origin_of, place_of

STACK_MAX: Final = 12
"""Innermost frames that are kept."""

_Run = Callable[[asyncio.Handle], None]


_Step = tuple[float, asyncio.Handle]
"""When it began, and what it calls."""


@dataclass(slots=True)
class _Block:
    what: str
    stack: list[str]
    is_sennit: bool
    count: int = 0
    blocked_s: float = 0.0
    blocked_s_max: float = 0.0


class LoopWatch:
    """Watches every event loop of the process that runs handles of asyncio's own class (uvloop's are not seen)."""

    def __init__(self, disturbed_s: Callable[[float, float], float] = lambda _began_s, _ended_s: 0.0) -> None:
        """Args: disturbed_s: how much of an interval other watches took for themselves; that is not the program's."""
        self._disturbed_s = disturbed_s
        self._running: dict[int, _Step] = {}  # OS thread → the step it is in
        self._seen: dict[int, tuple[_Step, list[str], bool]] = {}  # OS thread → what was seen of its last long step
        self._idle = False
        self._end = threading.Event()
        self._blocks: dict[tuple[str, str], _Block] = {}
        self._wake = threading.Event()
        self._closed = False
        self._original: _Run = asyncio.Handle._run
        self._sampler = threading.Thread(target=self._sample, name="sennit-profile-loops", daemon=True)

    def start(self) -> None:
        """Put the watch between the loops and their callbacks."""
        original, running, wake, note = self._original, self._running, self._wake, self._note

        def run(handle: asyncio.Handle) -> None:
            me = get_ident()
            outer = running.get(me)  # a nested run: a loop inside a callback
            step = running[me] = (monotonic(), handle)
            if self._idle:
                wake.set()
            try:
                original(handle)
            finally:
                took_s = monotonic() - step[0]
                if outer is None:
                    running.pop(me, None)
                else:
                    running[me] = outer
                if took_s >= BLOCK_S_MIN:
                    note(me, step, took_s)

        asyncio.Handle._run = run  # type: ignore[assignment, method-assign]  # this is how every callback is called
        self._sampler.start()

    def stop(self) -> list[BlockFacts]:
        """Take the watch away and return what was seen, the longest first."""
        asyncio.Handle._run = self._original  # type: ignore[assignment, method-assign]
        self._closed = True
        self._end.set()
        self._wake.set()
        self._sampler.join()
        blocks = sorted(self._blocks.values(), key=lambda block: block.blocked_s, reverse=True)
        return [BlockFacts(b.what, b.stack, b.count, b.blocked_s, b.blocked_s_max, b.is_sennit) for b in blocks]

    def _note(self, os_thread_id: int, step: _Step, took_s: float) -> None:
        began_s, handle = step
        took_s -= self._disturbed_s(began_s, began_s + took_s)
        seen = self._seen.pop(os_thread_id, None)
        if took_s < BLOCK_S_MIN:
            return
        stack, is_sennit = ([], False) if seen is None or seen[0] is not step else seen[1:]
        what = describe(handle)
        block = self._blocks.setdefault((what, stack[0] if stack else ""), _Block(what, stack, is_sennit))
        block.count += 1
        block.blocked_s += took_s
        block.blocked_s_max = max(block.blocked_s_max, took_s)

    def _sample(self) -> None:
        """Look at a step once, when it has just become too long; sleep while no loop is in a step."""
        while not self._closed:
            steps = list(self._running.items())
            if not steps:
                self._wake.clear()
                self._idle = True  # before the look: who begins a step enters it, and then looks at this
                if not self._running and not self._closed:
                    self._wake.wait()
                self._idle = False
                continue
            now_s = monotonic()
            open_s = [BLOCK_S_MIN]
            for os_thread_id, step in steps:
                if os_thread_id in self._seen and self._seen[os_thread_id][0] is step:
                    continue
                if (left_s := BLOCK_S_MIN - (now_s - step[0])) > 0:
                    open_s.append(left_s)
                    continue
                frame = sys._current_frames().get(os_thread_id)
                if self._running.get(os_thread_id) is step:  # it has not ended while we looked
                    self._seen[os_thread_id] = (step, *stack_of(frame))
            self._pause(max(min(open_s), 0.001))

    def _pause(self, seconds: float) -> None:
        self._end.wait(seconds)


def stack_of(frame: FrameType | None) -> tuple[list[str], bool]:
    """Return the innermost frames, the innermost first, without those of the loop and of this watch.

    Returns:
        The frames, and whether all of them are sennit's own or the standard library's.
    """
    found: list[str] = []
    is_sennit = False
    is_program = False
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(("asyncio/events.py", "asyncio/base_events.py")):
            break
        is_sennit = is_sennit or is_of_sennit(file)
        is_program = is_program or (origin_of(file) is Origin.PROGRAM and not is_of_sennit(file))
        if len(found) < STACK_MAX:
            found.append(place_of(frame))
        frame = frame.f_back
    return found or ["(in C code called by the loop)"], is_sennit and not is_program

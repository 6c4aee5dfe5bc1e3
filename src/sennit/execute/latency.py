"""How long the attempts of a handler take in this process, and from that when one has taken too long.

    attempt starts ─► Watch ── waits for others ─► stands still ─► goes on ── longer than its limit ─► give up
                        └─ succeeded, or given up ─► LatencySketch of its handler ─► limit of the next ones

Only time in which a body works counts: while it waits for other tasks or stands in line for its provider, its watch
stands still. Only whole runs teach: an attempt that failed or was stopped says nothing of how long a good one takes,
and one that found finished steps has done a part of the work.

A sketch lives in memory, one per handler and process. A process that starts knows nothing, and processes do not tell
each other: each learns by itself, at the ceiling meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from sennit.limit.timeouts import LatencySketch, observe, quantile_s, timeout_s
from sennit.model.timeout import AdaptiveTimeout


class Limit(NamedTuple):
    """How long an attempt may work, and what to say when it did longer."""

    limit_s: float
    reason: str


class Latencies:
    """The sketches of this process. All methods belong to its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sketches: dict[str, LatencySketch] = {}

    def watch(
        self, handler: str, how: AdaptiveTimeout, *, give_up: Callable[[str], None], is_whole: bool = True
    ) -> Watch:
        """Start the watch of an attempt that begins.

        Args:
            how: with its ceiling.
            give_up: called, with the reason, when the attempt has worked for too long.
            is_whole: it has no finished steps to skip.
        """
        sketch = self._sketches.setdefault(handler, LatencySketch())
        return Watch(sketch, limit_of(sketch, how), loop=self._loop, give_up=give_up, is_whole=is_whole)


class Watch:
    """The time that one attempt has worked, and the timer that ends it. All methods belong to the event loop."""

    __slots__ = ("_began_s", "_give_up", "_is_whole", "_limit", "_loop", "_sketch", "_timer", "_worked_s")

    def __init__(
        self,
        sketch: LatencySketch,
        limit: Limit,
        *,
        loop: asyncio.AbstractEventLoop,
        give_up: Callable[[str], None],
        is_whole: bool,
    ) -> None:
        self._sketch = sketch
        self._limit = limit
        self._loop = loop
        self._give_up = give_up
        self._is_whole = is_whole
        self._worked_s = 0.0  # before `_began_s`
        self._began_s: float | None = None  # None: it stands still
        self._timer: asyncio.TimerHandle | None = None
        self.go_on()

    def stand_still(self) -> None:
        """The body begins to wait for something that is not its own work."""
        if self._began_s is not None:
            self._worked_s += self._loop.time() - self._began_s
            self._began_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def go_on(self) -> None:
        """The body works again."""
        if self._began_s is None:
            self._began_s = self._loop.time()
            left_s = self._limit.limit_s - self._worked_s
            self._timer = self._loop.call_later(left_s, self._give_up, self._limit.reason)

    def timed_out(self) -> None:
        """The attempt is given up because it took too long: it would have taken at least as long as it worked.

        Not when it only waits: then others were slow.
        """
        if self._began_s is not None:
            self.stand_still()
            observe(self._sketch, self._worked_s, timed_out=True)

    def ended(self, *, succeeded: bool) -> None:
        """The attempt has ended."""
        self.stand_still()
        if succeeded and self._is_whole:
            observe(self._sketch, self._worked_s)


def limit_of(sketch: LatencySketch, how: AdaptiveTimeout) -> Limit:
    """Return how long an attempt may work that starts now; `how` has its ceiling."""
    ceiling_s = how.floor_s if how.ceiling_s is None else how.ceiling_s
    limit_s = timeout_s(
        sketch, quantile=how.quantile, factor=how.factor, floor_s=how.floor_s, ceiling_s=ceiling_s,
        samples_min=how.samples_min,
    )  # fmt: skip
    known_s = quantile_s(sketch, how.quantile)
    learnt = f"{how.factor:g} × its p{how.quantile * 100:g}"
    if sketch.samples < how.samples_min:
        why = f"ceiling_s={ceiling_s:g}; of {how.samples_min} attempts to learn from, {sketch.samples} are known here"
    elif how.factor * known_s > ceiling_s:
        why = f"ceiling_s={ceiling_s:g}; {learnt} is {how.factor * known_s:.3g} s"
    elif how.factor * known_s < how.floor_s:
        why = f"floor_s={how.floor_s:g}; {learnt} is only {how.factor * known_s:.3g} s"
    else:
        why = f"{learnt} ({known_s:.3g} s), which is {limit_s:.3g} s"
    return Limit(limit_s, f"the attempt ran longer than {why}")

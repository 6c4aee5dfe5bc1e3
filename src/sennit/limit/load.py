"""The load manager: looks at the machine when there is reason to, and has `shedding.decide` say how much less to do.

    trigger of the kernel ──────────┐
    attempt starts or ends ─► note ─┼─► look ─► decide ─► on_change: fewer slots, or more again
    2 s later, while m < 1 ─────────┘

After a trigger, and while something is not as it should be, it looks every 2 s; on a machine without triggers every
second, as long as work runs. In a process that runs nothing it listens to nothing and times nothing, unless it is stopped and must find out when to go
on. Time in which nothing ran counts as calm.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from sennit.limit.admission import Timer
from sennit.limit.cgroups import MemoryUse, tightest_memory
from sennit.limit.pressure import Pressure, Source
from sennit.limit.shedding import MEMORY_PRESSURE_MAX, Decision, Level, LoadBounds, LoadInputs, LoadState, decide
from sennit.model.order import Priority

_log = logging.getLogger("sennit")

DECISIONS_KEPT: Final = 100
TICK_S: Final = 2.0
TICK_WITHOUT_TRIGGERS_S: Final = 1.0
# A trigger is a hint; whether it was right shows in the next few looks.
WATCH_US: Final = 5_000_000
# However much starts and ends: a look reads half a dozen files, about 0.4 ms.
LOOK_EVERY_US: Final = 1_000_000
# After an attempt has started or ended: a timer this far away, whose lateness is that of the loop.
PROBE_S: Final = 0.1


class LoadStatistics(NamedTuple):
    """A snapshot. `source` is where the pressure on the cores is known from; "none" is that it is not."""

    multiplier: float
    level: Level
    is_stopped: bool
    source: Source
    inputs: LoadInputs
    decisions: int


class LoadManager:
    """The load on this process, live. All methods belong to its event loop.

    Args:
        on_change: told each decision that changes something.
        pressure, memory: where the inputs come from; default: this process and machine.
        queue_age_s: how long the work that waits has waited, or None.
    """

    def __init__(
        self,
        bounds: LoadBounds,
        *,
        on_change: Callable[[Decision], None],
        now_us: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        pressure: Pressure | None = None,
        memory: Callable[[], MemoryUse] = tightest_memory,
        queue_age_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._bounds = bounds
        self._on_change = on_change
        self._now_us = now_us
        self._loop = loop
        self._pressure = pressure or Pressure(
            cpu_max=bounds.cpu_pressure_max, memory_max=MEMORY_PRESSURE_MAX, now_us=now_us
        )
        self._memory = memory
        self._queue_age_s = queue_age_s
        self.state = LoadState()
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self._made = 0
        self._inputs = LoadInputs(since_us=now_us())
        self._looked_us = now_us()
        self._told_us = -WATCH_US
        self._lag_s = 0.0
        self._running = 0
        self._timer: Timer | None = None
        self._probe: Timer | None = None
        self._is_closed = False

    # ------------------------------------------------------------ what others ask

    @property
    def multiplier(self) -> float:
        """On everything that this process runs at once, from 0.05 to 1."""
        return self.state.multiplier

    @property
    def level(self) -> Level:
        """How much gives way."""
        return self.state.level

    @property
    def source(self) -> Source:
        """Where the pressure on the cores is known from."""
        return self._pressure.source

    def should_throttle(self, priority: Priority = Priority.NORMAL) -> bool:
        """Return whether new work of this priority had better wait; never for `urgent`."""
        return self.state.should_throttle(priority)

    def recommend_concurrency(self, current: int) -> int:
        """Return how much of `current` things at once are good now, at least 1."""
        return self.state.recommend_concurrency(current)

    def statistics(self) -> LoadStatistics:
        """Return a snapshot; `inputs` are those of the last look."""
        state = self.state
        return LoadStatistics(state.multiplier, state.level, state.is_stopped, self.source, self._inputs, self._made)

    # ------------------------------------------------------------ when to look

    def note(self, running: int) -> None:
        """Attempts have started or ended: so many run now."""
        if self._is_closed:
            return
        self._running = running
        if running and not self._pressure.is_started:
            self._pressure.start(self._loop, self._told)
        if self._now_us() - self._looked_us >= LOOK_EVERY_US:
            self._look()
        if running and self._probe is None:
            self._probe = self._later(PROBE_S, self._probed)
        self._arm()

    def note_lag(self, lag_s: float) -> None:
        """The event loop was late by so much."""
        self._lag_s = max(self._lag_s, lag_s)

    def close(self) -> None:
        """Listen to nothing and time nothing any more."""
        self._is_closed = True
        for timer in (self._timer, self._probe):
            if timer is not None:
                timer.cancel()
        self._pressure.close()

    def _arm(self) -> None:
        """Look again in a while, if nothing else would tell; when nothing runs, once more, to go to rest."""
        if self._timer is not None or self._is_closed:
            return
        if self.state.is_stopped or (self._pressure.is_started and (self._must_ask or not self._running)):
            delay_s = TICK_S if self._pressure.has_triggers else TICK_WITHOUT_TRIGGERS_S
            self._timer = self._later(delay_s, self._tick)

    @property
    def _must_ask(self) -> bool:
        if self.state.multiplier < 1 or self.state.is_late or not self._pressure.has_triggers:
            return True
        return self._now_us() - self._told_us < WATCH_US

    def _told(self) -> None:
        """The kernel tells of pressure."""
        self._told_us = self._now_us()
        self._look()

    def _tick(self) -> None:
        self._timer = None
        if self._running or self.state.is_stopped:
            self._look()
            self._arm()
        else:
            self._pressure.stop()

    def _probed(self) -> None:
        self._probe = None
        if self._lag_s > self._bounds.lag_s_max:
            self._look()
            self._arm()

    def _later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call `call` in so many seconds; how much later it comes is how late the loop is."""
        due_us = self._now_us() + int(delay_s * 1_000_000)

        def on_time() -> None:
            self.note_lag((self._now_us() - due_us) / 1_000_000)
            call()

        return self._loop.call_later(delay_s, on_time)

    # ------------------------------------------------------------ looking

    def _look(self) -> None:
        now_us, since_us = self._now_us(), self._looked_us
        lag_s, self._lag_s = self._lag_s, 0.0
        pressures = self._pressure.sample()
        self._looked_us = now_us
        self._inputs = LoadInputs(
            since_us=since_us,
            cpu=pressures.cpu,
            memory=pressures.memory,
            memory_free=self._memory().free if self._bounds.memory_free_min else None,
            lag_s=lag_s,
            queue_age_s=self._queue_age_s(),
        )
        decision = decide(self._inputs, self.state, self._bounds, now_us)
        self.state = decision.after
        if decision.is_change:
            self._made += 1
            self.decisions.append(decision)
            _say(decision, self.source)
            self._on_change(decision)
        self._arm()


def _say(decision: Decision, source: Source) -> None:
    before, after, inputs = decision.before, decision.after, decision.inputs
    known = {
        "cpu pressure": inputs.cpu,
        "memory pressure": inputs.memory,
        "memory free": inputs.memory_free,
        "loop lag s": inputs.lag_s,
        "queue age s": inputs.queue_age_s,
    }
    figures = ", ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None)
    what = f"{before.multiplier:.2f} -> {after.multiplier:.2f}"
    if after.is_stopped != before.is_stopped:
        what += ", no task is started" if after.is_stopped else ", tasks are started again"
    why = f" for {', '.join(decision.reasons)}" if decision.reasons else ""
    _log.warning("load: %s%s (%s): %s; source %s", what, why, after.level, figures, source)

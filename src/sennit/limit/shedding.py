"""How much less to do while the machine is overloaded: one multiplier on what this process runs at once.

    pressure on the cores ┐                    over a bound        ×0.7, at most once in 2 s
    pressure on memory    ├─► decide ─► m ───► all below the lower +0.1 for every 5 s of it         1.0 ─► 0.05
    free memory           │    (pure)          in between          stays as it is
    lag of the event loop ┘

The bound to come back is lower than the bound to give way, so that a load at the edge does not make it swing.

What gives way, in this order; nothing that was accepted is refused, dropped or failed for load:

1. *throttled* (m < 1): each queue gets `slots × m`, at least one. What runs goes on; as bodies end, fewer are started.
   Those that start are the first in the order: urgent before high before normal before low, aged by waiting. So `low`
   waits first and longest, and an urgent task still gets a slot that load has taken away.
2. *shedding* (m ≤ 0.5): bodies beyond that number which are `preemptible` are asked to make room at their next step,
   one per queue and decision, `low` first, then `normal`, then `high`, never `urgent`.
3. *stopped* (less than half of the free memory asked for): no task is started, an urgent one neither, since one more
   body could be the one that gets all of them killed. What runs goes on; it is what can give memory back.

Whoever makes work of its own accord asks `should_throttle(priority)`: yes for `low` when throttled, for `normal` too
when shedding, for `high` too when stopped or at the least multiplier, never for `urgent`.

The age of a queue never lowers the multiplier: doing less would make the queue older still. It only says to those who
hand in that they should wait.
"""

from __future__ import annotations

from math import floor
from typing import Final, Literal, NamedTuple

import msgspec

from sennit.model.order import Priority

Level = Literal["normal", "throttled", "shedding"]

FALL: Final = 0.7
FALL_EVERY_US: Final = 2_000_000
RISE: Final = 0.1
RISE_EVERY_US: Final = 5_000_000
MULTIPLIER_MIN: Final = 0.05
SHED_BELOW: Final = 0.5
# Below this part of a bound an input is calm. The gap to the bound is the hysteresis.
CALM: Final = 0.5
# Memory is calm above so many times the free share asked for, and too scarce to start anything below half of it.
MEMORY_CALM: Final = 1.5
MEMORY_STOP: Final = 0.5
# Waiting for memory is never a good sign, however busy the machine is meant to be: a tenth of the time is a lot.
MEMORY_PRESSURE_MAX: Final = 0.1


class LoadBounds(msgspec.Struct, kw_only=True, frozen=True):
    """From when on it is too much.

    Attributes:
        cpu_pressure_max: share of time in which something had to wait for a core, above 0; 1 is off.
        memory_free_min: share of memory that is to stay free, from 0 (off) to below 1.
        lag_s_max: how late the event loop may be.
        queue_age_s_max: how long work may wait before those who hand in are told; 0 is off.
    """

    cpu_pressure_max: float = 0.8
    memory_free_min: float = 0.1
    lag_s_max: float = 0.25
    queue_age_s_max: float = 0.0


class LoadInputs(msgspec.Struct, kw_only=True, frozen=True):
    """What one decision is made from. None is unknown, and then it decides nothing.

    Attributes:
        since_us: when the look before this one was.
        cpu, memory: pressures, shares from 0 to 1.
        memory_free: the share of memory that is left, under the tightest bound.
        lag_s: the worst lateness of the event loop since then.
        queue_age_s: how long the work that waits has waited.
    """

    since_us: int = 0
    cpu: float | None = None
    memory: float | None = None
    memory_free: float | None = None
    lag_s: float = 0.0
    queue_age_s: float | None = None


class LoadState(msgspec.Struct, kw_only=True, frozen=True):
    """What is remembered from one decision to the next. Times on any clock that does not step, µs.

    Attributes:
        multiplier: on everything this process runs at once.
        is_stopped: nothing may be started at all.
        fell_us: when the multiplier was lowered last.
        calm_us: since when all inputs are calm, moved on by each rise; None while they are not.
    """

    multiplier: float = 1.0
    is_stopped: bool = False
    is_late: bool = False
    fell_us: int | None = None
    calm_us: int | None = None

    @property
    def level(self) -> Level:
        """How much gives way."""
        if self.is_stopped or self.multiplier <= SHED_BELOW:
            return "shedding"
        return "throttled" if self.multiplier < 1 or self.is_late else "normal"

    def should_throttle(self, priority: Priority = Priority.NORMAL) -> bool:
        """Return whether new work of this priority had better wait."""
        if self.is_stopped or self.multiplier <= MULTIPLIER_MIN:
            return priority >= Priority.HIGH
        match self.level:
            case "shedding":
                return priority >= Priority.NORMAL
            case "throttled":
                return priority >= Priority.LOW
            case _:
                return False

    def recommend_concurrency(self, current: int) -> int:
        """Return how much of `current` things at once are good now: `current × multiplier`, at least 1 (0 of 0)."""
        return scaled(current, self.multiplier)


class Decision(NamedTuple):
    """One decision.

    Attributes:
        reasons: the inputs that were over their bound.
        is_change: something is another than before.
    """

    at_us: int
    before: LoadState
    after: LoadState
    inputs: LoadInputs
    reasons: tuple[str, ...]

    @property
    def is_change(self) -> bool:
        """Whether anything that others go by is another than before."""
        return _seen(self.before) != _seen(self.after)

    @property
    def has_fallen(self) -> bool:
        """Whether less is to run than before."""
        return self.after.multiplier < self.before.multiplier


def scaled(n: int, multiplier: float) -> int:
    """Return `n × multiplier`, rounded down, but not to 0."""
    return max(floor(n * multiplier + 1e-9), min(n, 1))


def decide(inputs: LoadInputs, state: LoadState, bounds: LoadBounds, now_us: int) -> Decision:
    """Return what is to change. Pure: the same arguments, the same answer.

    Source: additive increase, multiplicative decrease, as TCP does; here the decrease is bounded in time and the increase
    needs proof, because bodies are long and what has started cannot be taken back.
    """
    over, is_calm = _judged(inputs, bounds)
    multiplier, fell_us, calm_us = state.multiplier, state.fell_us, state.calm_us
    if over:
        calm_us = None
        if fell_us is None or now_us - fell_us >= FALL_EVERY_US:
            multiplier, fell_us = max(round(multiplier * FALL, 3), MULTIPLIER_MIN), now_us
    elif is_calm:
        calm_us = min(inputs.since_us if calm_us is None else calm_us, now_us)
        if fell_us is not None:
            calm_us = max(calm_us, min(fell_us, now_us))
        steps = (now_us - calm_us) // RISE_EVERY_US
        multiplier = min(round(multiplier + RISE * steps, 3), 1.0)
        calm_us += steps * RISE_EVERY_US
    else:
        calm_us = None
    age_s = inputs.queue_age_s
    after = LoadState(
        multiplier=multiplier,
        is_stopped=_is_stopped(inputs, state, bounds),
        is_late=bool(bounds.queue_age_s_max)
        and age_s is not None
        and age_s > bounds.queue_age_s_max * (CALM if state.is_late else 1),
        fell_us=fell_us,
        calm_us=calm_us,
    )
    return Decision(now_us, state, after, inputs, over)


def _judged(inputs: LoadInputs, bounds: LoadBounds) -> tuple[tuple[str, ...], bool]:
    """Return which inputs are over their bound, and whether all of them are calm."""
    rising = (
        ("cpu", inputs.cpu if bounds.cpu_pressure_max < 1 else None, bounds.cpu_pressure_max),
        ("memory", inputs.memory, MEMORY_PRESSURE_MAX),
        ("lag", inputs.lag_s, bounds.lag_s_max),
    )
    over = [name for name, value, bound in rising if value is not None and value > bound]
    is_calm = all(value is None or value < bound * CALM for _, value, bound in rising)
    free = inputs.memory_free
    if free is not None and bounds.memory_free_min:
        if free < bounds.memory_free_min:
            over.append("memory_free")
        # Whoever wants 90 % free is not to wait for 135 %: half of the way to all of it is as good.
        is_calm = is_calm and free > min(bounds.memory_free_min * MEMORY_CALM, (1 + bounds.memory_free_min) / 2)
    return tuple(over), is_calm


def _is_stopped(inputs: LoadInputs, state: LoadState, bounds: LoadBounds) -> bool:
    """Stop below half of the free share asked for, go on at all of it."""
    if inputs.memory_free is None:
        return state.is_stopped
    return inputs.memory_free < bounds.memory_free_min * (1 if state.is_stopped else MEMORY_STOP)


def _seen(state: LoadState) -> tuple[float, bool, bool]:
    return state.multiplier, state.is_stopped, state.is_late

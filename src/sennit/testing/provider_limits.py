"""What the fake provider enforces: so many at once, so much a minute, so much in a window of hours.

    arrival ─► window used up? ─► too many at once? ─► minute used up? ─► served, and charged
                  │ 429 window        │ 429 burst          │ 429 minute
                  └───────────────────┴────────────────────┴─► nothing is charged for a refusal

Pure: time comes in as an argument, seconds on any clock that does not step.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from sennit.testing.provider_knobs import Knobs
from sennit.testing.provider_statistics import RefusalKind

Dimension = Literal["requests", "tokens", "input", "output"]

# Rounding errors of a wait that was exactly long enough.
TOLERANCE: Final = 1e-6


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request is not served.

    Attributes:
        dimension: of which rate, for a minute.
        limit, used, asked: of that rate or window.
        wait_s: the wait that is announced; None when nothing is to be said.
    """

    kind: RefusalKind
    wait_s: float | None
    dimension: Dimension = "requests"
    limit: int = 0
    used: int = 0
    asked: int = 1


class RateStanding(msgspec.Struct, frozen=True):
    """How one rate stands: what is left of it, and in how many seconds it is whole again."""

    limit: int
    remaining: int
    reset_s: float


class WindowStanding(msgspec.Struct, frozen=True):
    """How the window stands: the share of it that is used, and in how many seconds it ends."""

    limit: int
    used_share: float
    reset_s: float


class Rate:
    """One rate per minute. It begins whole; a request that needs more than all of it passes when it is whole, on credit."""

    def __init__(self, limit: int, minute_s: float, kind: Literal["bucket", "fixed"], now_s: float) -> None:
        self.limit = limit
        self._minute_s = minute_s
        self._kind = kind
        self._level = float(limit)
        self._at_s = now_s  # of the level; of a fixed minute, its beginning

    def wait_s(self, now_s: float, asked: int) -> float:
        """Return how long until `asked` fit; 0 when they do."""
        self._refresh(now_s)
        missing = min(asked, self.limit) - self._level
        return self._time_for(missing, now_s) if missing > TOLERANCE else 0.0

    def take(self, asked: int) -> None:
        """Charge it; after `wait_s` was 0."""
        self._level -= asked

    def standing(self, now_s: float) -> RateStanding:
        """Return what is left, whole numbers."""
        self._refresh(now_s)
        missing = self.limit - self._level
        reset_s = self._time_for(missing, now_s) if missing > TOLERANCE else 0.0
        return RateStanding(self.limit, max(0, int(self._level + TOLERANCE)), reset_s)

    def _refresh(self, now_s: float) -> None:
        passed_s = now_s - self._at_s
        if self._kind == "bucket":
            self._level = min(float(self.limit), self._level + passed_s * self.limit / self._minute_s)
            self._at_s = now_s
        elif passed_s >= self._minute_s:
            self._level = float(self.limit)
            self._at_s += passed_s // self._minute_s * self._minute_s

    def _time_for(self, missing: float, now_s: float) -> float:
        if self._kind == "bucket":
            return missing * self._minute_s / self.limit
        return self._at_s + self._minute_s - now_s


class Closed(msgspec.Struct, frozen=True):
    """Nothing passes until `opens_s`; `until_s` is what clients are told. They differ when the provider lies."""

    wait_s: float
    until_s: float
    opens_s: float

    @classmethod
    def at(cls, now_s: float, wait_s: float, keeps_s: float) -> Closed:
        """Close from now on, for `wait_s` and, unsaid, for `keeps_s` more."""
        return cls(wait_s, now_s + wait_s, now_s + wait_s + keeps_s)

    def told_s(self, now_s: float) -> float:
        """Return the wait to announce now. After its own time is over it announces the same wait again."""
        return self.until_s - now_s if now_s < self.until_s else self.wait_s


class Limits:
    """Decides about each arrival. Belongs to one event loop."""

    def __init__(self, knobs: Knobs, now_s: float) -> None:
        self._knobs = knobs
        self._rates: dict[Dimension, Rate] = {}
        self._minute: Closed | None = None  # only while it refuses longer than it has said
        self._window: Closed | None = None
        self._later: tuple[float, int] | None = None  # used up for so many seconds, with that call
        self._window_began_s: float | None = None
        self._window_used = 0
        self._admitted = 0
        self._set_rates(knobs, now_s, changed=True)

    def configure(self, knobs: Knobs, now_s: float) -> None:
        """Go on with other knobs. A rate that has changed is whole; what is closed stays so."""
        before, self._knobs = self._knobs, knobs
        changed = (before.minute_s, before.minute) != (knobs.minute_s, knobs.minute)
        self._set_rates(knobs, now_s, changed=changed)

    def exhaust(self, now_s: float, reset_in_s: float, *, at_call: int = 0) -> None:
        """Use up the window, so that it resets in so many seconds; 0 makes it whole again.

        Args:
            at_call: not now, but with the call that would be the so-manieth to be served.
        """
        self._later = (reset_in_s, at_call) if at_call else None
        if at_call:
            return
        self._window = Closed.at(now_s, reset_in_s, self._knobs.keeps_refusing_s) if reset_in_s else None
        self._window_began_s, self._window_used = None, 0

    def hasten(self) -> bool:
        """Use up with the next call the window that was to be used up with a later one; False without such a one."""
        if self._later is None:
            return False
        self._later = (self._later[0], 1)
        return True

    def admit(self, now_s: float, *, in_service: int, input_tokens: int, output_tokens: int) -> Refusal | None:
        """Decide about one request that will use so many tokens; None serves it."""
        knobs = self._knobs
        if refusal := self._window_refusal(now_s):
            return refusal
        if knobs.max_concurrency and in_service >= knobs.max_concurrency:
            return Refusal(
                kind="burst", wait_s=knobs.overload_retry_after_s, limit=knobs.max_concurrency, used=in_service
            )
        needs: dict[Dimension, int] = {
            "requests": 1,
            "tokens": input_tokens + output_tokens,
            "input": input_tokens,
            "output": output_tokens,
        }
        if refusal := self._minute_refusal(now_s, needs):
            return refusal
        for dimension, rate in self._rates.items():
            rate.take(needs[dimension])
        self._admitted += 1
        if knobs.window_requests:
            self._window_began_s = now_s if self._window_began_s is None else self._window_began_s
            self._window_used += 1
        return None

    def rates(self, now_s: float) -> dict[Dimension, RateStanding]:
        """Return how each rate stands that has a bound."""
        return {dimension: rate.standing(now_s) for dimension, rate in self._rates.items()}

    def window(self, now_s: float) -> WindowStanding | None:
        """Return how the window stands, None without one."""
        limit = self._knobs.window_requests
        if self._window is not None and now_s < self._window.opens_s:
            return WindowStanding(limit or self._admitted, 1.0, self._window.told_s(now_s))
        if not limit:
            return None
        self._end_window(now_s)
        began_s = now_s if self._window_began_s is None else self._window_began_s
        return WindowStanding(limit, min(1.0, self._window_used / limit), began_s + self._knobs.window_s - now_s)

    def _set_rates(self, knobs: Knobs, now_s: float, *, changed: bool) -> None:
        bounds: dict[Dimension, int] = {
            "requests": knobs.rpm,
            "tokens": knobs.tpm,
            "input": knobs.input_tpm,
            "output": knobs.output_tpm,
        }
        for dimension, bound in bounds.items():
            rate = self._rates.get(dimension)
            if not bound:
                self._rates.pop(dimension, None)
            elif changed or rate is None or rate.limit != bound:
                self._rates[dimension] = Rate(bound, knobs.minute_s, knobs.minute, now_s)

    def _window_refusal(self, now_s: float) -> Refusal | None:
        knobs = self._knobs
        if self._later is not None and self._admitted + 1 >= self._later[1]:
            self.exhaust(now_s, self._later[0])
        if self._window is not None and now_s >= self._window.opens_s:
            self._window = None
        if self._window is None and knobs.window_requests:
            self._end_window(now_s)
            if self._window_began_s is not None and self._window_used >= knobs.window_requests:
                left_s = self._window_began_s + knobs.window_s - now_s
                self.exhaust(now_s, left_s)
        if self._window is None:
            return None
        limit = knobs.window_requests or self._admitted
        return Refusal(kind="window", wait_s=self._window.told_s(now_s), limit=limit, used=limit)

    def _end_window(self, now_s: float) -> None:
        """Begin the next one, with the next request, if it is over."""
        if self._window_began_s is not None and now_s >= self._window_began_s + self._knobs.window_s:
            self._window_began_s, self._window_used = None, 0

    def _minute_refusal(self, now_s: float, needs: dict[Dimension, int]) -> Refusal | None:
        waits = {dimension: rate.wait_s(now_s, needs[dimension]) for dimension, rate in self._rates.items()}
        most: Dimension = "requests"
        dimension = max(waits, key=lambda name: waits[name], default=most)
        wait_s = waits.get(dimension, 0.0)
        if self._minute is not None and now_s >= self._minute.opens_s:
            self._minute = None
        if self._minute is None:
            if not wait_s:
                return None
            if self._knobs.keeps_refusing_s:
                self._minute = Closed.at(now_s, wait_s, self._knobs.keeps_refusing_s)
        else:
            wait_s = self._minute.told_s(now_s)
        limit = self._rates[dimension].limit if dimension in self._rates else 0
        remaining = self._rates[dimension].standing(now_s).remaining if dimension in self._rates else 0
        return Refusal(
            kind="minute",
            wait_s=wait_s,
            dimension=dimension,
            limit=limit,
            used=limit - remaining,
            asked=needs[dimension],
        )

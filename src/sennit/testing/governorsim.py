"""What the governor of a provider makes of it: all of `limit.governor`, as the stores use it, in virtual time. Pure, seeded.

    room ──n──► grant ──Mark──► (the call, on limitsim's server) ──CallReport──► settle ──► room …
      └──wake_us──► nothing is tried before then, unless a call ends

`limitsim` has the strategies alone, which go on after a 429 as if nothing had happened; here a burst holds the fleet back
for a moment, a window pauses it, and the breaker counts. There is always another caller waiting. `oracle` is what
somebody would have done who knows the provider's cap and its window: as many calls as it bears, and never a 429.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from random import Random
from statistics import median
from typing import Final, Protocol

from sennit.limit import governor
from sennit.limit.governor import Mark, Room
from sennit.model.provider import CallReport, ProviderSpec, Rates, Strategy, Usage
from sennit.testing.limitsim import (
    CONSTANT,
    LOCAL,
    REFUSAL_S,
    REMOTE,
    START_S,
    STEP,
    TRACE_S,
    UNCAPPED,
    UNIT_NOISE,
    UNITS_PER_S,
    Point,
    Provider,
    Run,
    ServedCall,
    Server,
)

TICK_S: Final = 1.0  # a slowdown or a cap may have changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A provider and what happens to it.

    Attributes:
        slug: its short name, for files and JSON.
        window: (from, to) in seconds: its quota is used up, and every call is refused with the time until the end.
    """

    slug: str
    provider: Provider
    window: tuple[float, float] | None = None

    def closed_until_s(self, now_s: float) -> float | None:
        """Return when the window ends, None outside of it."""
        return self.window[1] if self.window and self.window[0] <= now_s < self.window[1] else None

    def bears(self, now_s: float, ceiling: int) -> int:
        """Return how many calls at once are best, for somebody who knows."""
        if self.closed_until_s(now_s) is not None:
            return 0
        return self.provider.cap(now_s) or self.provider.cores or ceiling


WINDOW_S: Final = (900.0, 1500.0)

CONSTANT_LATENCY: Final = Scenario(slug="constant", provider=CONSTANT)
UNKNOWN_CAP: Final = Scenario(slug="lognormal", provider=REMOTE)
STEPS: Final = Scenario(slug="step", provider=STEP)
NO_CAP: Final = Scenario(slug="uncapped", provider=UNCAPPED)
LOCAL_SERVER: Final = Scenario(slug="local", provider=LOCAL)
WINDOW: Final = Scenario(
    slug="window", provider=replace(REMOTE, name="cap 40, window used up for 600 s"), window=WINDOW_S
)
SCENARIOS: Final = (CONSTANT_LATENCY, UNKNOWN_CAP, STEPS, NO_CAP, LOCAL_SERVER, WINDOW)


class Gate(Protocol):
    """Lets calls through."""

    def room(self, now_us: int, in_use: int) -> Room:
        """Return how many may begin, and when that changes by itself."""

    def grant(self, now_us: int, in_use: int) -> Mark:
        """One begins."""

    def settle(self, mark: Mark, report: CallReport, now_us: int, in_use: int) -> None:
        """One has ended; `in_use` counts it."""

    def limit(self, now_us: int, in_use: int) -> float:
        """Return how many may be out at once now."""


class Governed:
    """The governor."""

    def __init__(self, spec: ProviderSpec) -> None:
        self.spec = spec
        self.state = governor.fresh(spec, 0)

    def room(self, now_us: int, in_use: int) -> Room:
        """See Gate."""
        return governor.room(self.spec, self.state, now_us, in_use=in_use)

    def grant(self, now_us: int, in_use: int) -> Mark:
        """See Gate."""
        return governor.grant(self.spec, self.state, now_us, in_use=in_use)

    def settle(self, mark: Mark, report: CallReport, now_us: int, in_use: int) -> None:
        """See Gate."""
        governor.settle(self.spec, self.state, mark, report, now_us, in_use=in_use)

    def limit(self, now_us: int, in_use: int) -> float:
        """See Gate."""
        return governor.facts(self.spec, self.state, now_us, in_use=in_use).limit


class Oracle:
    """Knows the scenario."""

    def __init__(self, scenario: Scenario, ceiling: int) -> None:
        self._scenario = scenario
        self._ceiling = ceiling

    def room(self, now_us: int, in_use: int) -> Room:
        """See Gate."""
        return Room(max(0, int(self.limit(now_us, in_use)) - in_use), wake_us=now_us + int(TICK_S * 1e6))

    def grant(self, now_us: int, in_use: int) -> Mark:
        """See Gate."""
        del in_use
        return Mark(granted_us=now_us)

    def settle(self, mark: Mark, report: CallReport, now_us: int, in_use: int) -> None:
        """There is nothing it could learn."""

    def limit(self, now_us: int, in_use: int) -> float:
        """See Gate."""
        del in_use
        return self._scenario.bears(now_us / 1e6 - START_S, self._ceiling)


@dataclass(slots=True)
class GovernedRun(Run):
    """What came of it.

    Attributes:
        warm_up_s: what was before is not counted in `done`, `throttled` and `timeouts`, nor in `limits`.
        in_window: calls that were sent while the provider's window was used up; sent_in_pause: those of them that were sent
            after the first refusal was known. The others were under way.
    """

    warm_up_s: float = 0.0
    in_window: int = 0
    sent_in_pause: int = 0

    @property
    def median_limit(self) -> float:
        """Half of the time it was higher."""
        return median(point.limit for point in self.trace if point.at_s >= self.warm_up_s)


class _Simulation:
    """One run. What happens next: a call is finished, a refusal arrives, a caller gives up, the gate opens, a tick."""

    def __init__(self, scenario: Scenario, gate: Gate, seed: int, run: GovernedRun) -> None:
        self.scenario = scenario
        self.provider = scenario.provider
        self.gate = gate
        self.random = Random(seed)
        self.server = Server(scenario.provider)
        self.run = run
        self.now_s = 0.0
        self.wake_s = inf
        self.is_known = False  # that the window is used up
        self.in_use = 0
        self.marks: dict[int, Mark] = {}  # by id() of the call
        self.refusals: list[tuple[float, Mark, CallReport]] = []  # a queue: all take equally long
        self.deadlines: list[tuple[float, ServedCall]] = []  # the same
        self.counts = {"ok": 0, "throttled": 0, "timeout": 0}

    @property
    def now_us(self) -> int:
        return round((START_S + self.now_s) * 1e6)

    def send(self) -> None:
        """Begin as many calls as there is room for."""
        while (room := self.gate.room(self.now_us, self.in_use)).n:
            for _ in range(room.n):
                self._begin(self.gate.grant(self.now_us, self.in_use))
        self.wake_s = inf if room.wake_us is None else max(self.now_s + 1e-6, room.wake_us / 1e6 - START_S)

    def _begin(self, mark: Mark) -> None:
        self.in_use += 1
        until_s = self.scenario.closed_until_s(self.now_s)
        cap = self.provider.cap(self.now_s)
        if until_s is not None:
            self.run.in_window += 1
            self.run.sent_in_pause += self.is_known
            wait_s = until_s - self.now_s - REFUSAL_S
            refused = CallReport(outcome="throttled", status=429, pause="window", retry_after_s=max(0.0, wait_s))
            self.refusals.append((self.now_s + REFUSAL_S, mark, refused))
        elif cap and self.server.count >= cap:
            refused = CallReport(outcome="throttled", status=429, pause="burst")
            self.refusals.append((self.now_s + REFUSAL_S, mark, refused))
        else:
            call = ServedCall(self.now_s, self.provider.service_s(self.random), 0.0)
            self.server.enter(call)
            self.marks[id(call)] = mark
            if self.provider.timeout_s < inf:
                self.deadlines.append((self.now_s + self.provider.timeout_s, call))

    def advance(self, until_s: float) -> None:
        """Go on to what happens next, at most to `until_s`, and let it happen."""
        call = self.server.next_call()
        speed = self.server.speed(self.now_s)
        finish_s = self.now_s + (call.finish_at - self.server.served) / speed if call else inf
        while self.deadlines and not self.deadlines[0][1].is_out:
            self.deadlines.pop(0)
        deadline_s = self.deadlines[0][0] if self.deadlines else inf
        refusal_s = self.refusals[0][0] if self.refusals else inf
        next_s = min(finish_s, deadline_s, refusal_s, self.wake_s, self.now_s + TICK_S, until_s)
        self.server.served += (next_s - self.now_s) * speed
        self.now_s = next_s
        if next_s == refusal_s:
            _, mark, report = self.refusals.pop(0)
            self._ended(mark, report)
        elif call is not None and next_s == finish_s:
            self.server.leave(call)
            noise = self.random.lognormvariate(0.0, UNIT_NOISE)
            tokens = max(1, round(call.alone_s * UNITS_PER_S * noise)) if self.provider.reports_work else 0
            if next_s >= self.run.warm_up_s:
                self.run.latencies_s.append(next_s - call.begun_s)
            self._ended(self.marks.pop(id(call)), CallReport(usage=Usage(output_tokens=tokens) if tokens else None))
        elif next_s == deadline_s:
            late = self.deadlines.pop(0)[1]
            self.server.leave(late)
            self._ended(self.marks.pop(id(late)), CallReport(outcome="timeout"))
        elif next_s == self.wake_s:
            self.send()

    def _ended(self, mark: Mark, report: CallReport) -> None:
        self.gate.settle(mark, report, self.now_us, self.in_use)
        self.in_use -= 1
        self.is_known |= report.pause == "window"
        self.counts[report.outcome] += 1
        if self.now_s >= self.run.warm_up_s:
            self.run.done += report.outcome == "ok"
            self.run.throttled += report.outcome == "throttled"
            self.run.timeouts += report.outcome == "timeout"
        self.send()

    def trace(self) -> None:
        """Note where it stands."""
        limit = self.gate.limit(self.now_us, self.in_use)
        counts = self.counts
        self.run.trace.append(
            Point(self.now_s, limit, self.in_use, counts["ok"], counts["throttled"], counts["timeout"])
        )


def _run(scenario: Scenario, gate: Gate, *, seed: int, seconds: float, warm_up_s: float) -> GovernedRun:
    run = GovernedRun(warm_up_s=warm_up_s)
    simulation = _Simulation(scenario, gate, seed, run)
    simulation.send()
    simulation.trace()
    for n in range(1, int(seconds / TRACE_S) + 1):
        while simulation.now_s < n * TRACE_S:
            simulation.advance(n * TRACE_S)
        simulation.trace()
    run.limit = run.trace[-1].limit
    return run


def govern(
    scenario: Scenario,
    strategy: Strategy,
    *,
    seed: int,
    ceiling: int = 200,
    seconds: float = 2400.0,
    warm_up_s: float = 300.0,
) -> GovernedRun:
    """Return what the governor makes of a scenario.

    Args:
        ceiling: `parallel` of the provider as it is declared; the breaker is the default one.
        seconds: how long, with `warm_up_s` of it that does not count.
    """
    spec = ProviderSpec(name=scenario.slug, rates=Rates(parallel=ceiling), strategy=strategy)
    return _run(scenario, Governed(spec), seed=seed, seconds=seconds, warm_up_s=warm_up_s)


def oracle(
    scenario: Scenario, *, seed: int, ceiling: int = 200, seconds: float = 2400.0, warm_up_s: float = 300.0
) -> GovernedRun:
    """Return what somebody would have done who knows the provider; where there is no cap, as many as the ceiling allows."""
    return _run(scenario, Oracle(scenario, ceiling), seed=seed, seconds=seconds, warm_up_s=warm_up_s)

"""What a limit does with a provider: a small simulation of both, in virtual time. Pure and seeded.

    Provider (cap, service time, slowdown, shared cores) ◄── calls, as many as `allowed` ── LimitState ◄── sample

There is always another caller waiting, which is the hardest case: a refused call is followed at once by the next one, and
nobody pauses. `Run` has the sums, and the limit over time for a plot. `oracle` is what somebody who knows the provider's
cap would have done: the same simulation, with `fixed` at the cap.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Final

from sennit.limit.strategies import DEFAULT, LimitState, Tuning, allowed, new_state, sample
from sennit.model.provider import CallOutcome, Strategy

UNITS_PER_S: Final = 50.0  # tokens that a call writes in a second when nothing queues
REFUSAL_S: Final = 0.1  # a 429 comes back after this
UNIT_NOISE: Final = 0.15  # of time per token, from call to call
TRACE_S: Final = 5.0  # between two points of the trace
START_S: Final = 1000.0  # on the limiter's clock


def lognormal(median_s: float, sigma: float) -> Callable[[Random], float]:
    """Return a service time as model calls have it: most are short, a few are ten times as long."""
    return lambda random: median_s * random.lognormvariate(0.0, sigma)


def constant(seconds: float) -> Callable[[Random], float]:
    """Return a service time that is always the same."""
    return lambda _random: seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """How it behaves. Functions of time take seconds since the start.

    Attributes:
        service_s: draws the time that a call takes alone.
        cap: calls at once, beyond which it answers 429; 0 is no cap.
        slowdown: everything takes this many times as long.
        cores: calls that run at full speed; more than that share them evenly (processor sharing). 0 is any number.
        timeout_s: callers give up after this.
        reports_work: callers know the tokens of a call.
    """

    name: str
    service_s: Callable[[Random], float]
    cap: Callable[[float], int] = lambda _s: 0
    slowdown: Callable[[float], float] = lambda _s: 1.0
    cores: int = 0
    timeout_s: float = inf
    reports_work: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of a run."""

    at_s: float
    limit: float
    in_flight: int
    done: int
    throttled: int
    timeouts: int


@dataclass(slots=True)
class Run:
    """What came of it. `done`, `throttled` and `timeouts` count since the end of the warm-up."""

    limit: float = 0.0
    done: int = 0
    throttled: int = 0
    timeouts: int = 0
    trace: list[Point] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def throttled_share(self) -> float:
        """429s among all that was answered."""
        return self.throttled / max(1, self.done + self.throttled + self.timeouts)

    def mean_limit(self, from_s: float, to_s: float = inf) -> float:
        """Return the mean of the limit over a part of the run."""
        limits = [point.limit for point in self.trace if from_s <= point.at_s <= to_s]
        return sum(limits) / len(limits)


@dataclass(slots=True, eq=False)
class ServedCall:
    """A call that a server works on."""

    begun_s: float
    alone_s: float
    finish_at: float  # on the clock of work done, which a loaded server slows down
    is_out: bool = True


class Server:
    """Processor sharing in one number: `served` is how much work each call has had since the start, in seconds of work."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._heap: list[tuple[float, int, ServedCall]] = []
        self._serial = 0
        self.served = 0.0
        self.count = 0

    def speed(self, now_s: float) -> float:
        """Return the seconds of work that each call has in a second."""
        cores = self._provider.cores
        share = cores / self.count if cores and self.count > cores else 1.0
        return share / self._provider.slowdown(now_s)

    def enter(self, call: ServedCall) -> None:
        """Begin to work on a call."""
        self.count += 1
        self._serial += 1
        call.finish_at = self.served + call.alone_s
        heapq.heappush(self._heap, (call.finish_at, self._serial, call))

    def leave(self, call: ServedCall) -> None:
        """It is over."""
        call.is_out = False
        self.count -= 1

    def next_call(self) -> ServedCall | None:
        """Return the call that ends first."""
        while self._heap and not self._heap[0][2].is_out:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None


class _Simulation:
    """One run. Events: a call is finished, a refusal arrives, a caller gives up, the slowdown may have changed."""

    def __init__(
        self, provider: Provider, step: Callable[..., None], limit_now: Callable[[float], int], seed: int
    ) -> None:
        self.provider = provider
        self.step = step
        self.limit_now = limit_now
        self.random = Random(seed)
        self.server = Server(provider)
        self.now_s = 0.0
        self.in_flight = 0
        self.refusals: list[float] = []  # a queue: all take equally long
        self.deadlines: list[tuple[float, int, ServedCall]] = []
        self.serial = 0

    def send(self) -> None:
        while self.in_flight < self.limit_now(self.now_s):
            self.in_flight += 1
            cap = self.provider.cap(self.now_s)
            if cap and self.server.count >= cap:
                self.refusals.append(self.now_s + REFUSAL_S)
                continue
            call = ServedCall(self.now_s, self.provider.service_s(self.random), 0.0)
            self.server.enter(call)
            if self.provider.timeout_s < inf:
                self.serial += 1
                self.deadlines.append((self.now_s + self.provider.timeout_s, self.serial, call))

    def events(self, until_s: float) -> Iterator[tuple[CallOutcome, float, int]]:
        """Yield (outcome, duration in s, work) of each call as it ends; `send` is to be called after each."""
        while self.now_s < until_s:
            call = self.server.next_call()
            speed = self.server.speed(self.now_s)
            finish_s = self.now_s + (call.finish_at - self.server.served) / speed if call else inf
            while self.deadlines and not self.deadlines[0][2].is_out:
                self.deadlines.pop(0)
            deadline_s = self.deadlines[0][0] if self.deadlines else inf
            refusal_s = self.refusals[0] if self.refusals else inf
            # In steps of at most one second, so that a slowdown takes effect when it begins.
            next_s = min(finish_s, deadline_s, refusal_s, self.now_s + 1.0)
            self.server.served += (next_s - self.now_s) * speed
            self.now_s = next_s
            if next_s == refusal_s:
                self.refusals.pop(0)
                yield self._ended("throttled", REFUSAL_S, 0)
            elif call is not None and next_s == finish_s:
                self.server.leave(call)
                noise = self.random.lognormvariate(0.0, UNIT_NOISE)
                work = max(1, round(call.alone_s * UNITS_PER_S * noise)) if self.provider.reports_work else 0
                yield self._ended("ok", next_s - call.begun_s, work)
            elif next_s == deadline_s:
                late = self.deadlines.pop(0)[2]
                self.server.leave(late)
                yield self._ended("timeout", next_s - late.begun_s, 0)
            else:
                self.send()  # the cap or the ceiling may have changed

    def _ended(self, outcome: CallOutcome, duration_s: float, work: int) -> tuple[CallOutcome, float, int]:
        self.step(
            in_flight=self.in_flight,
            outcome=outcome,
            duration_us=round(duration_s * 1e6),
            work=work,
            now_us=round((START_S + self.now_s) * 1e6),
        )
        self.in_flight -= 1
        return outcome, duration_s, work


def simulate(
    provider: Provider,
    strategy: Strategy,
    *,
    seed: int,
    ceiling: int | Callable[[float], int] = 200,
    seconds: float = 1800.0,
    warm_up_s: float = 300.0,
    tuning: Tuning = DEFAULT,
) -> Run:
    """Return what the strategy makes of the provider.

    Args:
        ceiling: of the limit, or a function of the time.
        seconds: how long, with `warm_up_s` of it that does not count.
    """
    ceiling_at = ceiling if callable(ceiling) else lambda _s: ceiling
    state: LimitState = new_state(strategy, ceiling=ceiling_at(0.0))

    def step(**call: object) -> None:
        sample(state, strategy=strategy, ceiling=ceiling_at(simulation.now_s), tuning=tuning, **call)  # type: ignore[arg-type]

    def limit_now(at_s: float) -> int:
        return allowed(state, strategy=strategy, ceiling=ceiling_at(at_s))

    simulation = _Simulation(provider, step, limit_now, seed)
    run = Run()
    traced_s = -inf
    counts = {"ok": 0, "throttled": 0, "timeout": 0}
    simulation.send()
    for outcome, duration_s, _work in simulation.events(seconds):
        at_s = simulation.now_s
        counts[outcome] += 1
        if at_s >= warm_up_s:
            run.done += outcome == "ok"
            run.throttled += outcome == "throttled"
            run.timeouts += outcome == "timeout"
            if outcome == "ok":
                run.latencies_s.append(duration_s)
        simulation.send()
        if at_s >= traced_s + TRACE_S:
            traced_s = at_s
            point = Point(at_s, state.limit, simulation.in_flight, counts["ok"], counts["throttled"], counts["timeout"])
            run.trace.append(point)
    run.limit = state.limit
    return run


def oracle(provider: Provider, *, seed: int, seconds: float = 1800.0, warm_up_s: float = 300.0) -> Run:
    """Return what a fixed limit at the provider's own cap (or cores) would have done."""
    cap = provider.cap if provider.cap(0.0) else (lambda _s: provider.cores)
    return simulate(provider, "fixed", seed=seed, ceiling=cap, seconds=seconds, warm_up_s=warm_up_s)


# ---------------------------------------------------------------- the providers of the docs, the tests and the bench

MODEL_CALL: Final = lognormal(8.0, 0.9)  # median 8 s: model calls as measured by others, mostly output length

REMOTE: Final = Provider(name="lognormal, cap 40", service_s=MODEL_CALL, cap=lambda _s: 40)
CONSTANT: Final = replace(REMOTE, name="constant, cap 40", service_s=constant(8.0))
STEP: Final = replace(REMOTE, name="cap 40 → 10 → 40", cap=lambda s: 10 if 900.0 <= s < 1500.0 else 40)
UNCAPPED: Final = Provider(
    name="uncapped, 3 × slower for 300 s", service_s=MODEL_CALL, slowdown=lambda s: 3.0 if 900.0 <= s < 1200.0 else 1.0
)
LOCAL: Final = Provider(name="local server of 8", service_s=MODEL_CALL, cores=8, timeout_s=120.0)
PROVIDERS: Final = (REMOTE, CONSTANT, STEP, UNCAPPED, LOCAL)

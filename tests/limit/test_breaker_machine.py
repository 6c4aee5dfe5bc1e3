"""The breaker against a simple model of it, along random histories: lost probes, late results, hands, clocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sennit.limit.breaker import BreakerState, admit, isolate, reset, room, settle, trip
from sennit.model.provider import BreakerSpec, CallOutcome

S = 1_000_000
SPEC = BreakerSpec(failures=3, successes=2, open_s=10, half_open=2, probe_s=30)
OUTCOMES = st.sampled_from(["ok", "error", "timeout", "throttled", "overloaded", "refused", "cancelled"])


@dataclass(eq=False)
class Call:
    """A call as the model remembers it: an object, where the breaker has numbers."""

    period: int
    generation: int
    began_us: int


@dataclass
class Model:
    """What the drawing at the top of breaker.py says, with unbounded memory and nothing clever."""

    phase: Literal["closed", "open", "half_open", "isolated"] = "closed"
    period: int = 0
    since_us: int = 0
    in_a_row: int = 0
    good: int = 0
    probes: list[Call] = field(default_factory=list)

    def enter(self, phase: Literal["closed", "open", "half_open", "isolated"], now_us: int) -> None:
        self.phase, self.since_us, self.period = phase, now_us, self.period + 1
        self.in_a_row = self.good = 0
        self.probes = []

    def free(self, now_us: int) -> int | None:
        match self.phase:
            case "closed":
                return None
            case "isolated":
                return 0
            case "open":
                return SPEC.half_open if now_us >= self.since_us + SPEC.open_s * S else 0
            case "half_open":
                return SPEC.half_open - sum(now_us < p.began_us + SPEC.probe_s * S for p in self.probes)

    def begin(self, call: Call, now_us: int) -> None:
        if self.phase == "open":
            self.enter("half_open", now_us)
        call.period = self.period
        if self.phase == "half_open":
            if len(self.probes) == SPEC.half_open:
                self.probes.remove(next(p for p in self.probes if now_us >= p.began_us + SPEC.probe_s * S))
            self.probes.append(call)

    def end(self, call: Call, outcome: CallOutcome, now_us: int) -> None:
        has_failed = outcome in {"error", "timeout"}
        if call.period != self.period:
            return
        if self.phase == "closed" and outcome in {"ok", "error", "timeout"}:
            self.in_a_row = self.in_a_row + 1 if has_failed else 0
            if self.in_a_row == SPEC.failures:
                self.enter("open", now_us)
        elif self.phase == "half_open" and call in self.probes:
            self.probes.remove(call)
            self.good += outcome == "ok"
            if has_failed:
                self.enter("open", now_us)
            elif self.good == SPEC.successes:
                self.enter("closed", now_us)


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_us = 1_700_000_000 * S
        self.state = BreakerState()
        self.model = Model()
        self.out: list[Call] = []

    @rule(seconds=st.sampled_from([0, 0.001, 1, 9.999, 10, 30, 3600]))
    def time_passes(self, seconds: float) -> None:
        self.now_us += round(seconds * S)

    @precondition(lambda self: self.model.free(self.now_us) != 0)
    @rule()
    def a_call_begins(self) -> None:
        call = Call(0, admit(SPEC, self.state, self.now_us), self.now_us)
        self.model.begin(call, self.now_us)
        self.out.append(call)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=OUTCOMES)
    def a_call_ends(self, data: st.DataObject, outcome: CallOutcome) -> None:
        """Any that is out: the newest, or one of three phases ago. One that is never drawn is lost."""
        call = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.state.at
        moved = settle(SPEC, self.state, generation=call.generation, outcome=outcome, now_us=self.now_us)
        self.model.end(call, outcome, self.now_us)
        assert moved == (self.state.at != before)

    @precondition(lambda self: self.model.phase == "closed")
    @rule()
    def a_row_of_calls_fails(self) -> None:
        while self.model.phase == "closed":
            self.a_call_begins()
            call = self.out.pop()
            settle(SPEC, self.state, generation=call.generation, outcome="error", now_us=self.now_us)
            self.model.end(call, "error", self.now_us)

    @rule()
    def somebody_isolates_it(self) -> None:
        isolate(self.state, self.now_us)
        self.model.enter("isolated", self.now_us)

    @rule(hand=st.sampled_from(["reset", "trip"]))
    def somebody_resets_or_trips_it(self, hand: str) -> None:
        (reset if hand == "reset" else trip)(self.state, self.now_us)
        self.model.enter("closed" if hand == "reset" else "open", self.now_us)

    @rule()
    def the_process_restarts(self) -> None:
        self.state = msgspec.json.decode(msgspec.json.encode(self.state), type=BreakerState)

    @invariant()
    def it_is_as_the_model(self) -> None:
        free, when_us = room(SPEC, self.state, self.now_us)
        assert self.state.at == self.model.phase
        assert free == self.model.free(self.now_us)
        if when_us is not None:
            assert when_us > self.now_us
            assert self.model.free(when_us) != 0
            assert self.model.free(when_us - 1) == 0

    @invariant()
    def it_stays_small(self) -> None:
        assert len(self.state.probes) <= SPEC.half_open
        assert len(msgspec.json.encode(self.state)) < 500


TestBreakerMachine = BreakerMachine.TestCase

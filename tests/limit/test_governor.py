"""The governor: limit, rates, pause and breaker as one answer, and what each report changes of it."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sennit.limit import governor
from sennit.limit.governor import GovernorState, Mark, Room
from sennit.model.provider import (
    BreakerSpec,
    CallOutcome,
    CallReport,
    PauseKind,
    ProviderSpec,
    RateFeedback,
    Rates,
    Usage,
)

NOW = 1_700_000_000_000_000
S = 1_000_000


class Desk:
    """A provider with the permits that are out."""

    def __init__(self, spec: ProviderSpec) -> None:
        self.spec = spec
        self.state = governor.fresh(spec, NOW)
        self.now_us = NOW
        self.out: list[Mark] = []

    def room(self, *, model: str = "", tokens: int = 0) -> Room:
        of_model = sum(mark.model == model for mark in self.out)
        return governor.room(
            self.spec, self.state, self.now_us, in_use=len(self.out), model=model, model_in_use=of_model, tokens=tokens
        )

    def take(self, n: int = 1, *, model: str = "", tokens: int = 0) -> list[Mark]:
        marks = []
        for _ in range(n):
            assert self.room(model=model, tokens=tokens).n > 0
            marks.append(
                governor.grant(self.spec, self.state, self.now_us, in_use=len(self.out), model=model, tokens=tokens)
            )
            self.out.append(marks[-1])
        return marks

    def end(self, mark: Mark, report: CallReport | None) -> None:
        governor.settle(self.spec, self.state, mark, report, self.now_us, in_use=len(self.out))
        self.out.remove(mark)


def desk(parallel: int = 8, **options: object) -> Desk:
    rates = Rates(parallel=parallel, **{k: options.pop(k) for k in ("rpm", "tpm", "input_tpm") if k in options})  # type: ignore[arg-type]
    return Desk(ProviderSpec(**({"name": "p", "rates": rates, "strategy": "fixed"} | options)))  # type: ignore[arg-type]


def refusal(kind: PauseKind, after_s: float | None = None) -> CallReport:
    return CallReport(outcome="throttled", status=429, pause=kind, retry_after_s=after_s)


def test_a_full_provider_says_limit_and_does_not_count_as_closed() -> None:
    d = desk(2)
    d.take(2)

    assert d.room() == Room(0, "limit")


def test_a_singleton_has_one_permit_whatever_was_declared() -> None:
    d = desk(8, singleton=True)
    d.take()

    assert d.room().n == 0


def test_a_model_has_its_own_ceiling_within_the_provider() -> None:
    d = desk(3, models={"opus": Rates(parallel=1)})
    d.take(model="opus")

    assert d.room(model="opus") == Room(0, "limit")
    assert d.room(model="haiku").n == 2


def test_requests_per_minute_hold_back_until_the_next_may_be_sent() -> None:
    d = desk(100, rpm=60)
    sent = d.room().n
    d.take(sent)
    for mark in list(d.out):
        d.end(mark, CallReport())

    held = d.room()

    assert (held.n, held.reason, held.is_closed) == (0, "rate", False)
    assert held.wake_us is not None
    assert 0 < held.wake_us - NOW <= S
    d.now_us = held.wake_us
    assert d.room().n == 1


def test_tokens_are_reserved_by_the_estimate_and_settled_with_what_was_used() -> None:
    d = desk(100, tpm=6_000)
    (mark,) = d.take(tokens=1_000)
    assert d.room(tokens=1_000).reason == "rate"

    d.end(mark, CallReport(usage=Usage(input_tokens=50, output_tokens=50)))

    assert d.room(tokens=900).n == 1
    assert d.state.counts.input_tokens == d.state.counts.output_tokens == 50


def test_a_call_that_was_turned_away_costs_no_tokens_and_one_without_usage_costs_its_estimate() -> None:
    for report, is_given_back in (
        (CallReport(outcome="refused", status=400), True),
        (None, True),
        (CallReport(), False),
        (CallReport(outcome="timeout"), False),
    ):
        d = desk(100, tpm=6_000, breaker=None)
        (mark,) = d.take(tokens=1_000)
        d.end(mark, report)

        assert (d.room(tokens=1_000).n == 1) is is_given_back, report


def test_what_the_headers_say_is_left_is_believed_until_their_reset() -> None:
    d = desk(100)
    (mark,) = d.take()

    d.end(mark, CallReport(requests=RateFeedback(limit=50, remaining=0, reset_s=20)))

    assert d.room() == Room(0, "rate", NOW + 20 * S)
    d.now_us += 20 * S
    assert d.room().n == 100


def test_a_window_closes_the_provider_and_does_not_lower_its_limit() -> None:
    d = desk(8, strategy="aimd")
    (mark,) = d.take()
    before = d.state.limit.limit

    d.end(mark, refusal("window", 3600))

    held = d.room()
    assert (held.n, held.reason, held.is_closed) == (0, "pause", True)
    assert held.wake_us is not None and held.wake_us >= NOW + 3600 * S  # noqa: PT018 - narrows the type
    assert d.state.limit.limit == before


def test_a_burst_lowers_the_limit_and_does_not_close_the_provider() -> None:
    d = desk(8, strategy="aimd")
    (mark, *_) = d.take(4)
    before = d.state.limit.limit

    d.end(mark, refusal("burst"))

    held = d.room()
    assert (held.n, held.reason, held.is_closed) == (0, "pause", False)
    assert d.state.limit.limit < before


def test_five_failures_open_the_breaker_and_refusals_do_not() -> None:
    d = desk(8)
    for _ in range(5):
        (mark,) = d.take()
        d.end(mark, CallReport(outcome="refused", status=404))
    assert d.room().n == 8

    for _ in range(5):
        (mark,) = d.take()
        d.end(mark, CallReport(outcome="error", status=500))

    held = d.room()
    assert held == Room(0, "breaker", NOW + 60 * S, is_closed=True)
    d.now_us += 60 * S
    assert d.room().n == 3


def test_a_half_open_permit_that_is_dropped_is_given_to_another() -> None:
    d = desk(8, breaker=BreakerSpec(failures=1, half_open=1))
    (mark,) = d.take()
    d.end(mark, CallReport(outcome="error"))
    d.now_us += 60 * S
    (probe,) = d.take()
    assert d.room().n == 0

    d.end(probe, None)

    assert d.room().n == 1


def test_isolated_stays_closed_until_reset_also_without_a_breaker() -> None:
    d = desk(8, breaker=None)
    governor.isolate(d.spec, d.state, NOW)
    d.now_us += 10**12
    assert d.room() == Room(0, "breaker", None, is_closed=True)
    assert governor.facts(d.spec, d.state, d.now_us, in_use=0).breaker == "isolated"

    governor.reset(d.spec, d.state, d.now_us)

    assert d.room().n == 8


def test_a_ceiling_that_is_lowered_below_what_is_out_gives_nothing_until_it_is_under() -> None:
    d = desk(8)
    marks = d.take(6)
    lower = msgspec.structs.replace(d.spec, rates=Rates(parallel=3))
    governor.redeclare(d.spec, lower, d.state, NOW)
    d.spec = lower

    rooms = []
    for mark in marks:
        rooms.append(d.room().n)
        d.end(mark, CallReport())

    assert rooms == [0, 0, 0, 0, 1, 2]


def test_every_change_raises_the_revision_and_looking_does_not() -> None:
    d = desk(8, rpm=60)
    before = d.state.revision
    d.room()
    governor.facts(d.spec, d.state, NOW, in_use=0)
    assert d.state.revision == before

    (mark,) = d.take()
    d.end(mark, CallReport())

    assert d.state.revision == before + 2


OUTCOMES: list[CallOutcome] = ["ok", "throttled", "overloaded", "timeout", "error", "refused", "cancelled"]

REPORTS = st.builds(
    CallReport,
    outcome=st.sampled_from(OUTCOMES),
    pause=st.sampled_from(["", "burst", "minute", "window"]),
    retry_after_s=st.none() | st.floats(0, 1e6),
    usage=st.none() | st.builds(Usage, input_tokens=st.integers(0, 10_000), output_tokens=st.integers(0, 10_000)),
    requests=st.none()
    | st.builds(RateFeedback, remaining=st.none() | st.integers(0, 100), reset_s=st.none() | st.floats(0, 100)),
)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "end", "wait"]), st.integers(0, 50), st.none() | REPORTS), max_size=60
    ),
    strategy=st.sampled_from(["fixed", "aimd", "gradient", "vegas"]),
    rpm=st.sampled_from([0, 30, 600]),
    has_breaker=st.booleans(),
)
def test_whatever_is_reported_no_more_is_given_than_declared_and_it_opens_again(
    steps: list[tuple[str, int, CallReport | None]], strategy: str, rpm: int, *, has_breaker: bool
) -> None:
    d = desk(6, rpm=rpm, tpm=60_000, strategy=strategy, breaker=BreakerSpec() if has_breaker else None)
    for what, number, report in steps:
        if what == "take":
            d.take(min(d.room(tokens=number).n, 1), tokens=number)
        elif what == "end" and d.out:
            d.end(d.out[number % len(d.out)], report)
        else:
            d.now_us += number * S
        assert len(d.out) <= 6
        stored = msgspec.json.decode(msgspec.json.encode(d.state), type=GovernorState)
        assert stored == d.state, "it survives the store"
        assert len(msgspec.json.encode(d.state)) < 4096
    for mark in list(d.out):
        d.end(mark, None)
    for _ in range(200):
        held = d.room()
        if held.n:
            return
        assert held.wake_us is not None, held
        assert held.wake_us > d.now_us
        d.now_us = held.wake_us
    raise AssertionError(f"still closed: {d.room()}")

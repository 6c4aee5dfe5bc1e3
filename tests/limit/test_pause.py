"""Pauses: what a refusal holds back, what ends it, and what says nothing new."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sennit.limit import pause
from sennit.limit.pause import JITTER_US_MAX, PROBE_US, PauseState
from sennit.model.provider import CallReport, PauseKind

NOW = 1_700_000_000_000_000
S = 1_000_000
DAY_S = 86_400.0


def refused(
    state: PauseState, kind: PauseKind, *, after_s: float | None = None, epoch: int | None = None, now_us: int = NOW
) -> None:
    report = CallReport(outcome="throttled", status=429, pause=kind, retry_after_s=after_s)
    sent_in = state.epoch if epoch is None else epoch
    pause.throttled(state, report, epoch=sent_in, now_us=now_us, pause_s_max=8 * DAY_S, name="p")


def test_a_window_pauses_until_its_reset_and_a_little_more() -> None:
    state = PauseState()

    refused(state, "window", after_s=10)

    assert state.kind == "window"
    assert NOW + 10 * S <= state.until_us <= NOW + 10 * S + JITTER_US_MAX
    assert pause.allowed(state, NOW) == (0, state.until_us)
    assert pause.allowed(state, state.until_us - 1) == (0, state.until_us)
    assert pause.allowed(state, state.until_us) == (1, None)


def test_one_probe_is_let_through_and_its_success_begins_the_ramp() -> None:
    state = PauseState()
    refused(state, "minute", after_s=5)
    now_us = state.until_us

    assert pause.sent(state, now_us)
    assert pause.allowed(state, now_us) == (0, now_us + PROBE_US)

    pause.answered(state, epoch=state.epoch, passed=True, limit=100)
    seen = []
    for _ in range(4):
        n, _ = pause.allowed(state, now_us)
        assert n is not None
        seen.append(n)
        for _ in range(n):
            assert not pause.sent(state, now_us)
        assert pause.allowed(state, now_us) == (0, None)
        for _ in range(n):
            pause.answered(state, epoch=state.epoch, passed=True, limit=100)
    assert seen == [2, 4, 8, 16]


def test_the_ramp_ends_at_the_limit() -> None:
    state = PauseState()
    refused(state, "minute", after_s=5)
    now_us = state.until_us
    pause.sent(state, now_us)

    for _ in range(4):
        pause.answered(state, epoch=state.epoch, passed=True, limit=5)

    assert state.is_open
    assert pause.allowed(state, now_us) == (None, None)


def test_a_probe_that_is_refused_pauses_again_and_for_longer_each_time() -> None:
    state, now_us, lengths = PauseState(), NOW, []
    for _ in range(14):
        refused(state, "window", after_s=0.5, now_us=now_us)
        lengths.append((state.until_us - now_us) // S)
        now_us = state.until_us
        assert pause.sent(state, now_us)

    assert lengths == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600]


def test_a_volley_of_refusals_is_one_pause() -> None:
    one, volley = PauseState(), PauseState()
    refused(one, "window")
    for _ in range(40):
        refused(volley, "window", epoch=0)

    assert (volley.level, volley.epoch, volley.until_us) == (one.level, one.epoch, one.until_us)


def test_of_a_volley_the_latest_reset_counts() -> None:
    state = PauseState()
    for after_s in (10.0, 60.0, 20.0):
        refused(state, "minute", after_s=after_s, epoch=0)

    assert NOW + 60 * S <= state.until_us <= NOW + 60 * S + JITTER_US_MAX


def test_a_success_that_was_let_through_before_the_pause_does_not_lift_it() -> None:
    state = PauseState()
    pause.sent(state, NOW)
    before = state.epoch
    refused(state, "window", after_s=10)

    pause.answered(state, epoch=before, passed=True, limit=1)

    assert pause.allowed(state, NOW) == (0, state.until_us)


def test_a_lost_probe_frees_its_place() -> None:
    state = PauseState()
    refused(state, "window", after_s=10)
    pause.sent(state, state.until_us)

    pause.answered(state, epoch=state.epoch, passed=False, limit=10)

    assert pause.allowed(state, state.until_us) == (1, None)


def test_a_probe_that_takes_long_and_is_not_refused_has_passed() -> None:
    state = PauseState()
    refused(state, "window", after_s=10)
    begun_us = state.until_us
    pause.sent(state, begun_us)

    later_us = begun_us + PROBE_US
    assert pause.allowed(state, later_us) == (1, None)
    assert not pause.sent(state, later_us)
    assert (state.ramp, state.out) == (2, 2)


def test_a_burst_holds_back_for_a_moment_and_probes_nothing() -> None:
    state = PauseState()

    refused(state, "burst")

    assert pause.allowed(state, NOW) == (0, NOW + S // 2)
    assert pause.allowed(state, NOW + S // 2) == (None, None)


def test_bursts_in_a_row_hold_back_longer_and_a_success_ends_the_row() -> None:
    state, now_us, lengths = PauseState(), NOW, []
    for _ in range(9):
        refused(state, "burst", now_us=now_us)
        lengths.append((state.hold_us - now_us) / S)
        now_us = state.hold_us
    assert lengths == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]

    pause.answered(state, epoch=state.epoch, passed=True, limit=10)
    refused(state, "burst", now_us=now_us)

    assert state.hold_us - now_us == S // 2


def test_an_absurd_reset_is_cut_to_the_longest_pause_there_is() -> None:
    state = PauseState()

    refused(state, "window", after_s=1e12)

    assert state.until_us <= NOW + 8 * 86_400 * S + JITTER_US_MAX


def test_a_burst_in_a_pause_does_not_end_it() -> None:
    state = PauseState()
    refused(state, "window", after_s=60)

    refused(state, "burst", after_s=1, epoch=0)

    assert pause.allowed(state, NOW + 2 * S) == (0, state.until_us)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "ok", "lost", "burst", "minute", "window", "wait"]),
            st.integers(0, 40),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_happens_it_opens_again_and_sends_at_most_one_probe(steps: list[tuple[str, int, bool]]) -> None:
    state, now_us, under_way = PauseState(), NOW, list[int]()
    for what, seconds, says in steps:
        n, when_us = pause.allowed(state, now_us)
        assert n is None or n >= 0
        assert when_us is None or when_us > now_us
        if what == "send" and n != 0:
            is_probe = pause.sent(state, now_us)
            assert not is_probe or state.out == 1
            under_way.append(state.epoch)
        elif what == "wait":
            now_us += seconds * S
        elif under_way and what in {"ok", "lost"}:
            pause.answered(state, epoch=under_way.pop(0), passed=what == "ok", limit=8)
        elif under_way and what in {"burst", "minute", "window"}:
            epoch = under_way.pop(0)
            refused(state, what, after_s=float(seconds) if says else None, epoch=epoch, now_us=now_us)  # type: ignore[arg-type]
    for epoch in under_way:
        pause.answered(state, epoch=epoch, passed=False, limit=8)
    for _ in range(20):
        n, when_us = pause.allowed(state, now_us)
        if n is None:
            return
        if n == 0:
            assert when_us is not None, "nobody would ever look again"
            now_us = when_us
            continue
        pause.sent(state, now_us)
        pause.answered(state, epoch=state.epoch, passed=True, limit=8)
    raise AssertionError(f"still closed: {state}")

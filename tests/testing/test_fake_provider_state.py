"""The fake provider's rules without a server: on a clock of our own, and on virtual time."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.testing.provider_bench import Bench
from sennit.testing.provider_headers import duration, rfc3339
from sennit.testing.provider_knobs import Constant, Knobs, Latency, Lognormal, Steps, Uniform, latency_s
from sennit.testing.provider_limits import Limits, Rate
from sennit.testing.provider_statistics import Books
from sennit.testing.simloop import SimLoop

# ---------------------------------------------------------------- rates

ARRIVALS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30)), max_size=60)


@given(kind=st.sampled_from(["bucket", "fixed"]), limit=st.integers(1, 50), arrivals=ARRIVALS)
def test_property_a_rate_never_grants_more_than_it_refills(
    kind: str, limit: int, arrivals: list[tuple[float, int]]
) -> None:
    rate = Rate(limit, 60.0, "bucket" if kind == "bucket" else "fixed", 0.0)
    now_s, granted = 0.0, 0
    for pause_s, asked in arrivals:
        now_s += pause_s
        if not rate.wait_s(now_s, asked):
            rate.take(asked)
            granted += asked
        standing = rate.standing(now_s)
        assert 0 <= standing.remaining <= limit
        assert standing.reset_s >= 0

    minutes = now_s / 60.0 if kind == "bucket" else now_s // 60.0
    credit = 30 if kind == "bucket" else 30 * (minutes + 1)  # what can never fit passes when the rate is whole
    assert granted <= limit * (minutes + 1) + credit


@given(kind=st.sampled_from(["bucket", "fixed"]), limit=st.integers(1, 50), arrivals=ARRIVALS)
def test_property_whoever_waits_as_long_as_told_gets_it(
    kind: str, limit: int, arrivals: list[tuple[float, int]]
) -> None:
    rate = Rate(limit, 60.0, "bucket" if kind == "bucket" else "fixed", 0.0)
    now_s = 0.0
    for pause_s, asked in arrivals:
        now_s += pause_s
        waits = 0
        while (wait_s := rate.wait_s(now_s, asked)) and waits < 40:
            now_s += wait_s
            waits += 1
        assert waits <= 2  # the second is a rounding error long
        rate.take(asked)


def test_a_refusal_charges_nothing() -> None:
    limits = Limits(Knobs(rpm=10, tpm=15), now_s=0.0)
    assert limits.admit(0.0, in_service=0, input_tokens=5, output_tokens=5) is None

    refusal = limits.admit(0.0, in_service=0, input_tokens=5, output_tokens=5)

    assert refusal is not None
    assert (refusal.kind, refusal.dimension) == ("minute", "tokens")
    assert refusal.wait_s == pytest.approx(20.0)
    assert limits.rates(0.0)["requests"].remaining == 9


def test_the_longest_wait_of_all_rates_is_the_one_that_is_told() -> None:
    limits = Limits(Knobs(rpm=60, output_tpm=10), now_s=0.0)
    for _ in range(2):
        refusal = limits.admit(0.0, in_service=0, input_tokens=1, output_tokens=10)

    assert refusal is not None
    assert refusal.dimension == "output"
    assert refusal.wait_s == pytest.approx(60.0)


def test_a_window_begins_with_its_first_request_and_ends_on_time() -> None:
    limits = Limits(Knobs(window_requests=2, window_s=100.0), now_s=0.0)

    def ask(now_s: float) -> float | None:
        refusal = limits.admit(now_s, in_service=0, input_tokens=1, output_tokens=1)
        return None if refusal is None else refusal.wait_s

    assert [ask(50.0), ask(60.0), ask(70.0), ask(149.0)] == [None, None, 80.0, 1.0]
    assert [ask(150.0), ask(151.0), ask(152.0)] == [None, None, 98.0]


def test_a_minute_can_lie_too() -> None:
    limits = Limits(Knobs(rpm=1, keeps_refusing_s=30.0), now_s=0.0)

    def ask(now_s: float) -> float | None:
        refusal = limits.admit(now_s, in_service=0, input_tokens=1, output_tokens=1)
        return None if refusal is None else refusal.wait_s

    assert [ask(0.0), ask(0.0), ask(50.0)] == [None, 60.0, 10.0]
    assert [ask(60.0), ask(89.0), ask(90.0)] == [60.0, 60.0, None]


# ---------------------------------------------------------------- pauses


def test_a_pause_is_one_however_many_are_refused_in_it() -> None:
    books = Books(log_max=10)
    for now_s in (0.0, 1.0, 2.0):
        books.arrived(now_s)
        books.refuse("window", now_s, 10.0 - now_s)
    books.arrived(11.0)
    books.ended(11.0, 12.0, 200, is_ok=True)
    books.arrived(13.0)

    (pause,) = books.pauses
    assert (pause.announced_s, pause.until_s, pause.requests) == (0.0, 10.0, 2)
    assert (pause.first_arrival_s, pause.first_ok_s) == (11.0, 12.0)
    assert books.requests_during_pause == 2


def test_a_success_that_began_before_the_pause_is_not_the_first_after_it() -> None:
    books = Books(log_max=10)
    books.refuse("minute", 0.0, 5.0)
    books.ended(-1.0, 6.0, 200, is_ok=True)

    assert books.pauses[0].first_ok_s is None


def test_the_log_keeps_the_newest() -> None:
    books = Books(log_max=2)
    for now_s in (1.0, 2.0, 3.0):
        books.ended(now_s, now_s, 200, is_ok=True)

    assert books.statistics(connections=0, with_log=True).log == ((2.0, 200), (3.0, 200))


# ---------------------------------------------------------------- the bench


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop(seed=1)
    yield loop
    loop.close()


def ends_of(
    loop: SimLoop, bench: Bench, jobs: Sequence[tuple[float, float]], more: Callable[[], Awaitable[None]] | None = None
) -> list[float]:
    """Return when each job of (beginning, work) has ended, all in seconds."""

    async def one(begins_s: float, work_s: float) -> float:
        await asyncio.sleep(begins_s)  # sleep: virtual time
        async with bench.place():
            await bench.work(work_s)
        return round(loop.time() - started_s, 6)

    async def all_of_them() -> list[float]:
        tasks: list[Coroutine[object, object, float]] = [one(*job) for job in jobs]
        results = await asyncio.gather(*tasks, *([more()] if more else []))
        return [result for result in results if result is not None]

    started_s = loop.time()
    return loop.run_until_complete(all_of_them())


def configured(loop: SimLoop, slots: int, mode: str) -> Bench:
    async def configure() -> Bench:
        bench = Bench()
        bench.configure(slots, "share" if mode == "share" else "queue")
        return bench

    return loop.run_until_complete(configure())


def test_without_slots_everybody_is_worked_on(loop: SimLoop) -> None:
    assert ends_of(loop, configured(loop, 0, "share"), [(0, 4)] * 3) == [4, 4, 4]


def test_a_line_serves_in_order(loop: SimLoop) -> None:
    assert ends_of(loop, configured(loop, 2, "queue"), [(0, 4), (1, 4), (2, 4), (3, 4)]) == [4, 5, 8, 9]


def test_shared_slots_slow_everybody_down_alike(loop: SimLoop) -> None:
    bench = configured(loop, 1, "share")

    assert ends_of(loop, bench, [(0, 4), (0, 4)]) == [8, 8]
    # Alone for 1 s, shared until the short one has had its 1 s of work at half speed, alone again.
    assert ends_of(loop, bench, [(0, 4), (1, 1)]) == [5, 3]


def test_shared_slots_are_not_slow_while_there_are_enough(loop: SimLoop) -> None:
    assert ends_of(loop, configured(loop, 3, "share"), [(0, 4)] * 3 + [(4, 3)] * 6) == [4] * 3 + [10] * 6


def test_more_slots_in_the_middle_speed_up_what_is_being_worked_on(loop: SimLoop) -> None:
    bench = configured(loop, 1, "share")

    async def more() -> None:
        await asyncio.sleep(4)  # sleep: virtual time
        bench.configure(2, "share")

    assert ends_of(loop, bench, [(0, 4), (0, 4)], more) == [6, 6]


@pytest.mark.parametrize("mode", ["share", "queue"])
@pytest.mark.parametrize("cancelled_at_s", [0.5, 1.0, 2.0])
def test_whoever_goes_away_leaves_its_place_to_the_others(loop: SimLoop, mode: str, cancelled_at_s: float) -> None:
    bench = configured(loop, 1, mode)

    async def more() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(cancelled_at_s), bench.place():
                await bench.work(100)

    ends = ends_of(loop, bench, [(0.1, 4), (0.2, 4)], more)

    assert max(ends) <= 8 + cancelled_at_s + 0.2
    assert ends_of(loop, bench, [(0, 4)]) == [4]


@pytest.mark.parametrize("seed", range(4))
def test_whoever_goes_away_when_it_is_its_turn_hands_the_turn_on(seed: int) -> None:
    loop = SimLoop(seed)  # which of the two is first in line is drawn from it
    bench = configured(loop, 1, "queue")

    async def enter() -> None:
        async with bench.place():
            pass

    async def scenario() -> None:
        async with bench.place():
            tasks = [asyncio.create_task(enter()) for _ in range(2)]
            await asyncio.sleep(1)  # sleep: virtual time; both are in line
        tasks[0].cancel()  # one of them has the turn since the line above, and has not run since
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert [type(result) for result in results] == [asyncio.CancelledError, type(None)]

    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


@given(
    slots=st.integers(0, 3),
    mode=st.sampled_from(["share", "queue"]),
    jobs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
)
def test_property_work_is_neither_lost_nor_done_faster_than_it_can(
    slots: int, mode: str, jobs: list[tuple[int, int]]
) -> None:
    loop = SimLoop(seed=3)
    try:
        ends = ends_of(loop, configured(loop, slots, mode), [(float(at), float(work)) for at, work in jobs])
    finally:
        loop.close()

    assert all(end >= at + work - 1e-5 for end, (at, work) in zip(ends, jobs, strict=True))
    if slots and jobs:
        busy_s = sum(work for _, work in jobs)
        assert max(ends) >= busy_s / slots - 1e-5
        assert max(ends) <= max(at for at, _ in jobs) + busy_s + 1e-5


# ---------------------------------------------------------------- latencies and texts


@pytest.mark.parametrize(
    ("latency", "median_s"), [(2.0, 2.0), (Constant(2.0), 2.0), (Uniform(1.0, 3.0), 2.0), (Lognormal(8.0, 0.5), 8.0)]
)
def test_latencies_have_the_median_they_say(latency: Latency, median_s: float) -> None:
    rng = random.Random(1)

    assert statistics.median(latency_s(latency, rng, 0.0) for _ in range(5000)) == pytest.approx(median_s, rel=0.05)


def test_a_lognormal_latency_has_its_sigma_and_its_bound() -> None:
    rng = random.Random(1)
    samples = sorted(latency_s(Lognormal(8.0, 0.5, max_s=30.0), rng, 0.0) for _ in range(5000))

    assert samples[int(0.8413 * 5000)] == pytest.approx(8.0 * 1.6487, rel=0.05)  # one sigma up is e**0.5
    assert samples[-1] == 30.0


def test_steps_follow_the_time_since_they_were_set() -> None:
    steps = Steps(((0.0, 1.0), (30.0, Constant(4.0))))

    assert [latency_s(steps, random.Random(1), at_s) for at_s in (0.0, 29.9, 30.0, 99.0)] == [1.0, 1.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.02, "20ms"),
        (1.0, "1s"),
        (8.64, "8.64s"),
        (360.0, "6m0s"),
        (5011.0, "1h23m31s"),
        (3600.0, "1h0m0s"),
    ],
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_read_as_anthropic_writes_them() -> None:
    assert rfc3339(1711483199.2) == "2024-03-26T20:00:00Z"

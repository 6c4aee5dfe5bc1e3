"""The breaker of one process: permits and rejections as values, guards, listeners, and many OS threads at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sennit.errors import CircuitOpen, SettingsError, UsageError
from sennit.limit import breaker as breaker_module
from sennit.limit.breaker_live import Breaker, BreakerPermit
from sennit.limit.rejected import Rejected
from sennit.model.provider import BreakerSpec, CallOutcome
from sennit.sync.virtual import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def permit_of(breaker: Breaker) -> BreakerPermit:
    permit = breaker.try_acquire()
    assert permit
    return permit


def fail(breaker: Breaker, times: int = 5) -> None:
    for _ in range(times):
        permit_of(breaker).settle("error")


def test_a_rejection_is_false_and_says_when_to_come_back(clock: VirtualClock) -> None:
    breaker = Breaker(now_us=clock.now_us)
    fail(breaker)
    clock.advance(20)

    answer = breaker.try_acquire()

    assert not answer
    assert answer == Rejected(40.0, "breaker")


def test_it_opens_probes_and_closes(clock: VirtualClock) -> None:
    seen: list[tuple[str, str]] = []
    breaker = Breaker(now_us=clock.now_us, on_change=lambda before, after: seen.append((before, after)))
    fail(breaker)
    clock.advance(60)

    probes = [permit_of(breaker) for _ in range(3)]
    assert all(probe.is_probe for probe in probes)
    assert not breaker.try_acquire()
    probes[0].settle()
    probes[1].settle()

    assert breaker.state == "closed"
    assert not permit_of(breaker).is_probe
    assert seen == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


def test_keywords_go_over_the_spec() -> None:
    assert Breaker(BreakerSpec(failures=9, open_s=5), failures=2).spec == BreakerSpec(failures=2, open_s=5)


def test_a_knob_out_of_its_bounds_is_refused() -> None:
    with pytest.raises(SettingsError, match="half_open"):
        Breaker(half_open=0)


def test_a_permit_is_settled_once() -> None:
    permit = permit_of(Breaker())
    permit.settle()

    with pytest.raises(UsageError, match="settled twice"):
        permit.settle("error")


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize(
    ("error", "counted"),
    [(ValueError("bad"), 1), (TimeoutError(), 1), (KeyboardInterrupt(), 0), (asyncio.CancelledError(), 0)],
)
def test_a_guard_takes_the_outcome_from_the_exception(error: BaseException, counted: int) -> None:
    breaker = Breaker()

    with pytest.raises(type(error)), breaker.guard():
        raise error

    assert breaker.statistics().failures == counted


def test_a_guard_raises_while_it_is_open_and_the_body_is_not_run(clock: VirtualClock) -> None:
    breaker = Breaker(name="search", now_us=clock.now_us)
    fail(breaker)

    with pytest.raises(CircuitOpen, match="search") as caught, breaker.guard():
        pytest.fail("the body was run")

    assert caught.value.retry_after_s == 60.0
    assert breaker.statistics().rejected == 1


async def in_guard(breaker: Breaker) -> BreakerPermit:
    async with breaker.guard() as permit:
        await asyncio.sleep(0)
        return permit


def test_a_guard_works_in_async_code_and_a_cancelled_probe_gives_its_place_back(clock: VirtualClock) -> None:
    breaker = Breaker(half_open=1, now_us=clock.now_us)
    breaker.trip()
    clock.advance(60)

    async def main() -> None:
        task = asyncio.create_task(in_guard(breaker))
        await asyncio.sleep(0)
        assert not breaker.try_acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await in_guard(breaker)).is_probe

    asyncio.run(main())
    assert breaker.state == "half_open"


def test_a_permit_settled_inside_a_guard_is_not_settled_again() -> None:
    breaker = Breaker()

    with breaker.guard() as permit:
        permit.settle("error")

    assert breaker.statistics().failures == 1


def test_classify_says_what_an_exception_means() -> None:
    def classify(error: BaseException) -> CallOutcome:
        return "refused" if isinstance(error, KeyError) else "error"

    breaker = Breaker(classify=classify)

    with pytest.raises(KeyError), breaker.guard():
        raise KeyError

    assert breaker.statistics().failures == 0


def test_a_guard_is_entered_once() -> None:
    guard = Breaker().guard()
    with guard:
        pass

    with pytest.raises(UsageError, match="twice"), guard:
        pytest.fail("the body was run")


# ---------------------------------------------------------------- time


def test_the_duration_is_measured_unless_it_is_told(clock: VirtualClock) -> None:
    breaker = Breaker(slow_rate=1.0, slow_s=10, calls_min=2, now_us=clock.now_us)
    first, second = permit_of(breaker), permit_of(breaker)
    clock.advance(11)

    first.settle()
    second.settle(duration_s=1.0)

    assert breaker.statistics().slow_seen == 1


# ---------------------------------------------------------------- by hand


def test_isolated_nothing_passes_until_reset(clock: VirtualClock) -> None:
    breaker = Breaker(now_us=clock.now_us)
    before = permit_of(breaker)
    breaker.isolate()
    clock.advance(1e6)
    before.settle()

    assert breaker.try_acquire() == Rejected(60.0, "breaker")
    breaker.reset()
    assert breaker.try_acquire()


def test_a_listener_may_use_the_breaker_and_one_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def on_change(before: str, after: str) -> None:
        seen.append(after)
        if after == "open":
            breaker.isolate()  # a lock held here, or a listener called from inside itself, would hang or mix the order
            raise RuntimeError("a listener's bug")

    breaker = Breaker(name="search", on_change=on_change)
    breaker.trip()

    assert seen == ["open", "isolated"]
    assert "on_change of the breaker 'search' failed" in caplog.text


# ---------------------------------------------------------------- races


def yields_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Open a window: other OS threads run before this function of `breaker` does what it does."""
    original = getattr(breaker_module, name)

    def yielding(*args: object) -> object:
        time.sleep(0)
        return original(*args)

    monkeypatch.setattr(breaker_module, name, yielding)


def in_os_threads(n: int, work: Callable[[], int]) -> int:
    start = threading.Barrier(n)

    def begin() -> int:
        start.wait()
        return work()

    with ThreadPoolExecutor(n) as pool:
        return sum(future.result() for future in [pool.submit(begin) for _ in range(n)])


def test_a_row_of_failures_from_many_os_threads_opens_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    yields_before(monkeypatch, "_enter")
    for _ in range(20):
        changes: list[tuple[str, str]] = []
        breaker = Breaker(failures=20, on_change=lambda *change, changes=changes: changes.append(change))

        def work(breaker: Breaker = breaker) -> int:
            settled = 0
            for _ in range(50):
                permit = breaker.try_acquire()
                if permit:
                    permit.settle("error")
                    settled += 1
            return settled

        settled = in_os_threads(8, work)

        assert changes == [("closed", "open")]
        assert 20 <= settled <= 27  # those that were out when it opened are late
        assert breaker.statistics().rejected == 400 - settled


def test_of_eight_that_come_at_once_half_open_lets_three_through(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    yields_before(monkeypatch, "Probe")
    breaker = Breaker(now_us=clock.now_us)
    for _ in range(50):
        breaker.trip()
        clock.advance(60)

        passed = in_os_threads(8, lambda: bool(breaker.try_acquire()))  # nobody settles meanwhile

        assert passed == 3
        assert breaker.statistics().probes == 3


def test_a_permit_settled_by_two_os_threads_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    yields_before(monkeypatch, "_settle_closed")
    refused = 0
    for _ in range(50):
        breaker = Breaker()
        permit = permit_of(breaker)

        def work(permit: BreakerPermit = permit) -> int:
            try:
                permit.settle("error")
            except UsageError:
                return 1
            return 0

        refused += in_os_threads(2, work)
        assert breaker.statistics().failures == 1

    assert refused == 50

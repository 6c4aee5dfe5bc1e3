"""The load manager: it looks when there is reason to, tells of changes once, and rests when nothing runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from sennit.limit.cgroups import Cgroups, MemoryUse
from sennit.limit.load import DECISIONS_KEPT, LOOK_EVERY_US, TICK_S, TICK_WITHOUT_TRIGGERS_S, LoadManager
from sennit.limit.pressure import Pressure
from sennit.limit.shedding import Decision, LoadBounds
from sennit.model.order import Priority
from sennit.sync.clock import uptime_us
from tests.busy import busy

PSI = Path("/proc/pressure/cpu")
WAIT_S = 30.0
S = 1_000_000


class Timer:
    def __init__(self, at_us: int, call: Callable[[], None]) -> None:
        self.at_us = at_us
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Rig:
    """A manager, the machine it finds, and the time it is. The machine has no triggers, unless `with_triggers`."""

    def __init__(self, root: Path, *, with_triggers: bool = False, bounds: LoadBounds | None = None) -> None:
        self.now_us = 1000 * S
        self.use = 0.0
        self.free = 0.5
        self.queue_age_s: float | None = None
        self.changes: list[Decision] = []
        self.looks = 0
        self.late_us = 0
        self._timers: list[Timer] = []
        self.pressure = (TriggeredPressure if with_triggers else Pressure)(
            cpu_max=0.8,
            memory_max=0.1,
            now_us=lambda: self.now_us,
            groups=Cgroups(root, root / "none"),
            proc=root / "none",
            cpu_percent=lambda: self.use,
        )
        self.manager = LoadManager(
            bounds or LoadBounds(),
            on_change=self.changes.append,
            now_us=lambda: self.now_us,
            loop=cast("asyncio.AbstractEventLoop", self),
            pressure=self.pressure,
            memory=self._memory,
            queue_age_s=lambda: self.queue_age_s,
        )

    def _memory(self) -> MemoryUse:
        self.looks += 1
        return MemoryUse(int((1 - self.free) * 1000), 1000, "host")

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """The one thing that is asked of an event loop."""
        self._timers.append(Timer(self.now_us + int(delay_s * S), call))
        return self._timers[-1]

    def is_closed(self) -> bool:
        return False

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self._timers if not timer.is_cancelled]

    def pass_time(self, seconds: float) -> None:
        until_us = self.now_us + int(seconds * S)
        while due := sorted((t for t in self.armed if t.at_us <= until_us), key=lambda t: t.at_us):
            self.now_us = max(self.now_us, due[0].at_us) + self.late_us
            due[0].cancel()
            due[0].call()
        self.now_us = max(self.now_us, until_us)

    @property
    def multipliers(self) -> list[float]:
        return [decision.after.multiplier for decision in self.changes]


class TriggeredPressure(Pressure):
    """A machine whose kernel tells: `tell` stands for its word."""

    is_triggered = False

    def start(self, loop: asyncio.AbstractEventLoop, on_pressure: Callable[[], object]) -> None:
        self.tell = on_pressure
        self.is_triggered = True
        super().start(loop, on_pressure)

    @property
    def has_triggers(self) -> bool:
        return self.is_triggered


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def told(tmp_path: Path) -> Rig:
    """One whose kernel has triggers."""
    return Rig(tmp_path, with_triggers=True)


# ---------------------------------------------------------------- when it looks


def test_with_nothing_running_it_looks_never_and_times_nothing(rig: Rig) -> None:
    rig.use = 100.0

    rig.pass_time(3600)

    assert (rig.looks, rig.armed, rig.pressure.is_started) == (0, [], False)


def test_with_triggers_it_times_nothing_while_all_is_well_however_long_a_body_runs(told: Rig) -> None:
    told.pass_time(10)
    told.manager.note(1)
    told.pass_time(1)  # the probe of the start

    assert told.looks == 1
    assert told.armed == []
    assert told.pressure.is_started


def test_a_trigger_makes_it_look_at_once_and_until_all_is_well(told: Rig) -> None:
    told.manager.note(1)
    told.pass_time(1)
    told.use = 100.0

    cast("Any", told.pressure).tell()
    assert told.multipliers == [0.7]
    told.pass_time(TICK_S)
    assert told.multipliers == [0.7, 0.49]

    told.use = 0.0
    told.pass_time(120)
    assert told.manager.multiplier == 1.0
    assert told.armed == []


def test_a_trigger_that_was_wrong_changes_nothing_and_is_looked_after_for_five_seconds(told: Rig) -> None:
    told.manager.note(1)
    told.pass_time(1)

    cast("Any", told.pressure).tell()
    told.pass_time(60)

    assert told.changes == []
    assert told.looks == 1 + 3
    assert told.armed == []


def test_without_triggers_it_looks_once_a_second_while_something_runs(rig: Rig) -> None:
    rig.pass_time(10)
    rig.manager.note(1)
    looks = rig.looks

    rig.pass_time(60)

    assert rig.looks - looks == 60 / TICK_WITHOUT_TRIGGERS_S


def test_however_much_starts_and_ends_it_looks_once_a_second(rig: Rig) -> None:
    rig.pass_time(10)
    for n in range(1000):
        rig.manager.note(n % 2)
        rig.now_us += LOOK_EVERY_US // 100

    assert rig.looks == 10


@pytest.mark.parametrize("with_triggers", [True, False])
def test_when_the_last_body_has_ended_it_goes_to_rest(tmp_path: Path, with_triggers: bool) -> None:  # noqa: FBT001 - by pytest
    rig = Rig(tmp_path, with_triggers=with_triggers)
    rig.manager.note(1)
    rig.pass_time(10)

    rig.manager.note(0)
    rig.pass_time(10)
    looks = rig.looks
    rig.pass_time(3600)

    assert (rig.looks, rig.armed, rig.pressure.is_started) == (looks, [], False)


def test_it_goes_to_rest_with_a_low_multiplier_and_a_break_counts_as_calm(rig: Rig) -> None:
    rig.use = 100.0
    rig.manager.note(1)
    rig.pass_time(20)
    rig.manager.note(0)
    rig.pass_time(5)
    assert rig.manager.multiplier < 0.1
    assert rig.armed == []

    rig.use = 0.0
    rig.pass_time(20)
    rig.manager.note(1)
    assert 0.3 < rig.manager.multiplier < 0.6
    rig.pass_time(600)
    assert rig.manager.multiplier == 1.0


def test_stopped_it_looks_even_with_nothing_running_or_nothing_would_ever_start_again(rig: Rig) -> None:
    rig.free = 0.01
    rig.manager.note(1)
    rig.pass_time(3)
    assert rig.manager.state.is_stopped

    rig.manager.note(0)
    rig.pass_time(600)
    assert rig.manager.state.is_stopped
    rig.free = 0.5
    rig.pass_time(120)

    assert not rig.manager.state.is_stopped
    assert rig.armed == []


def test_a_late_timer_is_the_lag_of_the_loop(told: Rig) -> None:
    told.pass_time(10)
    told.manager.note(1)
    told.late_us = S // 2

    told.pass_time(1)

    assert told.changes[-1].reasons == ("lag",)
    assert told.changes[-1].inputs.lag_s == pytest.approx(0.5)


def test_a_lag_that_others_have_seen_counts_once(rig: Rig) -> None:
    rig.manager.note(1)
    rig.manager.note_lag(3.0)
    rig.manager.note_lag(1.0)

    rig.pass_time(2.5)

    assert [decision.reasons for decision in rig.changes] == [("lag",)]
    assert rig.changes[0].inputs.lag_s == 3.0


def test_after_close_it_does_nothing(rig: Rig) -> None:
    rig.manager.note(1)

    rig.manager.close()
    rig.use = 100.0
    looks = rig.looks
    rig.manager.note(5)
    rig.pass_time(60)

    assert (rig.looks, rig.armed, rig.changes) == (looks, [], [])


# ---------------------------------------------------------------- what it says


def test_each_decision_that_changes_something_is_told_kept_and_logged_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.use = 100.0
    with caplog.at_level(logging.INFO, "sennit"):
        rig.manager.note(1)
        rig.pass_time(60)

    messages = [record.getMessage() for record in caplog.records]
    assert len(rig.changes) == len(messages) == len(rig.manager.decisions) == 9
    assert list(rig.manager.decisions) == rig.changes
    assert messages[0] == (
        "load: 1.00 -> 0.70 for cpu (throttled): cpu pressure 1.00, memory free 0.50, loop lag s 0.00; source psutil"
    )
    assert rig.manager.statistics().decisions == 9


def test_a_stop_and_its_end_are_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.free = 0.01
    rig.manager.note(1)
    rig.pass_time(2)
    rig.free = 0.5
    rig.pass_time(2)

    messages = [record.getMessage() for record in caplog.records]
    assert sum("no task is started" in message for message in messages) == 1
    assert sum("tasks are started again" in message for message in messages) == 1


def test_only_the_last_decisions_are_kept(rig: Rig) -> None:
    rig.manager.note(1)
    for _ in range(200):
        rig.use = 100.0 if rig.use == 0.0 else 0.0
        rig.pass_time(10)

    assert len(rig.changes) > DECISIONS_KEPT
    assert len(rig.manager.decisions) == DECISIONS_KEPT
    assert rig.manager.decisions[-1] == rig.changes[-1]


def test_whoever_hands_in_is_told_to_wait_when_the_queue_is_old(tmp_path: Path) -> None:
    rig = Rig(tmp_path, bounds=LoadBounds(queue_age_s_max=10.0))
    rig.queue_age_s = 11.0
    rig.manager.note(1)

    rig.pass_time(2)

    assert rig.manager.level == "throttled"
    assert rig.manager.should_throttle(Priority.LOW)
    assert not rig.manager.should_throttle()
    assert rig.manager.recommend_concurrency(8) == 8


# ---------------------------------------------------------------- real


@pytest.mark.skipif(not PSI.exists(), reason="this kernel has no /proc/pressure (PSI)")
def test_real_load_lowers_the_multiplier_within_seconds_and_nobody_asked() -> None:
    async def run() -> None:
        loop, fell = asyncio.get_running_loop(), asyncio.Event()
        manager = LoadManager(
            LoadBounds(cpu_pressure_max=0.6, memory_free_min=0.0),
            on_change=lambda decision: fell.set() if "cpu" in decision.reasons else None,
            now_us=uptime_us,
            loop=loop,
        )
        manager.note(1)
        assert manager.source in {"psi", "psi-cgroup"}
        try:
            await asyncio.wait_for(fell.wait(), WAIT_S)
            assert manager.multiplier < 1
        finally:
            manager.close()

    with busy():
        asyncio.run(run())

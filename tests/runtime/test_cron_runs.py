"""Schedules that run: once however many processes there are, and after a restart as the policy says."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from sennit import App
from sennit.errors import SettingsError
from sennit.schedule.cron import CronSpec, next_after

WAIT_S = 30.0

TICKING = """
import sys
from sennit import App

app = App(sys.argv[1], durability="normal")

@app.task(name="tick")
async def tick() -> None:
    print("tick", flush=True)

app.cron("* * * * * *", tick)
with app:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_three_processes_run_each_second_of_a_schedule_once(url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TICKING, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(3)
    ]
    ticks = threading.Semaphore(0)

    def count(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "tick\n":
                ticks.release()

    readers = [threading.Thread(target=count, args=(p,), daemon=True) for p in processes]
    for reader in readers:
        reader.start()
    for _ in range(4):
        assert ticks.acquire(timeout=WAIT_S)
    for process in processes:
        process.communicate()
    for reader in readers:
        reader.join(WAIT_S)
    app = App(url, durability="normal")
    seconds = [t.created_us // 1_000_000 for t in app.store.tasks(handler="tick").result()]
    ledger = app.ledger().result()
    app.close()

    assert [p.returncode for p in processes] == [0, 0, 0]
    assert len(seconds) >= 4
    assert max(seconds) - min(seconds) >= len(seconds) - 1  # not more often than once a second
    assert ledger.balanced


@pytest.mark.parametrize(("missed", "n"), [("skip", 0), ("once", 1), ("all", 5)])
def test_after_an_outage_missed_runs_are_made_up_for_as_the_policy_says(
    app: App, missed: Literal["skip", "once", "all"], n: int
) -> None:
    """Hourly, nobody there for five hours; the nearest run is half an hour away on both sides."""
    ran = threading.Semaphore(0)

    @app.task
    async def hourly() -> None:
        ran.release()

    now = datetime.now(UTC)
    expression = f"{(now.minute + 30) % 60} * * * *"
    oldest = next_after(CronSpec(name="hourly", expression=expression), now - timedelta(hours=5))
    app.store.put_schedule("hourly", int(oldest.timestamp()) * 1_000_000).result()
    app.cron(expression, hourly, name="hourly", missed=missed)
    with app:
        for _ in range(n):
            assert ran.acquire(timeout=WAIT_S)
        app.task(name="fence")(lambda: None).submit().result(WAIT_S)
        runs = app.store.tasks(handler=hourly.name).result()

    assert len(runs) == n


def test_a_schedule_goes_on_where_it_was_after_a_restart(url: str) -> None:
    ran = threading.Semaphore(0)
    for _ in range(2):
        app = App(url, durability="normal")

        @app.task(name="tick")
        async def tick() -> None:
            ran.release()

        app.cron("* * * * * *", tick)
        with app:
            assert ran.acquire(timeout=WAIT_S)
            assert ran.acquire(timeout=WAIT_S)
    seconds = sorted(t.created_us // 1_000_000 for t in app.store.tasks(handler="tick").result())
    app.close()

    assert len(seconds) == len(set(seconds))


def test_two_schedules_of_one_name_are_refused(app: App) -> None:
    task = app.task(name="tick")(lambda: None)
    app.cron("* * * * *", task)

    with pytest.raises(SettingsError, match="two schedules are called 'tick'"):
        app.cron("0 * * * *", task)


def test_a_wrong_expression_is_refused_when_it_is_written(app: App) -> None:
    with pytest.raises(SettingsError, match="is not a cron expression"):
        app.cron("every minute", app.task(name="tick")(lambda: None))

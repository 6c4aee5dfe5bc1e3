"""Stopping: what is unfinished is handed back without using up an attempt, whatever its body thinks of that."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sennit import App, TaskCancelled
from sennit.model.lifecycle import State
from tests.crash.fleet import ROOT, WAIT_S, Fleet, client, fleet, values

BODIES = pytest.mark.parametrize("name", ["hold", "hold_sync", "stubborn"])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def workers(url: str) -> Iterator[Fleet]:
    with fleet(url, SENNIT_DRAIN_S="0.1") as some:
        yield some


# ---------------------------------------------------------------- a worker process is told to stop


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@BODIES
def test_a_stopped_process_hands_its_tasks_back_and_leaves(workers: Fleet, sent: signal.Signals, name: str) -> None:
    at = client(workers.url)
    [process] = workers.start_ready()
    handle = getattr(at, name).submit()
    workers.journal.wait_for("start")

    process.send_signal(sent)

    workers.journal.wait_for("left")
    assert process.wait(WAIT_S) == 0
    view = handle.view().result()
    assert (view.state, view.failures, view.crashes) == (State.READY, 0, 0)
    ledger = at.app.ledger().result()
    assert (ledger.crashed, ledger.retried, ledger.live) == (0, 0, 1)
    assert [w for w in at.app.store.workers().result() if w.role == "worker"] == []
    assert at.app.store.verify().result() == []
    at.app.close()


def test_what_one_process_hands_back_another_takes_at_once(workers: Fleet) -> None:
    at = client(workers.url)
    [first] = workers.start_ready()
    handle = at.hold.submit()
    workers.journal.wait_for("start")
    workers.start_ready()

    first.send_signal(signal.SIGTERM)

    assert handle.result(WAIT_S) == "done by another"
    view = handle.view().result()
    assert (view.attempt, view.failures, view.crashes) == (2, 0, 0)
    at.app.close()


def test_a_stopping_process_lets_bodies_end_and_takes_nothing_new(workers: Fleet) -> None:
    at = client(workers.url)
    [process] = workers.start_ready(SENNIT_DRAIN_S="20")
    running = at.late.submit("ending", 0.5)
    workers.journal.wait_for("start")

    process.send_signal(signal.SIGTERM)
    assert running.result(WAIT_S) == "attempt 1"
    process.wait(WAIT_S)
    left_over = at.mark.submit("nobody takes it")

    assert left_over.view().result().state is State.READY
    at.app.close()


def test_a_second_interrupt_ends_a_process_at_once_and_others_rescue_what_it_held(workers: Fleet) -> None:
    at = client(workers.url)
    [first] = workers.start_ready(SENNIT_DRAIN_S="600")
    handle = at.hold.submit()
    workers.journal.wait_for("start")
    workers.start_ready()

    first.send_signal(signal.SIGTERM)  # begins to drain, for ten minutes
    while first.poll() is None:
        first.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            first.wait(0.2)

    assert handle.result(WAIT_S) == "done by another"
    at.app.close()


# ---------------------------------------------------------------- a script with `with app`

SCRIPT = """
import asyncio, os, sys, time
from sennit import App

app = App(sys.argv[1], durability="normal", drain_s=float(sys.argv[2]))

@app.task(name="hold")
async def hold() -> str:
    print("started", flush=True)
    await asyncio.Event().wait()

try:
    with app:
        hold.submit().result()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def script(url: str, *, drain_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, url, str(drain_s)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def press_ctrl_c_until_it_says_so(process: subprocess.Popen[str], *waits_s: float) -> None:
    """Press, and again when nothing has come of it within each of these times.

    Python itself misses one that arrives in the microseconds before it goes to sleep, until the next. One that comes
    after the last word of the program would end it in the middle of leaving.
    """
    assert process.stdout is not None
    for wait_s in waits_s:
        process.send_signal(signal.SIGINT)
        if select.select([process.stdout], [], [], wait_s)[0]:
            return


def test_one_ctrl_c_hands_back_after_the_drain(url: str) -> None:
    process = script(url, drain_s=0.1)

    press_ctrl_c_until_it_says_so(process, 10.0, 10.0, 10.0)
    out, err = process.communicate(timeout=WAIT_S)

    assert (process.returncode, out, err) == (130, "interrupted\n", "")
    assert_handed_back(url)


def test_a_second_ctrl_c_does_not_wait_for_the_drain(url: str) -> None:
    process = script(url, drain_s=600)

    press_ctrl_c_until_it_says_so(process, 1.0, 10.0, 10.0)
    out, err = process.communicate(timeout=WAIT_S)  # far less than the drain

    assert (process.returncode, out, err) == (130, "interrupted\n", "")
    assert_handed_back(url)


def assert_handed_back(url: str) -> None:
    app = App(url, durability="normal")
    [task] = app.store.tasks().result()
    ledger = app.ledger().result()
    broken = app.store.verify().result()
    app.close()

    assert (task.state, task.failures, task.crashes) == (State.READY, 0, 0)
    assert (ledger.crashed, ledger.retried, ledger.balanced, broken) == (0, 0, True, [])


# ---------------------------------------------------------------- in this process


def held_back(app: App, handle: Any) -> None:
    view = app.handle(handle.id).view().result()
    assert (view.state, view.failures, view.crashes) == (State.READY, 0, 0)


def test_leaving_with_app_hands_back_what_is_unfinished(url: str) -> None:
    app = App(url, durability="normal", drain_s=0.1)
    started = threading.Event()

    @app.task
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    with app:
        handle = endless.submit()
        assert started.wait(WAIT_S)

    held_back(app, handle)
    app.close()


def test_a_sync_body_blocked_in_c_is_left_behind_and_its_task_handed_back(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(url, durability="normal", drain_s=0.1)
    read, write = os.pipe()
    started = threading.Event()

    @app.task
    def blocked() -> None:
        started.set()
        os.read(read, 1)

    with app:
        handle = blocked.submit()
        assert started.wait(WAIT_S)

    os.write(write, b"!")
    os.close(write)
    held_back(app, handle)
    app.close()
    assert "did not stop in time; the task is handed back" in caplog.text


def compute() -> None:
    while True:
        pass


def test_a_cpu_body_is_killed_and_its_task_handed_back(url: str) -> None:
    app = App(url, durability="normal", drain_s=0.1)
    task = app.task(cpu=True)(compute)
    fence = app.task(name="fence")(lambda: None)

    with app:
        handle = task.submit()
        while handle.view().result().state is not State.RUNNING:
            fence.submit().result(WAIT_S)

    held_back(app, handle)
    app.close()


def test_stop_without_a_drain_does_not_wait_for_bodies(url: str) -> None:
    app = App(url, durability="normal", drain_s=600)
    started = threading.Event()

    @app.task
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    async def main() -> Any:
        async with app:
            handle = endless.submit()
            await asyncio.to_thread(started.wait, WAIT_S)
            await app.stop(0.0)
            return handle

    held_back(app, asyncio.run(main()))
    app.close()


def test_a_cancelled_async_program_hands_back_without_a_drain(url: str) -> None:
    app = App(url, durability="normal", drain_s=600)
    started = threading.Event()
    ids = []

    @app.task
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    async def program() -> None:
        async with app:
            handle = endless.submit()
            ids.append(handle.id)
            await handle

    async def main() -> None:
        running = asyncio.create_task(program())
        await asyncio.to_thread(started.wait, WAIT_S)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    held_back(app, app.handle(ids[0]))
    app.close()


def test_a_cancelled_task_of_a_stopped_app_stays_cancelled(url: str) -> None:
    app = App(url, durability="normal", drain_s=0.1)
    started = threading.Event()

    @app.task
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    with app:
        handle = endless.submit()
        assert started.wait(WAIT_S)
        handle.cancel().result()

    with pytest.raises(TaskCancelled):
        handle.result(WAIT_S)
    app.close()


def test_an_app_can_be_entered_again(url: str) -> None:
    app = App(url, durability="normal")
    task = app.task(name="twice")(lambda: 2)

    for _ in range(3):
        with app:
            assert values([task.submit()]) == [2]
    app.close()

"""The four time-outs and cancellation, for bodies on the loop, in OS threads and in worker processes."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sennit import App, RetryPolicy, Task, TaskCancelled, TaskFailed, heartbeat, step
from sennit.errors import AttemptCancelled
from sennit.model.lifecycle import State

WAIT_S = 30.0

# ---------------------------------------------------------------- bodies that never end by themselves

started = threading.Event()
stopped = threading.Event()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    started.clear()
    stopped.clear()
    yield
    started.set()


async def wait_on_the_loop(pid_file: str = "") -> None:
    started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        stopped.set()
        raise


def compute_in_a_thread(pid_file: str = "") -> None:
    started.set()
    try:
        while True:
            pass
    except AttemptCancelled:
        stopped.set()
        raise


def compute_in_a_process(pid_file: str) -> None:
    """Start a child of its own, say who both are, and compute."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}", encoding="ascii")  # blocks until the test reads
    while True:
        pass


def return_at_once() -> None:
    pass


def ended(pid: int) -> bool:
    """Wait for the end of any process; True unless it outlives the wait."""
    try:
        psutil.Process(pid).wait(WAIT_S)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pids")
    return tmp_path / "pids"


BODIES = pytest.mark.parametrize("body", [wait_on_the_loop, compute_in_a_thread], ids=["async", "sync"])


# ---------------------------------------------------------------- per attempt


@BODIES
def test_an_attempt_over_its_time_is_interrupted_and_fails(app: App, body: Any) -> None:
    task = app.task(timeout_s=0.2)(body)

    with app:
        with pytest.raises(TaskFailed, match=r"ran longer than timeout_s=0\.2") as caught:
            task.submit().result(WAIT_S)
        assert stopped.wait(WAIT_S)

    assert caught.value.kind == "TimeoutError"


def test_a_cpu_body_over_its_time_is_killed_with_the_processes_it_has_started(app: App, fifo: Path) -> None:
    task = app.task(cpu=True, timeout_s=2.0)(compute_in_a_process)
    warm = app.task(cpu=True)(return_at_once)

    with app:
        warm.submit().result(WAIT_S)  # the start of a process would count
        handle = task.submit(str(fifo))
        pids = [int(pid) for pid in fifo.read_text(encoding="ascii").split()]
        with pytest.raises(TaskFailed, match="ran longer than timeout_s=2"):
            handle.result(WAIT_S)

        assert [ended(pid) for pid in pids] == [True, True]
        assert handle.view().result().crashes == 0


def test_a_time_out_is_a_failure_that_the_policy_may_retry(app: App) -> None:
    @app.task(timeout_s=0.2, retries=RetryPolicy(retries=1, delay_s=0.0))
    async def slow_at_first() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return len(attempts)

    attempts: list[int] = []
    with app:
        assert slow_at_first.submit().result(WAIT_S) == 2


def test_options_override_the_handlers_own_time_out(app: App) -> None:
    task: Task[[], None] = app.task(timeout_s=60)(wait_on_the_loop)

    with app, pytest.raises(TaskFailed, match=r"timeout_s=0\.1"):
        task.options(timeout_s=0.1).submit().result(WAIT_S)


@pytest.mark.usefixtures("impatient")
def test_an_async_body_that_eats_its_cancellation_is_given_up(app: App, caplog: pytest.LogCaptureFixture) -> None:
    over = asyncio.Event()

    @app.task(timeout_s=0.1)
    async def stubborn() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                stopped.set()

    async def main() -> None:
        async with app:
            with pytest.raises(TaskFailed, match=r"timeout_s=0\.1"):
                await stubborn.submit()
            over.set()

    asyncio.run(main())

    assert stopped.is_set()
    assert "does not react to its interrupt" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_sync_body_blocked_outside_python_is_given_up(app: App, caplog: pytest.LogCaptureFixture) -> None:
    read, write = os.pipe()

    @app.task(timeout_s=0.1)
    def blocked() -> None:
        os.read(read, 1)

    with app:
        with pytest.raises(TaskFailed, match=r"timeout_s=0\.1"):
            blocked.submit().result(WAIT_S)
        os.write(write, b"!")

    os.close(write)
    assert "does not react to its interrupt" in caplog.text


# ---------------------------------------------------------------- without a sign of life


@BODIES
def test_a_body_without_a_sign_of_life_is_interrupted(app: App, body: Any) -> None:
    task = app.task(idle_timeout_s=0.2)(body)

    with app:
        with pytest.raises(TaskFailed, match=r"no sign of life for idle_timeout_s=0\.2"):
            task.submit().result(WAIT_S)
        assert stopped.wait(WAIT_S)


@pytest.mark.parametrize("sign", ["heartbeat", "step", "log"])
def test_every_sign_of_life_moves_the_idle_time_out_on(app: App, sign: str) -> None:
    """Six signs at a third of the time-out: twice as long as it in all."""

    @app.task(idle_timeout_s=0.9)
    async def busy() -> str:
        for n in range(6):
            await asyncio.sleep(0.3)
            match sign:
                case "heartbeat":
                    heartbeat()
                case "step":
                    await step(str, n)
                case _:
                    logging.getLogger("busy").warning("still here: %d", n)
        return "alive"

    with app:
        assert busy.submit().result(WAIT_S) == "alive"


def test_a_sync_body_can_give_signs_of_life_too(app: App) -> None:
    @app.task(idle_timeout_s=0.9)
    def busy() -> str:
        for _ in range(6):
            time.sleep(0.3)
            heartbeat()
        return "alive"

    with app:
        assert busy.submit().result(WAIT_S) == "alive"


# ---------------------------------------------------------------- in the queue, and in all


def test_a_task_that_is_not_started_in_time_fails_with_kind_queue_timeout(app: App) -> None:
    task = app.task(queue="nobody")(wait_on_the_loop)
    app._queues["nobody"] = 0

    with app, pytest.raises(TaskFailed) as caught:
        task.options(queue_timeout_s=0.2).submit().result(WAIT_S)

    assert (caught.value.kind, caught.value.attempts) == ("queue_timeout", 0)
    assert not started.is_set()


def test_a_queue_time_out_ends_with_the_first_claim(app: App) -> None:
    @app.task
    async def longer_than_that() -> str:
        await asyncio.sleep(0.5)
        return "done"

    with app:
        assert longer_than_that.options(queue_timeout_s=0.2).submit().result(WAIT_S) == "done"


@BODIES
def test_a_task_past_its_deadline_fails_and_its_body_is_stopped(app: App, body: Any) -> None:
    task = app.task(body)

    with app:
        with pytest.raises(TaskFailed) as caught:
            task.options(deadline_s=0.3).submit().result(WAIT_S)
        assert stopped.wait(WAIT_S)

    assert caught.value.kind == "deadline"


def test_a_deadline_also_ends_a_task_that_waits_for_its_retry(app: App) -> None:
    @app.task(retries=RetryPolicy(retries=5, delay_s=60.0))
    async def broken() -> None:
        raise OSError("no network")

    with app, pytest.raises(TaskFailed) as caught:
        broken.options(deadline_s=0.3).submit().result(WAIT_S)

    assert caught.value.kind == "deadline"


# ---------------------------------------------------------------- cancel


@BODIES
def test_cancel_reaches_a_running_body(app: App, body: Any) -> None:
    task = app.task(body)

    with app:
        handle = task.submit()
        assert started.wait(WAIT_S)
        assert handle.cancel("not needed").result(WAIT_S) is True
        assert stopped.wait(WAIT_S)
        with pytest.raises(TaskCancelled, match="not needed"):
            handle.result(WAIT_S)
        assert handle.cancel().result(WAIT_S) is False


def test_cancel_kills_a_cpu_body_and_the_processes_it_has_started(app: App, fifo: Path) -> None:
    task = app.task(cpu=True)(compute_in_a_process)

    with app:
        handle = task.submit(str(fifo))
        pids = [int(pid) for pid in fifo.read_text(encoding="ascii").split()]
        handle.cancel().result(WAIT_S)

        assert [ended(pid) for pid in pids] == [True, True]
        assert handle.view().result().state is State.CANCELLED


def test_cancelling_what_has_only_just_been_claimed_leaves_no_slot_held(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that is cancelled before its first step never runs; its slot is free all the same."""
    task = app.task(wait_on_the_loop)
    quick = app.task(name="quick")(lambda: "done")
    app._queues["default"] = 2

    async def main() -> str:
        async with app:
            for _ in range(5):
                # Blocks the loop on purpose: it learns of the claim and of the cancellation in one turn.
                assert task.submit().cancel().wait(WAIT_S)
                await asyncio.sleep(0)
            return await asyncio.wait_for(_result(quick.submit()), WAIT_S)

    assert asyncio.run(main()) == "done"
    assert "does not react" not in caplog.text


async def _result(handle: Any) -> Any:
    return await handle


def test_a_cancelled_body_is_not_recorded_as_anything_else(app: App) -> None:
    """It returned in spite of its cancellation: too late."""

    @app.task
    async def returns_anyway() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "anyway"
        return ""

    with app:
        handle = returns_anyway.submit()
        assert started.wait(WAIT_S)
        handle.cancel().result(WAIT_S)
        with pytest.raises(TaskCancelled):
            handle.result(WAIT_S)
    ledger = app.ledger().result()
    assert (ledger.cancelled, ledger.succeeded, ledger.balanced) == (1, 0, True)


def test_cancel_from_another_process_reaches_the_body(app: App, url: str) -> None:
    task = app.task(wait_on_the_loop)
    program = "import sys; from sennit import App; print(App(sys.argv[1]).cancel(int(sys.argv[2])).result())"

    with app:
        handle = task.submit()
        assert started.wait(WAIT_S)
        told = subprocess.run([sys.executable, "-c", program, url, str(handle.id)], check=True, capture_output=True)
        assert stopped.wait(WAIT_S)

    assert told.stdout == b"[True]\n"

"""A process that cannot renew its lease stops what it runs before the lease ends, and works again when it can.

The store hangs because a foreign program keeps SQLite's write lock: nothing here is a stand-in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sennit import App, step
from sennit.errors import AttemptCancelled
from sennit.submit.context import current

WAIT_S = 30.0
LEASE_S = 2.0


@pytest.fixture
def app(url: str) -> Iterator[App]:
    app = App(url, durability="normal", lease_s=LEASE_S, cpu_slots=1)
    yield app
    app.close()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep the write lock of the file."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=WAIT_S)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        yield
        foreign.execute("ROLLBACK")


def wait_until(fact: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    tick = threading.Event()
    for _ in range(int(WAIT_S * 200)):
        if fact():
            return
        tick.wait(0.005)
    raise AssertionError(f"{what} did not come about in {WAIT_S:g} s")


def number() -> int:
    attempt = current()
    assert attempt is not None
    return attempt.task.attempt


def test_bodies_are_stopped_before_the_lease_ends_and_run_again_when_the_store_answers(
    app: App, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = threading.Semaphore(0)
    left_us: list[int] = []
    stopped = threading.Semaphore(0)

    def note_stop() -> None:
        left_us.append(app.store.lease_until_us - app.store.now_us())
        stopped.release()

    @app.task(name="hold")
    async def hold() -> int:
        started.release()
        try:
            await asyncio.sleep(0 if number() > 1 else WAIT_S)
        except asyncio.CancelledError:
            note_stop()
            raise
        return number()

    @app.task(name="hold_sync")
    def hold_sync() -> int:
        started.release()
        try:
            while number() == 1:
                time.sleep(0.001)  # sleep: one of many short instructions that an interruption falls between
        except AttemptCancelled:
            note_stop()
            raise
        return number()

    with app:
        handles = [hold.submit(), hold_sync.submit()]
        for _ in handles:
            assert started.acquire(timeout=WAIT_S)
        with locked(url):
            for _ in handles:
                assert stopped.acquire(timeout=WAIT_S)
            assert min(left_us) > 0

        assert [handle.result(WAIT_S) for handle in handles] == [2, 2]
        views = [handle.view().result() for handle in handles]
        (me,) = [worker for worker in app.store.workers().result() if worker.role == "worker"]

    assert [(view.failures, view.crashes) for view in views] == [(0, 0)] * 2
    assert me.fenced == 1
    assert "cannot renew its lease: the store does not answer" in caplog.text
    assert "the store answers again" in caplog.text


def test_what_a_body_still_writes_behind_the_fence_is_refused_in_this_process(app: App, url: str) -> None:
    started, tried = threading.Event(), threading.Event()
    refused: list[str] = []

    @app.task(name="child")
    def child() -> None: ...

    @app.task(name="stubborn")
    async def stubborn() -> int:
        if number() > 1:
            return number()
        started.set()
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            try:
                await step(os.getpid)
            except AttemptCancelled:
                refused.append("step")
            handle = child.submit()
            try:
                await handle
            except AttemptCancelled:
                refused.append("child")
            tried.set()
        return 0

    with app:
        handle = stubborn.submit()
        assert started.wait(WAIT_S)
        with locked(url):
            assert tried.wait(WAIT_S)
        assert handle.result(WAIT_S) == 2
        ledger = app.ledger().result()

    assert refused == ["step", "child"]
    assert (ledger.submitted, ledger.succeeded) == (1, 1)


def wait_alone(path: str) -> int:
    """In a process: the first writes its id and goes on for ever."""
    try:
        with Path(path).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return os.getpid()
    time.sleep(WAIT_S)  # sleep: a body that computes, and ends only when its process is killed
    return 0


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("loop", ["free", "blocked"])
def test_the_processes_of_cpu_bodies_are_killed_even_while_a_body_keeps_the_loop(
    app: App, url: str, tmp_path: Path, loop: str
) -> None:
    go_on = threading.Event()
    blocks = threading.Event()
    path = tmp_path / "pid"
    compute = app.task(cpu=True, name="compute")(wait_alone)

    @app.task(name="keeps the loop")
    async def keeps() -> None:
        if number() == 1:
            blocks.set()
            go_on.wait(WAIT_S)  # the mistake: it should await

    with app:
        handle = compute.submit(str(path))
        wait_until(lambda: path.is_file() and path.read_text() != "", "a cpu body that runs")
        pid = int(path.read_text())
        other = keeps.submit() if loop == "blocked" else None
        if other is not None:
            assert blocks.wait(WAIT_S)
        with locked(url):
            wait_until(lambda: is_gone(pid), "the death of its process")
            go_on.set()
        assert handle.result(WAIT_S) not in {0, pid}
        assert handle.view().result().crashes == 0
        if other is not None:
            other.result(WAIT_S)


def test_a_store_that_hangs_shorter_than_the_lease_stops_nothing(
    app: App, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    started, release = threading.Event(), threading.Event()

    @app.task(name="hold")
    async def hold() -> int:
        started.set()
        await asyncio.get_running_loop().run_in_executor(None, release.wait, WAIT_S)
        return number()

    with app:
        handle = hold.submit()
        assert started.wait(WAIT_S)
        before_us = app.store.lease_until_us
        with locked(url):
            threading.Event().wait(LEASE_S / 4)
        wait_until(lambda: app.store.lease_until_us > before_us, "a renewed lease")
        release.set()
        assert handle.result(WAIT_S) == 1

    assert "cannot renew" not in caplog.text


def test_an_idle_process_does_not_beat_and_is_not_fenced(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App(url, durability="normal", lease_s=0.3)

    @app.task(name="quick")
    def quick() -> int:
        return 1

    with app, caplog.at_level(logging.WARNING, logger="sennit"):
        assert quick.submit().result(WAIT_S) == 1
        wait_until(lambda: app.store.lease_until_us < app.store.now_us(), "the end of a lease that nobody renews")
        assert quick.submit().result(WAIT_S) == 1
        assert app.store.lease_until_us > app.store.now_us()
    app.close()

    assert "cannot renew" not in caplog.text

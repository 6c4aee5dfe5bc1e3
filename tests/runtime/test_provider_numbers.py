"""What bench/providers.py measures, as facts: a window that is used up as the server sees it, and whose turn it is.

The most calls at once of several processes is in test_provider_processes.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from sennit import App
from sennit.submit.limits import Provider
from sennit.submit.registry import Task
from sennit.sync.clock import monotonic_s
from sennit.testing.provider import FakeProvider, ProviderStatistics
from tests.crash.fleet import ROOT
from tests.runtime.provider_facts import WAIT_S, on_a_loop, seen
from tests.runtime.provider_program import fleet

TASKS = 20
RESET_S = 1.5
RESTART_S = 4.0  # longer than a worker takes to start

StartWorker = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(process=True, latency=0.05) as provider:
        yield provider


@pytest.fixture
def start_worker(url: str, fake: FakeProvider) -> Iterator[StartWorker]:
    """Starts a worker process and waits until it works."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.runtime.provider_program", "work", fake.url]
        env = {**os.environ, "SENNIT_DB": url, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        process = subprocess.Popen(argv, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def client(url: str, fake: FakeProvider) -> Iterator[tuple[App, Provider, Task[[int], int]]]:
    app, provider, ask = fleet(url, fake.url)
    yield app, provider, ask
    app.close()


def wait_until_the_fleet_knows(provider: Provider) -> None:
    """Each look is an answer of the store. What a process has seen and not told dies with it."""
    until_s = monotonic_s() + WAIT_S
    while provider.view().result()[0].throttled == 0:
        assert monotonic_s() < until_s


def check_what_the_server_has_seen(seen: ProviderStatistics) -> None:
    """One refusal, nothing until the reset, one call then, and more when that has been answered."""
    assert seen.refused == {"window": 1}
    assert seen.requests == TASKS + 1
    (pause,) = seen.pauses
    assert pause.requests == 0
    assert pause.first_arrival_s is not None
    assert pause.first_ok_s is not None
    arrivals = sorted(at for at, _ in seen.log)
    assert arrivals[1] == pause.first_arrival_s > pause.until_s
    assert arrivals[2] > pause.first_ok_s


def test_two_workers_send_nothing_until_a_window_resets_then_one_probe_and_use_up_no_attempt(
    fake: FakeProvider, start_worker: StartWorker, client: tuple[App, Provider, Task[[int], int]]
) -> None:
    app, provider, ask = client
    start_worker()
    start_worker()
    fake.exhaust(RESET_S, at_next_call=True)
    first = ask.submit(0)  # alone: who calls beside it cannot know yet
    wait_until_the_fleet_knows(provider)

    rest = ask.map(range(1, TASKS))

    assert [first.result(WAIT_S), *rest.result(WAIT_S)] == list(range(TASKS))
    check_what_the_server_has_seen(fake.statistics())
    views = [handle.view().result() for handle in (first, *rest)]
    assert {(view.failures, view.crashes) for view in views} == {(0, 0)}
    assert app.store.verify().result() == []


def test_a_fleet_that_is_killed_and_started_again_in_a_pause_sends_nothing_until_the_reset(
    fake: FakeProvider, start_worker: StartWorker, client: tuple[App, Provider, Task[[int], int]]
) -> None:
    app, provider, ask = client
    worker = start_worker()
    fake.exhaust(RESTART_S, at_next_call=True)
    first = ask.submit(0)
    wait_until_the_fleet_knows(provider)
    worker.kill()
    worker.wait()
    rest = ask.map(range(1, TASKS))
    start_worker()

    assert [first.result(WAIT_S), *rest.result(WAIT_S)] == list(range(TASKS))
    check_what_the_server_has_seen(fake.statistics())
    assert app.store.verify().result() == []


@on_a_loop
async def test_a_permit_goes_to_the_process_that_waits_for_it_longest_whoever_has_the_smaller_ids(url: str) -> None:
    """Ids come in blocks, one for each store object: those of the first are all smaller than those of the second."""
    apps = [App(url, durability="normal") for _ in range(2)]
    one, other = (app.provider("p", parallel=1, strategy="fixed") for app in apps)
    order: list[str] = []

    async def call(provider: Provider, name: str) -> None:
        async with provider.slot():
            order.append(name)

    async with one.slot():
        waiting = asyncio.create_task(call(other, "waited longer"))
        await seen(one, lambda v: v.waiting == 1)
        late = asyncio.create_task(call(one, "came later"))
        await seen(one, lambda v: v.waiting == 2)
    await asyncio.gather(waiting, late)
    for app in apps:
        await asyncio.to_thread(app.close)

    assert order == ["waited longer", "came later"]

"""One limit for many processes, as the server sees it; and what a killed one held is free again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from sennit.testing.provider import FakeProvider
from tests.crash.fleet import ROOT
from tests.runtime.provider_facts import WAIT_S
from tests.runtime.provider_program import LIMIT, fleet

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(process=True, latency=0.05) as provider:
        yield provider


@pytest.fixture
def start(url: str, fake: FakeProvider) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def call(what: str, n: int = 0) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.runtime.provider_program", what, fake.url, str(n)]
        env = {**os.environ, "SENNIT_DB": url, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        started.append(
            subprocess.Popen(argv, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_three_programs_of_twenty_calls_are_never_more_than_five_at_once(start: Start, fake: FakeProvider) -> None:
    programs = [start("call", 20) for _ in range(3)]

    ends = [program.wait(WAIT_S * 3) for program in programs]

    assert ends == [0, 0, 0]
    statistics = fake.statistics()
    assert (statistics.max_concurrency, statistics.requests, statistics.ok) == (LIMIT, 60, 60)


def test_sixty_tasks_of_three_workers_are_never_more_than_five_calls_at_once(
    url: str, start: Start, fake: FakeProvider
) -> None:
    workers = [start("work") for _ in range(3)]
    assert [line(worker) for worker in workers] == ["ready"] * 3
    app, provider, ask = fleet(url, fake.url)

    assert ask.map(range(60)).result(WAIT_S * 3) == list(range(60))

    assert (fake.statistics().max_concurrency, fake.statistics().requests) == (LIMIT, 60)
    (view,) = provider.view().result()
    assert (view.in_use, view.waiting, view.ready, view.granted, view.succeeded) == (0, 0, 0, 60, 60)
    assert app.store.verify().result() == []
    app.close()


def test_permits_of_a_process_that_is_killed_are_free_at_once(url: str, start: Start, fake: FakeProvider) -> None:
    app, provider, ask = fleet(url, fake.url)
    holder = start("hold", LIMIT)
    assert line(holder) == "held"

    with app:
        handles = ask.map(range(3))
        waiting = provider.view().result()[0]
        assert (waiting.in_use, waiting.ready) == (LIMIT, 3)
        holder.kill()
        assert handles.result(WAIT_S) == [0, 1, 2]

"""Jobs sent ahead to busy processes, and processes that are replaced: nothing is lost, nothing runs twice, nobody else breaks."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from sennit.errors import BodyFailed, SettingsError, WorkerCrashed
from sennit.execute import processes
from sennit.execute.process_child import _resident_bytes
from sennit.execute.processes import Job, ProcessPool
from tests.crash.pool_bodies import (
    append,
    append_and_spin,
    append_and_unwind,
    append_and_wait_for,
    echo,
    keep,
    own_pid,
)
from tests.crash.test_process_pool import call, job, wait_until, with_pool

Run = asyncio.Task[bytes]


def words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def starts(pool: ProcessPool, *jobs: Job) -> list[Run]:
    return [asyncio.create_task(pool.run(one)) for one in jobs]


async def warm(pool: ProcessPool) -> None:
    """Have all processes there, and idle."""
    while pool.statistics().processes_idle < pool.processes_max:
        await asyncio.gather(*(call(pool, echo, n) for n in range(pool.processes_max)))


# ---------------------------------------------------------------- killed in a storm


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_killed_each_job_is_answered_once_or_told_as_crashed(tmp_path: Path, seed: int) -> None:
    """Processes are killed by SIGKILL, jobs by `kill` and by cancelling, at seeded moments, some behind others."""
    random, log = Random(seed), tmp_path / "log"
    total = 120

    async def scenario(pool: ProcessPool) -> list[Any]:
        await warm(pool)
        jobs = [job(append, str(log), f"job-{n}") for n in range(total)]
        runs = starts(pool, *jobs)
        while not all(run.done() for run in runs):
            for _ in range(random.randrange(6)):
                await asyncio.sleep(0)
            open_jobs = [n for n, run in enumerate(runs) if not run.done()]
            if not open_jobs:
                break
            chosen = random.choice(open_jobs[:12])
            match random.randrange(8):
                case 0 if pool.pids():
                    os.kill(random.choice(sorted(pool.pids())), signal.SIGKILL)
                case 1:
                    pool.kill(jobs[chosen])
                case 2:
                    runs[chosen].cancel()
                case _:
                    await asyncio.wait([runs[chosen]])  # let some work be done in between
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert await call(pool, echo, "well") == "well"
        return outcomes

    outcomes = with_pool(scenario, processes_max=2, prefetch=3)

    ran = Counter(words(log))
    assert max(ran.values(), default=0) == 1  # never twice
    for n, outcome in enumerate(outcomes):
        word = f"job-{n}"
        if isinstance(outcome, bytes):
            assert msgspec.json.decode(outcome) == word  # its own answer
            assert ran[word] == 1
        else:
            assert isinstance(outcome, (WorkerCrashed, asyncio.CancelledError))
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) > total // 4


# ---------------------------------------------------------------- ahead


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Jobs are sent ahead however long the process computes: on a busy machine any job may take long."""
    monkeypatch.setattr(processes, "_LONG_S", 3600.0)
    return monkeypatch


def test_killing_the_job_that_runs_moves_those_behind_it(tmp_path: Path, patient: pytest.MonkeyPatch) -> None:
    del patient
    log = tmp_path / "log"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        spinning, behind = job(append_and_spin, str(log), "spins"), [job(append, str(log), f"b{n}") for n in range(2)]
        running, *others = starts(pool, spinning, *behind)
        await wait_until(lambda: words(log) == ["spins"])
        assert pool.statistics().ahead == 2

        assert pool.kill(spinning) is True

        with pytest.raises(WorkerCrashed) as caught:
            await running
        assert caught.value.by_request
        assert [msgspec.json.decode(answer) for answer in await asyncio.gather(*others)] == ["b0", "b1"]
        assert pool.statistics().taken_back == 2

    with_pool(scenario, prefetch=2)
    assert words(log) == ["spins", "b0", "b1"]


def test_a_process_that_dies_loses_only_the_job_it_had_begun(tmp_path: Path, patient: pytest.MonkeyPatch) -> None:
    del patient
    log = tmp_path / "log"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        running, *others = starts(
            pool, job(append_and_spin, str(log), "spins"), *(job(append, str(log), f"b{n}") for n in range(2))
        )
        waits = starts(pool, job(append, str(log), "later"))
        await wait_until(lambda: words(log) == ["spins"])

        os.kill(pool.pids()[0], signal.SIGKILL)

        with pytest.raises(WorkerCrashed) as caught:
            await running
        assert (caught.value.exitcode, caught.value.by_request) == (-9, False)
        await asyncio.gather(*others, *waits)
        assert pool.statistics().crashed == 1

    with_pool(scenario, prefetch=2)
    assert words(log) == ["spins", "b0", "b1", "later"]  # what was sent ahead goes first


@pytest.mark.parametrize("how", ["kill", "cancel"])
def test_a_job_behind_another_can_be_taken_out_alone(tmp_path: Path, patient: pytest.MonkeyPatch, how: str) -> None:
    del patient
    log, go = tmp_path / "log", tmp_path / "go"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        first = job(append_and_wait_for, str(log), "first", str(go))
        behind = [job(append, str(log), f"b{n}") for n in range(3)]
        runs = starts(pool, first, *behind)
        await wait_until(lambda: words(log) == ["first"])
        pid = pool.pids()
        assert pool.statistics().ahead == 3

        if how == "kill":
            assert pool.kill(behind[1]) is True
        else:
            runs[2].cancel()
        (taken_out,) = await asyncio.gather(runs[2], return_exceptions=True)
        assert isinstance(taken_out, WorkerCrashed if how == "kill" else asyncio.CancelledError)
        assert pool.statistics().ahead == 2
        go.touch()

        await asyncio.gather(runs[0], runs[1], runs[3])
        assert pool.pids() == pid

    with_pool(scenario, prefetch=3)
    assert words(log) == ["first", "b0", "b2"]


def test_a_long_job_keeps_nothing_from_an_idle_process(tmp_path: Path, patient: pytest.MonkeyPatch) -> None:
    del patient
    log, go_one, go_other = tmp_path / "log", tmp_path / "one", tmp_path / "other"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        one = job(append_and_wait_for, str(log), "one", str(go_one))
        other = job(append_and_wait_for, str(log), "other", str(go_other))
        runs = starts(pool, one, other, *(job(append, str(log), f"b{n}") for n in range(4)))
        await wait_until(lambda: pool.statistics().ahead == 4)

        go_one.touch()

        await asyncio.gather(runs[0], *runs[2:])  # two of them stood behind the other long one, which goes on
        assert not runs[1].done()
        go_other.touch()
        await runs[1]
        assert pool.statistics().taken_back >= 2

    with_pool(scenario, processes_max=2, prefetch=2)
    assert sorted(words(log)) == ["b0", "b1", "b2", "b3", "one", "other"]


def test_a_job_behind_a_long_one_goes_before_those_that_came_later(tmp_path: Path, patient: pytest.MonkeyPatch) -> None:
    log, go_one, go_other = tmp_path / "log", tmp_path / "one", tmp_path / "other"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        one = job(append_and_wait_for, str(log), "one", str(go_one))
        other = job(append_and_wait_for, str(log), "other", str(go_other))
        later = [job(append, str(log), f"later-{n}") for n in range(4)]
        runs = starts(pool, one, other, *(job(append, str(log), f"b{n}") for n in range(2)), *later)
        await wait_until(lambda: pool.statistics().ahead == 2 and len(words(log)) == 2)
        patient.setattr(processes, "_LONG_S", 0.0)  # both take long, it turns out

        go_other.touch()

        await asyncio.gather(*runs[1:])
        go_one.touch()
        await runs[0]

    with_pool(scenario, processes_max=2, prefetch=1)
    assert sorted(words(log)[2:4]) == ["b0", "b1"]


class SlowReader:
    """The parent's reading end of the tokens: after the first one it takes back, the process takes the next."""

    def __init__(self, real: socket.socket, meanwhile: Callable[[], None]) -> None:
        self._real = real
        self._meanwhile = meanwhile
        self._taken = 0

    def recv(self, size_bytes: int, flags: int) -> bytes:
        token = self._real.recv(size_bytes, flags)
        self._taken += 1
        if self._taken == 1:
            self._meanwhile()
        return token

    def close(self) -> None:
        self._real.close()


def test_a_process_may_begin_the_next_but_one_while_jobs_are_taken_back(
    tmp_path: Path, patient: pytest.MonkeyPatch
) -> None:
    del patient
    log, go, go_on = tmp_path / "log", tmp_path / "go", tmp_path / "go on"

    def first_ends_and_the_process_begins_another() -> None:
        go.touch()
        while "b1" not in words(log):
            os.sched_yield()

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        behind = [job(append_and_wait_for, str(log), f"b{n}", str(go_on)) for n in range(3)]
        runs = starts(pool, job(append_and_wait_for, str(log), "first", str(go)), *behind)
        await wait_until(lambda: words(log) == ["first"])
        wires: Any = next(iter(pool._children))._wires
        wires.tokens_theirs = SlowReader(wires.tokens_theirs, first_ends_and_the_process_begins_another)

        assert pool.kill(behind[2]) is True  # takes back b0, then the process begins b1, then b2 is taken back
        go_on.touch()

        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert [isinstance(outcome, bytes) for outcome in outcomes] == [True, True, True, False]

    with_pool(scenario, prefetch=3)
    assert words(log) == ["first", "b1", "b0"]


def test_without_prefetch_nothing_is_sent_ahead(tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        runs = starts(pool, job(append_and_wait_for, str(log), "first", str(go)), job(append, str(log), "next"))
        await wait_until(lambda: words(log) == ["first"])
        assert (pool.statistics().ahead, pool.statistics().waiting) == (0, 1)
        go.touch()
        await asyncio.gather(*runs)

    with_pool(scenario)


def test_closing_tells_jobs_that_were_sent_ahead(tmp_path: Path, patient: pytest.MonkeyPatch) -> None:
    del patient
    log = tmp_path / "log"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        runs = starts(
            pool, job(append_and_spin, str(log), "spins"), *(job(append, str(log), f"b{n}") for n in range(3))
        )
        await wait_until(lambda: words(log) == ["spins"])
        await pool.close()
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WorkerCrashed] * 4

    with_pool(scenario, prefetch=2)
    assert words(log) == ["spins"]


def test_large_jobs_behind_each_other_keep_their_payloads() -> None:
    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        values = [f"{n}" * 700_000 for n in range(8)]
        jobs = [job(echo, value) for value in values]
        runs = starts(pool, *jobs)
        await asyncio.sleep(0)
        pool.kill(jobs[2])  # Its payload is on its way already, and is skipped.
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert [isinstance(outcome, bytes) for outcome in outcomes].count(False) <= 1
        for value, outcome in zip(values, outcomes, strict=True):
            assert not isinstance(outcome, bytes) or msgspec.json.decode(outcome) == value

    with_pool(scenario, prefetch=4)


# ---------------------------------------------------------------- interrupted


def test_an_interrupted_job_unwinds_and_those_behind_it_run(tmp_path: Path, patient: pytest.MonkeyPatch) -> None:
    del patient
    log = tmp_path / "log"

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        pids = pool.pids()
        endless = job(append_and_unwind, str(log), "begun")
        running, *others = starts(pool, endless, *(job(append, str(log), f"b{n}") for n in range(2)))
        await wait_until(lambda: words(log) == ["begun"])

        assert pool.interrupt(endless) is True

        with pytest.raises(BodyFailed) as caught:
            await running
        assert caught.value.kind == "AttemptCancelled"
        await asyncio.gather(*others)
        assert pool.interrupt(endless) is False  # it is over
        assert pool.pids() == pids

    with_pool(scenario, prefetch=2)
    assert words(log) == ["begun", "unwound", "b0", "b1"]


def test_an_interrupt_never_strikes_the_next_job(tmp_path: Path) -> None:
    """Each is interrupted at some moment from before its first instruction to after its last: it alone may notice."""

    async def scenario(pool: ProcessPool) -> None:
        await warm(pool)
        pids = pool.pids()
        for n in range(150):
            quick = job(append, str(tmp_path / "log"), f"job-{n}")
            run = asyncio.create_task(pool.run(quick))
            for _ in range(n % 5):
                await asyncio.sleep(0)
            pool.interrupt(quick)
            (outcome,) = await asyncio.gather(run, return_exceptions=True)
            assert isinstance(outcome, bytes) or getattr(outcome, "kind", "") == "AttemptCancelled"
            assert await call(pool, echo, n) == n
        assert pool.pids() == pids

    with_pool(scenario)


# ---------------------------------------------------------------- replaced


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_process_is_replaced_after_so_many_jobs_and_none_is_lost(prefetch: int) -> None:
    async def scenario(pool: ProcessPool) -> None:
        pids = await asyncio.gather(*(call(pool, own_pid) for _ in range(10)))

        assert sorted(Counter(pids).values()) == [1, 3, 3, 3]
        statistics = pool.statistics()
        assert (statistics.recycled, statistics.answered, statistics.crashed) == (3, 10, 0)

    with_pool(scenario, prefetch=prefetch, recycle_tasks=3)


def test_a_process_that_has_grown_is_replaced_between_jobs() -> None:
    async def scenario(pool: ProcessPool) -> None:
        small = await call(pool, own_pid)
        assert await call(pool, own_pid) == small
        first, *behind = await asyncio.gather(call(pool, keep, 300 << 20), *(call(pool, own_pid) for _ in range(3)))
        assert first == small
        assert len(set(behind)) == 1
        assert behind[0] != small
        assert pool.statistics().recycled == 1

    with_pool(scenario, prefetch=2, recycle_bytes=250 << 20)


def test_memory_that_is_shared_does_not_count_as_growth() -> None:
    before_bytes = _resident_bytes()
    with mmap.mmap(-1, 32 << 20) as shared:
        shared[:: mmap.PAGESIZE] = bytes(len(shared) // mmap.PAGESIZE)
        assert _resident_bytes() - before_bytes < 16 << 20


@pytest.mark.parametrize("options", [{"prefetch": -1}, {"prefetch": 65}, {"recycle_tasks": -1}, {"recycle_bytes": -1}])
def test_what_makes_no_sense_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="make no sense"):
        ProcessPool(processes_max=1, **options)  # type: ignore[arg-type]

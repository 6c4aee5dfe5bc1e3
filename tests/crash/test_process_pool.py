"""CPU-bound bodies in processes: every end of a process is told apart, and none takes the next job with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from sennit.errors import BodyFailed, SettingsError, UnknownHandler, UsageError, WorkerCrashed
from sennit.execute.processes import Job, ProcessPool
from tests.crash import pool_bodies
from tests.crash.pool_bodies import PlainError, die, echo, fail, fork_and_return, own_pid, start_and_spin, use_memory

# ---------------------------------------------------------------- helpers


def job(function: Any, *args: object) -> Job:
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
    return Job(name, msgspec.json.encode([args, {}]))


def with_pool(scenario: Callable[[ProcessPool], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        pool = ProcessPool(**{"processes_max": 1, **options})
        try:
            return await scenario(pool)
        finally:
            await pool.close()
            assert pool.statistics().processes == 0

    return asyncio.run(run())


async def call(pool: ProcessPool, function: Any, *args: object) -> Any:
    return msgspec.json.decode(await pool.run(job(function, *args)))


async def wait_until(holds: Callable[[], bool]) -> None:
    """Return when a fact holds; the test's time limit is the bound."""
    while not holds():  # noqa: ASYNC110  files and processes raise no event here
        await asyncio.sleep(0.001)  # sleep: the processes of others end without telling us


async def wait_for_pids(folder: Path) -> list[int]:
    await wait_until((folder / "pids").exists)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def wait_gone(pid: int) -> None:
    """Return when the process has ended; the test's time limit is the bound."""
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
    except psutil.NoSuchProcess:
        return


# ---------------------------------------------------------------- answers


def test_a_process_stays_warm_for_the_next_job() -> None:
    async def scenario(pool: ProcessPool) -> None:
        pids = {await call(pool, own_pid) for _ in range(5)}

        assert len(pids) == 1
        assert pids != {os.getpid()}
        assert (pool.statistics().processes, pool.statistics().processes_idle, pool.statistics().answered) == (1, 1, 5)

    with_pool(scenario)


def test_jobs_share_a_few_processes_started_on_demand() -> None:
    async def scenario(pool: ProcessPool) -> None:
        assert pool.statistics().processes == 0
        values = await asyncio.gather(*(call(pool, echo, number) for number in range(50)))

        assert values == list(range(50))
        assert 1 <= pool.statistics().processes <= 2
        assert pool.statistics().waiting == 0

    with_pool(scenario, processes_max=2)


def test_a_payload_larger_than_any_pipe_goes_both_ways() -> None:
    async def scenario(pool: ProcessPool) -> None:
        value = "x" * 5_000_000
        assert await call(pool, echo, value) == value

    with_pool(scenario)


def test_what_a_decorator_has_wrapped_is_found() -> None:
    async def scenario(pool: ProcessPool) -> None:
        assert await call(pool, f"{pool_bodies.__name__}:decorated", 1) == 2

    with_pool(scenario)


def test_a_module_that_cannot_be_imported_there_is_told_as_a_handler_that_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its import raises: nothing of the body has run."""
    (tmp_path / "takes_a_port.py").write_text("raise OSError('address already in use')\n")
    monkeypatch.syspath_prepend(tmp_path)

    async def scenario(pool: ProcessPool) -> None:
        with pytest.raises(BodyFailed, match="address already in use") as caught:
            await call(pool, "takes_a_port:serve")
        assert isinstance(caught.value.original, UnknownHandler)

    with_pool(scenario)


def test_functions_of_a_script_are_found(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from sennit.execute.processes import Job, ProcessPool\n"
        "def double(value): return value * 2\n"
        "async def main():\n"
        "    pool = ProcessPool(processes_max=1)\n"
        "    print((await pool.run(Job('__main__:double', b'[[21], {}]'))).decode())\n"
        "    await pool.close()\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )

    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr, result.returncode) == ("42\n", "", 0)


def test_a_program_that_forgets_to_close_its_pool_still_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from sennit.execute.processes import Job, ProcessPool\n"
        "def double(value): return value * 2\n"
        "async def main():\n"
        "    global pool\n"
        "    pool = ProcessPool(processes_max=1)\n"
        "    print((await pool.run(Job('__main__:double', b'[[21], {}]'))).decode())\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )

    result = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False, timeout=30)

    assert (result.stdout, result.returncode) == ("42\n", 0)


# ---------------------------------------------------------------- failures: the process is well


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("plain", "PlainError", "('went wrong', 42)"),
        ("stubborn", "StubbornError", "code 5"),
        ("local", "LocalError", "<function"),
        ("speechless", "SpeechlessError", "its text cannot be made"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", ""),
    ],
)
def test_whatever_a_body_raises_is_a_failure_and_the_process_goes_on(kind: str, name: str, message: str) -> None:
    async def scenario(pool: ProcessPool) -> BodyFailed:
        with pytest.raises(BodyFailed) as caught:
            await call(pool, fail, kind)
        assert await call(pool, echo, "next") == "next"
        assert pool.statistics().crashed == 0
        return caught.value

    failure = with_pool(scenario)

    assert failure.kind == name
    assert message in failure.message
    assert "in fail" in failure.remote_traceback
    assert "in _serve" not in failure.remote_traceback
    assert (failure.original is None) is (kind in ("stubborn", "local"))


def test_an_exception_that_pickles_comes_back_as_itself() -> None:
    async def scenario(pool: ProcessPool) -> BaseException | None:
        with pytest.raises(BodyFailed) as caught:
            await call(pool, fail, "plain")
        return caught.value.original

    original = with_pool(scenario)

    assert type(original) is PlainError
    assert original.args == ("went wrong", 42)


@pytest.mark.parametrize(
    "ref", ["no_such_module:f", f"{__name__}:no_such_function", f"{__name__}:with_pool.<locals>.run"]
)
def test_a_handler_that_cannot_be_found_says_what_to_do(ref: str) -> None:
    async def scenario(pool: ProcessPool) -> BaseException | None:
        with pytest.raises(BodyFailed) as caught:
            await call(pool, ref)
        return caught.value.original

    original = with_pool(scenario)

    assert isinstance(original, UnknownHandler)
    assert "top level" in original.fix


def test_too_much_memory_is_a_failure_and_not_a_crash() -> None:
    async def scenario(pool: ProcessPool) -> None:
        with pytest.raises(BodyFailed) as caught:
            await call(pool, use_memory, 2 << 30)
        assert caught.value.kind == "MemoryError"
        assert await call(pool, use_memory, 1 << 20) == 8

    with_pool(scenario, memory_bytes_max=1 << 30)


def test_a_body_that_forks_answers_once() -> None:
    async def scenario(pool: ProcessPool) -> None:
        for number in range(3):
            assert await call(pool, fork_and_return) == 0
            assert await call(pool, echo, number) == number

    with_pool(scenario)


# ---------------------------------------------------------------- crashes: the process is gone


@pytest.mark.parametrize(("how", "exitcode"), [("SIGKILL", -9), ("SIGSEGV", -11), ("_exit", 9)])
def test_a_process_that_ends_without_an_answer_has_crashed(how: str, exitcode: int) -> None:
    async def scenario(pool: ProcessPool) -> None:
        with pytest.raises(WorkerCrashed) as caught:
            await call(pool, die, how)
        assert (caught.value.exitcode, caught.value.by_request) == (exitcode, False)
        assert await call(pool, echo, "next") == "next"
        assert pool.statistics().crashed == 1

    with_pool(scenario)


@pytest.mark.parametrize("in_c", [False, True], ids=["by Python", "by C code"])
def test_a_crash_is_seen_although_a_forked_child_goes_on(tmp_path: Path, *, in_c: bool) -> None:
    """The child holds the pipe open, so its end says nothing."""

    async def scenario(pool: ProcessPool) -> None:
        payload = msgspec.json.encode([[str(tmp_path / "pid")], {"in_c": in_c}])
        with pytest.raises(WorkerCrashed) as caught:
            await pool.run(Job(f"{pool_bodies.__name__}:fork_and_leave_a_child_behind", payload))
        assert caught.value.exitcode == 4

    with_pool(scenario)
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    assert child.is_running()
    child.kill()


def test_an_idle_process_that_is_killed_costs_no_job() -> None:
    async def scenario(pool: ProcessPool) -> None:
        for _ in range(3):
            pid = await call(pool, own_pid)
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: pool.statistics().processes == 0)
        assert await call(pool, echo, "fine") == "fine"
        assert pool.statistics().crashed == 0

    with_pool(scenario)


# ---------------------------------------------------------------- kill, cancel, close


def test_kill_ends_a_computing_body_and_what_it_has_started(tmp_path: Path) -> None:
    async def scenario(pool: ProcessPool) -> list[int]:
        spinning = job(start_and_spin, str(tmp_path))
        run = asyncio.create_task(pool.run(spinning))
        pids = await wait_for_pids(tmp_path)

        assert pool.kill(spinning) is True
        with pytest.raises(WorkerCrashed) as caught:
            await run
        assert (caught.value.exitcode, caught.value.by_request) == (-9, True)
        assert pool.kill(spinning) is False
        assert await call(pool, echo, "next") == "next"
        return pids

    for pid in with_pool(scenario):
        wait_gone(pid)


def test_cancelling_the_caller_ends_the_body(tmp_path: Path) -> None:
    async def scenario(pool: ProcessPool) -> list[int]:
        run = asyncio.create_task(pool.run(job(start_and_spin, str(tmp_path))))
        pids = await wait_for_pids(tmp_path)

        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert await call(pool, echo, "next") == "next"
        return pids

    for pid in with_pool(scenario):
        wait_gone(pid)


def test_a_waiting_job_can_be_killed_or_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario(pool: ProcessPool) -> None:
        spinning = job(start_and_spin, str(tmp_path))
        runs = [asyncio.create_task(pool.run(spinning))]
        await wait_for_pids(tmp_path)
        waiting = [job(echo, number) for number in range(3)]
        runs += [asyncio.create_task(pool.run(one)) for one in waiting]
        await wait_until(lambda: pool.statistics().waiting == 3)

        assert pool.kill(waiting[0]) is True
        runs[2].cancel()
        pool.kill(spinning)
        outcomes = await asyncio.gather(*runs, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [WorkerCrashed, WorkerCrashed, asyncio.CancelledError, bytes]
        assert isinstance(outcomes[1], WorkerCrashed)
        assert outcomes[1].exitcode is None

    with_pool(scenario)


def test_kills_at_random_moments_never_mix_up_answers() -> None:
    """A kill may meet a job that waits, runs, or has just answered: every answer is the job's own, or a crash."""

    async def scenario(pool: ProcessPool) -> None:
        answered = 0
        for number in range(24):  # each of eight moments three times
            one = job(echo, number)
            run = asyncio.create_task(pool.run(one))
            for _ in range(number % 8):
                await asyncio.sleep(0)
            pool.kill(one)
            (outcome,) = await asyncio.gather(run, return_exceptions=True)
            if isinstance(outcome, bytes):
                answered += 1
                assert msgspec.json.decode(outcome) == number
            else:
                assert isinstance(outcome, WorkerCrashed)
                assert outcome.by_request
            assert await call(pool, echo, number) == number

    with_pool(scenario, processes_max=2)


def test_a_kill_just_after_the_answer_finds_nothing_to_kill() -> None:
    """The answer is here, its caller has not run yet: it gets it, and the process is well."""

    async def scenario(pool: ProcessPool) -> None:
        pid = await call(pool, own_pid)
        for number in range(20):
            one = job(echo, number)
            run = asyncio.create_task(pool.run(one))
            while not (one in pool._calls and pool._calls[one].is_over):  # noqa: ASYNC110  the moment before it resumes
                await asyncio.sleep(0)

            assert pool.kill(one) is False
            assert msgspec.json.decode(await run) == number
        assert await call(pool, own_pid) == pid

    with_pool(scenario)


def test_closing_ends_running_jobs_and_all_processes(tmp_path: Path) -> None:
    async def scenario(pool: ProcessPool) -> list[int]:
        idle_pid, run = await call(pool, own_pid), asyncio.create_task(pool.run(job(start_and_spin, str(tmp_path))))
        pids = await wait_for_pids(tmp_path)

        await pool.close()

        with pytest.raises(WorkerCrashed):
            await run
        with pytest.raises(UsageError, match="closed"):
            await pool.run(job(echo, 1))
        return [idle_pid, *pids]

    for pid in with_pool(scenario, processes_max=2):
        wait_gone(pid)


def test_a_killed_parent_takes_its_computing_processes_along(tmp_path: Path) -> None:
    """Also when a child it has forked lives on and has copies of all its descriptors."""
    code = (
        "import asyncio, os, sys\n"
        "from sennit.execute.processes import Job, ProcessPool\n"
        "async def main():\n"
        "    pool = ProcessPool(processes_max=1)\n"
        "    spinning = asyncio.create_task(pool.run(Job(sys.argv[1], sys.argv[2].encode())))\n"
        "    while not os.path.exists(sys.argv[3]): await asyncio.sleep(0.002)\n"
        "    if os.fork() == 0: print('forked', flush=True); os.read(0, 1); os._exit(0)\n"
        "    await spinning\n"
        "asyncio.run(main())\n"
    )
    spinning = job(start_and_spin, str(tmp_path))
    parent = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            code,
            spinning.handler_ref,
            spinning.payload.decode(),
            tmp_path / "pids",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"forked\n"
        parent.kill()

        for pid in (tmp_path / "pids").read_text().split():
            wait_gone(int(pid))


@pytest.mark.parametrize("options", [{"processes_max": 0}, {"processes_max": 1, "memory_bytes_max": 0}])
def test_a_pool_that_could_run_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="cannot run anything"):
        ProcessPool(**options)  # type: ignore[arg-type]

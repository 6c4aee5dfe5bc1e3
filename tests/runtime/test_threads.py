"""Threads inside bodies: what is changed commits with the result, is saved early, or is never seen by anybody."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sennit import App, Cancel, NotRetryable, Retry, RetryPolicy, Snooze, TaskCancelled, TaskFailed, sleep, step, thread
from sennit.errors import ConcurrentModificationError, ThreadBusy, UsageError
from sennit.model.thread import StateWrite
from sennit.submit.context import current

WAIT_S = 30.0
AGAIN = RetryPolicy(retries=1, delay_s=0.0)


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    with App(url, durability="normal") as app:
        yield app


def more(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "n": state.get("n", 0) + 1}


def stored(app: App, thread_id: str = "t") -> tuple[Any, int]:
    view = app.store.state(thread_id).wait(WAIT_S)
    return (None if view.data is None else msgspec.json.decode(view.data)), view.version


async def write_behind(app: App, data: bytes, *, expected: int) -> None:
    """Write as another process would: nobody here hears of it."""
    await app.store.write_states([StateWrite(thread_id="t", expected=expected, data=data)])


# ---------------------------------------------------------------- with the result


def test_changes_commit_with_the_result_and_the_body_reads_its_own(app: App) -> None:
    seen: list[Any] = []

    @app.task
    async def body() -> str:
        seen.append(await thread().update(more))
        seen.append(await thread().update(more))
        seen.append(await thread().get_versioned())
        seen.append(stored(app))
        await thread().config.update(lambda c: {**c, "model": "small"})
        return "done"

    assert body.options(thread_id="t").submit().result(WAIT_S) == "done"

    assert seen == [{"n": 1}, {"n": 2}, ({"n": 2}, 2), (None, 0)]
    assert stored(app) == ({"n": 2}, 2)
    assert app.thread("t").config.get().result() == {"model": "small"}


def test_a_sync_body_uses_the_same_calls(app: App) -> None:
    @app.task
    def body() -> int:
        thread().update(more).result()
        assert thread().update_if(1, more).result()
        assert not thread().update_if(1, more).result()
        thread().save().result()
        return int(thread().apply([more, more]).result()["n"])

    assert body.options(thread_id="t").submit().result(WAIT_S) == 4

    assert stored(app) == ({"n": 4}, 3)


@pytest.mark.parametrize("how", ["raise", "retry", "snooze", "sleep", "cancel"])
def test_an_attempt_that_does_not_succeed_changes_nothing(app: App, how: str) -> None:
    attempts: list[Any] = []

    @app.task(retries=AGAIN)
    async def body() -> Any:
        attempts.append(stored(app))
        await thread().update(more)
        if len(attempts) > 1:
            return "done"
        match how:
            case "raise":
                raise OSError("no")
            case "retry":
                return Retry(after_s=0.0)
            case "snooze":
                return Snooze(after_s=0.0)
            case "sleep":
                await sleep(0.0)
            case _:
                return Cancel()
        raise AssertionError("not reached")

    handle = body.options(thread_id="t").submit()
    with nullcontext() if how != "cancel" else pytest.raises(TaskCancelled):
        assert handle.result(WAIT_S) == "done"

    ended_well = how != "cancel"
    assert attempts == [(None, 0)] * (2 if ended_well else 1)
    assert stored(app) == (({"n": 1}, 1) if ended_well else (None, 0))


def test_a_result_that_cannot_be_stored_takes_the_changes_with_it(app: App) -> None:
    @app.task
    async def body() -> Any:
        await thread().update(more)
        return object()

    with pytest.raises(TaskFailed, match="cannot be stored"):
        body.options(thread_id="t").submit().result(WAIT_S)

    assert stored(app) == (None, 0)


def test_several_threads_change_in_one_transaction(app: App) -> None:
    @app.task
    async def transfer(n: int) -> None:
        await thread("from", dict[str, int]).update(lambda s: {"gold": s.get("gold", 100) - n})
        await app.thread("to", dict[str, int]).update(lambda s: {"gold": s.get("gold", 0) + n})

    for handle in transfer.map([1, 2, 3, 4]):
        handle.result(WAIT_S)

    assert (stored(app, "from"), stored(app, "to")) == (({"gold": 90}, 4), ({"gold": 10}, 4))


def test_a_function_that_raises_in_a_body_leaves_what_was_there(app: App) -> None:
    @app.task
    async def body() -> dict[str, Any]:
        await thread().update(more)
        with pytest.raises(KeyError):
            await thread().update(lambda s: s["missing"])
        return await thread().get()

    assert body.options(thread_id="t").submit().result(WAIT_S) == {"n": 1}

    assert stored(app) == ({"n": 1}, 1)


def test_a_hundred_parallel_updates_in_one_body_are_all_there(app: App) -> None:
    @app.task
    async def body() -> int:
        await asyncio.gather(*(thread().update(more) for _ in range(100)))
        return int((await thread().get())["n"])

    assert body.options(thread_id="t").submit().result(WAIT_S) == 100

    assert stored(app) == ({"n": 100}, 100)


# ---------------------------------------------------------------- conflicts at the end


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_changes_that_come_too_late_are_made_again_on_what_is_stored(app: App, kind: str) -> None:
    runs: list[int] = []
    callers: set[str] = set()

    def add(state: dict[str, Any]) -> dict[str, Any]:
        callers.add(threading.current_thread().name.partition("-")[2][:4])
        return more(state)

    def write() -> None:
        app.store.write_states([StateWrite(thread_id="t", expected=0, data=b'{"n":40}')]).wait(WAIT_S)

    @app.task(name="async")
    async def in_async() -> str:
        runs.append(1)
        await thread().update(add)
        await thread().update(add)
        write()
        return "done"

    @app.task(name="sync")
    def in_sync() -> str:
        runs.append(1)
        thread().update(add).result()
        thread().update(add).result()
        write()
        return "done"

    task = in_async if kind == "async" else in_sync
    assert task.options(thread_id="t").submit().result(WAIT_S) == "done"
    ledger = app.ledger().result()

    assert runs == [1]
    assert callers == {"loop" if kind == "async" else "body"}
    assert stored(app) == ({"n": 42}, 3)
    assert (ledger.succeeded, ledger.retried, ledger.live, ledger.missing) == (1, 0, 0, 0)


def test_a_change_for_one_version_that_comes_too_late_is_the_error_of_the_attempt(app: App) -> None:
    attempts: list[int] = []

    @app.task(retries=AGAIN)
    async def body() -> bool:
        attempts.append(1)
        _, version = await thread().get_versioned()
        changed = await thread().update_if(version, more)
        if len(attempts) == 1:
            await write_behind(app, b'{"n":40}', expected=0)
        return changed

    handle = body.options(thread_id="t").submit()
    assert handle.result(WAIT_S) is True
    first = app.store.attempts(handle.id).result()[0]

    assert first.error is not None
    assert first.error.kind == "ConcurrentModificationError"
    assert stored(app) == ({"n": 41}, 2)


def test_changes_that_are_always_too_late_end_as_the_error_of_the_attempt(app: App) -> None:
    calls: list[int] = []

    def overtaken(state: dict[str, Any]) -> dict[str, Any]:
        app.store.write_states([StateWrite(thread_id="t", expected=len(calls), data=b"{}")]).wait(WAIT_S)
        calls.append(1)
        return state

    @app.task
    async def body() -> None:
        await thread().update(overtaken)

    with pytest.raises(TaskFailed) as caught:
        body.options(thread_id="t").submit().result(WAIT_S)

    assert caught.value.kind == "ConcurrentModificationError"
    assert len(calls) == 1 + 21


def test_a_change_that_fails_when_it_is_made_again_fails_the_attempt(app: App) -> None:
    @app.task
    async def body() -> None:
        await thread().update(lambda s: {"n": 10 // (1 - s.get("n", 0))})
        await write_behind(app, b'{"n":1}', expected=0)

    with pytest.raises(TaskFailed) as caught:
        body.options(thread_id="t").submit().result(WAIT_S)

    assert caught.value.kind == "ZeroDivisionError"
    assert stored(app) == ({"n": 1}, 1)


def test_tasks_without_a_thread_that_write_to_one_lose_no_update(app: App) -> None:
    @app.task
    async def body(n: int) -> None:
        await thread("shared").update(more)
        await asyncio.sleep(0)

    body.map(range(60)).result(WAIT_S)

    assert stored(app, "shared") == ({"n": 60}, 60)


# ---------------------------------------------------------------- operations


def test_an_operation_is_done_once_whatever_attempt_and_task_it_is_in(app: App) -> None:
    @app.task
    async def charge(order: str) -> Any:
        first = await thread().update(more, operation_id=f"charge {order}")
        again = await thread().update(more, operation_id=f"charge {order}")
        await thread().update(lambda s: {**s, "seen": s.get("seen", 0) + 1})
        return [first["n"], again["n"]]

    handles = [charge.options(thread_id="t").submit(order) for order in ("a", "b", "a")]
    assert [h.result(WAIT_S) for h in handles] == [[1, 1], [2, 2], [1, 1]]

    assert stored(app)[0] == {"n": 2, "seen": 3}


def test_an_operation_that_another_one_does_meanwhile_is_left_out(app: App) -> None:
    @app.task
    async def charge() -> None:
        await thread().update(more, operation_id="charge")
        await thread().update(lambda s: {**s, "mine": True})
        write = StateWrite(thread_id="t", expected=0, data=b'{"n":1,"other":true}', operation_id="charge")
        await app.store.write_states([write])

    charge.options(thread_id="t").submit().result(WAIT_S)

    assert stored(app) == ({"n": 1, "other": True, "mine": True}, 2)


# ---------------------------------------------------------------- save


def test_what_was_saved_stays_when_the_attempt_fails_and_is_not_done_twice(app: App) -> None:
    attempts: list[Any] = []

    @app.task(retries=AGAIN)
    async def body() -> Any:
        attempts.append(stored(app))
        await thread().update(more)
        await thread().update(more)
        await thread().save()
        assert stored(app) == ({"n": 2}, 2)
        await thread().update(lambda s: {**s, "after": s.get("after", 0) + 1})
        if len(attempts) == 1:
            raise OSError("after the save")
        return await thread().get()

    assert body.options(thread_id="t").submit().result(WAIT_S) == {"n": 2, "after": 1}

    assert attempts == [(None, 0), ({"n": 2}, 2)]
    assert stored(app) == ({"n": 2, "after": 1}, 3)


def test_a_change_that_insists_on_a_version_is_found_again_after_a_save(app: App) -> None:
    attempts: list[int] = []

    @app.task(retries=AGAIN)
    async def body() -> bool:
        attempts.append(1)
        changed = await thread().update_if(0, more)
        await thread().save()
        if len(attempts) == 1:
            raise OSError("after the save")
        return changed

    assert body.options(thread_id="t").submit().result(WAIT_S) is True

    assert stored(app) == ({"n": 1}, 1)


def test_a_save_makes_its_changes_again_when_others_were_faster(app: App) -> None:
    @app.task
    async def body() -> None:
        await thread().update(more)
        await write_behind(app, b'{"n":40}', expected=0)
        await thread().save()
        assert stored(app) == ({"n": 41}, 2)

    body.options(thread_id="t").submit().result(WAIT_S)

    assert stored(app) == ({"n": 41}, 2)


def test_saves_beside_updates_lose_and_repeat_nothing(app: App) -> None:
    @app.task
    async def body() -> None:
        for_the_thread = thread()
        await asyncio.gather(
            *(wait for _ in range(10) for wait in (for_the_thread.update(more), for_the_thread.save()))
        )

    body.options(thread_id="t").submit().result(WAIT_S)

    assert stored(app) == ({"n": 10}, 10)


def test_a_cancelled_attempt_saves_nothing_more(app: App) -> None:
    entered, gate = threading.Event(), threading.Event()
    refused: list[BaseException] = []

    @app.task
    def body() -> None:
        thread().update(more).result()
        entered.set()
        try:
            gate.wait()  # the interrupt reaches it here
            gate.wait()
        finally:
            try:
                thread().save().result()
            except BaseException as error:
                refused.append(error)
                raise

    handle = body.options(thread_id="t").submit()
    assert entered.wait(WAIT_S)
    assert handle.cancel().result(WAIT_S)
    gate.set()
    with pytest.raises(TaskCancelled):
        handle.result(WAIT_S)
    app.__exit__(None, None, None)

    assert [type(error).__name__ for error in refused] == ["AttemptCancelled"]
    assert stored(app) == (None, 0)


PROGRAM = """
import os, signal, sys
from sennit import App, thread

app = App(sys.argv[1], durability="normal")

def add(state):
    return {**state, "n": state.get("n", 0) + 1}

@app.task(name="charge")
async def charge() -> int:
    await thread().update(add)
    await thread().update(add)
    await thread().save()
    await thread().update(add)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return (await thread().get())["n"]

if sys.argv[2] == "submit":
    charge.options(thread_id="t").submit()
else:
    with app:
        print(app.handle(app.store.tasks().result()[0].id).result(30), flush=True)
app.close()
"""


def test_a_killed_process_has_saved_what_it_saved_and_the_next_attempt_repeats_none_of_it(tmp_path: Path) -> None:
    program, url = tmp_path / "program.py", f"sqlite:///{tmp_path}/fleet.db"
    program.write_text(PROGRAM, encoding="utf-8")

    def run(what: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(program), url, what]
        return subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert run("submit").returncode == 0
    assert run("die").returncode == -signal.SIGKILL
    client = App(url, durability="normal")
    assert stored(client) == ({"n": 2}, 2)

    assert run("work").stdout == "3\n"

    assert stored(client) == ({"n": 3}, 3)
    assert client.ledger().result().crashed == 1
    client.close()


# ---------------------------------------------------------------- fork, and where threads are to be had


def test_a_fork_in_a_body_commits_with_the_result(app: App) -> None:
    attempts: list[int] = []

    @app.task(retries=AGAIN)
    async def body() -> str:
        attempts.append(1)
        await thread().update(more)
        fork = await thread().fork("copy")
        await fork.update(more)
        if len(attempts) == 1:
            raise OSError("no")
        assert stored(app, "copy") == (None, 0)
        return fork.id

    assert body.options(thread_id="t").submit().result(WAIT_S) == "copy"

    assert (stored(app), stored(app, "copy")) == (({"n": 1}, 1), ({"n": 2}, 2))


def test_a_fork_in_a_body_never_writes_over_a_thread(app: App) -> None:
    app.thread("copy").update(lambda _: {"mine": True}).result()

    @app.task
    async def body() -> None:
        await thread().update(more)
        with pytest.raises(ConcurrentModificationError):
            await thread().fork("copy")

    body.options(thread_id="t").submit().result(WAIT_S)

    assert stored(app, "copy") == ({"mine": True}, 1)


def test_a_thread_that_works_cannot_be_forgotten(app: App) -> None:
    @app.task
    async def body() -> None:
        with pytest.raises(ThreadBusy):
            await thread().forget()

    body.options(thread_id="t").submit().result(WAIT_S)


def test_thread_needs_a_task_that_has_one(app: App) -> None:
    @app.task
    async def body() -> None:
        thread("named")
        thread()

    with pytest.raises(UsageError, match="outside of a task body"):
        thread()
    with pytest.raises(TaskFailed, match="has no thread") as caught:
        body.submit().result(WAIT_S)
    assert "thread_id" in caught.value.fix


def test_a_thread_that_outlives_its_body_says_so(app: App) -> None:
    kept: list[Any] = []

    @app.task
    async def body() -> None:
        kept.append(thread())

    body.options(thread_id="t").submit().result(WAIT_S)

    with pytest.raises(UsageError, match="after the attempt"):
        kept[0].update(more).result()


def test_a_body_that_would_wait_for_its_own_child_in_its_thread_is_told(app: App) -> None:
    @app.task
    async def inner() -> int:
        return 1

    @app.task
    async def waits(thread_id: str | None) -> int:
        return await inner.options(thread_id=thread_id).submit()

    assert waits.options(thread_id="t").submit(None).result(WAIT_S) == 1
    assert waits.options(thread_id="t").submit("other").result(WAIT_S) == 1
    with pytest.raises(TaskFailed, match="for ever") as caught:
        waits.options(thread_id="t").submit("t").result(WAIT_S)

    assert caught.value.kind == "UsageError"


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_body_that_would_wait_for_a_task_behind_it_in_its_thread_is_told(app: App, kind: str) -> None:
    behind: list[int] = []
    submitted = threading.Event()

    @app.task
    def inner() -> int:
        return 1

    @app.task(name="async")
    async def in_async() -> Any:
        await asyncio.get_running_loop().run_in_executor(None, submitted.wait)
        return await app.handle(behind[0])

    @app.task(name="sync")
    def in_sync() -> Any:
        submitted.wait()
        return app.handle(behind[0]).result()

    waits = in_async if kind == "async" else in_sync
    first = waits.options(thread_id="t").submit()
    second = inner.options(thread_id="t").submit()
    behind.append(second.id)
    submitted.set()
    with pytest.raises(TaskFailed, match="for ever"):
        first.result(WAIT_S)
    assert second.result(WAIT_S) == 1
    behind[0] = second.id  # it has ended: that is no wait
    assert waits.options(thread_id="t").submit().result(WAIT_S) == 1


# ---------------------------------------------------------------- suspension and steps


def test_a_step_that_runs_beside_a_sleep_ends_first_and_is_not_repeated(app: App) -> None:
    calls: list[str] = []

    async def slow() -> str:
        calls.append("begin")
        for _ in range(20):
            await asyncio.sleep(0)
        calls.append("end")
        return "slow"

    @app.task
    async def body() -> str:
        result, _ = await asyncio.gather(step(slow), sleep(0.0))
        return result

    assert body.submit().result(WAIT_S) == "slow"

    assert calls == ["begin", "end"]


def test_a_sleep_inside_of_steps_that_run_together_holds_up_none_of_them(app: App) -> None:
    async def nap(n: int) -> int:
        await sleep(0.0)
        return n

    @app.task
    async def body() -> list[int]:
        return list(await asyncio.gather(step(nap, 1), step(nap, 2)))

    assert body.submit().result(WAIT_S) == [1, 2]


def test_a_task_group_suspends_like_a_gather(app: App) -> None:
    calls: list[int] = []

    @app.task
    async def body() -> str:
        calls.append(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(_nap())
            group.create_task(_nap())
        return "done"

    async def _nap() -> None:
        await sleep(0.0)

    handle = body.submit()
    assert handle.result(WAIT_S) == "done"
    assert app.ledger().result().retried == 0

    assert len(calls) > 1


def test_what_a_body_left_behind_begins_no_step_any_more(app: App) -> None:
    calls: list[str] = []
    left: list[asyncio.Task[None]] = []
    gates: list[asyncio.Event] = []

    def late() -> None:
        calls.append("late")

    async def straggler(gate: asyncio.Event) -> None:
        await gate.wait()
        await step(late)

    @app.task
    async def leaves() -> None:
        gates.append(asyncio.Event())
        left.append(asyncio.create_task(straggler(gates[0])))
        await asyncio.sleep(0)

    @app.task
    async def waits() -> str:
        gates[0].set()
        await asyncio.wait(left)
        return type(left[0].exception()).__name__

    leaves.submit().result(WAIT_S)

    assert waits.submit().result(WAIT_S) == "AttemptCancelled"
    assert calls == []


def test_not_retryable_is_still_final_with_changes_in_hand(app: App) -> None:
    @app.task(retries=AGAIN)
    async def body() -> None:
        await thread().update(more)
        assert current() is not None
        raise NotRetryable("no")

    with pytest.raises(TaskFailed):
        body.options(thread_id="t").submit().result(WAIT_S)

    assert stored(app) == (None, 0)

"""Bad days: whatever a body does, it ends as something a person can read, and the others go on."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from sennit import App, Cancel, NotRetryable, Retry, RetryPolicy, Rule, Snooze, TaskCancelled, TaskFailed, step
from sennit.errors import PayloadError, SettingsError

WAIT_S = 30.0


def failure(app: App, body: Callable[..., Any], *args: Any, **how: Any) -> TaskFailed:
    """Run a body that fails; return how, after another task has shown that the worker is well."""
    task: Any = app.task(**how)(body)
    well = app.task(name="well")(_well)
    with app:
        with pytest.raises(TaskFailed) as caught:
            task.submit(*args).result(WAIT_S)
        assert well.submit().result(WAIT_S) == "well"
    assert app.store.verify().result() == []
    return caught.value


async def _well() -> str:
    return "well"


# ---------------------------------------------------------------- exceptions of every kind


class StubbornError(Exception):
    """Cannot be pickled and come back."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.lock = asyncio.Lock


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raise_stubborn() -> NoReturn:
    raise StubbornError(code=5)


def raise_speechless() -> NoReturn:
    raise SpeechlessError


def raise_group() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])


def leave() -> NoReturn:
    sys.exit(3)


def press_ctrl_c() -> NoReturn:
    raise KeyboardInterrupt


def return_a_lock() -> Any:
    return asyncio.Lock()


BAD = [
    (raise_stubborn, "StubbornError", "code 5"),
    (raise_speechless, "SpeechlessError", "RuntimeError"),
    (raise_group, "ExceptionGroup", "several"),
    (leave, "SystemExit", "3"),
    (press_ctrl_c, "KeyboardInterrupt", ""),
    (return_a_lock, "PayloadError", "Lock"),
]


@pytest.mark.parametrize("kind", ["async", "sync", "cpu"])
@pytest.mark.parametrize(("body", "name", "text"), BAD, ids=[name for _, name, _ in BAD])
def test_whatever_a_body_raises_becomes_a_readable_failure(
    app: App, body: Any, name: str, text: str, kind: str
) -> None:
    async def in_async() -> Any:
        return body()

    failed = failure(app, in_async if kind == "async" else body, cpu=kind == "cpu")

    assert failed.kind == name
    assert text in failed.message
    if body is raise_group:
        assert "two" in failed.remote_traceback


def test_a_traceback_names_the_line_of_the_body(app: App) -> None:
    async def broken() -> None:
        raise ValueError("here")

    assert 'raise ValueError("here")' in failure(app, broken).remote_traceback


# ---------------------------------------------------------------- payloads that fit no more


def test_a_payload_that_fails_the_types_of_a_changed_handler_fails_at_run_and_is_not_retried(
    app: App, url: str
) -> None:
    @app.task(name="changing")
    def before(n: int) -> int:
        return n

    handle = before.submit(1)
    app.close()

    other = App(url, durability="normal")

    @other.task(name="changing", retries=5)
    def after(n: list[str]) -> list[str]:
        return n

    with other, pytest.raises(TaskFailed) as caught:
        other.handle(handle.id).result(WAIT_S)
    assert (caught.value.kind, caught.value.attempts) == ("PayloadError", 1)


def test_a_result_over_the_ceiling_fails_with_both_figures(url: str) -> None:
    app = App(url, durability="normal", payload_bytes_max=1024)

    async def large() -> str:
        return "x" * 2000

    assert "payload_bytes_max is 1024" in failure(app, large).message


def test_a_handler_with_star_arguments_is_refused_when_it_is_registered(app: App) -> None:
    with pytest.raises(PayloadError, match="named parameters"):
        app.task(lambda *args: None)


def test_two_handlers_of_one_name_are_refused(app: App) -> None:
    app.task(name="same")(raise_stubborn)

    with pytest.raises(SettingsError, match="two handlers are called 'same'"):
        app.task(name="same")(raise_speechless)


# ---------------------------------------------------------------- handler missing


@pytest.mark.usefixtures("impatient")
def test_a_task_nobody_knows_fails_with_kind_handler_missing_in_the_end(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is offered again first, for as long as a deploy may take."""
    client = App(url, durability="normal")
    handle: Any = client.task(name="renamed")(raise_stubborn).submit()

    with App(url, durability="normal", handler_missing_s=0.6), pytest.raises(TaskFailed) as caught:
        handle.result(WAIT_S)

    client.close()
    assert caught.value.kind == "handler_missing"
    assert "register the new function under the old name" in caught.value.fix
    assert "offered again" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_second_worker_that_knows_the_handler_takes_the_task(url: str) -> None:
    """The first has no slot left when the task is offered again."""
    ignorant = App(url, durability="normal", slots=1)
    client = App(url, durability="normal")
    handle = client.task(name="renamed")(_well).submit()
    hold = client.task(name="hold")(_well)

    @ignorant.task(name="hold")
    async def hold_here() -> str:
        await asyncio.Event().wait()
        return ""

    knowing = App(url, durability="normal", slots=1)
    knowing.task(name="renamed")(_well)
    with ignorant:
        holding = hold.submit()  # claimed once the first try of the other has ended
        with knowing:
            assert handle.result(WAIT_S) == "well"
        holding.cancel().result(WAIT_S)
    client.close()


# ---------------------------------------------------------------- a body that harms its process


def test_a_body_that_blocks_the_loop_is_named_and_keeps_its_lease(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App(url, durability="normal", lease_s=0.5, loop_lag_notice_s=0.1)

    @app.task(name="blocks")
    async def blocks() -> str:
        time.sleep(1.5)  # noqa: ASYNC251 - the mistake
        return "done"

    onlooker = App(url, durability="normal", lease_s=0.5)  # would take over what lapses
    with onlooker, app:
        handle = blocks.submit()
        assert handle.result(WAIT_S) == "done"
        view = handle.view().result()

    assert (view.attempt, view.crashes) == (1, 0)
    assert "(blocks) kept the event loop for" in caplog.text


def fork_and_return() -> int:
    if os.fork() == 0:
        return -1
    return os.getpid()


@pytest.mark.parametrize("kind", ["async", "sync", "cpu"])
def test_a_body_that_forks_ends_once(app: App, kind: str) -> None:
    """The child comes back out of the body too; it must not touch the store, the loop or the pipes."""

    async def in_async() -> int:
        return fork_and_return()

    task: Any = app.task(cpu=kind == "cpu")(in_async if kind == "async" else fork_and_return)
    well = app.task(name="well")(_well)
    with app:
        assert task.submit().result(WAIT_S) > 0
        assert well.submit().result(WAIT_S) == "well"
        ledger = app.ledger().result()

    assert (ledger.succeeded, ledger.crashed, ledger.refused) == (2, 0, 0)


def exhaust_memory() -> int:
    return len([bytearray(1 << 24) for _ in range(10_000)])


def test_a_cpu_body_over_its_memory_fails_alone(url: str) -> None:
    app = App(url, durability="normal", cpu_memory_bytes_max=1 << 30)

    assert failure(app, exhaust_memory, cpu=True).kind == "MemoryError"


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def read_null() -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize("body", [segfault, read_null])
def test_a_cpu_body_that_kills_its_process_is_poison_in_the_end(url: str, body: Any) -> None:
    app = App(url, durability="normal", crashes_max=2)

    failed = failure(app, body, cpu=True, retries=5)

    assert failed.kind == "poison"
    assert "exit code -11" in failed.message
    ledger = app.ledger().result()
    app.close()
    assert (ledger.crashed, ledger.retried) == (2, 0)


def test_crashes_max_of_one_task_overrides_the_setting(app: App) -> None:
    task = app.task(cpu=True)(segfault)

    with app:
        handle = task.options(crashes_max=1).submit()
        with pytest.raises(TaskFailed, match="poison"):
            handle.result(WAIT_S)
        assert handle.view().result().crashes == 1


# ---------------------------------------------------------------- values instead of results


def test_retry_as_a_value_uses_up_a_retry(app: App) -> None:
    async def again() -> Retry:
        return Retry(after_s=0.0, reason="not ready")

    failed = failure(app, again, retries=2)

    assert (failed.kind, failed.message, failed.attempts) == ("Retry", "not ready", 3)


def test_snooze_uses_up_nothing(app: App) -> None:
    @app.task
    async def later() -> str | Snooze:
        seen.append(1)
        return Snooze(after_s=0.05) if len(seen) < 4 else "now"

    seen: list[int] = []
    with app:
        handle = later.submit()
        assert handle.result(WAIT_S) == "now"
        view = handle.view().result()

    assert (view.attempt, view.failures, view.crashes) == (4, 0, 0)


def cancel_me() -> Cancel:
    return Cancel("not wanted")


@pytest.mark.parametrize("cpu", [False, True], ids=["sync", "cpu"])
def test_cancel_as_a_value_ends_the_task_as_cancelled(app: App, *, cpu: bool) -> None:
    task = app.task(cpu=cpu)(cancel_me)

    with app, pytest.raises(TaskCancelled, match="not wanted"):
        task.submit().result(WAIT_S)


# ---------------------------------------------------------------- retries


def test_not_retryable_fails_at_once_whatever_the_policy_says(app: App) -> None:
    async def hopeless() -> None:
        raise NotRetryable("no such user")

    assert failure(app, hopeless, retries=10).attempts == 1


def test_rules_decide_by_exception_class(app: App) -> None:
    policy = RetryPolicy(
        retries=5, delay_s=0.0, rules=(Rule(on=(ConnectionError,), retries=1), Rule(on=(OSError,), retries=2)),
        never_on=(KeyError,),
    )  # fmt: skip

    @app.task(retries=policy)
    async def broken(kind: str) -> None:
        raise {"connection": ConnectionResetError, "os": OSError, "key": KeyError}[kind]

    attempts = {}
    with app:
        for kind in ("connection", "os", "key"):
            with pytest.raises(TaskFailed) as caught:
                broken.submit(kind).result(WAIT_S)
            attempts[kind] = caught.value.attempts

    assert attempts == {"connection": 2, "os": 3, "key": 1}


def raise_os_error() -> NoReturn:
    raise ConnectionResetError("gone")


def test_rules_also_see_exceptions_of_cpu_bodies(app: App) -> None:
    policy = RetryPolicy(retries=0, delay_s=0.0, rules=(Rule(on=(ConnectionError,), retries=1),))

    assert failure(app, raise_os_error, cpu=True, retries=policy).attempts == 2


def test_options_retries_overrides_the_count_of_the_policy(app: App) -> None:
    @app.task(retries=RetryPolicy(retries=0, delay_s=0.0))
    async def broken() -> None:
        raise OSError("no")

    with app, pytest.raises(TaskFailed) as caught:
        broken.options(retries=2).submit().result(WAIT_S)
    assert caught.value.attempts == 3


def test_every_failed_attempt_is_kept_with_its_error(app: App) -> None:
    @app.task(retries=RetryPolicy(retries=1, delay_s=0.0))
    async def broken() -> None:
        raise OSError("no")

    with app:
        handle = broken.submit()
        with pytest.raises(TaskFailed):
            handle.result(WAIT_S)
        attempts = app.store.attempts(handle.id).result()

    assert [(a.attempt, a.outcome, a.error.kind if a.error else "") for a in attempts] == [
        (1, "retried", "OSError"),
        (2, "failed", "OSError"),
    ]


# ---------------------------------------------------------------- steps and logs


def test_a_step_is_not_run_again_by_the_next_attempt(app: App) -> None:
    ran: list[int] = []

    def pay(n: int) -> int:
        ran.append(n)
        return n

    @app.task(retries=RetryPolicy(retries=1, delay_s=0.0))
    async def order() -> list[int]:
        paid = [await step(pay, 1), await step(pay, 2), await step(pay, 1)]
        if len(ran) == 3 and not failed:
            failed.append(1)
            raise OSError("after paying")
        return paid

    failed: list[int] = []
    with app:
        assert order.submit().result(WAIT_S) == [1, 2, 1]

    assert ran == [1, 2, 1]


def test_a_step_whose_result_does_not_serialise_fails_the_attempt(app: App) -> None:
    async def body() -> None:
        await step(asyncio.Lock)

    failed = failure(app, body)

    assert failed.kind == "PayloadError"
    assert "the result of step" in failed.message


def test_log_records_of_a_body_are_kept_with_its_attempt(app: App) -> None:
    log = logging.getLogger("some.library")

    @app.task
    async def talks() -> None:
        log.warning("on the loop: %d", 1)

    @app.task
    def talks_too() -> None:
        log.error("in an OS thread")

    with app:
        log.warning("outside")
        handles = [talks.submit(), talks_too.submit()]
        for handle in handles:
            handle.result(WAIT_S)
    lines = [[(line.level, line.text) for line in app.store.logs(h.id).result()] for h in handles]

    assert lines == [[("warning", "on the loop: 1")], [("error", "in an OS thread")]]

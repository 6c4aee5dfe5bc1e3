"""Handing in: arguments, dependencies, keys, delays, and everywhere a program may do it from."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sennit import App, Cancel, Priority, TaskCancelled, TaskFailed, TaskNotFound
from sennit.errors import (
    DuplicateKey,
    PayloadError,
    PayloadTooLarge,
    ResultTimeout,
    SettingsError,
    UnknownDependency,
    UnknownHandler,
    UsageError,
)
from sennit.model.lifecycle import State
from sennit.model.order import order_us

WAIT_S = 30.0


def add(x: int, y: int = 0) -> int:
    return x + y


# ---------------------------------------------------------------- where from


def test_a_script_submits_and_blocks_for_the_result(app: App) -> None:
    task = app.task(add)

    with app:
        assert task.submit(1, y=2).result(WAIT_S) == 3


def test_an_async_program_submits_and_awaits(app: App) -> None:
    @app.task
    async def double(x: int) -> int:
        return 2 * x

    async def main() -> int:
        async with app:
            return await double.submit(21)

    assert asyncio.run(main()) == 42


def test_a_running_loop_can_enter_the_app_at_its_top_level_as_a_notebook_does(app: App) -> None:
    """Each cell is a turn of one loop; the app stays open between them, and `with app` works there too."""
    task = app.task(add)

    async def first_cell() -> None:
        await app.__aenter__()

    async def second_cell() -> int:
        return await task.submit(1, 2)

    async def last_cell() -> None:
        await app.__aexit__(None, None, None)

    async def sync_cell() -> int:
        with app:
            return await task.submit(3, 4)

    with asyncio.Runner() as notebook:
        notebook.run(first_cell())
        assert notebook.run(second_cell()) == 3
        notebook.run(last_cell())
        assert notebook.run(sync_cell()) == 7


def test_result_inside_a_running_loop_names_await_as_the_way_out(app: App) -> None:
    task = app.task(add)

    async def main() -> None:
        async with app:
            task.submit(1).result()

    with pytest.raises(UsageError, match="write `await handle`"):
        asyncio.run(main())


def test_a_task_called_directly_is_the_plain_function(app: App) -> None:
    assert app.task(add)(2, 3) == 5


def test_what_was_submitted_before_the_workers_start_runs_when_they_do(app: App, url: str) -> None:
    task = app.task(add)
    handle = task.submit(1, 1)
    app.close()

    other = App(url, durability="normal")
    other.task(add)  # or the first to claim it does not know it, and puts it aside
    with other:
        assert other.handle(handle.id).result(WAIT_S) == 2
    other.close()


def test_a_handler_registered_while_the_app_works_is_served_at_once(app: App) -> None:
    with app:
        task = app.task(queue="brand-new")(add)

        assert task.submit(1, 2).result(WAIT_S) == 3


def test_submit_named_finds_a_handler_by_the_last_part_of_its_name(app: App) -> None:
    app.task(add)

    with app:
        assert app.submit_named("add", {"x": 1, "y": 5}).result(WAIT_S) == 6
        with pytest.raises(UnknownHandler, match="did you mean 'add'"):
            app.submit_named("ad", {})


# ---------------------------------------------------------------- many


def test_map_hands_in_one_task_per_item_and_keeps_the_order(app: App) -> None:
    task = app.task(add)

    with app:
        assert task.map(range(50)).result(WAIT_S) == list(range(50))
        assert task.map([1, 2], [10, 20], priority="high").result(WAIT_S) == [11, 22]


def test_submit_many_takes_calls_of_several_handlers_in_one_transaction(app: App) -> None:
    task = app.task(add)
    twice = app.task(_twice)

    with app:
        first, second = app.submit_many([task.call(1, 2), twice.call("a")])

        assert (first.result(WAIT_S), second.result(WAIT_S)) == (3, "aa")


def _twice(text: str) -> str:
    return text * 2


def test_handles_yield_as_their_tasks_end(app: App) -> None:
    @app.task
    async def wait_until_told(n: int) -> int:
        if n == 0:
            await told.wait()
        return n

    told = asyncio.Event()

    async def main() -> list[int]:
        order = []
        async with app:
            async for handle in wait_until_told.map([0, 1]).as_completed():
                order.append(await handle)
                told.set()
        return order

    assert asyncio.run(main()) == [1, 0]


def test_a_fan_out_of_nothing_is_the_empty_list(app: App) -> None:
    task = app.task(add)

    async def main() -> list[int]:
        async with app:
            return await task.map([])

    assert asyncio.run(main()) == []
    assert task.map([]).result() == []


# ---------------------------------------------------------------- dependencies


def test_a_handle_as_an_argument_is_a_dependency_and_becomes_its_result(app: App) -> None:
    task = app.task(add)

    @app.task
    def total(parts: list[int], bonus: dict[str, int]) -> int:
        return sum(parts) + bonus["x"]

    with app:
        parts = task.map([1, 2, 3])
        done = total.submit(parts.as_argument(), {"x": task.submit(10).as_argument()})

        assert done.result(WAIT_S) == 16


def test_after_orders_without_injecting(app: App) -> None:
    seen: list[str] = []

    @app.task
    async def first() -> None:
        seen.append("first")

    @app.task
    async def second() -> None:
        seen.append("second")

    with app:
        second.options(after=first.submit()).submit().result(WAIT_S)

    assert seen == ["first", "second"]


@pytest.mark.parametrize(
    ("policy", "state"), [("fail", State.FAILED), ("cancel", State.CANCELLED), ("run", State.SUCCEEDED)]
)
def test_a_failed_parent_does_to_its_dependant_what_the_policy_says(app: App, policy: Any, state: State) -> None:
    @app.task
    async def broken() -> int:
        raise ValueError("no")

    @app.task
    async def next_one() -> int:
        return 1

    with app:
        handle = next_one.options(after=[broken.submit()], on_parent_failed=policy).submit()
        if state is State.SUCCEEDED:
            assert handle.result(WAIT_S) == 1
        else:
            with pytest.raises((TaskFailed, TaskCancelled)):
                handle.result(WAIT_S)
        assert handle.view().result().state is state


def test_an_unknown_parent_is_refused_and_nothing_is_stored(app: App) -> None:
    task = app.task(add)

    with pytest.raises(UnknownDependency, match="unknown parent task: 987654"):
        task.options(after=[app.handle(987_654)]).submit(1)

    assert app.ledger().result().submitted == 0


def test_in_async_code_the_refusal_comes_from_stored_and_from_awaiting(app: App) -> None:
    task = app.task(add)

    async def main() -> None:
        handle = task.options(after=[app.handle(987_654)]).submit(1)
        with pytest.raises(UnknownDependency):
            await handle.stored()
        with pytest.raises(UnknownDependency):
            await handle

    asyncio.run(main())


# ---------------------------------------------------------------- payloads


def test_arguments_that_do_not_fit_the_signature_are_refused_at_submit(app: App) -> None:
    task: Any = app.task(add)

    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), (("one",), {})]:
        with pytest.raises(PayloadError):
            task.submit(*args, **kwargs)
    assert app.ledger().result().submitted == 0


def test_an_argument_that_does_not_serialise_says_what_to_pass_instead(app: App) -> None:
    @app.task
    def take(thing: Any) -> None: ...

    with pytest.raises(PayloadError, match="pass plain data"):
        take.submit(object())


def test_a_payload_over_the_ceiling_is_refused_with_both_figures(url: str) -> None:
    app = App(url, durability="normal", payload_bytes_max=1024)
    task = app.task(_twice)

    with pytest.raises(PayloadTooLarge, match="payload_bytes_max is 1024") as caught:
        task.submit("x" * 2000)

    assert caught.value.size_bytes > 2000
    app.close()


# ---------------------------------------------------------------- keys


def test_a_key_makes_a_second_submit_the_same_task(app: App) -> None:
    task = app.task(add)

    with app:
        first = task.options(key="once").submit(1)
        second = task.options(key="once").submit(2)

        assert second.result(WAIT_S) == first.result(WAIT_S) == 1
        assert second.id == first.id


def test_reject_names_the_task_that_has_the_key(app: App) -> None:
    task = app.task(add)
    first = task.options(key="once").submit(1)

    with pytest.raises(DuplicateKey) as caught:
        task.options(key="once", on_conflict="reject").submit(2)

    assert caught.value.task_id == first.id


def test_replace_cancels_the_old_task_and_passes_the_key_on(app: App) -> None:
    task = app.task(add)
    first = task.options(key="once").submit(1)
    second = task.options(key="once", on_conflict="replace").submit(2)

    with app:
        assert second.result(WAIT_S) == 2
        with pytest.raises(TaskCancelled, match="replaced by"):
            first.result(WAIT_S)


def test_in_async_code_a_keyed_handle_can_be_cancelled_and_viewed_at_once(app: App) -> None:
    """Its id is not final before it is stored; what is asked of it waits for that."""
    task = app.task(add)

    async def main() -> tuple[State, bool, int, int]:
        first = task.options(key="once", delay_s=60).submit(1)
        second = task.options(key="once", delay_s=60).submit(1)
        view = await second.view()
        return view.state, await second.cancel(), (await first.stored()).id, second.id

    state, cancelled, first_id, second_id = asyncio.run(main())

    assert (state, cancelled) == (State.SCHEDULED, True)
    assert first_id == second_id


# ---------------------------------------------------------------- time


def test_a_delayed_task_starts_no_earlier_and_waits_as_scheduled(app: App) -> None:
    task = app.task(add)

    with app:
        handle = task.options(delay_s=0.3).submit(1)
        assert handle.view().result().state is State.SCHEDULED
        assert handle.result(WAIT_S) == 1
        view = handle.view().result()

    assert view.started_us is not None
    assert view.started_us - view.created_us >= 300_000


def test_at_names_a_moment(app: App) -> None:
    task = app.task(add)

    with app:
        handle = task.options(at=datetime.now(UTC) + timedelta(seconds=0.3)).submit(1)
        handle.result(WAIT_S)
        view = handle.view().result()
        past = task.options(at=datetime(2020, 1, 1, tzinfo=UTC)).submit(2)
        assert past.result(WAIT_S) == 2

    assert view.started_us is not None
    assert view.started_us - view.created_us >= 250_000


@pytest.mark.parametrize(
    "options",
    [{"at": datetime(2030, 1, 1)}, {"delay_s": -1}, {"priority": "huge"}, {"on_conflict": "guess"}, {"colour": "red"}],  # noqa: DTZ001
    ids=str,
)
def test_an_option_out_of_its_bounds_is_refused_by_options(app: App, options: Any) -> None:
    with pytest.raises(SettingsError):
        app.task(add).options(**options)


# ---------------------------------------------------------------- order


def test_the_four_priorities_start_in_their_order(app: App) -> None:
    seen: list[str] = []

    @app.task(queue="one")
    async def note(name: str) -> None:
        seen.append(name)

    app._queues["one"] = 1
    names = ["low", "normal", "high", "urgent"]
    handles = [note.options(priority=name).submit(name) for name in names]
    with app:
        for handle in handles:
            handle.result(WAIT_S)

    assert seen == ["urgent", "high", "normal", "low"]


def test_a_thread_with_many_tasks_does_not_make_another_wait_for_all_of_them(app: App) -> None:
    seen: list[str] = []

    @app.task(queue="one")
    async def note(name: str) -> None:
        seen.append(name)

    app._queues["one"] = 1
    busy = note.map(["busy"] * 20, thread_id="busy")
    other = note.options(thread_id="other").submit("other")
    with app:
        other.result(WAIT_S)
        busy.result(WAIT_S)

    assert seen.index("other") <= 2


def test_priorities_are_aged_so_that_low_overtakes_what_came_much_later() -> None:
    assert order_us(Priority.LOW, now_us=0) < order_us(Priority.URGENT, now_us=24 * 3600 * 1_000_000)


# ---------------------------------------------------------------- waiting


def test_result_raises_after_its_time_and_the_task_goes_on(app: App) -> None:
    @app.task
    async def slow() -> str:
        await told.wait()
        return "done"

    with app:
        told = asyncio.Event()
        handle = slow.submit()
        with pytest.raises(ResultTimeout):
            handle.result(0.05)
        assert app._bridge is not None
        app._bridge.loop.call_soon_threadsafe(told.set)
        assert handle.result(WAIT_S) == "done"


def test_a_cancelled_wait_leaves_the_task_alone(app: App) -> None:
    @app.task
    async def slow() -> str:
        await told.wait()
        return "done"

    told = asyncio.Event()

    async def main() -> str:
        async with app:
            handle = slow.submit()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_wait(handle), 0.05)
            told.set()
            return await handle

    assert asyncio.run(main()) == "done"


async def _wait(handle: Any) -> Any:
    return await handle


@pytest.mark.parametrize("by_id", [False, True])
def test_waiting_without_a_worker_says_so_in_sync_code(
    url: str, caplog: pytest.LogCaptureFixture, *, by_id: bool
) -> None:
    app = App(url, durability="normal", no_worker_notice_s=0.05)
    handle: Any = app.task(add).submit(1)
    handle = app.handle(handle.id) if by_id else handle

    with pytest.raises(ResultTimeout):
        handle.result(0.5)

    app.close()
    assert "no worker serves queue 'default'" in caplog.text


def test_waiting_without_a_worker_says_so_in_async_code(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App(url, durability="normal", no_worker_notice_s=0.05)
    task = app.task(add)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_wait(task.submit(1)), 0.5)

    asyncio.run(main())

    app.close()
    assert "no worker serves queue 'default'" in caplog.text


def test_waiting_by_id_says_nothing_when_a_worker_serves_the_queue(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App(url, durability="normal", no_worker_notice_s=0.05)

    @app.task
    async def slow() -> None:
        await asyncio.Event().wait()

    with app:
        handle = slow.submit()
        with pytest.raises(ResultTimeout):
            app.handle(handle.id).result(0.4)
        handle.cancel().result()

    assert "no worker" not in caplog.text


def test_a_task_that_was_never_stored_is_not_found(app: App) -> None:
    with pytest.raises(TaskNotFound):
        app.handle(4711).result(WAIT_S)


def test_a_handler_that_cancels_itself_raises_task_cancelled_with_its_reason(app: App) -> None:
    @app.task
    async def unwanted() -> Cancel:
        return Cancel("nobody needs it")

    with app, pytest.raises(TaskCancelled, match="nobody needs it"):
        unwanted.submit().result(WAIT_S)


# ---------------------------------------------------------------- in the caller's transaction


def test_submit_in_a_transaction_of_the_caller_runs_with_its_commit(app: App, tmp_path: Path) -> None:
    task = app.task(add)

    with app:
        app.store.ledger().result()
        connection = sqlite3.connect(tmp_path / "fleet.db")
        connection.execute("CREATE TABLE orders (n INTEGER)")
        with connection:
            connection.execute("INSERT INTO orders VALUES (1)")
            handle = app.submit_in(connection, task, 1, 2)
        assert handle.result(WAIT_S) == 3
        connection.close()


def test_the_first_submit_of_a_process_may_be_inside_an_open_write_transaction(app: App, tmp_path: Path) -> None:
    """Ids come in blocks through the writer, which would wait for the very transaction it is called in."""
    task = app.task(add)
    app.ledger().result()
    connection = sqlite3.connect(tmp_path / "fleet.db")
    connection.execute("CREATE TABLE orders (n INTEGER)")

    with connection:
        connection.execute("INSERT INTO orders VALUES (1)")
        handle = app.submit_in(connection, task, 1, 2)

    connection.close()
    assert handle.view().result().state is State.READY


def test_a_rolled_back_transaction_leaves_no_task(app: App, tmp_path: Path) -> None:
    task = app.task(add)
    app.ledger().result()
    connection = sqlite3.connect(tmp_path / "fleet.db")

    connection.execute("BEGIN IMMEDIATE")
    handle = app.submit_in(connection, task, 1)
    connection.rollback()

    connection.close()
    with pytest.raises(TaskNotFound):
        handle.view().result()
    assert app.ledger().result().submitted == 0
    assert app.store.verify().result() == []


def test_a_transaction_on_another_database_is_refused(app: App) -> None:
    connection = sqlite3.connect(":memory:")

    with pytest.raises(UsageError, match="one transaction cannot span two databases"):
        app.submit_in(connection, app.task(add), 1)

    connection.close()

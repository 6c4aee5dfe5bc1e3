"""Children: they commit with their attempt, are found again by the next one, and a waiting parent lends its slot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sennit import App, Retry, RetryPolicy, Snooze, TaskFailed, sleep, step
from sennit.model.lifecycle import State
from sennit.submit.handle import Handle

WAIT_S = 30.0
AGAIN = RetryPolicy(retries=1, delay_s=0.0)


def children_of(app: App, handle: Handle[Any]) -> list[int]:
    return sorted(t.id for t in app.store.tasks(limit=1000).result() if t.parent_id == handle.id)


# ---------------------------------------------------------------- one transaction with the result


def test_children_nobody_waited_for_commit_with_the_result(app: App) -> None:
    ran: list[int] = []

    @app.task(queue="children")
    async def child(n: int) -> int:
        ran.append(n)
        return n

    @app.task
    async def parent() -> str:
        child.map([1, 2, 3])
        assert (await app.ledger()).submitted == 1  # not stored before the parent has its result
        return "done"

    with app:
        handle = parent.submit()
        assert handle.result(WAIT_S) == "done"
        for task_id in children_of(app, handle):
            app.handle(task_id).result(WAIT_S)

    assert sorted(ran) == [1, 2, 3]


@pytest.mark.parametrize("how", ["raise", "retry", "snooze"])
def test_an_attempt_without_a_result_leaves_no_children(app: App, how: str) -> None:
    @app.task
    async def child() -> None: ...

    @app.task(retries=AGAIN)
    async def parent() -> Any:
        attempts.append(1)
        child.submit()
        if len(attempts) == 1:
            match how:
                case "raise":
                    raise OSError("no")
                case "retry":
                    return Retry(after_s=0.0)
                case _:
                    return Snooze(after_s=0.0)
        return "done"

    attempts: list[int] = []
    with app:
        handle = parent.submit()
        assert handle.result(WAIT_S) == "done"

        assert len(children_of(app, handle)) == 1


def test_a_retried_parent_finds_the_children_it_waited_for(app: App) -> None:
    ran: list[int] = []

    @app.task
    async def child(n: int) -> int:
        ran.append(n)
        return n

    @app.task(retries=AGAIN)
    async def parent() -> int:
        total = sum([await h for h in (child.submit(1), child.submit(2), child.submit(1))])
        if not failed:
            failed.append(1)
            raise OSError("after waiting")
        return total

    failed: list[int] = []
    with app:
        handle = parent.submit()
        assert handle.result(WAIT_S) == 4
        assert len(children_of(app, handle)) == 3

    assert sorted(ran) == [1, 1, 2]


def test_a_child_that_is_refused_fails_its_parent_and_nobody_else(app: App) -> None:
    """The ends of one turn of the loop are stored together; the others of that turn must not suffer."""

    @app.task
    async def child() -> None: ...

    @app.task
    async def careless() -> None:
        await gate.wait()
        child.options(after=[app.handle(987_654)]).submit()

    @app.task
    async def careful(n: int) -> int:
        await gate.wait()
        child.submit()
        return n

    gate = asyncio.Event()

    async def main() -> list[int]:
        async with app:
            bad = careless.submit()
            good = careful.map(range(10))
            await bad.stored()
            for handle in good:
                await handle.stored()
            gate.set()
            with pytest.raises(TaskFailed) as caught:
                await bad
            assert (caught.value.kind, caught.value.attempts) == ("UnknownDependency", 1)
            return await good

    assert asyncio.run(main()) == list(range(10))
    assert app.ledger().result().balanced


def test_a_child_that_is_refused_says_so_where_the_body_waits_for_it(app: App) -> None:
    @app.task
    async def child() -> None: ...

    @app.task
    async def careless() -> None:
        await child.options(after=[app.handle(987_654)]).submit()

    with app, pytest.raises(TaskFailed, match="unknown parent task"):
        careless.submit().result(WAIT_S)


def test_a_body_can_cancel_and_view_its_own_child(app: App) -> None:
    @app.task
    async def child() -> None:
        await asyncio.Event().wait()

    @app.task
    async def parent() -> list[Any]:
        one, two = child.options(delay_s=60).submit(), child.options(delay_s=60).submit()
        return [(await one.view()).state, await two.cancel()]

    with app:
        assert parent.submit().result(WAIT_S) == [State.SCHEDULED, True]


def test_a_child_may_depend_on_another_child(app: App) -> None:
    @app.task
    async def one() -> int:
        return 1

    @app.task
    def plus(x: int, y: int) -> int:
        return x + y

    @app.task
    async def parent() -> int:
        return await plus.submit(one.submit().as_argument(), plus.submit(one.submit().as_argument(), 5).as_argument())

    with app:
        assert parent.submit().result(WAIT_S) == 7


# ---------------------------------------------------------------- slots


def test_async_parents_waiting_for_more_children_than_slots_do_not_deadlock(app: App) -> None:
    @app.task
    async def child(n: int) -> int:
        return n

    @app.task
    async def parent(n: int) -> int:
        return sum(await child.map(range(n)))

    app._queues["default"] = 2
    with app:
        assert parent.map([5] * 6).result(WAIT_S) == [10] * 6


def test_sync_parents_waiting_for_more_children_than_slots_do_not_deadlock(app: App) -> None:
    """The OS thread of a waiting parent is not one of those that its children need."""

    @app.task
    def child(n: int) -> int:
        return n

    @app.task
    def parent(n: int) -> int:
        return sum(child.map(range(n)).result())

    app._queues["default"] = 2
    with app:
        assert parent.map([5] * 6).result(WAIT_S) == [10] * 6


def test_a_body_that_waits_for_many_children_at_once_lends_one_slot(app: App) -> None:
    running = most = 0

    @app.task
    async def child() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    @app.task
    async def parent() -> None:
        async def wait(handle: Handle[None]) -> None:
            await handle

        await asyncio.gather(*(wait(child.submit()) for _ in range(30)))

    app._queues["default"] = 3
    with app:
        parent.submit().result(WAIT_S)

    assert most <= 3


def test_parents_that_go_on_after_waiting_are_bounded_by_the_slots_again(app: App) -> None:
    @app.task
    async def child() -> None: ...

    @app.task
    async def parent() -> int:
        await child.submit()
        return 1

    app._queues["default"] = 2
    with app:
        handles = [parent.submit() for _ in range(20)]
        assert [h.result(WAIT_S) for h in handles] == [1] * 20
        assert app._engine is not None
        statistics = app._engine._slots.statistics()["default"]

    assert (statistics.held, statistics.lent) == (0, 0)


# ---------------------------------------------------------------- durable sleep


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_durable_sleep_frees_the_slot_and_repeats_no_step(app: App, kind: str) -> None:
    ran: list[str] = []

    def note(what: str) -> str:
        ran.append(what)
        return what

    async def naps() -> str:
        await step(note, "before")
        await sleep(0.3)
        return await step(note, "after")

    def naps_sync() -> str:
        step(note, "before").result()
        sleep(0.3).result()
        return step(note, "after").result()

    task: Any = app.task(name="naps")(naps if kind == "async" else naps_sync)
    quick = app.task(name="quick")(lambda: "meanwhile")
    app._queues["default"] = 1
    with app:
        handle = task.submit()
        while ran != ["before"]:  # not a poll: each turn waits for a task of the same single slot
            quick.submit().result(WAIT_S)
        assert quick.submit().result(WAIT_S) == "meanwhile"
        assert handle.result(WAIT_S) == "after"
        view = handle.view().result()

    assert ran == ["before", "after"]
    assert (view.attempt, view.failures) == (2, 0)


def test_a_durable_sleep_goes_on_across_a_restart(app: App, url: str) -> None:
    @app.task(name="naps")
    async def naps() -> str:
        await sleep(0.5)
        return "woke in the first life"

    with app:
        handle = naps.submit()
        quick = app.task(name="quick")(lambda: None)
        while handle.view().result().state is not State.SCHEDULED:
            quick.submit().result(WAIT_S)

    second = App(url, durability="normal")

    @second.task(name="naps")
    async def naps_on() -> str:
        await sleep(0.5)
        return "woke in the second life"

    with second:
        assert second.handle(handle.id).result(WAIT_S) == "woke in the second life"
        view = second.handle(handle.id).view().result()
    assert view.started_us is not None
    assert view.started_us - view.created_us >= 500_000

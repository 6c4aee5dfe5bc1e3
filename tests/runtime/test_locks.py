"""Locks of an app, in bodies and outside; what a body writes under a fence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sennit import App, TaskFailed, thread
from sennit.errors import Fenced, LockLost, UsageError
from sennit.store.lease import Lease

WAIT_S = 30.0


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    with App(url, durability="normal") as app:
        yield app


def more(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "n": state.get("n", 0) + 1}


def test_bodies_take_turns_under_a_lock(app: App) -> None:
    inside: list[int] = []

    @app.task(name="turns")
    async def turns(n: int) -> int:
        async with app.lock("one") as lease:
            inside.append(n)
            await asyncio.sleep(0)
            assert inside == [n]
            inside.clear()
            return lease.token

    tokens = turns.map(range(10)).result()

    assert sorted(tokens) == list(range(1, 11))


def test_a_body_writes_under_the_fence_of_its_lock(app: App) -> None:
    @app.task(name="writes")
    async def writes() -> None:
        async with app.lock("one") as lease:
            await thread("t").update(more, fence=lease.fence)
            assert await thread("t").update_if(1, more, fence=lease.fence)
            await thread("t").save()
            await thread("t").apply([more, more], fence=lease.fence)

    writes.submit().result(timeout_s=WAIT_S)

    assert app.thread("t").get().result() == {"n": 4}


def test_an_attempt_that_has_lost_the_lock_of_its_writes_fails_and_writes_nothing(app: App) -> None:
    @app.task(name="late")
    async def late() -> None:
        async with app.lock("one") as lease:
            await thread("t").update(more, fence=lease.fence)
        async with app.lock("one"):
            pass  # somebody else has had it since

    with pytest.raises(TaskFailed, match="Fenced"):
        late.submit().result(timeout_s=WAIT_S)

    assert app.thread("t").get().result() == {}


def test_what_is_saved_under_a_lost_lock_is_refused_there(app: App) -> None:
    @app.task(name="saves")
    async def saves() -> str:
        lease = await app.lock("one").acquire()
        await thread("t").update(more, fence=lease.fence)
        await app.store.seize_lock("one")
        try:
            await thread("t").save()
        except Fenced:
            return "refused"
        return "saved"

    with pytest.raises(TaskFailed, match="Fenced"):  # the change is still part of what the attempt commits
        saves.submit().result(timeout_s=WAIT_S)


def test_a_body_whose_lock_is_taken_away_fails_with_lock_lost(app: App) -> None:
    entered = asyncio.Event()

    @app.task(name="waits")
    async def waits() -> None:
        async with app.lock("one", ttl_s=0.3):
            entered.set()
            await asyncio.Event().wait()

    @app.task(name="takes")
    async def takes() -> int:
        await entered.wait()
        return await app.store.seize_lock("one")

    handle = waits.submit()
    assert takes.submit().result(timeout_s=WAIT_S) == 1

    with pytest.raises(TaskFailed, match="LockLost"):
        handle.result(timeout_s=WAIT_S)


def test_outside_of_bodies_a_fenced_write_is_refused_and_others_to_the_same_thread_are_not(app: App) -> None:
    old = app.lock("one").acquire().result()
    app.store.seize_lock("one").result()

    async def main() -> list[Any]:
        state = app.thread("t")

        async def one(lease: Lease | None) -> Any:
            return await state.update(more, fence=None if lease is None else lease.fence)

        return await asyncio.gather(*(one(old if n % 3 == 0 else None) for n in range(9)), return_exceptions=True)

    results = asyncio.run(main())

    assert [isinstance(result, Fenced) for result in results] == [n % 3 == 0 for n in range(9)]
    assert app.thread("t").get().result() == {"n": 6}
    with pytest.raises(Fenced):
        app.thread("t").update_if(6, more, fence=old.fence).result()


def test_a_sync_body_holds_a_lock_too(app: App) -> None:
    @app.task(name="sync")
    def sync(n: int) -> int:
        with app.semaphore("two", 2) as lease:
            lease.check()
            return lease.token

    assert sorted(sync.map(range(4)).result()) == [1, 2, 3, 4]


def test_when_the_app_is_closed_its_locks_are_free(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    app, other = App(url), App(url)
    lease = app.lock("one").acquire().result()
    other.ledger().result()

    app.close()

    assert other.lock("one").acquire(timeout_s=0).result().token > lease.token
    assert lease.token == 1
    other.close()


def test_result_of_a_lock_in_async_code_says_to_await(app: App) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="await"):
            app.lock("one").acquire().result()

    asyncio.run(main())


def test_a_lease_that_is_over_says_so(app: App) -> None:
    lease = app.lock("one").acquire().result()
    lease.release().result()

    assert "0.0 s left" in repr(lease)
    assert not lease.was_lost
    with pytest.raises(LockLost):
        lease.release().result()

"""Locks as people use them, over each backend; every `open_locks()` is another process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sennit.errors import Fenced, LockLost, LockTimeout, SettingsError, StoreUnavailable, UsageError
from sennit.model.lock import LockView
from sennit.model.thread import StateWrite
from sennit.store.lease import Lease
from sennit.store.leases import Lock, Locks
from sennit.store.protocol import Store
from sennit.store.sqlite import SqliteStore
from sennit.testing.servers import RedisServer

OpenLocks = Callable[[], Locks]
TTL_S = 0.6


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def open_locks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenLocks]:
    with ExitStack() as stack:

        def store() -> Store:
            if request.param == "postgres":
                from sennit.store.postgres import PostgresStore

                return PostgresStore(request.getfixturevalue("postgres_url"), durability="normal")
            return SqliteStore(tmp_path / "locks.db", durability="normal")

        url = request.getfixturevalue("redis") if request.param == "redis" else ""

        def open_locks() -> Locks:
            opened = store()
            stack.callback(opened.close)
            locks = Locks(lambda: opened, lambda: url)
            stack.callback(locks.close)
            return locks

        yield open_locks


def lock(locks: Locks, name: str = "l", *, ttl_s: float = 30.0) -> Lock:
    return locks.lock(name, ttl_s=ttl_s, backend=None, purpose="test")


def view(locks: Locks, name: str = "l") -> LockView:
    return lock(locks, name).view().result()


async def seen(locks: Locks, fact: Callable[[LockView], bool]) -> LockView:
    """Wait until something is true of the lock."""
    while not fact(found := await lock(locks).view()):  # noqa: ASYNC110 - nobody is told when somebody stands in line
        await asyncio.sleep(0)
    return found


def seize(locks: Locks, name: str = "l") -> None:
    locks.backend(locks._url()).seize_lock(name).result()


# ---------------------------------------------------------------- blocks


def test_a_block_holds_the_lock_and_lets_it_go_at_its_end(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> int:
        async with lock(mine) as lease:
            assert not lease.lost
            assert 29 < lease.remaining_s <= 30
            (holder,) = (await lock(theirs).view()).holders
            assert (holder.token, "(test)" in holder.owner) == (lease.token, True)
            with pytest.raises(LockTimeout):
                await lock(theirs).acquire(timeout_s=0)
        assert (lease.lost, lease.remaining_s) == (False, 0)
        return lease.token

    token = asyncio.run(main())

    with lock(theirs) as lease:
        assert lease.token > token


def test_the_next_in_line_has_it_as_soon_as_a_block_ends_whatever_ends_it(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
            async with lock(mine):
                waiting = asyncio.ensure_future(take(theirs))
                await seen(mine, lambda now: len(now.waiting) == 1)
                _ = 1 / 0
        await (await waiting).release()

    asyncio.run(main())


async def take(locks: Locks) -> Lease:
    return await lock(locks).acquire()


def test_a_lease_is_kept_alive_for_as_long_as_its_block_runs(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    with lock(mine, ttl_s=TTL_S) as lease:
        with pytest.raises(LockTimeout, match="test"):
            lock(theirs).acquire(timeout_s=4 * TTL_S).result()

        assert not lease.lost
        assert view(theirs).waiting == ()


def test_a_lease_is_kept_alive_also_while_its_event_loop_is_blocked(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        async with lock(mine, ttl_s=TTL_S) as lease:
            threading.Event().wait(4 * TTL_S)  # sleep: the fault itself, a body that blocks its loop
            assert not lease.lost
            with pytest.raises(LockTimeout):
                await lock(theirs).acquire(timeout_s=0)

    asyncio.run(main())


def test_one_that_was_taken_by_hand_is_not_kept(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()
    lease = lock(mine).acquire(ttl_s=TTL_S).result()

    other = lock(theirs).acquire().result()

    assert other.token > lease.token
    assert lease.lost
    for call in (lease.extend, lease.release):
        with pytest.raises(LockLost):
            call().result()


def test_by_hand_it_is_extended_and_released(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()
    lease = lock(mine).acquire(ttl_s=1).result()

    lease.extend(60).result()
    assert lease.remaining_s > 50
    lease.release().result()

    assert lock(theirs).acquire(timeout_s=0).result().token > lease.token


# ---------------------------------------------------------------- lost


def test_an_async_block_that_has_lost_its_lock_is_cancelled_and_ends_with_lock_lost(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        with pytest.raises(LockLost) as lost:  # noqa: PT012 - the block is what is tested
            async with lock(mine, ttl_s=TTL_S) as lease:
                await asyncio.to_thread(seize, theirs)
                await asyncio.Event().wait()  # for ever
        assert (lost.value.name, lost.value.token) == ("l", lease.token)
        assert isinstance(lost.value.__cause__, asyncio.CancelledError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # nothing is left that would cancel it here

    asyncio.run(main())


def test_an_async_block_that_ends_before_it_hears_of_it_ends_with_lock_lost_too(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        with pytest.raises(LockLost):
            async with lock(mine, ttl_s=30):
                await asyncio.to_thread(seize, theirs)
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_sync_block_hears_of_it_when_it_asks_and_at_its_end(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()
    told = threading.Event()

    with pytest.raises(LockLost), lock(mine, ttl_s=TTL_S) as lease:  # noqa: PT012 - the block is what is tested
        lease.check()
        lease.keep(told.set)
        seize(theirs)
        assert told.wait(10)
        assert lease.lost
        with pytest.raises(LockLost):
            lease.check()


def test_what_a_block_raises_by_itself_is_not_hidden_by_the_loss(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        async with lock(mine, ttl_s=30):
            await asyncio.to_thread(seize, theirs)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    with pytest.raises(ZeroDivisionError), lock(mine):  # noqa: PT012 - the block is what is tested
        seize(theirs)
        raise ZeroDivisionError


def test_a_cancellation_from_outside_goes_through_and_lets_go(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def hold() -> None:
        async with lock(mine):
            await asyncio.Event().wait()

    async def main() -> None:
        holding = asyncio.ensure_future(hold())
        await seen(theirs, lambda now: len(now.holders) == 1)
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding

    asyncio.run(main())

    lock(theirs).acquire(timeout_s=5).result().release().result()


def test_when_the_backend_has_gone_the_block_is_cancelled_before_its_time_is_over(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    locks = Locks(lambda: pytest.fail("not the store"), lambda: server.url)

    async def main() -> None:
        async with lock(locks, ttl_s=1):
            await asyncio.to_thread(server.kill)
            await asyncio.Event().wait()

    with pytest.raises(LockLost, match="could not be extended in time"):
        asyncio.run(main())
    locks.close()


# ---------------------------------------------------------------- waiting


def test_who_gives_up_in_time_is_told_who_has_it_and_leaves_the_line(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()
    lease = lock(mine).acquire().result()

    with pytest.raises(LockTimeout, match="test") as refused:
        lock(theirs).acquire(timeout_s=0.05).result()

    assert (refused.value.path, refused.value.timeout_s) == ("l", 0.05)
    assert view(mine).waiting == ()
    lease.release().result()


def test_who_is_cancelled_while_it_waits_leaves_the_line(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        async with lock(mine):
            waiting = asyncio.ensure_future(take(theirs))
            await seen(mine, lambda now: len(now.waiting) == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await seen(mine, lambda now: not now.waiting)

    asyncio.run(main())


def test_when_the_store_is_closed_who_waits_is_told(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    async def main() -> None:
        async with lock(mine):
            waiting = asyncio.ensure_future(take(theirs))
            await seen(mine, lambda now: len(now.waiting) == 1)
            await asyncio.to_thread(theirs.backend(theirs._url()).close)
            with pytest.raises(StoreUnavailable):
                await waiting

    asyncio.run(main())


def test_a_lock_is_not_re_entrant_and_says_so(open_locks: OpenLocks) -> None:
    locks = open_locks()
    mine = lock(locks)

    with mine, pytest.raises(UsageError, match="not re-entrant"), mine:
        pass

    async def main() -> None:
        async with mine:
            with pytest.raises(UsageError, match="not re-entrant"):
                async with mine:
                    pass
        with pytest.raises(UsageError, match="async with"), mine:
            pass

    asyncio.run(main())


def test_one_lock_object_serves_many_coroutines_one_after_the_other(open_locks: OpenLocks) -> None:
    shared = lock(open_locks())
    tokens: list[int] = []
    inside: list[int] = []

    async def work() -> None:
        async with shared as lease:
            inside.append(lease.token)
            await asyncio.sleep(0)
            assert inside == [lease.token]
            inside.remove(lease.token)
            tokens.append(lease.token)

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(20)))

    asyncio.run(main())

    assert tokens == sorted(set(tokens))
    assert len(tokens) == 20


# ---------------------------------------------------------------- forms and fences


def test_readers_share_writers_do_not_and_a_semaphore_counts(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()

    def rw(locks: Locks, *, write: bool) -> Lock:
        made = locks.rwlock("rw", ttl_s=30, backend=None, purpose="")
        return made.write() if write else made.read()

    def slot(locks: Locks) -> Lock:
        return locks.semaphore("s", 2, ttl_s=30, backend=None, purpose="")

    with rw(mine, write=False), rw(theirs, write=False), pytest.raises(LockTimeout):
        rw(mine, write=True).acquire(timeout_s=0).result()
    with rw(mine, write=True), pytest.raises(LockTimeout):
        rw(theirs, write=False).acquire(timeout_s=0).result()
    with slot(mine), slot(theirs), pytest.raises(LockTimeout):
        slot(mine).acquire(timeout_s=0).result()


def test_a_write_with_the_fence_of_a_lost_lease_is_refused_by_the_store(open_locks: OpenLocks) -> None:
    mine, theirs = open_locks(), open_locks()
    lost = lock(mine).acquire(ttl_s=0.2).result()
    lease = lock(theirs).acquire().result()
    store = mine._store()

    def write(expected: int, by: Lease) -> None:
        change = StateWrite(thread_id="t", expected=expected, data=b"1", fences=(by.fence,))
        store.write_states([change]).result()  # type: ignore[attr-defined]  # it is a whole store

    write(0, lease)
    with pytest.raises(Fenced):
        write(1, lost)
    write(1, lease)


def test_a_shared_lease_from_redis_has_no_fence(redis: str) -> None:
    locks = Locks(lambda: pytest.fail("not the store"), lambda: "")

    with locks.semaphore("s", 2, ttl_s=5, backend=redis, purpose="") as slot, pytest.raises(UsageError, match="Redis"):
        _ = slot.fence
    with locks.lock("s", ttl_s=5, backend=redis, purpose="") as lease:
        assert (lease.fence.name, lease.fence.is_foreign) == ("redis:s", True)
    locks.close()


@pytest.mark.parametrize("name", ["", "x" * 201, "redis:x", "a\0b", 7])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="name of a lock"):
        Lock(Locks(pytest.fail, str), name, ttl_s=1)


@pytest.mark.parametrize("ttl_s", [0, -1, 1e9, float("nan"), True, "1"])
def test_a_time_that_cannot_be_is_refused(ttl_s: float) -> None:
    with pytest.raises(SettingsError, match="ttl_s"):
        Lock(Locks(pytest.fail, str), "l", ttl_s=ttl_s)


def test_a_semaphore_of_none_and_a_backend_of_another_kind_are_refused() -> None:
    locks = Locks(pytest.fail, str)

    with pytest.raises(SettingsError, match="semaphore of 0"):
        locks.semaphore("s", 0, ttl_s=1, backend=None, purpose="")
    with pytest.raises(SettingsError, match="gives out no locks"):
        locks.lock("s", ttl_s=1, backend="zookeeper://x", purpose="").acquire().result()

"""One client for all: built once, closed when idle, told to all when it cannot be built, per event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from sennit.errors import SettingsError, UsageError
from sennit.limit import clients
from sennit.limit.clients import ClientPool
from sennit.testing.seededloop import SeededLoop


class Client:
    """Counts what is done to it; `is_closed` is the fact to wait for."""

    def __init__(self) -> None:
        self.closings = 0
        self.is_closed = threading.Event()

    def close(self) -> None:
        self.closings += 1
        self.is_closed.set()


class AsyncClient(Client):
    """As the clients of model providers: `close` is a coroutine function."""

    async def close(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().close()


class AcloseClient:
    """As those of httpx: `aclose`."""

    def __init__(self) -> None:
        self.closings = 0

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closings += 1


K = TypeVar("K", bound=Client)


async def passes(seconds: float) -> None:
    await asyncio.sleep(seconds)  # sleep: virtual time, all who call this run on a SeededLoop


async def hold(pool: ClientPool[K], seconds: float) -> K:
    async with pool.client() as client:
        await passes(seconds)
        assert client.closings == 0
        return client


# ---------------------------------------------------------------- async, in virtual time


@pytest.mark.parametrize("seed", range(20))
def test_concurrent_first_uses_build_one_client(seed: int) -> None:
    built: list[Client] = []
    loop = SeededLoop(seed)

    async def factory() -> Client:
        built.append(Client())
        client = built[-1]
        await passes(1)
        return client

    async def main() -> None:
        pool = ClientPool(factory, idle_s=10)
        clients = await asyncio.gather(*(hold(pool, n) for n in range(5)))
        assert set(clients) == set(built)
        await pool.close()

    loop.run_until_complete(main())

    assert [client.closings for client in built] == [1]
    loop.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient, AcloseClient])
def test_it_is_closed_once_nobody_has_used_it_for_idle_s(kind: type[Client]) -> None:
    loop = SeededLoop(0)

    async def main() -> None:
        pool = ClientPool(kind, idle_s=10)
        first = await hold(pool, 1)
        await passes(9)
        assert await hold(pool, 30) is first  # in use for longer than idle_s
        await passes(5)
        assert await hold(pool, 1) is first  # the timer of the leave before was set to a moment that is 5 s off now
        await passes(9.9)
        assert first.closings == 0
        await passes(0.2)
        assert first.closings == 1
        assert await hold(pool, 1) is not first
        await pool.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sennit.limit.clients.monotonic_s", loop.time)
        loop.run_until_complete(main())
    loop.close()


def test_a_client_without_a_close_method_needs_none() -> None:
    async def main() -> None:
        pool = ClientPool(object)
        async with pool.client():
            pass
        await pool.close()

    asyncio.run(main())


def test_an_idle_client_costs_one_timer_and_no_polls() -> None:
    loop = SeededLoop(0)

    async def main() -> None:
        pool = ClientPool(Client, idle_s=1e6)
        for _ in range(50):
            await hold(pool, 0)
        before = len(loop.trace())
        await passes(1e5)
        assert len(loop.trace()) - before < 5
        assert [timer.cancelled() for *_, timer in loop._timers] == [False]
        await pool.close()

    loop.run_until_complete(main())
    loop.close()


def test_a_factory_that_fails_tells_all_who_wait_and_the_next_use_tries_again() -> None:
    loop = SeededLoop(0)
    calls = 0

    async def factory() -> Client:
        nonlocal calls
        calls += 1
        await passes(1)
        if calls == 1:
            raise ConnectionError("no route")
        return Client()

    async def main() -> None:
        pool = ClientPool(factory)
        answers = await asyncio.gather(*(hold(pool, 0) for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ConnectionError] * 5
        assert calls == 1

        assert isinstance(await hold(pool, 0), Client)
        assert calls == 2
        await pool.close()

    loop.run_until_complete(main())
    loop.close()


def test_the_first_user_being_cancelled_does_not_cost_the_others_their_client() -> None:
    loop = SeededLoop(0)
    built: list[Client] = []

    async def factory() -> Client:
        await passes(1)
        built.append(Client())
        return built[-1]

    async def main() -> None:
        pool = ClientPool(factory)
        first = asyncio.create_task(hold(pool, 0))
        await passes(0.5)
        second = asyncio.create_task(hold(pool, 0))
        await passes(0.1)
        first.cancel()
        assert await second is built[0]
        assert len(built) == 1
        await pool.close()

    loop.run_until_complete(main())
    loop.close()


@pytest.mark.parametrize("is_pool_closed", [False, True])
def test_a_client_that_all_have_given_up_is_closed_all_the_same(*, is_pool_closed: bool) -> None:
    loop = SeededLoop(0)
    built: list[Client] = []

    async def factory() -> Client:
        await passes(1)
        built.append(Client())
        return built[-1]

    async def main() -> None:
        pool = ClientPool(factory, idle_s=0)
        user = asyncio.create_task(hold(pool, 0))
        await passes(0.5)
        user.cancel()
        if is_pool_closed:
            await pool.close()
        await passes(1)
        assert [client.closings for client in built] == [1]

    loop.run_until_complete(main())
    loop.close()


def test_closing_the_pool_closes_what_is_idle_now_and_what_is_in_use_when_it_is_left() -> None:
    loop = SeededLoop(0)

    async def main() -> None:
        pool = ClientPool(AsyncClient)
        async with pool.client() as client:
            await pool.close()
            assert client.closings == 0
            with pytest.raises(UsageError, match="closed"):
                await hold(pool, 0)
        await passes(1)
        assert client.closings == 1
        await pool.close()
        assert client.closings == 1

    loop.run_until_complete(main())
    loop.close()


def test_a_client_that_does_not_close_is_told_to_who_closes_the_pool_and_else_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck:
        async def aclose(self) -> None:
            raise OSError("stuck")

    loop = SeededLoop(0)

    async def main() -> None:
        pool = ClientPool(Stuck, idle_s=0)
        async with pool.client():
            pass
        await passes(1)
        assert "an idle client did not close" in caplog.text

        async with pool.client():
            pass
        with pytest.raises(OSError, match="stuck"):
            await pool.close()

    loop.run_until_complete(main())
    loop.close()


# ---------------------------------------------------------------- loops and OS threads


def test_each_event_loop_has_its_own_client_and_one_close_reaches_those_that_run() -> None:
    pool = ClientPool(AsyncClient)
    clients: list[AsyncClient] = []
    closed_in: list[asyncio.AbstractEventLoop] = []
    is_left, may_end = threading.Event(), threading.Event()

    class Told(AsyncClient):
        async def close(self) -> None:  # type: ignore[override]
            closed_in.append(asyncio.get_running_loop())
            await super().close()

    pool = ClientPool(Told)

    async def other() -> asyncio.AbstractEventLoop:
        async with pool.client() as client:
            clients.append(client)
        is_left.set()
        await asyncio.to_thread(may_end.wait)
        return asyncio.get_running_loop()

    async def main() -> asyncio.AbstractEventLoop:
        async with pool.client() as client:
            clients.append(client)
        await asyncio.to_thread(is_left.wait)
        await pool.close()
        return asyncio.get_running_loop()

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(lambda: asyncio.run(other()))
        here = asyncio.run(main())
        may_end.set()
        there = future.result()

    assert clients[0] is not clients[1]
    assert [client.closings for client in clients] == [1, 1]
    assert set(closed_in) == {here, there}


def test_the_client_of_a_loop_that_has_ended_is_not_given_out_again() -> None:
    pool = ClientPool(AsyncClient)

    first, second = (asyncio.run(hold(pool, 0)) for _ in range(2))

    assert first is not second
    assert len(pool._entries) == 1


def test_os_threads_share_one_client_though_they_all_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_class = clients._Entry

    def yielding(loop: asyncio.AbstractEventLoop | None) -> object:
        time.sleep(0)  # a window: the others come between "there is none" and "here is one"
        return entry_class(loop)

    monkeypatch.setattr(clients, "_Entry", yielding)
    for _ in range(20):
        built: list[Client] = []
        start = threading.Barrier(8)

        def factory(built: list[Client] = built) -> Client:
            time.sleep(0)
            built.append(Client())
            return built[-1]

        pool = ClientPool(factory)

        def use(pool: ClientPool[Client] = pool, start: threading.Barrier = start) -> Client:
            start.wait()
            with pool.client() as client:
                return client

        with ThreadPoolExecutor(8) as executor:
            lent = {future.result() for future in [executor.submit(use) for _ in range(8)]}
        pool.close().result()

        assert lent == set(built)
        assert [client.closings for client in built] == [1]


def test_blocking_code_closes_after_idle_s_too() -> None:
    pool = ClientPool(Client, idle_s=0.05)
    with pool.client() as first:
        pass

    assert first.is_closed.wait(10)

    with pool.client() as second:
        assert second is not first
    pool.close().result()
    assert (first.closings, second.closings) == (1, 1)


def test_a_blocking_factory_that_fails_is_tried_again() -> None:
    answers: list[Client | Exception] = [ConnectionError("no route"), Client()]

    def factory() -> Client:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pool = ClientPool(factory)
    with pytest.raises(ConnectionError), pool.client():
        pytest.fail("there is no client")

    with pool.client() as client:
        assert client.closings == 0
    pool.close().result()


async def made() -> Client:
    return Client()


@pytest.mark.parametrize("factory", [AsyncClient, AcloseClient, made])
def test_blocking_code_is_refused_a_client_only_async_code_can_close(factory: type[Client]) -> None:
    with pytest.raises(UsageError, match="async code"), ClientPool(factory).client():
        pytest.fail("it was lent")


def test_a_plain_with_on_an_event_loop_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="async with"), ClientPool(Client).client():
            pytest.fail("it was lent")

    asyncio.run(main())


def test_a_use_is_entered_once() -> None:
    pool = ClientPool(Client)
    use = pool.client()
    with use:
        pass

    with pytest.raises(UsageError, match="twice"), use:
        pytest.fail("it was lent")
    pool.close().result()


@pytest.mark.parametrize("idle_s", [-1, float("nan"), float("inf")])
def test_an_idle_time_that_makes_no_sense_is_refused(idle_s: float) -> None:
    with pytest.raises(SettingsError, match="idle_s"):
        ClientPool(Client, idle_s=idle_s)

"""The proxy between the real SDKs and the fake provider, all over loopback."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import uvicorn

from sennit.errors import BudgetExceeded, SettingsError
from sennit.integrations.proxy import proxy_app, serve
from sennit.model.provider import CallReport
from sennit.testing.provider import FakeProvider
from tests.integrations.memory_slots import MemorySlot, MemorySlots

HELLO: Any = [{"role": "user", "content": "hello"}]
PERMITS = 100


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(output_tokens=12) as provider:
        yield provider


@pytest.fixture
def slots() -> MemorySlots:
    return MemorySlots(PERMITS)


def through(
    slots: MemorySlots, upstreams: dict[str, str], body: Callable[[str], Awaitable[Any]], **options: Any
) -> Any:
    """Serve the proxy, run `body` with its URL, stop it."""

    async def main() -> Any:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            config = uvicorn.Config(proxy_app(slots, upstreams, **options), log_config=None, log_level="critical")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            try:
                return await body(f"http://127.0.0.1:{sock.getsockname()[1]}")
            finally:
                server.should_exit = True
                await serving

    return asyncio.run(main())


def openai_at(url: str, *, api_key: str = "secret-key-of-mine", max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=max_retries)


async def chat(ai: openai.AsyncOpenAI, **more: Any) -> Any:
    return await ai.chat.completions.create(model="m", messages=HELLO, **more)


def only(slots: MemorySlots) -> CallReport:
    assert len(slots.reports) == 1
    assert slots.free == PERMITS
    return slots.reports[0]


# ---------------------------------------------------------------- passing through


def test_chat_responses_and_messages_pass_with_a_permit_each(fake: FakeProvider, slots: MemorySlots) -> None:
    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            assert (await chat(ai)).usage.completion_tokens == 12
            assert (await ai.responses.create(model="m", input="hello")).usage is not None
            assert [model.id async for model in ai.models.list()] == ["fake-model"]
        async with anthropic.AsyncAnthropic(base_url=f"{url}/claude", api_key="any") as ai:
            answer = await ai.messages.create(model="large", messages=HELLO, max_tokens=20)
            assert answer.usage.output_tokens == 12

    through(slots, {"openai": f"{fake.url}/v1", "claude": fake.url}, body)

    assert [name for name, _ in slots.asked] == ["openai/m", "openai/m", "claude/large"]
    assert [report.usage and report.usage.output_tokens for report in slots.reports] == [12, 12, 12]


def test_the_key_of_the_client_reaches_the_upstream_and_no_log(
    fake: FakeProvider, slots: MemorySlots, caplog: pytest.LogCaptureFixture
) -> None:
    fake.configure(api_key="secret-key-of-mine")

    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            await chat(ai)
        async with openai_at(url, api_key="secret-but-wrong") as ai:
            with pytest.raises(openai.AuthenticationError):
                await chat(ai)

    with caplog.at_level(logging.DEBUG, logger="sennit"):
        through(slots, {"openai": fake.url}, body)

    assert "secret" not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("sennit"))


def test_a_stream_passes_as_it_comes(fake: FakeProvider, slots: MemorySlots) -> None:
    """The first piece is here while the upstream is still in the middle of its answer."""
    fake.inject("hang_mid_stream")

    async def body(url: str) -> None:
        async with openai_at(url) as ai, await chat(ai, stream=True) as stream:
            assert (await anext(aiter(stream))).choices
            assert (await asyncio.to_thread(fake.wait_for, in_service=1)).in_service == 1
            assert slots.free == PERMITS - 1

    through(slots, {"openai": fake.url}, body)

    assert only(slots).outcome == "cancelled"


def test_errors_pass_with_their_headers(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.exhaust(600)

    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            with pytest.raises(openai.RateLimitError) as caught:
                await chat(ai)
            assert int(caught.value.response.headers["retry-after"]) > 590
            assert "x-sennit-proxy" not in caught.value.response.headers

    through(slots, {"openai": fake.url}, body)

    assert only(slots).pause == "window"


def test_a_compressed_answer_passes_compressed_and_is_read() -> None:
    plain = b'{"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    zipped = gzip.compress(plain)
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).lower())
        head = f"content-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: {len(zipped)}\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + head.encode() + zipped)
        await writer.drain()
        writer.close()

    slots = MemorySlots()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as upstream:
            port = upstream.sockets[0].getsockname()[1]
            transport = httpx2.ASGITransport(proxy_app(slots, {"openai": f"http://127.0.0.1:{port}"}))
            async with httpx2.AsyncClient(transport=transport, base_url="http://proxy") as http:
                got = await http.post("/v1/chat/completions", json={}, headers={"accept-encoding": "gzip, br"})
        assert got.content == plain
        assert got.headers["content-encoding"] == "gzip"

    asyncio.run(main())

    assert b"accept-encoding: gzip\r\n" in asked[0]
    assert b"\r\nhost: 127.0.0.1" in asked[0]
    assert slots.reports[0].usage is not None


# ---------------------------------------------------------------- clients that go, upstreams that hang


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_its_call(fake: FakeProvider, slots: MemorySlots, stream: bool) -> None:  # noqa: FBT001
    fake.inject("hang_mid_stream" if stream else "hang_before_headers")

    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            call = asyncio.create_task(chat(ai, stream=stream))
            await asyncio.to_thread(fake.wait_for, in_service=1)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await (await call).close()
        await asyncio.to_thread(fake.wait_for, idle=True)

    through(slots, {"openai": fake.url}, body)

    assert only(slots).outcome == "cancelled"


def test_an_upstream_that_hangs_is_bounded(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.inject("hang_before_headers")

    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            with pytest.raises(openai.APIStatusError) as caught:
                await chat(ai)
            assert caught.value.status_code == 504

    through(slots, {"openai": fake.url}, body, idle_s=0.2)

    assert only(slots).outcome == "timeout"


def test_a_stream_that_breaks_upstream_breaks_here(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.inject("truncate")

    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            with pytest.raises((openai.APIError, httpx2.TransportError)):
                _ = [chunk async for chunk in await chat(ai, stream=True)]

    through(slots, {"openai": fake.url}, body)

    assert only(slots).outcome == "error"


def test_an_upstream_that_is_not_there_is_a_502(slots: MemorySlots) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def body(url: str) -> int:
        async with httpx2.AsyncClient() as http:
            return (await http.post(f"{url}/v1/responses", json={})).status_code

    assert through(slots, {"openai": nobody}, body) == 502
    assert only(slots).outcome == "error"


# ---------------------------------------------------------------- no permit


@pytest.mark.parametrize(("path", "is_anthropic"), [("/v1/chat/completions", False), ("/v1/messages", True)])
def test_without_a_permit_it_answers_429_itself(fake: FakeProvider, path: str, is_anthropic: bool) -> None:  # noqa: FBT001
    slots = MemorySlots(0)

    async def body(url: str) -> httpx2.Response:
        async with httpx2.AsyncClient() as http:
            return await http.post(url + path, json={"model": "m"})

    got = through(slots, {"openai": fake.url}, body, wait_s=0.01)

    assert (got.status_code, got.headers["retry-after"], got.headers["x-sennit-proxy"]) == (429, "7", "refused")
    assert got.json()["error"]["type"] == "rate_limit_error"
    assert (got.json().get("type") == "error") == is_anthropic
    assert fake.statistics().requests == 0


def test_a_permit_that_comes_in_time_is_waited_for(fake: FakeProvider) -> None:
    slots = MemorySlots(1)
    fake.configure(latency=0.05)

    async def body(url: str) -> None:
        async with openai_at(url) as ai:
            await asyncio.gather(*(chat(ai) for _ in range(5)))

    through(slots, {"openai": fake.url}, body, wait_s=30)

    assert fake.statistics().max_concurrency == 1
    assert fake.statistics().ok == 5


def test_a_spent_budget_is_an_answer_that_no_sdk_retries(fake: FakeProvider) -> None:
    class Spent(MemorySlots):
        tries = 0

        def slot(self, provider: str, *, tokens: int = 0, wait: bool = True) -> MemorySlot:
            self.tries += 1
            raise BudgetExceeded(provider, scope="fleet", key="", unit="USD", spent=5, allowed=5)

    slots = Spent()

    async def body(url: str) -> None:
        async with openai_at(url, max_retries=3) as ai:
            with pytest.raises(openai.APIStatusError) as caught:
                await chat(ai)
            assert caught.value.status_code == 402
            assert "budget" in caught.value.message

    through(slots, {"openai": fake.url}, body)

    assert slots.tries == 1


# ---------------------------------------------------------------- where it listens, and for whom


def test_what_is_not_under_v1_is_not_passed_on(fake: FakeProvider, slots: MemorySlots) -> None:
    paths = ("/", "/control/knobs", "/openai/control/knobs", "/v1/../control/knobs", "/v1/%2e%2e/control/knobs", "/v1x")

    def statuses(url: str) -> list[int]:
        connection = HTTPConnection(url.removeprefix("http://"))  # it sends a path as it is
        found = []
        for path in paths:
            connection.request("GET", path)
            with connection.getresponse() as response:
                found.append(response.status)
                response.read()
        connection.close()
        return found

    async def body(url: str) -> list[int]:
        return await asyncio.to_thread(statuses, url)

    assert through(slots, {"openai": fake.url}, body) == [404] * len(paths)


def test_an_address_that_others_reach_is_refused_unless_told(slots: MemorySlots) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.com"):
        with pytest.raises(SettingsError, match="will not listen"):
            serve(slots, {"openai": "http://model.example"}, host=host)


@pytest.mark.parametrize("upstreams", [{}, {"openai": "model.example"}, {"openai": "ftp://x"}, {"a/b": "http://x"}])
def test_upstreams_are_checked_before_anything_listens(upstreams: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        proxy_app(MemorySlots(), upstreams)

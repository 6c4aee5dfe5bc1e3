"""The real openai and anthropic packages over the transport, against the fake provider on loopback."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from sennit.errors import ProviderBusy
from sennit.integrations.http import AsyncLimitedTransport, LimitedTransport
from sennit.model.provider import CallReport, Usage
from sennit.testing.provider import FakeProvider
from tests.integrations.memory_slots import MemorySlots

HELLO: Any = [{"role": "user", "content": "hello " * 100}]
PERMITS = 100


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(output_tokens=12) as provider:
        yield provider


@pytest.fixture
def slots() -> MemorySlots:
    return MemorySlots(PERMITS)


def with_openai(
    fake: FakeProvider, slots: MemorySlots, body: Callable[[openai.AsyncOpenAI], Awaitable[Any]], **options: Any
) -> Any:
    async def main() -> Any:
        http = httpx2.AsyncClient(transport=AsyncLimitedTransport(slots, "pool"), timeout=options.pop("timeout", 30.0))
        url = f"{fake.url}/v1"
        async with openai.AsyncOpenAI(
            base_url=url, api_key="any", http_client=http, **({"max_retries": 0} | options)
        ) as ai:
            return await body(ai)

    return asyncio.run(main())


def with_anthropic(
    fake: FakeProvider, slots: MemorySlots, body: Callable[[anthropic.AsyncAnthropic], Awaitable[Any]]
) -> Any:
    async def main() -> Any:
        http = httpx2.AsyncClient(transport=AsyncLimitedTransport(slots, "pool"))
        async with anthropic.AsyncAnthropic(base_url=fake.url, api_key="any", max_retries=0, http_client=http) as ai:
            return await body(ai)

    return asyncio.run(main())


async def chat(ai: openai.AsyncOpenAI, **more: Any) -> Any:
    return await ai.chat.completions.create(model="m", messages=HELLO, max_tokens=50, **more)


async def message(ai: anthropic.AsyncAnthropic) -> Any:
    return await ai.messages.create(model="m", messages=HELLO, max_tokens=50)


async def read_all(stream: Any) -> int:
    return len([event async for event in stream])


def only(slots: MemorySlots) -> CallReport:
    assert len(slots.reports) == 1
    assert slots.free == PERMITS
    return slots.reports[0]


# ---------------------------------------------------------------- answers


def test_an_answer_of_openai_is_reported_with_its_usage(fake: FakeProvider, slots: MemorySlots) -> None:
    answer = with_openai(fake, slots, chat)

    report = only(slots)
    assert (report.outcome, report.status, report.model) == ("ok", 200, "m")
    assert report.usage == Usage(input_tokens=answer.usage.prompt_tokens, output_tokens=answer.usage.completion_tokens)
    assert report.duration_us > 0
    assert slots.asked == [("pool", 150 + 50 + 1)]  # 600 characters, 50 asked for, and "user"


def test_an_answer_of_anthropic_is_reported_with_its_usage(fake: FakeProvider, slots: MemorySlots) -> None:
    answer = with_anthropic(fake, slots, message)

    assert only(slots).usage == Usage(input_tokens=answer.usage.input_tokens, output_tokens=answer.usage.output_tokens)


def test_the_sync_clients_are_served_alike(fake: FakeProvider, slots: MemorySlots) -> None:
    http = httpx2.Client(transport=LimitedTransport(slots, "pool"))
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="any", http_client=http) as ai:
        ai.chat.completions.create(model="m", messages=HELLO)
        with ai.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
            next(stream)
        fake.exhaust(600)
        with pytest.raises(openai.RateLimitError):
            ai.with_options(max_retries=0).chat.completions.create(model="m", messages=HELLO)

    assert [report.outcome for report in slots.reports] == ["ok", "cancelled", "throttled"]
    assert slots.free == PERMITS


def test_a_list_of_models_takes_no_permit(fake: FakeProvider, slots: MemorySlots) -> None:
    async def listed(ai: openai.AsyncOpenAI) -> int:
        return len((await ai.models.list()).data)

    assert with_openai(fake, slots, listed) == 1
    assert slots.asked == []


def test_rates_of_the_headers_are_reported(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.configure(rpm=100, tpm=100_000)

    with_openai(fake, slots, chat)
    with_anthropic(fake, slots, message)

    for report in slots.reports:
        assert report.requests is not None
        assert report.tokens is not None
        assert (report.requests.limit, report.tokens.limit) == (100, 100_000)


# ---------------------------------------------------------------- streams


def test_a_stream_of_openai_holds_its_permit_to_the_end_and_tells_its_usage(
    fake: FakeProvider, slots: MemorySlots
) -> None:
    async def streamed(ai: openai.AsyncOpenAI) -> int:
        stream = await chat(ai, stream=True, stream_options={"include_usage": True})
        assert slots.free == PERMITS - 1
        assert slots.reports == []
        return await read_all(stream)

    assert with_openai(fake, slots, streamed) > 2
    report = only(slots)
    assert report.outcome == "ok"
    assert report.usage is not None
    assert report.usage.output_tokens == 12


def test_a_stream_of_anthropic_and_one_of_responses_tell_their_usage(fake: FakeProvider, slots: MemorySlots) -> None:
    async def messages(ai: anthropic.AsyncAnthropic) -> int:
        return await read_all(await ai.messages.create(model="m", messages=HELLO, max_tokens=50, stream=True))

    async def responses(ai: openai.AsyncOpenAI) -> int:
        return await read_all(await ai.responses.create(model="m", input="hello", stream=True))

    with_anthropic(fake, slots, messages)
    with_openai(fake, slots, responses)

    assert [(report.outcome, report.usage and report.usage.output_tokens) for report in slots.reports] == [
        ("ok", 12),
        ("ok", 12),
    ]


def test_a_stream_that_its_reader_leaves_gives_the_permit_back(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.configure(latency=600.0, first_token=0.0)

    async def left(ai: openai.AsyncOpenAI) -> None:
        async with await chat(ai, stream=True):
            assert slots.free == PERMITS - 1

    with_openai(fake, slots, left)

    assert only(slots).outcome == "cancelled"


@pytest.mark.parametrize("fault", ["truncate", "stream_error"])
def test_a_stream_that_breaks_is_an_error_of_the_provider(fake: FakeProvider, slots: MemorySlots, fault: Any) -> None:
    fake.inject(fault)

    async def streamed(ai: anthropic.AsyncAnthropic) -> None:
        with suppress(anthropic.APIError, httpx2.TransportError):
            await read_all(await ai.messages.create(model="m", messages=HELLO, max_tokens=50, stream=True))

    with_anthropic(fake, slots, streamed)

    assert only(slots).outcome in {"error", "overloaded"}


def test_a_hang_ends_with_the_clients_time_out_and_is_reported_as_one(fake: FakeProvider, slots: MemorySlots) -> None:
    for fault in ("hang_before_headers", "hang_after_headers", "hang_mid_stream"):
        fake.inject(fault)

        async def streamed(ai: openai.AsyncOpenAI) -> None:
            with suppress(openai.APITimeoutError, httpx2.ReadTimeout):
                await read_all(await chat(ai, stream=True))

        with_openai(fake, slots, streamed, timeout=0.2)

    assert [report.outcome for report in slots.reports] == ["timeout"] * 3
    assert slots.free == PERMITS


# ---------------------------------------------------------------- failures


def test_the_three_429s_are_told_apart_over_the_wire(fake: FakeProvider, slots: MemorySlots) -> None:
    async def refused(ai: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.RateLimitError):
            await chat(ai)

    async def refused_too(ai: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.RateLimitError):
            await message(ai)

    fake.inject("status_429", 2)
    with_openai(fake, slots, refused)
    with_anthropic(fake, slots, refused_too)
    fake.configure(rpm=1)
    with_openai(fake, slots, chat)
    with_openai(fake, slots, refused)
    with_anthropic(fake, slots, refused_too)
    fake.exhaust(600)
    with_openai(fake, slots, refused)
    with_anthropic(fake, slots, refused_too)

    assert [report.pause for report in slots.reports] == ["burst", "burst", "", "minute", "minute", "window", "window"]
    waits = [report.retry_after_s or 0 for report in slots.reports]
    assert all(30 < wait <= 61 for wait in waits[3:5])
    assert all(590 < wait <= 601 for wait in waits[5:])


def test_an_error_is_reported_before_the_client_backs_off(fake: FakeProvider, slots: MemorySlots) -> None:
    """The openai package closes a 429 that it will retry without reading it: the body is read here."""
    fake.configure(window_style="quota")
    fake.exhaust(600)
    seen = []

    class Watched(AsyncLimitedTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            seen.append((slots.free, slots.reports[-1].pause))
            return response

    async def main() -> None:
        http = httpx2.AsyncClient(transport=Watched(slots, "pool"))
        async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="any", max_retries=1, http_client=http) as ai:
            with pytest.raises(openai.RateLimitError):
                await chat(ai)

    asyncio.run(main())

    assert seen
    assert set(seen) == {(PERMITS, "window")}


def test_a_lost_connection_is_an_error(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.inject("reset")

    async def lost(ai: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.APIConnectionError):
            await chat(ai)

    with_openai(fake, slots, lost)

    assert only(slots).outcome == "error"


def test_a_cancelled_call_gives_its_permit_back(fake: FakeProvider, slots: MemorySlots) -> None:
    fake.configure(latency=600.0)

    async def cancelled(ai: openai.AsyncOpenAI) -> None:
        call = asyncio.create_task(chat(ai))
        await asyncio.to_thread(fake.wait_for, in_service=1)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    with_openai(fake, slots, cancelled)

    assert only(slots).outcome == "cancelled"
    assert isinstance(slots.errors[0], asyncio.CancelledError)


def test_a_permit_for_a_fallback_is_not_used_on_the_wrong_server(fake: FakeProvider, slots: MemorySlots) -> None:
    slots.stands_in = "another"

    async def refused(ai: openai.AsyncOpenAI) -> None:
        with pytest.raises(ProviderBusy):
            await chat(ai)

    with_openai(fake, slots, refused)

    assert only(slots).outcome == "refused"
    assert fake.statistics().requests == 0


def test_who_will_not_wait_for_ever_is_told_when_to_come_back() -> None:
    async def main() -> ProviderBusy:
        slots = MemorySlots(0)
        transport = AsyncLimitedTransport(
            slots, "pool", httpx2.MockTransport(lambda _: httpx2.Response(200)), wait_s_max=0.01
        )
        async with httpx2.AsyncClient(transport=transport) as http:
            with pytest.raises(ProviderBusy) as caught:
                await http.post("https://model.example/v1/messages", json={"model": "m"})
            return caught.value

    assert asyncio.run(main()).retry_after_s == 7.0


def test_sub_limits_of_models_are_asked_for_by_name() -> None:
    slots = MemorySlots()
    transport = LimitedTransport(slots, "pool", httpx2.MockTransport(lambda _: httpx2.Response(200)), by_model=True)

    with httpx2.Client(transport=transport) as http:
        http.post("https://model.example/v1/messages", json={"model": "vendor/large", "max_tokens": 9})

    assert slots.asked == [("pool/vendor/large", 9)]


# ---------------------------------------------------------------- compressed


def test_compressed_answers_are_read_in_passing_and_passed_on_as_they_are() -> None:
    plain = b'{"model": "m", "usage": {"input_tokens": 3, "output_tokens": 4}, "text": "' + b"x" * 5000 + b'"}'
    offered = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        offered.append(request.headers["accept-encoding"])
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return httpx2.Response(200, headers=headers, content=gzip.compress(plain))

    slots = MemorySlots()
    with httpx2.Client(transport=LimitedTransport(slots, "pool", httpx2.MockTransport(answer))) as http:
        headers = {"accept-encoding": "gzip, deflate, br, zstd"}
        got = http.post("https://model.example/v1/messages", json={}, headers=headers)

    assert got.content == plain
    assert offered == ["gzip, deflate"]
    assert slots.reports[0].usage == Usage(input_tokens=3, output_tokens=4)


def test_an_answer_in_an_encoding_nobody_asked_for_is_passed_on_unread() -> None:
    headers = {"content-type": "application/json", "content-encoding": "br", "x-ratelimit-limit-requests": "60"}
    slots = MemorySlots()
    transport = LimitedTransport(
        slots,
        "pool",
        httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, stream=httpx2.ByteStream(b"?"))),
    )

    with httpx2.Client(transport=transport) as http, http.stream("POST", "https://model.example/", json={}) as got:
        assert b"".join(got.iter_raw()) == b"?"

    report = slots.reports[0]
    assert (report.outcome, report.usage) == ("ok", None)
    assert report.requests is not None
    assert report.requests.limit == 60

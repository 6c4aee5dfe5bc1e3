"""A streamed response that somebody drops without reading or closing it: its permit comes back all the same."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import httpx2
import pytest

from sennit import App
from sennit.integrations.http import AsyncLimitedTransport, LimitedTransport
from sennit.submit.limits import Provider
from sennit.testing.provider import FakeProvider

STREAM = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(output_tokens=12) as provider:
        yield provider


@pytest.fixture
def app() -> Iterator[App]:
    app = App("memory://")
    yield app
    app.close()


def one_at_a_time(app: App) -> Provider:
    return app.provider("pool", parallel=1, strategy="fixed", breaker=None)


def test_a_response_that_is_dropped_half_read_gives_its_permit_back(app: App, fake: FakeProvider) -> None:
    provider = one_at_a_time(app)

    async def main() -> None:
        async with httpx2.AsyncClient(transport=AsyncLimitedTransport(app.limits, "pool")) as client:
            request = client.build_request("POST", f"{fake.url}/v1/chat/completions", json=STREAM)
            response = await client.send(request, stream=True)
            assert (await provider.view())[0].in_use == 1
            del response
            gc.collect()
            async with asyncio.timeout(10), provider.slot():
                pass

    asyncio.run(main())


def test_a_response_that_is_dropped_after_its_loop_has_ended_gives_its_permit_back(
    app: App, fake: FakeProvider
) -> None:
    provider = one_at_a_time(app)
    kept: list[httpx2.Response] = []

    async def main() -> None:
        async with httpx2.AsyncClient(transport=AsyncLimitedTransport(app.limits, "pool")) as client:
            request = client.build_request("POST", f"{fake.url}/v1/chat/completions", json=STREAM)
            kept.append(await client.send(request, stream=True))

    asyncio.run(main())
    kept.clear()
    gc.collect()
    with provider.slot():
        pass


def test_a_response_that_is_dropped_in_blocking_code_gives_its_permit_back(app: App, fake: FakeProvider) -> None:
    provider = one_at_a_time(app)
    with httpx2.Client(transport=LimitedTransport(app.limits, "pool")) as client:
        request = client.build_request("POST", f"{fake.url}/v1/chat/completions", json=STREAM)
        response = client.send(request, stream=True)
        assert provider.view().result()[0].in_use == 1
        del response
        gc.collect()
        with provider.slot():
            pass

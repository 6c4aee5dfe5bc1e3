"""The limits of a real store, through the transport and through `sennit proxy`, which is another process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from sennit import App
from sennit.integrations.http import AsyncLimitedTransport
from sennit.testing.provider import FakeProvider

HELLO: Any = [{"role": "user", "content": "hello"}]
RUN = "from sennit.cli.proxy import proxy; import sys; sys.exit(proxy(standalone_mode=False))"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App(f"sqlite:///{tmp_path}/fleet.db", durability="normal")
    app.provider("pool", parallel=3)
    yield app
    app.close()


@contextmanager
def proxy_process(app: App, upstream: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    argv = [sys.executable, "-c", RUN, "--db", app.url, "--upstream", f"pool={upstream}", "--port", "0"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}) as process:
        assert process.stderr is not None
        try:
            line = ""
            while "listens on" not in line:
                line = process.stderr.readline()
                assert line, "the proxy has ended"
            yield process, line.split()[4]
        finally:
            process.kill()


def client(url: str, http: httpx2.AsyncClient | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, http_client=http)


async def chat(ai: openai.AsyncOpenAI) -> Any:
    return await ai.chat.completions.create(model="m", messages=HELLO)


def test_a_program_behind_the_proxy_and_one_with_the_transport_share_one_limit(app: App) -> None:
    async def main(fake: FakeProvider, proxy: str) -> None:
        http = httpx2.AsyncClient(transport=AsyncLimitedTransport(app.limits, "pool"))
        async with app, client(fake.url, http) as ours, client(proxy) as theirs:
            await asyncio.gather(*(chat(ours) for _ in range(15)), *(chat(theirs) for _ in range(15)))

    with FakeProvider(latency=0.05) as fake, proxy_process(app, fake.url) as (process, url):
        asyncio.run(main(fake, url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        seen = fake.statistics()

    view = app.limits.providers("pool").result()[0]
    assert (seen.ok, seen.max_concurrency) == (30, 3)
    assert (view.granted, view.succeeded, view.in_use) == (30, 30, 0)
    assert view.output_tokens == 30 * 16


def test_a_window_429_that_the_proxy_saw_pauses_everybody(app: App) -> None:
    async def main(fake: FakeProvider, proxy: str) -> None:
        http = httpx2.AsyncClient(transport=AsyncLimitedTransport(app.limits, "pool"))
        async with app, client(fake.url, http) as ours, client(proxy) as theirs:
            fake.exhaust(1.5, at_next_call=True)
            with pytest.raises(openai.RateLimitError):
                await chat(theirs)
            await asyncio.gather(*(chat(ours) for _ in range(5)))

    with FakeProvider() as fake, proxy_process(app, fake.url) as (_, url):
        asyncio.run(main(fake, url))
        seen = fake.statistics()

    assert seen.by_status == {429: 1, 200: 5}
    assert seen.requests_during_pause == 0


def test_permits_of_a_proxy_that_is_killed_come_back(app: App) -> None:
    async def main(fake: FakeProvider, proxy: str, process: subprocess.Popen[str]) -> None:
        http = httpx2.AsyncClient(transport=AsyncLimitedTransport(app.limits, "pool"))
        async with app, client(fake.url, http) as ours, client(proxy) as theirs:
            fake.inject("hang_before_headers", 3)
            held = [asyncio.create_task(chat(theirs)) for _ in range(3)]
            await asyncio.to_thread(fake.wait_for, in_service=3)
            process.kill()
            lost = await asyncio.gather(*held, return_exceptions=True)
            assert all(isinstance(error, openai.APIConnectionError) for error in lost)
            await asyncio.gather(*(chat(ours) for _ in range(5)))

    with FakeProvider() as fake, proxy_process(app, fake.url) as (process, url):
        asyncio.run(main(fake, url, process))

    assert app.limits.providers("pool").result()[0].in_use == 0

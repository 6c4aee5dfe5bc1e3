"""Requests to the proxy that no SDK makes: headers of another encoding, bodies that are too large."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from sennit.errors import SettingsError
from sennit.integrations import proxy
from sennit.integrations.proxy import proxy_app
from sennit.testing.provider import FakeProvider
from tests.integrations.memory_slots import MemorySlots
from tests.integrations.test_proxy import through

PERMITS = 100
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(output_tokens=12) as provider:
        yield provider


def test_a_header_that_is_not_ascii_is_passed_on_as_it_is(fake: FakeProvider) -> None:
    slots = MemorySlots(PERMITS)

    async def body(url: str) -> None:
        async with httpx2.AsyncClient() as client:
            headers = [(b"x-title", "Jörg".encode("latin-1")), (b"content-type", b"application/json")]
            answer = await client.post(f"{url}/v1/chat/completions", content=CHAT, headers=headers)
            assert answer.status_code == 200

    through(slots, {"openai": fake.url}, body)
    assert slots.free == PERMITS


def test_a_body_over_the_bound_is_refused_and_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 1024 * 1024
    monkeypatch.setattr(proxy, "BODY_BYTES_MAX", most)
    slots = MemorySlots(PERMITS)
    app, sent = proxy_app(slots, {"openai": "http://127.0.0.1:1"}), list[Any]()
    left = [b"x" * 65536] * 500

    async def receive() -> dict[str, Any]:
        left.pop()
        tracemalloc.reset_peak()
        return {"type": "http.request", "body": b"x" * 65536, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": []}
        await app(scope, receive, send)

    tracemalloc.start()
    try:
        asyncio.run(main())
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert sent[0]["status"] == 413
    assert slots.asked == []


def test_an_upstream_cannot_take_the_place_of_the_default_path() -> None:
    with pytest.raises(SettingsError, match="v1"):
        proxy_app(MemorySlots(PERMITS), {"openai": "http://127.0.0.1:1", "v1": "http://127.0.0.1:2"})

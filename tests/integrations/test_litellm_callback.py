"""The real litellm package with our callback, against the fake provider on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from sennit.integrations.litellm import limits_callback
from sennit.model.provider import Usage
from sennit.testing.provider import FakeProvider
from tests.integrations.memory_slots import MemorySlots

pytestmark = pytest.mark.filterwarnings("ignore")  # litellm's own: unclosed clients, pydantic, coroutines

MESSAGES = [{"role": "user", "content": "hello"}]
PERMITS = 100


class Seen(MemorySlots):
    """Knows when a report has come: litellm's success events are made by a worker of its own."""

    def __init__(self) -> None:
        super().__init__(PERMITS)
        self.come = threading.Semaphore(0)

    def give(self, *args: Any) -> None:
        super().give(*args)
        self.come.release()

    def wait(self) -> None:
        assert self.come.acquire(timeout=20)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(output_tokens=12, rpm=1000) as provider:
        yield provider


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Seen:
    import litellm

    slots = Seen()
    monkeypatch.setattr(litellm, "callbacks", [limits_callback(slots, {"openai": "pool", "anthropic": "claude"})])
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    for name in ("success_callback", "failure_callback", "input_callback", "_async_success_callback"):
        monkeypatch.setattr(litellm, name, [])
    monkeypatch.setattr(litellm, "_async_failure_callback", [])
    return slots


def options(fake: FakeProvider, model: str = "openai/m", **more: Any) -> dict[str, Any]:
    base = fake.url if model.startswith("anthropic") else f"{fake.url}/v1"
    return {"model": model, "messages": MESSAGES, "api_base": base, "api_key": "any", "max_retries": 0, **more}


def run(body: Callable[[Any], Awaitable[None]]) -> None:
    import litellm

    asyncio.run(body(litellm))  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "provider"), [("openai/m", "pool"), ("anthropic/m", "claude")])
def test_an_async_call_takes_a_permit_and_tells_what_it_used(
    fake: FakeProvider, slots: Seen, model: str, provider: str
) -> None:
    answers = []

    async def body(litellm: Any) -> None:
        answers.append(await litellm.acompletion(**options(fake, model)))
        assert slots.free == PERMITS

    run(body)

    report = slots.reports[0]
    assert slots.asked[0][0] == provider
    assert (len(slots.reports), report.outcome) == (1, "ok")
    assert report.usage == Usage(input_tokens=answers[0].usage.prompt_tokens, output_tokens=12)
    assert report.requests is not None
    assert report.requests.limit == 1000


def test_a_stream_holds_its_permit_to_its_last_chunk(fake: FakeProvider, slots: Seen) -> None:
    async def body(litellm: Any) -> None:
        stream = await litellm.acompletion(**options(fake, stream=True))
        assert slots.free == PERMITS - 1
        async for _ in stream:
            pass
        await asyncio.to_thread(slots.wait)

    run(body)

    assert [report.outcome for report in slots.reports] == ["ok"]
    assert slots.reports[0].usage is not None


@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_a_refusal_is_reported_with_its_reset_before_the_caller_sees_it(
    fake: FakeProvider, slots: Seen, model: str
) -> None:
    fake.exhaust(600)

    async def body(litellm: Any) -> None:
        with pytest.raises(litellm.RateLimitError):
            await litellm.acompletion(**options(fake, model))
        assert [report.pause for report in slots.reports] == ["window"]

    run(body)

    wait_s = slots.reports[0].retry_after_s
    assert wait_s is not None
    assert 590 < wait_s <= 601


def test_a_permit_is_waited_for(fake: FakeProvider, slots: Seen) -> None:
    slots.free = 1

    async def body(litellm: Any) -> None:
        await asyncio.gather(*(litellm.acompletion(**options(fake)) for _ in range(5)))

    fake.configure(latency=0.05)
    run(body)

    assert fake.statistics().max_concurrency == 1
    assert fake.statistics().ok == 5


def test_a_cancelled_call_gives_its_permit_back(fake: FakeProvider, slots: Seen) -> None:
    fake.configure(latency=600.0)

    async def body(litellm: Any) -> None:
        call = asyncio.create_task(litellm.acompletion(**options(fake)))
        await asyncio.to_thread(fake.wait_for, in_service=1)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await asyncio.to_thread(slots.wait)

    run(body)

    assert [report.outcome for report in slots.reports] == ["cancelled"]
    assert slots.free == PERMITS


def test_what_is_not_named_is_not_governed(fake: FakeProvider, slots: Seen) -> None:
    async def body(litellm: Any) -> None:
        await litellm.acompletion(**options(fake, "hosted_vllm/m"))

    run(body)

    assert slots.asked == []


def test_a_sync_call_is_governed_in_its_os_thread(fake: FakeProvider, slots: Seen) -> None:
    import litellm
    from litellm.exceptions import RateLimitError

    litellm.completion(**options(fake))
    slots.wait()
    fake.exhaust(600)
    with pytest.raises(RateLimitError):
        litellm.completion(**options(fake))
    slots.wait()

    assert [(report.outcome, report.pause) for report in slots.reports] == [("ok", ""), ("throttled", "window")]
    assert slots.free == PERMITS

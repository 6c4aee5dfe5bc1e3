"""What the tests of providers share: a refusal as a client raises it, and waiting for what the store says."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import ParamSpec

from sennit.model.provider import ProviderView
from sennit.submit.limits import Provider

P = ParamSpec("P")

WAIT_S = 30.0
TEST_S = 60.0


def on_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Run a test on an event loop of its own; one that hangs fails."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), TEST_S))

    return run


class Refused(Exception):
    """An error status, as clients raise it: with a status, and a response that has headers."""

    def __init__(self, status: int = 429, **headers: str) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.response = SimpleNamespace(
            status_code=status, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )


async def seen(provider: Provider, fact: Callable[[ProviderView], object]) -> ProviderView:
    """Wait until what the store says of a provider is so; each look is an answer of the store."""
    async with asyncio.timeout(WAIT_S):
        while True:
            (view,) = await provider.view()
            if fact(view):
                return view
            await asyncio.sleep(0)

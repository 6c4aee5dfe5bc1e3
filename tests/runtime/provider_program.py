"""A process that calls a model server through `openai` and a limit of five: as a worker, or as a program without tasks.

python -m tests.runtime.provider_program work URL          until its stdin is closed
python -m tests.runtime.provider_program call URL N        N calls at once
python -m tests.runtime.provider_program hold URL N        take N permits, say so, and keep them
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import openai

from sennit import App
from sennit.submit.limits import Provider
from sennit.submit.registry import Task

LIMIT = 5


def fleet(db: str, server: str) -> tuple[App, Provider, Task[[int], int]]:
    """Make the app that all processes have."""
    app = App(db, durability="normal", slots=20)

    def client() -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0)

    provider = app.provider("openai", parallel=LIMIT, strategy="fixed", client=client)

    @app.task(name="ask", provider=provider)
    async def ask(n: int) -> int:
        await call(provider)
        return n

    return app, provider, ask


async def call(provider: Provider) -> None:
    """Ask the model something."""
    async with provider.slot() as made, provider.client() as client:
        reply: Any = await client.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": "hi"}]
        )
        made.used(input_tokens=reply.usage.prompt_tokens, output_tokens=reply.usage.completion_tokens)


def say(word: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def main(what: str, server: str, n: int) -> None:
    """Do it."""
    app, provider, _ = fleet(os.environ["SENNIT_DB"], server)
    match what:
        case "work":
            async with app:
                say("ready")
                await asyncio.to_thread(sys.stdin.read)
        case "call":
            await asyncio.gather(*[call(provider) for _ in range(n)])
            await app.stop()
        case _:
            for _ in range(n):
                await provider.slot().__aenter__()
            say("held")
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))

"""A worker process with one agent, for tests that kill it: `serve` is started by the nursery or as a program."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sennit import App, RetryPolicy
from sennit.agents import Claude, Codex, Gemini
from sennit.testing.fakeagent import CONFIG

ADAPTERS = {"claude": Claude, "codex": Codex, "gemini": Gemini}


def fleet(folder: Path, shape: str, *, isolate: bool = False) -> App:
    """Return the app that all processes of a test share; the fake agent lies in `folder/fake`."""
    app = App(f"sqlite:///{folder}/fleet.db", lease_s=2, crashes_max=100)
    fake = folder / "fake"
    app.agent(
        "worker",
        ADAPTERS[shape](program=str(fake / shape)),
        cwd=folder / "work",
        environ={CONFIG[shape]: str(fake / "config")},
        retries=RetryPolicy(retries=3, delay_s=0.0),
        isolate="worktree" if isolate else "",
        on_success="merge" if isolate else "leave",
    )
    return app


def serve(folder: str, shape: str, isolate: str = "") -> None:
    """Work until killed."""

    async def work() -> None:
        async with fleet(Path(folder), shape, isolate=bool(isolate)):
            await asyncio.Event().wait()

    asyncio.run(work())


if __name__ == "__main__":
    serve(*sys.argv[1:])

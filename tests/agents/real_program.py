"""A worker with one real agent, for a test that kills it: the provider is a fake one on loopback in the test's process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from sennit import App, RetryPolicy
from sennit.agents import Claude, Codex
from tests.agents.real_programs import ALONE


def fleet(
    folder: Path, kind: str, program: str, url: str, *, provider: bool = False, token: bool = False, **options: Any
) -> App:
    """Return the app that all processes of a test share.

    Args:
        provider: it has one, called "model".  token: it is logged in as a subscriber.
    """
    app = App(f"sqlite:///{folder}/fleet.db", lease_s=2, crashes_max=10)
    (folder / "work").mkdir(exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    if kind == "claude":
        adapter: Claude | Codex = Claude(program=program, config_folder=str(folder / "config"), **options)
        environ = {"ANTHROPIC_BASE_URL": url, "CLAUDE_CODE_OAUTH_TOKEN" if token else "ANTHROPIC_API_KEY": "any"}
    else:
        adapter = Codex(
            program=program, home=str(folder / "home"), model="fake-model", base_url=f"{url}/v1", key="A_KEY", **options
        )
        environ = {"A_KEY": "any"}
    app.agent(
        "worker",
        adapter,
        cwd=folder / "work",
        environ={**ALONE, "HOME": str(folder), **environ},
        passes=["A_KEY"],
        retries=RetryPolicy(retries=1, delay_s=0.0),
        provider=app.provider("model", parallel=4) if provider else None,
    )
    return app


def serve(folder: str, kind: str, program: str, url: str) -> None:
    """Work until killed."""
    for name in [name for name in os.environ if name.startswith("SENNIT_TEST_")]:
        del os.environ[name]  # an app takes SENNIT_* for its settings

    async def work() -> None:
        async with fleet(Path(folder), kind, program, url):
            await asyncio.Event().wait()

    asyncio.run(work())

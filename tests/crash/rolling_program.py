"""The app that test_rolling_deploy runs in worker processes, in two versions at once: SENNIT_VERSION says which.

A body that is held asks the file system, which all versions share, whether it may end.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from sennit import App, wait_event


def compute(path: str) -> int:
    """In a process of its own: the first writes its id and goes on for ever, the next returns its own."""
    try:
        with Path(path).open("x", encoding="ascii") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return os.getpid()
    time.sleep(600)
    return 0


def handlers(app: App) -> dict[str, Any]:
    """Register the handlers on `app`."""

    @app.task(name="build", pinned=True)
    async def build(n: int) -> list[Any]:
        return [n, app.settings.version, os.getpid()]

    @app.task(name="held", pinned=True)
    def held(gate: str) -> str:
        Path(gate + ".started").touch()
        while not Path(gate).exists():
            time.sleep(0.01)
        return app.settings.version

    @app.task(name="waits", pinned=True)
    async def waits(event: str) -> str:
        await wait_event(event)
        return app.settings.version

    @app.task(name="parent", pinned=True)
    async def parent(n: int) -> list[Any]:
        """Its children are pinned to the version that runs it."""
        return [found[1] for found in await build.map(range(n))]

    @app.task(name="plain")
    async def plain(n: int) -> str:
        return app.settings.version

    @app.task(name="train", needs="gpu")
    async def train(n: int) -> int:
        return os.getpid()

    computed = app.task(cpu=True, name="compute")(compute)
    return {
        "compute": computed,
        "build": build,
        "held": held,
        "waits": waits,
        "parent": parent,
        "plain": plain,
        "train": train,
    }


app = App()
handlers(app)

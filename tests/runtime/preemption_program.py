"""A worker process of one slot for the test of preemption: bodies of five steps, the second of which waits at a gate.

A gate is a named pipe: who reads from it sleeps until the test has opened it for writing and closed it again.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from sennit import App, step
from tests.crash.fleet import write

STEPS = 5


def handlers(app: App) -> tuple[Any, Any]:
    """Register the two handlers; the test does so too, to hand in."""

    @app.task(name="long", preemptible=True)
    def long(name: str) -> list[int]:
        def piece(n: int) -> int:
            write("step", f"{name}-{n}")
            if n == 2:
                (Path(os.environ["GATES"]) / name).read_bytes()
            return n

        return [step(piece, n).result() for n in range(1, STEPS + 1)]

    @app.task(name="short")
    def short(name: str) -> str:
        write("urgent", name)
        return name

    return long, short


async def main() -> None:
    """Work until SIGTERM."""
    app = App()
    handlers(app)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with app:
        tell_when_pressed(app)
        write("ready")
        await over.wait()


def tell_when_pressed(app: App) -> None:
    """Note in the journal that this process has asked a body to make room."""
    engine = app._engine
    assert engine is not None
    dispatcher = engine._dispatcher
    on_pressed = dispatcher.on_pressed

    def told(queue: str) -> None:
        on_pressed(queue)
        write("pressed", queue)

    dispatcher.on_pressed = told  # type: ignore[method-assign]  # listens in, changes nothing


if __name__ == "__main__":
    asyncio.run(main())

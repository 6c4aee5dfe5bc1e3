"""A worker process that claims ahead, and its handlers; `test_lease_stealing.py` starts it from the nursery."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sennit import App
from sennit.submit.context import current
from tests.crash.fleet import write


def handlers(app: App) -> tuple[Any, Any]:
    """Register what a heap of uneven work is made of: a few bodies that do not end, many that do."""

    @app.task(name="endless")
    async def endless() -> str:
        """Holds its slot for ever, until somebody else has it."""
        write("start")
        attempt = current()
        if attempt is not None and attempt.task.attempt == 1:
            await asyncio.Event().wait()
        return "done by another"

    @app.task(name="short")
    async def short(n: int, gate: str = "") -> int:
        """Ends at once, or when somebody opens the gate, a FIFO, for writing."""
        write("start", str(n))
        if gate:
            with await asyncio.to_thread(Path(gate).open):
                pass
        return n

    return endless, short


def run() -> None:
    """Work until killed."""
    asyncio.run(main())


async def main() -> None:
    """Work until killed."""
    app = App()
    handlers(app)
    async with app:
        write("ready")
        await asyncio.Event().wait()

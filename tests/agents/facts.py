"""Waiting for what other processes do, and looking at whether they live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

WAIT_S = 50.0


async def until(fact: Callable[[], object]) -> None:
    """Return when it is so; nothing tells us of another process's files, so we look."""
    async with asyncio.timeout(WAIT_S):
        while not fact():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)  # sleep: until other processes have come so far


def alive(*pids: int) -> list[int]:
    """Return those processes that are there, zombies too."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]

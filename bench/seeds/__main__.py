"""The two experiments that Sennit's ideas came from, as they were and as they are: lost updates, and polled dependencies.

    python bench/seeds               # both, side by side; no server, about ten seconds, most of it the polling

An orchestrator of agents claimed to have measured that four updates in five got lost, and that polling its dependencies
cost most of its time. The first holds for any read-modify-write with an `await` inside its window, the second is what a
`sleep(1)` costs. Each is run here in that form and in ours, in the same process, with the same work.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from sennit import App
from sennit.sync.versioned import VersionedMap

AGENTS: Final = 100
UPDATES: Final = 10
CHAIN: Final = 5
WORK_S: Final = 0.01
POLL_S: Final = 1.0


# ---------------------------------------------------------------- lost updates


async def _agents(update: Callable[[], Awaitable[object]]) -> float:
    """Let all agents update the same counter; return the seconds it took."""

    async def agent() -> None:
        for _ in range(UPDATES):
            await update()

    start = time.perf_counter()
    await asyncio.gather(*(agent() for _ in range(AGENTS)))
    return time.perf_counter() - start


async def unprotected() -> tuple[int, float]:
    """Read, await, write: what another agent wrote meanwhile is gone."""
    state = {"count": 0}

    async def update() -> None:
        read = state["count"]
        await asyncio.sleep(0)  # sleep: the window in which others run, as a model call would be
        state["count"] = read + 1

    seconds = await _agents(update)
    return state["count"], seconds


async def versioned_map() -> tuple[int, float]:
    """The same window, and a compare-and-set at its end that says when somebody was faster."""
    state: VersionedMap[str, int] = VersionedMap()

    async def update() -> None:
        while True:
            read = state.get_versioned("count")
            await asyncio.sleep(0)  # sleep: the same window
            if state.compare_and_set("count", read.version, (read.value or 0) + 1):
                return

    seconds = await _agents(update)
    return state.get("count", 0), seconds


async def durable_thread(folder: Path) -> tuple[int, float]:
    """The durable state of a thread, an fsync per group commit."""
    app = App(f"sqlite:///{folder / 'seeds.db'}")
    thread: Any = app.thread("counter")

    async def update() -> None:
        await thread.update(lambda state: {"count": state.get("count", 0) + 1})

    seconds = await _agents(update)
    count = (await thread.get())["count"]
    await asyncio.to_thread(app.close)
    return count, seconds


# ---------------------------------------------------------------- waiting for what comes before


async def polled() -> tuple[float, int]:
    """A chain whose links look once a second whether the link before is done; return seconds and looks."""
    done: set[int] = set()
    looks = 0

    async def link(n: int) -> None:
        nonlocal looks
        while n and n - 1 not in done:
            looks += 1
            await asyncio.sleep(POLL_S)  # sleep: this is what is measured
        await asyncio.sleep(WORK_S)  # sleep: the work
        done.add(n)

    start = time.perf_counter()
    await asyncio.gather(*(link(n) for n in range(CHAIN)))
    return time.perf_counter() - start, looks


async def told(folder: Path) -> tuple[float, int]:
    """The same chain as durable tasks: the end of a parent starts its child in the same transaction."""
    app = App(f"sqlite:///{folder / 'chain.db'}")

    @app.task(name="link")
    async def link(before: int) -> int:
        await asyncio.sleep(WORK_S)  # sleep: the work
        return before + 1

    async with app:
        start = time.perf_counter()
        handle = link.submit(0)
        for _ in range(CHAIN - 1):
            handle = link.submit(handle.as_argument())
        await handle
        return time.perf_counter() - start, 0


# ---------------------------------------------------------------- the table


async def main() -> dict[str, Any]:
    """Run both experiments; return their figures."""
    total = AGENTS * UPDATES
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lost = {
            "unprotected read, await, write": await unprotected(),
            "VersionedMap, compare and set": await versioned_map(),
            "thread state, durable (FULL)": await durable_thread(place),
        }
        waits = {f"polled every {POLL_S:g} s": await polled(), "told by the store, durable (FULL)": await told(place)}
    return {
        "updates": [
            {"how": how, "updates": total, "lost": total - kept, "seconds": round(seconds, 4)}
            for how, (kept, seconds) in lost.items()
        ],
        "chain": [
            {"how": how, "links": CHAIN, "work_s": CHAIN * WORK_S, "seconds": round(seconds, 4), "looks": looks}
            for how, (seconds, looks) in waits.items()
        ],
    }


def _print(figures: dict[str, Any]) -> None:
    print(f"{AGENTS} agents, {UPDATES} updates each, one counter")
    for row in figures["updates"]:
        share = 100 * row["lost"] / row["updates"]
        print(f"  {row['how']:<34} lost {row['lost']:>4} of {row['updates']} ({share:.0f} %)  {row['seconds']:.3f} s")
    print(f"{CHAIN} tasks in a chain, {WORK_S * 1000:g} ms of work each")
    for row in figures["chain"]:
        over = row["seconds"] - row["work_s"]
        print(f"  {row['how']:<34} {row['seconds']:.3f} s, of which waiting {over:.3f} s")


if __name__ == "__main__":
    measured = asyncio.run(main())
    if "--json" in sys.argv:
        print(json.dumps(measured))
    else:
        _print(measured)

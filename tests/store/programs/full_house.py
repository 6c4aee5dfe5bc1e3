"""A fleet with something in every table. Usage: full_house.py fill | go_on | move URL [TARGET STEP].

fill URL           hands in tasks, works on them until all states are there, says `full`, and goes on until it is killed
go_on URL          does what is left: answers, signals, waits for all, and prints how often each body began after the move
move URL TARGET N  copies; kills itself at the N-th step, or prints what was copied and how many steps there were
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sennit import App, ask, step, thread, wait_event
from sennit.model.agent import AgentView
from sennit.model.lifecycle import State
from sennit.model.retry import Retry
from sennit.runtime.moving import move_store
from sennit.submit.context import attempt_here

app = App("memory://", log_capture=True)
model = app.provider("model", parallel=3)
log = logging.getLogger("house")
GOES_ON = sys.argv[1] == "go_on"
STARTED = {"a.started", "b.started", "talks.started"}
begun: list[str] = []


@app.task(name="good")
async def good(n: int) -> int:
    return 2 * n


@app.task(name="bad")
async def bad() -> None:
    raise ValueError("it broke")


@app.task(name="again", retries=3)
async def again() -> str | Retry:
    return "done" if GOES_ON else Retry(after_s=3600)


@app.task(name="runs", provider=model, retries=2)
async def runs(name: str) -> str:
    """Has a finished step, a child and an agent when it is killed."""
    begun.append(name)
    claim = attempt_here("runs").task.claim
    await app.store.note_agent(
        claim, AgentView(task_id=claim.task_id, agent="runs", status="working", worktree=f"/w/{name}")
    )
    log.warning("begins %s", name)
    first = await step(time.time_ns)
    good.options(delay_s=0).submit(first % 7)
    if not GOES_ON:
        await asyncio.to_thread(Path(f"{name}.started").touch)
        await asyncio.sleep(3600)
    return f"{name} {first}"


@app.task(name="asks")
async def asks() -> str:
    return f"said {await ask('Publish?', bool)}"


@app.task(name="hears")
async def hears() -> Any:
    return await wait_event("paid", "order-17")


@app.task(name="joins")
async def joins(parts: list[str]) -> int:
    return len(parts)


@app.task(name="talks")
async def talks(n: int) -> int:
    await thread().update(lambda s: {**s, "n": s.get("n", 0) + n})
    if not GOES_ON and n == 2:
        await asyncio.to_thread(Path("talks.started").touch)
        await asyncio.sleep(3600)
    return n


@app.task(name="cached", cache_s=3600, cache_tags=["stock"])
async def cached(n: int) -> int:
    return n


@app.task(name="elsewhere", needs="gpu")
async def elsewhere() -> str:
    return "there"


async def fill() -> None:
    app.cron("0 0 1 1 *", again)
    await app.budget("fleet", tokens=1_000_000)
    async with app:
        for n in range(20):
            await good.submit(n)
        failed = bad.submit()
        cancelled = good.options(delay_s=1000).submit(1)
        again.submit()
        left = [runs.submit(name) for name in ("a", "b")]
        joins.submit(left)  # type: ignore[arg-type]  # handles stand for their results
        asks.submit(), hears.submit()
        for n in (1, 2, 3, 4):
            talks.options(thread_id="talk \N{SNOWMAN}").submit(n)
        await cached.submit(5)
        elsewhere.submit()
        good.options(queue="nobody", key="once", deadline_s=90_000, priority="high").submit(7)
        good.options(delay_s=3600).submit(8)
        await app.signal("nobody-heard", "1", {"x": 1})
        await cancelled.cancel("not wanted")
        lease = await app.lock("deploy", ttl_s=3600).acquire()
        while not await _is_full(failed.id):  # noqa: ASYNC110 - facts in files and in the store
            await asyncio.sleep(0.01)
        sys.stdout.write("full\n")
        sys.stdout.flush()
        await asyncio.sleep(3600)
        del lease


async def _is_full(failed_id: int) -> bool:
    """Two bodies wait for somebody, three run, one has failed and one waits for its next attempt."""
    counts = (await app.store.counts())["default"]
    waits = counts.get(State.SUSPENDED) == 2 and counts.get(State.SCHEDULED) == 2
    return waits and set(os.listdir()) >= STARTED and not (await app.store.task(failed_id)).state.live  # noqa: PTH208


async def go_on() -> None:
    """Finish what can be finished here; print what came of it."""
    store = app.store
    left = {view.id: view.handler for view in await store.tasks(states=[State.RUNNING, State.READY, State.WAITING])}
    (question,) = await app.inbox().list()
    async with app:
        await question.approve(by="ann")
        await app.signal("paid", "order-17", {"amount": 12})
        for task_id, handler in left.items():
            if handler != "elsewhere" and (await store.task(task_id)).queue != "nobody":
                await app.handle(task_id)
        ended = {handler: json.loads((await store.task(i)).result or b"null") for i, handler in left.items()}
        state, again_id = await app.thread("talk \N{SNOWMAN}").get(), await cached.submit(5)
    app.close()
    sys.stdout.write(json.dumps({"begun": begun, "ended": ended, "state": state, "cached": again_id}))


def move(url: str, target: str, last: str) -> None:
    def say(step: str, _n: int) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    copied = move_store(url, target, app.settings, keep=False, say=say)
    sys.stdout.write(json.dumps({"given_back": copied.given_back, "resumed": copied.resumed}))


def main(what: str, url: str, *words: str) -> None:
    app.use(url)
    if what == "fill":
        asyncio.run(fill())
    elif what == "go_on":
        asyncio.run(go_on())
    elif what == "move":
        move(url, *words)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""kill -9 of the supervising worker at random points: no agent outlives it, each goes on with its session, nothing is done twice.

`AGENT_KILLS=20` kills as often as that; the suite's six are the short form.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from functools import partial
from pathlib import Path

import pytest

from sennit.testing.fakeagent import FakeAgent, append, commit, pause, say
from tests.agents.agents_program import fleet
from tests.agents.facts import alive, until
from tests.agents.fakes import SHAPES
from tests.crash.nursery import Nursery

AGENTS = 5
KILLS = int(os.environ.get("AGENT_KILLS", "6"))
STEPS = 8 * KILLS


def has_told(fake: FakeAgent, n_events: int) -> bool:
    """Return whether its runs have logged so many events."""
    return len(fake.events()) >= n_events


def running(fake: FakeAgent) -> list[int]:
    """Return the programs of all runs that still live."""
    return alive(*(run.pid for run in fake.runs()))


async def killed_again_and_again(folder: Path, fake: FakeAgent, nursery: Nursery, *, isolate: str = "") -> None:
    """Kill a worker `KILLS` times, each time after so many more events of the agents; then let one finish."""
    chance = random.Random(str(folder.name) + fake.shape)
    for _ in range(KILLS):
        seen = len(fake.events())
        enough = seen + chance.randint(1, 3 * AGENTS)
        worker = nursery.start("tests.agents.agents_program:serve", str(folder), fake.shape, isolate)
        await until(partial(has_told, fake, enough))
        worker.kill()
        await until(lambda: not running(fake))


@pytest.mark.parametrize("shape", SHAPES)
def test_kill_9_of_the_supervisor_loses_no_session_and_repeats_nothing(
    shape: str, tmp_path: Path, nursery: Nursery
) -> None:
    fake = FakeAgent(tmp_path / "fake", shape)  # type: ignore[arg-type]
    (tmp_path / "work").mkdir()

    def prompt(task: int) -> str:
        """Say the steps in the prompt: each task has a file of its own, so that what was done twice stands there twice."""
        steps = [part for n in range(STEPS) for part in (append(tmp_path / f"out-{task}", f"line {n}"), pause(0.02))]
        return "\n".join([f"task {task}", *(f"fake: {json.dumps(step)}" for step in [*steps, say("all of it")])])

    async def go() -> None:
        app = fleet(tmp_path, shape)
        async with asyncio.timeout(100):
            handles = [app.submit_named("worker", {"prompt": prompt(n)}) for n in range(AGENTS)]
            await asyncio.gather(*(handle.stored() for handle in handles))
            await killed_again_and_again(tmp_path, fake, nursery)
            last = nursery.start("tests.agents.agents_program:serve", str(tmp_path), shape)
            try:
                results = [await handle for handle in handles]
            finally:
                last.kill()
            await until(lambda: not running(fake))
            ledger = await app.ledger()
        app.close()
        assert {result.text for result in results} == {"all of it"}
        assert len({result.session_id for result in results}) == AGENTS
        # One that was killed before it had said which session it had begun is not found again; nothing was done in it.
        known = {result.session_id for result in results}
        assert known <= set(fake.sessions())
        assert {effect.session_id for effect in fake.effects()} == known
        for task in range(AGENTS):
            written = (tmp_path / f"out-{task}").read_text().splitlines()
            assert written == [f"line {n}" for n in range(STEPS)]
        assert (ledger.submitted, ledger.succeeded, ledger.live) == (AGENTS, AGENTS, 0)
        assert ledger.crashed > 0

    asyncio.run(go())


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_kill_9_loses_no_commit_of_agents_in_worktrees(tmp_path: Path, nursery: Nursery) -> None:
    fake = FakeAgent(tmp_path / "fake")
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-b", "main")
    git(work, "commit", "--allow-empty", "-m", "begin")

    def prompt(task: int) -> str:
        """Say the steps in the prompt: each task commits files of its own."""
        steps = [commit(f"{task}-{n}.txt", f"{n}", f"part {task}.{n}") for n in range(4)]
        return "\n".join([f"task {task}", *(f"fake: {json.dumps(step)}" for step in steps)])

    async def go() -> None:
        app = fleet(tmp_path, "claude", isolate=True)
        async with asyncio.timeout(100):
            handles = [app.submit_named("worker", {"prompt": prompt(n)}) for n in range(3)]
            await asyncio.gather(*(handle.stored() for handle in handles))
            for _ in range(2):
                enough = len(fake.events()) + 6
                worker = nursery.start("tests.agents.agents_program:serve", str(tmp_path), "claude", "yes")
                await until(partial(has_told, fake, enough))
                worker.kill()
            last = nursery.start("tests.agents.agents_program:serve", str(tmp_path), "claude", "yes")
            try:
                results = [await handle for handle in handles]
            finally:
                last.kill()
        app.close()
        assert [(result.merged, result.worktree, result.note) for result in results] == [(True, "", "")] * 3
        assert all(result.commits for result in results)  # a commit that was killed half-way is made by a later one
        files = {path.name: path.read_text() for path in work.glob("*.txt")}
        assert files == {f"{task}-{n}.txt": f"{n}" for task in range(3) for n in range(4)}
        assert git(work, "status", "--porcelain") == ""
        assert git(work, "worktree", "list").count("\n") == 1

    asyncio.run(go())

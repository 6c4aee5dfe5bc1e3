"""kill -9 of a worker before any line of what runs an agent's task: the work is neither lost nor done twice.

`AGENT_LINES=1,2,3` or `AGENT_LINES=1:300:3` chooses the lines; the suite's few are the short form.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

from sennit.testing.fakeagent import FakeAgent, append, commit, say
from tests.agents.agents_program import fleet
from tests.agents.facts import alive, until
from tests.crash.nursery import Nursery


def chosen() -> list[int]:
    """Return which lines to die before."""
    said = os.environ.get("AGENT_LINES", "102,300")
    return list(range(*map(int, said.split(":")))) if ":" in said else [int(part) for part in said.split(",")]


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_a_worker_that_dies_before_any_line_loses_nothing_and_repeats_nothing(tmp_path: Path, nursery: Nursery) -> None:
    fake = FakeAgent(tmp_path / "fake")
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-b", "main")
    git(work, "commit", "--allow-empty", "-m", "begin")

    def prompt(line: int) -> str:
        steps = [
            append(tmp_path / f"out-{line}", "one"),
            commit(f"{line}.txt", "x", f"part {line}"),
            say(f"said {line}"),
        ]
        return "\n".join([f"task {line}", *(f"fake: {json.dumps(step)}" for step in steps)])

    async def go() -> None:
        app = fleet(tmp_path, "claude", isolate=True)
        async with asyncio.timeout(3000):
            for line in chosen():
                handle = await app.submit_named("worker", {"prompt": prompt(line)}).stored()
                worker = nursery.start("tests.agents.crash_program:serve_until_line", str(tmp_path), str(line))
                await until(lambda pid=worker.pid: is_dead(pid))  # type: ignore[misc]
                worker.kill()
                last = nursery.start("tests.agents.agents_program:serve", str(tmp_path), "claude", "yes")
                try:
                    result = await handle
                finally:
                    last.kill()
                    await until(lambda: not alive(*(run.pid for run in fake.runs())))
                runs = [run for run in fake.events("did") if run.facts.get("path") == str(tmp_path / f"out-{line}")]
                assert (result.text, result.merged, result.worktree, result.note) == (f"said {line}", True, "", ""), (
                    line
                )
                assert (tmp_path / f"out-{line}").read_text() == "one\n", line
                assert (work / f"{line}.txt").read_text() == "x", line
                assert (len(result.unknown) <= 1, len(runs)) == (True, 1), line
                assert git(work, "log", "--format=%s").splitlines().count(f"part {line}") == 1, line
                print(line, result.runs, result.tools, result.commits)  # noqa: T201 - shown when it fails
        assert git(work, "status", "--porcelain") == ""
        assert git(work, "worktree", "list").count("\n") == 1
        app.close()

    asyncio.run(go())


def is_dead(pid: int) -> bool:
    """Return whether a child has ended; it may be a zombie still."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in {"Z", "X"}

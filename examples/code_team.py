"""A team of coding agents: one plans, several build, another reviews, a person approves, and what is approved is merged.

    plan ─► build, each part in a worktree of its own ─► review, each ─► ask a person ─► land, one after the other

    python examples/code_team.py "greet people"                              fake agents, offline, a few seconds
    python examples/code_team.py --with claude --repo ~/code/app "greet people"    the real program, on a real repository

Kill it at any moment and start it again: finished parts are not done again, agents go on with their sessions, and nobody is
asked twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sennit import App, ask, step
from sennit.agents import Adapter, AgentResult, Claude, Codex, Gemini
from sennit.testing.fakeagent import FakeAgent, commit, say

PLAN = """Plan this change as independent parts, at most {n_max}. Answer with one line per part, each beginning with "- ":
a file name, a colon, and what to do in it. Say nothing else and change nothing.

{goal}"""
BUILD = """You build one part of a larger change. Others build the rest beside you, in folders of their own: touch nothing else.
Commit your work with a message that says why.

Your part: {part}"""
REVIEW = """Review the branch {branch}: `git diff {branch}` against where it began. Answer with the word APPROVED or REJECTED
alone on the first line, then why. Change nothing."""


class Team:
    """Three agents and the task that leads them.

    Args:
        planner, builder, reviewer: the programs; one adapter may do for all three.
        repository: what they work on.
    """

    def __init__(self, app: App, repository: Path, planner: Adapter, builder: Adapter, reviewer: Adapter) -> None:
        self.app = app
        self.plan = app.agent("planner", planner, cwd=repository)
        self.build = app.agent("builder", builder, cwd=repository, isolate="worktree", on_success="leave")
        self.review = app.agent("reviewer", reviewer, cwd=repository)
        self.task = app.task(name="team", timeout_s=None)(self.lead)

    async def lead(self, goal: str, n_max: int = 4) -> list[str]:
        """Lead the team to its goal; return what became of each part."""
        plan = await self.plan.submit(PLAN.format(goal=goal, n_max=n_max))
        parts = parts_of(plan.text)[:n_max]
        builds = [self.build.submit(self.order(part)) for part in parts]  # all at once: submit waits for nobody
        built = [await build for build in builds]
        reviews = [self.review.submit(REVIEW.format(branch=one.branch or "HEAD"), context=one) for one in built]
        good = [one for one, review in zip(built, reviews, strict=True) if (await review).text.startswith("APPROVED")]
        branches = ", ".join(one.branch for one in good)
        if not good or not await ask(f"Merge {len(good)} of {len(built)} parts?", bool, context=branches):
            return [f"left in {one.worktree}" for one in built]
        landed = [await step(self.land, one) for one in good]  # one after the other, each once
        return [f"{one.branch}: {'merged' if one.merged else one.note}" for one in landed]

    def order(self, part: str) -> str:
        """Return what the builder of a part is told."""
        return BUILD.format(part=part)

    async def land(self, built: AgentResult) -> AgentResult:
        """Merge what an agent has built."""
        return await self.app.land(built, "merge")


def parts_of(plan: str) -> list[str]:
    """Return the parts that a plan names, one per line that begins with "- "."""
    return [line[2:].strip() for line in plan.splitlines() if line.startswith("- ")]


# ---------------------------------------------------------------- without any model


class Rehearsal(Team):
    """The same team with fake agents, whose parts say what they do."""

    def __init__(self, app: App, repository: Path, folder: Path) -> None:
        planner = FakeAgent(folder / "planner").otherwise(say("- hello.txt: say hello\n- bye.txt: say goodbye"))
        builder = FakeAgent(folder / "builder").otherwise(say("built"))
        reviewer = FakeAgent(folder / "reviewer").otherwise(say("APPROVED\nshort and to the point"))
        super().__init__(app, repository, *(Claude(program=one.program) for one in (planner, builder, reviewer)))

    def order(self, part: str) -> str:
        """Add what a fake agent is to do."""
        file, _, what = part.partition(": ")
        return f"{super().order(part)}\nfake: {json.dumps(commit(file, what + chr(10), f'{file}: {what}'))}"


def new_repository(folder: Path) -> Path:
    """Make a git repository with one commit; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    who = ("-c", "user.name=team", "-c", "user.email=team@example.org")
    for words in (("init", "-q", "-b", "main"), ("commit", "-q", "--allow-empty", "-m", "begin")):
        subprocess.run(["git", *who, *words], cwd=folder, check=True)
    return folder


async def answered(app: App, *, yes: bool) -> None:
    """Answer the question at this terminal, or with yes."""
    async for question in app.inbox().watch():
        if question.state != "open":
            continue
        said = yes or (await asyncio.to_thread(input, f"{question.text} [y/N] ")).lower().startswith("y")
        await (question.approve(by="terminal") if said else question.reject(by="terminal"))


async def main(argv: list[str] | None = None) -> None:
    """Run the team once."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("goal", nargs="?", default="greet people")
    options.add_argument("--with", dest="program", choices=("fake", "claude", "codex", "gemini"), default="fake")
    options.add_argument("--repo", type=Path)
    options.add_argument("--yes", action="store_true", help="approve without asking")
    given = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        app = App(f"sqlite:///{folder}/team.db" if given.program == "fake" else None)
        repository = given.repo or new_repository(Path(folder) / "repository")
        if given.program == "fake":
            team: Team = Rehearsal(app, repository, Path(folder))
        else:
            adapter = {"claude": Claude, "codex": Codex, "gemini": Gemini}[given.program]()
            team = Team(app, repository, adapter, adapter, adapter)
        async with app:
            person = asyncio.create_task(answered(app, yes=given.yes or not sys.stdin.isatty()))
            try:
                for line in await team.task.submit(given.goal):
                    print(line)
            finally:
                person.cancel()


if __name__ == "__main__":
    asyncio.run(main())

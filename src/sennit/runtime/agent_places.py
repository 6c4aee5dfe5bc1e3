"""Where an agent works: the folder it was given, or a git worktree of its own.

isolate=""          cwd, as it is; nothing is done to it afterwards
isolate="worktree"  a worktree and branch per task, found again by later attempts, finished when the agent has succeeded
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

import msgspec

from sennit.errors import AgentError, WorktreeError
from sennit.execute.worktrees import Worktree, Worktrees
from sennit.model.agent import AgentResult
from sennit.runtime.agent_board import shortened

__all__ = ["OnSuccess", "Place", "PlaceFinished", "Workplaces", "folder_in", "unused", "worktree_name"]

_log = logging.getLogger("sennit")

OnSuccess = Literal["leave", "merge", "pull-request"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where one task's agent works; without a worktree the folder is all there is."""

    cwd: Path
    worktree: Worktree | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What others are told of it."""
        tree = self.worktree
        return {} if tree is None else {
            "branch": tree.branch, "worktree": str(tree.path), "repository": str(tree.repository),
        }  # fmt: skip


class PlaceFinished(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. `worktree` is where it still is, `why` what was asked for and could not be done."""

    branch: str = ""
    commits: int = 0
    merged: bool = False
    worktree: str = ""
    repository: str = ""
    name: str = ""
    why: str = ""


def worktree_name(agent: str, task_id: int) -> str:
    """Return the name of a task's worktree: the same for each of its attempts."""
    return f"{agent}-{task_id}"


def folder_in(base: Path | None, asked: str | None) -> Path:
    """Return the folder that was asked for, seen from `base`, by default that of this process."""
    return ((base or Path.cwd()) / Path(asked or ".").expanduser()).absolute()


def unused(folder: Path) -> Path:
    """Return this folder of a run, or another beside it if somebody has written here.

    A store that begins anew (in memory, from a backup) gives ids again: what an earlier run wrote would be read as this one's.
    """
    n, path = 1, folder
    while any(path.iterdir()):
        n += 1
        path = folder.with_name(f"{folder.name}.{n}")
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def _same_folder(cwd: Path, tree: Worktree) -> Path:
    """Return the folder of a worktree that is `cwd` in the repository, as far as the commit has it; else its top."""
    inside = Path(os.path.realpath(cwd))
    top = Path(os.path.realpath(tree.repository))
    same = tree.path / inside.relative_to(top) if inside.is_relative_to(top) else tree.path
    return same if same.is_dir() else tree.path


def _must_be(cwd: Path, agent: str) -> None:
    if not cwd.is_dir():
        raise AgentError(
            f"agent {agent} cannot work in {cwd}",
            agent=agent,
            why="it is no folder" if cwd.exists() else "there is no such folder",
            fix="make it, or give another cwd",
        )


class Workplaces:
    """The working folders of one app's agents.

    Args:
        folder: where worktrees are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def of(self, cwd: Path, *, agent: str, task_id: int, isolate: str, base: str) -> Place:
        """Return where a task's agent works; a later attempt gets the same.

        Raises:
            AgentError: there is no such folder.
            WorktreeError: it is in no git repository, or git could not make a worktree.
        """
        _must_be(cwd, agent)
        if not isolate:
            return Place(cwd=cwd)
        tree = await self._of(cwd).add(worktree_name(agent, task_id), base=base)
        for note in tree.notes:
            _log.info("worktree of agent %s, task %d: %s", agent, task_id, note)
        return Place(cwd=_same_folder(cwd, tree), worktree=tree)

    async def finish(self, place: Place, on_success: OnSuccess, *, message: str) -> PlaceFinished:
        """Commit what the agent has left, and do with its branch as was asked; then `clear` what is over.

        What cannot be done (a conflict, a repository with changes of its own) loses nothing: the worktree stays.
        """
        tree = place.worktree
        if tree is None:
            return PlaceFinished()
        trees = self._of(tree.repository)
        await trees.commit(tree, shortened(message) or tree.name)
        found = await trees.finish(tree, on_success)
        if found.why:
            _log.warning("worktree %s: %s", tree.name, found.why)
        is_empty = not found.commits and not found.uncommitted
        is_over = is_empty or (found.merged and not found.kept)
        return PlaceFinished(
            branch=found.branch if found.commits else "",
            commits=found.commits,
            merged=found.merged,
            worktree="" if is_over else str(tree.path),
            repository=str(tree.repository),
            name=tree.name,
            why=found.why,
        )

    async def clear(self, finished: PlaceFinished) -> PlaceFinished:
        """Remove a worktree that is over, unless that was done before. One that cannot be removed stays, and is told."""
        if finished.worktree or not finished.name:
            return finished
        trees = self._of(Path(finished.repository))
        for tree in await trees.known():
            if tree.name == finished.name:
                try:
                    await trees.release(tree)
                except WorktreeError as error:
                    _log.warning("worktree %s is over and could not be removed: %s", tree.name, error)
                    why = "; ".join(filter(None, [finished.why, str(error)]))
                    return msgspec.structs.replace(finished, worktree=str(tree.path), why=why)
        return finished

    async def land(self, result: AgentResult, on_success: OnSuccess) -> AgentResult:
        """Do with the branch of a task that left it, what was to be decided first; return the result as it is then.

        Raises:
            AgentError: the task had no worktree, or it is gone.
            WorktreeError: git could not look.
        """
        if not result.worktree:
            raise AgentError(
                f"task {result.task_id} of agent {result.agent} has no worktree",
                agent=result.agent,
                fix='app.agent(…, isolate="worktree", on_success="leave") keeps it until it is landed',
            )
        repository = Path(result.repository)
        name = worktree_name(result.agent, result.task_id)
        trees = Worktrees(repository, Path(result.worktree).parent)
        tree = next((tree for tree in await trees.known() if tree.name == name), None)
        if tree is None and await trees.was_merged(name):
            return msgspec.structs.replace(result, merged=True, worktree="", note="")
        if tree is None:
            raise AgentError(
                f"the worktree of task {result.task_id} is gone",
                agent=result.agent,
                why="it was released",
                fix=f"what was committed is on the branch {result.branch}: git merge {result.branch}",
            )
        found = await self.finish(Place(cwd=tree.path, worktree=tree), on_success, message=result.text)
        found = await self.clear(found)
        return msgspec.structs.replace(
            result,
            branch=found.branch,
            commits=found.commits,
            merged=found.merged,
            worktree=found.worktree,
            note=found.why,
        )

    def _of(self, repository: Path) -> Worktrees:
        return Worktrees(repository, self._folder)

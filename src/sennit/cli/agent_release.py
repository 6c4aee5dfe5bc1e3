"""Removing the worktree that was kept for an agent. git goes first, then the store forgets it: repeated, it comes to the same."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from sennit.cli.agent_view import is_here
from sennit.errors import WorktreeError
from sennit.execute.worktrees import Released, Worktrees
from sennit.model.agent import AgentView


def release_worktree(view: AgentView, *, force: bool) -> Released:
    """Remove the worktree of an agent that has ended.

    Raises:
        WorktreeError: it is on another host, something in it would be lost, or it is not one of ours.
    """
    if not is_here(view):
        raise WorktreeError(
            f"the worktree of task {view.task_id} is on {view.host}, and not here",
            agent=view.agent,
            fix=f"there: sennit agents release {view.task_id}",
        )
    path = Path(view.worktree)
    released = asyncio.run(_release(Path(view.repository), path, force=force))
    if released is None and os.path.lexists(path):
        raise WorktreeError(
            f"{path} is no worktree that sennit has made of {view.repository}",
            agent=view.agent,
            why="it was released before and made anew, or the repository's records are gone",
            fix="look what is in it, and remove it by hand",
        )
    return released or Released(name="", branch=view.branch)  # it was released, and the store not told of it


async def _release(repository: Path, path: Path, *, force: bool) -> Released | None:
    """Release the worktree at a path; None when no such one is known."""
    worktrees = Worktrees(repository, path.parent)
    for worktree in await worktrees.known():
        if worktree.path == path:
            return await worktrees.release(worktree, force=force)
    return None

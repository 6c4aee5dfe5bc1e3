"""A git worktree and branch for each agent, so that many work on one repository and none overwrites another.

    add(name) ─► a folder, on the branch sennit/NAME ─► the agent works ─► commit ─► finish(policy) ─► release
       └── again, after a crash: the same folder and branch

All that changes the repository happens one at a time, over all processes of the host (`execute.git_lock`). Nothing is ever
removed that is in no commit, unless `force` says so.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from sennit.errors import WorktreeError
from sennit.execute import worktree_finish as ends
from sennit.execute import worktree_release as leaves
from sennit.execute.git import Git
from sennit.execute.git_lock import alone, in_os_thread
from sennit.execute.worktree_finish import Finished, Policy
from sennit.execute.worktree_make import Site, Worktree, find_site, make
from sennit.execute.worktree_records import Records
from sennit.execute.worktree_release import Released

__all__ = ["Finished", "Policy", "Released", "Worktree", "Worktrees"]


class Worktrees:
    """The worktrees that agents have of one repository. Usable from any event loop; starts nothing, needs no close.

    Args:
        repository: any folder in it; work is merged into what is checked out there.
        folder: where the worktrees are made. It may lie inside the repository, which does not see it then.
        lock: the file that all who work on this repository lock; default: one in its git folder. Beside it: `git`.
    """

    def __init__(self, repository: Path, folder: Path, lock: Path | None = None) -> None:
        self.repository = repository
        self.folder = Path(os.path.realpath(folder))
        self._lock = lock
        self._site: Site | None = None

    async def add(self, name: str, *, base: str = "HEAD") -> Worktree:
        """Return the worktree of a name, made from the commit `base` if there is none yet.

        The same name gives the same folder and branch, however often it is asked for, also after a crash or a release.

        Raises:
            WorktreeError: it is no repository, has no commit, knows no `base`; or git could not do it.
        """
        if not name:
            raise WorktreeError("a worktree needs a name", fix="give one that is the agent's own")
        site = await self._found()
        return await alone(
            self._lock_of(site),
            lambda held: make(site, held, self._records(site), self.folder, name=name, base=base),
            purpose=f"making the worktree {name!r}",
        )

    async def commit(self, worktree: Worktree, message: str) -> str:
        """Commit all changes in a worktree, without hooks; return the commit, "" if there is nothing to commit.

        Raises:
            WorktreeError: it is no worktree any more, or git could not do it: no space, unreadable files.
        """
        site = await self._found()
        return await alone(
            self._lock_of(site),
            lambda held: ends.commit(site, held, worktree, message),
            purpose=f"committing in the worktree {worktree.name!r}",
        )

    async def finish(self, worktree: Worktree, policy: Policy = "leave") -> Finished:
        """Bring what was committed to where it belongs; the worktree stays. Repeating it is harmless.

        What cannot be done is no error but an outcome: `why`, `conflicts`, `command`. Nothing has changed then.

        Args:
            policy: `leave` looks only.  `merge` into the branch that is checked out in the repository, unless files that it
                changes have uncommitted changes there.  `pull-request` pushes the branch, and asks `gh` for one.

        Raises:
            WorktreeError: it is no worktree any more, or git could not look.
        """
        site = await self._found()
        look = ends.merge if policy == "merge" else ends.look
        found = await alone(
            self._lock_of(site),
            lambda held: look(site, held, worktree),
            purpose=f"finishing the worktree {worktree.name!r}",
        )
        if policy == "pull-request":
            return await in_os_thread(partial(ends.push, site, found, worktree))
        return found

    async def release(self, worktree: Worktree, *, force: bool = False) -> Released:
        """Remove the folder, and the branch if all its commits are elsewhere too; a branch with commits of its own stays.

        Args:
            force: remove both, whatever is in them.

        Raises:
            WorktreeError: uncommitted changes, commits on no branch or a repository inside it would be lost; says which.
        """
        site = await self._found()
        return await alone(
            self._lock_of(site),
            lambda held: leaves.release(site, held, self._records(site), worktree, force=force),
            purpose=f"releasing the worktree {worktree.name!r}",
        )

    async def known(self) -> tuple[Worktree, ...]:
        """Return the worktrees of this folder that were made and not released, by name.

        Raises:
            WorktreeError: it is no repository.
        """
        site = await self._found()
        records = await in_os_thread(self._records(site).all)
        return tuple(leaves.of_record(record, site) for record in records if record.state != "released")

    async def was_merged(self, name: str) -> bool:
        """Return whether the work of a worktree that was released is in what is checked out in the repository.

        Raises:
            WorktreeError: it is no repository.
        """
        site = await self._found()

        def look() -> bool:
            record = self._records(site).read(name)
            sha = "" if record is None else record.head_sha
            return bool(sha) and Git(site.top).run("merge-base", "--is-ancestor", sha, "HEAD").ok

        return await in_os_thread(look)

    async def _found(self) -> Site:
        if self._site is None:
            self._site = await in_os_thread(partial(find_site, self.repository))
        return self._site

    def _lock_of(self, site: Site) -> Path:
        return self._lock or site.common / "sennit" / "lock"

    def _records(self, site: Site) -> Records:
        return Records(site.common, self.folder)

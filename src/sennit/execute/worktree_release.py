"""A worktree is taken away, once nothing that is only there would go with it; blocking, with the lock of the repository held.

    uncommitted files, a repository inside, commits on no branch ──► refused, and said which
    else ──► the folder goes; the branch too if all its commits are elsewhere, otherwise it stays
    force ──► both go; the last commit is told, `git branch NAME SHA` brings it back for some weeks

What .gitignore names goes with the folder: it was not to be kept.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from sennit.errors import WorktreeError
from sennit.execute.git import Git, words_of
from sennit.execute.worktree_finish import changes_of
from sennit.execute.worktree_make import Site, Worktree, admin_of, drop_stale_locks, registered, remove_tree, tip_of
from sennit.execute.worktree_records import Record, Records

__all__ = ["Released", "release"]

_NAMED_MAX = 10


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a worktree that was released.

    Attributes:
        head_sha: of the last commit of its branch, "" if there was none.
        branch_kept: the branch is still there: it has commits that no other one has, or is checked out elsewhere.
    """

    name: str
    branch: str
    head_sha: str = ""
    branch_kept: bool = False


def release(site: Site, held: int, records: Records, worktree: Worktree, *, force: bool) -> Released:
    """Remove the folder of a worktree, and its branch if it holds nothing of its own, or by force. Repeating it is harmless.

    Raises:
        WorktreeError: something would be lost; or git failed.
    """
    git = Git(site.top, held=held)
    ref = f"refs/heads/{worktree.branch}"
    admin = admin_of(worktree.path, site)
    if admin is not None:
        drop_stale_locks(site, admin, worktree.path, worktree.branch)
        if not force and (lost := _would_lose(Git(worktree.path, held=held, ceiling=True))):
            raise _refused(worktree, lost)
    elif os.path.lexists(worktree.path) and not force and _holds_something(worktree.path):
        raise _refused(worktree, ["the folder, which is no worktree of git any more"])
    head_sha = tip_of(git, ref)
    record = records.read(worktree.name)
    is_own = record is not None and record.path == str(worktree.path) and record.state != "released"
    if is_own and record is not None and not force:  # first: what is written down is that it is going
        records.write(msgspec.structs.replace(record, state="released", head_sha=head_sha))
    _remove(git, worktree.path)
    if is_own and force:
        records.forget(worktree.name)
    records.prune()
    is_dropped = (
        bool(head_sha) and (force or _is_elsewhere(git, worktree.branch, head_sha)) and _drop(git, ref, head_sha)
    )
    return Released(
        name=worktree.name, branch=worktree.branch, head_sha=head_sha, branch_kept=bool(head_sha) and not is_dropped
    )  # fmt: skip


def of_record(record: Record, site: Site) -> Worktree:
    """Return the worktree that was written down."""
    return Worktree(
        name=record.name, path=Path(record.path), branch=record.branch, base_sha=record.base_sha, repository=site.top
    )  # fmt: skip


def _would_lose(git: Git) -> list[str]:
    """Return what is in a worktree only, in words."""
    found = [f"{name} (a repository of its own)" if name.endswith("/") else name for name in changes_of(git)]
    links = [
        entry.partition("\t")[2] for entry in git.ask("ls-files", "--stage", "-z").split("\0") if entry[:6] == "160000"
    ]
    found += [f"{name} (a submodule that was filled here)" for name in links if (git.folder / name / ".git").exists()]
    if git.run("symbolic-ref", "--quiet", "HEAD").ok or not tip_of(git, "HEAD"):
        return found
    alone = git.ask("log", "--format=%h %s", "-20", "HEAD", "--not", "--branches", "--tags", "--remotes")
    return found + [f"commit {line} (on no branch)" for line in alone.splitlines()]


def _refused(worktree: Worktree, lost: list[str]) -> WorktreeError:
    more = f" and {len(lost) - _NAMED_MAX} more" if len(lost) > _NAMED_MAX else ""
    return WorktreeError(
        f"the worktree {worktree.path} is not released: {', '.join(lost[:_NAMED_MAX])}{more} would be lost",
        why="they are in no commit of any branch",
        fix="commit them, or save them elsewhere; or release it with force, and they are gone",
    )


def _remove(git: Git, path: Path) -> None:
    """Take the folder away by ourselves: git stops halfway at one that an agent has made read-only."""
    going = path.with_name(f".gone-{path.name}")
    if os.path.lexists(going):  # a crash has left it
        remove_tree(going)
    if os.path.lexists(path):
        path.rename(going)  # at once: nobody takes half of it for the work of an agent
    if path in registered(git):
        git.ask("worktree", "remove", "--force", "--force", str(path))
    if os.path.lexists(going):
        remove_tree(going)


def _is_elsewhere(git: Git, branch: str, head_sha: str) -> bool:
    """Whether all commits of a branch are on another branch, a tag or a remote's branch too."""
    others = (f"--exclude={branch}", "--branches", "--tags", "--remotes")
    return not git.ask("rev-list", "--max-count=1", head_sha, "--not", *others)


def _drop(git: Git, ref: str, head_sha: str) -> bool:
    """Delete a branch that is still at `head_sha` and checked out nowhere; not by `git branch -D`, which locks the config."""
    if git.ask("for-each-ref", "--format=%(worktreepath)", ref):
        return False
    answer = git.run("update-ref", "-d", ref, head_sha)
    if not answer.ok and tip_of(git, ref):
        raise WorktreeError(f"{ref} could not be deleted; its worktree is gone", why=words_of(answer))
    return True


def _holds_something(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())

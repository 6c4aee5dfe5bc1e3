"""What an agent has done is committed, and brought to where it belongs; blocking, with the lock of the repository held.

    leave          nothing more
    merge          merged in git's memory first ─► conflicts: nothing has changed, anywhere
                                                └► clean: `merge --ff-only` into the branch that is checked out
    pull-request   pushed; and a pull request, where `gh` is there

Merging touches no file that somebody is changing: then it is not done, and said why.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from sennit.execute.git import Git, identity, run, words_of
from sennit.execute.worktree_make import Site, Worktree, checked, drop_stale_locks, tip_of

__all__ = [
    "Finished",
    "Policy",
    "changes_of",
    "commit",
    "look",
    "merge",
    "open_pull_request",
    "push",
]

Policy = Literal["leave", "merge", "pull-request"]

PUSH_S: Final = 300.0
_TRIES: Final = 3  # somebody may commit between our merge and its arrival
_BUSY: Final = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply", "BISECT_LOG")


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a worktree's work.

    Attributes:
        head_sha: of its last commit.  commits: how many there are since `base_sha`.
        merged: all of them are in `into`, by the commit `merge_sha`.
        kept: the worktree holds what is not elsewhere, or was to be left: do not release it unasked.
        conflicts: files that stand against a merge: changed on both sides, or uncommitted in the repository.
        uncommitted: files of the worktree that are in no commit.
        why: what was asked for and not done, and why not; "" when all was.
        remote: where the branch was pushed.  pull_request: its URL.
        command: what to type for what could not be done here.
    """

    branch: str
    base_sha: str = ""
    head_sha: str = ""
    commits: int = 0
    merged: bool = False
    kept: bool = True
    into: str = ""
    merge_sha: str = ""
    conflicts: tuple[str, ...] = ()
    uncommitted: tuple[str, ...] = ()
    why: str = ""
    remote: str = ""
    pull_request: str = ""
    command: str = ""


# ---------------------------------------------------------------- committing


def commit(site: Site, held: int, worktree: Worktree, message: str) -> str:
    """Commit all changes of a worktree; return the commit, "" if there was nothing to commit.

    Repositories inside it that are no submodules are left out: a commit would hold their name and not their content.

    Raises:
        WorktreeError: it is no worktree any more, or git failed; nothing is lost.
    """
    admin = checked(worktree, site)
    drop_stale_locks(site, admin, worktree.path, worktree.branch)
    git = Git(worktree.path, held=held, ceiling=True)
    changes = changes_of(git)
    sha = ""
    if changes:
        nested = [name.rstrip("/") for name in changes if name.endswith("/")]
        git.ask("add", "--all", "--", ".", *(f":(exclude,top,literal){name}" for name in nested))
    if (admin / "MERGE_HEAD").exists() or (changes and not git.run("diff", "--cached", "--quiet").ok):
        said = message.strip() or f"Work of the agent {worktree.name}"
        git.ask(
            "commit", "--quiet", "--no-verify", "--allow-empty", "--cleanup=whitespace", "-F", "-",
            stdin=said, environ=identity(git),
        )  # fmt: skip
        sha = git.ask("rev-parse", "HEAD")
    _bring_along(git, worktree.branch)
    return sha


def changes_of(git: Git) -> list[str]:
    """Return what of a working tree is in no commit: files, and with a slash at the end repositories inside it."""
    status = git.ask("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--ignore-submodules=none")
    return [entry[3:] for entry in status.split("\0") if entry]


def _bring_along(git: Git, branch: str) -> tuple[str, str]:
    """Move the branch to where the agent has got to on a branch of its own making, or on none.

    Returns:
        its last commit, and why it is not all that the agent has committed, or "".
    """
    ref = f"refs/heads/{branch}"
    tip, head = tip_of(git, ref), tip_of(git, "HEAD")
    if tip == head or not head:
        return tip, ""
    if not tip or git.run("merge-base", "--is-ancestor", tip, head).ok:
        used_at = git.ask("for-each-ref", "--format=%(worktreepath)", ref)
        if not used_at and git.run("update-ref", ref, head, tip or "0" * len(head)).ok:
            return head, ""
        return tip, f"{branch} could not follow to {head[:12]}: it is checked out in {used_at or 'another place'}"
    if git.run("merge-base", "--is-ancestor", head, tip).ok:
        return tip, ""
    return tip, f"the agent has left {branch}: its last commit {head[:12]} does not follow from it"


# ---------------------------------------------------------------- finishing


def look(site: Site, held: int, worktree: Worktree) -> Finished:
    """Return what there is, before anything is done about it."""
    admin = checked(worktree, site)
    drop_stale_locks(site, admin, worktree.path, worktree.branch)
    git = Git(worktree.path, held=held, ceiling=True)
    tip, why = _bring_along(git, worktree.branch)
    commits = int(git.ask("rev-list", "--count", tip, "--not", worktree.base_sha)) if tip else 0
    return Finished(
        branch=worktree.branch,
        base_sha=worktree.base_sha,
        head_sha=tip,
        commits=commits,
        uncommitted=tuple(changes_of(git)),
        why=why,
    )


def merge(site: Site, held: int, worktree: Worktree) -> Finished:
    """Merge the branch of a worktree into the one that is checked out in the repository, all or nothing."""
    found = look(site, held, worktree)
    if found.why or not found.commits:
        return msgspec.structs.replace(found, kept=bool(found.why or found.uncommitted))
    git = Git(site.top, held=held)
    for _ in range(_TRIES):
        head = tip_of(git, "HEAD")
        merged = _merge_at(git, site, worktree, found, head)
        if merged.merged or tip_of(git, "HEAD") == head:
            break
    return merged


def _merge_at(git: Git, site: Site, worktree: Worktree, found: Finished, head: str) -> Finished:
    """Merge while HEAD is at `head`."""
    into = git.run("symbolic-ref", "--quiet", "--short", "HEAD").out.strip()
    if why := _not_now(site, into):
        return _not_merged(found, why, worktree)
    tip = found.head_sha
    found = msgspec.structs.replace(found, into=into)
    common = git.run("merge-base", head, tip).out.strip()
    if common == tip:
        return msgspec.structs.replace(found, merged=True, merge_sha=head, kept=bool(found.uncommitted))
    new = tip
    if common != head:
        answer = git.run("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", head, tip)
        if answer.code == 1 and answer.out:
            why = "it conflicts with what was committed there meanwhile"
            return _not_merged(found, why, worktree, answer.names()[1:])
        if not answer.ok:
            old = " (git 2.38 or newer is needed)" if "usage: git merge-tree" in answer.err else ""
            return _not_merged(found, words_of(answer) + old, worktree)
        said = f"Merge branch '{found.branch}' into {into}"
        new = git.ask("commit-tree", answer.names()[0], "-p", head, "-p", tip, stdin=said, environ=identity(git))
    statuses = git.run("diff", "--name-status", "-z", "--no-renames", head, new).names()
    changed = set(statuses[1::2])
    added = [name for status, name in zip(statuses[::2], statuses[1::2], strict=True) if status == "A"]
    theirs = [name for name in changes_of(git) if name in changed]
    theirs += [name for name in added if os.path.lexists(site.top / name)]  # ignored ones too
    if theirs:
        why = f"files that it changes are uncommitted in {site.top}, with other changes"
        return _not_merged(found, why, worktree, theirs)
    # git looks at all of that once more, and does all or nothing.
    answer = git.run("merge", "--ff-only", "--no-overwrite-ignore", "--no-stat", "--quiet", "--no-autostash", new)
    if not answer.ok:
        return _not_merged(found, words_of(answer), worktree)
    return msgspec.structs.replace(found, merged=True, merge_sha=new, kept=bool(found.uncommitted))


def _not_now(site: Site, into: str) -> str:
    if site.is_bare:
        return "the repository is bare: there is no working tree to merge in"
    if not into:
        return f"no branch is checked out in {site.top} (detached HEAD)"
    if busy := [name for name in _BUSY if (site.git_dir / name).exists()]:
        return f"a merge, rebase or the like is going on in {site.top} ({busy[0]})"
    if (lock := site.git_dir / "index.lock").exists():
        return f"{lock} is there: git works in the repository, or was killed there; if none runs, remove it"
    return ""


def _not_merged(found: Finished, why: str, worktree: Worktree, conflicts: Sequence[str] = ()) -> Finished:
    command = shlex.join(["git", "-C", str(worktree.repository), "merge", found.branch])
    return msgspec.structs.replace(found, why=why, conflicts=tuple(sorted(set(conflicts))), command=command)


# ---------------------------------------------------------------- pull requests


def push(site: Site, found: Finished, worktree: Worktree) -> Finished:
    """Push the branch to the repository's remote. Needs no lock: it reads, and may take its time."""
    if found.why or not found.commits:
        return msgspec.structs.replace(found, kept=bool(found.why or found.uncommitted))
    git = Git(site.top)
    into = git.run("symbolic-ref", "--quiet", "--short", "HEAD").out.strip()
    found = msgspec.structs.replace(found, into=into)
    remotes = git.ask("remote").split()
    wanted = [
        git.run("config", "--get", name).out.strip() for name in ("remote.pushDefault", f"branch.{into}.remote")
    ]  # fmt: skip
    remote = next((name for name in (*wanted, "origin", *remotes[:1]) if name in remotes), "")
    refs = f"refs/heads/{found.branch}:refs/heads/{found.branch}"
    command = shlex.join(["git", "-C", str(site.top), "push", remote or "REMOTE", refs])
    if not remote:
        return msgspec.structs.replace(found, why=f"{site.top} has no remote to push to", command=command)
    answer = git.run("push", "--porcelain", remote, refs, timeout_s=PUSH_S, hooks=True)
    if not answer.ok:
        why = f"the push to {remote} failed: {words_of(answer)}"
        return msgspec.structs.replace(found, why=why, command=command)
    return open_pull_request(
        site, msgspec.structs.replace(found, remote=remote, kept=bool(found.uncommitted)), worktree
    )


def open_pull_request(site: Site, found: Finished, worktree: Worktree) -> Finished:
    """Open a pull request with `gh`; where that is not installed, or does not, its command is told."""
    argv = ("gh", "pr", "create", "--head", found.branch, *(("--base", found.into) if found.into else ()), "--fill")
    command = f"cd {shlex.quote(str(site.top))} && {shlex.join(argv)}"
    if shutil.which("gh") is None:
        return msgspec.structs.replace(found, why="no pull request was opened: gh is not installed", command=command)
    quiet = {"GH_PROMPT_DISABLED": "1", "GH_NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1", "GIT_TERMINAL_PROMPT": "0"}
    answer = run(argv, worktree.path, environ=quiet, timeout_s=PUSH_S)
    urls = [word for word in f"{answer.out} {answer.err}".split() if word.startswith("https://") and "/pull/" in word]
    if urls:  # also when it says that there is one already
        return msgspec.structs.replace(found, pull_request=urls[-1])
    why = f"the branch was pushed, and gh has opened no pull request: {words_of(answer)}"
    return msgspec.structs.replace(found, why=why, command=command)

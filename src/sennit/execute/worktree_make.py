"""A worktree is made, or found again, or mended; all of it blocking, with the lock of the repository held.

    record?  none ──► planned ──► `git worktree add` ──► made ──► found again: the same path, the same branch
                        └ a crash: cleared away, made anew          └ its folder is gone: made again from the branch

A name or path that somebody else has is left alone: another one is taken, and written down.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.errors import WorktreeError
from sennit.execute.git import Git, words_of
from sennit.execute.worktree_records import Record, Records, slug_of

__all__ = ["Site", "Worktree", "admin_of", "checked", "find_site", "make", "remove_tree", "tip_of"]

_NAMED_MAX: Final = 5


class Worktree(msgspec.Struct, frozen=True, kw_only=True):
    """A folder and branch of one agent.

    Attributes:
        base_sha: of the commit it began with.
        is_new: made by this call, and not found again.
        notes: what people should know: what of the repository is not in it, what was mended. Sentences.
    """

    name: str
    path: Path
    branch: str
    base_sha: str
    repository: Path
    is_new: bool = False
    notes: tuple[str, ...] = ()


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """One repository, as git knows it.

    Attributes:
        top: of the working tree; of a bare one its git dir.
        git_dir: of this working tree.  common: shared by all worktrees.
    """

    top: Path
    git_dir: Path
    common: Path
    is_bare: bool


def find_site(repository: Path) -> Site:
    """Return the repository that a folder belongs to.

    Raises:
        WorktreeError: it belongs to none, or git refuses to read it.
    """
    asked = ("--is-bare-repository", "--git-dir", "--git-common-dir", "--show-toplevel")
    answer = Git(repository).run("rev-parse", "--path-format=absolute", *asked)
    is_bare, git_dir, common, top, *_ = [*answer.out.splitlines(), "", "", "", ""]
    if not common or not (answer.ok or is_bare == "true"):  # a bare one has no top, and fails at that
        known = "not a git repository" in answer.err
        what = f"{repository} is not in a git repository" if known else f"git does not read {repository}"
        raise WorktreeError(what, why=words_of(answer), fix="git init there, and commit; or work without worktrees")
    bare = is_bare == "true"
    return Site(
        top=Path(git_dir if bare else top),
        git_dir=Path(git_dir),
        common=Path(os.path.realpath(common)),
        is_bare=bare,
    )


# ---------------------------------------------------------------- making


def make(site: Site, held: int, records: Records, folder: Path, *, name: str, base: str) -> Worktree:
    """Return the worktree of a name: the one that there is, or a new one from `base`.

    Raises:
        WorktreeError: there is no such commit, or git could not make it.
    """
    git = Git(site.top, held=held)
    record = records.read(name)
    notes: list[str] = []
    is_new = record is None
    if record is None:
        record = _plan(git, folder, name, _base(git, base, site))
        notes += _left_out(git, site, record)
    elif record.state == "planned":
        record = _cleared(git, record)
    elif _holds_something(Path(record.path)) and (admin := admin_of(Path(record.path), site)) is not None:
        drop_stale_locks(site, admin, Path(record.path), record.branch)
        if record.state == "released":  # the release has not got far
            records.write(msgspec.structs.replace(record, state="made", head_sha=""))
        return _worktree(site, record)
    elif record.state == "made" and _holds_something(Path(record.path)):
        return _worktree(site, record, notes=[_mended(git, site, record)])
    elif record.state == "made" and (admin := _admin_without_folder(Path(record.path), site)) is not None:
        return _worktree(site, record, notes=[_refilled(git, record, admin)])
    else:
        record = _again(git, folder, record)
    _add(git, folder, records, record, is_new=is_new)
    record = msgspec.structs.replace(record, state="made", head_sha="")
    records.write(record)
    return _worktree(site, record, is_new=is_new, notes=notes)


def _worktree(site: Site, record: Record, *, is_new: bool = False, notes: list[str] | None = None) -> Worktree:
    return Worktree(
        name=record.name,
        path=Path(record.path),
        branch=record.branch,
        base_sha=record.base_sha,
        repository=site.top,
        is_new=is_new,
        notes=tuple(notes or ()),
    )


def _base(git: Git, base: str, site: Site) -> str:
    answer = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")
    if answer.ok:
        return answer.out.strip()
    if not git.run("rev-parse", "--verify", "--quiet", "HEAD").ok and base == "HEAD":
        raise WorktreeError(
            f"the repository {site.top} has no commit yet",
            why="a worktree begins with a commit",
            fix="git commit, with --allow-empty if there is nothing yet",
        )
    raise WorktreeError(f"{base!r} names no commit in {site.top}", fix="give a branch, a tag or a commit")


def _plan(git: Git, folder: Path, name: str, base_sha: str) -> Record:
    branch = _free_branch(git, name)
    return Record(name=name, path=str(_free_path(git, folder, name)), branch=branch, base_sha=base_sha)


def _free_branch(git: Git, name: str) -> str:
    taken = set(git.ask("for-each-ref", "--format=%(refname)", "refs/heads/").split("\n"))
    prefix = "sennit-" if "refs/heads/sennit" in taken else "sennit/"  # a ref cannot be a folder of refs too
    folders = {ref[:at] for ref in taken for at in range(len(ref)) if ref[at] == "/"}
    refs = (f"refs/heads/{prefix}{slug_of(name)}{_suffix(n)}" for n in count(1))
    return next(ref for ref in refs if ref not in taken and ref not in folders).removeprefix("refs/heads/")


def _free_path(git: Git, folder: Path, name: str) -> Path:
    known = registered(git)
    paths = (folder / f"{slug_of(name)}{_suffix(n)}" for n in count(1))
    return next(path for path in paths if not os.path.lexists(path) and path not in known)


def _suffix(n: int) -> str:
    return "" if n == 1 else f"-{n}"


def registered(git: Git) -> set[Path]:
    """Return the folders that git takes for worktrees of the repository, there or not."""
    lines = git.ask("worktree", "list", "--porcelain", "-z").split("\0")
    return {Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")}


def _add(git: Git, folder: Path, records: Records, record: Record, *, is_new: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")  # it may lie in a repository, whose `git add .` would take the worktrees in
    records.write(record)
    if not is_new and tip_of(git, f"refs/heads/{record.branch}"):
        where = [record.path, record.branch]
    else:
        where = ["-b", record.branch, record.path, record.head_sha or record.base_sha]
    # Locked, so that no `git worktree prune` takes it for stale, and `git worktree remove` asks twice.
    reason = f"the agent of sennit {record.name!r}"
    git.ask("worktree", "add", "--quiet", "--lock", "--reason", reason, *where)


def _cleared(git: Git, record: Record) -> Record:
    """Take away what a crash has left half-made: nobody has worked there. Return the plan to go on with."""
    path = Path(record.path)
    if os.path.lexists(path):
        remove_tree(path)
    if path in registered(git):
        git.ask("worktree", "remove", "--force", "--force", str(path))
    if tip_of(git, f"refs/heads/{record.branch}") in ("", record.head_sha or record.base_sha):
        return record
    return msgspec.structs.replace(record, branch=_free_branch(git, record.name))  # somebody else's by now


def _again(git: Git, folder: Path, record: Record) -> Record:
    """Return the plan for one that was released, or taken away by hand: it goes on from its last commit."""
    if not os.path.lexists(record.path) and Path(record.path) in registered(git):  # its release was interrupted
        git.ask("worktree", "remove", "--force", "--force", record.path)
    known = (f"refs/heads/{record.branch}", record.head_sha)
    head_sha = next((tip for name in known if name and (tip := tip_of(git, name))), "")
    path = record.path if not _holds_something(Path(record.path)) else str(_free_path(git, folder, record.name))
    return msgspec.structs.replace(record, state="planned", path=path, head_sha=head_sha)


def _admin_without_folder(path: Path, site: Site) -> Path | None:
    """Return where git still keeps what it knows of a worktree whose folder was removed."""
    for gitdir in (site.common / "worktrees").glob("*/gitdir"):
        if gitdir.read_text().strip() == str(path / ".git"):
            return gitdir.parent
    return None


def _refilled(git: Git, record: Record, admin: Path) -> str:
    """Fill a folder again from what git knows of it: its commits, and what was added to its index."""
    path = Path(record.path)
    path.mkdir(parents=True, exist_ok=True)
    git.at(path, ceiling=True).ask(
        "--git-dir", str(admin), "--work-tree", str(path), "checkout-index", "--all", "--force"
    )
    (path / ".git").write_text(f"gitdir: {admin}\n")  # last: a crash before leaves no more than there was
    return f"the folder {path} was gone, and was filled again from git; what was neither committed nor added is lost"


def _mended(git: Git, site: Site, record: Record) -> str:
    """Reconnect a folder whose `.git` was removed or overwritten."""
    git.run("worktree", "repair", record.path)  # says 1 also when it could
    if admin_of(Path(record.path), site) is None:
        raise WorktreeError(
            f"{record.path} is not the worktree of {record.branch} any more",
            why="its .git file is not what git has made, and git cannot mend it",
            fix=f"save what is in it, remove the folder, and try again: it is made anew from {record.branch}",
        )
    return f"the .git file of {record.path} was gone or wrong, and was mended"


def _left_out(git: Git, site: Site, record: Record) -> list[str]:
    """Say what of the repository is not in a new worktree."""
    notes = []
    if not site.is_bare:
        changed = [entry[3:] for entry in git.run("status", "--porcelain", "-z", "--no-renames").names()]
        if changed:
            notes.append(f"not in the worktree, and untouched: {_some(changed)}, uncommitted in {site.top}")
    blob = f"{record.base_sha}:.gitmodules"
    modules = git.run("config", "-z", "--blob", blob, "--get-regexp", r"^submodule\..*\.path$")
    if names := [name.partition("\n")[2] for name in modules.names()]:
        notes.append(f"submodules are empty in it: {_some(names)}; `git submodule update --init` there fills them")
    return notes


def _holds_something(path: Path) -> bool:
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_MAX]) + (f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else "")


# ---------------------------------------------------------------- looking


def tip_of(git: Git, name: str) -> str:
    """Return the commit that a name stands for, "" if there is none."""
    return git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").out.strip()


def admin_of(path: Path, site: Site) -> Path | None:
    """Return where git keeps what it knows of a worktree; None if the folder is not, or not any more, one of this repository."""
    try:
        said = (path / ".git").read_text().removeprefix("gitdir: ").strip()
        admin = Path(os.path.realpath(path / said))
        back = (admin / "gitdir").read_text().strip()
    except (OSError, ValueError):
        return None
    is_ours = admin.parent == site.common / "worktrees"
    return admin if is_ours and os.path.realpath(back) == os.path.realpath(path / ".git") else None


def drop_stale_locks(site: Site, admin: Path, path: Path, branch: str) -> None:
    """Remove what a git of the agent has left when it was killed, or no later one could commit; not while anybody works there.

    Only of a worktree and branch of ours. In the repository itself somebody else may hold a lock, in ways that cannot be seen.
    """
    locks = (admin / "index.lock", admin / "HEAD.lock", site.common / "refs" / "heads" / f"{branch}.lock")
    left = [lock for lock in locks if lock.exists()]
    if left and not _is_anybody_in(path):
        for lock in left:
            lock.unlink(missing_ok=True)


def _is_anybody_in(path: Path) -> bool:
    here = os.path.realpath(path)
    for process in Path("/proc").glob("[0-9]*/cwd"):
        try:
            where = os.readlink(process)  # noqa: PTH115 - the text of it; it may be gone by now
        except OSError:
            continue  # ended, or another user's
        if where == here or where.startswith(here + "/"):
            return True
    return False


def checked(worktree: Worktree, site: Site) -> Path:
    """Return `admin_of` of a worktree.

    Raises:
        WorktreeError: it is none any more: git would work on the repository around it.
    """
    admin = admin_of(worktree.path, site)
    if admin is None:
        raise WorktreeError(
            f"{worktree.path} is not a worktree of {site.top} any more",
            why="its folder, its .git file or what git knew of it was removed",
            fix=f"add({worktree.name!r}) mends it; what was committed is on {worktree.branch}",
        )
    return admin


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, also what agents have made read-only."""

    def make_writable(function: Callable[..., Any], name: str, _: object) -> None:
        for each in (Path(name).parent, Path(name)):
            if each.is_relative_to(path) and each.is_dir() and not each.is_symlink():
                each.chmod(each.stat().st_mode | stat.S_IRWXU)
        if function in (os.unlink, os.rmdir):
            function(name)
        else:  # it could not be listed
            shutil.rmtree(name)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=make_writable)
    else:
        path.unlink()

"""What an agent has committed is merged, pushed or left, and its worktree released; nothing is lost. With real git."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sennit.errors import WorktreeError
from sennit.execute.worktrees import Finished, Policy, Released, Worktree
from tests.agents.repositories import ENVIRON, add, commit, git, make_repository, work, worktrees


@pytest.fixture(autouse=True)
def _no_config_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "my repo é")


@pytest.fixture
def worktree(repository: Path) -> Worktree:
    return add(repository)


def finish(repository: Path, worktree: Worktree, policy: Policy = "merge") -> Finished:
    return asyncio.run(worktrees(repository).finish(worktree, policy))


def release(repository: Path, worktree: Worktree, *, force: bool = False) -> Released:
    return asyncio.run(worktrees(repository).release(worktree, force=force))


def state(repository: Path) -> tuple[str, str, str]:
    """All that a merge that is not made must not change."""
    return (
        git(repository, "rev-parse", "HEAD"),
        git(repository, "status", "--porcelain"),
        git(repository, "diff", "HEAD"),
    )


# ---------------------------------------------------------------- merging


def test_a_merge_fast_forwards_where_it_can_and_keeps_what_somebody_works_on(
    repository: Path, worktree: Worktree
) -> None:
    sha = work(repository, worktree, "ü/new")
    (repository / "README").write_text("mine\n")
    (repository / "draft").write_text("mine\n")
    git(repository, "add", "draft")

    done = finish(repository, worktree)

    assert (done.merged, done.commits, done.into, done.merge_sha, done.kept, done.why) == (
        True,
        1,
        "main",
        sha,
        False,
        "",
    )
    assert (repository / "ü" / "new").read_text() == "work\n"
    assert git(repository, "status", "--porcelain").splitlines() == [" M README", "A  draft"]


def test_a_merge_commit_joins_what_went_on_on_both_sides(repository: Path, worktree: Worktree) -> None:
    sha = work(repository, worktree)
    head = commit(repository, "later", "meanwhile")

    done = finish(repository, worktree)

    assert git(repository, "log", "-1", "--format=%P%n%s").split("\n") == [
        f"{head} {sha}",
        "Merge branch 'sennit/a' into main",
    ]
    assert (done.merged, done.merge_sha) == (True, git(repository, "rev-parse", "HEAD"))
    assert git(repository, "status", "--porcelain") == ""
    assert finish(repository, worktree).merged  # again, after a crash perhaps
    assert git(repository, "rev-parse", "HEAD") == done.merge_sha


def test_a_conflict_changes_nothing_and_says_which_files(repository: Path, worktree: Worktree) -> None:
    sha = work(repository, worktree, "README", "agent\n")
    work(repository, worktree, "fine", "x\n")
    commit(repository, "README", "person\n")
    before = state(repository)

    done = finish(repository, worktree)

    assert (done.merged, done.kept, done.conflicts, done.commits) == (False, True, ("README",), 2)
    assert "conflicts" in done.why
    assert done.command.endswith("merge sennit/a")
    assert state(repository) == before
    assert git(worktree.path, "rev-parse", "HEAD~") == sha


@pytest.mark.parametrize("theirs", ["changed", "staged", "untracked", "ignored"])
def test_files_that_somebody_has_not_committed_stand_against_a_merge_of_them(
    repository: Path, worktree: Worktree, theirs: str
) -> None:
    name = "README" if theirs in ("changed", "staged") else "new"
    work(repository, worktree, name, "agent\n")
    if theirs == "ignored":
        (repository / ".git" / "info" / "exclude").write_text("new\n")
    (repository / name).write_text("mine\n")
    if theirs == "staged":
        git(repository, "add", name)
    before = state(repository)

    done = finish(repository, worktree)

    assert (done.merged, done.kept) == (False, True)
    assert done.conflicts == (name,)
    assert state(repository) == before
    assert (repository / name).read_text() == "mine\n"


def test_a_merge_waits_for_a_quiet_moment(repository: Path, worktree: Worktree) -> None:
    work(repository, worktree)
    inside = repository / ".git"
    for name, why in (("MERGE_HEAD", "is going on"), ("index.lock", "if none runs, remove it")):
        (inside / name).write_text("")
        done = finish(repository, worktree)
        assert (done.merged, done.kept) == (False, True)
        assert why in done.why
        assert (inside / name).exists()
        (inside / name).unlink()
    git(repository, "checkout", "--quiet", "--detach")
    assert "detached HEAD" in finish(repository, worktree).why

    git(repository, "checkout", "--quiet", "main")
    assert finish(repository, worktree).merged


def test_nothing_is_merged_into_a_bare_repository(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")
    bare = tmp_path / "bare.git"
    worktree = add(bare)
    work(bare, worktree)

    assert "is bare" in finish(bare, worktree).why


def test_an_agent_that_changed_nothing_leaves_nothing(repository: Path, worktree: Worktree) -> None:
    done = finish(repository, worktree)

    assert (done.commits, done.merged, done.kept, done.why) == (0, False, False, "")
    assert release(repository, worktree).branch_kept is False
    assert git(repository, "branch", "--list", "sennit/*") == ""


def test_commits_that_went_two_ways_are_told_and_not_merged_by_half(repository: Path, worktree: Worktree) -> None:
    work(repository, worktree)
    git(worktree.path, "checkout", "--quiet", "--orphan", "other")
    git(worktree.path, "commit", "--quiet", "-m", "from nowhere")

    done = finish(repository, worktree)

    assert (done.merged, done.kept) == (False, True)
    assert "the agent has left sennit/a" in done.why


def test_leave_looks_and_leaves(repository: Path, worktree: Worktree) -> None:
    sha = work(repository, worktree)
    (worktree.path / "draft").write_text("x")
    before = state(repository)

    done = finish(repository, worktree, "leave")

    assert (done.head_sha, done.commits, done.merged, done.kept, done.uncommitted) == (sha, 1, False, True, ("draft",))
    assert state(repository) == before


# ---------------------------------------------------------------- pull requests


def test_a_pull_request_pushes_the_branch_and_tells_the_command_where_gh_is_missing(
    repository: Path, worktree: Worktree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = work(repository, worktree)
    only_git = tmp_path / "bin"
    only_git.mkdir()
    (only_git / "git").symlink_to(shutil.which("git") or "")
    monkeypatch.setenv("PATH", f"{only_git}:/bin:/usr/bin")
    if shutil.which("gh"):
        pytest.skip("gh is installed beside git")
    nowhere = finish(repository, worktree, "pull-request")
    git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    git(repository, "remote", "add", "hub", str(tmp_path / "remote.git"))

    done = finish(repository, worktree, "pull-request")

    assert "no remote" in nowhere.why
    assert nowhere.kept
    assert git(tmp_path / "remote.git", "rev-parse", "sennit/a") == sha
    assert (done.remote, done.merged, done.kept) == ("hub", False, False)
    assert "gh is not installed" in done.why
    assert "gh pr create --head sennit/a --base main" in done.command
    assert release(repository, worktree).branch_kept is False  # all of it is in hub/sennit/a
    assert git(repository, "rev-parse", "hub/sennit/a") == sha


def test_a_pull_request_is_opened_where_gh_is_there(
    repository: Path, worktree: Worktree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(repository, worktree)
    git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    git(repository, "remote", "add", "origin", str(tmp_path / "remote.git"))
    program = tmp_path / "bin" / "gh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >"{tmp_path}/asked"\necho https://example.org/o/r/pull/7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    done = finish(repository, worktree, "pull-request")

    assert (done.pull_request, done.why) == ("https://example.org/o/r/pull/7", "")
    assert (tmp_path / "asked").read_text() == "pr create --head sennit/a --base main --fill\n"


def test_a_push_that_is_refused_keeps_everything_and_asks_nobody(repository: Path, worktree: Worktree) -> None:
    work(repository, worktree)
    git(repository, "remote", "add", "origin", "https://127.0.0.1:1/nothing.git")

    done = finish(repository, worktree, "pull-request")

    assert done.kept
    assert "the push to origin failed" in done.why
    assert "push origin refs/heads/sennit/a" in done.command


# ---------------------------------------------------------------- releasing


def test_a_release_removes_what_was_merged_and_the_same_name_finds_its_commits_again(
    repository: Path, worktree: Worktree
) -> None:
    sha = work(repository, worktree)
    finish(repository, worktree)
    (worktree.path / "cache").mkdir()
    (worktree.path / "cache" / "x").write_text("read-only, as some package managers leave it")
    (repository / ".git" / "info" / "exclude").write_text("cache\n")
    (worktree.path / "cache").chmod(0o555)

    released = release(repository, worktree)

    assert (released.branch_kept, released.head_sha) == (False, sha)
    assert [path.name for path in worktree.path.parent.iterdir()] == [".gitignore"]
    assert git(repository, "branch", "--format=%(refname:short)") == "main"
    assert "prunable" not in git(repository, "worktree", "list")
    assert release(repository, worktree).head_sha == ""  # again is harmless
    assert asyncio.run(worktrees(repository).known()) == ()
    again = add(repository)  # a crash came between the release and the record of the task's result
    done = finish(repository, again)
    assert (done.head_sha, done.commits, done.merged) == (sha, 1, True)


def test_a_release_keeps_a_branch_that_holds_commits_of_its_own(repository: Path, worktree: Worktree) -> None:
    sha = work(repository, worktree)

    released = release(repository, worktree)

    assert (released.branch_kept, released.head_sha) == (True, sha)
    assert not worktree.path.exists()
    assert git(repository, "rev-parse", "sennit/a") == sha


def test_a_release_refuses_to_lose_changes_and_commits_and_says_which(repository: Path, worktree: Worktree) -> None:
    (worktree.path / "draft").write_text("x")
    with pytest.raises(WorktreeError, match="draft would be lost"):
        release(repository, worktree)
    git(worktree.path, "checkout", "--quiet", "--orphan", "gone")
    git(worktree.path, "add", "--all")
    git(worktree.path, "commit", "--quiet", "-m", "on its own")
    git(worktree.path, "checkout", "--quiet", "--detach")
    git(worktree.path, "branch", "--quiet", "-D", "gone")

    with pytest.raises(WorktreeError, match=r"on its own \(on no branch\) would be lost"):
        release(repository, worktree)

    assert (worktree.path / "draft").exists()
    assert release(repository, worktree, force=True).branch_kept is False
    assert not worktree.path.exists()
    assert add(repository).is_new


def test_a_branch_that_somebody_looks_at_is_not_taken_from_under_them(repository: Path, worktree: Worktree) -> None:
    work(repository, worktree)
    git(worktree.path, "checkout", "--quiet", "--detach")
    git(repository, "checkout", "--quiet", "sennit/a")

    assert release(repository, worktree, force=True).branch_kept
    assert git(repository, "status", "--porcelain") == ""


def test_a_release_that_a_crash_has_interrupted_is_taken_up_again(repository: Path, worktree: Worktree) -> None:
    """As it stands after the folder was moved away, before git knows of it."""
    sha = work(repository, worktree)
    record = next((repository / ".git" / "sennit" / "worktrees").glob("*.json"))
    record.write_text(record.read_text().replace('"made"', '"released"'))
    worktree.path.rename(worktree.path.with_name(".gone-a"))

    again = add(repository)

    assert git(again.path, "rev-parse", "HEAD") == sha
    release(repository, again)
    assert [path.name for path in worktree.path.parent.iterdir()] == [".gitignore"]


# ---------------------------------------------------------------- a full disk


FULL = """
import asyncio, sys
from pathlib import Path
from sennit.errors import WorktreeError
from sennit.execute.worktrees import Worktrees
from tests.agents.repositories import git, make_repository
repository = make_repository(Path(sys.argv[1]) / "r")
place = Worktrees(repository, repository.parent / "w")
worktree = asyncio.run(place.add("a"))
(worktree.path / "new").write_text("work" * 100)
filler = repository.parent / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True: file.write(b"x" * 4096)
    except OSError: pass
for what in (lambda: place.commit(worktree, "m"), lambda: place.add("b")):
    try: print("done", asyncio.run(what()))
    except WorktreeError as error: print("No space left" in str(error))
filler.unlink()
print(bool(asyncio.run(place.commit(worktree, "m"))), asyncio.run(place.add("b")).branch, git(repository, "fsck"))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a small disk is mounted by root only")
def test_a_full_disk_is_told_and_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=700k none "$1" || exit 42; exec "$2" -c "$3" "$1"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode in (1, 42) and "Traceback" not in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")

    assert done.stdout.splitlines() == ["True", "True", "True sennit/b "], done.stderr

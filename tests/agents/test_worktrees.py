"""Worktrees are made, found again and committed, on good days and on bad ones; with real git."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sennit.errors import WorktreeError
from sennit.execute.git import run
from sennit.execute.worktree_make import find_site
from sennit.execute.worktree_records import Records, slug_of
from sennit.execute.worktrees import Worktrees
from tests.agents.repositories import ENVIRON, add, commit, git, make_repository, work, worktrees


@pytest.fixture(autouse=True)
def _no_config_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "my repo é")


# ---------------------------------------------------------------- making


def test_an_agent_gets_a_folder_and_a_branch_of_its_own(repository: Path) -> None:
    worktree = add(repository, "fixer-12")

    assert (worktree.path.name, worktree.branch, worktree.is_new) == ("fixer-12", "sennit/fixer-12", True)
    assert worktree.base_sha == git(repository, "rev-parse", "HEAD")
    assert (worktree.path / "README").read_text() == "one\n"
    assert git(worktree.path, "branch", "--show-current") == "sennit/fixer-12"
    assert worktree.notes == ()


def test_the_same_name_gives_the_same_folder_and_branch_again(repository: Path) -> None:
    first = add(repository)
    sha = work(repository, first)
    commit(repository, "later", "meanwhile")

    again = add(repository)

    assert (again.path, again.branch, again.base_sha, again.is_new) == (first.path, first.branch, first.base_sha, False)
    assert git(again.path, "rev-parse", "HEAD") == sha


def test_names_of_any_letters_give_folders_that_differ(repository: Path) -> None:
    names = ["a b", "a-b", "é", "..", "-x", "x.lock", "a" * 300, "a-0123abcd"]

    slugs = {slug_of(name) for name in names}
    made = [add(repository, name) for name in ("a b", "..", "x.lock")]

    assert len(slugs) == len(names)
    assert len({worktree.path for worktree in made}) == 3


def test_uncommitted_changes_of_the_repository_are_untouched_and_not_in_the_worktree_and_it_says_so(
    repository: Path,
) -> None:
    (repository / "README").write_text("mine\n")
    (repository / "draft é").write_text("mine\n")

    worktree = add(repository)

    assert (worktree.path / "README").read_text() == "one\n"
    assert not (worktree.path / "draft é").exists()
    assert (repository / "README").read_text() == "mine\n"
    assert "README, draft é" in worktree.notes[0]


def test_a_detached_head_and_a_bare_repository_are_good_to_begin_with(repository: Path, tmp_path: Path) -> None:
    git(repository, "checkout", "--quiet", "--detach")
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")

    for home in (repository, tmp_path / "bare.git"):
        worktree = add(home, "detached" if home == repository else "bare")
        assert work(home, worktree)
        assert git(worktree.path, "branch", "--show-current") == worktree.branch


def test_a_repository_without_a_commit_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorktreeError, match=r"no commit yet(.|\n)*--allow-empty"):
        add(make_repository(tmp_path / "empty", commits=False))


def test_what_is_no_repository_and_what_is_no_commit_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(WorktreeError, match="not in a git repository"):
        add(tmp_path)
    with pytest.raises(WorktreeError, match="is not there"):
        add(tmp_path / "nowhere")
    with pytest.raises(WorktreeError, match="names no commit"):
        asyncio.run(worktrees(repository).add("x", base="--nonsense"))
    assert asyncio.run(worktrees(repository).known()) == ()


def test_a_machine_without_git_says_so(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))

    with pytest.raises(WorktreeError, match="git is not installed"):
        add(repository)


def test_names_that_others_have_are_left_to_them(repository: Path) -> None:
    git(repository, "branch", "sennit/a")
    (repository.parent / "worktrees" / "b").mkdir(parents=True)
    git(repository, "branch", "sennit/c/d")

    branches = [add(repository, name).branch for name in "abc"]

    assert branches == ["sennit/a-2", "sennit/b", "sennit/c-2"]
    assert add(repository, "b").path.name == "b-2"


def test_a_branch_called_sennit_is_no_obstacle(repository: Path) -> None:
    git(repository, "branch", "sennit")

    assert add(repository).branch == "sennit-a"


def test_two_folders_of_worktrees_do_not_share_a_name(repository: Path, tmp_path: Path) -> None:
    here = add(repository)
    there = asyncio.run(Worktrees(repository, tmp_path / "other").add("a"))

    assert (here.branch, there.branch) == ("sennit/a", "sennit/a-2")
    assert here.path != there.path


def test_a_folder_inside_the_repository_does_not_show_in_it(repository: Path) -> None:
    asyncio.run(Worktrees(repository, repository / ".agents").add("a"))

    assert git(repository, "status", "--porcelain") == ""


def test_submodules_are_empty_in_a_worktree_and_it_says_so(repository: Path, tmp_path: Path) -> None:
    library = make_repository(tmp_path / "library")
    git(repository, "submodule", "--quiet", "add", str(library), "lib")
    git(repository, "commit", "--quiet", "-m", "lib")

    worktree = add(repository)

    assert "submodules are empty in it: lib" in worktree.notes[0]
    assert [*(worktree.path / "lib").iterdir()] == []
    git(worktree.path, "submodule", "--quiet", "update", "--init")
    with pytest.raises(WorktreeError, match="submodule that was filled here"):
        asyncio.run(worktrees(repository).release(worktree))


def test_a_hook_that_started_us_does_not_decide_which_repository_is_meant(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(make_repository(tmp_path / "other") / ".git"))

    assert find_site(repository).top == repository


# ---------------------------------------------------------------- crashes and hands


def test_a_crash_at_any_point_of_making_leaves_what_the_next_call_mends(repository: Path) -> None:
    """The record says `planned`: what stands there now is as git leaves it when it is killed."""
    whole = add(repository)
    records = Records(find_site(repository).common, repository.parent / "worktrees")
    made = records.read("a")
    assert made is not None
    planned = type(made)(name="a", path=made.path, branch=made.branch, base_sha=made.base_sha)
    admin = repository / ".git" / "worktrees" / "a"

    def killed_before_our_record() -> None: ...

    def killed_while_it_checked_out() -> None:
        (whole.path / "README").unlink()
        (admin / "locked").write_text("initializing")
        (admin / "index").unlink()

    def killed_before_the_folder() -> None:
        shutil.rmtree(whole.path)
        shutil.rmtree(admin)

    def killed_before_the_branch() -> None:
        killed_before_the_folder()
        git(repository, "branch", "-D", "sennit/a")

    for crash in (
        killed_before_our_record,
        killed_while_it_checked_out,
        killed_before_the_folder,
        killed_before_the_branch,
    ):
        crash()
        records.write(planned)

        again = add(repository)

        assert (again.path, again.branch) == (whole.path, whole.branch), crash
        assert git(again.path, "status", "--porcelain") == "", crash
        assert (again.path / "README").exists(), crash
    assert git(repository, "for-each-ref", "--format=%(refname:short)", "refs/heads").split() == ["main", "sennit/a"]


def test_a_folder_that_was_deleted_by_hand_is_filled_again_with_what_was_committed_or_added(repository: Path) -> None:
    worktree = add(repository)
    sha = work(repository, worktree)
    git(worktree.path, "checkout", "--quiet", "--detach")
    (worktree.path / "added").write_text("x")
    git(worktree.path, "add", "added")
    shutil.rmtree(worktree.path)

    again = add(repository)

    assert again.path == worktree.path
    assert git(again.path, "status", "--porcelain") == "A  added"
    assert git(again.path, "rev-parse", "HEAD") == sha
    assert "was gone, and was filled again" in again.notes[0]


def test_a_worktree_that_was_removed_with_git_goes_on_from_its_branch(repository: Path) -> None:
    worktree = add(repository)
    sha = work(repository, worktree)
    git(repository, "worktree", "remove", "--force", "--force", str(worktree.path))

    again = add(repository)

    assert (again.path, git(again.path, "rev-parse", "HEAD")) == (worktree.path, sha)


def test_an_agent_that_removes_its_git_file_does_not_make_us_commit_to_the_repository_around_it(
    repository: Path,
) -> None:
    place = Worktrees(repository, repository / ".agents")
    worktree = asyncio.run(place.add("a"))
    (worktree.path / ".git").unlink()
    (worktree.path / "new").write_text("x")
    before = git(repository, "rev-parse", "HEAD")

    with pytest.raises(WorktreeError, match="is not a worktree"):
        asyncio.run(place.commit(worktree, "m"))
    mended = asyncio.run(place.add("a"))

    assert "was mended" in mended.notes[0]
    assert asyncio.run(place.commit(mended, "m"))
    assert git(repository, "rev-parse", "HEAD") == before


def test_a_lock_file_that_a_killed_git_has_left_in_the_worktree_is_removed_unless_somebody_works_there(
    repository: Path,
) -> None:
    worktree = add(repository)
    stale = repository / ".git" / "worktrees" / "a" / "index.lock"
    stale.write_text("")
    reading, writing = os.pipe()
    with subprocess.Popen(["cat"], stdin=reading, cwd=worktree.path) as somebody:
        with pytest.raises(WorktreeError, match=r"index\.lock"):
            work(repository, worktree)
        os.close(writing)
        os.close(reading)
        somebody.wait()

    assert work(repository, worktree)
    assert not stale.exists()


def test_a_record_that_cannot_be_read_is_told_and_not_guessed(repository: Path) -> None:
    add(repository)
    (record,) = (repository / ".git" / "sennit" / "worktrees").iterdir()
    record.write_text("{")

    with pytest.raises(WorktreeError, match=r"not readable(.|\n)*remove .*\.json"):
        add(repository)


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(repository: Path) -> None:
    alive, writing = os.pipe()

    with pytest.raises(WorktreeError, match="has not ended within"):
        run(("sh", "-c", "sleep 600 & wait"), repository, environ={}, timeout_s=0.2, held=writing)

    os.close(writing)
    while os.read(alive, 1):  # until nobody has the other end
        pass
    os.close(alive)


# ---------------------------------------------------------------- committing


def test_a_commit_takes_all_changes_and_a_clean_worktree_gives_none(repository: Path) -> None:
    worktree = add(repository)
    (worktree.path / "README").unlink()
    (worktree.path / "ü b").mkdir()
    (worktree.path / "ü b" / "x").write_text("x")

    sha = asyncio.run(worktrees(repository).commit(worktree, "  what was done\n\nand why: é\n"))

    assert git(worktree.path, "log", "-1", "--format=%H %an %B") == f"{sha} Tess what was done\n\nand why: é\n"
    assert git(worktree.path, "ls-files", "-z") == "ü b/x\0"
    assert asyncio.run(worktrees(repository).commit(worktree, "again")) == ""


def test_a_commit_asks_nobody_and_needs_no_name(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in ENVIRON if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        monkeypatch.delenv(name)
    git(repository, "config", "commit.gpgSign", "true")
    git(repository, "config", "user.useConfigOnly", "true")
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nread -r answer </dev/tty\nexit 1\n")
    hook.chmod(0o755)
    worktree = add(repository)

    assert work(repository, worktree)

    assert git(worktree.path, "log", "-1", "--format=%an <%ae> %cn") == "Sennit <sennit@localhost> Sennit"


def test_commits_that_an_agent_made_on_a_branch_of_its_own_are_on_its_branch_too(repository: Path) -> None:
    worktree = add(repository)
    git(worktree.path, "checkout", "--quiet", "-b", "feature/x")

    sha = work(repository, worktree)

    assert git(repository, "rev-parse", worktree.branch) == sha


def test_a_repository_that_an_agent_makes_inside_is_not_committed_as_an_empty_name(repository: Path) -> None:
    worktree = add(repository)
    make_repository(worktree.path / "cloned")
    make_repository(worktree.path / "begun", commits=False)
    place = worktrees(repository)

    assert work(repository, worktree)

    assert git(worktree.path, "ls-files").split() == ["README", "new"]
    assert asyncio.run(place.finish(worktree)).uncommitted == ("begun/", "cloned/")
    with pytest.raises(WorktreeError, match=r"cloned/ \(a repository of its own"):
        asyncio.run(place.release(worktree))

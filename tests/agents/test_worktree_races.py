"""Many processes work on one repository at once, and some of them die."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sennit.execute.worktrees import Finished, Worktree
from sennit.sync.lockline import line_if_any
from tests.agents.repositories import ENVIRON, SlowFile, add, git, make_repository, work, worktrees
from tests.crash.nursery import Nursery

AGENTS = 13
PROGRAMS = "tests.agents.repositories"


@pytest.fixture(autouse=True)
def _no_config_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def said() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    with closing(os.fdopen(reading)), closing(os.fdopen(writing, "w")):
        yield reading, writing


def read(descriptor: int, n: int) -> bytes:
    """Return `n` bytes that programs have written, or fewer if they have all ended."""
    found = b""
    while len(found) < n and (more := os.read(descriptor, n - len(found))):
        found += more
    return found


def log(repository: Path, *argv: str) -> list[str]:
    return git(repository, "log", "--format=%s", *argv).splitlines()


def test_13_processes_commit_and_merge_at_once_and_nothing_is_lost(
    repository: Path, nursery: Nursery, said: tuple[int, int]
) -> None:
    gate, opens = os.pipe()
    names = [f"n{n}" for n in range(AGENTS)]
    given = {0: gate, 1: said[1]}
    agents = [nursery.start(f"{PROGRAMS}:one_agent", str(repository), name, descriptors=given) for name in names]
    os.close(gate)
    assert len(read(said[0], AGENTS)) == AGENTS

    os.close(opens)  # all of them see it

    assert [agent.wait() for agent in agents] == [0] * AGENTS
    wanted = [f"{who} {name}" for name in names for who in ("agent", "sennit")]
    assert sorted(log(repository, "--no-merges")[:-1]) == sorted(wanted)
    for name in names:
        assert log(repository, "-2", f"sennit/{name}") == [f"sennit {name}", f"agent {name}"]
    assert git(repository, "status", "--porcelain") == ""
    assert len([*repository.glob("by-*")]) == 2 * AGENTS
    assert git(repository, "fsck", "--strict") == ""


def test_tasks_of_one_process_add_and_commit_at_once(repository: Path) -> None:
    place = worktrees(repository)

    async def agent(name: str) -> tuple[Worktree, str]:
        worktree = await place.add(name)
        (worktree.path / name).write_text(name)
        return worktree, await place.commit(worktree, name)

    async def main() -> list[tuple[Worktree, str]]:
        return await asyncio.gather(*(agent(f"n{n}") for n in range(5)))

    done = asyncio.run(main())

    for worktree, sha in done:
        assert git(repository, "log", "--format=%H", "--name-only", f"main..{worktree.branch}").split() == [
            sha,
            worktree.name,
        ]
    assert [known.name for known in asyncio.run(place.known())] == sorted(f"n{n}" for n in range(5))


def test_kill_9_while_a_worktree_is_made_leaves_what_the_next_process_mends(
    repository: Path, nursery: Nursery, said: tuple[int, int]
) -> None:
    for n in range(40):
        (repository / f"folder{n}").mkdir()
        (repository / f"folder{n}" / "file").write_text("x" * 1000)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "-m", "folders")
    for n in range(3):
        name = f"n{n}"
        making = nursery.start(f"{PROGRAMS}:add_until_killed", str(repository), name, descriptors={1: said[1]})
        assert read(said[0], 1) == b"."
        record = repository / ".git" / "sennit" / "worktrees"
        while n and not [*record.glob(f"{name}.*.json")]:  # the first dies before it is planned, mostly
            os.sched_yield()
        for _ in range(n * 500):
            os.sched_yield()
        making.kill()

        worktree = add(repository, name)

        assert (worktree.path.name, worktree.branch) == (name, f"sennit/{name}")
        assert git(worktree.path, "status", "--porcelain") == ""
        assert (worktree.path / "folder39" / "file").exists()


def test_kill_9_in_the_middle_of_a_checkout_is_mended_after_the_git_that_goes_on(
    repository: Path, nursery: Nursery
) -> None:
    slow = SlowFile(repository, at="smudge")
    making = nursery.start(f"{PROGRAMS}:add_until_killed", str(repository), "a")
    slow.wait_begun()
    making.kill()
    slow.let_on()

    worktree = add(repository)

    assert (worktree.path.name, worktree.branch) == ("a", "sennit/a")
    assert (worktree.path / "slow").read_text() == "slow"
    assert git(worktree.path, "status", "--porcelain") == ""
    assert len(git(repository, "worktree", "list").splitlines()) == 2


def test_the_git_of_a_killed_process_is_waited_for(repository: Path, nursery: Nursery) -> None:
    slow = SlowFile(repository)
    committing = nursery.start(f"{PROGRAMS}:commit_slow", str(repository), "a")
    slow.wait_begun()
    lock = repository / ".git" / "sennit" / "git"

    async def main() -> None:
        making = asyncio.ensure_future(worktrees(repository).add("b"))
        await asyncio.to_thread(committing.kill)
        while (line := line_if_any(lock)) is None or not line._waiting:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0)
        assert not making.done()
        slow.let_on()
        await making

    asyncio.run(main())

    worktree = add(repository, "a")
    assert git(worktree.path, "status", "--porcelain") == "A  slow"  # its `git add` has ended in peace


def test_a_cancelled_commit_is_made_all_the_same_and_the_lock_is_free(repository: Path) -> None:
    slow = SlowFile(repository)
    worktree = add(repository)
    (worktree.path / "slow").write_text("x")
    place = worktrees(repository)

    async def main() -> None:
        committing = asyncio.ensure_future(place.commit(worktree, "slow"))
        await asyncio.to_thread(slow.wait_begun)
        committing.cancel()
        await asyncio.sleep(0)
        committing.cancel()
        await asyncio.to_thread(slow.let_on)
        with pytest.raises(asyncio.CancelledError):
            await committing
        await place.add("b")

    asyncio.run(main())

    assert log(repository, "main..sennit/a") == ["slow"]


def test_two_merges_at_once_are_both_made(repository: Path) -> None:
    agents = [add(repository, name) for name in "ab"]
    for worktree in agents:
        work(repository, worktree, worktree.name)
    place = worktrees(repository)

    async def main() -> list[Finished]:
        return await asyncio.gather(*(place.finish(worktree, "merge") for worktree in agents))

    done = asyncio.run(main())

    assert [finished.merged for finished in done] == [True, True]
    assert sorted(path.name for path in repository.iterdir() if path.is_file()) == ["README", "a", "b"]
    assert git(repository, "status", "--porcelain") == ""

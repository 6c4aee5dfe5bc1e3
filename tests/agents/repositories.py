"""Real git repositories for tests, and programs that work in them as other processes."""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from sennit.execute.worktrees import Worktree, Worktrees

ENVIRON = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Tess",
    "GIT_AUTHOR_EMAIL": "tess@example.org",
    "GIT_COMMITTER_NAME": "Tess",
    "GIT_COMMITTER_EMAIL": "tess@example.org",
    "GIT_ALLOW_PROTOCOL": "file",
}


def git(folder: Path, *argv: str, environ: Mapping[str, str] | None = None) -> str:
    whole = {**os.environ, **ENVIRON, **(environ or {})}
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *argv],
        cwd=folder,
        env=whole,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout.removesuffix("\n")


def make_repository(folder: Path, *, commits: bool = True) -> Path:
    """Return a new repository; copied, which takes no git at all."""
    shutil.copytree(Path(_template(commits=commits).name) / "r", folder)
    return folder


@functools.cache
def _template(*, commits: bool) -> tempfile.TemporaryDirectory[str]:
    home = tempfile.TemporaryDirectory()
    folder = Path(home.name) / "r"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main", "--template=")
    (folder / ".git" / "info").mkdir()
    if commits:
        commit(folder, "README", "one\n")
    return home


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "-m", f"{name}: {text.strip()[:20]}")
    return (folder / ".git" / "refs" / "heads" / "main").read_text().strip()


@functools.cache
def worktrees(repository: Path) -> Worktrees:
    return Worktrees(repository, repository.parent / "worktrees")


def add(repository: Path, name: str = "a") -> Worktree:
    return asyncio.run(worktrees(repository).add(name))


def work(repository: Path, worktree: Worktree, name: str = "new", text: str = "work\n") -> str:
    """Do what an agent does, and commit it as sennit does."""
    (worktree.path / name).parent.mkdir(parents=True, exist_ok=True)
    (worktree.path / name).write_text(text)
    return asyncio.run(worktrees(repository).commit(worktree, f"work on {name}"))


class SlowFile:
    """A file `slow` whose first `git add`, or checkout, says that it has begun, and waits to be let on."""

    def __init__(self, repository: Path, *, at: Literal["clean", "smudge"] = "clean") -> None:
        if at == "smudge":
            commit(repository, "slow", "slow")
        self.began, self.go = repository.parent / "began", repository.parent / "go"
        os.mkfifo(self.began)
        os.mkfifo(self.go)
        commit(repository, ".gitattributes", "slow filter=slow\n")
        once, began, go = (shlex.quote(str(path)) for path in (repository.parent / "once", self.began, self.go))
        wait = f"if mkdir {once} 2>/dev/null; then echo >{began}; cat {go} >/dev/null; fi; cat"
        git(repository, "config", f"filter.slow.{at}", wait)

    def wait_begun(self) -> None:
        self.began.read_text()

    def let_on(self) -> None:
        self.go.write_text("")


def commit_slow(repository: str, name: str) -> int:
    """Program: commits a `SlowFile`."""
    work(Path(repository), add(Path(repository), name), "slow")
    return 0


def one_agent(repository: str, name: str) -> int:
    """Program: makes a worktree, waits until all may go, commits as an agent and as sennit do, and merges."""
    place = worktrees(Path(repository))

    async def main() -> None:
        worktree = await place.add(name)
        os.write(1, b".")
        os.read(0, 1)  # until the test closes it
        (worktree.path / f"by-agent-{name}").write_text(name)
        git(worktree.path, "add", "--all")
        git(worktree.path, "commit", "--quiet", "-m", f"agent {name}")
        (worktree.path / f"by-sennit-{name}").write_text(name)
        assert await place.commit(worktree, f"sennit {name}")
        assert (await place.finish(worktree, "merge")).merged

    asyncio.run(main())
    return 0


def add_until_killed(repository: str, name: str) -> int:
    """Program: says that it begins to make a worktree, and makes it."""
    os.write(1, b".")
    add(Path(repository), name)
    return 0

"""git as a tool of ours: it asks nobody, runs nobody's hooks, speaks English, and ends in time.

    Git(folder).ask("rev-parse", "HEAD") ─► "4f0c…"            an error of git is a WorktreeError
    Git(folder).run("merge-base", …)     ─► Answer(code, out, err)

It blocks its OS thread and never polls: what git writes goes to memory files, and its end is waited for on a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, NamedTuple

from sennit.errors import WorktreeError

__all__ = ["Answer", "Git", "identity", "words_of"]

LOCAL_S: Final = 300.0
"""Until a git that only works on local files is ended: a first checkout of a large repository takes a minute."""

_TERM_S: Final = 5.0  # git removes its lock files on TERM; after this long it is killed

# What says which repository is meant. Set where sennit was started by a hook, and then it would mean the wrong one.
# Source: `git rev-parse --local-env-vars` of git 2.39, without GIT_CONFIG_COUNT: containers set that for all of git.
_OF_ONE_REPOSITORY: Final = frozenset(
    [
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_CONFIG",
        "GIT_CONFIG_PARAMETERS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_GRAFT_FILE",
        "GIT_INDEX_FILE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_REPLACE_REF_BASE",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_COMMON_DIR",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_NAMESPACE",
        "GIT_QUARANTINE_PATH",
    ]
)

_ENVIRON: Final = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",  # set and empty: no program is asked, not even the one of the configuration
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",  # Git Credential Manager opens windows otherwise
    "GIT_OPTIONAL_LOCKS": "0",  # `status` only looks
    "GIT_EDITOR": "true",
    "GIT_SEQUENCE_EDITOR": "true",
    "GIT_PAGER": "cat",
}

_NO_HOOKS: Final = ("-c", "core.hooksPath=/dev/null")
_CONFIG: Final = (
    "-c", "commit.gpgSign=false",  # asks for a passphrase
    "-c", "gc.auto=0", "-c", "maintenance.auto=false",  # leave processes behind
    "-c", "core.fsmonitor=false",  # the same
    "-c", "submodule.recurse=false",
    "-c", "core.quotePath=false",
    "-c", "core.filesRefLockTimeout=10000", "-c", "core.packedRefsTimeout=10000",  # ms; git waits for others' ref locks
)  # fmt: skip


class Answer(NamedTuple):
    """What git said. Texts are in the file system's encoding; bytes that are not of it survive a way back."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0

    def names(self) -> tuple[str, ...]:
        """Return the parts of what was written with -z."""
        return tuple(part for part in self.out.split("\0") if part)


class Git:
    """git in one folder.

    Args:
        folder: where it runs, and the only place where it looks for a repository or above; for a worktree, see `ceiling`.
        held: a descriptor that every git inherits: what it locks stays locked until git has ended, also when we die before.
        ceiling: git looks for a repository in `folder` only: in a worktree whose `.git` is gone it would find the repository
            around it, and commit there.
    """

    def __init__(self, folder: Path, *, held: int | None = None, ceiling: bool = False) -> None:
        self.folder = folder
        self._held = held
        self._ceiling = ceiling

    def at(self, folder: Path, *, ceiling: bool = False) -> Git:
        """Return git in another folder, with the same lock."""
        return Git(folder, held=self._held, ceiling=ceiling)

    def ask(self, *argv: str, stdin: str = "", environ: Mapping[str, str] | None = None) -> str:
        """Return what git writes, without its last newline.

        Raises:
            WorktreeError: it failed, took too long, or is not installed.
        """
        answer = self.run(*argv, stdin=stdin, environ=environ)
        if not answer.ok:
            raise self.failed(argv, answer)
        return answer.out.removesuffix("\n")

    def run(
        self,
        *argv: str,
        stdin: str = "",
        environ: Mapping[str, str] | None = None,
        timeout_s: float = LOCAL_S,
        hooks: bool = False,
    ) -> Answer:
        """Run git, and return what it says, be it good or bad.

        Args:
            hooks: let the repository's hooks run; they have no terminal either.

        Raises:
            WorktreeError: it took longer than `timeout_s`, or is not installed.
        """
        given = {**_ENVIRON, **(environ or {})}
        if self._ceiling:
            given["GIT_CEILING_DIRECTORIES"] = str(self.folder.parent)
        whole = ("git", *_CONFIG, *(() if hooks else _NO_HOOKS), *argv)
        return run(whole, self.folder, environ=given, stdin=stdin, timeout_s=timeout_s, held=self._held)

    def failed(self, argv: tuple[str, ...], answer: Answer) -> WorktreeError:
        """Return the error of an answer."""
        words = " ".join([word for word in argv if not word.startswith("-")][:2])
        return WorktreeError(f"git {words} failed in {self.folder}", why=words_of(answer), fix=_fix(answer.err))


def words_of(answer: Answer) -> str:
    """Return what git says of its failure, in a line."""
    said = [line for line in (answer.err or answer.out).splitlines() if line.strip() and not line.startswith("hint:")]
    named = [line for line in said if line.startswith(("fatal:", "error:", " ! ", "\t"))]
    return "; ".join((named or said)[-4:])[:1000] or f"exit code {answer.code}"


def _fix(err: str) -> str:
    if "index.lock" in err or "Unable to create" in err:
        return "if no git runs there, a crash has left the lock file: remove it"
    if "dubious ownership" in err:
        return "git config --global --add safe.directory FOLDER, if you trust it"
    return "make room; nothing that was committed is affected" if "No space left" in err else ""


def run(
    argv: tuple[str, ...],
    folder: Path,
    *,
    environ: Mapping[str, str],
    stdin: str = "",
    timeout_s: float = LOCAL_S,
    held: int | None = None,
) -> Answer:
    """Run a program to its end in a session of its own, so that nothing in it finds a terminal to ask on.

    Raises:
        WorktreeError: it is not installed, the folder is not there, or it took longer than `timeout_s`.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_ONE_REPOSITORY}
    with _memory() as given, _memory() as out, _memory() as err:
        given.write(os.fsencode(stdin))
        given.seek(0)
        try:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env={**inherited, **environ},
                stdin=given,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=() if held is None else (held,),
            )
        except OSError as error:
            raise _not_started(argv[0], folder, error) from error
        try:
            in_time = _ends(process, timeout_s)
            if not in_time:
                os.killpg(process.pid, signal.SIGTERM)
                _ends(process, _TERM_S)
        finally:  # a Ctrl-C too: nothing of ours goes on behind somebody's back
            if process.returncode is None and not _ends(process, 0):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not in_time:
            raise WorktreeError(
                f"{argv[0]} has not ended within {timeout_s:g} s in {folder}, and was ended",
                why="it waited for something: a network, a slow disk, a filter program",
                fix=f"run it by hand: {' '.join(argv[-4:])}",
            )
        return Answer(process.returncode, _read(out), _read(err))


def _not_started(program: str, folder: Path, error: OSError) -> WorktreeError:
    if not folder.is_dir():
        return WorktreeError(f"{folder} is not there", why=str(error), fix="name a folder of a git repository")
    if shutil.which(program) is None:
        return WorktreeError(f"{program} is not installed", why="worktrees are made by it", fix=f"install {program}")
    return WorktreeError(f"{program} could not be started in {folder}", why=str(error))


def _ends(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for its end; False when the time is over."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # no Linux, or too old a kernel: Python looks now and then there
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        return process.returncode is not None
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _memory() -> Iterator[IO[bytes]]:
    """A file that needs no room on a disk that may be full."""
    with os.fdopen(os.memfd_create("git"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        yield file


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return os.fsdecode(file.read())


def identity(git: Git) -> dict[str, str]:
    """Return what an author lacks here, as environment: somebody has to have written the commit.

    git itself takes the login's and the host's name, and refuses where it finds none, as in most containers.
    """
    answer = git.run("config", "-z", "--get-regexp", r"^(user|author|committer)\.(name|email)$")
    known = {part.partition("\n")[0] for part in answer.names()}
    missing = {}
    for who in ("author", "committer"):
        for what, fallback in (("name", "Sennit"), ("email", "sennit@localhost")):
            variable = f"GIT_{who}_{what}".upper()
            if f"user.{what}" not in known and f"{who}.{what}" not in known and not os.environ.get(variable):
                missing[variable] = fallback
    return missing

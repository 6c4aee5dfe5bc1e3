"""What is known of the worktrees that were made for agents: one small file each, in the repository's own git folder.

    planned ──git worktree add──► made ──release──► released
       └── a crash: nobody has worked in it yet, it is made anew

The plan is written before git begins, so that a crash at any point leaves a name, a path, a branch and a commit to go on
from. A released one is remembered for a while: a task that crashed after that finds its commits again.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final, Literal

import msgspec

from sennit.errors import WorktreeError

__all__ = ["Record", "Records", "slug_of"]

_SLUG_CHARS_MAX: Final = 60  # a path and a ref of it stay far below every limit
_REMEMBERED_MAX: Final = 500


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One worktree.

    Attributes:
        base_sha: of the commit it began with.
        head_sha: its last commit when it was released.
    """

    name: str
    path: str
    branch: str
    base_sha: str
    state: Literal["planned", "made", "released"] = "planned"
    head_sha: str = ""


class Records:
    """The records of one repository, for one folder of worktrees: two fleets may use the same names.

    Args:
        common: the git dir that all worktrees of the repository share.
    """

    def __init__(self, common: Path, folder: Path) -> None:
        self._folder = folder
        self._home = common / "sennit" / "worktrees"

    def read(self, name: str) -> Record | None:
        """Return the record of a name.

        Raises:
            WorktreeError: it is not readable.
        """
        file = self._file(name)
        try:
            return msgspec.json.decode(file.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise WorktreeError(
                f"what was written down of the worktree {name!r} is not readable",
                why=str(error),
                fix=f"remove {file}; the worktree and its branch stay",
            ) from error

    def write(self, record: Record) -> None:
        """Write a record, durable and whole when this returns."""
        self._home.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self._home, prefix=".", suffix=".part", delete=False) as file:
            try:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self._file(record.name))  # noqa: PTH105 - a name, not a path
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        descriptor = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def forget(self, name: str) -> None:
        """Drop the record of a name."""
        self._file(name).unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """Return the records of this folder, by name."""
        found = []
        for file in sorted(self._home.glob(f"*.{self._mark()}.json")):
            with suppress(FileNotFoundError, msgspec.DecodeError):  # `read` says what is wrong with it
                found.append(msgspec.json.decode(file.read_bytes(), type=Record))
        return sorted(found, key=lambda record: record.name)

    def prune(self) -> None:
        """Forget the oldest of the released ones, beyond some hundreds."""
        files = [*self._home.glob(f"*.{self._mark()}.json")]
        if len(files) > _REMEMBERED_MAX:
            released = [record for record in self.all() if record.state == "released"]
            released.sort(key=lambda record: self._file(record.name).stat().st_mtime_ns)
            for record in released[: len(files) - _REMEMBERED_MAX]:
                self.forget(record.name)

    def _file(self, name: str) -> Path:
        return self._home / f"{slug_of(name)}.{self._mark()}.json"

    def _mark(self) -> str:
        return _digest(os.fspath(self._folder), 4)


def slug_of(name: str) -> str:
    """Return a name for files and branches; two names never give the same one."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", name)[:_SLUG_CHARS_MAX].strip("-")
    return slug if slug == name and not re.search("-[0-9a-f]{8}$", name) else f"{slug}-{_digest(name, 4)}".lstrip("-")


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()

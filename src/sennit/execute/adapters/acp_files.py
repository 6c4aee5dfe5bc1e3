"""Files that an ACP agent may read and write through us: those of its own folder, by no way around.

    /srv/repo/src/a.py ─► ("src", "a.py") ─► open "src" in /srv/repo ─► open "a.py" in that      no link is followed

A path is walked from the folder's descriptor, one name at a time, and each open refuses a symbolic link. So what is checked
is what is opened, whoever exchanges a name meanwhile. `..` is refused, not resolved.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sennit.execute.adapters.lines import number, text, whole

__all__ = ["FILE_BYTES_MAX", "HANDED_BYTES_MAX", "FileDesk", "FileRefused", "Folder"]

FILE_BYTES_MAX: Final = 8 << 20
"""Of a file that is read: it is sent as one message."""

HANDED_BYTES_MAX: Final = 256 << 20
"""Of files that are read, in one run: an agent may ask and never read the answers."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: the name may be that of a pipe.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_NAME_CHARS: Final = 60
PATH_CHARS_MAX: Final = 4096  # PATH_MAX of Linux


class FileRefused(Exception):
    """The agent is told so, in these words; `is_missing` when there is no such file."""

    def __init__(self, words: str, *, is_missing: bool = False) -> None:
        super().__init__(words)
        self.words = words
        self.is_missing = is_missing


class Folder:
    """One folder and what is below it.

    Args:
        path: as the agent was told it; it may lie behind a symbolic link itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = self._real = path.absolute()
        with suppress(OSError, RuntimeError):  # a loop of links: it cannot be opened, and that is told when it is
            self._real = self._path.resolve()

    def read(self, path: str, *, line: int = 1, limit: int | None = None) -> str:
        """Return the text of a file: from a line on, at most `limit` lines.

        Raises:
            FileRefused: it is outside, behind a link, no regular file, too large, no UTF-8, or not to be read.
        """
        with self._parent(path) as (folder, name), _told(path):
            descriptor = os.open(name, _READ, dir_fd=folder)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileRefused(f"{path} is no regular file")
                data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise FileRefused(f"{path} has more than {FILE_BYTES_MAX:,} bytes; read it by other means")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise FileRefused(f"{path} is no UTF-8 text") from None
        if line <= 1 and limit is None:
            return text
        begin = max(0, line - 1)
        lines = io.StringIO(text, newline="\n")  # a line ends at "\n" and nowhere else
        return "".join(islice(lines, begin, None if limit is None else begin + max(0, limit)))

    def write(self, path: str, content: str) -> None:
        """Make a file have this content, or leave it as it is. Folders that are missing are made; its mode stays.

        Raises:
            FileRefused: it is outside, behind a link, no regular file, of git's own, or cannot be written.
        """
        try:
            data = content.encode()
        except UnicodeEncodeError:
            raise FileRefused(f"the content for {path} is no Unicode text") from None
        with self._parent(path, is_written=True) as (folder, name), _told(path):
            mode = _mode_of(folder, name, path)
            new = f".{name[:_KEPT_NAME_CHARS]}.{secrets.token_hex(8)}.tmp"
            descriptor = os.open(new, _NEW, 0o666, dir_fd=folder)
            try:
                with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
                    file.write(data)
                    if mode is not None:
                        os.fchmod(descriptor, mode)
                os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new, dir_fd=folder)
                raise

    @contextmanager
    def _parent(self, path: str, *, is_written: bool = False) -> Iterator[tuple[int, str]]:
        """Yield a descriptor of the folder that the file is in, and its name there."""
        *above, name = self._names(path)
        if is_written and ".git" in (*above, name):
            raise FileRefused(f"{path} belongs to git")
        with _told(path):
            folder = os.open(self._real, _FOLDER)
        try:
            for part in above:
                with _told(path):
                    below = _opened(part, folder, is_made=is_written)
                os.close(folder)
                folder = below
            yield folder, name
        finally:
            os.close(folder)

    def _names(self, path: str) -> tuple[str, ...]:
        pure = PurePosixPath(path)
        if len(path) > PATH_CHARS_MAX or "\0" in path or not pure.is_absolute() or ".." in pure.parts:
            raise FileRefused(f"{path[:200]!r} is no absolute path without `..`")
        for root in (self._path, self._real):
            if pure.is_relative_to(root) and (names := pure.relative_to(root).parts):
                return names
        raise FileRefused(f"{path} is outside of {self._path}")


class FileDesk:
    """Answers `fs/read_text_file` and `fs/write_text_file` of one run.

    Attributes:
        is_empty_when_missing: a file that does not exist reads as an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Folder(folder)
        self._handed_bytes = 0
        self.is_empty_when_missing = False

    def answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked and return the result.

        Raises:
            FileRefused: see `Folder`; or too much was read in this run.
        """
        path = text(params.get("path"))
        if method == "fs/write_text_file":
            content = params.get("content")
            if not isinstance(content, str):
                raise FileRefused("there is no content")
            self._folder.write(path, content)
            return {}
        if self._handed_bytes > HANDED_BYTES_MAX:
            raise FileRefused(f"more than {HANDED_BYTES_MAX:,} bytes of files were read in this run")
        limit = whole(params["limit"]) if number(params.get("limit")) is not None else None
        try:
            found = self._folder.read(path, line=whole(params.get("line")), limit=limit)
        except FileRefused as refused:
            if not (refused.is_missing and self.is_empty_when_missing):
                raise
            found = ""
        self._handed_bytes += len(found)
        return {"content": found}


def _opened(name: str, folder: int, *, is_made: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not is_made:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    return os.open(name, _FOLDER, dir_fd=folder)


def _mode_of(folder: int, name: str, path: str) -> int | None:
    """Return the permissions of the file that is replaced, None if there is none."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise FileRefused(f"{path} is no regular file")
    return stat.S_IMODE(found) & 0o777


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Tell the agent what the system says."""
    try:
        yield
    except FileNotFoundError:
        raise FileRefused(f"{path} does not exist", is_missing=True) from None
    except (OSError, ValueError) as error:
        # A link gives ELOOP, or ENOTDIR where a folder is wanted.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileRefused(f"{path} cannot be used: {reason}") from None

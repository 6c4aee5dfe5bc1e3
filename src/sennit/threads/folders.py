"""Folders by descriptor: no symlink below the root is followed, and a file is replaced as a whole or not at all.

    write ──► name~new ──fsync──► rename over name ──► fsync of the folder

A kill at any point leaves the old file or the new one. What it leaves of `name~new`, the next writer of that name
removes; there is one at a time, because all writers of a folder hold its lock.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from sennit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NEW", "Folder"]

NEW: Final = "~new"

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Not blocking: to open a named pipe that somebody has put there would wait for its writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Folder:
    """An open folder. `path` is only for messages and for tools outside."""

    __slots__ = ("_fd", "path")

    def __init__(self, descriptor: int, path: Path) -> None:
        self._fd = descriptor
        self.path = path

    @classmethod
    @contextmanager
    def made(cls, root: Path, *below: str) -> Iterator[Folder]:
        """Open a folder below `root`, and make what is missing. `root` itself may be a symlink.

        Raises:
            UsageError: something below it is a symlink or no folder.
        """
        root.mkdir(parents=True, exist_ok=True)
        folder = cls(os.open(root, _FOLDER), root)
        try:
            for name in below:
                if not folder._enter(name):
                    folder._make(name)
                    folder._enter(name)
            yield folder
        finally:
            os.close(folder._fd)

    @classmethod
    @contextmanager
    def found(cls, root: Path, *below: str) -> Iterator[Folder | None]:
        """Open a folder below `root`; None if it is missing.

        Raises:
            UsageError: something below it is a symlink or no folder.
        """
        try:
            folder = cls(os.open(root, _FOLDER), root)
        except FileNotFoundError:
            yield None
            return
        try:
            yield folder if all(folder._enter(name) for name in below) else None
        finally:
            os.close(folder._fd)

    def _enter(self, name: str) -> bool:
        """Move on to a folder in this one; False if it is missing."""
        try:
            with self._no_symlink(name):
                below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        os.close(self._fd)
        self._fd = below
        self.path /= name
        return True

    def _make(self, name: str) -> None:
        try:
            os.mkdir(name, 0o777, dir_fd=self._fd)
        except FileExistsError:
            return  # another process was faster
        os.fsync(self._fd)

    def names(self) -> list[str]:
        """Return what is in it, but for what a killed writer has left."""
        return [name for name in self.entries() if not name.endswith(NEW)]

    def entries(self) -> list[str]:
        """Return what is in it."""
        return os.listdir(self._fd)  # noqa: PTH208 - a descriptor has no path

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, whole; None if there is none."""
        with self.opened(name) as file:
            return None if file is None else file.read()

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO | None]:
        """Open a file to read it; None if there is none. It stays the same one if it is replaced meanwhile."""
        try:
            with self._no_symlink(name):
                descriptor = os.open(name, _READ, dir_fd=self._fd)
        except FileNotFoundError:
            yield None
            return
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._refused(name, "no regular file")
            yield file

    def replace(self, name: str, *content: bytes) -> None:
        """Write a file so that a reader sees the old content or all of the new one; durable when this returns."""
        self._write(name + NEW, content)
        os.replace(name + NEW, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def _write(self, name: str, content: tuple[bytes, ...]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, 0o666, dir_fd=self._fd)
        except FileExistsError:
            self.remove(name)
            descriptor = os.open(name, flags, 0o666, dir_fd=self._fd)
        with os.fdopen(descriptor, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(descriptor)

    def append(self, name: str, line: bytes) -> int:
        """Append a line that ends in a newline; return how many bytes the file has then.

        What a killed writer has left of a line is cut off first.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._no_symlink(name):
            descriptor = os.open(name, flags, 0o666, dir_fd=self._fd)
        with os.fdopen(descriptor, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                file.seek(0)
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)
                file.seek(end)
            file.write(line)
            file.flush()
            os.fsync(descriptor)
        if end == 0:
            os.fsync(self._fd)
        return end + len(line)

    def remove(self, name: str) -> bool:
        """Remove a file or a symlink itself; False if there is none."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        os.fsync(self._fd)
        return True

    def remove_tree(self, name: str) -> None:
        """Remove a file, a symlink itself, or a folder with all that is in it; another may be at it too."""
        try:
            mode = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=self._fd)
                return
            with self._below(name) as below:
                for inner in below.entries():
                    below.remove_tree(inner)
            os.rmdir(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass

    def move(self, name: str, to: Folder, new_name: str) -> bool:
        """Move a file or folder into another folder; False if there is none."""
        try:
            os.rename(name, new_name, src_dir_fd=self._fd, dst_dir_fd=to._fd)
        except FileNotFoundError:
            return False
        os.fsync(to._fd)
        os.fsync(self._fd)
        return True

    def sizes(self) -> Iterator[int]:
        """Yield the size in bytes of every file in it, at any depth; of what is removed meanwhile some or none."""
        for name in self.names():
            try:
                found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    with self._below(name) as below:
                        yield from below.sizes()
                elif stat.S_ISREG(found.st_mode):
                    yield found.st_size
            except FileNotFoundError:
                continue

    @contextmanager
    def _below(self, name: str) -> Iterator[Folder]:
        folder = Folder(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._fd), self.path / name)
        try:
            yield folder
        finally:
            os.close(folder._fd)

    @contextmanager
    def _no_symlink(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:  # what Linux says of a symlink to a file, to a folder
                raise self._refused(name, "a symbolic link or no folder") from error
            raise

    def _refused(self, name: str, what: str) -> UsageError:
        return UsageError(
            f"{self.path / name} is {what}",
            why="a workspace does not follow links, they could lead out of it",
            fix="remove it; to share data use workspace.share()",
        )

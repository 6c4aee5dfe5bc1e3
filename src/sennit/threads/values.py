"""One value in one file: read without a lock, changed as a whole by one writer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sennit.errors import WorkspaceTooLarge
from sennit.sync.filelocks import FileLock
from sennit.threads.documents import decode_document, encode, encode_document
from sennit.threads.faces import Work
from sennit.threads.folders import Folder
from sennit.threads.names import safe_name

__all__ = ["Ceiling", "Place"]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How large a value may be, and the argument of `Workspace` that says so."""

    size_bytes_max: int
    setting: str

    def check(self, what: str, content: bytes) -> None:
        """Refuse what is larger.

        Raises:
            WorkspaceTooLarge: it is.
        """
        if len(content) > self.size_bytes_max:
            raise WorkspaceTooLarge(
                what, size_bytes=len(content), size_bytes_max=self.size_bytes_max, setting=self.setting
            )


class Place:
    """Where the value of `key` is: a file in `folders` below `root`. `lock` makes the lock of its writers."""

    def __init__(
        self,
        root: Path,
        folders: tuple[str, ...],
        what: str,
        key: str,
        *,
        ceiling: Ceiling,
        lock: Callable[[str], FileLock],
    ) -> None:
        self._root = root
        self._folders = folders
        self._key = key
        self._name = safe_name(key, what)
        self._what = f"{what} {key!r:.80}"
        self._ceiling = ceiling
        self._lock = lock

    def get(self, default: Any) -> Work[Any]:
        """Return the value, or `default`."""

        def do() -> Any:
            with Folder.found(self._root, *self._folders) as folder:
                return default if folder is None else self._read(folder, default)

        return Work(do)

    def set(self, value: Any) -> Work[None]:
        """Replace the value."""
        content = self._encoded(value)

        def do() -> None:
            with Folder.made(self._root, *self._folders) as folder:
                folder.replace(self._name, *content)

        return Work(do, self._lock(f"set {self._what}"))

    def update(self, fn: Callable[[Any], Any], default: Any) -> Work[Any]:
        """Replace the value by `fn(value)` and return that."""

        def do() -> Any:
            with Folder.made(self._root, *self._folders) as folder:
                value = fn(self._read(folder, default))
                folder.replace(self._name, *self._encoded(value))
                return value

        return Work(do, self._lock(f"update {self._what}"))

    def delete(self) -> Work[bool]:
        """Remove the value; False if there is none."""

        def do() -> bool:
            with Folder.found(self._root, *self._folders) as folder:
                return folder is not None and folder.remove(self._name)

        return Work(do, self._lock(f"delete {self._what}"))

    def _read(self, folder: Folder, default: Any) -> Any:
        file = folder.read(self._name)
        return default if file is None else decode_document(file, folder.path / self._name)[1]

    def _encoded(self, value: Any) -> tuple[bytes, bytes]:
        kind, content = encode(value, self._what)
        self._ceiling.check(self._what, content)
        return encode_document(self._key, kind), content

"""Which locks stand for which files: paths are brought into one form, and each has one name in the whole fleet.

./src//App.py, src/x/../app.py, a link to it  ─►  src/app.py  ─►  path:my-repo-1f3a2b4c:src/app.py
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from sennit.errors import SettingsError
from sennit.model.lock import LOCK_NAME_CHARS_MAX

__all__ = ["PathNames", "Wanted"]

PATHS_MAX: Final = 200
"""Of one reservation: each is some writes in the store; a folder is one path."""


class Wanted(NamedTuple):
    """What a reservation is made of.

    Attributes:
        paths: to be held alone, sorted.
        locks: (name of the lock, path, alone) in the order in which everybody takes them.
    """

    paths: list[str]
    locks: list[tuple[str, str, bool]]


class PathNames:
    """The names of the paths of one repository.

    Args:
        root: a folder; in a git worktree, the files are taken for those of its repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        if not self.root.is_dir():
            raise SettingsError(f"{root} is no folder", why="paths are reserved in a repository", fix="name its folder")
        home = _common(self.root)
        told = re.sub(r"[^A-Za-z0-9._-]", "-", home.name)[:40]
        self._prefix = f"path:{told}-{_digest(os.fspath(home), 4)}:"

    def wanted(self, paths: Iterable[str | Path]) -> Wanted:
        """Return the locks for some paths.

        Raises:
            SettingsError: there is none, there are too many, or one that cannot be reserved.
        """
        given = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not 0 < len(given) <= PATHS_MAX:
            raise SettingsError(
                f"{len(given)} paths cannot be reserved at once",
                why=f"a reservation has at least one path, and {PATHS_MAX} at the most",
                fix="name the files; or the folder that they are in, which is one path",
            )
        alone = {_key(path): path for path in sorted((self.normal(path) for path in given), reverse=True)}
        for key in sorted(alone):
            if any(above in alone for above in _above(key)):
                del alone[key]
        shared = {above for key in alone for above in _above(key)}
        locks = [(self._name(key), key or ".", False) for key in shared]
        locks += [(self._name(key), path or ".", True) for key, path in alone.items()]
        return Wanted(sorted(path or "." for path in alone.values()), sorted(locks))

    def normal(self, given: str | Path) -> str:
        """Return a path relative to the root, links followed, "" for the root itself.

        Raises:
            SettingsError: it is empty, a pattern, or not inside the repository.
        """
        text = os.fspath(given)
        if not text or "\0" in text:
            raise SettingsError(f"{text!r} is no path", fix="name a file or folder of the repository, or '.'")
        whole = self.root / text
        if re.search(r"[*?\[]", text) and not os.path.lexists(whole):
            folder = re.split(r"[*?\[]", text)[0].rpartition("/")[0] or "."
            raise SettingsError(
                f"{text!r} is a pattern, and no file has this name",
                why="what is reserved are files and folders: one that is made later would match too",
                fix=f"reserve the folder that they are in, {folder!r}, or each file",
            )
        real = os.path.realpath(whole)
        if real != str(self.root) and not real.startswith(f"{str(self.root).rstrip('/')}/"):
            leads = f"leads to {real}, which" if Path(text) != Path(real) else ""
            raise SettingsError(
                f"{text!r} {leads or 'is'} {'is ' if leads else ''}not in {self.root}",
                why="a reservation is about the files of one repository",
                fix="name a path inside it",
            )
        normal = real[len(str(self.root)) :].strip("/")
        if normal.split("/")[0].casefold() == ".git":
            raise SettingsError(f"{text!r} is git's own", why="git guards its files itself", fix="name files of yours")
        return os.fsencode(normal).decode("utf-8", "backslashreplace")

    def _name(self, key: str) -> str:
        name = self._prefix + (key or ".")
        if len(name) <= LOCK_NAME_CHARS_MAX:
            return name
        mark = f"#{_digest(key, 16)}#…"
        return self._prefix + mark + key[-(LOCK_NAME_CHARS_MAX - len(self._prefix) - len(mark)) :]


def _key(path: str) -> str:
    """Return the path in the form in which a Mac or Windows tells files apart: what is one file there is one everywhere."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _above(key: str) -> list[str]:
    """Return the folders that a path is in; "" is the root, which is in none."""
    parts = key.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts))] if key else []


def _common(root: Path) -> Path:
    """Return the main folder of the git repository of a folder, or the folder itself, without asking git."""
    try:
        admin = root / (root / ".git").read_text().removeprefix("gitdir: ").strip()
        common = Path(os.path.realpath(admin / (admin / "commondir").read_text().strip()))
    except (OSError, ValueError):
        return root
    return common.parent if common.name == ".git" else common


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()

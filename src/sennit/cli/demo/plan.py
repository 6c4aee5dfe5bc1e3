"""Which files the demo reads, and in which packages they stand.

A package is a directory. Only names below the root decide what is skipped, so a folder inside `.venv` can itself be
the root. The same tree gives the same plan, whatever order the file system lists it in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sennit.cli.demo.records import Record
from sennit.errors import UsageError

SKIPPED: Final = frozenset(("__pycache__", "build", "dist", "env", "node_modules", "site-packages", "venv"))


class PlannedFile(Record, frozen=True):
    """A file to read: `file` opens it, `path` is how reports name it ("click/core.py")."""

    file: str
    path: str
    size_bytes: int = 0


class PlannedPackage(Record, frozen=True):
    """One directory with its Python files, in order of their names."""

    name: str
    files: tuple[PlannedFile, ...]


class Plan(Record, frozen=True):
    """All that a run will read.

    Attributes:
        files_left_out: how many Python files there are beyond `files_max`.
        unreadable: directories that could not be listed, and files whose names are no text.
    """

    title: str
    root: str
    packages: tuple[PlannedPackage, ...]
    files_left_out: int = 0
    unreadable: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Every file of every package, in order."""
        return tuple(file for package in self.packages for file in package.files)

    @property
    def smallest(self) -> PlannedFile:
        """The file that is read soonest."""
        return min(self.files, key=lambda file: file.size_bytes)


def plan(root: Path, *, files_max: int) -> Plan:
    """Find the Python files at or below `root`; of more than `files_max` keep the largest.

    Raises:
        UsageError: there is nothing at `root`, or no Python file in it.
    """
    if files_max < 1:
        raise UsageError(f"files_max is {files_max}", why="a run needs a file to read", fix="pass at least 1")
    if not root.exists():
        raise UsageError(
            f"no such file or folder: {root}",
            why="the demo reads a folder of Python code, or one .py file",
            fix="check the spelling, or run `sennit demo` without a path to read sennit itself",
        )
    top = root.resolve()
    found, unreadable = _walk(top) if top.is_dir() else (_only(root, top), ())
    if not found:
        raise UsageError(
            f"no Python file in {root}",
            why="only *.py counts; hidden folders and " + ", ".join(sorted(SKIPPED)) + " are skipped",
            fix="pass the folder that holds the code",
        )
    sizes = {file: file.stat().st_size for file in found}
    kept = sorted(sorted(found, key=lambda file: (-sizes[file], file.as_posix()))[:files_max])
    # Paths begin with the folder they are in, so that `package_of` a path is its package for a single file too.
    base = top.parent if top.is_dir() else top.parent.parent
    packages: dict[str, list[PlannedFile]] = {}
    for file in kept:
        name = file.parent.relative_to(base).as_posix()
        planned = PlannedFile(file=str(file), path=file.relative_to(base).as_posix(), size_bytes=sizes[file])
        packages.setdefault(name, []).append(planned)
    return Plan(
        title=top.name or str(top),
        root=str(root),
        packages=tuple(PlannedPackage(name, tuple(packages[name])) for name in sorted(packages)),
        files_left_out=len(found) - len(kept),
        unreadable=unreadable,
    )


def _only(root: Path, file: Path) -> list[Path]:
    if file.suffix != ".py":
        raise UsageError(
            f"not a Python file: {root}", why="its name does not end in .py", fix="pass a .py file or a folder of them"
        )
    return [file]


def _walk(top: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the regular *.py files below `top`, and the directories that could not be listed. Links are left alone."""
    found: list[Path] = []
    unreadable: list[str] = []

    def note(error: OSError) -> None:
        unreadable.append(_as_text(str(error.filename)))

    for folder, folders, names in os.walk(top, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
        named = [name for name in names if name.endswith(".py")]
        unreadable.extend(_as_text(f"{folder}/{name}") for name in named if _as_text(name) != name)
        paths = (Path(folder, name) for name in named if _as_text(name) == name)
        found.extend(path for path in paths if path.is_file() and not path.is_symlink())
    return found, tuple(sorted(unreadable))


def _as_text(name: str) -> str:
    """Return a file name as text that can be stored and shown; bytes that are no UTF-8 become question marks."""
    return os.fsencode(name).decode("utf-8", "replace")

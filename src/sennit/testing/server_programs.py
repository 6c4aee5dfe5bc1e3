"""Where PostgreSQL and Redis are installed. Imports only the standard library: dev.py reads it before anything is installed.

PATH ─► the usual places, newest first ─► `ours`, where `python3 dev.py test` puts what a system does not have
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["installed_postgres", "installed_redis"]

POSTGRES_PLACES: Final = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # Fedora and relatives
    "/opt/homebrew/opt/postgresql*/bin",
    "/opt/homebrew/bin",
    "/usr/local/opt/postgresql*/bin",
    "/usr/local/bin",
    "/usr/local/pgsql/bin",  # built from source
)
REDIS_PLACES: Final = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
REDIS_NAMES: Final = ("redis-server", "valkey-server")
POSTGRES_IN_WHEEL: Final = "postgres/*/pginstall*/bin"
REDIS_IN_WHEEL: Final = "redis/*/bin"


def installed_postgres(ours: Path, *, root: Path = Path("/")) -> Path | None:
    """Return the folder with `initdb` and `postgres`, None if there is none.

    Args:
        root: under which the usual places are looked for.
    """
    on_path = [Path(os.path.realpath(found)).parent for name in ("postgres", "initdb") if (found := shutil.which(name))]
    for folder in [*on_path, *_newest_first(root, POSTGRES_PLACES), *_newest_first(ours, [POSTGRES_IN_WHEEL])]:
        if all(_is_program(folder / name) for name in ("initdb", "postgres")):
            return folder
    return None


def installed_redis(ours: Path, *, root: Path = Path("/")) -> Path | None:
    """Return redis-server or the like of it, None if there is none."""
    on_path = [Path(found) for name in REDIS_NAMES if (found := shutil.which(name))]
    folders = [*_newest_first(root, REDIS_PLACES), *_newest_first(ours, [REDIS_IN_WHEEL])]
    for program in [*on_path, *(folder / name for folder in folders for name in REDIS_NAMES)]:
        if _is_program(program):
            return program
    return None


def _newest_first(root: Path, patterns: tuple[str, ...] | list[str]) -> Iterator[Path]:
    """Yield the folders that fit, pattern by pattern; within one the highest version number comes first."""
    for pattern in patterns:
        found = root.glob(pattern.lstrip("/"))
        yield from sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)

"""The SQL, one file per operation: its first lines say the move, why it is atomic and which index it uses.

A file holds one or more statements, each ended by `;` at the end of a line; `statements("sqlite", "claim")` returns
them in order, without comments, so that the text SQLite caches is short.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


@cache
def statements(dialect: str, operation: str) -> tuple[str, ...]:
    """Return the statements of `sql/<dialect>/<operation>.sql`, in order."""
    text = resources.files(__package__).joinpath(dialect, f"{operation}.sql").read_text(encoding="utf-8")
    bare = re.sub(r"--[^\n]*", "", text)
    return tuple(" ".join(part.split()) for part in re.split(r";\s*(?:\n|$)", bare) if part.strip())


def migrations(dialect: str) -> list[tuple[int, str, str]]:
    """Return (version, name, script) of every migration, in order."""
    found = []
    for entry in resources.files(__package__).joinpath(dialect, "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name)
        if match:
            found.append((int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)

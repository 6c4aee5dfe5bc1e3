"""The SQL, one file per operation: its first lines say the move, why it is atomic and which index it uses.

    sql/sqlite/claim.sql     every statement, in order, each ended by `;` at the end of a line
    sql/postgres/claim.sql   only those that PostgreSQL wants in other words, each under `-- instead of N: why`

`statements("claim")` returns them in order, without comments, so that the text a database caches is short. Each is the
text for SQLite and has that for PostgreSQL beside it: the same words with other parameter marks, unless it says otherwise.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib import resources
from typing import Self

_INSTEAD = re.compile(r"^-- instead of (\d+):.*$", re.MULTILINE)
# A quoted text, a numbered mark, a mark, a cast (which is no name), a named mark, a percent sign.
_MARKS = re.compile(r"'(?:[^']|'')*'|\?\d+|\?|::|:[a-z_]\w*|%")


class Statement(str):
    """One statement: the text is SQLite's, `postgres` is the one for PostgreSQL."""

    __slots__ = ("postgres",)

    postgres: str

    def __new__(cls, text: str, postgres: str | None = None) -> Self:
        """Make one; without `postgres` the marks are translated."""
        self = super().__new__(cls, text)
        self.postgres = translated(text) if postgres is None else translated(postgres)
        return self


@lru_cache(maxsize=1024)
def translated(text: str) -> str:
    """Return a statement with psycopg's marks for parameters: `%s`, `%(name)s`, and `%(p1)s` for a numbered one."""
    return _MARKS.sub(lambda found: _mark(found[0]), text.replace("json_each(", "sennit_each("))


def _mark(found: str) -> str:
    if found == "?":
        return "%s"
    if found[0] == "?":
        return f"%(p{found[1:]})s"
    if found[0] == ":" and found != "::":
        return f"%({found[1:]})s"
    return found.replace("%", "%%")


@cache
def statements(operation: str) -> tuple[Statement, ...]:
    """Return the statements of an operation, in order."""
    found = _split(_text("sqlite", operation))
    others = _instead(operation)
    if unknown := set(others) - set(range(1, len(found) + 1)):
        raise ValueError(f"sql/postgres/{operation}.sql replaces statements {sorted(unknown)}, which are not there")
    return tuple(Statement(text, others.get(n)) for n, text in enumerate(found, 1))


def _instead(operation: str) -> dict[int, str]:
    """Return what PostgreSQL wants in other words, by number."""
    if not resources.files(__package__).joinpath("postgres", f"{operation}.sql").is_file():
        return {}
    _, *parts = _INSTEAD.split(_text("postgres", operation))
    return {int(n): " ".join(_split(text)) for n, text in zip(parts[::2], parts[1::2], strict=True)}


def _text(dialect: str, operation: str) -> str:
    return resources.files(__package__).joinpath(dialect, f"{operation}.sql").read_text(encoding="utf-8")


def _split(text: str) -> list[str]:
    bare = re.sub(r"--[^\n]*", "", text)
    return [" ".join(part.split()) for part in re.split(r";\s*(?:\n|$)", bare) if part.strip()]


def migrations(dialect: str) -> list[tuple[int, str, str]]:
    """Return (version, name, script) of every migration, in order."""
    found = []
    for entry in resources.files(__package__).joinpath(dialect, "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name)
        if match:
            found.append((int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)

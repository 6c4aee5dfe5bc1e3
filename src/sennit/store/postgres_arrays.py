"""Lists as PostgreSQL writes them: psycopg would look at each element to find out what it is, and we know.

Source: postgresql.org/docs/current/arrays.html#ARRAYS-IO.
"""

from __future__ import annotations

from collections.abc import Iterable


def numbers(values: Iterable[int | None]) -> str:
    """Return a `bigint[]`."""
    return "{" + ",".join(["NULL" if value is None else str(int(value)) for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """Return a `text[]`."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def blobs(values: Iterable[bytes | None]) -> str:
    """Return a `bytea[]`."""
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

"""What there is to know of a database file beside its tasks: sizes, rows, the log."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sennit.model.order import ready_us
from sennit.store.connect import filesystem_of
from sennit.store.database import Connection

PRAGMAS: Final = ("page_size", "page_count", "freelist_count", "journal_mode")
_TABLES: Final = (
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'sennit\\_%' ESCAPE '\\' ORDER BY name"
)
_FIRST: Final = """
SELECT t.priority, min(r.order_us) FROM sennit_ready AS r JOIN sennit_task AS t ON t.id = r.id GROUP BY t.priority
"""


def file_facts(connection: Connection, path: Path) -> dict[str, Any]:
    """Return sizes in bytes, and how SQLite keeps the file."""
    pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
    return {
        "bytes": path.stat().st_size,
        "log_bytes": _size_of(path.with_name(path.name + "-wal")),
        "filesystem": filesystem_of(path),
        **pragmas,
    }


def rows_of(connection: Connection) -> dict[str, int]:
    """Return table → rows; counted, which takes a second for some ten million."""
    names = [name for (name,) in connection.execute(_TABLES).fetchall()]
    return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}  # noqa: S608


def oldest_ready_us(connection: Connection) -> int | None:
    """Return since when the task waits, store clock in µs, that has been ready for longest; None when there is none.

    One that was given back counts from when it was ready first.
    """
    firsts = connection.execute(_FIRST).fetchall()
    return min((ready_us(priority, order_us=place_us) for priority, place_us in firsts), default=None)


def _size_of(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0

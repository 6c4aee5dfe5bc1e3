"""Opens a PostgreSQL store, which makes its tables if they are not there, and closes it."""

from __future__ import annotations

from sennit.store.postgres import PostgresStore


def run(url: str) -> None:
    """In a process of its own."""
    PostgresStore(url).close()

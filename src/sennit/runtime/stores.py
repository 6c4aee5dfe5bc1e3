"""Which store a URL names; the only place that chooses one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from sennit.errors import SettingsError
from sennit.model.admission import Bounds
from sennit.model.settings import Settings
from sennit.store.protocol import Store

DEFAULT_URL = "sqlite:///.sennit/sennit.db"


def open_store(url: str, settings: Settings, *, works: bool = True) -> Store:
    """Open the store of `url`, making it when it is missing.

    Args:
        works: False for who only looks and answers: then the bounds of the workers hold, not those of `settings`.

    Raises:
        SettingsError: no such kind of store.
        StoreError: it cannot be opened.
    """
    if url == "memory://":
        from sennit.store.memory import MemoryStore  # noqa: PLC0415 - only for tests

        return MemoryStore(bounds=bounds_of(settings))
    if is_postgres(url):
        return _open_postgres(url, settings, works=works)
    from sennit.store.sqlite import SqliteStore  # noqa: PLC0415 - a store that is not used is not loaded

    return SqliteStore(
        sqlite_path(url),
        durability=settings.durability,
        lock_timeout_s=settings.lock_timeout_s,
        batch_max=settings.writer_batch_max,
        bounds=bounds_of(settings) if works else None,
        hand_over=settings.hand_over,
    )


def is_postgres(url: str) -> bool:
    """Return whether a URL names a PostgreSQL database."""
    return url.startswith(("postgresql://", "postgres://"))


def need_psycopg() -> None:
    """See to it that PostgreSQL can be used.

    Raises:
        SettingsError: the extra is not installed.
    """
    try:
        import_module("psycopg")
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise SettingsError(
            "PostgreSQL needs the extra `postgres`",
            why="its driver, psycopg, is not installed",
            fix="pip install 'sennit[postgres]'",
        ) from error


def _open_postgres(url: str, settings: Settings, *, works: bool) -> Store:
    need_psycopg()
    from sennit.store.postgres import PostgresStore  # noqa: PLC0415 - a store that is not used is not loaded

    return PostgresStore(
        url,
        durability=settings.durability,
        lock_timeout_s=settings.lock_timeout_s,
        batch_max=settings.writer_batch_max,
        listen_url=settings.listen_url,
        bounds=bounds_of(settings) if works else None,
        hand_over=settings.hand_over,
    )


def bounds_of(settings: Settings) -> Bounds:
    """Return what a store enforces for a process with these settings."""
    return Bounds(
        threads_max=settings.threads_max,
        state_versions=settings.state_versions,
        provider_parallel=settings.provider_parallel,
    )


def sqlite_path(url: str) -> Path:
    """Return the file of a SQLite URL.

    Raises:
        SettingsError: it is not one.
    """
    if is_postgres(url):
        raise SettingsError(f"this works on a file, and {url.partition('://')[0]}://… is a server")
    if not url.startswith("sqlite:///"):
        raise SettingsError(
            f"{url!r} is not a store",
            fix="use sqlite:///relative/path.db, sqlite:////absolute/path.db, postgresql://user@host/database, or memory:// in tests",
        )
    path = url.removeprefix("sqlite:///")
    if not path:
        raise SettingsError(f"{url!r} names no file", fix="for example sqlite:///fleet.db")
    return Path(path)

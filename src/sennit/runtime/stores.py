"""Which store a URL names; the only place that chooses one."""

from __future__ import annotations

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
    from sennit.store.sqlite import SqliteStore  # noqa: PLC0415 - a store that is not used is not loaded

    return SqliteStore(
        sqlite_path(url),
        durability=settings.durability,
        lock_timeout_s=settings.lock_timeout_s,
        batch_max=settings.writer_batch_max,
        bounds=bounds_of(settings) if works else None,
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
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            raise SettingsError(
                "this version of sennit has no PostgreSQL store yet", fix="use a file: --db sqlite:///fleet.db"
            )
    if not url.startswith("sqlite:///"):
        raise SettingsError(
            f"{url!r} is not a store",
            fix="use sqlite:///relative/path.db, sqlite:////absolute/path.db, or memory:// in tests",
        )
    path = url.removeprefix("sqlite:///")
    if not path:
        raise SettingsError(f"{url!r} names no file", fix="for example sqlite:///fleet.db")
    return Path(path)

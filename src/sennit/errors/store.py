"""The durable backend."""

from __future__ import annotations

from sennit.errors.base import SennitError


class StoreError(SennitError, OSError):
    """The durable backend could not do what was asked; what it had acknowledged is safe."""

    code = "S400"
    exit_code = 69


class StoreUnavailable(StoreError):
    """The database cannot be opened, is read-only, or was closed."""

    code = "S401"


class StoreLocked(StoreUnavailable):
    """Another program holds the database's write lock for too long."""

    code = "S402"
    exit_code = 75


class StoreCorrupt(StoreError):
    """The file is not a sound SQLite database."""

    code = "S403"


class StoreFull(StoreError):
    """The disk (or the size limit of the database) is full; the transaction was rolled back."""

    code = "S404"


class SchemaMismatch(StoreError):
    """The schema in the file is newer than this sennit, or needs a migration."""

    code = "S405"
    exit_code = 78


class StoreMoved(StoreUnavailable):
    """What was in this store is in another one now (`sennit db copy`), or is being copied into this one."""

    code = "S406"
    exit_code = 78

"""Opening a PostgreSQL database to look at it; imported for such a URL only."""

from __future__ import annotations

from contextlib import closing

from sennit.cli.opening import Schema, settings_here
from sennit.runtime.stores import need_psycopg
from sennit.store.database import Connection

need_psycopg()

from sennit.store.postgres_migrate import LATEST, check_server, pending, refuse_newer, version_of  # noqa: E402
from sennit.store.postgres_server import PostgresServer  # noqa: E402
from sennit.store.postgres_wire import Wire  # noqa: E402
from sennit.store.reader import Reader  # noqa: E402


def server_of(url: str) -> PostgresServer:
    """Return the server of a URL; a command that looks does not wait for one that is down."""
    return PostgresServer(url, lock_timeout_s=settings_here().lock_timeout_s, patience_s=0.0)


def schema_of_server(url: str) -> Schema:
    """Return how new a database is.

    Raises:
        StoreUnavailable: it cannot be reached, or the server is too old.
        SchemaMismatch: it is newer than this sennit.
    """
    server = server_of(url)

    def look(connection: Connection) -> int:
        assert isinstance(connection, Wire)  # noqa: S101 - the server opens no others
        raw = connection.open()
        check_server(raw, server.name)
        refuse_newer(raw, server.name)
        return version_of(raw)

    with closing(Reader(server)) as reader:
        return Schema(server.name, reader.put(look).result(), LATEST)


def pending_of_server(url: str) -> list[tuple[int, str, str]]:
    """Return the migrations that a database lacks."""

    def look(connection: Connection) -> list[tuple[int, str, str]]:
        assert isinstance(connection, Wire)  # noqa: S101 - the server opens no others
        return pending(connection.open())

    with closing(Reader(server_of(url))) as reader:
        return reader.put(look).result()

"""The end of a copy that is a PostgreSQL database: rows come and go by COPY in its binary form.

What it reads and writes is in one transaction with the pen, so a copy into it is there as a whole or not at all.
"""

# ruff: noqa: D102 - the promises stand in copying_sides.py, once

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import psycopg

from sennit.errors import SchemaMismatch, StoreError, StoreUnavailable
from sennit.model.task import WorkerInfo
from sennit.store.copying_sides import LEDGER, META, Row, Tables, Use, is_local, living_at
from sennit.store.moved import NAME, SQLSTATE, Closing, closing_of
from sennit.store.postgres import live_folder
from sennit.store.postgres_migrate import LATEST, check_server, migrate, refuse_newer, version_of
from sennit.store.postgres_server import PostgresServer, explain
from sennit.store.postgres_wire import Wire

_COLUMNS: Final = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL)
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND c.relname LIKE 'sennit\\_%' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 ORDER BY c.relname, a.attnum
"""
# Columns whose numbers the database gives.
_GIVEN: Final = """
SELECT c.relname, a.attname, pg_get_serial_sequence(quote_ident(c.relname), a.attname)
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relname LIKE 'sennit\\_%' AND a.attidentity <> ''
"""
_REFUSE: Final = f"""
CREATE OR REPLACE FUNCTION sennit_refuse() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = '{SQLSTATE}'; END $f$
"""
FATE: Final = "sennit_fate"  # of the transactions of this place; writable also when the others are not, to be asked
# What binary COPY calls the types that columns of ours have.
_TYPES: Final = {"bigint": "int8", "integer": "int4", "text": "text", "bytea": "bytea"}
_TRIGGER: Final = "sennit_closed"


class PostgresSide:
    """A database.

    Raises:
        StoreUnavailable: it cannot be reached, has no tables of ours, or another encoding than UTF-8.
        SchemaMismatch: they are older or newer than this sennit needs.
    """

    plain_text = True

    def __init__(self, url: str, use: Use, *, lock_timeout_s: float = 30.0) -> None:
        # It thinks for longer than others may inside a transaction: between two rows of the other end.
        self._server = PostgresServer(url, lock_timeout_s=lock_timeout_s, frozen_s=0.0)
        self.name = self._server.name
        self.connection: Wire = self._server.connect()
        try:
            self._prepare(makes=use == "make")
        except psycopg.Error as error:
            self.close()
            raise explain(error, self.name) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, makes: bool) -> None:
        raw = self._raw
        check_server(raw, self.name)
        refuse_newer(raw, self.name)
        if makes:
            migrate(raw, self.name)
        found = version_of(raw)
        if found == 0:
            raise StoreUnavailable(
                f"{self.name} has no tables of sennit", why="nobody has made them, or it is another one"
            )
        if found < LATEST:
            raise SchemaMismatch(
                f"{self.name} has schema {found} and this sennit needs {LATEST}",
                why="an older sennit made it", fix=f"sennit db migrate --db {self.name}",
            )  # fmt: skip
        (store,) = self._one(f"SELECT data FROM {META} WHERE name = 'store'")  # noqa: S608
        self._store = bytes(store).decode()
        self.identity = f"database {self._store}"

    @property
    def _raw(self) -> psycopg.Connection[Any]:
        return self.connection.open()

    def _one(self, sql: str) -> Any:
        return self._raw.execute(sql.encode()).fetchone()

    @cached_property
    def _types(self) -> dict[str, dict[str, str]]:
        """Table → column → its type for COPY."""
        found: dict[str, dict[str, str]] = {}
        for table, column, kind in self._raw.execute(_COLUMNS.encode()):
            found.setdefault(table, {})[column] = _TYPES[kind]
        return found

    def tables(self) -> Tables:
        return {table: list(columns) for table, columns in self._types.items() if table not in (META, FATE)}

    # ------------------------------------------------------------ transactions

    def begin(self, *, alone: bool) -> None:
        self.connection.execute(self._server.begin if alone else self._server.begin_read)
        self._raw.execute("SET LOCAL statement_timeout = 0")
        self._raw.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # the other end takes its time

    def commit(self) -> None:
        self.connection.execute("COMMIT")

    def roll_back(self) -> None:
        self._server.roll_back(self.connection)

    def close(self) -> None:
        self.connection.close()

    # ------------------------------------------------------------ rows

    def rows(self, table: str, columns: Sequence[str]) -> Generator[Row, None, None]:
        place = table
        if table == LEDGER:  # writers count in shards; what counts is the sum
            place = f"(SELECT name, sum(n)::bigint AS n FROM {LEDGER} GROUP BY name) AS summed"  # noqa: S608
        wanted = f"SELECT {', '.join(columns)} FROM {place}"  # noqa: S608 - names of ours
        with self._raw.cursor() as cursor, cursor.copy(f"COPY ({wanted}) TO STDOUT (FORMAT BINARY)".encode()) as copy:
            copy.set_types([self._types[table][column] for column in columns])
            yield from copy.rows()

    def fill(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        into = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
        with self._raw.cursor() as cursor, cursor.copy(into.encode()) as copy:
            copy.set_types([self._types[table][column] for column in columns])
            for row in rows:
                copy.write_row(row)

    def clear(self) -> None:
        self._raw.execute(f"TRUNCATE {', '.join(self.tables())}".encode())

    def meta(self) -> dict[str, int | bytes]:
        found = self._raw.execute(f"SELECT name, value, data FROM {META}".encode())  # noqa: S608
        return {name: value if data is None else bytes(data) for name, value, data in found if not is_local(name)}

    def put_meta(self, facts: Mapping[str, int | bytes]) -> None:
        self._raw.execute(f"DELETE FROM {META} WHERE name = ANY (%s)".encode(), (list(self.meta()),))  # noqa: S608
        for name, fact in facts.items():
            column = "data" if isinstance(fact, bytes) else "value"
            self._raw.execute(f"INSERT INTO {META} (name, {column}) VALUES (%s, %s)".encode(), (name, fact))  # noqa: S608

    def floors(self, tables: Tables) -> dict[str, int]:
        found = {}
        for table, _, sequence in self._raw.execute(_GIVEN.encode()).fetchall():
            last, is_used = self._one(f"SELECT last_value, is_called FROM {sequence}")  # noqa: S608
            if table in tables and is_used:
                found[table] = last
        return found

    def end_filling(self, floors: Mapping[str, int]) -> None:
        for table, column, sequence in self._raw.execute(_GIVEN.encode()).fetchall():
            (highest,) = self._one(f"SELECT coalesce(max({column}), 0) FROM {table}")  # noqa: S608
            floor = max(highest, floors.get(table, 0))
            self._raw.execute("SELECT setval(%s::regclass, greatest(%s, 1), %s > 0)", (sequence, floor, floor))
        self._raw.execute(f"ANALYZE {', '.join(self.tables())}".encode())  # or it plans for empty tables for a while

    # ------------------------------------------------------------ open and shut

    def shut(self, closing: Closing) -> None:
        if closing_of(self.connection) is not None:
            self.open_again()
        self._raw.execute(f"INSERT INTO {META} (name, data) VALUES ('{NAME}', %s)".encode(), (closing.encode(),))  # noqa: S608
        self._raw.execute(_REFUSE.encode())
        said = psycopg.sql.Literal(closing.said()).as_string(self._raw)
        for table in (*self.tables(), META):
            self._raw.execute(
                f"CREATE TRIGGER {_TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION sennit_refuse({said})".encode()
            )

    def open_again(self) -> None:
        for table in (*self.tables(), META):
            self._raw.execute(f"DROP TRIGGER IF EXISTS {_TRIGGER} ON {table}".encode())
        self._raw.execute(f"DELETE FROM {META} WHERE name = '{NAME}'".encode())  # noqa: S608

    def living(self) -> list[WorkerInfo]:
        return living_at(self.connection, live_folder(self._store), self.now_us())

    def now_us(self) -> int:
        now_us: int = self._one("SELECT sennit_now_us()")[0]
        return now_us

    def explain(self, error: BaseException) -> StoreError | None:
        return explain(error, self.name) if isinstance(error, psycopg.Error) else None

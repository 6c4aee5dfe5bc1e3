"""One connection to PostgreSQL, with the face that the moves know (`database.Connection`).

    moves ─► execute(statement) ─► its words for PostgreSQL ─► psycopg

A transaction that writes begins with one round trip that takes the *pen*: an advisory lock that ends with the transaction.
The moves were written for one writer at a time; the pen gives them that, over all machines. Nothing outlives a transaction
(no prepared statement, no session lock, no setting), so a pooler that hands connections on between transactions may stand in
between.

Every such transaction leaves a mark (sql/postgres/migrations/0007_fate.sql). When no answer comes back to a commit, that
says what became of it, and by asking for a mark that is not there it is prevented for good. (`pg_xact_status` will not do: a
server that has crashed gives the same number again to somebody else.)
"""

# ruff: noqa: D102 - what the moves use is said in store/database.py

from __future__ import annotations

import random
import re
import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper, Loader

from sennit.errors import StoreUnavailable
from sennit.store.database import Parameters
from sennit.store.sql import Statement, translated
from sennit.sync.clock import NowUs

# A machine that is gone is noticed after 25 s: while we wait by the probes, while we send by the last (ms).
_TCP: Final = {
    "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "25000",
}  # fmt: skip
_ASK_AGAIN_S: Final = 0.2
_SEND_BEGIN: Final = "SELECT sennit_begin(%s, %s, %s, %s, %s, %s, %s)"
_ASK: Final = "INSERT INTO sennit_fate (writer, number) VALUES (%s, %s) ON CONFLICT DO NOTHING"
_FATE: Final = "SELECT begun_us IS NOT NULL FROM sennit_fate WHERE writer = %s AND number = %s"
_FORGET: Final = "DELETE FROM sennit_fate WHERE writer = %s"
_QUOTED: Final = re.compile(r'".*"', re.DOTALL)  # what libpq does not understand may be the password
_NUMBERED: Final = "%(p1)s"


class _Flag(Dumper):
    """A bool is 0 or 1: the columns are numbers, as in SQLite."""

    oid = psycopg.adapters.types["int8"].oid

    def dump(self, obj: Any) -> bytes:
        return b"1" if obj else b"0"


class _Whole(Loader):
    """A sum of whole numbers is `numeric`, and whole."""

    def load(self, data: Any) -> int:
        return int(bytes(data))


def open_connection(url: str, *, connect_timeout_s: float = 10.0) -> psycopg.Connection[Any]:
    """Open a connection in autocommit: transactions are written out.

    Raises:
        psycopg.Error: it cannot be opened.
    """
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise psycopg.ProgrammingError(_QUOTED.sub('"…"', str(error))) from None
    defaults = {"application_name": "sennit", "connect_timeout": str(max(2, int(connect_timeout_s))), **_TCP}
    settings = {key: value for key, value in defaults.items() if key not in given}
    connection = psycopg.connect(url, autocommit=True, prepare_threshold=None, **settings)  # type: ignore[arg-type]
    adapt(connection)
    return connection


def adapt(context: AdaptContext) -> None:
    """Let flags and sums be numbers."""
    adapters = context.adapters
    assert adapters is not None  # noqa: S101 - a connection has them
    adapters.register_dumper(bool, _Flag)
    adapters.register_loader("numeric", _Whole)


class Undecided(StoreUnavailable):
    """Nobody knows whether a transaction was committed: its answer was lost, and the server cannot be asked."""


class Fetched:
    """What a statement has brought: all of it is here already."""

    __slots__ = ("_at", "_rows", "rowcount")

    def __init__(self, rows: list[Any], rowcount: int) -> None:
        self._rows = rows
        self._at = 0
        self.rowcount = rowcount

    def fetchone(self) -> Any:
        if self._at >= len(self._rows):
            return None
        self._at += 1
        return self._rows[self._at - 1]

    def fetchall(self) -> list[Any]:
        rows, self._at = self._rows[self._at :], len(self._rows)
        return rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())


class Later:
    """What a statement will bring: whoever wants to know waits for it, and with it for all that was sent before."""

    __slots__ = ("_cursor", "_fetched", "_wire")

    def __init__(self, wire: Wire, cursor: psycopg.Cursor[Any]) -> None:
        self._wire = wire
        self._cursor = cursor
        self._fetched: Fetched | None = None

    @property
    def rowcount(self) -> int:
        return self._now().rowcount

    def fetchone(self) -> Any:
        return self._now().fetchone()

    def fetchall(self) -> list[Any]:
        return self._now().fetchall()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())

    def _now(self) -> Fetched:
        if self._fetched is None:
            self._wire.wait_for_answers()
            cursor = self._cursor
            self._fetched = Fetched(cursor.fetchall() if cursor.description else [], cursor.rowcount)
        return self._fetched


class Unplaced(Exception):
    """A statement was refused, and which one nobody knows who had not waited for its answer."""


class Wire:
    """A connection that is opened when it is needed, and again when it was lost.

    Attributes:
        has_committed: the last transaction is durable, whatever the connection did after that.
        now_us: the server's clock, as the present transaction began to write.
        clock: another clock, for tests.
        on_begin: told the server's clock at the beginning of each transaction that writes.
    """

    def __init__(
        self,
        url: str,
        *,
        begin: str = "",
        settings: tuple[str, str, str] = ("0", "0", "on"),
        patience_s: float = 0.0,
        connection: psycopg.Connection[Any] | None = None,
    ) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._url = url
        self._begin = begin
        self._connection = connection
        self._is_borrowed = connection is not None
        self._pipeline: psycopg.Pipeline | None = None
        self._is_lazy = False  # answers are awaited by who wants to know
        self._writer = random.getrandbits(62)  # no secret
        self._n = 0  # transactions begun
        self._is_writing = False  # its mark is there
        self.has_committed = False
        self.now_us = 0
        self.clock: NowUs | None = None
        self.on_begin: Callable[[int], object] = lambda _: None

    # ------------------------------------------------------------ what the moves use

    @property
    def in_transaction(self) -> bool:
        if self._connection is None or self._connection.closed:
            return False
        return self._connection.info.transaction_status != pq.TransactionStatus.IDLE

    def execute(self, sql: str, parameters: Parameters = (), /) -> Fetched | Later:
        if sql == self._begin:
            self._begin_to_write()
            return Fetched([], -1)
        if sql == "COMMIT" and self._is_writing:
            self._commit()
            return Fetched([], -1)
        cursor = self._cursor()
        try:
            cursor.execute(*_in_its_words(sql, parameters))
        except psycopg.Error as error:
            self._say_whose(error)
            raise
        if self._is_lazy:
            return Later(self, cursor)
        self.wait_for_answers()
        return Fetched(cursor.fetchall() if cursor.description else [], cursor.rowcount)

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Fetched | Later:
        rows = list(parameters)
        if not rows:
            return Fetched([], 0)
        if len(rows) == 1:
            return self.execute(sql, rows[0])
        cursor = self._cursor()
        words = [_in_its_words(sql, row) for row in rows]
        try:
            cursor.executemany(words[0][0], [row for _, row in words])
        except psycopg.Error as error:
            self._say_whose(error)
            raise
        if self._is_lazy:
            return Later(self, cursor)
        self.wait_for_answers()
        return Fetched([], cursor.rowcount)

    def close(self) -> None:
        if self._connection is None:
            return
        if self._n:
            with suppress(psycopg.Error):  # then a later process removes the marks
                self._connection.execute(_FORGET, (self._writer,))
        self._connection.close()

    def wait_for_answers(self) -> None:
        """Wait for all that was sent.

        Whoever waits for less leaves the server without a Sync: to it we are not idle in a transaction then, and it would
        not end ours however long we stand still.
        """
        if self._pipeline is None:
            return
        try:
            self._send_all()
            self._pipeline.sync()
        except psycopg.Error as error:
            self._say_whose(error)
            raise

    def _send_all(self) -> None:
        """Send what is still here: psycopg's `sync` sends what fits at once, and waits for the answers to all (3.3.9)."""
        connection = self.open().pgconn
        while connection.flush():
            waiter = select.poll()
            waiter.register(connection.socket, select.POLLIN | select.POLLOUT)
            if any(event & ~select.POLLOUT for _, event in waiter.poll()):
                connection.consume_input()  # the server may wait for us to read before it reads on

    def _say_whose(self, error: psycopg.Error) -> None:
        """Raise Unplaced when a statement was refused that was sent before: an answer may come in while the next is sent."""
        refused = error.sqlstate is not None or isinstance(error, psycopg.errors.PipelineAborted)
        if self._is_lazy and refused and not self.is_lost:
            raise Unplaced from error

    def _cursor(self) -> psycopg.Cursor[Any]:
        """Return a cursor that brings tuples, and knows flags and sums; the connection may be a caller's, and stays as it is."""
        connection = self.open()
        if not self._is_borrowed:
            return connection.cursor()
        cursor = psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row)
        adapt(cursor)
        return cursor

    # ------------------------------------------------------------ the connection

    def open(self) -> psycopg.Connection[Any]:
        """Return the connection.

        Raises:
            psycopg.OperationalError: it was lost in the middle of a transaction, or cannot be opened.
        """
        if self._connection is None:
            self._connection = open_connection(self._url)
        return self._connection

    def drop(self) -> None:
        """Give up a connection that is lost; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def is_lost(self) -> bool:
        """True when there was a connection, and it is broken."""
        return self._connection is not None and (self._connection.closed or self._connection.broken)

    # ------------------------------------------------------------ many statements on their way at once

    @contextmanager
    def open_for_many(self, *, is_lazy: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Open the connection for statements that are answered later: whoever reads an answer waits for it.

        Args:
            is_lazy: so do the moves: what `execute` returns waits when it is looked at. A statement that is refused raises
                `Unplaced` there, or at the end.
        """
        self.has_committed = False  # of this one, also when it does not come to its beginning
        if self.is_lost:
            self.drop()
        connection = self.open()
        with connection.pipeline() as pipeline:
            self._pipeline, self._is_lazy = pipeline, is_lazy
            try:
                yield connection
            except psycopg.Error:
                with suppress(psycopg.Error):  # else psycopg warns of what is on its way
                    pipeline.sync()
                raise
            finally:
                self._pipeline, self._is_lazy = None, False

    def send_begin(self, *, alone: bool = False) -> None:
        """Begin a transaction under the pen, alone or under its shared form."""
        self._number_next()
        connection = self.open()
        connection.execute("BEGIN")
        now_us = None if self.clock is None else self.clock()
        self._begun = connection.execute(_SEND_BEGIN, (*self._settings, now_us, alone, self._writer, self._n))

    def read_begin(self) -> int:
        """Return the time of the transaction."""
        self._has_begun(self._begun.fetchone())
        return self.now_us

    def _number_next(self) -> None:
        self._n += 1
        self._is_writing = self.has_committed = False

    def _has_begun(self, row: tuple[int] | None) -> None:
        if row is None:
            raise AssertionError("its last statement returns a row")
        (self.now_us,) = row
        self._is_writing = True
        self.on_begin(self.now_us)

    # ------------------------------------------------------------ a transaction that writes

    def _begin_to_write(self) -> None:
        if self._pipeline is not None:
            self.send_begin(alone=True)
            self.read_begin()
            return
        if self.is_lost:
            self.drop()
        self._number_next()
        now_us = "NULL" if self.clock is None else self.clock()
        cursor = self.open().execute(self._begin.format(now_us, self._writer, self._n).encode())
        row = None
        while cursor.nextset():
            row = cursor.fetchone() if cursor.description else None
        self._has_begun(row)

    def _commit(self) -> None:
        """Commit; when the connection breaks in that moment, find out what became of it."""
        self._is_writing = False
        try:
            self.open().execute("COMMIT")
            self.wait_for_answers()
        except psycopg.OperationalError as error:
            if not self.is_lost or not self._was_committed(error):
                raise
        self.has_committed = True

    def _was_committed(self, lost: psycopg.Error) -> bool:
        """Ask a new connection for the mark of the transaction; wait while another one of ours may still leave it.

        Raises:
            Undecided: the server does not answer for so long.
        """
        mark = self._writer, self._n
        until_s = time.monotonic() + self._patience_s
        while True:
            self.drop()
            try:
                self.open().execute(_ASK, mark)
                row = self.open().execute(_FATE, mark).fetchone()
            except psycopg.OperationalError as error:
                if time.monotonic() > until_s:
                    raise Undecided(
                        f"the answer to a commit was lost, and nobody can be asked: {' '.join(str(error).split())}",
                        why="the connection broke in that moment, and the server has not come back since",
                        fix="look whether it is there before you do it again: tasks have ids and may have keys",
                    ) from lost
                # sleep: a server that is down tells nobody when it is back
                time.sleep(_ASK_AGAIN_S * random.uniform(0.5, 1.0))
            else:
                return bool(row is not None and row[0])


def _in_its_words(sql: str, parameters: Parameters) -> tuple[Any, Any]:
    text = sql.postgres if isinstance(sql, Statement) else translated(sql)
    if _NUMBERED in text and not isinstance(parameters, dict):
        parameters = {f"p{n}": value for n, value in enumerate(parameters, 1)}
    return text, parameters

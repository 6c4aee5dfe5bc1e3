"""A connection that listens and notifies without ever waiting for the server.

    ask(sql) ─► on its way ─► (readable) hear ─► answered          notices that came ─► hear returns them

psycopg's own calls wait for their answer, and that of a half-dead server never comes: the OS thread that
waits would be deaf to everybody else. So this one speaks libpq: send, look what has come, go on.
Source: postgresql.org/docs/current/libpq-async.html.
"""

from __future__ import annotations

import time
from contextlib import suppress

import psycopg
from psycopg import pq

from sennit.store.postgres_wire import open_connection


class Notices:
    """One connection, used by one OS thread.

    Attributes:
        is_pooled: a pooler stands between us and the server; known when `listen` is answered.

    Args:
        connect_timeout_s: how long opening it may take; 2 s at least.

    Raises:
        psycopg.Error: it cannot be opened.
    """

    def __init__(self, url: str, *, connect_timeout_s: float) -> None:
        self._connection = open_connection(url, connect_timeout_s=connect_timeout_s)
        self._connection.pgconn.nonblocking = 1
        self.is_pooled = False
        self._answer_by_s: float | None = None
        self._must_flush = False

    @property
    def is_asking(self) -> bool:
        """True while an answer is due."""
        return self._answer_by_s is not None

    @property
    def answer_by_s(self) -> float | None:
        """When the answer must be there (monotonic); None when none is due."""
        return self._answer_by_s

    @property
    def must_flush(self) -> bool:
        """True while a part of what was asked waits to be sent."""
        return self._must_flush

    def listen(self, channel: str, *, within_s: float) -> None:
        """Listen, and find out who is there.

        A pooler gives its clients another number than the server's process has that works for them; and in that process, not
        with us, does the listening stay.
        """
        self.ask(f'LISTEN "{channel}"; SELECT pg_backend_pid()', within_s=within_s)

    def fileno(self) -> int:
        """Return the descriptor to sleep on."""
        return self._connection.fileno()

    def ask(self, sql: str, *, within_s: float) -> None:
        """Send statements; their answer is nothing but that they worked."""
        self._connection.pgconn.send_query(sql.encode())
        self._answer_by_s = time.monotonic() + within_s
        self._flush()

    def hear(self) -> list[str]:
        """Return the payloads that have come.

        Raises:
            psycopg.Error: the connection is lost, the server has refused what was asked, or its answer is overdue.
        """
        connection = self._connection.pgconn
        if self._must_flush:
            self._flush()
        connection.consume_input()
        while self.is_asking and not connection.is_busy():
            result = connection.get_result()
            if result is None:
                self._answer_by_s = None
            elif result.status == pq.ExecStatus.TUPLES_OK and result.fname(0) == b"pg_backend_pid":
                told = result.get_value(0, 0)
                self.is_pooled = told is None or int(told) != self._connection.info.backend_pid
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.OperationalError(result.error_message.decode(errors="replace").strip())
        if self._answer_by_s is not None and time.monotonic() >= self._answer_by_s:
            raise psycopg.OperationalError("the server does not answer")
        payloads = []
        while (notice := connection.notifies()) is not None:
            payloads.append(notice.extra.decode())
        return payloads

    def close(self) -> None:
        """Give it up."""
        with suppress(psycopg.Error):
            self._connection.close()

    def _flush(self) -> None:
        self._must_flush = bool(self._connection.pgconn.flush())

"""What is particular about PostgreSQL: how to open it, how to say what is wrong, when to try once more.

`psycopg` raises one class per SQLSTATE; `explain` turns them into the store's own errors, with what, why and fix.
Deadlocks, serialisation failures and lost connections are passing: the transaction is rolled back and run again, the first
two at once, the last as soon as the server answers, for `patience_s`.
"""

from __future__ import annotations

import random
import time
from contextlib import closing, suppress
from typing import Final

import psycopg
from psycopg import errors as pg

from sennit.errors import StoreCorrupt, StoreError, StoreFull, StoreLocked, StoreUnavailable
from sennit.store.database import Connection
from sennit.store.moved import SQLSTATE, said_closed
from sennit.store.postgres_refusals import refused_at_the_door
from sennit.store.postgres_wire import Unplaced, Wire, open_connection
from sennit.store.urls import without_password

_TRIES_MAX: Final = 20
_PAUSE_S: Final = 0.05
_PAUSE_MAX_S: Final = 1.0
# The first half of the lock's name; the second is the schema, by the table's number.
PEN: Final = 0x53_4E_4E_54

# Who holds the pen and waits for its client. One that is idle in a transaction is ended by the server itself; one whose
# client was frozen between two statements that it sent without waiting is not idle to the server (no Sync has come), so
# those who want to write end it. `COPY` of a moving house takes its time.
_STANDING: Final = f"""
SELECT a.pid, a.state_change::text FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.classid = {PEN} AND l.objid = 'sennit_task'::regclass::oid AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND a.application_name = 'sennit' AND a.state = 'active' AND a.wait_event = 'ClientRead' AND a.query NOT LIKE 'COPY %%'
   AND a.state_change < clock_timestamp() - make_interval(secs => %s)
"""  # noqa: S608 - our own number
_END: Final = "SELECT pg_terminate_backend(%s)"
_LOOK_AGAIN_S: Final = 0.5

_PASSING = (pg.DeadlockDetected, pg.SerializationFailure)
_NOT_NOW = (
    pg.TooManyConnections, pg.CannotConnectNow, pg.AdminShutdown, pg.CrashShutdown, pg.IdleInTransactionSessionTimeout,
)  # fmt: skip


class PostgresServer:
    """One database of a server, as `database.Backend`.

    Args:
        lock_timeout_s: how long to wait for the pen.
        patience_s: how long to go on trying while the server cannot be reached.
        frozen_s: a process that stands still for so long inside a transaction loses it, so that others can write.
    """

    begin_read = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

    def __init__(
        self, url: str, *, durability: str = "full", lock_timeout_s: float = 30.0, patience_s: float = 30.0,
        frozen_s: float = 5.0,
    ) -> None:  # fmt: skip
        self.url = url
        self.name = without_password(url)
        self._patience_s = patience_s
        self._frozen_s = frozen_s
        self._lock_timeout_s = lock_timeout_s
        self._locked_since_s = 0.0
        self._settings = (
            str(int(min(lock_timeout_s, frozen_s or lock_timeout_s) * 1000)),
            str(int(frozen_s * 1000)),
            "on" if durability == "full" else "off",
        )
        lock_ms, frozen_ms, sync = self._settings
        # The wire fills in the time, unless it is the server's, and the mark.
        self.begin = f"BEGIN; SELECT sennit_begin('{lock_ms}', '{frozen_ms}', '{sync}', {{}}, 1, {{}}, {{}})"

    def connect(self, *, read_only: bool = False) -> Wire:
        """Open one more connection.

        Raises:
            StoreError: it cannot be opened.
        """
        begin = "" if read_only else self.begin
        wire = Wire(self.url, begin=begin, settings=self._settings, patience_s=self._patience_s)
        try:
            wire.open()
        except psycopg.Error as error:
            raise explain(error, self.name) from error
        return wire

    def closed(self) -> StoreUnavailable:
        """Return the error of a call that came after `close`."""
        return StoreUnavailable(f"the store {self.name} is closed", fix="use it inside `with app`, or open a new App")

    def explain(self, error: BaseException) -> BaseException:
        """Return the store's own error for one of psycopg; any other as it is."""
        return explain(error, self.name) if isinstance(error, psycopg.Error) else error

    def is_passing(self, error: BaseException) -> bool:
        """True for deadlocks, serialisation failures, and a server that is not to be reached now."""
        return isinstance(error, (*_PASSING, *_NOT_NOW, pg.LockNotAvailable, Unplaced)) or _is_lost(error)

    def roll_back(self, connection: Connection) -> None:
        """End a transaction that failed, if it is still open."""
        if connection.in_transaction:
            with suppress(psycopg.Error):  # what failed before is the news; a lost connection has rolled back
                connection.execute("ROLLBACK")

    def may_try_again(self, connection: Connection, error: BaseException, tries: int) -> bool:
        """True when the transaction is to be run again; waits until the server answers, for `patience_s` at most."""
        if not self.is_passing(error):
            return False
        if isinstance(error, _PASSING):
            return tries < _TRIES_MAX
        if isinstance(error, pg.LockNotAvailable):
            return self._frees_the_pen()
        return isinstance(connection, Wire) and self._comes_back(connection)

    def _frees_the_pen(self) -> bool:
        """End transactions whose clients stand still with the pen in their hand; False when we have waited long enough."""
        now_s = time.monotonic()
        if now_s - self._locked_since_s > self._lock_timeout_s + self._frozen_s:  # of an earlier time
            self._locked_since_s = now_s - self._frozen_s
        if now_s - self._locked_since_s >= self._lock_timeout_s:
            return False
        with suppress(psycopg.Error), closing(open_connection(self.url)) as connection:  # else at the next try
            standing = set(connection.execute(_STANDING, (self._frozen_s,)).fetchall())
            if standing:
                # sleep: who only had a long statement behind it goes on at once, and is not ended
                time.sleep(_LOOK_AGAIN_S)
                standing &= set(connection.execute(_STANDING, (self._frozen_s,)).fetchall())
            for pid, _ in standing:
                connection.execute(_END, (pid,))
        return True

    def _comes_back(self, wire: Wire) -> bool:
        until_s = time.monotonic() + self._patience_s
        pause_s = _PAUSE_S
        while True:
            wire.drop()
            try:
                wire.open()
            except psycopg.OperationalError:
                if time.monotonic() + pause_s > until_s:
                    return False
            else:
                return True
            # sleep: a server that is down tells nobody when it is back; jitter keeps a fleet from coming all at once
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def _is_lost(error: BaseException) -> bool:
    """True when the server could not be reached, or the connection broke: such an error has no SQLSTATE."""
    return isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate.startswith("08"))


def explain(error: BaseException, name: str) -> StoreError:
    """Return the store error for what psycopg raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, psycopg.Error) and error.sqlstate == SQLSTATE:
        return said_closed(error.diag.message_primary or "", name) or StoreError(text)
    if isinstance(error, pg.DiskFull):
        return StoreFull(
            f"cannot write to {name}: {text}",
            why="the server's disk is full; the transaction was rolled back",
            fix="free space on the server; what was not acknowledged can be submitted again",
        )
    if isinstance(error, (pg.DataCorrupted, pg.IndexCorrupted)):
        return StoreCorrupt(
            f"{name} is damaged: {text}",
            why="the server found pages that cannot be right",
            fix="restore a backup; then look for the cause (disk, memory, fsync off)",
        )
    if isinstance(error, (pg.LockNotAvailable, pg.QueryCanceled)):
        return StoreLocked(
            f"cannot write to {name}: {text}",
            why="another transaction has kept the pen for longer than lock_timeout_s",
            fix="look for it: SELECT * FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'",
        )
    if isinstance(error, pg.TooManyConnections):
        return StoreUnavailable(
            f"{name} takes no more connections: {text}",
            why="each process needs three (writing, reading, listening)",
            fix="raise max_connections, or put a transaction pooler in front of the server",
        )
    if isinstance(error, (pg.ReadOnlySqlTransaction, pg.InsufficientPrivilege)):
        return StoreUnavailable(
            f"cannot write to {name}: {text}",
            why="this is a standby, or the user may not write",
            fix="point the URL at the primary (target_session_attrs=read-write), or grant the rights",
        )
    if isinstance(error, psycopg.OperationalError):
        if (refused := refused_at_the_door(text, name)) is not None:
            return refused
        return StoreUnavailable(
            f"cannot reach {name}: {text}",
            why="the server is down, restarting, or not to be reached from here",
            fix="check that it runs and that the URL is right: sennit db info --db URL",
        )
    return StoreError(f"PostgreSQL refused an operation on {name}: {text}")

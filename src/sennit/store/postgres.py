"""The PostgreSQL store: one database, any number of processes on any number of machines.

    open ─► schema brought up to date ─► `RowStore`, which does the rest

The moves are those of the SQLite store; `postgres_wire` gives them the pen, `postgres_ears` the news of other machines.
Times are the server's: a machine whose clock is wrong holds no lease longer and fires no timer sooner.
"""

# ruff: noqa: D102 - the promises stand in store/protocol.py, once

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from sennit.errors import StoreUnavailable, UsageError
from sennit.model.admission import Bounds
from sennit.model.task import LogLine, TaskSpec
from sennit.store.database import Connection
from sennit.store.desk import Desk
from sennit.store.effects import Effects
from sennit.store.ids import reserve
from sennit.store.moved import refuse_closed
from sennit.store.moves import time, turn
from sennit.store.moves.submit import submit
from sennit.store.operations import Beside
from sennit.store.postgres_desk import PostgresDesk
from sennit.store.postgres_ears import ANSWER_S, PROBE_S, PostgresEars
from sennit.store.postgres_follow import NEWS, Follower, followers
from sennit.store.postgres_hot import HotWriter
from sennit.store.postgres_migrate import migrate
from sennit.store.postgres_server import PEN, PostgresServer, explain
from sennit.store.postgres_unfit import refuse_unfit
from sennit.store.postgres_wire import Wire
from sennit.store.row_store import RowStore
from sennit.store.writer import Writer
from sennit.sync.ack import Ack
from sennit.sync.clock import NowUs, uptime_us

_STORE = "SELECT data FROM sennit_meta WHERE name = 'store'"
_LOG = "INSERT INTO sennit_log (task_id, attempt, at_us, level, text) VALUES (?, ?, ?, ?, ?)"
_SAME = "SELECT data, sennit_now_us() FROM sennit_meta WHERE name = 'store'"
# Of processes that did not end in order; who still wants to know of one after so long has been frozen for it.
_OLD_MARKS = f"DELETE FROM sennit_fate WHERE begun_us < sennit_now_us() - {7 * 86_400_000_000}"  # noqa: S608


class ServerClock:
    """The server's clock, carried on by this machine's uptime between two looks."""

    def __init__(self) -> None:
        self._offset_us = 0

    def __call__(self) -> int:
        return uptime_us() + self._offset_us

    def set(self, now_us: int) -> None:
        """The server says so now."""
        self._offset_us = now_us - uptime_us()


class PostgresStore(RowStore):
    """`sennit.store.protocol.Store` on PostgreSQL; its promises are the docstrings there.

    Args:
        url: `postgresql://user@host:port/database`, and whatever else libpq understands.
        durability: `full` or `normal` (synchronous_commit off: a crash of the server loses the last moments).
        patience_s: how long calls wait for a server that is not to be reached.
        frozen_s: a process that stands still for so long inside a transaction loses it, so that others can write.
        bounds: what this process enforces in the store; None is what the worker enforces that joined last.
        now_us: another clock, for tests.
        sockets: False to ring processes of this host through the server too, for tests.
        listen_url: a direct connection to the server, when `url` leads to a pooler.
        probe_s: how often it is tried out whether notifications arrive.
        answer_s: how long the server may take for the answer to that.

    Raises:
        StoreUnavailable, SchemaMismatch: it cannot be opened; each says what to do.
    """

    spans_hosts = True

    def __init__(
        self,
        url: str,
        *,
        durability: str = "full",
        lock_timeout_s: float = 30.0,
        patience_s: float = 30.0,
        frozen_s: float = 5.0,
        batch_max: int = 512,
        bounds: Bounds | None = None,
        now_us: NowUs | None = None,
        sockets: bool = True,
        listen_url: str = "",
        probe_s: float = PROBE_S,
        answer_s: float = ANSWER_S,
        hand_over: bool = True,
    ) -> None:
        self.url = url
        self._new_ears = partial(
            PostgresEars, sockets=sockets, listen_url=listen_url, probe_s=probe_s, answer_s=answer_s
        )
        self._clock = ServerClock()
        self._server = server = PostgresServer(
            url, durability=durability, lock_timeout_s=lock_timeout_s, patience_s=patience_s, frozen_s=frozen_s
        )
        self._wire = server.connect()
        self._wire.clock = now_us
        self._wire.on_begin = self._clock.set
        try:
            self.identity = self._prepare(server)
            live = live_folder(self.identity)
            super().__init__(
                self._wire,
                server,
                live=live,
                ears=(ears := self._new_ears(server, live)),
                pen=nullcontext(),
                bounds=bounds,
                now_us=now_us or self._clock,
                batch_max=batch_max,
                hand_over=hand_over,
            )
        except BaseException:
            self._wire.close()
            raise
        ears.tell(self._say_listening)

    def _say_listening(self, listening: bool) -> None:  # noqa: FBT001 - called with what it is now
        self.put(Beside(lambda connection, _: self._desk.members.listens(connection, listening=listening)))

    def make_desk(self) -> Desk:
        return PostgresDesk(self)

    def make_writer(self, connection: Connection, pen: AbstractContextManager[Any], batch_max: int) -> Writer[Effects]:
        del connection
        assert isinstance(self._desk, PostgresDesk)  # noqa: S101 - it was made above
        return HotWriter(self._wire, self._server, self._desk, pen=pen, batch_max=batch_max)

    def _prepare(self, server: PostgresServer) -> str:
        connection = self._wire.open()
        try:
            migrate(connection, server.name)
            refuse_closed(self._wire, server.name)
            row = connection.execute(_SAME).fetchone()
            connection.execute(_OLD_MARKS)
        except psycopg.Error as error:
            raise explain(error, server.name) from error
        if row is None:
            raise StoreUnavailable(f"{server.name} has tables of sennit without a name", fix="restore a backup")
        self._clock.set(row[1])
        return bytes(row[0]).decode()

    def transaction_us(self) -> int:
        return self._wire.now_us

    def close(self) -> None:
        super().close()
        self.ears.close()

    # ------------------------------------------------------------ following

    def log(self, lines: Sequence[LogLine]) -> Ack[None]:
        rows = [(line.task_id, line.attempt, line.at_us, line.level, _kept(line.text)) for line in lines]
        addresses: list[str] = []

        def operation(connection: Connection, _: Effects) -> None:
            connection.executemany(_LOG, rows)
            addresses[:] = followers(connection)

        def ring(written: Ack[None]) -> None:
            if written.succeeded and addresses:
                self.ears.ring(addresses, NEWS)

        ack = self._writer.put(Beside(operation))
        ack.add_done_callback(ring)
        return ack

    def tell_commits(self, on_commit: Callable[[], object]) -> None:
        """Have `on_commit` called after each commit of this process, on the writer's OS thread; it must not block."""
        assert isinstance(self._desk, PostgresDesk)  # noqa: S101 - it was made here
        self._desk.on_commit = on_commit

    def follow(self) -> Follower:
        """Return who wakes when somebody has logged, or said how an agent is."""
        return Follower(self, self._new_ears(self._server, self.live))

    # ------------------------------------------------------------ handing in

    def submit_in(self, connection: psycopg.Connection[Any], specs: Sequence[TaskSpec]) -> list[int]:
        """Store `specs` in the caller's own transaction on this database: they exist when it commits.

        It holds the pen until then: other writers wait.

        Raises:
            UsageError: the connection is of another database, asynchronous, or in no READ COMMITTED transaction.
        """
        refuse_unfit(connection)
        theirs = _identity_of(connection)
        if theirs is None or theirs[0] != self.identity:
            raise UsageError(
                "this connection is open on another database than the store",
                why="one transaction cannot span two databases",
                fix="connect to the database of the store, and keep your tables there",
            )
        wire = Wire(self.url, connection=connection)
        try:
            wire.execute("SELECT pg_advisory_xact_lock(?, 'sennit_task'::regclass::oid::int)", (PEN,))
            (wire.now_us,) = wire.execute("SELECT sennit_now_us()").fetchone()
            effects = self._desk.effects_at(wire.now_us)
            for spec, task_id in zip(specs, reserve(wire, len(specs)), strict=True):
                spec.ref.id = task_id
            ids = submit(wire, effects, specs)
            if effects.room:
                turn.admit(wire, effects)
            self._desk.count(wire, effects.counts)
            time.post_stops(wire, effects.stops)
        except psycopg.Error as error:
            raise explain(error, self._server.name) from error
        # The writer cannot begin before the caller's transaction has ended: this look comes right after it.
        self._writer.put(lambda c, later: self._desk.announce(c, later, effects))
        return ids


def _kept(text: str) -> str:
    """Return a text as the server can keep it: NUL, and halves of surrogate pairs, are made visible."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="backslashreplace").decode()


def _identity_of(connection: psycopg.Connection[Any]) -> tuple[str, int] | None:
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("SELECT to_regclass('sennit_meta') IS NOT NULL")
        there = cursor.fetchone()
        if there is None or not there[0]:
            return None
        row = cursor.execute(_SAME).fetchone()
    return None if row is None else (bytes(row[0]).decode(), row[1])


def live_folder(identity: str) -> Path:
    """Return the folder in which processes of this host and user find each other."""
    base = Path(tempfile.gettempdir()) / f"sennit-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise StoreUnavailable(f"{base} belongs to another user", fix="remove it, or set TMPDIR to a folder of yours")
    return base / identity

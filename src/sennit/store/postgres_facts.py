"""What there is to know of a PostgreSQL database beside its tasks: sizes, rows, who is connected, who holds the pen.

Of sessions only ours are looked at: those of this database whose `application_name` begins with `sennit`. A user that may not see
the sessions of others (pg_read_all_stats) sees that they are there, and not what they do.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import psycopg

from sennit.store.database import Connection
from sennit.store.postgres_server import PEN, explain
from sennit.store.postgres_wire import open_connection
from sennit.store.urls import without_password
from sennit.sync.clock import monotonic_s

# Above so many rows the planner's estimate is good enough, and counting takes seconds.
COUNTED_MAX: Final = 1_000_000

_SERVER: Final = """
SELECT current_setting('server_version'), pg_database_size(current_database()), current_setting('max_connections')::int,
       current_setting('fsync'), current_setting('synchronous_commit'), current_setting('server_encoding'),
       pg_is_in_recovery(), current_setting('data_checksums'), current_setting('full_page_writes'), current_user,
       coalesce(current_schema(), ''), coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
"""
_TABLES: Final = """
SELECT c.relname, c.reltuples::bigint, pg_total_relation_size(c.oid)
  FROM pg_class AS c
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND starts_with(c.relname, 'sennit_') ORDER BY c.relname
"""
_SESSIONS: Final = """
SELECT coalesce(state, 'hidden'), count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND starts_with(application_name, 'sennit') AND pid <> pg_backend_pid()
 GROUP BY 1 ORDER BY 1
"""
_ALL_SESSIONS: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
_PEN: Final = """
SELECT l.pid, l.mode, l.granted, coalesce(host(a.client_addr), 'local'),
       (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000000)::bigint
  FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.classid = ? AND l.objid = 'sennit_task'::regclass
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
 ORDER BY NOT l.granted, a.xact_start
"""
_OLDEST: Final = """
SELECT (extract(epoch FROM clock_timestamp() - min(xact_start)) * 1000000)::bigint FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
"""


def server_facts(connection: Connection) -> dict[str, Any]:
    """Return version, size in bytes, and what decides whether a commit lasts."""
    row = connection.execute(_SERVER).fetchone()
    version, n_bytes, connections_max, fsync, commit, encoding, standby, checksums, pages, user, schema, makes = row
    return {
        "server_version": version,
        "bytes": n_bytes,
        "fsync": fsync,
        "synchronous_commit": commit,
        "full_page_writes": pages,
        "encoding": encoding,
        "is_standby": bool(standby),
        "data_checksums": checksums,
        "user": user,
        "schema": schema,
        "may_create": bool(makes),
        "connections_max": connections_max,
        "connections_all": connection.execute(_ALL_SESSIONS).fetchone()[0],
    }


def sessions_of(connection: Connection) -> dict[str, int]:
    """Return state → how many connections of ours have it, without this one."""
    return dict(connection.execute(_SESSIONS).fetchall())


def pen_of(connection: Connection) -> list[dict[str, Any]]:
    """Return who holds the pen, or waits for it; those that hold it first."""
    rows = connection.execute(_PEN, (PEN,)).fetchall()
    return [
        {
            "pid": pid,
            "host": host,
            "how": "alone" if mode == "ExclusiveLock" else "shared",
            "holds": bool(granted),
            "since_s": round((age_us or 0) / 1e6, 3),
        }
        for pid, mode, granted, host, age_us in rows
    ]


def oldest_snapshot_s(connection: Connection) -> float | None:
    """Return for how long the oldest transaction of this database has kept a snapshot: vacuum cannot clean behind it."""
    (age_us,) = connection.execute(_OLDEST).fetchone()
    return None if age_us is None else round(age_us / 1e6, 3)


def rows_of(connection: Connection) -> dict[str, int]:
    """Return table → rows; of very large ones the planner's estimate."""
    found = {}
    for name, estimate, _ in connection.execute(_TABLES).fetchall():
        if estimate <= COUNTED_MAX:
            estimate = connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608, PLW2901
        found[name] = estimate
    return found


_INDEXES: Final = """
SELECT c.relname, i.relname FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid
 WHERE c.relnamespace = current_schema()::regnamespace AND starts_with(c.relname, 'sennit_')
   AND NOT (x.indisvalid AND x.indisready) ORDER BY 1, 2
"""
_CHECKERS: Final = "SELECT to_regproc('bt_index_check') IS NOT NULL"
_CHECK: Final = """
SELECT i.relname, bt_index_check(x.indexrelid, true)
  FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid
 WHERE c.relnamespace = current_schema()::regnamespace AND starts_with(c.relname, 'sennit_') AND x.indisvalid
"""


def unsound(connection: Connection) -> tuple[list[str], list[str]]:
    """Read every row and look at every index; return what is broken, and what was not looked at.

    Raises:
        StoreError: a page cannot be read; through the reader that asks.
    """
    broken = [f"index {index} of {table} is not valid" for table, index in connection.execute(_INDEXES).fetchall()]
    skipped = []
    for name, _, _ in connection.execute(_TABLES).fetchall():
        connection.execute(f"SELECT sum(hashtext(t::text)::bigint) FROM {name} AS t").fetchone()  # noqa: S608
    if connection.execute(_CHECKERS).fetchone()[0]:
        connection.execute(_CHECK).fetchall()
    else:
        skipped.append("indexes against their tables: CREATE EXTENSION amcheck")
    return broken, skipped


def hears_itself(url: str, *, patience_s: float = 3.0) -> float | None:
    """Return after how many seconds a connection hears its own notification; None when it does not.

    Raises:
        StoreError: it cannot be opened.
    """
    channel = f"sennit_doctor_{secrets.token_hex(8)}"
    try:
        with open_connection(url) as listening:
            listening.execute(f"LISTEN {channel}".encode())
            row = listening.execute("SELECT pg_backend_pid()").fetchone()
            if row is None or row[0] != listening.info.backend_pid:
                return None  # a pooler: the session that listens is not ours to keep
            since_s = monotonic_s()
            listening.execute("SELECT pg_notify(%s, '')", (channel,))
            for _ in listening.notifies(timeout=patience_s, stop_after=1):
                return monotonic_s() - since_s
    except psycopg.Error as error:
        raise explain(error, without_password(url)) from error
    return None

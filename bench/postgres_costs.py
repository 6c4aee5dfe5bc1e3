"""What PostgreSQL itself costs: notifications, connections, hot rows, turns, heartbeats, history; and a task of sennit.

    python bench/postgres_costs.py postgresql://…/scratch [--rounds 3]      a minute each; makes and drops tables `bench_…` there

The page docs/explanation/very-large-fleets.md quotes these figures. They say where a fleet on one primary stops growing.
Read ratios: writers, listeners and the server share the machine this runs on.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, LiteralString

import psycopg
from report import drawn, shown

from sennit import App

Connection = psycopg.Connection[tuple[Any, ...]]

SECONDS: Final = 2.0
WRITERS: Final = 16
LISTENERS: Final = (0, 10, 100, 300)
BELL_S: Final = 0.005  # a coalescing bell rings at most so often
HISTORY_ROWS: Final = 200_000
PAYLOAD_BYTES: Final = 500
TASKS: Final = 3_000
SCHEMA: Final = "bench_sennit"
SIZES: Final[LiteralString] = (
    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'bench_sennit' AND c.relkind = 'r'"
)

INSERT: Final = "INSERT INTO bench_row (id, payload) VALUES (%s, %s)"
NOTIFY: Final = "SELECT pg_notify('bench', 'x')"


def connect(url: str) -> Connection:
    """Open a connection that commits each statement."""
    return psycopg.connect(url, autocommit=True)


def value(connection: Connection, sql: LiteralString) -> Any:
    """Return the one value of a query."""
    row = connection.execute(sql).fetchone()
    assert row is not None
    return row[0]


def per_second(url: str, work: Callable[[Connection, int], None], writers: int = WRITERS) -> float:
    """Let `writers` connections do `work(connection, number of the writer)` for a while; return how often a second."""
    stop, begin = threading.Event(), threading.Barrier(writers + 1)
    counts = [0] * writers

    def writer(number: int) -> None:
        with connect(url) as connection:
            begin.wait()
            while not stop.is_set():
                work(connection, number)
                counts[number] += 1

    os_threads = [threading.Thread(target=writer, args=(number,)) for number in range(writers)]
    for one in os_threads:
        one.start()
    begin.wait()
    before_s = time.perf_counter()
    time.sleep(SECONDS)  # sleep: the time that is measured
    stop.set()
    for one in os_threads:
        one.join()
    return sum(counts) / (time.perf_counter() - before_s)


# ---------------------------------------------------------------- notifications


@contextmanager
def listening(url: str, listeners: int) -> Iterator[list[int]]:
    """Keep so many connections that LISTEN and read what comes; yield the pids of their server processes."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in range(listeners)]
        reader = selectors.DefaultSelector()
        stack.callback(reader.close)
        for connection in connections:
            connection.execute("LISTEN bench")
            reader.register(connection.fileno(), selectors.EVENT_READ, connection)
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                for key, _ in reader.select(0.1):
                    key.data.pgconn.consume_input()
                    while key.data.pgconn.notifies():
                        pass

        os_thread = threading.Thread(target=read)
        os_thread.start()
        try:
            yield [connection.info.backend_pid for connection in connections]
        finally:
            stop.set()
            os_thread.join()


def notifications(url: str) -> list[dict[str, float]]:
    """Return commits per second of 16 writers: alone, each with its NOTIFY, and beside one bell that rings for all."""
    ids, payload = count(), os.urandom(PAYLOAD_BYTES)

    def insert(connection: Connection, _: int) -> None:
        connection.execute(INSERT, (next(ids), payload))

    def insert_and_notify(connection: Connection, number: int) -> None:
        with connection.transaction():
            insert(connection, number)
            connection.execute(NOTIFY)

    rows = []
    for listeners in LISTENERS:
        with listening(url, listeners):
            row = {"listeners": listeners, "alone_per_s": per_second(url, insert)}
            row["each_notifies_per_s"] = per_second(url, insert_and_notify)
            stop = threading.Event()

            def bell(stop: threading.Event = stop) -> None:
                with connect(url) as connection:
                    connection.execute("SET synchronous_commit = off")
                    while not stop.wait(BELL_S):
                        connection.execute(NOTIFY)

            os_thread = threading.Thread(target=bell)
            os_thread.start()
            row["one_bell_per_s"] = per_second(url, insert)
            stop.set()
            os_thread.join()
            rows.append(row)
    return rows


# ---------------------------------------------------------------- connections, hot rows, heartbeats


def pss_bytes(pids: Sequence[int]) -> float:
    """Return the memory that is these processes' own, and their share of what they have in common."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        total += 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))
    return float(total)


def connections(url: str) -> dict[str, float]:
    """Return the memory of an idle connection that listens; 0 when the server's processes cannot be looked at."""
    with listening(url, 100) as pids:
        try:
            return {"listening_connection_kb": pss_bytes(pids) / len(pids) / 1024}
        except OSError:
            return {"listening_connection_kb": 0.0}


def hot_rows(url: str) -> dict[str, float]:
    """Return updates per second of 16 connections: of one row, of a row each, of a row each under one advisory lock."""
    update: LiteralString = "UPDATE bench_hot SET n = n + 1 WHERE id = %s"
    heartbeat: LiteralString = (
        "UPDATE bench_hot SET n = (extract(epoch FROM clock_timestamp()) * 1e6)::bigint WHERE id = %s"
    )
    turn: LiteralString = "SELECT pg_advisory_xact_lock(4711)"

    def in_turn(connection: Connection, number: int) -> None:
        with connection.transaction():
            connection.execute(turn)
            connection.execute(update, (number,))

    return {
        "one_row_per_s": per_second(url, lambda connection, _: ignored(connection, update, 0)),
        "own_rows_per_s": per_second(url, lambda connection, number: ignored(connection, update, number)),
        "in_turn_per_s": per_second(url, in_turn),
        "heartbeats_one_connection_per_s": per_second(
            url, lambda connection, number: ignored(connection, heartbeat, number), writers=1
        ),
    }


def ignored(connection: Connection, sql: LiteralString, *values: object) -> None:
    """Execute and return nothing."""
    connection.execute(sql, values)


# ---------------------------------------------------------------- history


def history(url: str) -> dict[str, float]:
    """Return what it takes to be rid of a day of history: row by row, and as a partition."""
    with connect(url) as connection:

        def costing(name: str, *statements: LiteralString) -> dict[str, float]:
            connection.execute("CHECKPOINT")
            lsn, before_s = value(connection, "SELECT pg_current_wal_insert_lsn()"), time.perf_counter()
            for statement in statements:
                connection.execute(statement)
            took_s = time.perf_counter() - before_s
            row = connection.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (lsn,)).fetchone()
            assert row is not None
            return {f"{name}_ms": 1000 * took_s, f"{name}_wal_mb": float(row[0]) / 1e6}

        for name in ("bench_history_1", "bench_history_2"):
            connection.execute(
                f"INSERT INTO {name} SELECT {name[-1]}, i, repeat(md5(i::text), {PAYLOAD_BYTES // 32})::bytea "
                f"FROM generate_series(1, {HISTORY_ROWS}) AS i"
            )
        connection.execute("ANALYZE bench_history")
        return {
            "rows": HISTORY_ROWS,
            **costing("delete", "DELETE FROM bench_history WHERE day = 1", "VACUUM bench_history_1"),
            **costing("detach", "ALTER TABLE bench_history DETACH PARTITION bench_history_2"),
            **costing("drop", "DROP TABLE bench_history_2"),
        }


# ---------------------------------------------------------------- tasks of sennit


def tasks(url: str) -> dict[str, float]:
    """Return the WAL and the rows that tasks leave behind: many at once, which share commits, and one after the other."""
    figures: dict[str, float] = {}
    for name, n, at_once in (("together", TASKS, True), ("alone", TASKS // 10, False)):
        with connect(url) as connection, scratch_schema(connection):
            separator = "&" if "?" in url else "?"
            app = App(f"{url}{separator}options=-csearch_path%3D{SCHEMA}")

            @app.task(name="echo")
            async def echo(payload: str) -> str:
                return payload

            payloads = [os.urandom(PAYLOAD_BYTES // 2).hex() for _ in range(n)]
            with app:
                connection.execute("CHECKPOINT")
                first_touches = value(connection, SIZES)
                lsn = value(connection, "SELECT pg_current_wal_insert_lsn()")
                if at_once:
                    echo.map(payloads).result()
                else:
                    for payload in payloads:
                        echo.submit(payload).result()
                row = connection.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (lsn,)).fetchone()
            assert row is not None
            connection.execute("VACUUM FULL")
            figures[f"{name}_wal_bytes_per_task"] = float(row[0]) / n
            figures[f"{name}_kept_bytes_per_task"] = float(value(connection, SIZES) - first_touches) / n
    return figures


@contextmanager
def scratch_schema(connection: Connection) -> Iterator[None]:
    """Have a schema for a store, and drop it with all that is in it."""
    connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    connection.execute(f"CREATE SCHEMA {SCHEMA}")
    try:
        yield
    finally:
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


TABLES: Final[tuple[LiteralString, ...]] = (
    "CREATE TABLE bench_row (id bigint PRIMARY KEY, payload bytea)",
    "CREATE TABLE bench_hot (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)",
    "INSERT INTO bench_hot SELECT i, 0 FROM generate_series(0, 63) AS i",
    "CREATE TABLE bench_history (day int, id bigint, payload bytea, PRIMARY KEY (day, id)) PARTITION BY LIST (day)",
    "CREATE TABLE bench_history_1 PARTITION OF bench_history FOR VALUES IN (1)",
    "CREATE TABLE bench_history_2 PARTITION OF bench_history FOR VALUES IN (2)",
)


def drop(url: str) -> None:
    """Drop what was made."""
    with connect(url) as connection:
        for name in ("bench_row", "bench_hot", "bench_history", "bench_history_2"):
            connection.execute(f"DROP TABLE IF EXISTS {name}")


def measured(url: str) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return one round: the rows about notifications, and the other figures."""
    drop(url)
    with connect(url) as connection:
        for statement in TABLES:
            connection.execute(statement)
    try:
        return notifications(url), {**connections(url), **hot_rows(url), **history(url), **tasks(url)}
    finally:
        drop(url)


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a database of its own on the server that is looked at")
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the tables")
    options = parser.parse_args()
    with connect(options.url) as connection:
        version = value(connection, "SHOW server_version")
    rounds = [measured(options.url) for _ in range(options.rounds)]
    notified = [medians(rows) for rows in zip(*(rows for rows, _ in rounds), strict=True)]
    figures = medians([figures for _, figures in rounds])
    if options.json:
        print(json.dumps({"version": version, "notifications": notified, **figures}))
        return
    print(f"PostgreSQL {version}, {WRITERS} writers, medians of {options.rounds} round(s)\n")
    rows = [
        ["other connections that LISTEN", "commits/s, no NOTIFY", "each commit with its NOTIFY", "one bell for all"]
    ]
    for row in notified:
        alone = row["alone_per_s"]
        relative = [f"× {row[name] / alone:.2f}" for name in ("each_notifies_per_s", "one_bell_per_s")]
        rows.append([f"{row['listeners']:.0f}", shown(round(alone)), *relative])
    print(drawn(rows), end="\n\n")
    print(drawn([["figure", "measured"], *([name, shown(figure)] for name, figure in figures.items())]))


if __name__ == "__main__":
    main()

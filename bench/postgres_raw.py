"""The ceiling: PostgreSQL by psycopg, with narrow tables, and nothing in between. Each figure runs for SECONDS.

    submit    COPY into `task` and `ready`
    claim     delete from `ready` … skip locked, insert into `running`, 100 rows per commit
    finish    delete from `running`, update `task` with the result

With pgbench beside the server, claims are also measured without Python, by one and by four connections.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import harness
import limits
import psycopg
from harness import Figures, Side
from postgres_cases import URL, count

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Case

SECONDS: Final = 1.0
BATCH: Final = 100
COPY_ROWS: Final = 20_000
LATENCY_CALLS: Final = 500
PGBENCH: Final = Path(os.environ.get("BENCH_POSTGRES_PROGRAMS", ""), "pgbench")
PGBENCH_S: Final = 2
PGBENCH_ROWS: Final = 300_000  # more than it can claim meanwhile

SCHEMA: Final = """
drop table if exists task, ready, running;
create table task (
  id bigint primary key, handler text not null, payload bytea not null, state smallint not null default 0,
  created_us bigint not null, done_us bigint, result bytea
) with (fillfactor = 70);
create table ready (queue text not null, order_us bigint not null, id bigint not null, primary key (queue, order_us, id));
create table running (id bigint primary key, worker_id bigint not null, started_us bigint not null);
"""
FILL: Final = """
insert into task select i, 'noop', '[1]', 0, i from generate_series({first}, {last}) i;
insert into ready select 'default', i, i from generate_series({first}, {last}) i;
"""
# The lock is taken in a materialized step: without it the planner may run the subquery again, and claim too much.
CLAIM: Final = """
with picked as materialized (
  select queue, order_us, id from ready where queue = 'default' order by order_us, id limit {batch}
  for update skip locked
), taken as (
  delete from ready r using picked p where r.queue = p.queue and r.order_us = p.order_us and r.id = p.id returning r.id
)
insert into running select id, 1, 1 from taken returning id
"""
FINISH: Final = """
with gone as (delete from running where id = any(%s) returning id)
update task t set state = 1, done_us = 1, result = '1' from gone where t.id = gone.id
"""


def _filled(rows: int) -> psycopg.Connection:
    connection = psycopg.connect(URL, autocommit=True)
    connection.execute(SCHEMA)
    connection.execute(FILL.format(first=1, last=rows).encode())
    connection.execute("analyze")
    return connection


def _claim(connection: psycopg.Connection, n: int = BATCH) -> list[int]:
    return [row[0] for row in connection.execute(CLAIM.format(batch=n).encode(), prepare=True).fetchall()]


def _rate(rows_of: Callable[[], int]) -> float:
    """Call for SECONDS, or until there are no more rows; return the rows a second."""
    rows = moved = 0
    began_s = time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < SECONDS:
        moved = rows_of()
        rows += moved
        if not moved:
            break
    return rows / took_s


def _claim_and_finish(connection: psycopg.Connection) -> int:
    ids = _claim(connection)
    if ids:
        connection.execute(FINISH, (ids,), prepare=True)
    return len(ids)


def _copy(connection: psycopg.Connection, first: int, n: int) -> int:
    rows = range(first, first + n)
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy("copy task (id, handler, payload, created_us) from stdin") as copy:
            for i in rows:
                copy.write_row((i, "noop", b"[1]", i))
        with cursor.copy("copy ready from stdin") as copy:
            for i in rows:
                copy.write_row(("default", i, i))
    return n


def _spread(name: str, call: Callable[[], object]) -> Figures:
    took_ns = []
    for _ in range(LATENCY_CALLS):
        before_ns = time.perf_counter_ns()
        call()
        took_ns.append(time.perf_counter_ns() - before_ns)
    return harness.spread_ms(name, took_ns)


def pgbench_claims(connections: int) -> float:
    """Return the rows claimed a second, without Python."""
    script = harness.RUN_DIR / "claim.sql"
    script.write_text(" ".join(CLAIM.format(batch=BATCH).split()) + ";\n")
    argv = [str(PGBENCH), "-n", "-M", "prepared", "-f", str(script), "-T", str(PGBENCH_S), "-d", URL]
    argv += ["-c", str(connections), "-j", str(min(connections, 2))]
    with _filled(PGBENCH_ROWS) as look:
        subprocess.run(argv, check=True, capture_output=True)
        return (PGBENCH_ROWS - count(look, "select count(*) from ready")) / PGBENCH_S


def pg_limits(_: Case) -> Figures:
    with _filled(60_000) as connection:
        figures = _spread("select_1", lambda: connection.execute("select 1", prepare=True))
        connection.execute("create sequence one")
        one_row = "insert into running values (-nextval('one'), 1, 1)"
        figures |= _spread("commit", lambda: connection.execute(one_row, prepare=True))
        figures["claim_one_per_s"] = _rate(lambda: len(_claim(connection, 1)))
        figures[f"claim_batch{BATCH}_per_s"] = _rate(lambda: len(_claim(connection)))
    if PGBENCH.is_file():
        for connections in (1, 4):
            figures[f"claim_batch{BATCH}_pgbench_{connections}_per_s"] = pgbench_claims(connections)
    return figures


def drain(_: Case, *, connections: int) -> Figures:
    """Claim and finish in batches, on connections of their own."""
    with _filled(60_000 * connections):
        rates: list[float] = []

        def work() -> None:
            with psycopg.connect(URL, autocommit=True) as connection:
                rates.append(_rate(lambda: _claim_and_finish(connection)))

        os_threads = [threading.Thread(target=work) for _ in range(connections)]
        for os_thread in os_threads:
            os_thread.start()
        for os_thread in os_threads:
            os_thread.join()
    return {"tasks_per_s": sum(rates)}


def bulk(_: Case) -> Figures:
    with _filled(1) as connection:
        first = [10]

        def copied() -> int:
            first[0] += COPY_ROWS
            return _copy(connection, first[0], COPY_ROWS)

        return {"tasks_per_s": _rate(copied)}


def chain(_: Case) -> Figures:
    """Finish one task and claim the next in one commit, two statements."""
    with _filled(10_000) as connection:
        held = _claim(connection, 1)

        def hop() -> None:
            nonlocal held
            with connection.transaction(), connection.pipeline():
                connection.execute(FINISH, (held,), prepare=True)
                claimed = connection.execute(CLAIM.format(batch=1).encode(), prepare=True)
            held = [row[0] for row in claimed.fetchall()]

        return _spread("hop", hop)


def latency(_: Case) -> Figures:
    """Measure one commit and its notification on the way to another connection: less no queue can do with NOTIFY."""
    with psycopg.connect(URL, autocommit=True) as sender, psycopg.connect(URL, autocommit=True) as hearer:
        sender.execute("create table sent (id bigint)")
        hearer.execute("listen bell")

        def ring() -> None:
            sender.execute("insert into sent values (1)", prepare=True)
            sender.execute("notify bell")
            next(hearer.notifies(stop_after=1))

        return _spread("start", ring)


SIDE: Final[Side] = {
    "fsync": limits.fsync,
    "pg_limits": pg_limits,
    "pg_drain": lambda case: drain(case, connections=1),
    "pg_drain_two": lambda case: drain(case, connections=2),
    "pg_bulk": bulk,
    "pg_latency": latency,
    "pg_chain": chain,
}

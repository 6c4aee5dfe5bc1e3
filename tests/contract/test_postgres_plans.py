"""The functions of PostgreSQL's hot path stay on their indexes, whatever the statistics say: their plans, as executed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from sennit.store.postgres import PostgresStore
from sennit.store.postgres_wire import adapt
from sennit.store.sql import statements

WAITING = 20_000
HOT = ("sennit_task", "sennit_ready", "sennit_running", "sennit_waiting", "sennit_edge", "sennit_turn", "sennit_permit")


class Plans:
    """Runs statements and keeps the plans of everything that ran inside them."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        adapt(self.connection)
        try:
            self.connection.execute("LOAD 'auto_explain'")
        except psycopg.errors.UndefinedFile:
            pytest.skip("this PostgreSQL has no auto_explain (package postgresql-contrib)")
        self.connection.execute(
            "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
            "SET client_min_messages = log"
        )
        self.told: list[str] = []
        self.connection.add_notice_handler(lambda notice: self.told.append(notice.message_primary or ""))

    def of(self, sql: str) -> str:
        # What `sennit_begin` sets, without the pen.
        self.connection.execute("BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL sennit.now_us = '1'")
        self.told.clear()
        self.connection.execute(sql.encode())
        self.connection.execute("ROLLBACK")
        return "\n".join(self.told)


@pytest.fixture
def plans(postgres_url: str) -> Iterator[Plans]:
    PostgresStore(postgres_url).close()
    plans = Plans(postgres_url)
    # As many wait as have ended, some run; the statistics are those of empty tables.
    plans.connection.execute(
        f"""
        INSERT INTO sennit_task (id, handler, queue, priority, parents, on_parent_failed, payload, crashes_max, delay_us,
                                 created_us, state, done_us)
        SELECT i, 'work', 'q', 2, 0, 'fail', '', 3, 0, i, CASE WHEN i <= {WAITING} THEN 0 ELSE 1 END,
               CASE WHEN i > {WAITING} THEN i END FROM generate_series(1, {2 * WAITING}) AS i;
        INSERT INTO sennit_ready (queue, order_us, id, attempt, failures, crashes)
        SELECT 'q', i, i, 0, 0, 0 FROM generate_series(1, {WAITING} - 100) AS i;
        INSERT INTO sennit_running (id, attempt, failures, crashes, worker_id, queue, order_us, started_us)
        SELECT i, 1, 0, 0, 7, 'q', i, i FROM generate_series({WAITING} - 99, {WAITING}) AS i;
        INSERT INTO sennit_edge (parent, child, pos) SELECT i, i + 1, 0 FROM generate_series(1, {WAITING}) AS i;
        INSERT INTO sennit_worker (id, expire_us, lease_us, pid, host, bell, info) VALUES (7, 9e15, 1000, 1, 'h', 'b', '');
        """.encode()
    )
    yield plans
    plans.connection.close()


IDS = f"ARRAY[{WAITING}, {WAITING - 1}]::bigint[]"


@pytest.mark.parametrize(
    ("sql", "uses"),
    [
        ("SELECT * FROM sennit_claim(7, 'q', 10)", "sennit_ready_pkey"),
        ("SELECT * FROM sennit_claim(7, 'q', 10, 32)", "sennit_running_ahead"),
        (f"SELECT * FROM sennit_finish({IDS}, '{{1,1}}', ARRAY['','']::bytea[], 1, 1)", "sennit_running_pkey"),
        (f"SELECT * FROM sennit_save_steps({IDS}, '{{1,1}}', '{{a,b}}', ARRAY['','']::bytea[])", "sennit_running_pkey"),
        (
            f"SELECT * FROM sennit_note_agents({IDS}, '{{1,1}}', '{{done,idle}}', '{{0,1}}', ARRAY['','']::bytea[])",
            "sennit_running_pkey",
        ),
        (f"SELECT sennit_must_hold({IDS}, '{{1,1}}')", "sennit_running_pkey"),
        (f"SELECT sennit_hold_tasks({IDS}, {IDS})", "sennit_task_pkey"),
        (f"SELECT sennit_hold_threads({IDS}, '{{t}}')", "sennit_task_pkey"),
    ],
)
def test_a_hot_function_goes_by_its_index(plans: Plans, sql: str, uses: str) -> None:
    told = plans.of(sql)

    assert uses in told, told
    assert [line for line in told.splitlines() if any(f"Seq Scan on {table}" in line for table in HOT)] == []


def test_a_submit_with_parents_in_a_thread_goes_by_indexes(plans: Plans) -> None:
    new, n = 3 * WAITING, "ARRAY[{}]".format
    columns = [
        f"{n(new)}::bigint[]", "'{work}'", "'{q}'", "'{2}'", "'{t}'", "'{NULL}'", "'{NULL}'", "'{fail}'",
        "ARRAY['']::bytea[]", "'{NULL}'", "'{3}'", "'{0}'", "'{0}'", "'{0}'", "'{\"\"}'", "'{\"\"}'", "'{1}'",
        f"{n(WAITING)}::bigint[]", f"{n(new)}::bigint[]", "'{0}'", "1",
    ]  # fmt: skip

    told = plans.of(f"SELECT * FROM sennit_submit({', '.join(columns)})")

    assert "sennit_task_pkey" in told, told
    assert [line for line in told.splitlines() if any(f"Seq Scan on {table}" in line for table in HOT)] == []


LOOKS = [
    ("agent", 1, ("sennit_agent_pkey", "sennit_task_pkey")),
    ("agent", 2, ("sennit_agent_open", "sennit_task_pkey")),
    ("agent", 3, ("sennit_agent_pkey", "sennit_task_pkey")),
    ("prune", 0, ("sennit_task_done", "sennit_task_pkey", "sennit_agent_pkey")),
]


def test_a_reader_too_finds_agents_and_their_tasks_by_index_whatever_the_statistics_say(plans: Plans) -> None:
    connection = plans.connection
    values = {"before_id": 2**62, "n": 100, "ended": 1, "before_us": 2**62}
    agents = """INSERT INTO sennit_agent (task_id, attempt, status, is_kept, info)
                SELECT id, 1, CASE WHEN id % 100 = 0 THEN 'working' ELSE 'done' END, id % 7 / 6, '' FROM sennit_task"""

    for step in (f"ANALYZE sennit_agent; {agents}", "ANALYZE"):
        connection.execute(step.encode())
        for operation, n, uses in LOOKS:
            parameters = (b"[1, 2, 3]",) if (operation, n) == ("agent", 3) else values
            found = connection.execute(f"EXPLAIN {statements(operation)[n].postgres}".encode(), parameters).fetchall()
            plan = "\n".join(line for (line,) in found)

            assert [index for index in uses if index not in plan] == [], (step, plan)
            assert "Seq Scan on sennit_task" not in plan, (step, plan)

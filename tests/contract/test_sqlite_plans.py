"""How SQLite runs what runs often: by the index each SQL file names, never through a whole table.

A plan depends on what ANALYZE last saw, so each is looked at with all statistics a database may have: none, those of an
empty file (a planner that believes a table empty may think any way through it good), and those of 50,000 ready tasks.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from sennit.model.lifecycle import State
from sennit.store.migrate import migrate
from sennit.store.sql import statements
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop

READY: Final = 50_000


class Guard(NamedTuple):
    """The n-th statement of an operation, and what its plan must say."""

    operation: str
    n: int
    plan: tuple[str, ...]

    @property
    def sql(self) -> str:
        return statements(self.operation)[self.n]


BY_ID = "INTEGER PRIMARY KEY (rowid=?)"
RANGE = "SEARCH sennit_ready USING PRIMARY KEY (queue=? AND provider=? AND route=? AND (order_us,id)<(?,?))"
LANES = "SEARCH sennit_ready USING PRIMARY KEY (queue=? AND provider>?)"
ROUTES = "SEARCH sennit_ready USING PRIMARY KEY (queue=? AND provider=? AND route>?)"
RANGE_BEFORE = "USING PRIMARY KEY (queue=? AND provider=? AND route=? AND order_us<?)"
AHEAD = "sennit_running_ahead"
LANE = "USING PRIMARY KEY (queue=? AND provider=? AND route=?)"
GUARDS: Final = (
    Guard("claim", 0, (f"SEARCH r {LANE}", f"SEARCH t USING {BY_ID}", LANES, ROUTES)),
    Guard("claim", 1, (RANGE,)),
    Guard("claim", 2, (RANGE,)),
    Guard("claim", 3, ("INDEX sennit_edge_child (child=?)", f"SEARCH p USING {BY_ID}")),
    Guard("claim", 4, ("SEARCH sennit_step USING PRIMARY KEY (task_id=?)",)),
    Guard("claim", 5, (f"SEARCH sennit_worker USING {BY_ID}", LANES, ROUTES, f"INDEX {AHEAD} (queue=?)")),
    Guard("ahead", 0, (f"INDEX {AHEAD} (queue=? AND worker_id=?)", LANES, ROUTES, RANGE_BEFORE)),
    Guard("ahead", 1, (f"SEARCH sennit_running USING {BY_ID}", f"INDEX {AHEAD} (queue=? AND worker_id=?)")),
    Guard("ahead", 2, (f"SEARCH r USING {BY_ID}", f"SEARCH t USING {BY_ID}")),
    Guard("ahead", 3, (f"INDEX {AHEAD} (queue=?)",)),
    Guard("ahead", 4, (f"SEARCH sennit_running USING {BY_ID}", f"INDEX {AHEAD} (queue=? AND worker_id=?)")),
    Guard("ahead", 5, (f"INDEX {AHEAD} (queue=? AND worker_id=?)",)),
    Guard("ahead", 6, (f"INDEX {AHEAD} (queue=? AND worker_id=?)", f"SEARCH t USING {BY_ID}")),
    Guard("lane", 0, (LANES, ROUTES)),
    Guard("lane", 1, (f"SEARCH sennit_ready {LANE}",)),
    Guard(
        "lane",
        2,
        (f"SEARCH r {LANE}", f"SEARCH t USING {BY_ID}", "sennit_budget USING PRIMARY KEY (scope=? AND key=?)"),
    ),
    Guard("lane", 3, ("SEARCH r USING INDEX sennit_ready_id (id=?)", f"SEARCH t USING {BY_ID}")),
    Guard("lane", 4, ("SEARCH r USING INDEX sennit_ready_id (id=?)",)),
    Guard("lane", 5, ("INDEX sennit_ready_id (id=?)",)),
    Guard("lane", 6, ("COVERING INDEX sennit_ready_provider ((provider,queue)>(?,?))",)),
    Guard("lane", 10, ("INDEX sennit_ready_provider (provider=?)",)),
    Guard("permit", 3, ("INDEX sennit_permit_line ((provider,model)>(?,?))",)),
    Guard("permit", 4, ("INDEX sennit_permit_line (provider=? AND model=?)",)),
    Guard("permit", 8, ("INDEX sennit_permit_worker (worker_id=?)",)),
    Guard("over", 0, (f"SEARCH sennit_permit USING {BY_ID}",)),
    Guard("over", 1, ("INDEX sennit_permit_task (task_id=?)",)),
    Guard("over", 2, ("INDEX sennit_permit_worker (worker_id=?)",)),
    Guard("provider", 3, ("INDEX sennit_permit_out (provider=?)",)),
    Guard(
        "provider",
        4,
        (
            "INDEX sennit_permit_line (provider=?)",
            "INDEX sennit_ready_provider (provider=?)",
            "INDEX sennit_ready_provider (provider>? AND provider<?)",
        ),
    ),
    Guard("budget", 3, ("SEARCH sennit_budget USING PRIMARY KEY (scope=? AND key=?)",)),
    Guard(
        "wait", 3, (f"SEARCH t USING {BY_ID}", "INDEX sennit_edge_child (child=?)", "sennit_attempt USING PRIMARY KEY")
    ),
    Guard("limit", 0, ("INDEX sennit_deadline_id (id=?)",)),
    Guard("limit", 1, ("INDEX sennit_deadline_id (id=?)",)),
    Guard("finish", 0, (f"SEARCH r USING {BY_ID}", f"SEARCH sennit_task USING {BY_ID}")),
    Guard("finish", 1, (f"SEARCH sennit_running USING {BY_ID}",)),
    Guard("release", 0, ("SEARCH e USING PRIMARY KEY (parent=?)",)),
    Guard(
        "release", 5, ("SEARCH e USING PRIMARY KEY (parent=?)", f"SEARCH w USING {BY_ID}", f"SEARCH t USING {BY_ID}")
    ),
    Guard("revive", 1, (f"SEARCH sennit_waiting USING {BY_ID}", "SEARCH sennit_edge USING PRIMARY KEY (parent=?)")),
    Guard("pull", 1, ("INDEX sennit_ready_id (id=?)",)),
    Guard("pull", 3, ("INDEX sennit_timer_id (id=?)",)),
    Guard("fire", 0, ("SEARCH m USING PRIMARY KEY (due_us<?)", f"SEARCH t USING {BY_ID}")),
    Guard("fire", 1, ("SEARCH sennit_timer USING PRIMARY KEY (due_us=? AND id=?)",)),
    Guard("fire", 2, ("SEARCH sennit_deadline USING PRIMARY KEY (due_us<?)",)),
    Guard("fire", 6, ("SEARCH sennit_timer USING PRIMARY KEY", "SEARCH sennit_deadline USING PRIMARY KEY")),
    Guard("look", 3, ("SEARCH sennit_log USING INDEX sennit_log_task (task_id=? AND seq>?)",)),
    Guard("look", 6, (f"SEARCH sennit_task USING {BY_ID}",)),
    Guard("look", 7, ("INDEX sennit_task_done (done_us>?)",)),
    Guard("look", 8, ("SEARCH t USING INDEX sennit_task_route (route>?)", "SEARCH q USING")),
    Guard("worker", 12, (f"SEARCH sennit_worker USING {BY_ID}",)),
    Guard("turn", 0, ("SEARCH sennit_turn USING PRIMARY KEY (thread_id=?)",)),
    Guard("turn", 2, ("SEARCH sennit_turn USING PRIMARY KEY (thread_id=?)",)),
    Guard("turn", 3, ("INDEX sennit_turn_id (id=?)",)),
    Guard("turn", 8, ("INDEX sennit_turn_id (id=?)",)),
    Guard("turn", 10, ("INDEX sennit_turn_gate (gate_us>?)", f"SEARCH w USING {BY_ID}", "INDEX sennit_turn_active")),
    Guard("state", 1, ("INDEX sennit_state_version (thread_id=? AND name=?)",)),
    Guard("state", 3, ("INDEX sennit_state_operation (thread_id=? AND name=? AND operation_id=?)",)),
    Guard("state", 4, ("INDEX sennit_state_version (thread_id=? AND name=? AND version=?)",)),
    Guard("ask", 1, ("INDEX sennit_ask_key (task_id=? AND key=?)",)),
    Guard("ask", 7, ("INDEX sennit_ask_expiry (expires_us>? AND expires_us<?)",)),
    Guard("ask", 9, ("INDEX sennit_ask_event (name=? AND event_key=?)",)),
    Guard("ask", 11, ("INDEX sennit_signal_event (name=? AND event_key=?)",)),
    Guard("ask", 14, ("INDEX sennit_ask_open (kind=? AND id>?)", f"SEARCH t USING {BY_ID}")),
    Guard("ask", 15, ("SEARCH a USING INTEGER PRIMARY KEY (rowid>?)", f"SEARCH t USING {BY_ID}")),
    Guard("ask", 16, ("SEARCH a USING INTEGER PRIMARY KEY (rowid>?)", f"SEARCH t USING {BY_ID}")),
    Guard("void", 0, ("INDEX sennit_ask_key (task_id=?)",)),
    Guard("entry", 1, (f"SEARCH r {LANE}", f"SEARCH t USING {BY_ID}")),
    Guard("entry", 16, (RANGE,)),
    Guard("entry", 3, ("SEARCH c USING PRIMARY KEY (handler=? AND key=?)", f"SEARCH t USING {BY_ID}")),
    Guard("entry", 5, ("INDEX sennit_cache_tag_key (handler=? AND key=?)",)),
    Guard(
        "agent",
        1,
        ("SEARCH a USING INTEGER PRIMARY KEY (rowid<?)", f"SEARCH t USING {BY_ID}", f"SEARCH r USING {BY_ID}"),
    ),
    Guard("agent", 2, ("SEARCH a USING INDEX sennit_agent_open (task_id<?)", f"SEARCH t USING {BY_ID}")),
    Guard("agent", 3, (f"SEARCH a USING {BY_ID}", f"SEARCH t USING {BY_ID}", f"SEARCH r USING {BY_ID}")),
    Guard("agent", 5, (f"SEARCH sennit_agent USING {BY_ID}",)),
    Guard(
        "prune",
        0,
        ("INDEX sennit_task_done (done_us<?)", "SEARCH e USING PRIMARY KEY (parent=?)", f"SEARCH a USING {BY_ID}"),
    ),
    Guard("prune", 1, ("INDEX sennit_edge_child (child=?)",)),
    Guard("prune", 4, ("SEARCH sennit_log USING INDEX sennit_log_task (task_id=?)",)),
)


def fill(connection: sqlite3.Connection) -> None:
    """Store 50,000 ready tasks, in an order that is not that of their ids, and 50,000 that have ended."""
    connection.executescript(
        f"""
        WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {2 * READY})
        INSERT INTO sennit_task (id, handler, queue, priority, parents, on_parent_failed, payload, crashes_max, delay_us,
                                 created_us, state, done_us, result)
        SELECT id, 'work', 'q', 2, 0, 'fail', x'7b7d', 3, 0, id, id > {READY},
               CASE WHEN id > {READY} THEN id END, CASE WHEN id > {READY} THEN x'31' END FROM n;
        INSERT INTO sennit_ready SELECT 'q', '', '', id * 7919 % 50021, id, 0, 0, 0, NULL FROM sennit_task WHERE state = 0;
        UPDATE sennit_ledger SET n = CASE name WHEN 'submitted' THEN {2 * READY} WHEN 'succeeded' THEN {READY} ELSE n END;
        UPDATE sennit_meta SET value = {2 * READY + 1} WHERE name = 'next_id';
        """
    )


def fill_around(connection: sqlite3.Connection) -> None:
    """Store as much of what belongs to tasks; only plans are made of it, so it need not make sense."""
    connection.executescript(
        """
        INSERT INTO sennit_edge SELECT id, id / 4, id % 4 FROM sennit_task WHERE state = 1;
        INSERT INTO sennit_timer SELECT id, id, 0, 0, 0, 'delay' FROM sennit_task WHERE id % 10 = 0;
        INSERT INTO sennit_deadline SELECT id, id, 'deadline' FROM sennit_task WHERE id % 10 = 0;
        INSERT INTO sennit_turn (thread_id, seq, id, queue, held, active, gate_us)
          SELECT id % 1000, id, id, 'q', id < 1000, id < 20, CASE WHEN id BETWEEN 20 AND 99 THEN id END
            FROM sennit_task WHERE state = 0;
        INSERT INTO sennit_state (thread_id, name, version, data, at_us, operation_id)
          SELECT id % 1000, 'state', id, '{}', id, CASE WHEN id % 2 THEN id END FROM sennit_task;
        INSERT INTO sennit_ask (task_id, key, kind, name, event_key, spec, assignee, state, created_us, expires_us)
          SELECT id, 'k', CASE WHEN id % 2 THEN 'ask' ELSE 'event' END, id % 10, id, '{}', '',
                 CASE WHEN id % 10 THEN 'answered' ELSE 'open' END, id, id FROM sennit_task;
        INSERT INTO sennit_signal (name, event_key, payload, at_us) SELECT id % 10, id, '1', id FROM sennit_task;
        INSERT INTO sennit_cache SELECT 'h', id, id FROM sennit_task;
        INSERT INTO sennit_cache_tag SELECT id % 10, 'h', id FROM sennit_task;
        INSERT INTO sennit_permit (id, provider, model, worker_id, task_id, priority, tokens, since_us, granted_us)
          SELECT id, 'p' || id % 3, '', id % 7, CASE WHEN id % 2 THEN id END, id % 4, 0, id, CASE WHEN id % 5 THEN id END
            FROM sennit_task WHERE id <= 1000;
        INSERT INTO sennit_budget (scope, key, tokens_max, cost_nano_max, on_exceeded)
          SELECT 'task', id, 10, 0, 'fail' FROM sennit_task WHERE id % 10 = 0;
        INSERT INTO sennit_agent SELECT id, 1, CASE WHEN id % 100 THEN 'done' ELSE 'working' END, id % 7 = 0, '{}' FROM sennit_task;
        INSERT INTO sennit_attempt SELECT id, 1, 'failed', 1, id, id, NULL FROM sennit_task;
        INSERT INTO sennit_log (task_id, attempt, at_us, level, text) SELECT id % 100, 1, id, 'info', '' FROM sennit_task;
        """
    )


@pytest.fixture(scope="module", params=["never analysed", "analysed while empty", "analysed when full"])
def database(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, Path("memory"))
        if request.param == "analysed while empty":
            # ANALYZE writes nothing about an empty table; one row each is what makes it believe that they are small.
            connection.execute("INSERT INTO sennit_ready VALUES ('other', '', '', 1, 1, 0, 0, 0, NULL)")
            connection.execute("INSERT INTO sennit_edge VALUES (1, 1, 1)")
            connection.execute("INSERT INTO sennit_timer VALUES (1, 1, 0, 0, 0, '')")
            connection.execute(
                "INSERT INTO sennit_permit (id, provider, model, worker_id, priority, tokens, since_us) "
                "VALUES (1, 'p', '', 1, 1, 1, 1)"
            )
            connection.execute("INSERT INTO sennit_agent VALUES (1, 1, 'done', 0, '')")
            connection.execute("ANALYZE")
            connection.execute("DELETE FROM sennit_agent")
            connection.execute("DELETE FROM sennit_ready")
            connection.execute("DELETE FROM sennit_edge")
            connection.execute("DELETE FROM sennit_timer")
            connection.execute("DELETE FROM sennit_permit")
        fill(connection)
        fill_around(connection)
        if request.param == "analysed when full":
            connection.execute("ANALYZE")
        yield connection


def plan_of(connection: sqlite3.Connection, sql: str) -> list[str]:
    """Return the lines of EXPLAIN QUERY PLAN; what the parameters are makes no difference to it."""
    names = re.findall(r":(\w+)", sql)
    numbers = [int(number) for number in re.findall(r"\?(\d)", sql)]
    values = dict.fromkeys(names, 1) or [1] * (max(numbers) if numbers else sql.count("?"))
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.operation}-{guard.n}")
def test_it_uses_its_index_and_reads_no_table_through(database: sqlite3.Connection, guard: Guard) -> None:
    plan = plan_of(database, guard.sql)

    for line in guard.plan:
        assert any(line in step for step in plan), plan
    # The list of ids that comes in as JSON is read from end to end, of course.
    harmless = ("VIRTUAL TABLE", "CONSTANT ROW", "SCAN near", "SCAN far")  # a list of ids, and subqueries of one row
    assert [step for step in plan if step.startswith("SCAN") and not any(of in step for of in harmless)] == []
    assert [step for step in plan if "TEMP B-TREE" in step] == []


@pytest.mark.parametrize(("operation", "n"), [("claim", 0), ("claim", 5), ("lane", 0)])
def test_a_look_at_the_lanes_does_not_go_through_all_plain_tasks(
    database: sqlite3.Connection, operation: str, n: int
) -> None:
    """A plan may name the index and still read every row that is equal: the work counts."""
    worked = 0

    def count() -> int:
        nonlocal worked
        worked += 1
        return 0

    parameters = {"queue": "q", "worker_id": 1, "n": 1} if operation == "claim" else ("q", "", "")
    database.set_progress_handler(count, 100)
    database.execute(statements(operation)[n], parameters).fetchall()
    database.set_progress_handler(None, 0)

    assert worked < 10, f"it took {100 * worked} instructions with {READY} ready tasks"


def test_one_task_is_found_by_its_id(database: sqlite3.Connection) -> None:
    plan = plan_of(database, statements("look")[0])

    assert plan[0] == "SEARCH t USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"


def test_a_batch_of_50000_ready_tasks_is_claimed_in_order_and_the_rest_is_left(tmp_path: Path) -> None:
    """`DELETE … RETURNING` of an ordered subquery gives the right rows in no order; a batch of one would not show it."""
    path = tmp_path / "tasks.db"
    with closing(SqliteStore(path, durability="normal")):
        pass
    with closing(sqlite3.connect(path)) as connection:
        fill(connection)
        in_order = [i for (i,) in connection.execute("SELECT id FROM sennit_ready ORDER BY order_us, id LIMIT 1000")]
        assert in_order != sorted(in_order)

    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        rig = Rig(store, loop)
        claimed = [task.id for n in (1, 99, 900) for task in rig.claim(n)]

        assert claimed == in_order
        assert got(store.counts()) == {"q": {State.READY: READY - 1000, State.RUNNING: 1000}}
        rig.check()

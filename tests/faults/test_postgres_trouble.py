"""A server in trouble: what passes is tried again, what does not says what, why and what to do, and work goes on after it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress

import psycopg
import pytest

from sennit.errors import SchemaMismatch, StoreUnavailable
from sennit.model.task import Succeeded
from sennit.store.postgres import PostgresStore
from sennit.store.postgres_migrate import LATEST, migrate
from sennit.store.sql import migrations
from sennit.testing.contract_tools import Rig, got, running_loop
from sennit.testing.servers import PostgresServer
from tests.contract.test_sqlite_full_disk import can_mount
from tests.crash.fleet import ROOT, client, fleet, values
from tests.crash.nursery import Nursery
from tests.faults.tools import check_history, until

Start = Callable[..., PostgresServer]


@pytest.fixture
def rig(postgres_url: str) -> Iterator[Rig]:
    with closing(PostgresStore(postgres_url)) as store, running_loop() as loop:
        yield Rig(store, loop)


@pytest.fixture
def beside(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A connection of somebody else."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def raising(beside: psycopg.Connection) -> Iterator[Callable[[str, int], None]]:
    """Lets the next transactions that store a task fail with an error of the server."""

    def arm(sqlstate: str, times: int) -> None:
        # A sequence is not rolled back.
        beside.execute("DROP SEQUENCE IF EXISTS test_trouble; CREATE SEQUENCE test_trouble")
        beside.execute(
            "CREATE OR REPLACE FUNCTION test_trouble() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN"
            f" IF nextval('test_trouble') <= {times} THEN RAISE EXCEPTION 'trouble' USING ERRCODE = '{sqlstate}'; END IF;"
            " RETURN NULL; END $f$".encode()
        )
        beside.execute("CREATE TRIGGER test_trouble AFTER INSERT ON sennit_task EXECUTE FUNCTION test_trouble()")

    yield arm
    beside.execute("DROP TRIGGER IF EXISTS test_trouble ON sennit_task")


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
def test_a_deadlock_or_a_serialisation_failure_is_tried_again(
    rig: Rig, raising: Callable[[str, int], None], sqlstate: str
) -> None:
    raising(sqlstate, 3)

    task_id = rig.put()

    assert [view.id for view in got(rig.store.tasks())] == [task_id]
    assert got(rig.store.ledger()).submitted == 1
    rig.check()


def test_a_real_deadlock_with_somebody_elses_transaction_ends_both_well(rig: Rig, beside: psycopg.Connection) -> None:
    """They hold the second task and want the first, we the other way round: the server ends ours, we begin again."""
    first, second = sorted([rig.start(), rig.start()], key=lambda task: task.id)
    lock = "SELECT 1 FROM sennit_task WHERE id = %s FOR UPDATE"
    with (
        suppress(psycopg.errors.DeadlockDetected),
        beside.transaction(),
    ):  # on a busy machine it may be theirs that ends
        beside.execute("SET LOCAL deadlock_timeout = '10s'")
        beside.execute(lock, (second.id,))
        ack = rig.store.finish([Succeeded(first.claim, b"1"), Succeeded(second.claim, b"2")])
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
        until(lambda: beside.execute(waits).fetchone(), "our transaction waits for theirs")
        beside.execute(lock, (first.id,))

    assert got(ack) == [True, True]
    rig.check()


def test_a_server_without_a_free_connection_says_so_and_is_waited_for(start_postgres: Start) -> None:
    server = start_postgres(connections_max=12)
    url = server.create_database("crowd")
    with ExitStack() as stack, closing(PostgresStore(url)) as store, running_loop() as loop:
        rig = Rig(store, loop)
        rig.put()
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(url))

        with pytest.raises(StoreUnavailable, match="too many clients") as refused:
            PostgresStore(url)
        assert "max_connections" in refused.value.fix

        stack.close()
        assert len(got(store.tasks())) == 1
        rig.check()


def test_a_store_that_lost_its_connection_waits_until_there_is_a_free_one(start_postgres: Start) -> None:
    server = start_postgres(connections_max=12)
    url = server.create_database("crowd")
    with ExitStack() as stack, closing(PostgresStore(url)) as store, running_loop() as loop:
        rig = Rig(store, loop)
        rig.put()
        first = stack.enter_context(psycopg.connect(url, autocommit=True))
        others = "pid <> pg_backend_pid() AND backend_type = 'client backend' AND state_change IS NOT NULL"
        first.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}".encode())
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(url))
        ack = store.submit([rig.spec()])
        stack.close()

        assert got(ack)
        assert len(got(store.tasks())) == 2
        rig.check()


def test_a_server_that_became_read_only_says_so_and_works_again_after_it(start_postgres: Start) -> None:
    server = start_postgres()
    url = server.create_database("standby")
    with closing(PostgresStore(url)) as store, running_loop() as loop:
        rig = Rig(store, loop)
        rig.put()

        server.query("ALTER DATABASE standby SET default_transaction_read_only = on")
        server.restart()
        with pytest.raises(StoreUnavailable, match="cannot write") as refused:
            rig.put()
        assert "standby" in refused.value.why
        with pytest.raises(StoreUnavailable, match="cannot write"):
            PostgresStore(url)
        assert len(got(store.tasks())) == 1

        server.query("ALTER DATABASE standby SET default_transaction_read_only = off")
        server.restart()
        rig.put()
        rig.check()


def test_a_server_that_is_stopped_and_started_is_waited_for(start_postgres: Start) -> None:
    server = start_postgres()
    url = server.create_database("fleet")
    with fleet(url) as workers:
        workers.start_ready(1)
        at = client(url)
        assert values([at.leaf.submit(1)]) == [23]
        server.stop()
        with ThreadPoolExecutor(1) as pool:
            handed_in = pool.submit(at.leaf.map, range(3))  # waits for the server, too
            server.start()

            assert values(handed_in.result()) == [3, 23, 43]
        check_history(at.app, workers)
        at.app.close()


def test_a_server_that_stays_away_is_named_in_the_error(start_postgres: Start) -> None:
    server = start_postgres()
    with closing(PostgresStore(server.create_database("away"), patience_s=0.2)) as store, running_loop() as loop:
        rig = Rig(store, loop)
        server.kill()
        with pytest.raises(StoreUnavailable, match=str(server.port)):
            rig.put()
        server.start()

        rig.put()
        rig.check()


# ---------------------------------------------------------------- the schema


def test_a_newer_schema_is_refused(fresh_database: Callable[..., str]) -> None:
    url = fresh_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE sennit_meta SET value = %s WHERE name = 'schema'", (LATEST + 1,))

    with pytest.raises(SchemaMismatch, match=f"schema {LATEST + 1}"):
        PostgresStore(url)


def test_an_older_schema_is_brought_up_to_date_with_its_tasks(fresh_database: Callable[..., str]) -> None:
    url = fresh_database(template="template1")
    first, *_ = migrations("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(first[2].encode())
        connection.execute("INSERT INTO sennit_meta (name, value) VALUES ('schema', %s)", (first[0],))
        assert migrate(connection, "old") == len(migrations("postgres")) - 1

    with closing(PostgresStore(url)) as store, running_loop() as loop:
        rig = Rig(store, loop)
        rig.succeed(rig.start())
        rig.check()


def test_six_processes_that_open_an_empty_database_at_once_make_one_schema(
    fresh_database: Callable[..., str], nursery: Nursery
) -> None:
    url = fresh_database(template="template1")

    processes = [nursery.start("tests.faults.programs.open_and_close:run", url) for _ in range(6)]

    assert [process.wait() for process in processes] == [0] * 6
    with closing(PostgresStore(url)) as store:
        assert got(store.verify()) == []


# ---------------------------------------------------------------- disk and clock


def test_a_disk_of_the_server_that_fills_up_loses_nothing() -> None:
    if not can_mount():
        pytest.skip("needs root and a mount namespace")
    with tempfile.TemporaryDirectory(prefix="sennit-full-") as folder:
        argv = ["unshare", "--mount", sys.executable, "-m", "tests.faults.programs.full_server", folder]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "nothing lost\n"), done.stderr


CLOCKS = {
    "wall": [sys.executable, "-m", "tests.faults.programs.wrong_clock"],
    "boot": ["unshare", "--time", "--boottime", "90000", "--kill-child", sys.executable, "-m", "tests.crash.fleet"],
}


@pytest.mark.parametrize("clock", list(CLOCKS))
def test_a_node_whose_clock_is_wrong_keeps_its_lease_and_fires_in_time(
    fresh_database: Callable[..., str], clock: str
) -> None:
    """Leases and timers go by the server's clock: nobody takes over early, and nothing comes an hour late."""
    if clock == "boot" and not can_mount():
        pytest.skip("needs root and a time namespace")
    with fleet(fresh_database(), SENNIT_LEASE_S="1") as workers:
        workers.start(argv=CLOCKS[clock])
        workers.journal.wait_for("ready")
        at = client(workers.url)
        late = at.late.submit("step", 2.5)
        workers.journal.wait_for("start")
        workers.start_ready()
        soon = at.mark.options(delay_s=0.5).submit("soon")

        assert values([late, soon]) == ["attempt 1", "soon"]
        check_history(at.app, workers)
        at.app.close()

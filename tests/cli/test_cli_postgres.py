"""Every command on a store in PostgreSQL, as real processes; and what is said when the server is not to be had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from sennit.store.postgres import PostgresStore
from sennit.store.postgres_migrate import LATEST
from sennit.testing.contract_tools import Rig, running_loop
from sennit.testing.servers import PostgresServer
from tests.cli.processes import Sennit, Start, on_terminal
from tests.faults.tools import proxy_of, through, until
from tests.servers import Postgres


@pytest.fixture
def url(fresh_database: Callable[..., str]) -> str:
    return fresh_database()


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SENNIT_")}
    return {**mine, "SENNIT_DB": url, "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def folder(folder: Path) -> Path:
    """The same app, with its store named from outside."""
    app = folder / "fleet.py"
    app.write_text(app.read_text(encoding="utf-8").replace('App("sqlite:///fleet.db")', "App()"), encoding="utf-8")
    return folder


def test_a_fleet_is_looked_at_and_worked_with(sennit: Sennit, worker: subprocess.Popen[str], url: str) -> None:
    done = sennit("run", "fleet:app", "double", "4", "--wait")
    failed = sennit("run", "fleet:app", "bad", "no", "--wait")
    mapped = sennit("map", "fleet:app", "double", "-", "--no-progress", text="1\n2\n")

    assert (done.stdout, failed.returncode, mapped.stdout) == ("8\n", 1, "2 succeeded\n")
    listed = [json.loads(line) for line in sennit("tasks", "ls", "--json").stdout.splitlines()]
    assert sorted(task["state"] for task in listed) == ["failed", "succeeded", "succeeded", "succeeded"]
    for words in (
        "tasks", f"tasks get {listed[0]['id']}", f"tasks wait {listed[0]['id']}", f"tasks logs {listed[0]['id']}", "threads", "inbox",
        "providers", "providers budget", "cache invalidate --tag none", "signal paid 1", "locks ls", "verify", "config", "db migrate",
        "db migrate --dry-run", "db check", "db info",
    ):  # fmt: skip
        found = sennit(*words.split())
        assert (found.returncode, found.stderr) == (0, ""), words
    status = json.loads(sennit("status", "--json").stdout)
    assert status["store"]["url"] == url
    assert status["store"]["server"]["schema"] == LATEST
    assert sum(status["store"]["server"]["connections"].values()) >= 3
    assert [w["listening"] for w in status["workers"] if w["role"] == "worker"] == [True]
    assert "server   PostgreSQL" in sennit("status").stdout


def test_a_log_is_followed_without_looking_again_and_again(
    sennit: Sennit, start: Start, worker: subprocess.Popen[str], folder: Path, url: str
) -> None:
    task_id = sennit("run", "fleet:app", "until", "go").stdout.strip()

    follower = start("tasks", "logs", task_id, "-f")
    assert follower.stdout is not None
    first = follower.stdout.readline()
    (folder / "go").touch()
    rest = follower.stdout.read()

    assert "waiting for go" in first
    assert "found go" in rest
    assert follower.wait() == 0
    with psycopg.connect(url) as connection:
        left = connection.execute("SELECT name FROM sennit_meta WHERE starts_with(name, 'follow:')").fetchall()
    assert left == []


def test_a_worker_that_hears_nothing_says_so_in_status(url: str, sennit: Sennit) -> None:
    """Its connection for notifications leads through a proxy that is cut; the others go on, and tell it to everybody."""
    with proxy_of(url) as proxy, running_loop() as loop:
        listen_url = through(proxy, url)
        with closing(PostgresStore(url, sockets=False, listen_url=listen_url, probe_s=0.3, answer_s=0.3)) as store:
            Rig(store, loop)

            def hears() -> bool:
                (seen,) = [w for w in store.workers().result() if w.role == "worker"]
                return seen.listening

            proxy.drop("both")
            until(lambda: not hears(), "the news that it hears nothing")
            shown = sennit("status").stdout
            proxy.heal()
            until(hears, "the news that it hears again")

    assert "hears nothing, looks every second" in shown


def test_a_server_is_moved_to_a_file_and_back(sennit: Sennit, url: str, folder: Path, postgres: Postgres) -> None:
    sennit("run", "fleet:app", "double", "4")
    ledger = sennit("verify").stdout

    out = sennit("db", "copy", url, "sqlite:///there.db")

    assert out.returncode == 0, out.stderr
    assert "moved to sqlite:///there.db: use it from now on" in out.stdout
    refused = sennit("status")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert "error[S406]" in refused.stderr
    assert "fix  use --db sqlite:///" in refused.stderr
    assert sennit("verify", "--db", "sqlite:///there.db").stdout == ledger
    info = json.loads(sennit("db", "info", "--json").stdout)
    assert info["closed"]["why"] == "moved"
    again = json.loads(sennit("db", "copy", url, "sqlite:///fork.db", "--keep", "--json").stdout)
    assert again["rows"]["sennit_task"] == 1


def test_a_server_is_backed_up_beside_a_worker(sennit: Sennit, worker: subprocess.Popen[str], folder: Path) -> None:
    sennit("run", "fleet:app", "double", "4", "--wait")

    out = sennit("db", "backup", "backup.db")

    assert out.returncode == 0, out.stderr
    assert sennit("verify", "--db", "sqlite:///backup.db").returncode == 0
    assert not list(folder.glob("*.partial*"))
    assert "backup.db exists already" in sennit("db", "backup", "backup.db").stderr


def test_looking_makes_no_tables(fresh_database: Callable[..., str], sennit: Sennit) -> None:
    empty = fresh_database(template="template1")

    for words in ("status", "tasks", "verify", "db migrate"):
        refused = sennit(*words.split(), "--db", empty)
        assert "has no tables of sennit" in refused.stderr, words
    assert sennit("db", "info", "--db", empty).returncode == 0

    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT to_regclass('sennit_meta')").fetchone() == (None,)
    assert sennit("db", "init", "--db", empty).stdout.startswith("created postgresql://")
    assert sennit("db", "init", "--db", empty).stdout.startswith("there already: postgresql://")


def test_a_newer_and_an_older_schema_are_told_apart(url: str, sennit: Sennit) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE sennit_meta SET value = 999 WHERE name = 'schema'")
    newer = sennit("status")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE sennit_meta SET value = %s WHERE name = 'schema'", (LATEST - 1,))
    older = sennit("status")

    assert (newer.returncode, older.returncode) == (78, 78)
    assert "knows schemas up to" in newer.stderr
    assert f"fix  sennit db migrate --db {url}" in older.stderr


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("/sennit_test", "/no_such"), "has no database or role of this name"),
        (("//sennit@", "//nobody@"), "has no database or role of this name"),
        (("127.0.0.1", "no-such-host.invalid"), "no machine of this name is known here"),
        (("@127.0.0.1:", "@127.0.0.1:x"), "libpq does not understand it"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_with_it(url: str, sennit: Sennit, change: tuple[str, str], why: str) -> None:
    if not url.startswith("postgresql://sennit@127.0.0.1:"):
        pytest.skip("the server was given to us: its URL has other parts")

    refused = sennit("status", "--db", url.replace(*change))

    assert refused.returncode == 69
    assert "error[S401] cannot connect to postgresql://" in refused.stderr
    assert why in refused.stderr


def test_a_server_that_is_down_is_not_waited_for(start_postgres: Callable[..., PostgresServer], sennit: Sennit) -> None:
    server = start_postgres()
    down = server.create_database("fleet")
    server.kill()

    refused = sennit("status", "--db", down)
    doctor = sennit("doctor", "--db", down)

    assert refused.returncode == 69
    assert "nothing listens there" in refused.stderr
    assert doctor.returncode == 1
    assert "✕ server" in doctor.stdout


def test_a_wrong_password_is_named_and_never_shown(
    start_postgres: Callable[..., PostgresServer], sennit: Sennit
) -> None:
    server = start_postgres()
    url = server.create_database("fleet")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE eve LOGIN PASSWORD 'right'")
        (rules,) = connection.execute("SHOW hba_file").fetchone() or ("",)
        rule = Path(rules)
        rule.write_text(
            "host all eve 127.0.0.1/32 scram-sha-256\n" + rule.read_text(encoding="utf-8"), encoding="utf-8"
        )
        connection.execute("SELECT pg_reload_conf()")
    wrong = url.replace("//sennit@", "//eve:hunter2@")

    refused = sennit("status", "--db", wrong)

    assert refused.returncode == 69
    assert "the server does not accept this user and password" in refused.stderr
    assert "hunter2" not in refused.stderr + refused.stdout


def test_without_the_extra_it_is_named() -> None:
    """A process in which psycopg cannot be imported stands for an installation without it."""
    program = (
        "import sys; sys.modules['psycopg'] = None; from sennit.cli.main import main; "
        "sys.exit(main(['status', '--db', 'postgresql://sennit@127.0.0.1/x']))"
    )

    refused = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert refused.returncode == 78
    assert "PostgreSQL needs the extra `postgres`" in refused.stderr
    assert "pip install 'sennit[postgres]'" in refused.stderr


def test_a_file_is_looked_at_without_the_driver_of_servers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    words = [["db", "init"], ["status"], ["tasks"], ["db", "info"], ["db", "check"], ["verify"], ["doctor"]]
    calls = "; ".join(f"main({[*one, '--db', url]!r})" for one in words)
    program = f"import sys; from sennit.cli.main import main; {calls}; print(*sorted(sys.modules), file=sys.stderr)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert {name for name in done.stderr.split() if name.startswith("psycopg")} == set()


def test_who_holds_the_pen_is_told(url: str, sennit: Sennit) -> None:
    with closing(PostgresStore(url)) as store, psycopg.connect(url) as connection:
        backend = connection.info.backend_pid
        connection.execute("SELECT pg_advisory_xact_lock(1397640788, 'sennit_task'::regclass::oid::int)")

        info = json.loads(sennit("db", "info", "--json").stdout)

        assert [(one["pid"], one["how"], one["holds"]) for one in info["pen"]] == [(backend, "alone", True)]
        assert sum(info["connections"].values()) >= 1
        assert store.ledger().result().submitted == 0


def test_an_index_that_is_not_valid_is_found(url: str, sennit: Sennit) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'sennit_ready_id'::regclass"  # as a build that failed
        )

    found = sennit("db", "check")

    assert found.returncode == 1
    assert "index sennit_ready_id of sennit_ready is not valid" in found.stdout


def test_the_live_line_of_up_follows_what_this_process_commits(
    sennit: Sennit, folder: Path, environment: dict[str, str]
) -> None:
    with on_terminal(folder, environment, "up", "fleet:app") as terminal:
        terminal.read_until("serves")
        sennit("run", "fleet:app", "double", "4")
        terminal.read_until("done 1")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("stopped")


def test_doctor_says_that_the_role_may_not_make_tables(fresh_database: Callable[..., str], sennit: Sennit) -> None:
    url = fresh_database(template="template1")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS sennit_guest")
        connection.execute("CREATE ROLE sennit_guest LOGIN")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    parts = urlsplit(url)
    guest = urlunsplit(parts._replace(netloc=f"sennit_guest@{parts.netloc.rpartition('@')[2]}"))

    doctor = sennit("doctor", "--db", guest)

    assert doctor.returncode == 1
    assert "✕ rights" in doctor.stdout
    assert "GRANT CREATE ON SCHEMA public TO sennit_guest" in doctor.stdout


def test_doctor_says_that_the_store_has_moved(url: str, sennit: Sennit, tmp_path: Path) -> None:
    there = f"sqlite:///{tmp_path}/there.db"
    assert sennit("db", "init").returncode == 0
    assert sennit("db", "copy", url, there).returncode == 0

    doctor = sennit("doctor")
    other = sennit("doctor", "--db", there)

    assert (doctor.returncode, other.returncode) == (1, 0)
    assert f"has moved to {there}" in doctor.stdout
    assert f"use --db {there}" in doctor.stdout

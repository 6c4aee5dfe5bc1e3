"""The servers of the tests do what they say: they come back after SIGKILL, and nothing of them outlives us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest
import redis as redis_driver

from sennit.errors import SettingsError, StoreUnavailable, UsageError
from sennit.testing.servers import PostgresServer, RedisServer, find_postgres
from tests.servers import postgres_programs, redis_program

Kind = Callable[[], PostgresServer | RedisServer]
GONE_S = 20.0

# A program that starts a server, tells of it, and waits to be killed (or ends without closing it).
OWNER = """
import sys
from sennit.testing import servers
server = getattr(servers, sys.argv[1])().start()
print(server.pid, server._keeper.pid, server.folder, flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


def new_postgres() -> PostgresServer:
    return PostgresServer(programs=postgres_programs())


def new_redis() -> RedisServer:
    return RedisServer(durable=True, program=redis_program())


@pytest.fixture(params=[new_postgres, new_redis], ids=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer | RedisServer]:
    kind: Kind = request.param
    with closing(kind()) as server:
        yield server


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """One server for all tests that leave it running."""
    with new_postgres() as server:
        yield server


def answers(server: PostgresServer | RedisServer, timeout_s: float = 10.0) -> bool:
    """Return whether a client gets an answer."""
    try:
        if isinstance(server, RedisServer):
            with redis_driver.Redis.from_url(server.url, socket_timeout=timeout_s, retry=None) as client:
                return bool(client.ping())
        with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as client:
            client.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest: answered by "N" before any log-in
            return client.recv(1) == b"N"
    except (OSError, redis_driver.RedisError):
        return False


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=GONE_S)[1]


# ---------------------------------------------------------------- life


def test_a_started_server_answers_and_a_stopped_one_is_gone(server: PostgresServer | RedisServer) -> None:
    server.start()
    processes = family(server.pid)

    assert server.running
    assert answers(server)
    server.stop()
    assert not server.running
    assert not answers(server)
    assert not any(process.is_running() for process in processes)


def test_a_killed_server_comes_back_at_the_same_url(server: PostgresServer | RedisServer) -> None:
    url = server.start().url
    processes = family(server.pid)

    server.kill()

    assert not any(process.is_running() for process in processes)
    server.start()
    assert answers(server)
    assert server.url == url


def test_a_server_that_ended_by_itself_is_seen_and_started_again(server: PostgresServer | RedisServer) -> None:
    server.start()
    assert server._keeper is not None
    os.kill(server.pid, signal.SIGKILL)  # its children end when they see that it is gone
    assert server._keeper.wait(GONE_S) == 128 + signal.SIGKILL

    assert not server.running
    server.start()

    assert answers(server)


def test_a_frozen_server_is_silent_until_it_is_thawed(server: PostgresServer | RedisServer) -> None:
    server.start()

    server.freeze()

    assert not answers(server, timeout_s=0.2)
    server.thaw()
    assert answers(server)


def test_a_frozen_server_can_be_stopped_and_killed(server: PostgresServer | RedisServer) -> None:
    server.start().freeze()
    server.stop()
    server.start().freeze()
    server.kill()

    assert not server.running


def test_a_running_server_is_not_started_twice(server: PostgresServer | RedisServer) -> None:
    server.start()

    with pytest.raises(UsageError, match="is running already"):
        server.start()


def test_a_closed_server_leaves_no_folder_and_does_not_start_again(server: PostgresServer | RedisServer) -> None:
    server.start()

    server.close()

    assert not server.folder.exists()
    with pytest.raises(UsageError, match="was closed"):
        server.start()


def test_a_new_server_evades_a_port_that_was_taken_meanwhile(server: PostgresServer | RedisServer) -> None:
    with socket.create_server(("127.0.0.1", server.port)):
        taken = server.port

        server.start()

        assert server.port != taken
        assert answers(server)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        closing(PostgresServer(settings={"shared_buffers": "nonsense"}, programs=postgres_programs())) as server,
        pytest.raises(StoreUnavailable, match=r"did not start(?s:.)*invalid value for parameter \"shared_buffers\""),
    ):
        server.start()


# ---------------------------------------------------------------- nothing outlives its owner


@pytest.mark.parametrize("kind", ["PostgresServer", "RedisServer"])
@pytest.mark.parametrize("way", ["SIGKILL", "exit"])
def test_a_server_does_not_outlive_the_process_that_started_it(kind: str, way: str) -> None:
    (postgres_programs if kind == "PostgresServer" else redis_program)()
    argv = [sys.executable, "-c", OWNER, kind, "wait" if way == "SIGKILL" else "end"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, keeper, folder = owner.stdout.readline().split()
        processes = [psutil.Process(int(keeper))] if way == "SIGKILL" else []
        processes += family(int(pid)) if way == "SIGKILL" else []
        if way == "SIGKILL":
            owner.kill()

    assert all_gone(processes)
    assert wait_without(Path(folder), int(keeper))


def wait_without(folder: Path, keeper: int) -> bool:
    """Wait until the keeper has ended; return whether the folder went with it."""
    if psutil.pid_exists(keeper):
        psutil.wait_procs([psutil.Process(keeper)], timeout=GONE_S)
    return not folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_a_server_does_not_outlive_its_keeper(server: PostgresServer | RedisServer) -> None:
    server.start()
    assert server._keeper is not None
    processes = family(server.pid)

    os.kill(server._keeper.pid, signal.SIGKILL)

    assert all_gone(processes)


def test_a_forked_child_of_the_owner_does_not_keep_the_server_alive() -> None:
    """It holds a copy of the pipe; the pidfd of the owner tells all the same."""
    postgres_programs()
    program = OWNER.replace("if sys.argv", "import os\nif os.fork() == 0:\n    sys.stdin.read()\nif sys.argv", 1)
    argv = [sys.executable, "-c", program, "PostgresServer", "wait"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, _, _ = owner.stdout.readline().split()
        processes = family(int(pid))
        owner.kill()

        assert all_gone(processes)


def test_what_a_crash_of_all_left_behind_goes_with_the_next_server(server: PostgresServer | RedisServer) -> None:
    server.start()
    assert server._keeper is not None
    assert server._lock is not None
    os.kill(server._keeper.pid, signal.SIGKILL)
    assert server._keeper.wait(GONE_S) == -signal.SIGKILL
    os.close(server._lock)  # as if we had died too
    server._lock = None
    assert server.folder.exists()

    with closing(type(server)()):
        assert not server.folder.exists()


# ---------------------------------------------------------------- PostgreSQL


def test_postgres_is_reached_by_tcp_and_by_its_unix_socket(database: PostgresServer) -> None:
    url = database.create_database("first")

    for way in (url, database.unix_url_of("first")):
        with psycopg.connect(way) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("first",)


def test_postgres_does_not_run_as_root(database: PostgresServer) -> None:
    assert psutil.Process(database.pid).uids().real != 0


def test_what_was_committed_survives_sigkill_without_fsync(start_postgres: Callable[..., PostgresServer]) -> None:
    database = start_postgres()
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (7)")

        database.kill()

    database.start()
    assert database.query("SELECT n FROM kept") == [("7",)]


def test_a_killed_postgres_leaves_no_shared_memory_behind(start_postgres: Callable[..., PostgresServer]) -> None:
    database = start_postgres()
    (key,) = (database.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1:]
    assert key in segments()

    database.kill()
    database.close()

    assert key not in segments()


def segments() -> list[str]:
    """Return the ids of all System V segments."""
    table = Path("/proc/sysvipc/shm")
    if not table.exists():
        pytest.skip("only Linux lists its shared memory in /proc")
    return [line.split()[1] for line in table.read_text().splitlines()[1:]]


def test_a_database_is_copied_from_a_template_and_dropped_while_in_use(database: PostgresServer) -> None:
    database.create_database("origin")
    database.query("CREATE TABLE t AS SELECT 1 AS n; SELECT n, null FROM t", database="origin")

    second = database.create_database("second", template="origin")

    with psycopg.connect(second) as connection:
        assert connection.execute("SELECT n FROM t").fetchone() == (1,)
        database.drop_database("second")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_query_brings_text_and_nulls_and_the_server_s_own_refusal(database: PostgresServer) -> None:
    assert database.query("SELECT 1, null, 'ä'; SELECT 2, '', 'b'") == [("1", None, "ä"), ("2", "", "b")]
    with pytest.raises(StoreUnavailable, match=r'relation "nowhere" does not exist \(SQLSTATE 42P01\)'):
        database.query("SELECT * FROM nowhere")
    with pytest.raises(StoreUnavailable, match='database "nowhere" does not exist'):
        database.query("SELECT 1", database="nowhere")


def test_a_stopped_postgres_is_said_not_to_answer(start_postgres: Callable[..., PostgresServer]) -> None:
    database = start_postgres()
    database.stop()

    with pytest.raises(StoreUnavailable, match="does not answer"):
        database.query("SELECT 1")


def test_a_database_name_that_needs_quotes_is_refused(database: PostgresServer) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a database"):
        database.create_database("a; DROP DATABASE b")


def test_settings_and_connections_are_the_server_s(start_postgres: Callable[..., PostgresServer]) -> None:
    server = start_postgres(fsync=True, connections_max=17, work_mem="1MB")

    shown = [server.query(f"SHOW {name}") for name in ("fsync", "max_connections", "work_mem", "wal_segment_size")]

    assert shown == [[("on",)], [("17",)], [("1MB",)], [("16MB",)]]


def test_the_programs_on_path_are_found_through_their_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = postgres_programs()
    (tmp_path / "postgres").symlink_to(programs / "postgres")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_postgres() == programs.resolve()


# ---------------------------------------------------------------- Redis


def test_a_durable_redis_keeps_its_keys_over_sigkill(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis(durable=True)
    with redis_driver.Redis.from_url(server.url) as client:
        client.set("a", "1")

    server.kill()
    server.start()

    with redis_driver.Redis.from_url(server.unix_url) as client:
        assert client.get("a") == b"1"


def test_each_test_gets_an_empty_redis(redis: str, redis_url: str) -> None:
    with redis_driver.Redis.from_url(redis) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")

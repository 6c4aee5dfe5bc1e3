"""The proxy's faults, one by one: what clients and servers see of them, with plain sockets and with a real PostgreSQL."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from sennit.errors import UsageError
from sennit.testing.faultproxy import FaultProxy
from sennit.testing.servers import PostgresServer
from tests.servers import postgres_programs

SHORT_S = 0.1  # how long silence is listened to; a byte on loopback takes a thousandth of that
WAIT_S = 10.0


class Ends:
    """A proxy in front of a listening socket, and the connections a test has made."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listener.settimeout(WAIT_S)
        self.proxy = stack.enter_context(FaultProxy(self._listener.getsockname()[1]))

    def client(self) -> socket.socket:
        made = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.proxy.port), timeout=WAIT_S))
        made.settimeout(WAIT_S)
        return made

    def accept(self) -> socket.socket:
        accepted, _ = self._listener.accept()
        accepted.settimeout(WAIT_S)
        return self._stack.enter_context(accepted)

    def connected(self) -> tuple[socket.socket, socket.socket]:
        client = self.client()
        return client, self.accept()

    def close_listener(self) -> None:
        self._listener.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


def is_silent(end: socket.socket) -> bool:
    end.settimeout(SHORT_S)
    try:
        end.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        end.settimeout(WAIT_S)
    return False


def received(end: socket.socket, n_bytes: int) -> bytes:
    got = b""
    while len(got) < n_bytes and (piece := end.recv(n_bytes - len(got))):
        got += piece
    return got


# ---------------------------------------------------------------- without faults


def test_bytes_and_ends_pass_in_both_directions(ends: Ends) -> None:
    client, server = ends.connected()

    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)

    assert received(server, 100) == b"question"
    server.sendall(b"answer")
    server.close()
    assert received(client, 100) == b"answer"
    now = ends.proxy.wait(lambda now: now.connections == 0)
    assert (now.accepted, now.to_server_bytes, now.to_client_bytes) == (1, 8, 6)


def test_a_large_message_passes_whole_while_the_other_side_is_slow_to_read(ends: Ends) -> None:
    client, server = ends.connected()
    message = bytes(range(256)) * 65536  # 16 MiB: more than the kernel's buffers and the proxy's queue

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.sendall, message)
        ends.proxy.wait(lambda now: now.held_to_server_bytes > 1 << 20)

        assert received(server, len(message)) == message
        sent.result()


def test_a_reset_by_the_server_reaches_the_client_as_a_reset(ends: Ends) -> None:
    client, server = ends.connected()

    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()

    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_server_that_is_away_breaks_the_connection(ends: Ends) -> None:
    ends.close_listener()

    with pytest.raises(ConnectionResetError):  # by the time of the connect or of the read
        ends.client().recv(1)


# ---------------------------------------------------------------- delay


def test_a_delay_holds_every_byte_that_long_and_keeps_the_order(ends: Ends) -> None:
    client, server = ends.connected()
    ends.proxy.delay(0.2, "to_server")

    began_s = time.monotonic()
    for piece in (b"a", b"b", b"c"):
        client.sendall(piece)

    assert received(server, 3) == b"abc"
    assert time.monotonic() - began_s >= 0.2
    server.sendall(b"at once")
    assert received(client, 7) == b"at once"


def test_healing_ends_a_delay_for_what_is_on_its_way(ends: Ends) -> None:
    client, server = ends.connected()
    ends.proxy.delay(3600)
    client.sendall(b"late")
    ends.proxy.wait(lambda now: now.held_to_server_bytes == 4)

    ends.proxy.heal()

    assert received(server, 4) == b"late"


# ---------------------------------------------------------------- drop


def test_dropped_bytes_stay_away_from_one_side_only(ends: Ends) -> None:
    client, server = ends.connected()

    ends.proxy.drop("to_client")
    client.sendall(b"question")

    assert received(server, 8) == b"question"
    server.sendall(b"answer")
    assert ends.proxy.wait(lambda now: now.held_to_client_bytes == 6).connections == 1
    assert is_silent(client)


def test_after_a_drop_everything_comes_in_order(ends: Ends) -> None:
    client, server = ends.connected()
    client.sendall(b"1")
    assert received(server, 1) == b"1"
    ends.proxy.drop()
    client.sendall(b"2")
    client.sendall(b"3")
    ends.proxy.wait(lambda now: now.held_to_server_bytes == 2)

    ends.proxy.heal()
    client.sendall(b"4")

    assert received(server, 3) == b"234"


@pytest.mark.parametrize("linger", [b"", b"\1\0\0\0\0\0\0\0"], ids=["closed", "reset"])
def test_during_a_drop_the_other_side_does_not_hear_of_an_end(ends: Ends, linger: bytes) -> None:
    """Half-open: the client is gone and the server has no way to know."""
    client, server = ends.connected()
    ends.proxy.drop()

    if linger:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.close()

    assert is_silent(server)
    ends.proxy.heal()
    if linger:
        with pytest.raises(ConnectionResetError):
            server.recv(1)
    else:
        assert server.recv(1) == b""


def test_an_answer_to_a_client_that_is_gone_does_not_tell_the_server_during_a_drop(ends: Ends) -> None:
    client, server = ends.connected()
    ends.proxy.drop("to_server")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()

    server.sendall(b"answer")

    assert is_silent(server)
    ends.proxy.heal()
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_a_connection_made_during_a_drop_reaches_the_server_after_it(ends: Ends) -> None:
    ends.proxy.drop()
    client = ends.client()
    client.sendall(b"hello")
    ends.proxy.wait(lambda now: now.held_to_server_bytes == 5)

    ends.proxy.heal()

    assert received(ends.accept(), 5) == b"hello"


def test_a_client_that_gave_up_during_a_drop_never_reaches_the_server(ends: Ends) -> None:
    ends.proxy.drop()
    ends.client().close()
    ends.proxy.wait(lambda now: now.accepted == 1 and now.connections == 0)
    ends.proxy.heal()

    _, server = ends.connected()

    assert is_silent(server)
    assert ends.proxy.statistics().connections == 1


# ---------------------------------------------------------------- reset and refuse


def test_reset_breaks_all_connections_on_both_sides(ends: Ends) -> None:
    pairs = [ends.connected() for _ in range(3)]

    assert ends.proxy.reset() == 3

    for end in (end for pair in pairs for end in pair):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    client, server = ends.connected()
    client.sendall(b"again")
    assert received(server, 5) == b"again"


def test_what_was_held_back_is_lost_in_a_reset(ends: Ends) -> None:
    client, server = ends.connected()
    ends.proxy.drop("to_client")
    server.sendall(b"answer")
    ends.proxy.wait(lambda now: now.held_to_client_bytes == 6)

    ends.proxy.reset()

    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_refused_are_new_connections_only(ends: Ends) -> None:
    client, server = ends.connected()

    ends.proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        ends.client()
    client.sendall(b"still")
    assert received(server, 5) == b"still"
    ends.proxy.heal()
    ends.connected()


# ---------------------------------------------------------------- its life


def test_stopping_breaks_what_is_open_and_can_be_done_twice(ends: Ends) -> None:
    client, _ = ends.connected()

    ends.proxy.stop()
    ends.proxy.stop()

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(UsageError, match="does not run"):
        ends.proxy.heal()


def test_a_running_proxy_is_not_started_twice(ends: Ends) -> None:
    with pytest.raises(UsageError, match="runs already"):
        ends.proxy.start()


def test_a_fact_that_does_not_come_is_a_time_out(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        ends.proxy.wait(lambda now: now.connections == 7, timeout_s=SHORT_S)


# ---------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(programs=postgres_programs()) as server:
        server.query("CREATE TABLE kept (n int)")
        yield server


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[FaultProxy]:
    server.query("TRUNCATE kept")
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(server: PostgresServer, proxy: FaultProxy) -> Iterator[Callable[[], psycopg.Connection]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(
            psycopg.connect(server.url_of("postgres", port=proxy.port), autocommit=True, connect_timeout=2)
        )


def kept(server: PostgresServer) -> list[tuple[str | None, ...]]:
    return server.query("SELECT n FROM kept")


def test_postgres_answers_later_by_the_delay(proxy: FaultProxy, connect: Callable[[], psycopg.Connection]) -> None:
    connection = connect()
    proxy.delay(0.1)

    began_s = time.monotonic()
    connection.execute("SELECT 1")

    assert time.monotonic() - began_s >= 0.2


def test_a_commit_whose_answer_is_lost_has_happened(
    server: PostgresServer, proxy: FaultProxy, connect: Callable[[], psycopg.Connection]
) -> None:
    connection = connect()
    proxy.drop("to_client")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(connection.execute, "INSERT INTO kept VALUES (7)")
        proxy.wait(lambda now: now.held_to_client_bytes > 0)

        proxy.reset()

        with pytest.raises(psycopg.OperationalError):
            commit.result(WAIT_S)
    assert kept(server) == [("7",)]


def test_a_commit_that_did_not_arrive_has_not_happened(
    server: PostgresServer, proxy: FaultProxy, connect: Callable[[], psycopg.Connection]
) -> None:
    connection = connect()
    proxy.drop("to_server")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(connection.execute, "INSERT INTO kept VALUES (7)")
        proxy.wait(lambda now: now.held_to_server_bytes > 0)

        proxy.reset()

        with pytest.raises(psycopg.OperationalError):
            commit.result(WAIT_S)
    assert kept(server) == []


def test_a_statement_goes_through_after_a_partition(
    server: PostgresServer, proxy: FaultProxy, connect: Callable[[], psycopg.Connection]
) -> None:
    connection = connect()
    proxy.drop()
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(connection.execute, "INSERT INTO kept VALUES (7)")
        proxy.wait(lambda now: now.held_to_server_bytes > 0)
        assert kept(server) == []

        proxy.heal()

        commit.result(WAIT_S)
    assert kept(server) == [("7",)]


def test_a_half_open_listener_keeps_its_session_at_the_server_and_hears_later(
    server: PostgresServer, proxy: FaultProxy, connect: Callable[[], psycopg.Connection]
) -> None:
    listener = connect()
    listener.execute("LISTEN news")
    proxy.drop()

    server.query("NOTIFY news, 'one'")
    proxy.wait(lambda now: now.held_to_client_bytes > 0)

    assert list(listener.notifies(timeout=SHORT_S)) == []
    proxy.heal()
    assert [note.payload for note in listener.notifies(timeout=WAIT_S, stop_after=1)] == ["one"]


def test_postgres_cannot_be_reached_while_it_refuses_or_drops(
    proxy: FaultProxy, connect: Callable[[], psycopg.Connection]
) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect()
    proxy.heal()
    proxy.drop()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect()
    proxy.heal()

    assert connect().execute("SELECT 1").fetchone() == (1,)


def test_a_killed_postgres_breaks_the_connections_through_the_proxy(
    start_postgres: Callable[..., PostgresServer],
) -> None:
    server = start_postgres()
    with FaultProxy(server.port) as proxy:
        url = server.url_of("postgres", port=proxy.port)
        with psycopg.connect(url, autocommit=True) as connection:
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.start()

        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)

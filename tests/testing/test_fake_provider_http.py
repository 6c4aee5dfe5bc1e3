"""HTTP/1.1 by hand: what clients may send, and what they may not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx2
import pytest

from sennit.testing.provider import FakeProvider
from tests.testing.provider_wire import BODY, connected, head_of, post, read_all, read_until


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeProvider]:
    with FakeProvider(answer="Aye.") as provider:
        yield provider


@pytest.fixture
def provider(shared: FakeProvider) -> FakeProvider:
    shared.reset()
    return shared


def test_a_request_may_come_byte_by_byte(provider: FakeProvider) -> None:
    with connected(provider.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head_of():
            connection.sendall(bytes([byte]))

        assert b"Aye." in read_until(connection, b"Aye.")


def test_requests_may_be_pipelined_and_are_answered_in_their_order(provider: FakeProvider) -> None:
    with connected(provider.port) as connection:
        connection.sendall(b"".join(head_of(model=f"m{n}") for n in range(50)))
        seen = read_until(connection, b'"m49"')

    models = [seen.find(f'"model":"m{n}"'.encode()) for n in range(50)]
    assert -1 not in models
    assert models == sorted(models)


def test_a_body_may_come_in_chunks(provider: FakeProvider) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"Where?"}]}'

    answer = httpx2.post(f"{provider.url}/v1/chat/completions", content=iter([body[:9], body[9:]]))

    assert answer.json()["choices"][0]["message"]["content"] == "Aye."


def test_a_client_that_expects_100_is_told_to_go_on(provider: FakeProvider) -> None:
    head, _, body = head_of().partition(b"\r\n\r\n")
    with connected(provider.port) as connection:
        connection.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        told = read_until(connection, b"\r\n\r\n")
        connection.sendall(body)

        assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert b"Aye." in read_until(connection, b"Aye.")


@pytest.mark.parametrize("words", [b"connection: close\r\n", b""])
def test_a_connection_is_closed_when_the_client_wants_that(provider: FakeProvider, words: bytes) -> None:
    version = b"HTTP/1.1" if words else b"HTTP/1.0"
    request = head_of().replace(b"HTTP/1.1", version).replace(b"host: fake\r\n", words)
    with connected(provider.port) as connection:
        connection.sendall(request)

        assert b"connection: close" in read_all(connection)


def test_one_connection_serves_many_calls(provider: FakeProvider) -> None:
    with httpx2.Client() as client:
        for _ in range(5):
            client.post(f"{provider.url}/v1/chat/completions", json=BODY)

        assert provider.statistics().connections == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / SPDY/3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(
    provider: FakeProvider, sent: bytes, status: int
) -> None:
    with connected(provider.port) as connection:
        connection.sendall(sent)
        seen = read_all(connection)

    assert seen.startswith(f"HTTP/1.1 {status} ".encode())
    assert post(provider.url).status_code == 200


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 5}', b'{"model": "m", "messages": "x"}'])
def test_a_body_that_cannot_be_read_is_a_bad_request(provider: FakeProvider, body: bytes) -> None:
    answer = httpx2.post(f"{provider.url}/v1/chat/completions", content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert provider.statistics().by_status == {400: 1}


def test_what_is_not_there_is_404(provider: FakeProvider) -> None:
    assert httpx2.get(f"{provider.url}/v1/chat/completions").status_code == 404
    assert httpx2.post(f"{provider.url}/v1/embeddings", json={}).status_code == 404
    assert provider.statistics().requests == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [("configure", "{"), ("exhaust", "{}"), ("inject", '{"fault": "mutiny"}'), ("wait?mutinies=1", None)],
)
def test_a_command_that_makes_no_sense_is_refused(provider: FakeProvider, path: str, body: str | None) -> None:
    method = "GET" if body is None else "POST"

    assert httpx2.request(method, f"{provider.url}/control/{path}", content=body).status_code == 400

"""Talks to the fake provider by hand, for what real clients hide: each byte, each header, a connection that hangs."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
BODY: dict[str, object] = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Where?"}]}


def post(url: str, path: str = CHAT, **more: object) -> httpx2.Response:
    """Make one model call; it may take at most 10 s."""
    return httpx2.post(url + path, json=BODY | more, timeout=10, verify=False)  # no TLS: it would load certificates


def head_of(path: str = CHAT, body: bytes | None = None, **more: object) -> bytes:
    """Return a whole request as bytes."""
    body = json.dumps(BODY | more).encode() if body is None else body
    return f"POST {path} HTTP/1.1\r\nhost: fake\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A bare connection; reading waits 10 s at most."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Read until `end` has come, or all there is if it closes before."""
    seen = b""
    while end not in seen and (data := connection.recv(65536)):
        seen += data
    return seen


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    seen = b""
    while data := connection.recv(65536):
        seen += data
    return seen

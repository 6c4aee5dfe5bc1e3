"""HTTP/1.1 by hand, because a server that must misbehave needs each byte in its own hands.

    bytes ─► Request ─► handle(request, connection) ─┬─► respond()                      a whole answer
                                                     ├─► begin(), send(), … end()       one in chunks
                                                     └─► close() / reset() at any point, or never anything at all

One request at a time per connection: what is pipelined waits for the answer before it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import msgspec

from sennit.sync.clock import wall_us

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 64 * 1024 * 1024

Headers = list[tuple[str, str]]

# SO_LINGER with a time of 0: closing sends RST instead of FIN.
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus} | {529: "Site is overloaded"}


class Request(msgspec.Struct, frozen=True):
    """One request. `path` is without its query, header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class RefusedRequest(Exception):
    """It cannot be read; answered with `status`, and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head(msgspec.Struct, frozen=True):
    """The head of a request, and where its body begins in the buffer."""

    method: str
    target: str
    headers: dict[str, str]
    body_at: int
    is_http_1_0: bool


def parse_head(buffer: bytearray) -> Head | None:
    """Return the head that the buffer begins with, None while it is incomplete.

    Raises:
        RefusedRequest: it is no HTTP/1 request, or too long.
    """
    end = buffer.find(b"\r\n\r\n")
    if end > HEAD_BYTES_MAX or (end < 0 and len(buffer) > HEAD_BYTES_MAX):
        raise RefusedRequest(431, f"the head is longer than {HEAD_BYTES_MAX} bytes")
    if end < 0:
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise RefusedRequest(400, f"this is no HTTP/1.1 request: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise RefusedRequest(400, f"this is no header: {line[:80]!r}")
        headers[name.strip().lower()] = value.strip()
    return Head(words[0], words[1], headers, end + 4, words[2] == "HTTP/1.0")


def parse_body(buffer: bytearray, head: Head) -> tuple[bytes, int] | None:
    """Return the body after the head and where the next request begins, None while it is incomplete.

    Raises:
        RefusedRequest: its length is no number, or it is too long.
    """
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        return _parse_chunks(buffer, head.body_at)
    length = head.headers.get("content-length", "0")
    if not length.isdecimal():
        raise RefusedRequest(400, f"content-length is {length!r}")
    end = head.body_at + int(length)
    if int(length) > BODY_BYTES_MAX:
        raise RefusedRequest(413, f"the body is longer than {BODY_BYTES_MAX} bytes")
    return (bytes(buffer[head.body_at : end]), end) if len(buffer) >= end else None


def _parse_chunks(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    body = bytearray()
    while (line_end := buffer.find(b"\r\n", at)) >= 0:
        size_text = bytes(buffer[at:line_end]).partition(b";")[0].strip()
        try:
            size = int(size_text, 16)
        except ValueError as error:
            raise RefusedRequest(400, f"this is no length of a chunk: {size_text[:20]!r}") from error
        if size < 0 or len(body) + size > BODY_BYTES_MAX:
            raise RefusedRequest(413, f"the body is longer than {BODY_BYTES_MAX} bytes")
        at = line_end + 2 + size
        if len(buffer) < at + 2:
            return None
        body += buffer[line_end + 2 : at]
        at += 2
        if size == 0:  # no trailers: nobody sends them to a model
            return bytes(body), at
    return None


class Connection(asyncio.Protocol):
    """One connection of a client. `handle` is called in the event loop and must end each request in one of the ways above.

    Attributes:
        on_lost: called once when the client has gone away; the handler of the present request sets it.
        is_control: it belongs to somebody who only looks; the handler sets it.
    """

    def __init__(self, handle: Callable[[Request, Connection], None], connections: set[Connection]) -> None:
        self._handle = handle
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._is_busy = False
        self._keeps_alive = True
        self._was_continued = False
        self.on_lost: Callable[[], object] | None = None
        self.is_control = False

    # ---------------------------------------------------------------- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_server makes
        self._transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        self._buffer += data
        if len(self._buffer) > HEAD_BYTES_MAX + BODY_BYTES_MAX + HEAD_BYTES_MAX:
            self.reset()
            return
        self._next()

    def eof_received(self) -> bool:
        """The client has closed its side: a model's client does so only when it has lost interest."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone away, or we have closed."""
        del exc
        self._connections.discard(self)
        self._transport = None
        if self.on_lost is not None:
            lost, self.on_lost = self.on_lost, None
            lost()

    # ---------------------------------------------------------------- what the handler calls

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer, whole."""
        self._write(self._head(status, [*headers, ("content-length", str(len(body)))]) + body)
        self._done()

    def begin(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Send the head of an answer: of `length` bytes, or in chunks. `send` and `end`, or `close`, follow."""
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        self._write(self._head(status, [*headers, framing]))

    def send(self, data: bytes, *, chunked: bool) -> None:
        """Send a part of the body."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    def end(self, data: bytes = b"", *, chunked: bool) -> None:
        """Send the last part: the answer is whole."""
        if chunked:
            self._write((b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + b"0\r\n\r\n")
        else:
            self._write(data)
        self._done()

    def close(self) -> None:
        """Close after what has been sent; in the middle of an answer this truncates it."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what has not been sent yet is lost."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Close at once with a TCP RST."""
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()

    # ---------------------------------------------------------------- inside

    def _next(self) -> None:
        """Hand on the requests that are complete, one at a time."""
        try:
            while not self._is_busy and self._buffer and self._transport is not None:
                head = parse_head(self._buffer)
                if head is None:
                    return
                parsed = parse_body(self._buffer, head)
                if parsed is None:
                    if head.headers.get("expect", "").lower() == "100-continue" and not self._was_continued:
                        self._was_continued = True
                        self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    return
                body, end = parsed
                del self._buffer[:end]
                self._is_busy, self._was_continued = True, False
                wish = head.headers.get("connection", "").lower()
                self._keeps_alive = wish == "keep-alive" if head.is_http_1_0 else wish != "close"
                path, _, query = head.target.partition("?")
                self._handle(Request(head.method, path, query, head.headers, body), self)
        except RefusedRequest as error:
            self._keeps_alive = False
            body = msgspec.json.encode({"error": {"message": error.message, "type": "invalid_request_error"}})
            self.respond(error.status, [("content-type", "application/json")], body)

    def _done(self) -> None:
        self._is_busy = False
        self.on_lost = None
        if not self._keeps_alive:
            self.close()
        elif self._buffer and self._transport is not None:
            # Not from here: a client that pipelines would recurse as deep as it sends requests.
            asyncio.get_running_loop().call_soon(self._next)

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}",
            f"date: {formatdate(wall_us() / 1e6, usegmt=True)}",
        ]
        lines += [f"{name}: {value}" for name, value in headers]
        if not self._keeps_alive:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

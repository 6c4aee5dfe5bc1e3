"""One SQL text to a test server and its rows back, over PostgreSQL's own protocol: no driver is needed to make a database.

For servers of `sennit.testing.servers` only, which trust whoever reaches their socket. Values come as text.
Source: PostgreSQL documentation, 55.2 Message Flow and 55.7 Message Formats (protocol 3.0).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sennit.errors import StoreUnavailable

__all__ = ["query"]

PROTOCOL: Final = 196608  # 3.0, major version in the upper half
TIMEOUT_S: Final = 30.0

Row = tuple[str | None, ...]


def query(socket_path: Path, sql: str, *, user: str, database: str) -> list[Row]:
    """Run `sql`, which may be several statements, in a connection of its own and return the rows of all of them.

    Raises:
        StoreUnavailable: nobody answers, or the server refused; the message is its own.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(socket_path))
            names = b"".join(text.encode() + b"\0" for text in ("user", user, "database", database, ""))
            connection.sendall(struct.pack("!ii", len(names) + 8, PROTOCOL) + names)
            replies = _replies(connection)
            _until_ready(replies)
            text = sql.encode() + b"\0"
            connection.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)
            return _until_ready(replies)
    except StoreUnavailable:  # itself an OSError
        raise
    except OSError as error:
        raise StoreUnavailable(
            f"the PostgreSQL server at {socket_path} does not answer: {error}",
            why="it is not running, or it stopped during the statement",
            fix="start it, then try again",
        ) from error


def _until_ready(replies: Iterator[tuple[bytes, bytes]]) -> list[Row]:
    rows: list[Row] = []
    refusal = ""
    for kind, body in replies:
        if kind == b"D":
            rows.append(tuple(_values(body)))
        elif kind == b"E":
            fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
            refusal = f"{fields.get(b'M', '')} (SQLSTATE {fields.get(b'C', '')})"
            if fields.get(b"S") in {"FATAL", "PANIC"}:
                break
        elif kind == b"R" and body[:4] != b"\0\0\0\0":
            refusal = "it wants a password"
            break
        elif kind == b"Z":
            break
    if refusal:
        raise StoreUnavailable(
            f"the PostgreSQL server refused: {refusal}",
            why="see its message",
            fix="mend the statement, or wait until the server has started",
        )
    return rows


def _values(body: bytes) -> Iterator[str | None]:
    """Yield the columns of one row: a length, -1 for null, then that many bytes."""
    (columns,) = struct.unpack_from("!h", body)
    at = 2
    for _ in range(columns):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        yield None if length < 0 else body[at : at + length].decode()
        at += max(length, 0)


def _replies(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, body) of each message the server sends."""
    with connection.makefile("rb") as stream:
        while head := stream.read(5):
            kind, length = struct.unpack("!ci", head)
            yield kind, stream.read(length - 4)
    raise ConnectionResetError("the server closed the connection")

"""Clients that send too much, nonsense, or never read: the server answers what it can and keeps its memory."""

from __future__ import annotations

import asyncio
import json
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.mcp.conftest import Serve
from tests.mcp.wire import PATIENCE_S, Wired, call, refused

FAR_TOO_MUCH = 8 << 20
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}},
}


def line(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def tool(number: int, name: str, **arguments: Any) -> bytes:
    return line(id=number, method="tools/call", params={"name": name, "arguments": arguments})


class Raw:
    """A client that writes what it likes."""

    def __init__(self, server: Wired) -> None:
        self._server = server
        self._lines = os.fdopen(server.stdout, "rb", closefd=False)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._server.stdin, data) :]

    def read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer

    def begin(self) -> None:
        self.write(json.dumps(INITIALIZE).encode() + b"\n")
        assert self.read()["id"] == 0
        self.write(line(method="notifications/initialized"))


def resident_kb(pid: int) -> int:
    (value,) = [
        row.split()[1] for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS")
    ]
    return int(value)


def test_nonsense_and_lines_that_are_too_long_are_answered_and_the_next_one_is_served(
    serve: Serve, environ: dict[str, str]
) -> None:
    environ["SENNIT_PAYLOAD_BYTES_MAX"] = "100000"
    server = serve()
    client = Raw(server)
    client.begin()

    client.write(b"no json at all\n\n   \n[1, 2]\n" + b"\xff\xfe\n")
    assert [client.read()["error"]["code"] for _ in range(3)] == [-32700] * 3
    client.write(b'{"x": "' + b"x" * 400_000 + b'"}\n' + b"y" * 300_000 + b"\n")
    assert [client.read()["error"]["code"] for _ in range(2)] == [-32600] * 2
    client.write(tool(7, "no_such_tool"))
    assert client.read()["error"]["code"] == -32602
    client.write(tool(8, "task_ready"))
    assert client.read()["result"]["structuredContent"]["tasks"] == []
    assert server.ended() == 0


def test_a_client_that_floods_is_refused_and_others_are_served(serve: Serve) -> None:
    server, other_server = serve("--waits-max", "2"), serve()
    client = Raw(server)
    client.begin()
    n = 300

    client.write(b"".join(tool(number, "task_claim", wait_s=50) for number in range(1, n + 1)))
    refusals = [client.read() for _ in range(n - 2)]

    assert all(answer["result"]["isError"] for answer in refusals)

    async def served() -> None:
        async with other_server.client() as other:
            for _ in range(2):
                await call(other, "task_create", title="for the two that wait")

    asyncio.run(served())
    claims = [client.read()["result"]["structuredContent"]["claim"] for _ in range(2)]
    assert all(claims)
    assert server.ended() == 0


def test_a_client_that_never_reads_is_not_read_from_for_ever(serve: Serve) -> None:
    """What it does not take fills its pipe and a few answers here; then it can write no more, and that is all."""
    server = serve()
    client = Raw(server)
    client.begin()
    client.write(tool(1, "task_ready"))
    client.read()
    before_kb = resident_kb(server.process.pid)

    request = tool(1, "state_get", thread_id="x" * 900)
    os.set_blocking(server.stdin, False)
    sent = 0
    while sent < FAR_TOO_MUCH and select.select([], [server.stdin], [], 0.5)[1]:
        with suppress(BlockingIOError):
            sent += os.write(server.stdin, request)

    assert sent < FAR_TOO_MUCH
    assert resident_kb(server.process.pid) < before_kb + 50_000
    server.go()
    assert server.process.wait() == 0, "it ends when the client has gone"


def test_a_cancelled_wait_makes_room_for_the_next(serve: Serve) -> None:
    server = serve("--waits-max", "1")

    async def main() -> None:
        async with server.client("legacy") as client:
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(10):
                    waiting = asyncio.create_task(client.call_tool("task_claim", {"wait_s": 50}))
                    while True:
                        error = await client.call_tool("await_answer", {"ask": 1, "wait_s": 0})
                        assert error.is_error
                        if (await client.call_tool("task_claim", {"wait_s": 0})).is_error:
                            break  # the one place for waits is taken
                    waiting.cancel()
                    await asyncio.wait({waiting})
                while (await client.call_tool("task_claim", {"wait_s": 0})).is_error:
                    pass  # the cancellation is on its way
            assert (await refused(client, "task_claim", queue="none"))["code"] == "S101"

    asyncio.run(main())

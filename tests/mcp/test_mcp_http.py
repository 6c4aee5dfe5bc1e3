"""Streamable HTTP: the official client with and without sessions, and who is kept out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from sennit.errors import SettingsError
from sennit.integrations.mcp.http import Address
from sennit.model.lifecycle import State
from sennit.store.protocol import Store
from tests.mcp.conftest import HttpServer, Serve
from tests.mcp.cradle import Cradle
from tests.mcp.wire import call, refused

ServeHttp = Callable[..., HttpServer]


def test_sessions_are_clients_of_their_own_and_end_with_what_they_hold(serve_http: ServeHttp, store: Store) -> None:
    server = serve_http("--claims-max", "1")

    async def main() -> None:
        async with server.client("legacy") as staying:
            async with server.client("legacy") as leaving:
                tasks = [(await call(staying, "task_create", title=str(n)))["task"] for n in range(2)]
                held = await call(leaving, "task_claim")
                assert "tasks are held" in (await refused(leaving, "task_claim"))["what"]
                mine = await call(staying, "task_claim")
                assert {held["task"], mine["task"]} == set(tasks)
                await call(staying, "task_complete", claim=mine["claim"])
            again = await call(staying, "task_claim", wait_s=50)  # its session has ended, with a DELETE
            assert (again["task"], again["attempt"]) == (held["task"], 2)
            assert (await refused(staying, "task_complete", claim=held["claim"]))["code"] == "S310"
            await call(staying, "task_complete", claim=again["claim"])

    asyncio.run(main())
    assert {task.state for task in store.tasks().result()} == {State.SUCCEEDED}


def test_without_a_session_a_claim_lives_by_its_lease(serve_http: ServeHttp) -> None:
    server = serve_http("--claim-lease-s", "1")

    async def main() -> None:
        async with server.client("2026-07-28") as client:
            await call(client, "task_create", title="one")
            held = await call(client, "task_claim", wait_s=50)
            again = await call(client, "task_claim", wait_s=50)
            assert (again["task"], again["attempt"]) == (held["task"], 2)
            assert (await refused(client, "task_complete", claim=held["claim"]))["code"] == "S310"

    asyncio.run(main())


def test_a_client_and_one_over_stdio_work_on_the_same_tasks(serve_http: ServeHttp, serve: Serve) -> None:
    server, wired = serve_http(), serve()

    async def main() -> None:
        async with server.client() as client, wired.client() as other:
            waiting = asyncio.create_task(call(other, "task_claim", wait_s=50))
            await call(other, "task_ready")
            task = (await call(client, "task_create", title="one"))["task"]
            assert (await waiting)["task"] == task

    asyncio.run(main())


def test_requests_without_the_token_or_for_another_host_are_refused(
    serve_http: ServeHttp, environ: dict[str, str], tmp_path: Path
) -> None:
    environ["SENNIT_PAYLOAD_BYTES_MAX"] = "100000"
    server = serve_http()
    good = {"authorization": f"Bearer {server.token}"}

    async def main() -> None:
        assert await server.post() == 401
        assert await server.post(authorization="Bearer wrong") == 401
        assert await server.post(authorization="Bearer ünknown") == 401
        assert await server.post(**good, host="evil.example") == 421
        assert await server.post(**good, origin="http://evil.example") == 403
        assert await server.post(**good) not in {401, 403, 421}
        async with httpx2.AsyncClient(trust_env=False, headers=good) as http:
            assert (await http.get(server.url.replace("/mcp", "/"))).status_code == 404
            json = {"content-type": "application/json"}
            assert (await http.post(server.url, content=b" " * (1 << 20), headers=json)).status_code == 413

    asyncio.run(main())
    assert (tmp_path / "stdout.log").read_bytes() == b""


def test_other_machines_are_let_in_only_with_a_token_of_ones_own() -> None:
    with pytest.raises(SettingsError, match="without a token"):
        Address.parse("0.0.0.0:8000")
    with pytest.raises(SettingsError, match="fewest"):
        Address.parse("0.0.0.0:8000", token="short")
    with pytest.raises(SettingsError, match="HOST:PORT"):
        Address.parse("127.0.0.1")
    address = Address.parse("0.0.0.0:8000", token="x" * 32, hosts=["fleet.example"])
    assert address.names == ["0.0.0.0", "fleet.example"]
    assert Address.parse("[::1]:0").host == "::1"
    assert len(Address.parse("127.0.0.1:0").token) > 30
    assert Address.parse("127.0.0.1:0").token != Address.parse("127.0.0.1:0").token


def test_a_taken_port_is_told(cradle: Cradle, environ: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ("mcp", "--http", f"127.0.0.1:{taken.getsockname()[1]}")
        done = cradle.run("tests.cli.processes:sennit", *words, folder=tmp_path, environ=environ)
    assert (done.returncode, done.stdout) == (78, "")
    assert "cannot listen" in done.stderr
    assert "choose another port" in done.stderr

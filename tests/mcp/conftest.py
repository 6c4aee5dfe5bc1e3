"""Servers as real processes over pipes and HTTP, and doors in this process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from sennit.integrations.mcp.door import Door, Options
from sennit.model.settings import Settings
from sennit.runtime.stores import open_store
from sennit.store.protocol import Store
from tests.mcp.cradle import Cradle
from tests.mcp.wire import Wired

Serve = Callable[..., Wired]
OpenDoor = Callable[..., AbstractAsyncContextManager[Door]]


@pytest.fixture(scope="session")
def cradle() -> Iterator[Cradle]:
    """Starts processes that have the SDK imported."""
    with closing(Cradle()) as started:
        yield started


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def environ() -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SENNIT_")}
    return {**mine, "SENNIT_DURABILITY": "normal"}


@pytest.fixture
def serve(cradle: Cradle, url: str, environ: dict[str, str], tmp_path: Path) -> Iterator[Serve]:
    """Starts `sennit mcp` with these words over pipes."""
    started: list[Wired] = []

    def start(*words: str) -> Wired:
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        errors = tmp_path / f"stderr-{len(started)}.log"
        with errors.open("wb") as stderr:
            process = cradle.start(
                "tests.cli.processes:sennit",
                "mcp",
                "--db",
                url,
                *words,
                folder=tmp_path,
                environ=environ,
                descriptors={0: stdin, 1: stdout, 2: stderr.fileno()},
            )
        os.close(stdin)
        os.close(stdout)
        started.append(Wired(process, ours_in, ours_out, errors))
        return started[-1]

    yield start
    for server in started:
        server.close()


class HttpServer:
    """A server that listens.

    Attributes:
        url: of it.  token: that it has shown.
    """

    def __init__(self, url: str, token: str, kill: Callable[[], int]) -> None:
        self.url = url
        self.token = token
        self.kill = kill

    @asynccontextmanager
    async def client(self, mode: str = "legacy") -> AsyncIterator[Client]:
        """Connect the official client."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode) as client,
        ):
            yield client

    async def post(self, **headers: str) -> int:
        """Send a request with these headers, and return the status."""
        async with httpx2.AsyncClient(trust_env=False) as http:
            body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            accept = {"accept": "application/json, text/event-stream"}
            encoded = [(name.encode(), value.encode("latin-1")) for name, value in (accept | headers).items()]
            return (await http.post(self.url, json=body, headers=encoded)).status_code


@pytest.fixture
def serve_http(
    cradle: Cradle, url: str, environ: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., HttpServer]]:
    """Starts `sennit mcp --http` on a free port."""
    started = []

    def start(*words: str) -> HttpServer:
        errors, stderr = os.pipe()
        stdout = (tmp_path / "stdout.log").open("wb")
        words = ("mcp", "--db", url, "--http", "127.0.0.1:0", *words)
        with stdout:
            process = cradle.start(
                "tests.cli.processes:sennit",
                *words,
                folder=tmp_path,
                environ=environ,
                descriptors={1: stdout.fileno(), 2: stderr},
            )
        os.close(stderr)
        said = os.fdopen(errors)
        started.append((process, said))
        place = said.readline().split()[-1]
        token = said.readline().split()[-1]
        return HttpServer(place, token, process.kill)

    yield start
    for process, said in started:
        process.kill()
        said.close()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """The store, of somebody who only looks and submits."""
    with closing(open_store(url, Settings(durability="normal"), works=False)) as opened:
        yield opened


@pytest.fixture
def open_door(url: str) -> OpenDoor:
    """Opens doors in this process, each with a store object of its own; settings and options by name."""

    @asynccontextmanager
    async def opened(options: Options | None = None, **settings: Any) -> AsyncIterator[Door]:
        made = Settings(durability="normal", **settings)
        with closing(open_store(url, made)) as store:
            async with Door(store, made, options or Options()) as door:
                yield door

    return opened

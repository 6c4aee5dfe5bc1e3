"""Which path does what: the model calls, and `/control/…` for whoever runs the fake, also from another process.

GET  /control/statistics[?log=0]     ProviderStatistics as JSON; log=0 leaves the log out
GET  /control/wait?requests=5&…      the same, as soon as every count is at least that (or in_service is 0, with idle=1);
                                     408 after timeout_s, 10 by default
GET  /control/knobs                  what is turned how
POST /control/configure              {"rpm": 60, …}
POST /control/exhaust                {"reset_in_s": 10, "at_call": 0}; 0 s make the window whole; at_call 1 is the next call
POST /control/hasten                 with the next call what was to be with a later one; false if nothing was
POST /control/inject                 {"fault": "status_500", "count": 3}: the next calls that would have been served
POST /control/reset                  counts from 0, whole limits
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from sennit.errors import SettingsError
from sennit.testing.provider_http import Connection, Request
from sennit.testing.provider_knobs import Fault, Knobs
from sennit.testing.provider_server import JSON, SHAPES, ProviderServer
from sennit.testing.provider_shapes import Answerer, BadRequest
from sennit.testing.provider_statistics import ProviderStatistics

# Counts that can be waited for.
COUNTS: Final = ("requests", "ok", "ended", "in_service", "refused", "connections")


async def serve(
    knobs: Knobs,
    port: int,
    on_ready: Callable[[int], None],
    until: Callable[[], Awaitable[None]],
    answer: Answerer | None = None,
) -> None:
    """Serve on 127.0.0.1 until `until()` returns; `on_ready` is called with the port once it listens.

    Raises:
        OSError: the port is taken.
    """
    server = ProviderServer(knobs, answer)
    control = Control(server)
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(control.handle, server.connections), "127.0.0.1", port, backlog=1024
    )
    try:
        on_ready(listener.sockets[0].getsockname()[1])
        await until()
    finally:
        listener.close()
        await server.close()
        await listener.wait_closed()


class Exhaust(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /control/exhaust."""

    reset_in_s: float
    at_call: int = 0


class Inject(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /control/inject."""

    fault: Fault
    count: int = 1


class Waiter:
    """Somebody waits for counts."""

    def __init__(self, connection: Connection, needs: dict[str, float]) -> None:
        self.connection = connection
        self.needs = needs
        self.timer: asyncio.TimerHandle | None = None

    def is_content(self, statistics: ProviderStatistics) -> bool:
        """True when every count is reached."""
        counts = {
            "requests": statistics.requests,
            "ok": statistics.ok,
            "ended": sum(statistics.by_status.values()),
            "in_service": statistics.in_service,
            "refused": sum(statistics.refused.values()),
            "connections": statistics.connections,
        }
        if self.needs.get("idle") and statistics.in_service:
            return False
        return all(counts[name] >= least for name, least in self.needs.items() if name in counts)


class Control:
    """The router of one server."""

    def __init__(self, server: ProviderServer) -> None:
        self._server = server
        self._waiters: list[Waiter] = []
        server.on_change = self._look

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request, now or later."""
        if request.path in SHAPES and request.method == "POST":
            self._server.call(request, connection)
            return
        connection.is_control = request.path.startswith("/control/")
        try:
            if not connection.is_control:
                self._server.check_key(request)
            self._control(request, connection)
        except BadRequest as error:
            text = error.message or "Incorrect API key provided."
            _respond(connection, error.status, {"error": {"message": text, "type": "authentication_error"}})
        except (SettingsError, msgspec.DecodeError, ValueError) as error:
            _respond(connection, 400, {"error": {"message": str(error), "type": "invalid_request_error"}})

    def _control(self, request: Request, connection: Connection) -> None:
        query = dict(parse_qsl(request.query))
        match (request.method, request.path):
            case ("GET", "/v1/models"):
                models = [_model(name) for name in self._server.knobs.models]
                _respond(connection, 200, {"object": "list", "data": models, "has_more": False})
            case ("GET", path) if path.startswith("/v1/models/"):
                _respond(connection, 200, _model(path.removeprefix("/v1/models/")))
            case ("GET", "/control/statistics"):
                _respond(connection, 200, self._server.statistics(with_log=query.get("log") != "0"))
            case ("GET", "/control/wait"):
                self._wait(connection, {name: float(value) for name, value in query.items()})
            case ("GET", "/control/knobs"):
                _respond(connection, 200, self._server.knobs)
            case ("POST", "/control/configure"):
                self._server.configure(msgspec.json.decode(request.body, type=dict[str, object]))
                _respond(connection, 200, self._server.knobs)
            case ("POST", "/control/exhaust"):
                exhaust = msgspec.json.decode(request.body, type=Exhaust)
                self._server.exhaust(exhaust.reset_in_s, at_call=exhaust.at_call)
                _respond(connection, 200, {})
            case ("POST", "/control/hasten"):
                _respond(connection, 200, self._server.hasten())
            case ("POST", "/control/inject"):
                inject = msgspec.json.decode(request.body, type=Inject)
                self._server.injected.extend([inject.fault] * inject.count)
                _respond(connection, 200, {})
            case ("POST", "/control/reset"):
                self._server.reset()
                _respond(connection, 200, {})
            case (_, path):
                text = f"there is no {request.method} {path} here"
                _respond(connection, 404, {"error": {"message": text, "type": "invalid_request_error"}})

    def _wait(self, connection: Connection, needs: dict[str, float]) -> None:
        timeout_s = needs.pop("timeout_s", 10.0)
        if unknown := set(needs) - {*COUNTS, "idle"}:
            raise ValueError(
                f"one cannot wait for {', '.join(sorted(unknown))}; there are {', '.join(COUNTS)} and idle"
            )
        waiter = Waiter(connection, needs)
        self._waiters.append(waiter)
        waiter.timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up, waiter)
        connection.on_lost = lambda: self._drop(waiter)
        self._look()

    def _look(self) -> None:
        """Answer those who have waited long enough."""
        if not self._waiters:
            return
        statistics = self._server.statistics(with_log=False)
        for waiter in [waiter for waiter in self._waiters if waiter.is_content(statistics)]:
            self._drop(waiter)
            _respond(waiter.connection, 200, statistics)

    def _give_up(self, waiter: Waiter) -> None:
        self._drop(waiter)
        _respond(waiter.connection, 408, self._server.statistics(with_log=False))

    def _drop(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.timer is not None:
            waiter.timer.cancel()


def _model(name: str) -> dict[str, object]:
    """Return a model so that both SDKs understand it."""
    told = {"created": 1_700_000_000, "created_at": "2023-11-14T22:13:20Z", "owned_by": "fake", "display_name": name}
    return {"id": name, "object": "model", "type": "model", **told}


def _respond(connection: Connection, status: int, body: object) -> None:
    connection.respond(status, [JSON], msgspec.json.encode(body))

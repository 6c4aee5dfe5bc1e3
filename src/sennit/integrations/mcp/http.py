"""MCP over streamable HTTP, for programs of this machine unless told otherwise.

    request ─► Host and Origin as expected? ─► bearer token? ─► size? ─► the SDK's session, or a request without one

The checks of Host and Origin keep web pages out that were made to think they talk to their own server (DNS rebinding). The
token keeps out everybody else who can reach the port, other users of the machine among them. Without a session (revision
2026-07-28 of MCP) a claim lives by its lease alone; with one it ends with the session, too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sennit.errors import SettingsError

PATH: Final = "/mcp"
TOKEN_BYTES: Final = 32
TOKEN_CHARS_MIN: Final = 16
SESSIONS_MAX: Final = 1000
CONNECTIONS_MAX: Final = 2000
STOP_S: Final = 2
IDLE_S_MIN: Final = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen, and for whom.

    Attributes:
        token: what requests must carry; "" makes one, on loopback only.
        hosts: further names that this server is called by (`Host: name:port`).
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    hosts: Sequence[str] = ()

    @classmethod
    def parse(cls, text: str, *, token: str = "", hosts: Sequence[str] = ()) -> Address:
        """Read `HOST:PORT`, `[::1]:PORT` or `PORT`.

        Raises:
            SettingsError: it is none, or is reached by other machines and there is no token.
        """
        host, _, port = text.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"{text!r} is no HOST:PORT", fix="for example 127.0.0.1:8789; port 0 takes a free one")
        if token and len(token) < TOKEN_CHARS_MIN:
            raise SettingsError(
                f"the token has {len(token)} characters, and {TOKEN_CHARS_MIN} are the fewest",
                why="it can be guessed over the network",
                fix="python -c 'import secrets; print(secrets.token_urlsafe())'",
            )
        if not token and not is_loopback(host):
            raise SettingsError(
                f"the MCP server will not listen on {host} without a token of yours",
                why="other machines would reach it",
                fix="set SENNIT_MCP_TOKEN, or listen on 127.0.0.1",
            )
        return cls(host=host, port=int(port), token=token or secrets.token_urlsafe(TOKEN_BYTES), hosts=tuple(hosts))

    @property
    def names(self) -> list[str]:
        """How this server may be called in Host and Origin, without port."""
        loopback = ["127.0.0.1", "localhost", "[::1]"] if is_loopback(self.host) else []
        own = f"[{self.host}]" if ":" in self.host else self.host
        return list(dict.fromkeys([*loopback, own, *self.hosts]))


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


async def serve(
    server: Server[Any],
    address: Address,
    *,
    message_bytes_max: int,
    idle_s: float,
    listening: Callable[[str], None],
) -> None:
    """Serve until this is cancelled.

    Args:
        idle_s: a session of which nothing was heard for so long ends.
        listening: called with the URL once it listens.

    Raises:
        OSError: the port is taken.
    """
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=message_bytes_max,
        session_idle_timeout=idle_s,
        max_sessions=SESSIONS_MAX,
        host=address.host,
        transport_security=TransportSecuritySettings(
            allowed_hosts=[form for name in address.names for form in (name, f"{name}:*")],
            allowed_origins=[f"http://{form}" for name in address.names for form in (name, f"{name}:*")],
        ),
    )
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.create_server((address.host, address.port), family=family) as sock:
        port = sock.getsockname()[1]
        config = uvicorn.Config(
            _Guarded(app, address.token),
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,  # made by the ticks that there are none of
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=STOP_S,
        )
        shown = f"[{address.host}]" if ":" in address.host else address.host
        await _Uvicorn(config, lambda: listening(f"http://{shown}:{port}{PATH}")).serve(sockets=[sock])


class _Uvicorn(uvicorn.Server):
    """Says when it listens, leaves signals to who runs it, and does not wake ten times a second."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()

    async def main_loop(self) -> None:
        """Wait until this is cancelled; then its shutdown follows as usual."""
        self._listening()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        self.should_exit = True


class _Guarded:
    """An ASGI app that answers nobody who does not know the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = HTTPConnection(scope).headers.get("authorization", "").encode("latin-1", "replace")
            if not secrets.compare_digest(given, self._expected):
                error = {"error": "invalid_token", "error_description": "the bearer token is missing or wrong"}
                await JSONResponse(error, 401, {"www-authenticate": 'Bearer realm="sennit"'})(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003, "reason": "HTTP only"})
            return
        await self._app(scope, receive, send)

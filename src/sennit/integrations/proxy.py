"""A proxy on loopback that puts the limits in front of any framework: change its base URL, and it is governed.

    any SDK ──POST /v1/…──► sennit proxy ──permit──► the provider's own server
                               │   └─ paused: waits up to `wait_s`, then answers 429 with Retry-After itself
                               └─ streams pass unbuffered; a client that goes away cancels its call and frees its permit

    /v1/chat/completions, /v1/responses, /v1/messages, anything else under /v1     to the default provider
    /openai/v1/…, /anthropic/v1/…                                                  to the provider of that name

Requests and answers pass byte by byte as they are: paths, headers, keys, errors. Keys are the client's own; none is stored,
logged or added. It is a proxy for programs of one's own machine and asks for no password: it listens on loopback unless
told otherwise.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httpx2

from sennit.errors import BudgetExceeded, CircuitOpen, LimitError, ProviderBusy, SettingsError
from sennit.integrations.http import AsyncLimitedTransport
from sennit.integrations.slots import Slots
from sennit.limit.feedback_text import shortened
from sennit.model.provider import checked_provider_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

_log = logging.getLogger("sennit.proxy")

# As long as the clients' own default: who waits longer than the client gets nothing for it.
IDLE_S: Final = 600.0
CONNECT_S: Final = 10.0
# Shorter than the time-outs of the SDKs (600 s), long enough for a pause of a minute.
WAIT_S: Final = 90.0
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
STOP_S: Final = 5

# Headers of one connection, not of the message. Source: RFC 9110, 7.6.1.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_SENT_ON: Final = _HOP_BY_HOP | {"host", "content-length"}


def proxy_app(
    slots: Slots,
    upstreams: Mapping[str, str],
    *,
    default: str = "",
    wait_s: float = WAIT_S,
    idle_s: float = IDLE_S,
) -> Starlette:
    """Return the proxy as an ASGI app.

    Args:
        slots: `app.limits`.
        upstreams: provider → base URL of its server, without /v1.
        default: the provider of paths that begin with /v1; by default the only one, or the first.
        wait_s: how long a request waits for a permit before it is answered 429.
        idle_s: how long an upstream may send nothing.

    Raises:
        SettingsError: there is no upstream, one is no URL, or the default is none of them.
    """
    from starlette.applications import Starlette  # noqa: PLC0415 - only who serves pays for it
    from starlette.routing import Mount  # noqa: PLC0415

    for name, url in upstreams.items():
        if checked_provider_name(name) == "v1":
            raise SettingsError("an upstream cannot be called 'v1'", why="/v1/… is the path of the default provider")
        _checked_url(name, url)
    first = default or next(iter(upstreams), "")
    if first not in upstreams:
        raise SettingsError(
            f"the proxy has no upstream {first!r}" if first else "the proxy has no upstream",
            fix="for example --upstream openai=https://api.openai.com",
        )
    timeout = httpx2.Timeout(idle_s, connect=CONNECT_S, pool=None)
    relays = {
        name: _Relay(
            url,
            lambda name=name: httpx2.AsyncClient(  # type: ignore[misc]
                # The limits say how many at once, not a pool of connections nobody knows of.
                transport=AsyncLimitedTransport(
                    slots,
                    name,
                    httpx2.AsyncHTTPTransport(
                        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100), retries=0
                    ),
                    by_model=True,
                    wait_s_max=wait_s,
                ),
                timeout=timeout,
            ),
        )
        for name, url in upstreams.items()
    }

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        for relay in relays.values():
            await relay.aclose()

    routes = [Mount(f"/{name}", relay) for name, relay in relays.items()]
    return Starlette(routes=[*routes, Mount("/", relays[first])], lifespan=lifespan)


def serve(
    slots: Slots,
    upstreams: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    port: int = 8788,
    default: str = "",
    wait_s: float = WAIT_S,
    idle_s: float = IDLE_S,
    allow_remote: bool = False,
    listening: Callable[[str], None] | None = None,
) -> int:
    """Serve the proxy until SIGINT or SIGTERM; requests under way then have STOP_S to end. Return the signal.

    Args:
        port: 0 takes a free one.
        allow_remote: listen on an address that other machines reach. They can then use what the proxy can reach, with keys of
            their own, and see the limits of the fleet.
        listening: called with the URL once it listens.

    Raises:
        SettingsError: the address is not on loopback and `allow_remote` is off, or see proxy_app.
        OSError: the port is taken.
    """
    import uvicorn  # noqa: PLC0415 - only who serves pays for it

    if not allow_remote and not _is_loopback(host):
        raise SettingsError(
            f"the proxy will not listen on {host}",
            why="other machines would reach it, and it asks for no password",
            fix="leave the host out, or say --allow-remote",
        )
    app = proxy_app(slots, upstreams, default=default, wait_s=wait_s, idle_s=idle_s)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as sock:
        bound = sock.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )
        server = uvicorn.Server(config)
        with _signals(server) as caught:
            if listening is not None:
                listening(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
            server.run(sockets=[sock])
    return caught[0] if caught else 0


@contextmanager
def _signals(server: uvicorn.Server) -> Iterator[list[int]]:
    """Note the signals that uvicorn raises again when it has stopped: left alone, SIGTERM would end the process there."""
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        server.should_exit = True  # it came before uvicorn listened to signals

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _checked_url(name: str, url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise SettingsError(
            f"the upstream of {name!r} is no URL: {url!r}", fix=f"for example {name}=https://api.openai.com"
        )


class _Relay:
    """An ASGI app that passes requests on to one upstream."""

    def __init__(self, url: str, make_client: Callable[[], httpx2.AsyncClient]) -> None:
        # With or without /v1 at its end: people copy it from where SDKs want it.
        self._url = url.rstrip("/").removesuffix("/v1")
        self._make_client = make_client
        self._client: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; when its client goes away, what is under way for it is cancelled."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003, "reason": "sennit proxy speaks HTTP only"})
            return
        exchange = _Exchange(scope, send)
        try:
            body = await _read(receive)
        except _TooLarge:
            await exchange.refuse(413, "request_too_large", f"a request has at most {BODY_BYTES_MAX} bytes here")
            return
        if body is None:
            return
        if not exchange.is_under_v1:
            await exchange.refuse(404, "not_found_error", "sennit proxy passes on what is under /v1/")
            return
        if self._client is None:
            self._client = self._make_client()
        answering = asyncio.create_task(exchange.answer(self._client, self._url + exchange.target, body))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.wait({answering, leaving})
        if not answering.cancelled():
            answering.result()


class _TooLarge(Exception):
    """The body of a request is over the bound."""


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request, None when its client is gone.

    Raises:
        _TooLarge: it is over the bound; all of it has been read, and dropped.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        size += len(message.get("body", b""))
        if size <= BODY_BYTES_MAX:
            parts.append(message.get("body", b""))
        else:
            parts.clear()
        if not message.get("more_body"):
            break
    if size > BODY_BYTES_MAX:
        raise _TooLarge
    return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._begun = False
        root = str(scope.get("root_path", ""))
        raw = scope.get("raw_path") or str(scope["path"]).encode()
        self.path = bytes(raw).partition(b"?")[0].decode("latin-1").removeprefix(root)
        query = bytes(scope.get("query_string", b"")).decode("latin-1")
        self.target = f"{self.path}?{query}" if query else self.path

    @property
    def is_under_v1(self) -> bool:
        """True when the path is one of the API, and no detour to another: `/v1/../admin`."""
        return self.path.startswith("/v1/") and not {".", ".."} & set(unquote(self.path).split("/"))

    async def answer(self, client: httpx2.AsyncClient, url: str, body: bytes) -> None:
        """Pass the request on and the answer back."""
        try:
            async with client.stream(self._scope["method"], url, content=body, headers=self._headers()) as response:
                await self._pass_back(response)
        except LimitError as error:
            await self._refused(error)
        except httpx2.TimeoutException as error:
            await self._failed(504, "timeout_error", f"the upstream has sent nothing in time: {error!r}")
        except httpx2.HTTPError as error:
            await self._failed(502, "api_error", f"the upstream cannot be reached: {error!r}")

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """Return the client's headers without those of its connection; bytes, since a value may be of any encoding."""
        sent: list[tuple[bytes, bytes]] = list(self._scope["headers"])
        named = {part.strip().lower() for name, value in sent if name == b"connection" for part in value.split(b",")}
        kept = [
            (name, value) for name, value in sent if name.decode("latin-1") not in _NOT_SENT_ON and name not in named
        ]
        if not any(name == b"accept-encoding" for name, _ in kept):
            kept.append((b"accept-encoding", b"identity"))  # else the client of this proxy would ask for what it likes
        if not any(name == b"user-agent" for name, _ in kept):
            kept.append((b"user-agent", b"sennit-proxy"))
        return kept

    async def _pass_back(self, response: httpx2.Response) -> None:
        headers = [(name, value) for name, value in response.headers.raw if name.lower().decode() not in _HOP_BY_HOP]
        await self._start(response.status_code, headers)
        # Raw: compressed as it came.
        async for chunk in response.aiter_raw():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    # ------------------------------------------------------------ our own answers

    async def _refused(self, error: LimitError) -> None:
        match error:
            case ProviderBusy() | CircuitOpen():
                wait_s = max(1, math.ceil(error.retry_after_s))
                status, kind = (
                    (429, "rate_limit_error") if isinstance(error, ProviderBusy) else (503, "overloaded_error")
                )
                await self.refuse(status, kind, str(error), retry_after_s=wait_s)
            case BudgetExceeded():
                # 402 is what no SDK retries: more tries do not make more money.
                await self.refuse(402, "billing_error", str(error))
            case _:
                await self.refuse(503, "overloaded_error", str(error), retry_after_s=1)

    async def _failed(self, status: int, kind: str, message: str) -> None:
        _log.warning("%s %s: %s", self._scope["method"], self.path, shortened(message))
        if self._begun:
            # The client has a part of the answer: breaking the connection is the only way left to say that it is one.
            raise ConnectionResetError(shortened(message))
        await self.refuse(status, kind, shortened(message))

    async def refuse(self, status: int, kind: str, message: str, *, retry_after_s: int = 0) -> None:
        """Answer with an error in the shape that the client of this path reads."""
        from starlette.responses import JSONResponse  # noqa: PLC0415 - only who serves pays for it

        body: dict[str, Any] = {"error": {"type": kind, "message": message}}
        if self.path.startswith("/v1/messages"):
            body = {"type": "error", **body}
        else:
            body["error"] |= {"code": kind, "param": None}
        headers = {"x-sennit-proxy": "refused"} | ({"retry-after": str(retry_after_s)} if retry_after_s else {})

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        await JSONResponse(body, status, headers)(self._scope, receive, self._send)

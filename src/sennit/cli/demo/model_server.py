"""A small OpenAI-compatible server on the loopback: slow, rate limited and truthful, as far as a demo needs.

    POST /v1/chat/completions     answers from the prompt itself (see review.compose), after a delay
    GET  /v1/models  /stats       what it offers; what it has seen

Delay and refusals are drawn from the seed, the prompt and how often that prompt was asked, not from the order of
arrival: a run with the same seed meets the same 429s however its requests interleave. Only the refusals above
`in_flight_max` depend on timing. One event loop in an OS thread of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from sennit.cli.demo.records import Record
from sennit.cli.demo.review import compose
from sennit.errors import SennitError

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL: Final = "sennit-demo-reviewer"
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
_HEAD_BYTES_MAX: Final = 64 * 1024
_CHARS_PER_TOKEN: Final = 4
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large", 429: "Too Many Requests"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServerSettings:
    """How the server behaves.

    Attributes:
        delay_s_median, delay_sigma: a lognormal delay; with 0.5 one in twenty takes longer than 2.3 medians.
        delay_scale: multiplies delays and Retry-After; below 1 for a fast demo.
        refused_share: of all requests, answered 429 by chance.
        in_flight_max: requests answered at once; those above it get a 429.
    """

    seed: int = 7
    delay_s_median: float = 0.12
    delay_sigma: float = 0.5
    delay_scale: float = 1.0
    refused_share: float = 0.04
    in_flight_max: int = 24
    retry_after_s: float = 0.5


class ServerStats(Record, frozen=True, omit_defaults=False):
    """What a server has seen so far; `in_flight_max` is the most requests it answered at the same time."""

    requests: int
    answered: int
    rate_limited: int
    in_flight: int
    in_flight_max: int


class _ChatRequest(Record, frozen=True):
    messages: tuple[dict[str, str], ...]
    model: str = MODEL


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: bytes
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: object
    retry_after_s: float | None = None


class _BadRequestError(Exception):
    """The bytes on the connection are no request this server takes; `status` tells why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ModelServer:
    """The server itself; lives on one event loop, counts without locks."""

    def __init__(self, settings: ModelServerSettings) -> None:
        self._settings = settings
        self._asked: Counter[bytes] = Counter()
        self._requests = self._answered = self._rate_limited = 0
        self._in_flight = self._in_flight_max = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen on a free loopback port and return the base URL.

        Raises:
            OSError: no port can be opened.
        """
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_HEAD_BYTES_MAX)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}/v1"

    async def stop(self) -> None:
        """Close the port and drop the connections that are still open."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def statistics(self) -> ServerStats:
        """Return the counts so far."""
        return ServerStats(self._requests, self._answered, self._rate_limited, self._in_flight, self._in_flight_max)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A plain callback: asyncio would log the cancellation of a coroutine it started itself.
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection in turn, until the client hangs up."""
        try:
            while (request := await _read_request(reader)) is not None:
                answer = await self._answer(request)
                await _write(writer, answer, keep_alive=request.keep_alive)
                if not request.keep_alive:
                    return
        except _BadRequestError as error:
            with suppress(OSError):
                await _write(writer, _Answer(error.status, _error_body(str(error))), keep_alive=False)
        except (OSError, EOFError):
            return  # the client went away; a killed worker does
        finally:
            writer.close()

    async def _answer(self, request: _Request) -> _Answer:
        match request.method, request.path.partition("?")[0]:
            case "GET", "/v1/models":
                return _Answer(
                    200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "sennit"}]}
                )
            case "GET", "/stats":
                return _Answer(200, self.statistics())
            case "POST", "/v1/chat/completions":
                return await self._chat(request.body)
            case method, path:
                return _Answer(404, _error_body(f"no {method} {path} here"))

    async def _chat(self, body: bytes) -> _Answer:
        try:
            asked = msgspec.json.decode(body, type=_ChatRequest)
        except msgspec.DecodeError as error:
            return _Answer(400, _error_body(f"not a chat request: {error}"))
        self._requests += 1
        chance = self._chance(body)
        by_chance = chance.random() < self._settings.refused_share
        if by_chance or self._in_flight >= self._settings.in_flight_max:
            return self._refuse(chance)
        self._in_flight += 1
        self._in_flight_max = max(self._in_flight_max, self._in_flight)
        try:
            spread = math.exp(self._settings.delay_sigma * chance.gauss(0.0, 1.0))
            await asyncio.sleep(self._settings.delay_s_median * spread * self._settings.delay_scale)
        finally:
            self._in_flight -= 1
        self._answered += 1
        return _Answer(200, _completion(body, asked))

    def _chance(self, body: bytes) -> random.Random:
        """Return the dice for this request: the same for the same prompt at the same time of asking."""
        prompt = hashlib.blake2b(body, digest_size=16).digest()
        self._asked[prompt] += 1
        return random.Random(f"{self._settings.seed}:{prompt.hex()}:{self._asked[prompt]}")

    def _refuse(self, chance: random.Random) -> _Answer:
        self._rate_limited += 1
        retry_after_s = self._settings.retry_after_s * self._settings.delay_scale * chance.uniform(0.5, 1.5)
        return _Answer(429, _error_body("Rate limit reached for requests"), retry_after_s=retry_after_s)


@contextmanager
def serving(settings: ModelServerSettings) -> Iterator[tuple[ModelServer, str]]:
    """Run a server in an OS thread of its own; yield it and its base URL (`http://127.0.0.1:PORT/v1`).

    Raises:
        SennitError: no loopback port can be opened.
    """
    server = ModelServer(settings)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = Future()

    async def live() -> None:
        stop = asyncio.Event()
        try:
            base_url = await server.start()
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result((asyncio.get_running_loop(), stop, base_url))
        await stop.wait()
        await server.stop()

    os_thread = threading.Thread(target=asyncio.run, args=(live(),), name="sennit-demo-model", daemon=True)
    os_thread.start()
    try:
        loop, stop, base_url = started.result()
    except OSError as error:
        raise SennitError(
            "the demo's model server could not open a port",
            why=str(error),
            fix="allow listening on 127.0.0.1, or set OPENAI_BASE_URL to a model endpoint",
        ) from error
    try:
        yield server, base_url
    finally:
        loop.call_soon_threadsafe(stop.set)
        os_thread.join()


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    """Read one request; None when the client has hung up between two.

    Raises:
        _BadRequestError: the head or the length makes no sense here.
        EOFError: the client hung up in the middle.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    except asyncio.LimitOverrunError as error:
        raise _BadRequestError(400, f"a head of more than {_HEAD_BYTES_MAX} bytes") from error
    method, _, rest = head[0].partition(" ")
    path, _, version = rest.partition(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    length = headers.get("content-length", "0")
    if not version.startswith("HTTP/1.") or not length.isdigit():
        raise _BadRequestError(400, "not an HTTP/1.1 request with a Content-Length")
    if int(length) > BODY_BYTES_MAX:
        raise _BadRequestError(413, f"a body of {length} bytes; at most {BODY_BYTES_MAX} are taken")
    body = await reader.readexactly(int(length))
    return _Request(method, path, body, keep_alive=headers.get("connection", "").lower() != "close")


async def _write(writer: asyncio.StreamWriter, answer: _Answer, *, keep_alive: bool) -> None:
    body = msgspec.json.encode(answer.body)
    lines = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    if answer.retry_after_s is not None:
        # Whole seconds by the standard; the client reads OpenAI's own header in milliseconds first.
        lines.append(f"Retry-After: {math.ceil(answer.retry_after_s)}")
        lines.append(f"retry-after-ms: {answer.retry_after_s * 1000:.0f}")
    writer.write("\r\n".join((*lines, "", "")).encode("ascii") + body)
    await writer.drain()


def _completion(body: bytes, asked: _ChatRequest) -> dict[str, object]:
    text = compose(asked.messages)
    prompt_tokens = sum(len(message.get("content", "")) for message in asked.messages) // _CHARS_PER_TOKEN
    completion_tokens = max(1, len(text) // _CHARS_PER_TOKEN)
    return {
        "id": f"chatcmpl-{hashlib.blake2b(body, digest_size=8).hexdigest()}",
        "object": "chat.completion",
        "created": 0,
        "model": asked.model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _error_body(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "rate_limit_error" if "Rate limit" in message else "invalid_request"}}

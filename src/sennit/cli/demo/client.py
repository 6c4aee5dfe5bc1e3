"""One call to an OpenAI-compatible endpoint, under a provider's limits: a request, a reply, and how it went.

    slot ─► request ─► response ─┬─► read_response ─► the provider: limit, pause, breaker, what it cost
                                 └─► ChatReply, or RateLimited, or ModelUnavailable

HTTP/1.1 on asyncio streams, one connection per call; the demo needs no HTTP library. Proxies are not used.
A 429 is `RateLimited`, and nobody's fault; all else is `ModelUnavailable`, which says if a retry can help.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from sennit.cli.demo.records import Record
from sennit.errors import SennitError
from sennit.limit.feedback import read_response
from sennit.sync.clock import wall_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sennit.submit.limits import Slot

MODEL_DEFAULT: Final = "gpt-4o-mini"
REPLY_BYTES_MAX: Final = 8 * 1024 * 1024
_HEAD_BYTES_MAX: Final = 64 * 1024
_OK, _TOO_MANY, _SERVER_ERROR = 200, 429, 500
_AUTH: Final = frozenset((401, 403))


class RateLimited(SennitError):
    """The endpoint answered 429: nothing is wrong, it is too early. The provider knows how long to hold back."""

    code: ClassVar[str] = "S501"
    exit_code: ClassVar[int] = 75

    def __init__(self, said: str) -> None:
        super().__init__("the model endpoint answered 429", why=said, fix="wait; the provider lets calls through again")


class ModelUnavailable(SennitError):
    """The endpoint gave no usable answer. `status` is its HTTP status, 0 when there was none."""

    code: ClassVar[str] = "S502"
    exit_code: ClassVar[int] = 69

    def __init__(self, what: str, *, why: str, fix: str, status: int = 0, retryable: bool = True) -> None:
        super().__init__(what, why=why, fix=fix)
        self.status = status
        self.retryable = retryable


class Endpoint(Record, frozen=True):
    """Where the model is; `base_url` ends before `/chat/completions`."""

    base_url: str
    api_key: str
    model: str


class ChatReply(Record, frozen=True):
    """The model's answer and what it cost."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int


class _Message(Record, frozen=True):
    content: str


class _Choice(Record, frozen=True):
    message: _Message


class _Usage(Record, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(Record, frozen=True):
    choices: tuple[_Choice, ...]
    model: str = ""
    usage: _Usage | None = None


class _Response(Record, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes


def endpoint_from(environ: Mapping[str, str]) -> Endpoint | None:
    """Return the endpoint that OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL name; None without a base URL."""
    base_url = environ.get("OPENAI_BASE_URL", "").strip()
    if not base_url:
        return None
    return Endpoint(base_url, environ.get("OPENAI_API_KEY", ""), environ.get("OPENAI_MODEL", "") or MODEL_DEFAULT)


async def chat(
    slot: Slot, endpoint: Endpoint, messages: Sequence[Mapping[str, str]], *, timeout_s: float = 60.0
) -> ChatReply:
    """Ask for one chat completion, and tell the provider how it went.

    Args:
        slot: what lets this one call through.
        timeout_s: from then on.

    Raises:
        RateLimited: the endpoint answered 429.
        ModelUnavailable: not reachable, too slow, refused, or not what an OpenAI-compatible endpoint answers.
    """
    base_url = endpoint.base_url
    body = msgspec.json.encode({"model": endpoint.model, "messages": list(messages)})
    try:
        async with slot as call:  # what is raised in here says how it went, where there is no response
            async with asyncio.timeout(timeout_s):
                response = await _post(f"{base_url.rstrip('/')}/chat/completions", endpoint.api_key, body)
            call.report(
                read_response(response.status, response.headers, response.body, now_wall_s=wall_us() / 1_000_000)
            )
            return _reply(endpoint, response)
    except TimeoutError as error:
        raise ModelUnavailable(
            f"{base_url} did not answer within {timeout_s:g} s",
            why="the endpoint is slow or the network drops packets",
            fix="try again, or allow more time",
        ) from error
    except (OSError, ValueError, asyncio.LimitOverrunError) as error:
        raise ModelUnavailable(
            f"no HTTP answer from {base_url}",
            why=f"{type(error).__name__}: {error}",
            fix="check OPENAI_BASE_URL and the network; without that variable the demo brings its own model server",
            retryable=not isinstance(error, ssl.SSLCertVerificationError),
        ) from error


async def _post(url: str, api_key: str, body: bytes) -> _Response:
    """Send one request and read the whole response.

    Raises:
        OSError: the connection failed or ended early.
        ValueError, LimitOverrunError: the URL, the key or the response is malformed.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"not an http or https URL: {url}")
    if not api_key.isprintable() or not api_key.isascii():
        raise ValueError("the API key holds characters that cannot stand in a header")
    head = (
        f"POST {parts.path}{'?' + parts.query if parts.query else ''} HTTP/1.1\r\n"
        f"Host: {parts.netloc.rpartition('@')[2]}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAccept: application/json\r\n"
        f"{f'Authorization: Bearer {api_key}' + chr(13) + chr(10) if api_key else ''}"
        "User-Agent: sennit-demo\r\nConnection: close\r\n\r\n"
    )
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=_HEAD_BYTES_MAX)
    try:
        writer.write(head.encode("ascii") + body)
        await writer.drain()
        return await _read_response(reader)
    except EOFError as error:
        raise ConnectionResetError(f"the connection ended early: {error}") from error
    finally:
        writer.close()
        with suppress(OSError):  # the reply is in; how the other side hangs up is its own affair
            await writer.wait_closed()


async def _read_response(reader: asyncio.StreamReader) -> _Response:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = head[0].partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise ValueError(f"not an HTTP/1.1 status line: {head[0][:80]!r}")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(_bounded(int(headers["content-length"])))
    else:
        body = await reader.read(-1)
    return _Response(int(status), headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(_bounded(len(body) + size) - len(body))
        await reader.readexactly(2)
    return bytes(body)


def _bounded(size_bytes: int) -> int:
    if not 0 <= size_bytes <= REPLY_BYTES_MAX:
        raise ValueError(f"a reply of {size_bytes} bytes; at most {REPLY_BYTES_MAX} are read")
    return size_bytes


def _reply(endpoint: Endpoint, response: _Response) -> ChatReply:
    base_url = endpoint.base_url
    excerpt = response.body[:300].decode("utf-8", "replace").strip() or "(empty)"
    if response.status == _TOO_MANY:
        raise RateLimited(excerpt)
    if response.status in _AUTH:
        raise ModelUnavailable(
            f"{base_url} refused the credentials (HTTP {response.status})",
            why=excerpt,
            fix="set OPENAI_API_KEY to a key this endpoint accepts",
            status=response.status,
            retryable=False,
        )
    if response.status != _OK:
        raise ModelUnavailable(
            f"{base_url} answered HTTP {response.status}",
            why=excerpt,
            fix="try again later" if response.status >= _SERVER_ERROR else "check OPENAI_BASE_URL and OPENAI_MODEL",
            status=response.status,
            retryable=response.status >= _SERVER_ERROR,
        )
    try:
        completion = msgspec.json.decode(response.body, type=_Completion)
        text = completion.choices[0].message.content
    except (msgspec.DecodeError, IndexError) as error:
        raise ModelUnavailable(
            f"{base_url} did not answer with a chat completion",
            why=f"{error}; it sent {excerpt}",
            fix="check that OPENAI_BASE_URL names an OpenAI-compatible API, usually ending in /v1",
            status=response.status,
            retryable=False,
        ) from error
    usage = completion.usage or _Usage()
    return ChatReply(text, completion.model or endpoint.model, usage.prompt_tokens, usage.completion_tokens)

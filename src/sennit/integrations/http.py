"""A transport that takes a permit for each request of an httpx2 client, and reports how it went.

    AsyncOpenAI(http_client=httpx2.AsyncClient(transport=AsyncLimitedTransport(app.limits, "openai")))

    request ─► slot ─► the transport below ─┬─► 4xx, 5xx: read at once, reported, the permit is free before anybody backs off
                                            └─► a stream: its bytes pass through; usage is read from them, and the permit
                                                is returned with the last one, or when the response is closed

It works in every client that lets itself be given one: the `openai` and `anthropic` packages (both take `http_client=`), and
all that are built on them. Their own retries stay: each is a request of its own, and waits for a permit while the provider is
paused. Their time-outs do not count that wait. The openai package lets our refusals (LimitError) through as they are; the
anthropic package retries them as lost connections and raises APIConnectionError with ours as its cause.

A request counts when it is a POST. Whoever opens a streamed response reads or closes it; one that is only dropped keeps
its permit until the garbage collector finds it.
"""

from __future__ import annotations

import _thread
import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import httpx2

from sennit.errors import ProviderBusy
from sennit.integrations.passage import Passage, offered_encodings
from sennit.integrations.slots import Call, Slot, Slots
from sennit.limit.feedback import RequestFeedback, read_request
from sennit.model.provider import split_name
from sennit.sync.ack import call_in

# A fallback cannot be called by a client that was made for another server.
_FALLBACK_RETRY_S: Final = 1.0

_closing: set[asyncio.Task[None]] = set()  # kept, or the loop would forget them


def is_model_call(request: httpx2.Request) -> bool:
    """Return whether a request counts against the limits: a POST that is not only about counting tokens."""
    return request.method == "POST" and not request.url.path.endswith("/count_tokens")


class _Rules:
    """What both transports do alike."""

    def __init__(
        self, slots: Slots, provider: str, counts: Callable[[httpx2.Request], bool], *, by_model: bool
    ) -> None:
        self.slots = slots
        self.provider = provider
        self.counts = counts
        self.by_model = by_model

    def name_and_tokens(self, request: httpx2.Request) -> tuple[str, int]:
        """Return what to ask a permit for."""
        if "accept-encoding" in request.headers:
            request.headers["accept-encoding"] = offered_encodings(request.headers["accept-encoding"])
        try:
            asked = read_request(request.content)
        except httpx2.RequestNotRead:
            asked = RequestFeedback()  # an upload that is streamed
        named = self.by_model and asked.model and "/" not in self.provider
        return (f"{self.provider}/{asked.model}" if named else self.provider), asked.tokens

    def check(self, call: Call) -> None:
        """Refuse a permit for somebody else.

        Raises:
            ProviderBusy: it is for a fallback, which this client does not talk to.
        """
        if split_name(call.provider)[0] != split_name(self.provider)[0]:
            raise ProviderBusy(self.provider, reason="pause", retry_after_s=_FALLBACK_RETRY_S)


class LimitedTransport(httpx2.BaseTransport):
    """Puts the limits of a provider in front of a sync transport.

    Args:
        slots: `app.limits`.
        provider: whose limits; `name`, or `name/model` when all calls are to one model.
        transport: what sends; default: httpx2's own.
        counts: which requests take a permit.
        by_model: ask for `provider/model` with the model of each request, so that sub-limits of models hold. Leave it off
            in tasks that are claimed with a permit for the provider itself.
    """

    def __init__(
        self,
        slots: Slots,
        provider: str,
        transport: httpx2.BaseTransport | None = None,
        *,
        counts: Callable[[httpx2.Request], bool] = is_model_call,
        by_model: bool = False,
    ) -> None:
        self._rules = _Rules(slots, provider, counts, by_model=by_model)
        self._transport = httpx2.HTTPTransport() if transport is None else transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Wait for a permit, send, and read what comes back as it passes.

        Raises:
            LimitError: there is no permit to be had.
        """
        if not self._rules.counts(request):
            return self._transport.handle_request(request)
        name, tokens = self._rules.name_and_tokens(request)
        body = _Body(self._rules.slots.slot(name, tokens=tokens)).begin()
        try:
            self._rules.check(body.call)
            response = self._transport.handle_request(request)
            body.answered(response)
            if response.status_code >= 400:
                return _whole(request, response, b"".join(body))
        except BaseException as error:
            body.end(error=error)
            raise
        return _passing(request, response, body)

    def close(self) -> None:
        """Close the transport below."""
        self._transport.close()


class AsyncLimitedTransport(httpx2.AsyncBaseTransport):
    """Puts the limits of a provider in front of an async transport; see LimitedTransport.

    Args:
        wait_s_max: the longest wait for a permit; after it ProviderBusy says when to come back. None waits for ever.
    """

    def __init__(
        self,
        slots: Slots,
        provider: str,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        counts: Callable[[httpx2.Request], bool] = is_model_call,
        by_model: bool = False,
        wait_s_max: float | None = None,
    ) -> None:
        self._rules = _Rules(slots, provider, counts, by_model=by_model)
        self._transport = httpx2.AsyncHTTPTransport() if transport is None else transport
        self._wait_s_max = wait_s_max

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Wait for a permit, send, and read what comes back as it passes.

        Raises:
            LimitError: there is no permit to be had.
        """
        if not self._rules.counts(request):
            return await self._transport.handle_async_request(request)
        name, tokens = self._rules.name_and_tokens(request)
        body = await self._permitted(name, tokens)
        try:
            self._rules.check(body.call)
            response = await self._transport.handle_async_request(request)
            body.answered(response)
            if response.status_code >= 400:
                return _whole(request, response, b"".join([chunk async for chunk in body]))
        except BaseException as error:
            await body.end(error=error)
            raise
        return _passing(request, response, body)

    async def _permitted(self, name: str, tokens: int) -> _AsyncBody:
        body = _AsyncBody(self._rules.slots.slot(name, tokens=tokens))
        if self._wait_s_max is None:
            return await body.begin()
        try:
            async with asyncio.timeout(self._wait_s_max) as bound:
                return await body.begin()
        except TimeoutError:
            if not bound.expired():
                raise
        # Whoever does not wait is told when to come back; should there be a permit in this very moment, so much the better.
        return await _AsyncBody(self._rules.slots.slot(name, tokens=tokens, wait=False)).begin()

    async def aclose(self) -> None:
        """Close the transport below."""
        await self._transport.aclose()


def _whole(request: httpx2.Request, response: httpx2.Response, content: bytes) -> httpx2.Response:
    """Return an error with its body, whose connection and permit are free again."""
    return httpx2.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx2.ByteStream(content),
        extensions=response.extensions,
        request=request,
    )


def _passing(request: httpx2.Request, response: httpx2.Response, body: _Body | _AsyncBody) -> httpx2.Response:
    return httpx2.Response(
        response.status_code,
        headers=response.headers,
        stream=body,
        extensions=response.extensions,
        request=request,
    )


class _AsyncBody(httpx2.AsyncByteStream):
    """The body of one response, and the permit that goes with it."""

    def __init__(self, slot: Slot) -> None:
        self.call: Call
        self._slot = slot
        self._passage = Passage()
        self._stream: httpx2.AsyncByteStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while the permit is out

    async def begin(self) -> _AsyncBody:
        """Wait for the permit."""
        self.call = await self._slot.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._passage = Passage()  # the wait is no part of the call
        return self

    def answered(self, response: httpx2.Response) -> None:
        """Take over the body of a response."""
        self._passage.answered(response.status_code, response.headers)
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - of an async transport
        self._stream = response.stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._stream is None:
            return
        try:
            async for chunk in self._stream:
                self._passage.feed(chunk)
                yield chunk
            await self._close()
        except GeneratorExit:
            raise  # the reader has stopped: aclose follows
        except BaseException as error:
            await self.end(error=error)
            raise
        await self.end()

    async def aclose(self) -> None:
        """Close the response and return the permit."""
        try:
            await self._close()
        finally:
            await self.end(complete=False)

    async def end(self, *, complete: bool = True, error: BaseException | None = None) -> None:
        """Report and return the permit, once."""
        if self._passage.report is None:
            self._loop = None
            self.call.report(self._passage.ended(complete=complete, error=error))
            await self._slot.__aexit__(*_exit(error))

    def __del__(self) -> None:
        """Somebody has dropped the response half-read.

        The garbage collector comes at any moment, to any OS thread, whatever locks that one holds. So the rest is done
        elsewhere: on the loop, as asyncio does with generators that are dropped, or in an OS thread if it is closed.
        """
        loop, self._loop = self._loop, None
        if loop is not None and not call_in(loop, self._left, loop):
            _in_os_thread(self._give_back)

    def _left(self, loop: asyncio.AbstractEventLoop) -> None:
        closing = loop.create_task(self.aclose())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)

    def _give_back(self) -> None:
        self.call.report(self._passage.ended(complete=False))
        self._slot.__exit__(None, None, None)

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


class _Body(httpx2.SyncByteStream):
    """The sync face of _AsyncBody."""

    def __init__(self, slot: Slot) -> None:
        self.call: Call
        self._slot = slot
        self._passage = Passage()
        self._stream: httpx2.SyncByteStream | None = None
        self._is_out = False

    def begin(self) -> _Body:
        """Wait for the permit."""
        self.call = self._slot.__enter__()
        self._is_out = True
        self._passage = Passage()
        return self

    def answered(self, response: httpx2.Response) -> None:
        """Take over the body of a response."""
        self._passage.answered(response.status_code, response.headers)
        assert isinstance(response.stream, httpx2.SyncByteStream)  # noqa: S101 - of a sync transport
        self._stream = response.stream

    def __iter__(self) -> Iterator[bytes]:
        if self._stream is None:
            return
        try:
            for chunk in self._stream:
                self._passage.feed(chunk)
                yield chunk
            self._close()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.end(error=error)
            raise
        self.end()

    def close(self) -> None:
        """Close the response and return the permit."""
        try:
            self._close()
        finally:
            self.end(complete=False)

    def end(self, *, complete: bool = True, error: BaseException | None = None) -> None:
        """Report and return the permit, once."""
        if self._passage.report is None:
            self._is_out = False
            self.call.report(self._passage.ended(complete=complete, error=error))
            self._slot.__exit__(*_exit(error))

    def __del__(self) -> None:
        """See _AsyncBody."""
        if self._is_out:
            self._is_out = False
            _in_os_thread(self.close)

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _in_os_thread(function: Callable[[], Any]) -> None:
    """Call this elsewhere. Not by `threading`, whose own locks may be held where the garbage collector comes by."""
    with suppress(RuntimeError):  # the interpreter ends, and with the process its permits come back
        _thread.start_new_thread(function, ())


def _exit(error: BaseException | None) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)

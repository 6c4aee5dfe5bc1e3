"""The fake provider's server: what happens to a model call from its arrival to its last byte.

    arrival ─► limits ─► fault? ─► in service ─► place at the bench ─► work ─► answer, whole or in pieces
                 └─ 429              └─ counted from here until just before the last byte is sent

It counts as left before its last byte is on the wire: else a client that sends the next call at once would be seen twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from sennit.sync.clock import monotonic_s, wall_us
from sennit.testing import provider_headers
from sennit.testing.provider_anthropic import Messages
from sennit.testing.provider_bench import Bench
from sennit.testing.provider_http import Connection, Headers, Request
from sennit.testing.provider_knobs import Fault, Knobs, latency_s, turned
from sennit.testing.provider_limits import Limits, Refusal
from sennit.testing.provider_openai import Chat, Responses
from sennit.testing.provider_shapes import Answerer, BadRequest, Call, Shape, Streamed, call_of, decode
from sennit.testing.provider_statistics import CLIENT_CLOSED, Books, ProviderStatistics
from sennit.testing.provider_tools import ToolCall, split

SHAPES: Final[dict[str, Shape]] = {
    "/v1/chat/completions": Chat(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
}
JSON: Final = ("content-type", "application/json")
EVENTS: Final = ("content-type", "text/event-stream; charset=utf-8")
# Gateways in front of the real ones answer for themselves, and not in JSON.
GATEWAY_STATUSES: Final = {502, 504}


class Visit:
    """One model call that has arrived: what it is, and that its end is written down exactly once."""

    def __init__(self, server: ProviderServer, connection: Connection, shape: Shape, number: int) -> None:
        self.server = server
        self.connection = connection
        self.shape = shape
        self.number = number
        self.arrival_s = monotonic_s()
        self.status = 0
        self.is_in_service = False
        self._is_over = False

    def enter(self) -> None:
        """It is in service from now on."""
        self.is_in_service = True
        self.server.books.served()

    def over(self, status: int, *, is_ok: bool = False) -> None:
        """It is over, or will be with the bytes that are written next."""
        if self._is_over:
            return
        self._is_over = True
        books = self.server.books
        if self.is_in_service:
            books.left()
        books.ended(self.arrival_s, monotonic_s(), status, is_ok=is_ok)
        self.server.changed()


class ProviderServer:
    """All state of one fake provider. Belongs to one event loop.

    Args:
        answer: makes the text of each answer; None leaves it to the knobs.
    """

    def __init__(self, knobs: Knobs, answer: Answerer | None = None) -> None:
        self.knobs = knobs
        self._text_for = answer
        self.books = Books(knobs.log_max)
        self.connections: set[Connection] = set()
        self.injected: deque[Fault] = deque()
        self.on_change: Callable[[], None] = lambda: None
        self._limits = Limits(knobs, monotonic_s())
        self._bench = Bench()
        self._bench.configure(knobs.slots, knobs.slots_mode)
        self._latencies = random.Random(knobs.seed)
        self._chances = random.Random(knobs.seed + 1)
        self._latency_set_s = monotonic_s()
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- turning knobs

    def configure(self, changes: dict[str, object]) -> None:
        """Turn some knobs. Raises SettingsError, and then nothing has changed."""
        before, knobs = self.knobs, turned(self.knobs, changes)
        self.knobs = knobs
        self._limits.configure(knobs, monotonic_s())
        self._bench.configure(knobs.slots, knobs.slots_mode)
        if "latency" in changes:
            self._latency_set_s = monotonic_s()
        if "seed" in changes:
            self._latencies, self._chances = random.Random(knobs.seed), random.Random(knobs.seed + 1)
        if knobs.log_max != before.log_max:
            self.books.log = deque(self.books.log, maxlen=knobs.log_max)

    def exhaust(self, reset_in_s: float, *, at_call: int = 0) -> None:
        """Use up the window; it resets in so many seconds, from now or from that call on."""
        self._limits.exhaust(monotonic_s(), reset_in_s, at_call=at_call)

    def hasten(self) -> bool:
        """Do with the next call what was to be done with a later one; False if nothing was."""
        return self._limits.hasten()

    def reset(self) -> None:
        """Count from 0 again, with limits that are whole and no faults in line. What is in service stays in service."""
        in_service, self.books = self.books.in_service, Books(self.knobs.log_max)
        self.books.in_service = self.books.max_concurrency = in_service
        self._limits = Limits(self.knobs, monotonic_s())
        self.injected.clear()
        self._latencies, self._chances = random.Random(self.knobs.seed), random.Random(self.knobs.seed + 1)
        self._latency_set_s = monotonic_s()

    def statistics(self, *, with_log: bool) -> ProviderStatistics:
        """Return a snapshot."""
        connections = sum(not connection.is_control for connection in self.connections)
        return self.books.statistics(connections=connections, with_log=with_log)

    def changed(self) -> None:
        """Tell who waits for a count."""
        self.on_change()

    async def close(self) -> None:
        """End what is in service and close all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # the loop tells each that it is lost, and closes its socket, in its next round

    # ---------------------------------------------------------------- a call arrives

    def call(self, request: Request, connection: Connection) -> None:
        """Begin to answer a request to one of `SHAPES`."""
        self._numbers += 1
        knobs, shape = self.knobs, SHAPES[request.path]
        visit = Visit(self, connection, shape, self._numbers)
        self.books.arrived(visit.arrival_s)
        try:
            self.check_key(request)
            asked = decode(request.body)
            shape.check(asked)
            text, tools = self._said(request.body)
        except BadRequest as error:
            self._answer(visit, error.status, shape.error(error.status, error.message, number=visit.number))
            return
        call = call_of(
            asked,
            knobs,
            number=visit.number,
            body_bytes=len(request.body),
            created_s=wall_us() // 1_000_000,
            text=text,
            tools=tools,
        )
        refusal = self._limits.admit(
            visit.arrival_s,
            in_service=self.books.in_service,
            input_tokens=call.input_tokens,
            output_tokens=call.output_tokens,
        )
        if refusal is not None:
            self._refuse(visit, refusal, call.model)
            return
        fault = self._next_fault()
        if fault is not None and self._fails_at_once(visit, fault, is_stream=call.is_stream):
            return
        call.with_usage = fault != "no_usage"
        seconds = latency_s(knobs.latency, self._latencies, visit.arrival_s - self._latency_set_s)
        visit.enter()
        task = asyncio.get_running_loop().create_task(self._serve(visit, call, seconds, fault))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection.on_lost = task.cancel
        self.changed()

    def check_key(self, request: Request) -> None:
        """Raise BadRequest if it does not carry the key it must."""
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.knobs.api_key and key != self.knobs.api_key:
            raise BadRequest(401, "")

    def _said(self, body: bytes) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the text to answer and the tools to call, "" when the knobs say it. Raises BadRequest when `answer` raises."""
        if self._text_for is None:
            return "", ()
        try:
            return split(self._text_for(msgspec.json.decode(body)))
        except Exception as error:  # of whatever kind: it is whose test this is who is to see it
            raise BadRequest(500, f"answer= of the fake provider raised {type(error).__name__}: {error}") from error

    def _refuse(self, visit: Visit, refusal: Refusal, model: str) -> None:
        wall_s = wall_us() / 1e6
        self.books.refuse(refusal.kind, visit.arrival_s, refusal.wait_s or 0.0)
        body = visit.shape.refusal(refusal, self.knobs, model, wall_s, number=visit.number)
        is_secret = refusal.kind == "window" and self.knobs.window_style == "quota"
        wait_s = None if is_secret else refusal.wait_s
        headers = provider_headers.retry_after(wait_s, self.knobs, wall_s)
        status = self.knobs.overload_status if refusal.kind == "burst" else 429
        self._answer(visit, status, body, [*headers, *self._rate_headers(visit, refusal)])

    def _next_fault(self) -> Fault | None:
        """Return the fault of this call: the next in line, or one by chance."""
        fault: Fault | None = self.injected.popleft() if self.injected else None
        if fault is None and self.knobs.faults:
            drawn = self._chances.random()
            for name, chance in sorted(self.knobs.faults.items()):
                drawn -= chance
                if drawn < 0:
                    fault = name
                    break
        if fault is not None:
            self.books.faults[fault] = self.books.faults.get(fault, 0) + 1
        return fault

    def _fails_at_once(self, visit: Visit, fault: Fault, *, is_stream: bool) -> bool:
        """Answer a fault that needs no service; False if it needs some."""
        if fault == "stream_error" and not is_stream:
            status = 529 if isinstance(visit.shape, Messages) else 500
        elif fault.startswith("status_"):
            status = int(fault.removeprefix("status_"))
        else:
            return False
        if status in GATEWAY_STATUSES:
            page = f"<html><head><title>{status}</title></head><body>The gateway got no answer.</body></html>"
            visit.over(status)
            visit.connection.respond(status, [("content-type", "text/html")], page.encode())
        else:
            self._answer(visit, status, visit.shape.error(status, "", number=visit.number))
        return True

    def _answer(self, visit: Visit, status: int, body: dict[str, object], headers: Headers | None = None) -> None:
        """Answer a call that is not served."""
        visit.over(status)
        visit.connection.respond(
            status, [JSON, *visit.shape.headers(visit.number), *(headers or [])], msgspec.json.encode(body)
        )

    def _rate_headers(self, visit: Visit, refusal: Refusal | None) -> Headers:
        if not self.knobs.rate_headers:
            return []
        now_s = monotonic_s()
        rates, window = self._limits.rates(now_s), self._limits.window(now_s)
        if isinstance(visit.shape, Messages):
            return provider_headers.anthropic_rates(rates, window, refusal, self.knobs, wall_us() / 1e6)
        return provider_headers.openai_rates(rates, window, refusal, self.knobs)

    # ---------------------------------------------------------------- a call is served

    async def _serve(self, visit: Visit, call: Call, seconds: float, fault: Fault | None) -> None:
        try:
            async with self._bench.place():
                if fault == "hang_before_headers":
                    await _forever()
                if call.is_stream:
                    await self._serve_stream(visit, call, seconds, fault)
                else:
                    await self._bench.work(seconds)
                    await self._serve_whole(visit, call, fault)
        except asyncio.CancelledError:  # the client has gone away, or the server closes: nobody waits for this task
            visit.over(CLIENT_CLOSED)
        finally:
            visit.over(visit.status)

    async def _serve_whole(self, visit: Visit, call: Call, fault: Fault | None) -> None:
        connection = visit.connection
        body = msgspec.json.encode(visit.shape.body(call))
        headers = [JSON, *visit.shape.headers(visit.number), *self._rate_headers(visit, None)]
        half = len(body) // 2
        match fault:
            case "reset":
                connection.reset()
                return
            case "malformed":
                visit.over(200)
                connection.respond(200, headers, body[:half])
                return
            case "hang_after_headers" | "hang_mid_stream" | "truncate":
                visit.status = 200
                connection.begin(200, headers, length=len(body))
                if fault != "hang_after_headers":
                    connection.send(body[:half], chunked=False)
                if fault != "truncate":
                    await _forever()
                visit.over(200)
                connection.close()
                return
        self._count(call)
        visit.over(200, is_ok=True)
        connection.respond(200, headers, body)

    async def _serve_stream(self, visit: Visit, call: Call, seconds: float, fault: Fault | None) -> None:
        connection = visit.connection
        streamed = visit.shape.stream(call, self.knobs.stream_pieces)
        first_s = seconds * self.knobs.first_token
        await self._bench.work(first_s)
        if fault == "reset":
            connection.reset()
            return
        visit.status = 200
        headers = [EVENTS, ("cache-control", "no-cache"), *visit.shape.headers(visit.number)]
        connection.begin(200, headers + self._rate_headers(visit, None))
        if fault == "hang_after_headers":
            await _forever()
        connection.send(streamed.head, chunked=True)
        each_s = (seconds - first_s) / len(streamed.deltas)
        for at, delta in enumerate(streamed.deltas):
            await self._bench.work(each_s)
            if at == len(streamed.deltas) // 2 and await self._breaks(visit, streamed, fault):
                return
            connection.send(delta, chunked=True)
        if fault != "malformed":
            self._count(call)
        visit.over(200, is_ok=fault != "malformed")
        connection.end(streamed.tail, chunked=True)

    async def _breaks(self, visit: Visit, streamed: Streamed, fault: Fault | None) -> bool:
        """Do a fault that happens in the middle of a stream; True if the stream is over with it."""
        connection = visit.connection
        match fault:
            case "hang_mid_stream":
                await _forever()
            case "truncate":
                visit.over(200)
                connection.close()
                return True
            case "stream_error":
                visit.over(200)
                connection.end(visit.shape.error_event(visit.number), chunked=True)
                return True
            case "malformed":
                delta = streamed.deltas[0]
                connection.send(delta[: -len(delta) // 4] + b"\n\n", chunked=True)
        return False

    def _count(self, call: Call) -> None:
        self.books.input_tokens += call.input_tokens
        self.books.output_tokens += call.output_tokens


async def _forever() -> None:
    """Wait until the client goes away, which cancels."""
    await asyncio.get_running_loop().create_future()

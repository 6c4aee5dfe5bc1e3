"""A bad network on command: a TCP proxy in front of a server, whose faults a test turns on and off.

    client ──► [queue ─ delay ─ drop? ] ──► server        direction "to_server"
    client ◄── [ drop? ─ delay ─ queue] ◄── server        direction "to_client"

    with FaultProxy(postgres.port) as proxy:
        connection = psycopg.connect(postgres.url_of("first", port=proxy.port))
        proxy.drop("to_client")                                   # the answers stay away, nobody is told
        ...
        proxy.wait(lambda now: now.held_to_client_bytes > 0)      # the server has answered, and we have it
        proxy.reset()                                             # the client never learns what became of it

What `drop` holds back comes after `heal`, in order, as after a partition that TCP has outlived; bytes are never lost
from the middle of a stream, because TCP does not do that either. Ends of connections are held back the same way, so
both sides are half-open. What it cannot do: our kernel answers the keep-alive probes of both sides during a `drop`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from sennit.errors import UsageError
from sennit.testing.faultproxy_wire import Connection, Pipe, Way
from sennit.testing.server_folder import free_port

__all__ = ["Direction", "FaultProxy", "ProxyStatistics"]

Direction = Literal["to_server", "to_client", "both"]
T = TypeVar("T")

CONTROL_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """What has gone through, and what is held back now."""

    connections: int  # open now
    accepted: int  # since the start
    to_server_bytes: int  # passed on since the start
    to_client_bytes: int
    held_to_server_bytes: int  # come in and not passed on, of the open connections
    held_to_client_bytes: int


class FaultProxy:
    """Forwards to a port of this machine, or another one's, until told otherwise.

    It runs in an OS thread of its own; its methods are sync, may be called from any OS thread, and return when what they
    say is a fact.

    Args:
        port: of the server.
        host: of the server.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._os_thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._ways = {"to_server": Way(), "to_client": Way()}
        self._changed = asyncio.Event()

    # ---------------------------------------------------------------- its life

    @property
    def port(self) -> int:
        """Of the proxy, on 127.0.0.1. It stays the same until the end."""
        return self._port

    def start(self) -> Self:
        """Listen on a free port.

        Raises:
            UsageError: it runs already.
        """
        if self._loop is not None:
            raise UsageError(f"the proxy runs already, on port {self._port}")
        self._loop = asyncio.new_event_loop()
        self._os_thread = threading.Thread(target=self._loop.run_forever, name="sennit-faultproxy", daemon=True)
        self._os_thread.start()
        self._do(self._listen())
        return self

    def stop(self) -> None:
        """Reset all connections and end. Nothing happens if it does not run."""
        if self._loop is None or self._os_thread is None:
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._os_thread.join()
        self._loop.close()
        self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ---------------------------------------------------------------- faults

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Pass every piece on that much later, in order, also what is on its way now."""
        self._turn(direction, delay_s=seconds)

    def drop(self, direction: Direction = "both") -> None:
        """Pass nothing on, bytes or ends; connections stay open, and new ones too are met with silence.

        While bytes to the server are dropped, no new connection reaches it.
        """
        self._turn(direction, dropped=True)

    def reset(self) -> int:
        """Break all connections on both sides (RST); what is held back is lost. Return how many there were."""
        return self._do(self._reset())

    def refuse(self) -> None:
        """Refuse new connections, as where nobody listens. The open ones go on."""
        self._do(self._stop_listening())

    def heal(self) -> None:
        """End all faults: listen, deliver what is held back, and pass on at once again."""
        self._turn("both", delay_s=0.0, dropped=False)
        self._do(self._listen())

    # ---------------------------------------------------------------- facts

    def statistics(self) -> ProxyStatistics:
        """Return the counts of this moment."""
        return self._do(self._statistics())

    def wait(self, fact: Callable[[ProxyStatistics], bool], *, timeout_s: float = 30.0) -> ProxyStatistics:
        """Wait until `fact` is true of the statistics, and return these.

        Args:
            fact: called in the proxy's OS thread after every change; must not block.

        Raises:
            TimeoutError: it has not become true in time.
        """
        return self._do(self._until(fact, timeout_s), timeout_s=timeout_s + CONTROL_TIMEOUT_S)

    # ---------------------------------------------------------------- inside; all below runs on the proxy's loop

    def _do(self, work: Coroutine[Any, Any, T], *, timeout_s: float = CONTROL_TIMEOUT_S) -> T:
        """Run `work` on the loop and return its result. Called from other OS threads."""
        if self._loop is None:
            work.close()
            raise UsageError("the proxy does not run", why="it was not started, or has been stopped", fix="start it")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def _turn(self, direction: Direction, *, delay_s: float | None = None, dropped: bool | None = None) -> None:
        async def turn() -> None:
            for name, way in self._ways.items():
                if direction in {name, "both"}:
                    way.delay_s = way.delay_s if delay_s is None else delay_s
                    way.dropped = way.dropped if dropped is None else dropped
            for connection in self._connections:
                connection.look_again()

        self._do(turn())

    async def _listen(self) -> None:
        if self._listener is None:
            self._port = self._port or free_port()
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server, to_client = (Pipe(way, self._on_change) for way in self._ways.values())
        connection = Connection(reader, writer, to_server, to_client)
        self._connections.add(connection)
        self._accepted += 1
        self._on_change()
        try:
            await connection.run(self._target)
        finally:
            self._connections.discard(connection)
            self._on_change()

    async def _reset(self) -> int:
        broken = list(self._connections)
        for connection in broken:
            connection.abort()
        for connection in broken:
            await connection.ended.wait()
        return len(broken)

    async def _end(self) -> None:
        await self._stop_listening()
        await self._reset()
        await asyncio.sleep(0)  # the tasks of the connections end after their `ended`

    async def _statistics(self) -> ProxyStatistics:
        return self._now()

    def _now(self) -> ProxyStatistics:
        to_server, to_client = self._ways["to_server"], self._ways["to_client"]
        return ProxyStatistics(
            connections=len(self._connections),
            accepted=self._accepted,
            to_server_bytes=to_server.passed_bytes,
            to_client_bytes=to_client.passed_bytes,
            held_to_server_bytes=sum(connection.to_server.held_bytes for connection in self._connections),
            held_to_client_bytes=sum(connection.to_client.held_bytes for connection in self._connections),
        )

    def _on_change(self) -> None:
        """Wake all that wait for a fact."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, fact: Callable[[ProxyStatistics], bool], timeout_s: float) -> ProxyStatistics:
        async with asyncio.timeout(timeout_s):
            while not fact(now := self._now()):
                await self._changed.wait()
        return now

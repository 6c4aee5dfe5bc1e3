"""A model provider for tests, benchmarks and demos: real HTTP on loopback, OpenAI's and Anthropic's shapes, and every bad day.

    with FakeProvider(max_concurrency=5, latency=0.1) as provider:
        client = openai.OpenAI(base_url=provider.url + "/v1", api_key="any")     # or anthropic.Anthropic(base_url=provider.url)
        ...
        assert provider.statistics().max_concurrency == 5

It serves from an OS thread of its own, or with `process=True` from a process of its own, which does not share our GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode

import msgspec

import sennit
from sennit.errors import SettingsError, UsageError
from sennit.testing.provider_control import serve
from sennit.testing.provider_knobs import (
    FAULTS,
    Constant,
    Fault,
    Knobs,
    Latency,
    Lognormal,
    RetryAfter,
    Steps,
    Uniform,
    WindowStyle,
    turned,
)
from sennit.testing.provider_shapes import Answerer
from sennit.testing.provider_statistics import PauseSeen, ProviderStatistics

__all__ = [
    "FAULTS",
    "Answerer",
    "Constant",
    "FakeProvider",
    "Fault",
    "Knobs",
    "Latency",
    "Lognormal",
    "PauseSeen",
    "ProviderStatistics",
    "RetryAfter",
    "Steps",
    "Uniform",
    "WindowStyle",
]

STOP_S: Final = 5.0
CONTROL_TIMEOUT_S: Final = 10.0


class FakeProvider:
    """A provider that answers with made-up text, within limits and with faults that can be turned at any time.

    Use it as a context manager, sync or async. Its methods are sync, take about a millisecond and may be called from any
    OS thread; those that wait say so. After its end the statistics of just before it can still be read.

    Args:
        process: serve from a process of its own.
        port: on 127.0.0.1; 0 takes a free one.
        answer: the text of all answers; or makes the text of each, from the JSON of the request. It is called on the
            provider's own event loop; what it raises is answered 500.
        knobs: the other fields of `Knobs`.

    Raises:
        SettingsError: a knob is unknown or out of its bounds.
        UsageError: `answer` is a function, which cannot be handed to another process.
    """

    def __init__(self, *, process: bool = False, port: int = 0, answer: str | Answerer = "", **knobs: object) -> None:
        answerer = answer if callable(answer) else None
        self._knobs = turned(Knobs(), knobs if callable(answer) else {**knobs, "answer": answer})
        if process and answerer is not None:
            raise UsageError(
                "a fake provider in a process of its own cannot call answer=",
                why="a function stays in the process it was made in",
                fix="leave process=True out, or give a text",
            )
        self._port_wanted = port
        self._host: _OsThread | _Process = _Process() if process else _OsThread(answerer)
        self._port = 0
        self._last: ProviderStatistics | None = None

    # ---------------------------------------------------------------- its life

    def start(self) -> Self:
        """Listen.

        Raises:
            OSError: the port is taken, or its process cannot be started.
            UsageError: it is serving already.
        """
        if self._port:
            raise UsageError(f"the fake provider is serving already, at {self.url}")
        self._port = self._host.start(self._knobs, self._port_wanted)
        self._last = None
        return self

    def stop(self) -> None:
        """Close all connections and end the OS thread or process. Nothing happens if it is not serving."""
        if not self._port:
            return
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may have died before us
            self._last = self.statistics()
        self._port = 0
        self._host.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        if not self._port:
            raise UsageError("the fake provider is not serving", fix="with FakeProvider() as provider: …")
        return self._port

    @property
    def url(self) -> str:
        """`base_url` of Anthropic's clients; with "/v1" after it, of OpenAI's."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process, None when it has none of its own."""
        return self._host.pid

    # ---------------------------------------------------------------- what is turned

    @property
    def knobs(self) -> Knobs:
        """What is turned how, now."""
        return msgspec.json.decode(self._control("GET", "knobs"), type=Knobs)

    def configure(self, **knobs: object) -> Knobs:
        """Turn some knobs; the others stay. A rate per minute that has changed is whole again.

        Raises:
            SettingsError: a knob is unknown or out of its bounds, and nothing has changed.
        """
        return msgspec.json.decode(self._control("POST", "configure", knobs), type=Knobs)

    def exhaust(self, reset_in_s: float, *, at_next_call: bool = False, at_call: int = 0) -> None:
        """Use up the window: all calls are refused for so many seconds. 0 makes it whole again.

        Args:
            at_next_call: the seconds count from the next call on, so a test is as quick as it likes in making it.
            at_call: they count from the call that would be the so-manieth to be served.
        """
        self._control("POST", "exhaust", {"reset_in_s": reset_in_s, "at_call": 1 if at_next_call else at_call})

    def hasten(self) -> bool:
        """Use up with the next call the window that was to be used up `at_call`; False if it has been, or never was to."""
        return msgspec.json.decode(self._control("POST", "hasten", {}), type=bool)

    def inject(self, fault: Fault, count: int = 1) -> None:
        """Do this to the next `count` calls that would have been served, after those that are in line already."""
        self._control("POST", "inject", {"fault": fault, "count": count})

    def reset(self) -> None:
        """Count from 0 again, with whole limits and no faults in line; the knobs stay."""
        self._control("POST", "reset", {})

    # ---------------------------------------------------------------- what is seen

    def statistics(self, *, log: bool = True) -> ProviderStatistics:
        """Return what has been seen since the start or the last `reset()`; `log=False` spares the log."""
        if not self._port and self._last is not None:
            return self._last
        return msgspec.json.decode(self._control("GET", f"statistics?log={int(log)}"), type=ProviderStatistics)

    def wait_for(self, *, timeout_s: float = 10.0, idle: bool = False, **counts: int) -> ProviderStatistics:
        """Wait until every count is at least that, and return the statistics of that moment, without log.

        Blocks the calling OS thread: `await asyncio.to_thread(provider.wait_for, in_service=5)` where the clients are tasks
        of this event loop.

        Args:
            timeout_s: how long to wait at most.
            idle: wait until nothing is in service.
            counts: `requests`, `ok`, `ended` (answered or given up), `in_service`, `refused` (by limits), `connections`.

        Raises:
            TimeoutError: not in time; its message tells the counts.
            SettingsError: there is no such count.
        """
        query = urlencode({**counts, "timeout_s": timeout_s, **({"idle": 1} if idle else {})})
        told = self._control("GET", f"wait?{query}", timeout_s=timeout_s + CONTROL_TIMEOUT_S)
        return msgspec.json.decode(told, type=ProviderStatistics)

    def _control(
        self, method: str, path: str, body: dict[str, object] | None = None, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> bytes:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            sent = None if body is None else msgspec.json.encode(body)
            client.request(method, f"/control/{path}", body=sent, headers={"connection": "close"})
            response = client.getresponse()
            told = response.read()
        finally:
            client.close()
        if response.status == 408:
            raise TimeoutError(f"the fake provider has not seen that in time, but {told.decode()}")
        if response.status != 200:
            raise SettingsError(f"the fake provider refuses {path}: {told.decode()}")
        return told


class _OsThread:
    """Serves from an event loop in an OS thread of its own."""

    pid: int | None = None

    def __init__(self, answer: Answerer | None) -> None:
        self._answer = answer
        self._thread: threading.Thread | None = None
        self._stop: Future[None] = Future()

    def start(self, knobs: Knobs, port: int) -> int:
        """Return the port once it listens."""
        ready: Future[int] = Future()
        stop: Future[None] = Future()
        self._stop = stop

        async def until() -> None:
            await asyncio.wrap_future(stop)

        def run() -> None:
            try:
                asyncio.run(serve(knobs, port, ready.set_result, until, self._answer))
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        self._thread = threading.Thread(target=run, name="sennit-fake-provider", daemon=True)
        self._thread.start()
        try:
            return ready.result()
        except BaseException:
            self._thread.join(STOP_S)
            raise

    def stop(self) -> None:
        """End it and wait for its end."""
        self._stop.set_result(None)
        if self._thread is not None:
            self._thread.join(STOP_S)
            if self._thread.is_alive():
                raise RuntimeError(f"the OS thread of the fake provider has not ended within {STOP_S:.0f} s")


class _Process:
    """Serves from `provider_main` in a process of its own, which ends with ours however we end."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child."""
        return None if self._child is None else self._child.pid

    def start(self, knobs: Knobs, port: int) -> int:
        """Return the port once it listens."""
        turns = msgspec.to_builtins(knobs)
        words = [word for name in turns for word in ("--knob", f"{name}={msgspec.json.encode(turns[name]).decode()}")]
        argv = [sys.executable, "-m", "sennit.testing.provider_main", "--port", str(port), "--parent", str(os.getpid())]
        # The same sennit as ours, wherever it was imported from.
        paths = [str(Path(sennit.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._child = child = subprocess.Popen([*argv, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        try:
            assert child.stdout is not None  # noqa: S101 - PIPE
            line = child.stdout.readline()
        except BaseException:
            self.stop()
            raise
        told = msgspec.json.decode(line, type=dict[str, str | int]) if line else {"error": "it has said nothing"}
        if "error" in told:
            self.stop()
            raise OSError(f"the process of the fake provider has not started: {told['error']}")
        return int(told["port"])

    def stop(self) -> None:
        """Close its stdin, which ends it, and wait for its end; kill it if it does not."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise RuntimeError(
                f"the process of the fake provider had to be killed: not ended within {STOP_S:.0f} s"
            ) from None

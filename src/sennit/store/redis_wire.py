"""The way to Redis: scripts are queued from any OS thread, and go out together on one that is made for it.

call ─► queue ─► OS thread `sennit-redis`: all that is queued in one round trip ─► read ─► ack
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sennit.errors import SettingsError, StoreUnavailable
from sennit.sync.ack import Ack, resolve_all
from sennit.sync.clock import uptime_us, wall_us

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

_ANSWER_S: Final = 5.0  # a script takes well below a millisecond: longer, and the server is not to be reached
_BATCH_MAX: Final = 256
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a half-open connection ends in 25 s

Answer = list[Any]
Arguments = tuple[bytes | str | int, ...]


class _Call(NamedTuple):
    script: str
    keys: tuple[bytes, ...]
    arguments: Arguments
    read: Callable[[Answer], Any]
    ack: Ack[Any]


class RedisWire:
    """Runs scripts on one Redis database. Each returns the server's clock first, in µs.

    Args:
        url: `redis://host:port/0`, `rediss://…` or `unix://…`.
        scripts: all that will be called.

    Raises:
        SettingsError: the extra `redis` is not installed, or the URL cannot be read. Whether there is a server, the first
            call says.
    """

    def __init__(self, url: str, scripts: Sequence[str]) -> None:
        self.url = re.sub(r"//[^@/]*@", "//", url)
        self._scripts = scripts
        self._commands = self._client(url, answer_s=_ANSWER_S)
        self.listener = self._client(url, answer_s=None)  # for calls that block
        self._shas: dict[str, str] = {}
        self._offset_us = wall_us() - uptime_us()
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._gate = threading.Lock()  # orders calls against `close`
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sennit-redis", daemon=True)
        self._thread.start()

    def _client(self, url: str, *, answer_s: float | None) -> Redis:
        try:
            from redis import Redis  # noqa: PLC0415 - an extra
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"locks in Redis ({self.url}) need the package redis, which is not installed",
                why="it is an extra: sennit's own locks need no server",
                fix='pip install "sennit[redis]", or leave backend= and lock_url out and use the locks of the store',
            ) from error
        options: dict[str, Any] = {"socket_timeout": answer_s, "socket_connect_timeout": _ANSWER_S}
        if not url.startswith("unix:"):
            known = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}
            options |= {"socket_keepalive": True, "socket_keepalive_options": known}
        try:
            client: Redis = Redis.from_url(
                url, retry=Retry(NoBackoff(), 0), **options
            )  # what may have run is not resent
        except ValueError as error:
            raise SettingsError(
                f"{self.url!r} is not a Redis server", why=str(error), fix="for example redis://localhost:6379/0"
            ) from error
        return client

    def now_us(self) -> int:
        """Return the server's clock, never behind it: counted from when the last question was sent."""
        return uptime_us() + self._offset_us

    def explain(self, error: BaseException) -> BaseException:
        """Return the store error for one of the driver; any other as it is."""
        if not type(error).__module__.startswith("redis"):
            return error
        return StoreUnavailable(
            f"the locks in Redis at {self.url} failed: {error}",
            why="the server is not to be reached, has been restarted, or refuses to run the scripts",
            fix="see that it runs and that this user may use EVALSHA and BLPOP; a lock that was held ends when its time is over",
        )

    def closed(self) -> StoreUnavailable:
        """Return the error of a call that came after `close`."""
        return StoreUnavailable(f"the locks in Redis at {self.url} are closed", fix="open them again")

    def call(self, script: str, keys: tuple[bytes, ...], arguments: Arguments, read: Callable[[Answer], T]) -> Ack[T]:
        """Run a script; `read` makes the result of its answer, on the OS thread of the calls. Never blocks."""
        ack: Ack[T] = Ack()
        with self._gate:
            if not self._closed:
                self._queue.put(_Call(script, keys, arguments, read, ack))
                return ack
        return Ack.failed_with(self.closed())

    def close(self) -> None:
        """Run what was queued, then end the OS thread and the connections. Idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        self.listener.connection_pool.disconnect()
        self._commands.close()

    # ------------------------------------------------------------ on its OS thread

    def _run(self) -> None:
        is_open = True
        while is_open:
            call = self._queue.get()
            batch: list[_Call] = []
            while call is not None:
                batch.append(call)
                if len(batch) == _BATCH_MAX:
                    break
                try:
                    call = self._queue.get_nowait()
                except Empty:
                    break
            else:
                is_open = False
            if batch:
                self._send(batch)

    def _send(self, batch: list[_Call]) -> None:
        sent_us = uptime_us()
        try:
            answers = self._ask(batch)
        except Exception as error:  # noqa: BLE001 - every waiter must hear of it; this OS thread lives on
            failure = self.explain(error)
            resolve_all([(call.ack, None, failure) for call in batch])
            return
        for call, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                call.ack.reject(self.explain(answer))
                continue
            self._offset_us = answer[0] - sent_us
            try:
                value = call.read(answer)
            except Exception as error:  # noqa: BLE001 - as above
                call.ack.reject(error)
            else:
                call.ack.resolve(value)

    def _ask(self, batch: list[_Call]) -> list[Any]:
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - an extra

        if not self._shas:
            self._load()
        answers = self._pipe(batch)
        again = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]  # the server was restarted
        if again:
            self._load()
            for n, answer in zip(again, self._pipe([batch[n] for n in again]), strict=True):
                answers[n] = answer
        return answers

    def _load(self) -> None:
        self._shas = {script: str(self._commands.script_load(script)) for script in self._scripts}

    def _pipe(self, batch: list[_Call]) -> list[Any]:
        pipe = self._commands.pipeline(transaction=False)
        for call in batch:
            pipe.evalsha(self._shas[call.script], len(call.keys), *call.keys, *call.arguments)
        answers: list[Any] = pipe.execute(raise_on_error=False)
        return answers

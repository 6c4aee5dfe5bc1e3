"""One client for all who call a provider: connections, TLS sessions and credentials are made once and closed when idle.

    pool = ClientPool(lambda: AsyncAnthropic(), idle_s=300)

    async with pool.client() as client:          # or `with`, for clients of blocking code
        await client.messages.create(…)

    first use ─► building ──► in use by n ──last user leaves──► idle ──idle_s──► closed ─► (the next use builds again)
                    │ fails: all who wait are told            └──next use──► in use

An asynchronous client belongs to the event loop it was first used in, so each loop has its own, and blocking code one for
all its OS threads. There is one timer per client, armed only while nobody uses it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, final, overload

from sennit.errors import SettingsError, UsageError
from sennit.sync.ack import Ack, in_event_loop
from sennit.sync.clock import monotonic_s
from sennit.sync.pending import Pending

if TYPE_CHECKING:
    from types import TracebackType

C = TypeVar("C")

_log = logging.getLogger("sennit")


class _Entry(Generic[C]):
    """One client and who uses it. `loop` is None for the one of blocking code."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.built: Ack[C] = Ack()
        self.users = 0
        self.idle_since_s = 0.0
        self.timer: asyncio.TimerHandle | threading.Timer | None = None
        self.work: asyncio.Task[Any] | None = None  # builds or closes it; kept, or the loop would forget it


class ClientPool(Generic[C]):
    """Shares one client among all its users.

    Args:
        factory: makes a client; sync or async. Called again after the last one was closed, or when it has raised.
        idle_s: a client that nobody has used for so long is closed, by its `aclose` or `close`, sync or async.

    Raises:
        SettingsError: `idle_s` is below 0.
    """

    @overload
    def __init__(self, factory: Callable[[], Coroutine[Any, Any, C]], *, idle_s: float = 300.0) -> None: ...

    @overload
    def __init__(self, factory: Callable[[], C], *, idle_s: float = 300.0) -> None: ...

    def __init__(self, factory: Callable[[], C | Awaitable[C]], *, idle_s: float = 300.0) -> None:
        if not 0 <= idle_s <= threading.TIMEOUT_MAX:
            raise SettingsError(f"idle_s of a client pool cannot be {idle_s!r}", why="it is seconds, at least 0")
        self._factory = factory
        self._idle_s = idle_s
        self._entries: dict[asyncio.AbstractEventLoop | None, _Entry[C]] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def client(self) -> Use[C]:
        """Return what lends the client: `async with pool.client() as c:`, or `with` in blocking code.

        Raises:
            UsageError: on entering: the pool is closed; or `with` was written on an event loop, or for a client that
                only async code can close.
            Exception: on entering: what the factory raised. The next use tries again.
        """
        return Use(self)

    def close(self) -> Pending[None]:
        """`await pool.close()`, or `.result()`: close what is idle now, and what is in use when its last user leaves.

        Nobody gets a client any more. Clients of other running event loops are closed there, and waited for.

        Raises:
            Exception: what the first client raised that did not close.
        """
        return Pending(self._close_all, lambda: asyncio.run(self._close_all()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close_all()

    # ------------------------------------------------------------ one use

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[C]:
        loop = asyncio.get_running_loop()
        entry, is_first = self._enter(loop)
        try:
            if is_first:
                # A task of its own: whoever came first may be cancelled, and the others still want the client.
                entry.work = loop.create_task(self._build(entry))
            yield await entry.built
        finally:
            self._exit(entry)

    @contextmanager
    def _lend_blocking(self) -> Iterator[C]:
        if in_event_loop():
            raise UsageError("`with pool.client()` was used on an event loop", fix="write `async with pool.client()`")
        entry, is_first = self._enter(None)
        try:
            if is_first:
                self._build_blocking(entry)
            yield entry.built.wait()
        finally:
            self._exit(entry)

    def _enter(self, loop: asyncio.AbstractEventLoop | None) -> tuple[_Entry[C], bool]:
        """Count one more user, and say whether he is the one to build."""
        with self._lock:
            if self._is_closed:
                raise UsageError("this client pool is closed", fix="make a new one, or close it later")
            self._drop_dead_loops()
            entry = self._entries.get(loop)
            is_first = entry is None
            if entry is None:
                entry = self._entries[loop] = _Entry(loop)
            entry.users += 1
            return entry, is_first

    def _exit(self, entry: _Entry[C]) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users or not entry.built.done or self._entries.get(entry.loop) is not entry:
                return  # in use, or `_built` goes on with it, or it has failed
            if not self._has_ended(entry):
                return
        self._close_later(entry)

    def _has_ended(self, entry: _Entry[C]) -> bool:
        """The last user has left: arm the timer, or take it out to be closed if the pool is. With the lock held."""
        if self._is_closed:
            self._entries.pop(entry.loop, None)
            return True
        entry.idle_since_s = monotonic_s()
        self._arm(entry, self._idle_s)
        return False

    def _drop_dead_loops(self) -> None:
        for loop in [loop for loop in self._entries if loop is not None and loop.is_closed()]:
            # Its connections were bound to that loop; nothing can be awaited there any more.
            del self._entries[loop]
            _log.info("a client was dropped unclosed: its event loop has ended; close the pool before the loop")

    # ------------------------------------------------------------ building

    async def _build(self, entry: _Entry[C]) -> None:
        try:
            made = self._factory()
            client: C = await made if inspect.isawaitable(made) else made
        except BaseException as error:
            self._failed(entry, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._built(entry, client)

    def _build_blocking(self, entry: _Entry[C]) -> None:
        try:
            made = self._factory()
            if inspect.isawaitable(made) or _closes_async_only(made):
                if inspect.iscoroutine(made):
                    made.close()
                raise UsageError(  # noqa: TRY301 - told to all who wait, as what the factory raises
                    "this client pool makes clients of async code",
                    why="blocking code could neither call nor close them",
                    fix="write `async with pool.client()`, or give the pool a factory of blocking clients",
                )
        except BaseException as error:
            self._failed(entry, error)
            raise
        self._built(entry, made)

    def _failed(self, entry: _Entry[C], error: BaseException) -> None:
        with self._lock:
            if self._entries.get(entry.loop) is entry:
                del self._entries[entry.loop]
        entry.built.reject(error)

    def _built(self, entry: _Entry[C], client: C) -> None:
        with self._lock:
            entry.built.resolve(client)
            # Nobody: all who wanted it were cancelled meanwhile, and `_exit` has left it to us.
            if entry.users or not self._has_ended(entry):
                return
        self._close_later(entry)

    # ------------------------------------------------------------ idle

    def _arm(self, entry: _Entry[C], after_s: float) -> None:
        """Set the timer, unless it is set: it looks for itself how long nobody has come. With the lock held."""
        if entry.timer is not None:
            return
        if entry.loop is not None:
            entry.timer = entry.loop.call_later(after_s, self._on_timer, entry)
            return
        entry.timer = threading.Timer(after_s, self._on_timer, (entry,))
        entry.timer.name = "sennit-idle-client"
        entry.timer.daemon = True
        entry.timer.start()

    def _on_timer(self, entry: _Entry[C]) -> None:
        with self._lock:
            entry.timer = None
            if entry.users or self._entries.get(entry.loop) is not entry:
                return
            left_s = entry.idle_since_s + self._idle_s - monotonic_s()
            if left_s > 0:
                self._arm(entry, left_s)
                return
            del self._entries[entry.loop]
        self._close_later(entry)

    def _close_later(self, entry: _Entry[C]) -> None:
        """Close it though nobody waits for that; on its own loop or OS thread. What it raises is logged."""
        if entry.timer is not None:
            entry.timer.cancel()
        if entry.loop is None:
            try:
                _close_blocking(entry.built.wait())
            except Exception as error:  # noqa: BLE001 - logged
                _log_unclosed(error)
            return
        entry.work = entry.loop.create_task(_close(entry.built.wait()))
        entry.work.add_done_callback(_look_at)

    # ------------------------------------------------------------ closing the pool

    async def _close_all(self) -> None:
        here = asyncio.get_running_loop()
        with self._lock:
            self._is_closed = True
            self._drop_dead_loops()
            idle = [entry for entry in self._entries.values() if not entry.users and entry.built.done]
            for entry in idle:
                del self._entries[entry.loop]
        errors = []
        for entry in idle:
            client = entry.built.wait()
            try:
                if entry.timer is not None and entry.loop in {None, here}:
                    entry.timer.cancel()
                if entry.loop is None:
                    await asyncio.to_thread(_close_blocking, client)
                elif entry.loop is here:
                    await _close(client)
                elif entry.loop.is_running():
                    # Its timer stays: only its own loop may touch it, and it will find nothing to do.
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_close(client), entry.loop))
                else:
                    _log.warning("a client stays unclosed: its event loop stands still; close the pool before that")
            except Exception as error:  # noqa: BLE001 - the others are closed first
                errors.append(error)
        if errors:
            raise errors[0]


@final
class Use(Generic[C]):
    """One use of the shared client; made by `ClientPool.client()`."""

    __slots__ = ("_blocking", "_pool", "_waiting")

    def __init__(self, pool: ClientPool[C]) -> None:
        self._pool = pool
        self._waiting: AbstractAsyncContextManager[C] | None = None
        self._blocking: AbstractContextManager[C] | None = None

    def __enter__(self) -> C:
        self._check_new()
        self._blocking = self._pool._lend_blocking()  # noqa: SLF001 - same module
        return self._blocking.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._blocking is not None:
            self._blocking.__exit__(kind, error, traceback)

    async def __aenter__(self) -> C:
        self._check_new()
        self._waiting = self._pool._lend()  # noqa: SLF001
        return await self._waiting.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._waiting is not None:
            await self._waiting.__aexit__(kind, error, traceback)

    def _check_new(self) -> None:
        if self._waiting is not None or self._blocking is not None:
            raise UsageError("a use of a client was entered twice", fix="write `with pool.client()` for each use")


async def _close(client: object) -> None:
    """Close a client of async code; one without `aclose` and `close` needs nothing."""
    close = getattr(client, "aclose", None) or getattr(client, "close", None)
    if close is not None:
        done = close()
        if inspect.isawaitable(done):
            await done


def _close_blocking(client: object) -> None:
    close = getattr(client, "close", None)
    if close is not None:
        close()


def _closes_async_only(client: object) -> bool:
    close = getattr(client, "close", None)
    return inspect.iscoroutinefunction(close) if close is not None else hasattr(client, "aclose")


def _look_at(work: asyncio.Task[Any]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        _log_unclosed(error)


def _log_unclosed(error: BaseException) -> None:
    _log.error("an idle client did not close", exc_info=error)

"""App: what users hold. It delegates: the registry knows handlers, the client submits, the engine works.

app.task ─► registry      submit ─► client ─► store      with app ─► engine: this process works too
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from sennit.errors import SettingsError, UsageError
from sennit.limit.load import LoadManager
from sennit.model.retry import RetryPolicy
from sennit.model.settings import Settings
from sennit.model.task import Ledger
from sennit.model.thread import OnBusy
from sennit.model.timeout import AdaptiveTimeout
from sennit.runtime.agent_crew import AGENTS_QUEUE
from sennit.runtime.agent_face import AgentFace
from sennit.runtime.bridge import LoopThread
from sennit.runtime.config import checked_queues, load, plain_labels
from sennit.runtime.engine import Engine, usable_cores
from sennit.runtime.harness import Testing
from sennit.runtime.places import keep_arrays
from sennit.runtime.providers import Providers
from sennit.runtime.stores import DEFAULT_URL, open_store
from sennit.schedule.cron import CronSpec
from sennit.schedule.planner import Planned
from sennit.store.protocol import Store
from sennit.submit.client import Client
from sennit.submit.codec import encode_value
from sennit.submit.context import current
from sennit.submit.handle import Handle
from sennit.submit.limits import Provider
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Call, Decorator, Registry, Task
from sennit.sync.ack import Ack, in_event_loop
from sennit.threads.chains import Chains
from sennit.threads.inbox import Inbox
from sennit.threads.state import Home
from sennit.threads.thread import Thread

if TYPE_CHECKING:
    import sqlite3

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class App(AgentFace):
    """A fleet: its handlers, its store, and (inside `with app`) workers in this process.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `memory://`. Default: SENNIT_DB, else
            `.sennit/sennit.db` in the working directory.
        queues: queue → slots, for queues that are to have another number than `slots`.
        settings: any setting by name; see docs/reference/settings.md. `labels` may be several, ("gpu", "eu"): what this
            machine has; `version` is that of the code, for pinned tasks; `cluster` is where CPU bodies run, None is here.

    Raises:
        SettingsError: an unknown setting or a value out of its bounds.
    """

    def __init__(self, url: str | None = None, *, queues: Mapping[str, int] | None = None, **settings: Any) -> None:
        self.url = url or os.environ.get("SENNIT_DB") or DEFAULT_URL
        self._keywords = plain_labels(settings)
        self.loaded = load(self._keywords, environ=os.environ, folder=Path.cwd())
        keep_arrays(self.url, self.settings)
        self.registry = Registry()
        self._queues = checked_queues(queues or {})
        self._only: dict[str, int] | None = None
        self._schedules: list[tuple[CronSpec, Call]] = []
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._client = Client(lambda: self.store, self.settings, self._works)
        self._providers = Providers(lambda: self.store, lambda: self._store, self.loaded.prices)
        self._locks = self._new_locks()
        self._crew = self._new_crew()
        self._engine: Engine | None = None
        self._outside: Home | None = None
        self._bridge: LoopThread | None = None

    @property
    def settings(self) -> Settings:  # type: ignore[override]  # read-only here
        """The settings in force."""
        return self.loaded.settings

    @property
    def store(self) -> Store:  # type: ignore[override]  # read-only here
        """The open store; opened by the first use."""
        with self._opening:
            if self._store is None:
                self._store = open_store(self.url, self.settings)
                self._providers.declare_all(self._store)
            return self._store

    def use(self, url: str | None = None, *, queues: Mapping[str, int] | None = None, **settings: Any) -> None:
        """Change the store or settings before the first use, as `sennit worker --db …` does.

        Args:
            queues: queue → slots; this process serves these and no others.

        Raises:
            UsageError: the store is open already.
            SettingsError: an unknown setting or a value out of its bounds.
        """
        with self._opening:
            if self._store is not None:
                raise UsageError("the store of this app is open already", fix="call use() before the first submit")
            self.url = url or self.url
            self._only = self._only if queues is None else checked_queues(queues)
            self._keywords |= plain_labels(settings)
            self.loaded = load(self._keywords, environ=os.environ, folder=Path.cwd())
            self._client.settings = self.loaded.settings
            keep_arrays(self.url, self.loaded.settings)
            self._providers.prices.add(self.loaded.prices.table)

    def _works(self, queue: str) -> bool:
        return self._engine is not None and self._engine.serves(queue)

    # ------------------------------------------------------------ handlers

    @overload
    def task(self, function: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        cpu: bool | None = None,
        queue: str | None = None,
        retries: int | RetryPolicy = 0,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        adaptive_timeout: AdaptiveTimeout | None = None,
        on_busy: OnBusy | None = None,
        cache_s: float | None = None,
        cache_tags: Sequence[str] | None = None,
        provider: Provider | str | None = None,
        needs: str | Sequence[str] | None = None,
        pinned: bool | None = None,
        preemptible: bool = False,
        external: bool = False,
        options: SubmitOptions | None = None,
    ) -> Decorator: ...
    def task(self, *function: Callable[..., Any], **how: Any) -> Any:
        """Make a function a handler; it can still be called directly.

        Args:
            name: what is stored with its tasks; default: module and qualified name.
            cpu: run it in a worker process: it computes in Python and would hold the GIL. False: never. By default a plain
                `def` runs in an OS thread, and moves to a process if it turns out to compute: see the setting `placement`.
            queue: its tasks share slots with the others of this queue.
            retries: further attempts after a failure, or a whole `RetryPolicy`. Crashes are counted apart.
            timeout_s: per attempt.  idle_timeout_s: per attempt without a step, log line or `heartbeat()`.
            adaptive_timeout: give an attempt up that takes much longer than others of this handler did, below `timeout_s`.
            on_busy, cache_s, cache_tags, provider, needs, pinned: as in `SubmitOptions`; here because they say what kind of
                task it is.
            preemptible: when an urgent task of its queue finds no slot, it makes room at its next step and goes on
                from there afterwards.
            external: its tasks are for agents from outside, which take them through `sennit mcp`; the body never runs.
            options: defaults for everything else a submit can say.

        Raises:
            SettingsError: the name is taken, or an option is wrong.
            PayloadError: the function takes `*args` or `**kwargs`.
        """
        if not function:
            return lambda decorated: self._register(decorated, how)
        return self._register(function[0], how)

    def _register(self, function: Callable[..., Any], how: Mapping[str, Any]) -> Task[Any, Any]:
        handler = self.registry.register(function, **how)
        if (
            self._engine is not None
            and not handler.external
            and (self._only is None or handler.options.queue in self._only)
        ):
            self._engine.serve(handler.options.queue, self._slots_of(handler.options.queue))
        return Task(self._client, handler, handler.options)

    def cron(
        self,
        expression: str,
        task: Task[[], Any],
        *,
        name: str | None = None,
        tz: str = "UTC",
        missed: Literal["skip", "once", "all"] = "once",
        jitter_s: float = 0.0,
    ) -> None:
        """Submit `task()` by a cron expression, once however many processes run this app.

        Args:
            name: of the schedule; default: the handler's name.
            missed: what to do about times nobody was there for: `skip`, run `once`, or run `all` (at most 100 at a time).

        Raises:
            SettingsError: the expression, zone or name is wrong, or its runs could be refused.
        """
        if task.options_in_force.on_busy == "reject" and task.options_in_force.thread_id is not None:
            raise SettingsError(
                f'schedule {name or task.name!r} submits with on_busy="reject"',
                why="nobody is there to be told that a run was refused",
                fix='use "enqueue", "interrupt" or "rollback"',
            )
        spec = CronSpec(name=name or task.name, expression=expression, tz=tz, missed=missed, jitter_s=jitter_s)
        if any(known.name == spec.name for known, _ in self._schedules):
            raise SettingsError(f"two schedules are called {spec.name!r}", fix="give one of them another name=")
        self._schedules.append((spec, task.call()))

    def _planned(self) -> list[Planned]:
        def planned(spec: CronSpec, call: Call) -> Planned:
            return Planned(spec, lambda _run_us: self._client.specs([call])[0])

        return [planned(spec, call) for spec, call in self._schedules]

    # ------------------------------------------------------------ handing in

    def submit_many(self, calls: Iterable[Call]) -> list[Handle[Any]]:
        """Hand in calls of any handlers in one transaction: `app.submit_many([a.call(1), b.call("x")])`."""
        return self._client.submit_calls(calls)

    def submit_in(
        self, connection: sqlite3.Connection, task: Task[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Handle[R]:
        """Hand in a task as part of your own transaction on the same SQLite file: it exists if and when you commit.

        Raises:
            UsageError: the connection is of another database.
            PayloadError: as for `submit`.
        """
        return self._client.submit_in(connection, task.call(*args, **kwargs))

    def submit_named(self, name: str, arguments: Mapping[str, Any], **options: Unpack[SubmitOptions]) -> Handle[Any]:
        """Hand in a task by its handler's name, for callers that have only text (a form, a webhook).

        Raises:
            UnknownHandler: no such handler in this app.
        """
        handler = self.registry.find(name)
        settings = handler.options.replaced(options) if options else handler.options
        return self._client.submit_calls([Call(handler, settings, (), dict(arguments))])[0]

    def handle(self, task_id: int, task: Task[..., R] | None = None) -> Handle[R]:
        """Return a handle for a task that was submitted elsewhere; with `task`, its result is typed."""
        return self._client.handle_of(task_id, None if task is None else task.handler)

    def cancel(self, *task_ids: int, reason: str = "") -> Ack[list[bool]]:
        """Cancel tasks; `await` it, or `.result()` in sync code. False for one that had ended."""
        return self.store.cancel(task_ids, reason=reason)

    def invalidate(self, *tags: str) -> Ack[int]:
        """Forget the cached results that have one of these tags; `await` it, or `.result()` in sync code: how many."""
        return self.store.invalidate(tags=tags)

    # ------------------------------------------------------------ conversations and people

    @overload
    def thread(self, thread_id: str) -> Thread[dict[str, Any]]: ...
    @overload
    def thread(self, thread_id: str, type: type[S]) -> Thread[S]: ...
    def thread(self, thread_id: str, type: type[Any] = dict) -> Thread[Any]:  # noqa: A002 - API
        """Return a conversation by its id. Each change is a transaction; in a body it is part of the attempt's result.

        Args:
            type: of its state: a msgspec struct, dataclass, TypedDict, pydantic model, or plain data.

        Raises:
            SettingsError: no text of 1 to 1000 characters.
            UsageError: `type` cannot be read from JSON.
        """
        return Thread(self._home, thread_id, type)

    def _home(self) -> Home:
        store, attempt = self.store, current()
        if attempt is not None and attempt.store is store:
            return attempt.home
        if self._outside is None or self._outside.store is not store:
            largest = self.settings.thread_memory_bytes_max
            self._outside = Home(store, Chains(store), self.settings.payload_bytes_max, thread_bytes_max=largest)
        return self._outside

    def inbox(self) -> Inbox:
        """Return the questions that tasks have asked people."""
        return Inbox(lambda: self.store)

    def signal(self, name: str, key: str = "", payload: Any = None) -> Ack[int]:
        """Answer every `wait_event(name, key)` with `payload`; `await` it, or `.result()`: how many tasks waited.

        When none does the signal is kept, and the next wait takes it.

        Raises:
            PayloadError, PayloadTooLarge: the payload does not serialise, or is too large.
        """
        what = f"the payload of signal {name!r}"
        return self.store.signal(name, key, encode_value(payload, what, self.settings.payload_bytes_max))

    def ledger(self) -> Ack[Ledger]:
        """Return the counts; `await` it, or `.result()` in sync code."""
        return self.store.ledger()

    @property
    def load(self) -> LoadManager | None:
        """The load on this process while it works: `app.load.should_throttle()`; None without `load_control`."""
        return None if self._engine is None else self._engine.load

    async def start(self) -> None:
        """Start workers on the running event loop; `async with app` does.

        Raises:
            UsageError: this app works already, or has no handler and no queue.
        """
        if self._engine is not None:
            raise UsageError("this app is working already", fix="leave the first `with app` before entering a second")
        queues = self.served_queues()
        engine = Engine(
            self.store,
            self.registry,
            self.settings,
            queues=queues,
            schedules=self._planned(),
            on_beat=self._crew.renewed,
            on_stop=self._crew.close,
        )
        self._engine = engine
        try:
            await engine.start()
        except BaseException:
            self._engine = None
            raise

    async def stop(self, drain_s: float | None = None) -> None:
        """Stop the workers: bodies get `drain_s` to end, the rest is handed back. Clients of providers are closed.

        Harmless when not started.
        """
        engine = self._engine
        try:
            if engine is not None:
                await engine.stop(self.settings.drain_s if drain_s is None else drain_s)
                self._engine = None
        finally:
            await self._providers.close()

    def served_queues(self) -> dict[str, int]:
        """Return queue → slots that this app serves: those of its handlers, and those it was given."""
        if self._only is not None:
            return dict(self._only)
        names = {h.options.queue for h in self.registry.all() if not h.external} | self._queues.keys() | {"default"}
        return {name: self._slots_of(name) for name in sorted(names)}

    def _slots_of(self, queue: str) -> int:
        if queue in self._queues:
            return self._queues[queue]
        if queue == "cpu":
            return self.settings.cpu_slots or usable_cores()
        if queue == AGENTS_QUEUE:
            return self.settings.agents_max
        return self.settings.slots

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del error, traceback
        try:
            await self.stop(0.0 if kind is not None and issubclass(kind, asyncio.CancelledError) else None)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self) -> Self:
        if self._bridge is not None:
            raise UsageError("this app is working already", fix="leave the first `with app` before entering a second")
        self._bridge = LoopThread()
        try:
            self._bridge.run(self.start())
        except BaseException:
            self._bridge.close()
            self._bridge = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        bridge, self._bridge = self._bridge, None
        if bridge is None:
            return
        try:
            bridge.run(self.stop())
        except KeyboardInterrupt:  # a second Ctrl-C: do not wait for bodies, but do hand their tasks back
            bridge.run(self.stop(0.0))
            raise
        finally:
            bridge.close()
            self.close()

    def testing(self) -> Testing:
        """Return a context in which this app has a store in memory and a clock that jumps.

            with app.testing() as t:              # or `async with`, and `await t.drain()`
                handle = review.submit("a.py")
                assert t.submitted(review, path="a.py")
                t.drain()                         # runs what is ready; retries, delays and sleeps pass at once
                assert handle.result() == "fine"

        Tasks run only in `drain` and `advance`. Cron schedules do not fire in it.

        Raises:
            UsageError: this app is working.
        """
        if self._engine is not None:
            raise UsageError("this app is working already", fix="leave its `with app` before app.testing()")
        return Testing(
            self.registry, self.settings,
            queues=self.served_queues, exchange=self._exchange_store, on_stop=self._crew.close,
        )  # fmt: skip

    def _exchange_store(self, store: Store | None) -> Store | None:
        with self._opening:
            outer, self._store = self._store, store
        if store is not None:
            self._providers.declare_all(store)
        return outer

    def close(self) -> None:
        """Close the store; the next use opens it again. Waits for what was submitted to be durable.

        In sync code it closes the clients of providers as well; in async code `await app.stop()` does.
        """
        if self._providers.has_clients and not in_event_loop():
            asyncio.run(self._providers.close())
        self._locks.close()
        with self._opening:
            store, self._store = self._store, None
        if store is not None:
            store.close()

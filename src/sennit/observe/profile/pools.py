"""What runs in pools of OS threads: each call measured where it runs, and how long it stood in the queue before.

    submit(fn) ─► queue ─► [ meter ─► fn ─► meter ] ─► per function: calls, ran, cpu, run queue
                                                    └► per pool: busy seconds of each OS thread

Time in the queue is kept apart from time in the body: taken together, any short body in a long queue looks like waiting.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Protocol

from sennit.observe.profile.facts import FunctionFacts, PoolFacts
from sennit.observe.profile.locks import waited_here_s
from sennit.observe.profile.places import caller, name_of

FUNCTIONS_MAX = 1000
"""More are put together under one name: a program that makes functions as it goes must not fill memory."""


class Measured(Protocol):
    """One call in the OS thread that ran it."""

    @property
    def wall_s(self) -> float:
        """In the body."""

    @property
    def cpu_s(self) -> float:
        """Of this OS thread."""

    @property
    def runq_s(self) -> float:
        """It could have run and had no core; 0 where the system does not say."""


class Detector(Protocol):
    """Who tells kinds of work apart (`execute.workload`, handed in)."""

    def begin(self, name: str) -> Callable[[], Measured]:
        """Start measuring a call in this OS thread; what it returns stops."""

    def note(self, name: str, sample: Any) -> None:
        """Learn from one call."""

    def judge(self, name: str) -> tuple[str, bool | None]:
        """Return the kind of a function, and whether it holds the GIL."""


@dataclass(slots=True)
class _Function:
    calls: int = 0
    ran_s: float = 0.0
    cpu_s: float = 0.0
    runq_s: float = 0.0
    queued_s: float = 0.0
    locked_s: float = 0.0
    importable: bool = True

    def add(self, sample: Measured, *, queued_s: float, locked_s: float) -> None:
        self.calls += 1
        self.ran_s += sample.wall_s
        self.cpu_s += sample.cpu_s
        self.runq_s += sample.runq_s
        self.queued_s += queued_s
        self.locked_s += locked_s


@dataclass(slots=True)
class _Pool:
    name: str
    made_at: str
    workers_max: int
    functions: dict[str, _Function] = field(default_factory=dict)
    busy_s: dict[int, float] = field(default_factory=dict)
    first_s: float | None = None
    last_s: float = 0.0
    backlog_s: float = 0.0
    backlog_until_s: float = 0.0


class PoolWatch:
    """Watches executors of the given classes, from the moment that they first take something."""

    def __init__(self, detector: Detector, executors: tuple[type[Executor], ...]) -> None:
        self._detector = detector
        self._executors = executors
        self._originals: list[tuple[type[Executor], Any]] = []
        self._lock = threading.Lock()
        self._functions: dict[str, _Function] = {}
        self._pools: dict[int, _Pool] = {}
        self._kept: list[Executor] = []  # so that no id is used twice

    def start(self) -> None:
        """Put the watch into `submit` of each class."""
        for kind in self._executors:
            self._originals.append((kind, kind.submit))
            kind.submit = self._watched(kind.submit)  # type: ignore[method-assign]  # every road in goes through it

    def stop(self) -> tuple[list[FunctionFacts], list[PoolFacts]]:
        """Take the watch away and return what was seen, what ran longest first."""
        for kind, original in self._originals:
            kind.submit = original  # type: ignore[method-assign]
        functions = [self._function_facts(name, f) for name, f in self._functions.items()]
        pools = [self._pool_facts(pool) for pool in self._pools.values()]
        return sorted(functions, key=lambda f: f.ran_s, reverse=True), pools

    def body(self, function: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """Run `call()`, which is a sync body of sennit, and count it; it waits for its turn in the store, not in a queue."""
        books = self._pools.setdefault(id(self), _Pool("pool of sync bodies", "the App", 0))
        return self.measured(books, name_of(function), is_importable(function), monotonic(), call)

    def _function_facts(self, name: str, function: _Function) -> FunctionFacts:
        kind, holds_gil = self._detector.judge(name)
        return FunctionFacts(
            name=name,
            kind=kind,
            holds_gil=holds_gil,
            calls=function.calls,
            ran_s=function.ran_s,
            cpu_s=function.cpu_s,
            runq_s=function.runq_s,
            queued_s=function.queued_s,
            locked_s=function.locked_s,
            importable=function.importable,
        )

    def _pool_facts(self, pool: _Pool) -> PoolFacts:
        ran = [self._function_facts(name, function) for name, function in pool.functions.items()]
        return PoolFacts(
            name=pool.name,
            made_at=pool.made_at,
            workers_max=pool.workers_max,
            calls=sum(f.calls for f in ran),
            queued_s=sum(f.queued_s for f in ran),
            cpu_s=sum(f.cpu_s for f in ran),
            blocked_s=sum(f.blocked_s * f.calls for f in ran),
            locked_s=sum(f.locked_s for f in ran),
            holding_s=sum(f.cpu_s for f in ran if f.holds_gil is not False),
            busy_s=sorted(pool.busy_s.values()),
            active_s=0.0 if pool.first_s is None else pool.last_s - pool.first_s,
            backlog_s=pool.backlog_s,
        )

    def measured(self, pool: _Pool, name: str, importable: bool, submitted_s: float, fn: Callable[[], Any]) -> Any:  # noqa: FBT001 - a fact
        """Run `fn()` in this OS thread and count it."""
        began_s, locked_s = monotonic(), waited_here_s()
        with self._lock:  # what was submitted first starts first: the time it stood there goes on from the last one's
            pool.backlog_s += max(0.0, began_s - max(submitted_s, pool.backlog_until_s))
            pool.backlog_until_s = max(pool.backlog_until_s, began_s)
        stop = self._detector.begin(name)
        try:
            return fn()
        finally:
            sample = stop()
            locked_s = waited_here_s() - locked_s
            self._detector.note(name, sample)
            ended_s, queued_s = monotonic(), began_s - submitted_s
            with self._lock:
                if name not in self._functions and len(self._functions) >= FUNCTIONS_MAX:
                    name = "(others)"
                for books in (self._functions, pool.functions):
                    function = books.setdefault(name, _Function(importable=importable))
                    function.add(sample, queued_s=queued_s, locked_s=locked_s)
                me = threading.get_ident()
                pool.busy_s[me] = pool.busy_s.get(me, 0.0) + ended_s - began_s
                pool.first_s = began_s if pool.first_s is None else min(pool.first_s, began_s)
                pool.last_s = max(pool.last_s, ended_s)

    def pool(self, key: Executor) -> _Pool:
        """Return the books of an executor."""
        found = self._pools.get(id(key))
        if found is None:
            size = getattr(key, "_max_workers", None) or getattr(key, "workers_max", None) or 0
            made_at = caller()
            with self._lock:
                self._kept.append(key)
                found = self._pools.setdefault(id(key), _Pool(type(key).__name__, made_at, int(size)))
        return found

    def _watched(self, submit: Any) -> Any:
        watch = self

        def watched(executor: Executor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            body, name = named(fn, args)
            call = partial(fn, *args, **kwargs)
            books = watch.pool(executor)
            future: Future[Any] = submit(
                executor, partial(watch.measured, books, name, is_importable(body), monotonic(), call)
            )
            return future

        return watched


def named(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], str]:
    """Return what a call is about and its name: through partials and `Context.run`, by which asyncio.to_thread calls."""
    inner: Any = fn
    while True:
        if isinstance(inner, partial):
            inner, args = inner.func, (*inner.args, *args)
        elif isinstance(getattr(inner, "__self__", None), contextvars.Context) and args and callable(args[0]):
            inner, args = args[0], args[1:]
        else:
            return inner, name_of(inner)


def is_importable(fn: Callable[..., Any]) -> bool:
    """Return whether another process finds this function by its name: at the top level of a module with a file."""
    module = sys.modules.get(getattr(fn, "__module__", "") or "")
    found: Any = module
    for part in getattr(fn, "__qualname__", "<none>").split("."):
        found = getattr(found, part, None)
    return found is not None and getattr(module, "__file__", None) is not None

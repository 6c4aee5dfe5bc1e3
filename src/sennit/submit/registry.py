"""Handlers by name: what `@app.task` makes of a function, and where a worker finds it again.

The name is what is stored with a task, so it must be the same in the submitting and the running process: module and
qualified name by default, with `__main__` replaced by the script's module name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

from sennit.errors import SettingsError, UnknownHandler
from sennit.model.retry import RetryPolicy
from sennit.model.thread import OnBusy
from sennit.model.timeout import AdaptiveTimeout
from sennit.submit.codec import Codec
from sennit.submit.handle import Handle, Handles
from sennit.submit.options import NamesProvider, Options, SubmitOptions
from sennit.sync.ack import Ack

EXTERNAL_QUEUE: Final = "external"
"""Of tasks for agents from outside, unless they say another."""

P = ParamSpec("P")
R = TypeVar("R")


class Submitter(Protocol):
    """What a task needs of the client."""

    def submit_calls(self, calls: Iterable[Call]) -> list[Handle[Any]]:
        """Hand in several calls at once, all or none."""

    def invalidate(self, call: Call) -> Ack[int]:
        """Forget the cached result of a call."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function and how its attempts are run.

    Attributes:
        kind: `async` runs on the event loop, `sync` in an OS thread, `cpu` in a worker process.
        timeout_s: per attempt; None is none.  idle_timeout_s: without a sign of life.
        adaptive_timeout: per attempt, learnt from others; it has a ceiling.
        preemptible: an urgent task may take its slot between two steps.
        stays: its author has said `cpu=False`: it is never moved to a worker process.
        external: its tasks are done by agents from outside (`sennit mcp`); no worker runs it.
    """

    name: str
    function: Callable[..., Any]
    kind: str
    codec: Codec
    retry: RetryPolicy
    timeout_s: float | None
    idle_timeout_s: float | None
    options: Options
    preemptible: bool = False
    adaptive_timeout: AdaptiveTimeout | None = None
    stays: bool = False
    external: bool = False

    @property
    def is_movable(self) -> bool:
        """Whether a worker process may run it, if it turns out to compute: nothing says that it needs this process."""
        needs_context = self.preemptible or self.idle_timeout_s is not None or bool(self.options.provider)
        return self.kind == "sync" and not self.stays and not needs_context

    @property
    def reference(self) -> str:
        """Where another process imports the function: `module:qualname`."""
        return f"{self.function.__module__}:{self.function.__qualname__}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call to be handed in."""

    handler: Handler
    options: Options
    args: Sequence[Any]
    kwargs: dict[str, Any]


class Task(Generic[P, R]):
    """A handler with options: call it directly, or `submit` it.

    Calling it runs the plain function here and now, without queue or store: that is how it is unit-tested.
    """

    def __init__(self, client: Submitter, handler: Handler, options: Options) -> None:
        self._client = client
        self._options = options
        self.handler = handler
        self.function: Callable[P, Any] = handler.function
        self.__name__ = handler.function.__name__
        self.__qualname__ = handler.function.__qualname__
        self.__module__ = handler.function.__module__
        self.__doc__ = handler.function.__doc__
        self.__wrapped__ = handler.function

    @property
    def name(self) -> str:
        """The name that is stored with its tasks."""
        return self.handler.name

    @property
    def options_in_force(self) -> Options:
        """What a submit says besides the arguments."""
        return self._options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.handler.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Hand in one task; arguments as of the function itself, handles for results of other tasks.

        In sync code it returns when the task is durable. In async code it returns at once: `await handle.stored()`
        waits for that, and so does awaiting the result. Inside a body it makes a child.

        While the queue is full, that takes as long as there is no room: see `on_full` and `admission_timeout_s`.

        Raises:
            PayloadError: the arguments do not fit the function or do not serialise.
            QueueFull, ThreadBusy: as `on_full` and `on_busy` say.
            SubmitError: the store refused it (in async code raised by `stored()` and by awaiting).
        """
        return self._client.submit_calls([Call(self.handler, self._options, args, kwargs)])[0]

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call:
        """Return the call without handing it in, for `app.submit_many`."""
        return Call(self.handler, self._options, args, kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Ack[int]:
        """Forget the cached result of this call; the ack says how many there were, 0 or 1. A running task goes on.

        Raises:
            PayloadError: the arguments do not fit the function or do not serialise.
        """
        return self._client.invalidate(Call(self.handler, self._options, args, kwargs))

    def map(self, *columns: Iterable[Any], **options: Unpack[SubmitOptions]) -> Handles[R]:
        """Hand in one task per item (per row of several columns, like `map`), all in one transaction.

        More items than `queue_max` go in in parts, in order, as workers make room: in sync code this blocks meanwhile,
        in async code it returns at once. Each part is a transaction.

        Raises:
            QueueFull: `on_full` says so, or no part could enter for `admission_timeout_s`; what is in before it goes on.
        """
        settings = self._options.replaced(options) if options else self._options
        rows = ((item,) for item in columns[0]) if len(columns) == 1 else zip(*columns, strict=True)
        return Handles(self._client.submit_calls([Call(self.handler, settings, row, {}) for row in rows]))

    def options(self, **changes: Unpack[SubmitOptions]) -> Task[P, R]:
        """Return this task with other options.

        Raises:
            SettingsError: an unknown option or a value out of its bounds.
        """
        return Task(self._client, self.handler, self._options.replaced(changes))


class Decorator(Protocol):
    """What `app.task(…)` returns: keeps the parameters, and the result type of sync and async functions."""

    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Registry:
    """All handlers of an app."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def all(self) -> list[Handler]:
        """Return every handler, in the order of registration."""
        return list(self._handlers.values())

    def register(
        self,
        function: Callable[..., Any],
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
        provider: NamesProvider | str | None = None,
        needs: str | Sequence[str] | None = None,
        pinned: bool | None = None,
        preemptible: bool = False,
        external: bool = False,
        options: SubmitOptions | None = None,
    ) -> Handler:
        """Add a handler.

        Raises:
            SettingsError: the name is taken by another function, or an option is wrong. In a notebook or at a prompt a
                function that is defined again takes the place of the former.
        """
        name = name or default_name(function)
        known = self._handlers.get(name)
        if (
            known is not None
            and _place(known.function) != _place(function)
            and not _redefines(function, known.function)
        ):
            raise SettingsError(
                f"two handlers are called {name!r}",
                why=f"{_place(known.function)} and {_place(function)}; stored tasks could run either",
                fix='give one of them a name: @app.task(name="…")',
            )
        is_async = inspect.iscoroutinefunction(function)
        if cpu and is_async:
            raise SettingsError(
                f"handler {name!r} is async and cpu=True",
                why="a cpu body runs in a process without an event loop",
                fix="make it a plain `def`, or drop cpu=True",
            )
        if cpu and preemptible:
            raise SettingsError(
                f"handler {name!r} is cpu=True and preemptible=True",
                why="a body makes room between two steps, and a cpu body has none",
                fix="drop one of them, or split it into tasks",
            )
        if external and (cpu or timeout_s or idle_timeout_s or preemptible or provider):
            raise SettingsError(
                f"handler {name!r} is external, and its body has options",
                why="its tasks are done elsewhere: no body runs here",
                fix="leave cpu, timeout_s, idle_timeout_s, preemptible and provider out",
            )
        kind = "cpu" if cpu else "async" if is_async else "sync"
        changes = SubmitOptions(**(options or {}))
        if on_busy is not None:
            changes["on_busy"] = on_busy
        if cache_s is not None:
            changes["cache_s"] = cache_s
        if cache_tags is not None:
            changes["cache_tags"] = cache_tags
        if provider is not None:
            changes["provider"] = provider
        if needs is not None:
            changes["needs"] = needs
        if pinned is not None:
            changes["pinned"] = pinned
        defaults = Options(queue=queue or ("cpu" if cpu else EXTERNAL_QUEUE if external else "default"))
        handler = Handler(
            name=name,
            function=function,
            kind=kind,
            codec=Codec(function, name),
            retry=retries if isinstance(retries, RetryPolicy) else _policy(retries),
            timeout_s=timeout_s,
            idle_timeout_s=idle_timeout_s,
            options=defaults.replaced(changes) if changes else defaults,
            preemptible=preemptible,
            adaptive_timeout=None if adaptive_timeout is None else adaptive_timeout.within(timeout_s),
            stays=cpu is False,
            external=external,
        )
        self._handlers[name] = handler
        return handler

    def get(self, name: str) -> Handler | None:
        """Return a handler, or None."""
        return self._handlers.get(name)

    def find(self, name: str) -> Handler:
        """Return a handler by its name, or by the last part of it when that is unique.

        Raises:
            UnknownHandler: with the nearest known name.
        """
        exact = self._handlers.get(name)
        if exact is not None:
            return exact
        short = [h for n, h in self._handlers.items() if n.rpartition(".")[2] == name]
        if len(short) == 1:
            return short[0]
        near = get_close_matches(name, [*self._handlers, *(n.rpartition(".")[2] for n in self._handlers)], n=1)
        raise UnknownHandler(
            f"there is no handler {name!r}",
            why=f"{len(self._handlers)} handlers are registered in this process",
            fix=f"did you mean {near[0]!r}?" if near else "import the module that defines it",
        )


def default_name(function: Callable[..., Any]) -> str:
    """Return `module.qualname`; for a script, its file name stands for `__main__`."""
    module = function.__module__
    if module in {"__main__", "__mp_main__"}:
        main = sys.modules.get(module)
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if spec is not None and spec.name != "__main__":
            module = spec.name.removesuffix(".__main__")
        elif file:
            module = Path(file).stem
    return f"{module}.{function.__qualname__}"


def _policy(retries: int) -> RetryPolicy:
    try:
        return RetryPolicy(retries=retries)
    except (ValueError, TypeError) as error:
        raise SettingsError(str(error)) from None


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


def _redefines(function: Callable[..., Any], known: Callable[..., Any]) -> bool:
    """Return whether somebody has run an edited cell, or typed a function again."""
    return _is_typed(function) and _is_typed(known) and function.__qualname__ == known.__qualname__


def _is_typed(function: Callable[..., Any]) -> bool:
    """Return whether a function of `__main__` is from no file.

    The code of a prompt is called `<stdin>`. A cell's is called like a file that ipykernel never writes; the `__main__` of
    a zipped program has no file on the disk either, but it says where it is from.
    """
    code = getattr(function, "__code__", None)
    if code is None or function.__module__ != "__main__":
        return False
    has_file = getattr(sys.modules.get("__main__"), "__file__", None) is not None
    return code.co_filename.startswith("<") or not (has_file or Path(code.co_filename).is_file())

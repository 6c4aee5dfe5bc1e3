"""What a simulated loop is made of: processes, and tasks, futures and handles that know theirs.

All of them are asyncio's own classes with two additions: the process that they belong to, and for tasks and futures a
hash that is a serial number. Sets of them (`asyncio.wait`, `TaskGroup`, yours) then iterate alike in every run; by
default they hash by address.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from sennit.errors import UnhandledError
from sennit.testing.trace import stack_of

__all__ = [
    "PROCESS",
    "Process",
    "SimFuture",
    "SimHandle",
    "SimTask",
    "SimTimer",
    "callback_name",
    "complete",
    "has_unseen_error",
    "owner_of",
    "raise_unseen",
    "unwind_all",
    "waiting",
]

UNWIND_TRIES: Final = (
    100  # awaits that the `finally` blocks of one dropped coroutine may make before they count as stuck
)


class Process:
    """One simulated process. In the list of what is ready it stands for the head of its lane of callbacks."""

    __slots__ = ("alive", "callbacks", "death_waiters", "freezes", "frozen", "name", "parked", "steps")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.freezes = 0  # so far
        self.steps = 0
        self.callbacks: deque[SimHandle | SimTimer] = deque()
        self.parked: list[SimHandle | Process] = []  # what would be ready, were it not frozen
        self.death_waiters: list[asyncio.Future[None]] = []


PROCESS: Final[contextvars.ContextVar[Process]] = contextvars.ContextVar("sennit.testing.process")
"""The process that code runs in; unset in the main one."""


class SimTask(asyncio.Task[Any]):
    """A task of one process; it stays with it, whatever context it enters later."""

    __slots__ = ("process", "serial")

    def __init__(
        self,
        coro: Any,
        *,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: contextvars.Context,
        serial: int,
        process: Process,
    ) -> None:
        self.serial = serial  # before Task.__init__, which puts the task into a set
        self.process = process
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self.serial


class SimFuture(asyncio.Future[Any]):
    """A future of the process that made it."""

    __slots__ = ("process", "serial")

    def __init__(self, *, loop: asyncio.AbstractEventLoop, serial: int, process: Process) -> None:
        self.serial = serial
        self.process = process
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.serial


class SimHandle(asyncio.Handle):
    """A callback of one process; `task` is set if it is the next step of one."""

    __slots__ = ("process", "task")

    def __init__(  # noqa: PLR0917  # in the order of asyncio.Handle
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
        process: Process,
        task: SimTask | None,
    ) -> None:
        super().__init__(callback, args, loop, context)
        self.process = process
        self.task = task


class SimTimer(asyncio.TimerHandle):
    """A timer of one process; when due it joins the lane of callbacks."""

    __slots__ = ("process", "task")

    def __init__(  # noqa: PLR0917  # in the order of asyncio.TimerHandle
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
        process: Process,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self.process = process
        self.task: SimTask | None = None


def owner_of(entry: SimHandle | Process) -> Process:
    """Return the process of an entry of the ready list."""
    return entry if isinstance(entry, Process) else entry.process


def callback_name(handle: SimHandle | SimTimer) -> str:
    """Return the callback's qualified name: no address, so that two runs of a seed read alike."""
    callback: Any = handle._callback  # type: ignore[union-attr]  # noqa: SLF001  # asyncio offers it in repr only
    while isinstance(callback, functools.partial):
        callback = callback.func
    return getattr(callback, "__qualname__", type(callback).__qualname__)


def complete(future: asyncio.Future[Any], body: Callable[[], Any]) -> None:
    """Run a sync body and give the future what comes of it."""
    if future.cancelled():
        return
    try:
        result = body()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # it belongs to whoever awaits the future
        future.set_exception(error)
    else:
        future.set_result(result)


def has_unseen_error(task: SimTask) -> bool:
    """Return whether a finished task has raised and nobody has asked for it yet."""
    return bool(task._log_traceback)  # noqa: SLF001  # what its `__del__` looks at


def raise_unseen(task: SimTask) -> None:
    """Raise `UnhandledError` if a living process's task has raised and nobody has asked for it yet."""
    if task.process.alive and has_unseen_error(task):
        error = task.exception()
        raise UnhandledError(
            f"{task.process.name} {task.get_name()} raised {error!r}, and nobody awaited it",
            fix="await the task, or handle the error in it",
        ) from error


def waiting(tasks: Iterable[SimTask]) -> Iterator[str]:
    """Say of each task of a living process where it waits."""
    for task in tasks:
        if task.process.alive:
            frozen = " (frozen)" if task.process.frozen else ""
            yield f"{task.process.name}{frozen} {task.get_name()}: {stack_of(task.get_coro())}"


def unwind_all(tasks: dict[int, SimTask], *, loop: asyncio.AbstractEventLoop) -> None:
    """Close the coroutines of tasks that will never run again, and let no trace of that reach anyone.

    Raises:
        RuntimeError: the `finally` blocks of one go on awaiting for ever.
    """
    outer = asyncio._get_running_loop()  # noqa: SLF001
    asyncio._set_running_loop(loop)  # noqa: SLF001  # without one, asyncio.shield in a `finally` block would make one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a coroutine that a `finally` block made in vain
            while tasks:
                _unwind(tasks.popitem()[1])
    finally:
        asyncio._set_running_loop(outer)  # noqa: SLF001


def _unwind(task: SimTask) -> None:
    asyncio.tasks._unregister_task(task)  # noqa: SLF001  # documented for loops: "Extending asyncio"
    coroutine: Any = task.get_coro()
    context = contextvars.copy_context()
    for _ in range(UNWIND_TRIES):
        try:
            context.run(coroutine.close)
        except KeyboardInterrupt:
            raise
        except RuntimeError:
            continue  # it awaits in a `finally` block ("ignored GeneratorExit"): close it from there
        except BaseException:  # noqa: BLE001  # its process is no more: what it raises is of no account
            return
        else:
            return
    raise RuntimeError(f"{coroutine!r} cannot be closed: it awaits in a finally block for ever")

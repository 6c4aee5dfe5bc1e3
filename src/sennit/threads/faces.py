"""One definition, two faces: a method that says what to do under which lock, for sync and for async callers.

workspace.set_context("t", "k", 1)                 does it here, in this OS thread
await workspace.set_context.aio("t", "k", 1)       waits for the lock without an OS thread, and works in one
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from sennit.errors import UsageError
from sennit.sync.filelocks import FileLock

__all__ = ["Operation", "Work", "operation"]

P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W")

_inside: ContextVar[frozenset[FileLock]] = ContextVar("_inside", default=frozenset())


@dataclass(frozen=True, slots=True)
class Work(Generic[R]):
    """What to do, and the lock to hold meanwhile; None if it needs none.

    With `ends_lock` nothing is left for it to protect: its files are deleted too.
    """

    do: Callable[[], R]
    lock: FileLock | None = None
    ends_lock: bool = False

    def run(self) -> R:
        """Do it in this OS thread."""
        if self.lock is None:
            return self.do()
        self._check()
        with self.lock:
            result = self._do_inside(self.lock)
            if self.ends_lock:
                self.lock.delete_files()
            return result

    async def run_async(self) -> R:
        """Wait on the event loop, work in an OS thread."""
        if self.lock is None:
            return await asyncio.to_thread(self.do)
        self._check()
        async with self.lock:
            result = await _to_the_end(asyncio.to_thread(self._do_inside, self.lock))
            if self.ends_lock:
                self.lock.delete_files()
            return result

    def _check(self) -> None:
        """Refuse a change from within a change: it would wait for itself, in the async face in another OS thread."""
        if self.lock is not None and any(self.lock.path == held.path for held in _inside.get()):
            raise UsageError(
                f"a function that changes something under the lock {self.lock.path} wants to change more under it",
                why="it would wait for itself for ever",
                fix="do it after the update, or return all changes as one value",
            )

    def _do_inside(self, lock: FileLock) -> R:
        token = _inside.set(_inside.get() | {lock})
        try:
            return self.do()
        finally:
            _inside.reset(token)


async def _to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Await work in an OS thread. It cannot be cancelled: a cancellation waits for it, or its lock would be released."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # cancelled again; the first one is raised below
        if not task.cancelled():
            task.exception()  # looked at: the caller gets the cancellation instead
        raise


class Operation(Generic[P, R]):
    """A method bound to its object: call it, or await its `aio`."""

    def __init__(self, plan: Callable[P, Work[R]]) -> None:
        self._plan = plan

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do it in this OS thread."""
        return self._plan(*args, **kwargs).run()

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do it from async code. A cancellation that comes while a file is written takes effect after that."""
        return await self._plan(*args, **kwargs).run_async()


class operation(Generic[W, P, R]):  # noqa: N801 - a decorator
    """Make an `Operation` of a method that returns its `Work`."""

    def __init__(self, plan: Callable[Concatenate[W, P], Work[R]]) -> None:
        self._plan = plan
        self.__doc__ = plan.__doc__

    def __get__(self, instance: W, owner: type[W]) -> Operation[P, R]:
        return Operation(partial(self._plan, instance))

"""Those that wait for room in a pool of shared arrays, and how they are woken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sennit.sync.array_segments import Lease

__all__ = ["Waiter", "site", "wake"]

_CONTEXTLIB: Final = contextlib.__file__


class Waiter:
    """One that waits for room."""

    __slots__ = ("error", "lease", "nbytes", "site", "wake")

    def __init__(self, nbytes: int, site: str, wake: Callable[[], None]) -> None:
        self.nbytes = nbytes
        self.site = site
        self.wake = wake
        self.lease: Lease | None = None
        self.error: Exception | None = None

    @property
    def is_served(self) -> bool:
        """Whether the waiting is over."""
        return self.lease is not None or self.error is not None

    def granted(self) -> Lease:
        """Return what was waited for."""
        if self.lease is None:
            raise self.error or AssertionError("a waiter that was not served has an error")
        return self.lease


def wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    """From any OS thread."""
    with suppress(RuntimeError):  # its loop is closed, and nobody waits any more
        loop.call_soon_threadsafe(_set, woken)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def site(within: str) -> str:
    """Return the line that called into the file `within`, for messages."""
    frame = sys._getframe(1)  # noqa: SLF001 - what inspect uses, without reading files
    while frame.f_back is not None and frame.f_code.co_filename in (within, _CONTEXTLIB):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"  # noqa: PTH119 - 1 µs and not 5

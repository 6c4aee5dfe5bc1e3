"""Names for places in a program: `file.py:12 in function`, short enough for a table."""

# ruff: noqa: SLF001 - frames of the running program

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

_STDLIB: Final = tuple(str(Path(sysconfig.get_path(name)).resolve()) + os.sep for name in ("stdlib", "platstdlib"))
PLACES_MAX: Final = 10_000
_places: Final[dict[tuple[int, int], tuple[CodeType, str]]] = {}  # with the code, so that no other one gets its id
_OURS: Final = str(Path(__file__).resolve().parent) + os.sep
_SENNIT: Final = str(Path(__file__).resolve().parents[2]) + os.sep
_CHILD: Final = str(Path(_SENNIT, "cli", "profile_child.py"))


def place_of(frame: FrameType) -> str:
    """Return where a frame stands."""
    code, line = frame.f_code, frame.f_lineno
    known = _places.get((id(code), line))
    if known is None:
        if len(_places) >= PLACES_MAX:
            _places.clear()
        place = f"{_short(code.co_filename)}:{line} in {code.co_qualname}"
        known = _places[id(code), line] = (code, place)
    return known[1]


def caller() -> str:
    """Return the innermost place on the stack of this OS thread that is neither the standard library nor this profile."""
    frame: FrameType | None = sys._getframe(1)
    last: FrameType | None = None
    while frame is not None:
        origin = origin_of(frame.f_code.co_filename)
        if origin is Origin.PROGRAM:
            return place_of(frame)
        if origin is Origin.LIBRARY:
            last = frame
        frame = frame.f_back
    return "?" if last is None else f"{place_of(last)}, in OS thread {threading.current_thread().name!r}"


class Origin(Enum):
    """Whose a file is: of this profile (or of the interpreter's own frozen modules), of the standard library, or else."""

    OURS = 0
    LIBRARY = 1
    PROGRAM = 2


@cache
def origin_of(filename: str) -> Origin:
    """Return whose a file is. Asked for each frame of a stack, so it is kept per file."""
    if filename.startswith((_OURS, "<frozen")) or filename == _CHILD:
        return Origin.OURS
    if filename.startswith(_STDLIB) and "site-packages" not in filename:
        return Origin.LIBRARY
    return Origin.PROGRAM


def is_of_sennit(filename: str) -> bool:
    """Return whether a file belongs to this package."""
    return filename.startswith(_SENNIT)


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:qualname` of what a callable stands for; through `functools.partial` and bound methods."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    module = getattr(function, "__module__", None) or "?"
    return f"{module}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def describe(handle: asyncio.Handle) -> str:
    """Return what a handle of a loop calls: a task's coroutine, or the callback."""
    callback = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine = owner.get_coro()
        return f"task {getattr(coroutine, '__qualname__', repr(coroutine))}"
    return "callback " + (name_of(callback) if callable(callback) else "?")


@cache  # two system calls and a dozen objects: a program that makes a lock per call asks for it 100,000 times
def _short(filename: str) -> str:
    path = Path(filename)
    if "site-packages" in path.parts:
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    if filename.startswith(_SENNIT):
        return str(path.relative_to(Path(_SENNIT).parent))
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path.name

"""An exception raised in another OS thread, and taken back: `PyThreadState_SetAsyncExc`, and what it leaves behind.

What is taken back (NULL) before it was raised leaves a mark in the interpreter: CPython 3.11 then believes that some OS
thread has one pending, for ever. All of its code runs through the slow path from then on, and an OS thread that a debugger
traces hangs at its first line. The mark goes when any such exception is raised: so `withdraw` raises one of its own and
catches it.

Source: CPython 3.11, Python/ceval.c: `pending.async_exc` is set by _PyEval_SignalAsyncExc, and cleared only where an
exception is delivered (UNSIGNAL_ASYNC_EXC).
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

__all__ = ["strike", "withdraw"]

_set: Final[Any] = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set.restype = ctypes.c_int
_NOTHING: Final = ctypes.py_object()  # NULL
_CHECKS: Final = 1000  # it is raised at the first one


class _Settled(BaseException):
    """Raised and caught by `withdraw`."""


def strike(os_thread_id: int, kind: type[BaseException]) -> None:
    """Raise `kind()` in an OS thread, at its next Python instruction. Replaces what was to be raised there."""
    _set(os_thread_id, kind)


def withdraw(os_thread_id: int) -> None:
    """Raise nothing that was to be raised in this OS thread, whose own identifier it must be."""
    _set(os_thread_id, _NOTHING)
    try:
        _set(os_thread_id, _Settled)
        for _ in range(_CHECKS):
            pass
        _set(os_thread_id, _NOTHING)
    except _Settled:
        return

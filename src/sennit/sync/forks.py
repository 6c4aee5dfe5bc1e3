"""What a forked child must drop: whatever the operating system keys to an open file.

`fork()` copies file descriptors but not ownership. A child that keeps a copy of a lock file holds the lock after
its parent has died; one that keeps a socket hides that nobody answers it; one that keeps a pipe hides its end.
`O_CLOEXEC` covers children that exec. This module covers those that go on as Python: everything registered here
gets `drop_after_fork()` in the child, before any other Python code of the child runs.

A fork from C code that neither execs nor tells Python is out of reach.
"""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from contextlib import suppress
from typing import NoReturn, Protocol

__all__ = ["Droppable", "drop_after_fork", "end_forked_child"]


class Droppable(Protocol):
    """Something that owns descriptors its process must not share with a forked child."""

    def drop_after_fork(self) -> None:
        """Close the child's copies. Runs in the child; take no lock here, its owner may not exist any more."""


_owners: weakref.WeakSet[Droppable] = weakref.WeakSet()


def drop_after_fork(owner: Droppable) -> None:
    """Have `owner.drop_after_fork()` called in every child forked from now on, for as long as `owner` lives."""
    _owners.add(owner)


def end_forked_child(error: BaseException | None) -> NoReturn:
    """End a child that a task body forked and that came back out of the body, as a script of its own would end.

    It must not go on: the loop, pipes and locks it would use are its parent's.

    Args:
        error: what the body raised in the child; `SystemExit` sets the exit code, others are printed and give 1.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # Closed, gone, or there is none.
            stream.flush()
    os._exit(code)


def _drop_all() -> None:
    for owner in list(_owners):
        owner.drop_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)

"""Values and files that several write to."""

from __future__ import annotations

from sennit.errors.base import SennitError


class ConcurrentModificationError(SennitError, RuntimeError):
    """The value is not at the version it was changed from; nothing was written."""

    code = "S330"
    exit_code = 4

    def __init__(self, thread_id: str, expected: int, actual: int) -> None:
        super().__init__(
            f"{thread_id!r} is at version {actual}, and the change was made from version {expected}",
            why="somebody else has committed meanwhile",
            fix="read it again and repeat the change; keep slow work out of the function that makes the change",
        )
        self.thread_id = thread_id
        self.expected = expected
        self.actual = actual


class LockTimeout(SennitError, TimeoutError):
    """A lock was not free in time. `owner` says who holds it, `pids` are the holders known on this host.

    Attributes:
        path: of a file lock; for a lock in this process its name.
    """

    code = "S331"
    exit_code = 75

    def __init__(self, path: str, *, timeout_s: float, owner: str, pids: tuple[int, ...] = ()) -> None:
        super().__init__(
            f"the lock {path} was not free within {timeout_s:g} s: held by {owner}",
            fix="wait longer (timeout_s), or see what the holder does; if it hangs, end it and the lock is free at once",
        )
        self.path = path
        self.timeout_s = timeout_s
        self.owner = owner
        self.pids = pids


class WorkspaceTooLarge(SennitError, ValueError):
    """A value is over the workspace's ceiling; nothing was written."""

    code = "S332"

    def __init__(self, what: str, *, size_bytes: int, size_bytes_max: int, setting: str) -> None:
        super().__init__(
            f"{what} takes {size_bytes} bytes and {setting} is {size_bytes_max}",
            why="it is read and written as a whole, and replaced as a whole by every change",
            fix=f"split it, store it elsewhere and keep its path, or raise {setting}",
        )
        self.size_bytes = size_bytes
        self.size_bytes_max = size_bytes_max


class StateTooLarge(SennitError, ValueError):
    """State and config of a thread together are over `settings.thread_memory_bytes_max`; nothing was written."""

    code = "S333"

    def __init__(self, thread_id: str, *, size_bytes: int, size_bytes_max: int) -> None:
        super().__init__(
            f"state and config of thread {thread_id!r} take {size_bytes} bytes, "
            f"and settings.thread_memory_bytes_max is {size_bytes_max}",
            why="they are read as a whole whenever a task of the thread asks, by many threads at once",
            fix="keep large parts in files and their paths in the state, or raise thread_memory_bytes_max",
        )
        self.thread_id = thread_id
        self.size_bytes = size_bytes
        self.size_bytes_max = size_bytes_max


class LockLost(SennitError, RuntimeError):
    """The lock is not held any more: its time was over before it was extended, or it was taken away by force.

    Attributes:
        name, token: which grant it was.
    """

    code = "S334"

    def __init__(self, name: str, token: int, *, why: str = "") -> None:
        super().__init__(
            f"the lock {name!r} is not held any more with token {token}",
            why=why or "its time was over before it was extended, it was released, or somebody took it by force",
            fix="stop what it protected, and take the lock again; writes that carry its fence are refused once somebody "
            "else has it",
        )
        self.name = name
        self.token = token


class Fenced(SennitError, RuntimeError):
    """A write carried the token of a lock that somebody else holds, or has held, since; nothing was written.

    Attributes:
        name, token: of the lock the write was made under.
        newest: the newest token of that name; 0 when the store knows none.
    """

    code = "S335"
    exit_code = 4

    def __init__(self, name: str, token: int, *, newest: int) -> None:
        known = f"the newest token is {newest}" if newest else "the store knows no such token"
        super().__init__(
            f"a write under the lock {name!r} with token {token} was refused: {known}",
            why="the lock was lost before the write arrived, and what was read under it may be old",
            fix="take the lock again, read again, and repeat the change",
        )
        self.name = name
        self.token = token
        self.newest = newest


class LockOrderError(SennitError, RuntimeError):
    """Locks are taken in two opposite orders; some day that is a deadlock. Nothing was acquired.

    Attributes:
        edges: a line per order of the cycle, this one first, each with where it was first seen.
        names: the locks of the cycle.
    """

    code = "S336"

    def __init__(self, edges: tuple[str, ...], *, names: tuple[str, ...]) -> None:
        super().__init__(
            "taking this lock closes a cycle of lock orders:\n    " + "\n    ".join(edges),
            why="two that follow these orders at the same time would wait for each other for ever",
            fix=f"take {', '.join(map(repr, sorted(names)))} in one order everywhere, or release one before the other",
        )
        self.edges = edges
        self.names = names


class LockDeadlock(SennitError, RuntimeError):
    """Waiting for this lock would never end: those that wait for each other form a cycle. Nothing was acquired.

    Attributes:
        name: the lock that was asked for.
        cycle: a line per wait, this one first; the last waits for something this one has.
    """

    code = "S337"

    def __init__(self, cycle: tuple[str, ...], *, name: str) -> None:
        super().__init__(
            f"waiting for the lock {name!r} would never end:\n    " + "\n    ".join(cycle),
            why="each waits for what the next one has",
            fix="take locks in one order everywhere (SENNIT_LOCK_ORDER=1 shows where they are not), or use a time-out",
        )
        self.name = name
        self.cycle = cycle

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
    """A file lock was not free in time. `owner` says who holds it, `pids` are the holders known on this host."""

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

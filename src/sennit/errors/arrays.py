"""Arrays in shared memory."""

from __future__ import annotations

from sennit.errors.base import SennitError
from sennit.errors.submit import PayloadError


class ArrayInvalid(SennitError, ValueError):
    """No shared array can have this shape, dtype or size."""

    code = "S350"


class ArraysExhausted(SennitError, TimeoutError):
    """A `SharedArrayPool` had no room in time; nothing was acquired, and nothing was copied instead.

    Attributes:
        bytes_wanted, bytes_max: what was asked for, and the bound of the pool.
        holders: a line for each that holds arrays: how many, how large, who.
    """

    code = "S351"
    exit_code = 75

    def __init__(self, *, bytes_wanted: int, bytes_max: int, timeout_s: float, holders: tuple[str, ...]) -> None:
        who = "".join(f"\n    {line}" for line in holders) or "\n    nothing, but others were ahead in the line"
        super().__init__(
            f"no room for {bytes_wanted} bytes within {timeout_s:g} s in a pool of bytes_max={bytes_max}; held are{who}",
            fix="release arrays that are done with (`with pool.acquire(...)`), wait longer, or raise bytes_max",
        )
        self.bytes_wanted = bytes_wanted
        self.bytes_max = bytes_max
        self.holders = holders


class SharedMemoryFull(SennitError, MemoryError):
    """The system refuses the memory; said when an array is acquired or opened, and not by a signal at first touch."""

    code = "S352"
    exit_code = 75

    def __init__(self, size_bytes: int, reason: str) -> None:
        super().__init__(
            f"the system does not give {size_bytes} bytes of shared memory: {reason}",
            why="memory, a limit of this process (ulimit) or its file descriptors are used up",
            fix="release arrays, lower bytes_max of the pool below what there is, or raise the limit",
        )
        self.size_bytes = size_bytes


class ArrayReleased(SennitError, RuntimeError):
    """A shared array was used or released after it had been released."""

    code = "S353"


class ArrayGone(PayloadError, LookupError):
    """An array cannot be opened any more: its owner has ended, or has released it. Trying again cannot help."""

    code = "S354"

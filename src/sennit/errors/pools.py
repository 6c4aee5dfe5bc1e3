"""The executors over OS threads: `AdaptiveThreadPoolExecutor` and `WorkStealingExecutor`."""

from __future__ import annotations

from sennit.errors.base import SennitError


class PoolBroken(SennitError, RuntimeError):
    """An initializer of the pool has failed: what was pending gets this error, and so does every later submit.

    What a pool raises is a `concurrent.futures.BrokenExecutor` (and `BrokenThreadPool`), too, so code written for the
    standard pool sees it. It is so only there: importing this package must not load `concurrent.futures`.
    """

    code = "S390"

    def __init__(self) -> None:
        super().__init__(
            "the pool is broken: its initializer has failed in one of its OS threads",
            why="work would run where nothing was prepared; the initializer's own error is in the log",
            fix="mend the initializer and make a new pool",
        )


class PoolQueueFull(SennitError, RuntimeError):
    """A bounded pool has `queue_max` items waiting, and `on_full="raise"`; nothing was submitted.

    Attributes:
        queue_max: the bound.
    """

    code = "S391"
    exit_code = 75

    def __init__(self, queue_max: int) -> None:
        super().__init__(
            f"the pool's queue is full: {queue_max} items wait already",
            why="a queue that grows without bound only hides that work arrives faster than it is done",
            fix='submit later, raise queue_max, or use on_full="block" to wait for room',
        )
        self.queue_max = queue_max

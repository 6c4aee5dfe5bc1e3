"""The fence: a process that cannot renew its lease stops what it runs before others may take it over.

heart ─(no answer, and the lease is nearly over)─► raise_ ─► bodies interrupted, given back when the store answers
      ─(the store answers)────────────────────────► drop  ─► takes tasks again
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from sennit.execute.cluster import CpuPool
from sennit.execute.worker import Worker
from sennit.sync.ack import call_in, in_event_loop

_log = logging.getLogger("sennit")


class Fence:
    """Both methods are called on the heart's OS thread.

    Args:
        on_change: told on the loop whether the fence is up.
        loop_patience_s: how long the loop may take; then the processes are killed without it.

    Attributes:
        raised: how often it was raised.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: Worker,
        processes: CpuPool,
        *,
        worker_id: int,
        on_change: Callable[[bool], None],
        loop_patience_s: float,
    ) -> None:
        self._loop = loop
        self._worker = worker
        self._processes = processes
        self._worker_id = worker_id
        self._on_change = on_change
        self._loop_patience_s = loop_patience_s
        self.raised = 0

    def raise_(self, why: str) -> None:
        """Stop everything that runs here. A body that keeps the loop cannot be stopped; processes can, all the same."""
        _log.error(
            "worker %d cannot renew its lease: %s. What it runs is stopped before others may take it over, "
            "and it takes nothing until the store answers",
            self._worker_id,
            why,
        )
        self.raised += 1
        is_up = threading.Event()
        if in_event_loop():  # of a simulated heart
            self._stop_bodies(is_up)
        elif call_in(self._loop, self._stop_bodies, is_up) and not is_up.wait(self._loop_patience_s):
            self._processes.kill_all()

    def _stop_bodies(self, is_up: threading.Event) -> None:
        self._on_change(True)
        self._worker.stop_all("fenced")
        is_up.set()

    def drop(self) -> None:
        """The store answers again."""
        _log.warning("worker %d: the store answers again, its lease is renewed; it goes on", self._worker_id)
        call_in(self._loop, self._on_change, False)

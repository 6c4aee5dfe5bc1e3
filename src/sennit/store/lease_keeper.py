"""One OS thread with an alarm clock, which no body, no event loop and no pool can hold up: it keeps leases alive.

    at(due, call) ─► a heap ─► sleeps until the first is due ─► call()

It sleeps without a time limit while nothing is set, is made by the first alarm, and ends with `close`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable

from sennit.sync.clock import uptime_us

_log = logging.getLogger("sennit")


class Alarm:
    """One call that is to be made."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Make no call. Harmless when it was made."""
        self._call = None

    def ring(self) -> None:
        """Make the call, unless it was cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Keeper:
    """Makes calls at their time. They must be quick, and are logged when they fail."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alarms: list[tuple[int, int, Alarm]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, due_us: int, call: Callable[[], object]) -> Alarm:
        """Call `call()` when the uptime of this machine is `due_us`. From any OS thread."""
        alarm = Alarm(call)
        with self._changed:
            heapq.heappush(self._alarms, (due_us, next(self._numbers), alarm))
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="sennit-leases", daemon=True)
                self._thread.start()
            if self._alarms[0][2] is alarm:
                self._changed.notify()
        return alarm

    def close(self) -> None:
        """Make no more calls; end the OS thread."""
        with self._changed:
            self._closed = True
            self._alarms.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed:
                    rest_us = self._alarms[0][0] - uptime_us() if self._alarms else None
                    if rest_us is not None and rest_us <= 0:
                        break
                    self._changed.wait(None if rest_us is None else rest_us / 1e6)
                if self._closed:
                    return
                _, _, alarm = heapq.heappop(self._alarms)
            try:
                alarm.ring()
            except Exception:  # noqa: BLE001 - it is logged
                # One lease's bug must not let all the others lapse.
                _log.exception("keeping a lease failed")

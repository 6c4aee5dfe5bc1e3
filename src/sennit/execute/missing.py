"""A task whose handler this process does not know: kept for a while for one that does, as in the middle of a deploy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from sennit.model.task import Claimed, Ending, ErrorInfo, Failed, Slept

__all__ = ["Missing"]

_log = logging.getLogger("sennit")

# It is offered again after this long, to whichever process asks first.
SNOOZE_S: Final = 5.0
TASKS_MAX: Final = 10_000


class Missing:
    """Belongs to the worker's event loop.

    Args:
        missing_s: how long such a task is kept.
    """

    def __init__(self, now_us: Callable[[], int], missing_s: float) -> None:
        self._now_us = now_us
        self._missing_us = int(missing_s * 1_000_000)
        self._missed_us: dict[int, int] = {}  # task → when this process first met it without knowing its handler

    def ending(self, task: Claimed) -> Ending:
        """Return what becomes of the task."""
        now_us = self._now_us()
        if len(self._missed_us) >= TASKS_MAX:
            self._missed_us.clear()  # forgets since when: these are kept longer, never less long
        waited_us = now_us - self._missed_us.setdefault(task.id, now_us)
        what = f"no handler {task.handler!r} in this worker"
        if waited_us < self._missing_us:
            _log.warning("task %d: %s; offered again in %g s", task.id, what, SNOOZE_S)
            return Slept(task.claim, now_us + int(SNOOZE_S * 1_000_000), "handler missing")
        fix = "import the module that defines it in the worker, or register the new function under the old name="
        return Failed(task.claim, ErrorInfo(kind="handler_missing", message=what, fix=fix))

"""Log records made inside a body are kept with its attempt: `sennit tasks logs ID`.

A handler on the root logger, so that the records of any library the body calls come along. They are stored in bursts,
one write per turn of the event loop, and never hold the body up.

A program that has set no logging up sees its warnings on stderr, by `logging.lastResort`, as long as no logger has a
handler. This one must not count: where it is the only one, it passes warnings on there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sennit.model.task import Claim, LogLine
from sennit.store.protocol import Store
from sennit.sync.ack import call_in

TEXT_CHARS_MAX = 8_000


def _is_alone(name: str) -> bool:
    """Return whether nobody but us handles the records of a logger."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if not all(isinstance(handler, LogCapture) for handler in logger.handlers):
            return False
        logger = logger.parent if logger.propagate else None
    return True


class LogCapture(logging.Handler):
    """Stores records of bodies; ignores all others.

    Args:
        whose: the attempt the calling code runs in, or None; also notes a sign of life of it.
    """

    def __init__(self, store: Store, whose: Callable[[], Claim | None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.INFO)
        self._store = store
        self._whose = whose
        self._loop = loop
        self._lines: list[LogLine] = []
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record if a body made it. Called under the handler's own lock."""
        if _is_alone(record.name) and (last := logging.lastResort) is not None and record.levelno >= last.level:
            last.handle(record)
        claim = self._whose()
        if claim is None:
            return
        line = LogLine(
            task_id=claim.task_id,
            attempt=claim.attempt,
            at_us=self._store.now_us(),
            level=record.levelname.lower(),
            text=self.format(record)[:TEXT_CHARS_MAX],
        )
        self._lines.append(line)
        if len(self._lines) == 1:
            call_in(self._loop, self.flush)

    def flush(self) -> None:
        """Hand what was collected to the store."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
        finally:
            self.release()
        if lines:
            self._store.log(lines)

"""stderr: log lines, and below them at most one line that is drawn again and again.

2026-11-21T10:37:20Z WARNING sennit: task 12 …      ← log records scroll
default 3 ready 8 running   1,204 done              ← the live line stays last
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Final

CLEAR = "\r\x1b[K"  # to the first column, erase to the end of the line (ECMA-48 CR and EL)


# HTTP clients that log every request at INFO.
_CHATTY: Final = ("httpx", "httpx2")


class LogLines(logging.Handler):
    """The log on stderr while one command runs.

    Args:
        verbosity: -1 errors only; 1 everything.
        works: task bodies run in this process: their INFO is shown, and kept with the task.
    """

    def __init__(self, *, verbosity: int, works: bool) -> None:
        usual = logging.INFO if works else logging.WARNING
        super().__init__({-1: logging.ERROR, 1: logging.DEBUG}.get(verbosity, usual))
        self._root_level = min(self.level, logging.INFO) if works else self.level
        self._level_before = logging.WARNING
        self._hushed: list[logging.Logger] = []
        self._live = ""
        self._pen = threading.RLock()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def start(self) -> None:
        """Take the records of the whole process."""
        root = logging.getLogger()
        self._level_before = root.level
        root.setLevel(self._root_level)
        root.addHandler(self)
        if self.level > logging.DEBUG:  # a line for each request of each call says nothing that the fleet's own do not
            for logger in map(logging.getLogger, _CHATTY):
                if logger.level == logging.NOTSET:
                    logger.setLevel(logging.WARNING)
                    self._hushed.append(logger)

    def stop(self) -> None:
        """Leave logging as it was found."""
        self.live("")
        root = logging.getLogger()
        root.removeHandler(self)
        root.setLevel(self._level_before)
        for logger in self._hushed:
            logger.setLevel(logging.NOTSET)
        self._hushed.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record above the live line."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            self.say(f"{at} {self.format(record)}")
        except OSError:
            self.handleError(record)

    def say(self, text: str) -> None:
        """Write a line of its own above the live line."""
        with self._pen:
            before = CLEAR if self._live else ""
            sys.stderr.write(f"{before}{text}\n{self._live}")
            sys.stderr.flush()

    def live(self, text: str) -> None:
        """Replace the live line; "" takes it away. The text must fit the terminal's width."""
        with self._pen:
            if text != self._live:
                sys.stderr.write(CLEAR + text)
                sys.stderr.flush()
                self._live = text

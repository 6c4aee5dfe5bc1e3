"""Progress on stderr: a bar with rate and ETA on a terminal, else one line per ten per cent.

▓▓▓▓▓▓▓▓▓▓▓▓░░░░░░░░  61 %  488/800  42.1/s  eta 7.4s  ✕ 4
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Final

from sennit.cli.output import span

_CELLS: Final = 20
_REDRAW_S: Final = 0.1  # at most ten times a second; drawn by arrivals, not by a timer


class Progress:
    """Counts what has ended of `total`.

    Args:
        clock_s: seconds on a monotonic clock.
        live: replaces the last line of a terminal; None when stderr is none.
        say: writes a line of its own.
    """

    def __init__(
        self,
        total: int,
        *,
        clock_s: Callable[[], float],
        live: Callable[[str], None] | None,
        say: Callable[[str], None],
    ) -> None:
        self._total = total
        self._clock_s = clock_s
        self._live = live
        self._say = say
        self._began_s = clock_s()
        self._drawn_s = self._began_s - _REDRAW_S
        self._said_tenths = 0
        self.done = 0
        self.failed = 0

    def advance(self, *, ok: bool) -> None:
        """One more has ended."""
        self.done += 1
        self.failed += not ok
        if self._live is None:
            tenths = 10 * self.done // self._total
            if tenths > self._said_tenths:
                self._said_tenths = tenths
                self._say(self.text())
        elif self._clock_s() - self._drawn_s >= _REDRAW_S or self.done == self._total:
            self._drawn_s = self._clock_s()
            self._live(self.text(bar=True)[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Leave the last state of the bar as a line."""
        if self._live is not None:
            self._live("")
            self._say(self.text(bar=True))

    def text(self, *, bar: bool = False) -> str:
        """Return the state as one line."""
        share = self.done / self._total if self._total else 1.0
        took_s = self._clock_s() - self._began_s
        rate = self.done / took_s if took_s > 0 else 0.0
        full = round(share * _CELLS)
        parts = [f"{'▓' * full}{'░' * (_CELLS - full)}"] if bar else []
        parts += [f"{share:4.0%}".replace("%", " %"), f"{self.done:,}/{self._total:,}", f"{rate:,.1f}/s"]
        if rate and self.done < self._total:
            parts.append(f"eta {span((self._total - self.done) / rate)}")
        else:
            parts.append(f"in {span(took_s)}")
        if self.failed:
            parts.append(f"✕ {self.failed:,}")
        return "  ".join(parts)

"""How long work waits for a core or for memory: told by the kernel when it is too long, so nobody has to ask.

    write "some 1600000 2000000" into the pressure file ─► fd ─► epoll ─► its own fd is readable ─► loop.add_reader

*Pressure* is the share of time in which something that could run had to wait: 0 with as many busy processes as there
are cores, about 0.5 with one more, near 1 with two more (measured on 2 cores: 0.04, 0.53, 0.95). A trigger says when it
was over a bound within 2 s, once per 2 s while it lasts; asyncio cannot wait for POLLPRI, but an epoll fd that does is
itself readable. It is a hint to look and no proof: the kernel counts the first windows of a new trigger wrongly
(measured on 6.18: one at 100 % fired on a quiet machine). The proof is how much the total has grown. Where the kernel has no such files there is only use to go by, and it must be looked at: once a second,
and only while work runs. `source` says which it is.

Sources: kernel documentation, accounting/psi. Unprivileged triggers need windows of whole multiples of 2 s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from sennit.limit.cgroups import Cgroups

_log = logging.getLogger("sennit")

Source = Literal["psi", "psi-cgroup", "psutil", "none"]

WINDOW_US: Final = 2_000_000
# The kernel adds its totals up every 2 s: over one such step a difference is rough, over two it is good, and over much
# more it says little of now.
SPAN_MIN_US: Final = 1_900_000
SPAN_MAX_US: Final = 6_000_000
# Without PSI: so much CPU use is no pressure, all of it is full pressure. An estimate: use cannot say who waits.
USE_WITHOUT_PRESSURE: Final = 0.8

PROC: Final = Path("/proc/pressure")


@dataclass(frozen=True, slots=True)
class Pressures:
    """Shares from 0 to 1 since the last sample; None is unknown."""

    cpu: float | None = None
    memory: float | None = None


class Meter:
    """Turns the total of one pressure file into the share of the last few seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque()

    def share(self, total_us: int, now_us: int) -> float | None:
        """Return the share of the last 2 to 6 s, or since the last sample before; None when there is none 2 s old."""
        samples = self._samples
        samples.append((now_us, total_us))
        while now_us - samples[0][0] > SPAN_MAX_US and now_us - samples[1][0] >= SPAN_MIN_US:
            samples.popleft()
        began_us, began = samples[0]
        if now_us - began_us < SPAN_MIN_US:
            return None
        return min(max((total_us - began) / (now_us - began_us), 0.0), 1.0)


class Pressure:
    """The pressure on this process, live. All methods belong to its event loop.

    Args:
        cpu_max, memory_max: shares over which `start` tells, above 0; 1 is never.
        groups: whose own pressure files are used, where they have some.
        proc: the pressure files of the machine.
        cpu_percent: use of all cores together since the last call, from 0 to 100; for machines without PSI.
    """

    def __init__(
        self,
        *,
        cpu_max: float,
        memory_max: float,
        now_us: Callable[[], int],
        groups: Cgroups | None = None,
        proc: Path = PROC,
        cpu_percent: Callable[[], float] = psutil.cpu_percent,
    ) -> None:
        self._now_us = now_us
        self._cpu_percent = cpu_percent
        self._bounds = {"cpu": cpu_max, "memory": memory_max}
        self._meters = {name: Meter() for name in self._bounds}
        self._triggers: dict[str, tuple[int, select.epoll]] = {}
        self._is_refused = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_pressure: Callable[[], object] = bool
        self.source: Source
        self._files, self.source = _find_files(groups or Cgroups(), proc)
        if not self._files:
            self._files_gone()

    @property
    def is_started(self) -> bool:
        """True between `start` and `stop`."""
        return self._loop is not None

    @property
    def has_triggers(self) -> bool:
        """True when nobody needs to ask: the kernel tells."""
        return bool(self._triggers)

    def start(self, loop: asyncio.AbstractEventLoop, on_pressure: Callable[[], object]) -> None:
        """Have `on_pressure` called on `loop` when a bound may have been exceeded: take samples then. Idempotent.

        The averages begin anew: what was before says nothing of now.
        """
        if self._loop is not None:
            return
        self._loop, self._on_pressure = loop, on_pressure
        self._meters = {name: Meter() for name in self._bounds}
        self.sample()
        if not self._triggers and self._files and not self._is_refused:
            self._open_triggers()
        try:
            for name, (_, epoll) in self._triggers.items():
                epoll.poll(0)  # what was told while nobody listened is old
                loop.add_reader(epoll.fileno(), self._on_readable, name)
        except NotImplementedError as error:  # a loop that watches no descriptors
            self._refuse(error)

    def stop(self) -> None:
        """Listen no more, so that an idle process is not woken. The triggers stay: the kernel takes 10 ms to drop one."""
        if self._loop is not None and not self._loop.is_closed():
            for _, epoll in self._triggers.values():
                self._loop.remove_reader(epoll.fileno())
        self._loop = None

    def close(self) -> None:
        """Stop, and give the descriptors back; `start` opens them again."""
        self.stop()
        self._close_triggers()

    def sample(self) -> Pressures:
        """Return the pressure of the last seconds."""
        if self._files:
            shares = {name: self._share(name, path) for name, path in self._files.items()}
            return Pressures(cpu=shares.get("cpu"), memory=shares.get("memory"))
        return Pressures(cpu=self._use_pressure(), memory=None)

    def _share(self, name: str, path: Path) -> float | None:
        total_us = _some_total_us(path)
        if total_us is None:
            return None
        return self._meters[name].share(total_us, self._now_us())

    def _use_pressure(self) -> float | None:
        if self.source == "none":
            return None
        try:
            use = self._cpu_percent() / 100
        except (OSError, psutil.Error):
            self.source = "none"
            return None
        return min(max((use - USE_WITHOUT_PRESSURE) / (1 - USE_WITHOUT_PRESSURE), 0.0), 1.0)

    # ------------------------------------------------------------ triggers

    def _on_readable(self, name: str) -> None:
        """The kernel tells. It has taken the event for delivered: asking again only shows whether the file is there."""
        if name not in self._triggers:
            return
        if any(events & (select.EPOLLERR | select.EPOLLHUP) for _, events in self._triggers[name][1].poll(0)):
            _log.warning("the pressure files of this process are gone; looking at CPU use instead")
            self._files_gone()  # or it would be readable for ever
        self._on_pressure()

    def _files_gone(self) -> None:
        loop = self._loop
        self.close()
        self._loop = loop
        self._files = {}
        self.source = "psutil"
        self._use_pressure()  # the first call of psutil only begins to measure

    def _open_triggers(self) -> None:
        try:
            for name, path in self._files.items():
                if self._bounds[name] >= 1:
                    continue
                epoll = select.epoll()
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._triggers[name] = fd, epoll
                os.write(fd, f"some {int(self._bounds[name] * WINDOW_US)} {WINDOW_US}\0".encode())
                epoll.register(fd, select.EPOLLPRI)
        except (OSError, AttributeError) as error:  # an old kernel, a read-only /proc, no epoll on this system
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """There are no triggers to be had; the totals can still be read."""
        _log.info("no pressure trigger can be set (%s): looking once a second while work runs", error)
        self._is_refused = True
        self._close_triggers()

    def _close_triggers(self) -> None:
        for fd, epoll in self._triggers.values():
            epoll.close()
            os.close(fd)
        self._triggers = {}


def _find_files(groups: Cgroups, proc: Path) -> tuple[dict[str, Path], Source]:
    """Return the pressure files of our own v2 group, else of the machine, else none."""
    own = groups.own_v2()
    kinds: tuple[tuple[Path | None, str, Source], ...] = ((own, ".pressure", "psi-cgroup"), (proc, "", "psi"))
    for folder, suffix, source in kinds:
        if folder is not None:
            files = {name: folder / f"{name}{suffix}" for name in ("cpu", "memory")}
            readable = {name: path for name, path in files.items() if _some_total_us(path) is not None}
            if "cpu" in readable:
                return readable, source
    return {}, "psutil"


def _some_total_us(path: Path) -> int | None:
    """Read `some avg10=… total=1234`: µs since boot in which something waited."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):  # no PSI in this kernel, or switched off: reading it fails with EOPNOTSUPP
        return None
    for line in text.splitlines():
        kind, *words = line.split()
        total = next((word.removeprefix("total=") for word in words if word.startswith("total=")), "")
        if kind == "some" and total.isdecimal():
            return int(total)
    return None

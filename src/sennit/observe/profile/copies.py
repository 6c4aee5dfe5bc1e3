"""The same large content in memory several times, and what is pickled on its way to other processes.

Memory is looked through when it has grown by a quarter since the last look, and at the end: bytes, text and numpy arrays
from COPY_BYTES_MIN on, compared by a hash of their content. One look takes at most LOOK_S; objects that nothing tracked by the
garbage collector refers to (local variables of running frames only) are not seen.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from time import monotonic
from typing import Any, Final

import psutil

from sennit.observe.profile.facts import COPY_BYTES_MIN, CopyFacts, PickleFacts
from sennit.observe.profile.places import caller

EVERY_S: Final = 0.25
"""How often the size of the process is read. A periodic wake-up: this is a measuring instrument, and it runs while asked."""

LOOK_S: Final = 0.3
GROWTH: Final = 1.25


class CopyWatch:
    """Looks for copies whenever memory has grown, from an OS thread of its own."""

    def __init__(self, *, look_s: float = LOOK_S) -> None:
        """Args: look_s: how long one look may take."""
        self._look_s = look_s
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._os_thread = threading.Thread(target=self._main, name="sennit-profile-memory", daemon=True)
        self._looked_bytes = 0
        self._began_s = monotonic()
        self.memory_bytes_max = 0
        self.looked_at_s: list[float] = []
        self._looks: list[tuple[float, float]] = []
        self._looking_since_s: float | None = None
        self.spent_s = 0.0
        self._best: list[CopyFacts] = []

    def start(self) -> None:
        """From now on."""
        self._looked_bytes = self._process.memory_info().rss
        self._os_thread.start()

    def stop(self) -> list[CopyFacts]:
        """Look once more and return the copies of the moment in which they wasted most."""
        self._stop.set()
        self._os_thread.join()
        self._look()
        return self._best

    def overlap_s(self, began_s: float, ended_s: float) -> float:
        """Return how much of an interval was spent looking: for a part of it no other OS thread could run."""
        looks = list(self._looks)
        if (since_s := self._looking_since_s) is not None:
            looks.append((since_s, ended_s))
        return sum(max(0.0, min(ended_s, end_s) - max(began_s, start_s)) for start_s, end_s in looks)

    def _main(self) -> None:
        while not self._stop.wait(EVERY_S):
            size_bytes = self._process.memory_info().rss
            self.memory_bytes_max = max(self.memory_bytes_max, size_bytes)
            if size_bytes > self._looked_bytes * GROWTH:
                self._look()
                self._looked_bytes = size_bytes

    def _look(self) -> None:
        began_s = monotonic()
        self.memory_bytes_max = max(self.memory_bytes_max, self._process.memory_info().rss)
        self._looking_since_s = began_s
        found = copies(until_s=began_s + self._look_s)
        self._looks.append((began_s, monotonic()))
        self._looking_since_s = None
        self.spent_s += monotonic() - began_s
        self.looked_at_s.append(round(began_s - self._began_s, 3))
        if sum(c.wasted_bytes for c in found) > sum(c.wasted_bytes for c in self._best):
            self._best = found


def copies(*, until_s: float) -> list[CopyFacts]:
    """Return the large contents that are in memory more than once, the most wasteful first."""
    by_size: defaultdict[tuple[str, int], list[Any]] = defaultdict(list)
    for value, size_bytes in _large(until_s):
        by_size[type(value).__name__, size_bytes].append(value)
    found: defaultdict[tuple[str, int, bytes], int] = defaultdict(int)
    for (kind, size_bytes), values in by_size.items():
        if len(values) > 1:
            for value in values:
                if monotonic() > until_s:
                    break
                found[kind, size_bytes, _digest(value)] += 1
    several = [CopyFacts(kind, size_bytes, n) for (kind, size_bytes, _), n in found.items() if n > 1]
    return sorted(several, key=lambda copy: copy.wasted_bytes, reverse=True)


def _large(until_s: float) -> Iterator[tuple[Any, int]]:
    """Yield large flat objects that containers refer to, each once; views of an array count as the array."""
    array = getattr(sys.modules.get("numpy"), "ndarray", None)  # None, too, while it is being imported
    seen: set[int] = set()
    for container in gc.get_objects():
        if monotonic() > until_s:
            return
        for value in gc.get_referents(container):
            if isinstance(value, bytes | bytearray | str):
                size_bytes = len(value)
            elif array is not None and isinstance(value, array):
                if value.dtype.hasobject or value.base is not None:
                    continue
                size_bytes = value.nbytes
            else:
                continue
            if size_bytes >= COPY_BYTES_MIN and id(value) not in seen:
                seen.add(id(value))
                yield value, size_bytes


def _digest(value: Any) -> bytes:
    if isinstance(value, str):
        return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if isinstance(value, bytes | bytearray):
        return hashlib.blake2b(value, digest_size=16).digest()
    return hashlib.blake2b(value.tobytes(), digest_size=16).digest()


class PickleWatch:
    """Counts what `multiprocessing` pickles for other processes, by the place in the program that sends."""

    def __init__(self) -> None:
        self._books: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._original: Any = ForkingPickler.__dict__["dumps"]

    def start(self) -> None:
        """From now on."""
        original, note = ForkingPickler.dumps, self._note

        def dumps(_: type[ForkingPickler], obj: Any, protocol: int | None = None) -> Any:
            began_s = monotonic()
            message = original(obj, protocol)
            note(len(message), monotonic() - began_s)
            return message

        ForkingPickler.dumps = classmethod(dumps)  # type: ignore[assignment, method-assign]

    def stop(self) -> list[PickleFacts]:
        """Take the watch away and return what was sent, the most bytes first."""
        ForkingPickler.dumps = self._original  # type: ignore[method-assign]
        facts = [PickleFacts(where, int(n), int(size), spent) for where, (n, size, spent) in self._books.items()]
        return sorted(facts, key=lambda fact: fact.sent_bytes, reverse=True)

    def _note(self, size_bytes: int, spent_s: float) -> None:
        where = caller()
        with self._lock:
            books = self._books.setdefault(where, [0.0, 0.0, 0.0])
            books[0] += 1
            books[1] += size_bytes
            books[2] += spent_s

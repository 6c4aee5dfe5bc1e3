"""The limits of one process and no store: a semaphore, a pause that a test can set, and the reports that came back."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from sennit.errors import ProviderBusy
from sennit.model.provider import CallReport


class MemoryCall:
    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.reported: CallReport | None = None

    def report(self, report: CallReport, /) -> None:
        self.reported = report


class MemorySlot:
    def __init__(self, slots: MemorySlots, provider: str, tokens: int, *, wait: bool) -> None:
        self._slots = slots
        self._name = provider
        self._wait = wait
        self._call = MemoryCall(slots.stands_in or provider.partition("/")[0])
        slots.asked.append((provider, tokens))

    async def __aenter__(self) -> MemoryCall:
        while not self._slots.take():
            if not self._wait:
                raise ProviderBusy(self._name, reason="pause", retry_after_s=self._slots.retry_after_s)
            await self._slots.wait_for_change()
        return self._call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._slots.give(self._call, error)

    def __enter__(self) -> MemoryCall:
        if not self._slots.take():
            raise ProviderBusy(self._name, reason="limit", retry_after_s=self._slots.retry_after_s)
        return self._call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._slots.give(self._call, error)


class MemorySlots:
    """Attributes: `free` permits; `asked` and `reports` in order; `stands_in`, a fallback that every permit is for."""

    def __init__(self, limit: int = 100) -> None:
        self.free = limit
        self.stands_in = ""
        self.retry_after_s = 7.0
        self.asked: list[tuple[str, int]] = []
        self.reports: list[CallReport] = []
        self.errors: list[BaseException | None] = []
        self._lock = threading.Lock()
        self._changed = asyncio.Event()

    def slot(self, provider: str, *, tokens: int = 0, wait: bool = True) -> MemorySlot:
        return MemorySlot(self, provider, tokens, wait=wait)

    def take(self) -> bool:
        with self._lock:
            if self.free <= 0:
                return False
            self.free -= 1
            return True

    def give(self, call: MemoryCall, error: BaseException | None) -> None:
        with self._lock:
            self.free += 1
            assert call.reported is not None
            self.reports.append(call.reported)
            self.errors.append(error)
        self._changed.set()

    async def wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

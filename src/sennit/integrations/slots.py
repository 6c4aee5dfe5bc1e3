"""What an integration needs of the limits: permits to take, calls to report. `app.limits` is one."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from sennit.model.provider import CallReport


class Call(Protocol):
    """One call that may be made now."""

    @property
    def provider(self) -> str:
        """Whom to call: a fallback when the one asked for is closed."""

    def report(self, report: CallReport, /) -> None:
        """Say how it went; passed on when the slot is left."""


class Slot(Protocol):
    """Waits for a permit on entry, returns it with the report on exit. For one use, sync or async."""

    async def __aenter__(self) -> Call: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __enter__(self) -> Call: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class Slots(Protocol):
    """Where permits come from."""

    def slot(self, provider: str, *, tokens: int = 0, wait: bool = True) -> Slot:
        """Return a slot for one call to `name` or `name/model`.

        Args:
            tokens: an estimate of what it will use.
            wait: False raises ProviderBusy on entry when there is no permit now.
        """

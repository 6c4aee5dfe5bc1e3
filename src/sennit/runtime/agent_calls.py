"""An agent's run as one call of its provider: a permit for as long as it runs, and what it tells of limits and money.

The program makes its model calls itself, so we cannot let each through by itself. What it says of them we pass on: a
refused call slows the fleet at once, a quota pauses it until the reset, tokens and cost are counted when the run ends.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from sennit.model.agent import AgentEvent, AgentUsage, RunEnd
from sennit.model.provider import NANO, USD_MAX, CallReport, PauseKind, Usage
from sennit.store.protocol import Store
from sennit.submit.limits import Call, Limits
from sennit.submit.permits import told
from sennit.sync.clock import monotonic_s, wall_us

__all__ = ["Calls", "RunCall", "is_refusal", "limited_s"]

_log = logging.getLogger("sennit")

# A program that tries again by itself may be refused many times in a row: it is one refusal in so long.
REFUSED_EVERY_S: Final = 1.0
# In the folder of a run: what it has used is counted.
_TOLD: Final = "usage-told"
_OVERLOADED: Final = frozenset({503, 529})


class RunCall:
    """The call that a run is; without a provider it tells nobody."""

    def __init__(self, call: Call | None) -> None:
        self._call = call

    def ended(self, end: RunEnd) -> None:
        """Say how the run went."""
        if self._call is not None:
            self._call.report(report_of(end))

    def cut_off(self, usage: AgentUsage, folder: Path) -> None:
        """Say what was used before it was interrupted: whoever reads the run again is not to count it twice."""
        if self._call is not None and usage != AgentUsage():
            self._call.report(CallReport(usage=_as_usage(usage)))
            try:
                (folder / _TOLD).touch(mode=0o600)
            except OSError as error:
                _log.warning("what a run has used may be counted twice: %s", error)


class Calls:
    """The calls of one attempt.

    Args:
        provider: `name` or `name/model`; "" is none.
    """

    def __init__(self, store: Store, limits: Limits, provider: str, task_id: int) -> None:
        self._store = store
        self._limits = limits
        self._provider = provider
        self._task_id = task_id
        self._told_s = -REFUSED_EVERY_S

    @asynccontextmanager
    async def one(self) -> AsyncIterator[RunCall]:
        """Wait for a permit, and hold it for one run."""
        if not self._provider:
            yield RunCall(None)
            return
        async with self._limits.slot(self._provider) as call:
            yield RunCall(call)

    def told(self, event: AgentEvent) -> None:
        """Pass on what a running program tells of its provider: others need not find it out for themselves.

        A quota that is not used up is no refusal: claude says at each start how it stands.
        """
        if not self._provider or not is_refusal(event):
            return
        now_s = monotonic_s()
        if event.kind == "retry" and now_s - self._told_s < REFUSED_EVERY_S:
            return
        self._told_s = now_s
        self._report(_refusal(event.status, event.retry_after_s, event.resets_at_s, event.text))

    def ended_alone(self, end: RunEnd, folder: Path) -> None:
        """Say how a run went whose supervisor had ended first; it has no call any more."""
        is_told = (folder / _TOLD).exists()
        report = report_of(msgspec.structs.replace(end, usage=AgentUsage()) if is_told else end)
        if self._provider and (end.outcome == "limited" or report.usage != Usage()):
            self._report(report)

    def _report(self, report: CallReport) -> None:
        told(self._store.report_call(self._provider, report, task_id=self._task_id), f"reporting {self._provider}")


def is_refusal(event: AgentEvent) -> bool:
    """Return whether the provider takes no calls, as the program says."""
    return event.kind == "retry" or (event.kind == "limit" and (event.is_error or event.status >= 400))


def report_of(end: RunEnd) -> CallReport:
    """Return what the end of a run says of its provider."""
    usage = _as_usage(end.usage)
    if end.outcome == "limited":
        refusal = _refusal(end.status or 429, end.retry_after_s, end.resets_at_s, end.text)
        return CallReport(
            outcome=refusal.outcome,
            status=refusal.status,
            pause=refusal.pause,
            retry_after_s=refusal.retry_after_s,
            message=refusal.message,
            usage=usage,
            model=end.model,
        )
    failed = end.outcome != "success" and end.status >= 500
    return CallReport(outcome="error" if failed else "ok", status=end.status, usage=usage, model=end.model)


def _as_usage(usage: AgentUsage) -> Usage:
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_nano=round(min(max(usage.cost_usd or 0.0, 0.0), USD_MAX) * NANO),
    )


def limited_s(end: RunEnd) -> float | None:
    """Return in how many seconds a limit ends, None where nothing tells."""
    return _after_s(end.retry_after_s, end.resets_at_s)


def _refusal(status: int, retry_after_s: float | None, resets_at_s: float | None, text: str) -> CallReport:
    after_s = _after_s(retry_after_s, resets_at_s)
    pause: PauseKind = "window" if resets_at_s is not None else "burst" if after_s is None else "minute"
    return CallReport(
        outcome="overloaded" if status in _OVERLOADED else "throttled",
        status=status or 429,
        pause=pause,
        retry_after_s=after_s,
        message=text[:200],
    )


def _after_s(retry_after_s: float | None, resets_at_s: float | None) -> float | None:
    if retry_after_s is not None:
        return max(0.0, retry_after_s)
    if resets_at_s is not None:
        return max(0.0, resets_at_s - wall_us() / 1e6)
    return None

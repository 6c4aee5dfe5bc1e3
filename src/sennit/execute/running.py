"""One attempt that runs here, as the worker knows it."""

from __future__ import annotations

import asyncio
from typing import Any

from sennit.execute.body import Body, Scope
from sennit.execute.lane import Lane
from sennit.execute.latency import Watch
from sennit.execute.placement import Place
from sennit.execute.pool import PoolTicket
from sennit.execute.processes import Job
from sennit.execute.workload import Sample
from sennit.model.task import Claimed

__all__ = ["Running"]


class Running:
    """One attempt that runs here. Its attributes are the worker's."""

    __slots__ = (
        "body", "future", "is_pressed", "job", "lane", "measured", "reason", "sample", "scope", "task", "ticket", "timers",
        "watch",
    )  # fmt: skip

    def __init__(self, task: Claimed, body: Body) -> None:
        self.task = task
        self.body = body
        self.reason: str | None = None  # why it was interrupted; the first stands
        self.scope: Scope | None = None
        self.future: asyncio.Task[None] | None = None
        self.ticket: PoolTicket[Any] | None = None
        self.job: Job | None = None
        self.lane: Lane | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.watch: Watch | None = None  # with an adaptive time-out
        self.is_pressed = False
        self.measured: Place | None = None  # where it began, if it is measured
        self.sample: Sample | None = None

    def press(self, is_pressed: bool) -> None:  # noqa: FBT001 - one switch, two positions
        """Ask it to make room at its next step, or not any more."""
        self.is_pressed = is_pressed
        if self.scope is not None:
            self.scope.is_pressed = is_pressed

    def entered(self, scope: Scope) -> None:
        """The body begins; in the OS thread that runs it."""
        self.scope = scope
        scope.is_pressed = self.is_pressed  # after `scope`: a press in between sets it there itself

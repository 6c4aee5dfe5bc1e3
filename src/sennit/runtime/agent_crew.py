"""The agents of one process: how many may run, which do, and the supervisor that all of them share.

body ─► place (agents_max of this process) ─► run ─► gone          the queue's slots bound them, too
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from sennit.execute.adapters.base import Adapter
from sennit.execute.agent_folders import ended_folders, remove_folder
from sennit.execute.supervisor import Supervisor, SupervisorStatistics
from sennit.model.agent import AgentView
from sennit.model.settings import Settings
from sennit.store.protocol import Store
from sennit.sync.clock import monotonic_s, uptime_us

__all__ = ["AGENTS_QUEUE", "AgentStatistics", "Crew"]

_log = logging.getLogger("sennit")

AGENTS_QUEUE: Final = "agents"
# The part of a lease before its end in which no agent runs: killing a tree takes a while.
_LEASE_MARGIN: Final = 0.1
# Driven by ends of tasks, so that an idle process never wakes for it.
TIDY_EVERY_S: Final = 3600.0
_SETTLED_S: Final = 60.0  # the first time: not while a process has just begun


class AgentStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The agents of this process.

    Attributes:
        running: by the agent's name.  waiting: for a place.
        by_status: of those that run.
        started, done, failed: runs since the process began.
        supervisor: None before the first run.
    """

    agents_max: int
    running: dict[str, int]
    waiting: int
    by_status: dict[str, int]
    started: int
    done: int
    failed: int
    supervisor: SupervisorStatistics | None


class Crew:
    """Belongs to one app; its loop is that of the bodies.

    Args:
        settings: as they are now; folder: where runs keep what they write; store: if it is open.
    """

    def __init__(
        self, settings: Callable[[], Settings], folder: Callable[[], Path], store: Callable[[], Store | None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._folder = folder
        self.adapters: dict[str, Adapter] = {}
        self._supervisor: Supervisor | None = None
        self._places: asyncio.Semaphore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guard = threading.Lock()
        self._live: dict[int, AgentView] = {}
        self._waiting = 0
        self._tidied_s = monotonic_s() - TIDY_EVERY_S + _SETTLED_S
        self._tidying: asyncio.Future[None] | None = None
        self._counts: Counter[str] = Counter()

    @property
    def folder(self) -> Path:
        """Where the runs of this app's agents keep what they write."""
        return self._folder()

    def run_folder(self, task_id: int, run: int) -> Path:
        """Make the folder of one run, for nobody else's eyes; return it."""
        folder = self.folder / str(task_id) / str(run)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def supervisor(self) -> Supervisor:
        """Return the one that all agents of this process share; it starts nothing before the first."""
        self._here()
        with self._guard:
            if self._supervisor is None:
                self._supervisor = Supervisor()
            supervisor = self._supervisor
        self.renewed()
        return supervisor

    def renewed(self) -> None:
        """Agents may go on for as long as this process holds its tasks; called after each beat, from any OS thread.

        A process that is frozen cannot end them when others take over: then the warden does, a little before that.
        """
        supervisor, store = self._supervisor, self._store()
        if supervisor is None or store is None:
            return
        left_us = store.lease_until_us - store.now_us()
        margin_us = self._settings().lease_s * _LEASE_MARGIN * 1e6
        supervisor.hold_until((uptime_us() + left_us - margin_us) / 1e6 if left_us > margin_us else None)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for one of the `agents_max` places of this process."""
        places = self._here()
        self._waiting += 1
        try:
            await places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            places.release()

    def note(self, view: AgentView) -> None:
        """Keep how an agent of this process is now."""
        if view.is_live:
            if view.task_id not in self._live:
                self._counts["started"] += 1
            self._live[view.task_id] = view
        elif self._live.pop(view.task_id, None) is not None:
            self._counts[view.status] += 1

    def gone(self, task_id: int) -> None:
        """Its body has ended: it has failed, or waits for a person or its provider without a process."""
        view = self._live.pop(task_id, None)
        if view is not None and (view.error or view.status != "waiting"):
            self._counts["failed"] += 1

    def tidy(self, store: Store) -> None:
        """Remove what runs of tasks wrote that ended `agent_keep_s` ago; an hour after the last time at the earliest."""
        now_s = monotonic_s()
        if now_s - self._tidied_s < TIDY_EVERY_S or self._tidying is not None:
            return
        self._tidied_s = now_s
        self._tidying = asyncio.get_running_loop().run_in_executor(None, self._tidy, store)
        self._tidying.add_done_callback(self._tidied)

    def _tidy(self, store: Store) -> None:
        for folder in ended_folders(store, self.folder, keep_s=self._settings().agent_keep_s):
            try:
                remove_folder(folder)
            except OSError as error:
                _log.warning("what an agent wrote could not be removed: %s", error)

    def _tidied(self, done: asyncio.Future[None]) -> None:
        self._tidying = None
        error = None if done.cancelled() else done.exception()
        if error is not None:
            _log.warning("removing what agents wrote has failed, next try in an hour: %s", error)

    def statistics(self) -> AgentStatistics:
        """Return the counts of this moment."""
        live = list(self._live.values())
        return AgentStatistics(
            agents_max=self._settings().agents_max,
            running=dict(Counter(view.agent for view in live)),
            waiting=self._waiting,
            by_status=dict(Counter(view.status for view in live)),
            started=self._counts["started"],
            done=self._counts["done"],
            failed=self._counts["failed"],
            supervisor=None if self._supervisor is None else self._supervisor.statistics(),
        )

    async def close(self) -> None:
        """End what still runs; the next body starts anew."""
        if self._tidying is not None:
            await asyncio.wait([self._tidying])
        with self._guard:
            supervisor, self._supervisor = self._supervisor, None
            self._places = self._loop = None
        if supervisor is not None:
            await supervisor.close()

    def _here(self) -> asyncio.Semaphore:
        """Return the places, made anew on another loop than before (an app may be entered again)."""
        loop = asyncio.get_running_loop()
        with self._guard:
            if self._loop is not loop or self._places is None:
                self._loop, self._supervisor = loop, None
                self._places = asyncio.Semaphore(self._settings().agents_max)
            return self._places

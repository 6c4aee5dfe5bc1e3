"""What others see of an agent while it runs: its status and what it does, noted in the store.

A change of status is noted at once. What it does and what it has used is noted a second after it was told, all of that
second at once: an agent that talks fast costs one small write a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sennit.errors import StoreError
from sennit.execute.supervisor import AgentProcess
from sennit.model.agent import ENDED, AgentEvent, AgentStatus, AgentView
from sennit.model.task import Claim
from sennit.runtime.agent_calls import is_refusal
from sennit.store.protocol import Store
from sennit.sync.ack import Ack

__all__ = ["Board", "one_line"]

_log = logging.getLogger("sennit")

NOTE_S: Final = 1.0
IDLE_AFTER_S: Final = 60.0
LINE_CHARS_MAX: Final = 200

# What a tool's input says best, in the words of the tools that coding agents have.
_TELLING: Final = ("command", "file_path", "path", "pattern", "query", "url", "description", "prompt")


class Board:
    """One run. All methods belong to its event loop.

    Args:
        on_change: called with each new status.
    """

    def __init__(
        self, store: Store, claim: Claim, view: AgentView, *, on_change: Callable[[AgentView], None] = lambda _: None
    ) -> None:
        self._store = store
        self._claim = claim
        self.view = view
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._event_s = self._loop.time()
        self._noting: asyncio.TimerHandle | None = None
        self._idling: asyncio.TimerHandle | None = None
        self._is_closed = False

    def started(self, process: AgentProcess) -> None:
        """There is a process now."""
        self._change(pid=process.pid, started_ticks=process.started_ticks, boot_id=process.boot_id)
        self._note()
        self._idling = self._loop.call_later(IDLE_AFTER_S, self._look)

    def event(self, event: AgentEvent) -> None:
        """It has told something."""
        self._event_s = self._loop.time()
        self._change(event_us=self._store.now_us())
        if event.session_id:
            self._change(session_id=event.session_id)
        if event.model:
            self._change(model=event.model)
        if event.usage is not None:
            self._change(usage=event.usage)
        match event.kind:
            case "tool_begin":
                self._change(doing=one_line(event.tool, event.input))
            case "tool_end":
                self._change(tools=self.view.tools + 1)
            case "text" | "error" if event.text.strip():
                self._change(doing=shortened(event.text))
        self.status("waiting" if event.kind == "ask" or is_refusal(event) else "working")
        if self._idling is None and not self._is_closed:
            self._idling = self._loop.call_later(IDLE_AFTER_S, self._look)
        if self._noting is None:
            self._noting = self._loop.call_later(NOTE_S, self._note)

    def status(self, status: AgentStatus, **facts: Any) -> None:
        """Change the status, and note it at once if it is another one."""
        is_new = status != self.view.status
        self._change(status=status, **facts)
        if is_new or facts:
            if is_new:
                self._change(since_us=self._store.now_us())
                self._on_change(self.view)
            self._note()

    def close(self) -> None:
        """Nothing more is noted by itself."""
        self._is_closed = True
        for timer in (self._noting, self._idling):
            if timer is not None:
                timer.cancel()

    async def last(self, status: AgentStatus, **facts: Any) -> None:
        """Note how it is at the end, and wait until that is stored."""
        self._change(status=status, since_us=self._store.now_us(), **facts)
        self._on_change(self.view)
        self.close()
        await self._store.note_agent(self._claim, self.view)

    def _look(self) -> None:
        left_s = self._event_s + IDLE_AFTER_S - self._loop.time()
        if left_s > 0:
            self._idling = self._loop.call_later(left_s, self._look)
            return
        self._idling = None  # until it says something
        if self.view.status == "working":
            self.status("idle")

    def _change(self, **facts: Any) -> None:
        self.view = msgspec.structs.replace(self.view, **facts)

    def _note(self) -> None:
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None
        if not self._is_closed and self.view.status not in ENDED:
            self._store.note_agent(self._claim, self.view).add_done_callback(_noted)


def _noted(ack: Ack[bool]) -> None:
    try:
        ack.wait()  # False: the attempt is over, and the body is told by others
    except StoreError as error:
        _log.warning("what an agent does could not be noted: %s", error)


def one_line(tool: str, given: Any) -> str:
    """Return a tool use in one line: its name and what its input says best."""
    what = given
    if isinstance(given, dict):
        what = next((given[name] for name in _TELLING if isinstance(given.get(name), str)), "")
    return shortened(f"{tool} {what}" if isinstance(what, str) else tool)


def shortened(text: str) -> str:
    """Return the first line of a text that says something, not too long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= LINE_CHARS_MAX else line[: LINE_CHARS_MAX - 1] + "…"

"""One task of the memory store: a row that is in one place by construction, because it has one `state`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from sennit.model.agent import AgentView
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.task import AttemptView, Claim, ErrorInfo, LogLine, TaskSpec

Due = Literal["timer", "deadline", "queue_timeout"]


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One task and all that belongs to it.

    Attributes:
        parents: as the spec lists them, so that results keep their places; the same task may be there twice.
        unlimited: revived; the deadline and the queue time-out counted from submit and mean nothing any more.
        need: what it waits for: parents that are still open, and its turn or, when it is `gated`, room.
        gated: it would be ready and waits only for room among the threads.
        is_ahead: it is held by a process that has no slot for it yet, and has not begun.
        ready_us, parked_us: since when it is ready, or suspended.  begun_us: when it was started first.
        waits: µs by reason, of waits that are over.  early_us: how much of that was before its first start.
    """

    id: int
    spec: TaskSpec
    parents: tuple[int, ...] = ()
    key: str | None
    created_us: int
    unlimited: bool = False
    state: State = State.WAITING
    need: int = 0
    gated: bool = False
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    order_us: int = 0
    due_us: int | None = None
    ready_us: int = 0
    started_us: int | None = None
    worker_id: int | None = None
    is_ahead: bool = False
    done_us: int | None = None
    reason: str = ""
    result: bytes | None = None
    error: ErrorInfo | None = None
    parked_us: int = 0
    begun_us: int | None = None
    early_us: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    steps: dict[str, bytes] = field(default_factory=dict)
    attempts: list[AttemptView] = field(default_factory=list)
    logs: list[LogLine] = field(default_factory=list)
    agent: AgentView | None = None

    @property
    def claim(self) -> Claim:
        """The claim token of the last attempt."""
        return Claim(self.id, self.attempt)

    @property
    def is_alone(self) -> bool:
        """True for one that waits and is past its parents: as with one that is ready, their fate is nothing to it."""
        return self.gated or self.unlimited

    @property
    def is_urgent(self) -> bool:
        """True for the priority that others make room for."""
        return self.spec.priority == Priority.URGENT

    @property
    def deadline_us(self) -> int | None:
        """When the task as a whole fails, or None."""
        if self.unlimited or not self.spec.deadline_us:
            return None
        return self.created_us + self.spec.deadline_us

    @property
    def queue_timeout_us(self) -> int | None:
        """When the task fails unless it has begun once, or None."""
        if self.unlimited or self.begun_us is not None or not self.spec.queue_timeout_us:
            return None
        return self.created_us + self.spec.queue_timeout_us

    def note_wait(self, reason: str, us: int) -> None:
        """Add a wait that is over."""
        self.waits[reason] += us
        if self.begun_us is None:
            self.early_us += us

    def note_resumed(self, *, now_us: int) -> None:
        """It is not suspended any more: it has waited for a person, unless it says otherwise."""
        self.note_wait(self.reason if self.reason in {"event", "budget"} else "human", now_us - self.parked_us)

    def due_of(self, kind: Due) -> int | None:
        """When this is due for the row as it is now; None when it does not apply any more."""
        if not self.state.live:
            return None
        match kind:
            case "timer":
                return self.due_us
            case "deadline":
                return self.deadline_us
            case "queue_timeout":
                return self.queue_timeout_us

"""Permits of the memory store: which are out, and which calls wait for one. Tables only; `memory_providers` decides.

take ─► Waiting, in line by (priority, who came first) ─► Held ─► returned, or its holder has died
claim ─────────────────────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sennit.limit.governor import Mark
from sennit.model.provider import Permit, PermitRequest, WaitReason, split_name
from sennit.sync.ack import Ack

Place = tuple[str, str]  # provider, model


@dataclass(slots=True, frozen=True)
class Held:
    """A permit that is out.

    Attributes:
        holder: the process, as `Seat.holder` names it.
        task_id: on whose behalf; the id of the permit itself when it came with the claim.
    """

    permit: Permit
    mark: Mark
    holder: int
    task_id: int | None

    @property
    def is_of_claim(self) -> bool:
        """True for one that came with the claim of its task, and goes with the attempt."""
        return self.permit.id == self.task_id


@dataclass(slots=True, eq=False)
class Waiting:
    """A call that waits for a permit, and what for at last."""

    request: PermitRequest
    holder: int
    since_us: int
    reason: WaitReason = ""
    ack: Ack[Permit] = field(default_factory=Ack)

    @property
    def task_id(self) -> int | None:
        """On whose behalf."""
        return self.request.task_id

    @property
    def line(self) -> Place:
        """The line it stands in; nobody overtakes there."""
        return split_name(self.request.provider)

    @property
    def order(self) -> tuple[int, int, int]:
        """Its place among all that wait."""
        return self.request.priority, self.since_us, self.request.id


class Permits:
    """All that are out, and all that wait, by id."""

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}
        self.waiting: dict[int, Waiting] = {}

    def in_use(self, provider: str, model: str | None = None) -> int:
        """Return how many are out of a provider, or of one of its models."""
        permits = (held.permit for held in self.held.values())
        return sum(p.provider == provider and model in (None, p.model) for p in permits)

    def in_line(self) -> list[Waiting]:
        """Return the calls that wait, in order."""
        return sorted(self.waiting.values(), key=lambda waiting: waiting.order)

    def stood_in(self, provider: str) -> bool:
        """Return whether somebody who has asked for a provider has the permit of a fallback."""
        return any(split_name(held.permit.fallback_for)[0] == provider for held in self.held.values())

    def waiting_for(self, provider: str) -> int:
        """Return how many calls have asked for a provider and wait."""
        return sum(waiting.line[0] == provider for waiting in self.waiting.values())

    def is_known(self, holder: int) -> bool:
        """Return whether a process holds a permit or waits for one."""
        return any(owned.holder == holder for table in (self.held, self.waiting) for owned in table.values())

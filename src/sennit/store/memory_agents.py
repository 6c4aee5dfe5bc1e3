"""The agents' part of the memory store, as `store.protocol_agents` promises them. A view is part of its task's row."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sennit.model.agent import AgentStatus, AgentView
from sennit.model.lifecycle import State
from sennit.model.task import Claim
from sennit.store.agent_views import noted, seen, viewed
from sennit.store.memory_lock_face import LockFace
from sennit.store.memory_rows import Row
from sennit.sync.ack import Ack


class AgentFace(LockFace):
    """What the store promises about agents."""

    def note_agent(self, claim: Claim, view: AgentView) -> Ack[bool]:
        """Keep the view of this task's agent, if the attempt is still held."""
        kept = viewed(noted(claim, view).info)  # as it would come back from a database

        def operation(_: int) -> bool:
            row = self._rows.holder(claim)
            if row is None:
                self._rows.tally["refused"] += 1
                return False
            row.agent = kept
            return True

        return self._do(operation)

    def agents(
        self,
        *,
        live: bool | None = None,
        task_ids: Sequence[int] = (),
        before_id: int | None = None,
        limit: int = 100,
    ) -> Ack[list[AgentView]]:
        """Return the agents that match, of the newest task first."""

        def operation(_: int) -> list[AgentView]:
            found: list[AgentView] = []
            wanted = set(task_ids) & self._rows.tasks.keys() if task_ids else self._rows.tasks
            for task_id in sorted(wanted, reverse=True):
                if len(found) >= limit:
                    break
                view = _seen(self._rows.tasks[task_id])
                if view is None or live not in (None, view.is_live):
                    continue
                if before_id is None or task_id < before_id:
                    found.append(view)
            return found

        return self._do(operation)

    def agent_counts(self) -> Ack[dict[str, dict[AgentStatus, int]]]:
        """Return handler → status → number of all agents that are kept."""

        def operation(_: int) -> dict[str, dict[AgentStatus, int]]:
            counted: dict[str, dict[AgentStatus, int]] = {}
            for row in self._rows.tasks.values():
                view = _seen(row)
                if view is not None:
                    of_handler = counted.setdefault(row.spec.handler, {})
                    of_handler[view.status] = of_handler.get(view.status, 0) + 1
            return counted

        return self._do(operation)

    def release_agent(self, task_id: int) -> Ack[AgentView | None]:
        """Forget the worktree of an agent."""

        def operation(_: int) -> AgentView | None:
            row = self._rows.tasks.get(task_id)
            if row is None or row.agent is None:
                return None
            row.agent = msgspec.structs.replace(row.agent, worktree="")
            return _seen(row)

        return self._do(operation)


def _seen(row: Row) -> AgentView | None:
    """Return the view of a task's agent, with the status that holds now."""
    if row.agent is None:
        return None
    runs = row.state is State.RUNNING and not row.is_ahead
    return seen(
        row.agent,
        ended=None if row.state.live else row.state,
        done_us=row.done_us,
        later=row.attempt - row.agent.attempt if runs else None,
    )

"""The part of a store with rows for agents: `store.protocol_agents.AgentStore`; its promises are the docstrings there."""

# ruff: noqa: D102 - the promises stand in store/protocol_agents.py, once

from __future__ import annotations

from collections.abc import Sequence

from sennit.model.agent import AgentStatus, AgentView
from sennit.model.task import Claim
from sennit.store.desk import Desk
from sennit.store.effects import Effects
from sennit.store.moves import agent
from sennit.store.operations import NoteAgent
from sennit.store.reader import Reader
from sennit.store.writer import Writer
from sennit.sync.ack import Ack


class RowAgents:
    """Agents in a table."""

    _writer: Writer[Effects]
    _reader: Reader
    _desk: Desk

    def note_agent(self, claim: Claim, view: AgentView) -> Ack[bool]:
        return self._writer.put(NoteAgent(self._desk, claim, view))

    def agents(
        self,
        *,
        live: bool | None = None,
        task_ids: Sequence[int] = (),
        before_id: int | None = None,
        limit: int = 100,
    ) -> Ack[list[AgentView]]:
        return self._reader.put(
            lambda c: agent.agents(c, live=live, task_ids=task_ids, before_id=before_id, limit=limit)
        )

    def agent_counts(self) -> Ack[dict[str, dict[AgentStatus, int]]]:
        return self._reader.put(agent.counts)

    def release_agent(self, task_id: int) -> Ack[AgentView | None]:
        return self._writer.put(lambda c, _: agent.release(c, task_id))

"""What a store promises about coding agents. Each sentence of a docstring has a test in `sennit.testing.contract`.

The fifth part of `store.protocol.Store`, which inherits this. A store keeps one view per task: what the running attempt has
said last of its agent. What the attempt cannot say any more, because it has ended, the task does:

    the running attempt has said it            as it was said
    a later attempt runs, and has said nothing `starting`
    the task is open, and no attempt runs      `waiting`
    the task has ended                         `done` when it succeeded, else `failed`; since the task's end

`done` and `failed` are last words: they stand, whatever becomes of the task, until a later attempt says something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sennit.model.agent import AgentStatus, AgentView
from sennit.model.task import Claim
from sennit.sync.ack import Ack


class AgentStore(Protocol):
    """Agents as people see them. Methods may be called from any OS thread and never block it."""

    def note_agent(self, claim: Claim, view: AgentView) -> Ack[bool]:
        """Keep the view of this task's agent, if the attempt is still held; it replaces the earlier one as a whole.

        False, and nothing is stored, when it is not; the ledger counts that as refused.
        It is kept under the task and the attempt of the claim, whatever the view says of these.
        Text that is not Unicode (a path may be anything) comes back with backslashes.
        """

    def agents(
        self,
        *,
        live: bool | None = None,
        task_ids: Sequence[int] = (),
        before_id: int | None = None,
        limit: int = 100,
    ) -> Ack[list[AgentView]]:
        """Return the agents that match, of the newest task first, with the status that holds now (see above).

        Args:
            live: only those that have not ended, or only those that have.
            task_ids: only those of these tasks; one that has no agent is left out.
            before_id: only those of older tasks than this one: the next page.
        """

    def agent_counts(self) -> Ack[dict[str, dict[AgentStatus, int]]]:
        """Return handler → status → number of all agents that are kept; statuses as `agents` says them."""

    def release_agent(self, task_id: int) -> Ack[AgentView | None]:
        """Forget the worktree of an agent, which is gone now; return its view from then on, or None when there is none.

        Whoever calls it need not hold the task, which may have ended.
        A task whose agent has a worktree is not pruned, so that what lies on a disk can be found; with the task the view goes.
        """

"""What a simulated fleet says of its agents: only the attempt that holds a task is heard, and the last of it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from sennit.model.agent import AgentStatus, AgentView
from sennit.model.lifecycle import State
from sennit.model.task import Claim, TaskView
from sennit.store.protocol import Store

__all__ = ["AgentBook"]

_AT_THE_END: dict[State, AgentStatus] = {State.SUCCEEDED: "done", State.FAILED: "failed", State.CANCELLED: "failed"}


class AgentBook:
    """The notes that were accepted, in the order in which they were."""

    def __init__(self, truth: Store, object_: Callable[[str], object], seen: Counter[str]) -> None:
        self._truth = truth
        self._object = object_
        self._seen = seen
        self._last: dict[int, tuple[int, str]] = {}

    def noted(self, claim: Claim, view: AgentView, *, held: bool, accepted: bool) -> None:
        """Check that a view was accepted if, and only if, its attempt is held."""
        if held != accepted:
            what, is_held = "accepted" if accepted else "refused", "held" if held else "not held any more"
            self._object(f"{view} was {what}, and the attempt is {is_held}")
        if accepted:
            self._last[claim.task_id] = claim.attempt, view.doing
        self._seen["agent heard" if accepted else "agent not heard"] += 1

    def faults(self, views: Iterable[TaskView]) -> Iterator[str]:
        """Check what is kept, when every task has ended."""
        states = {view.id: view.state for view in views}
        kept = {view.task_id: view for view in self._truth.agents(limit=10**6).wait()}
        if odd := kept.keys() ^ self._last.keys():
            yield f"of tasks {sorted(odd)} an agent is kept and none was heard, or the other way round"
        for task_id, view in kept.items():
            if (view.attempt, view.doing) != self._last.get(task_id):
                yield f"of the agent of task {task_id} {view} is kept, and the last that was heard is {self._last.get(task_id)}"
            if view.status != _AT_THE_END.get(states[task_id]):
                yield f"task {task_id} is {states[task_id]} and its agent is {view.status}"

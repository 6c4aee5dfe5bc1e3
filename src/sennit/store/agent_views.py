"""What a store keeps of an agent, and what it shows: pure functions that all stores share.

    view ─noted─► a row, JSON in it ─viewed, seen─► view, with the status that holds now

The row says what the attempt said last. What has become of the attempt since, the tables of tasks say (`seen`).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from sennit.model.agent import ENDED, AgentStatus, AgentView
from sennit.model.lifecycle import State
from sennit.model.task import Claim

_DECODER = msgspec.json.Decoder(AgentView)


class Noted(NamedTuple):
    """A view as a row, in the order of the columns of `sennit_agent`."""

    task_id: int
    attempt: int
    status: AgentStatus
    is_kept: int
    info: bytes


def noted(claim: Claim, view: AgentView) -> Noted:
    """Return what is kept of a view that this attempt gives."""
    view = msgspec.structs.replace(view, task_id=claim.task_id, attempt=claim.attempt)
    try:
        info = msgspec.json.encode(view)
    except UnicodeEncodeError:
        texts = {name: value for name in view.__struct_fields__ if isinstance(value := getattr(view, name), str)}
        view = msgspec.structs.replace(view, **{name: _readable(text) for name, text in texts.items()})
        info = msgspec.json.encode(view)
    return Noted(claim.task_id, claim.attempt, view.status, 1 if view.worktree else 0, info)


def _readable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which stand for bytes of a path that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def viewed(info: bytes) -> AgentView:
    """Return the view that was kept."""
    return _DECODER.decode(info)


def status_of(said: AgentStatus, *, ended: State | None, later: int | None) -> AgentStatus:
    """Return the status of an agent as it is now.

    Args:
        said: what its attempt said last.
        ended: how its task has ended, None while it is open.
        later: by how many attempts the one that runs is later than the one that said it; None when none runs.
    """
    if said in ENDED:
        return said
    if ended is not None:
        return "done" if ended is State.SUCCEEDED else "failed"
    if later is None:
        return "waiting"
    return "starting" if later else said


def seen(view: AgentView, *, ended: State | None, done_us: int | None, later: int | None) -> AgentView:
    """Return a view with the status that holds now. One that follows from the end of the task is of then."""
    status = status_of(view.status, ended=ended, later=later)
    if status == view.status:
        return view
    since_us = view.since_us if done_us is None else done_us
    return msgspec.structs.replace(view, status=status, since_us=since_us)

"""What an agent is told: the prompt, what other tasks found, and where it stands when it goes on after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sennit.model.agent import AgentResult, RunEnd, ToolUse
from sennit.runtime.agent_board import one_line
from sennit.sync.plain import to_plain

__all__ = ["Prompt", "go_on", "question", "whole"]

_ANEW: Final = (
    "An earlier attempt at this task was lost together with its conversation. Its changes may still be there: look at the "
    "state of the working folder first, keep what is good, and finish the task.\n\n"
)


# Tool uses that an agent may have forgotten: as many as one turn may hold.
_LAST: Final = 5


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a `prompt=` function may return in place of a text.

    Attributes:
        context: shown below the text: results of other tasks.
        cwd: the folder to work in.
        resume: the session to go on with: a session id, or the result of another agent's task.
    """

    text: str
    context: Any = None
    cwd: str | None = None
    resume: AgentResult | str | None = None


def whole(text: str, context: Any = None, *, is_anew: bool = False) -> str:
    """Return the prompt of a new session."""
    parts = [_ANEW + text if is_anew else text]
    given = context if isinstance(context, (list, tuple)) else () if context is None else (context,)
    parts += [f"--- {_title(item, n)} ---\n{_words(item)}" for n, item in enumerate(given, 1)]
    return "\n\n".join(parts)


def go_on(end: RunEnd, answered: Sequence[ToolUse], unknown: Sequence[ToolUse], *, task: str = "") -> str:
    """Return what an agent is told that goes on with its session; `task` is said once more, in case it never got there.

    Its own memory of the session may lag behind what it did: claude 2.1 lost the answers of its last tools to a kill -9.
    """
    match end.outcome:
        case "cut_off":
            why = "You were interrupted: the process that supervised you has ended."
        case "limited":
            why = "You were interrupted: the model's provider took no calls for a while."
        case _:
            why = f"Your last run ended early: {end.text or end.outcome}"
    parts = [f"{why} Go on with the task from where you were; do not start over."]
    if answered:
        parts.append("Your last tool uses, which did take place; do not repeat them:\n" + _listed(answered[-_LAST:]))
    if unknown:
        parts.append(
            "These tool uses were begun, and nobody knows whether they took effect. Find out before you repeat any:\n"
            + _listed(unknown)
        )
    if task:
        parts.append("This is the task, in case it did not reach you:\n\n" + task)
    return "\n\n".join(parts)


def question(agent: str, tool: str, given: Any) -> str:
    """Return what a person is asked when an agent wants to use a tool that needs leave."""
    return f"{agent} wants to use {one_line(tool, given)}"


def _listed(uses: Sequence[ToolUse]) -> str:
    return "\n".join(f"- {one_line(use.tool, use.input)}" for use in uses)


def _title(item: Any, n: int) -> str:
    name = item.get("agent") if isinstance(item, dict) else getattr(item, "agent", "")
    return f"{n}: {name}" if name else f"{n}"


def _words(item: Any) -> str:
    """Return a result as text: what an agent said, a text as it is, anything else as JSON."""
    if isinstance(item, str):
        return item
    text = item.get("text") if isinstance(item, dict) else getattr(item, "text", None)
    if isinstance(text, str):
        return text
    return msgspec.json.format(msgspec.json.encode(item, enc_hook=to_plain), indent=1).decode()

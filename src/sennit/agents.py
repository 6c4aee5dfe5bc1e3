"""Coding agents, for programs that use them: `from sennit.agents import Claude, Command, effect`.

`app.agent(name, adapter)` makes a handler of one; see docs/howto/run-coding-agents.md. Everything here lives elsewhere.
"""

from __future__ import annotations

from sennit.errors import (
    AgentError,
    AgentFailed,
    AgentLimited,
    AgentMissing,
    AgentUnsupported,
    OutcomeUnknown,
    SessionBusy,
    WorktreeError,
)
from sennit.execute.adapters.acp import Acp
from sennit.execute.adapters.base import Adapter
from sennit.execute.adapters.claude import Claude
from sennit.execute.adapters.codex import Codex
from sennit.execute.adapters.command import Command
from sennit.execute.adapters.gemini import Gemini
from sennit.model.agent import AgentEvent, AgentResult, AgentUsage, AgentView, Ceilings
from sennit.runtime.agent_words import Prompt
from sennit.submit.effects import effect

__all__ = [
    "Acp",
    "Adapter",
    "AgentError",
    "AgentEvent",
    "AgentFailed",
    "AgentLimited",
    "AgentMissing",
    "AgentResult",
    "AgentUnsupported",
    "AgentUsage",
    "AgentView",
    "Ceilings",
    "Claude",
    "Codex",
    "Command",
    "Gemini",
    "OutcomeUnknown",
    "Prompt",
    "SessionBusy",
    "WorktreeError",
    "effect",
]

"""How to speak with each coding agent's program: what to start, and what its lines mean.

An adapter is imported when it is used. `reader_of` finds the one that a stored view names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from sennit.execute.adapters.base import Adapter, AgentRun, Reader

__all__ = ["ADAPTERS", "reader_of"]

ADAPTERS: Final = {
    "acp": "sennit.execute.adapters.acp:Acp",
    "claude": "sennit.execute.adapters.claude:Claude",
    "codex": "sennit.execute.adapters.codex:Codex",
    "command": "sennit.execute.adapters.command:Command",
    "gemini": "sennit.execute.adapters.gemini:Gemini",
}
"""`Adapter.name` → where it lives."""

_OF_ANY_PROGRAM: Final = frozenset({"acp", "command"})  # they are told what to start; to read it, that is of no account


def reader_of(name: str, run: AgentRun) -> Reader | None:
    """Return a reader for what a run wrote, by the name of its adapter; None for one that is not ours."""
    if name not in ADAPTERS:
        return None
    module, _, kind = ADAPTERS[name].partition(":")
    make = getattr(import_module(module), kind)
    adapter: Adapter = make(("program",)) if name in _OF_ANY_PROGRAM else make()
    return adapter.reader(run)

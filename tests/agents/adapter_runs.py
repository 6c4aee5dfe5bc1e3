"""Feeds a reader lines, as recorded from the real programs or worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sennit.execute.adapters.base import Adapter, AgentRun, Exit
from sennit.model.agent import AgentEvent, RunEnd

WELL = Exit(code=0)


def agent_run(folder: Path, prompt: str = "Count the ships.", **fields: Any) -> AgentRun:
    usual: dict[str, Any] = {"session_id": "s-1", "is_resume": False, "cwd": folder, "folder": folder}
    return AgentRun(**usual | fields, prompt=prompt)


def read(
    adapter: Adapter, run: AgentRun, *told: dict[str, Any] | bytes, exited: Exit = WELL, errors: tuple[str, ...] = ()
) -> tuple[list[AgentEvent], RunEnd]:
    """Return the events and the end of a run that wrote these lines."""
    reader = adapter.reader(run)
    events = []
    for line in told:
        events += reader.feed(line if isinstance(line, bytes) else json.dumps(line).encode())
    for error in errors:
        events += reader.feed_error(error.encode())
    assert reader.to_say() == b""
    return events, reader.end(exited)


def hostile(names: list[str], words: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects of a program's own names and words, in any shape."""
    key = st.sampled_from(names)
    leaf = st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-5, 2**53) | st.sampled_from(words)
    value = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=5), max_leaves=12
    )
    return st.dictionaries(key, value, max_size=8)

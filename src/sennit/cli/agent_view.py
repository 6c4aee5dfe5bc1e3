"""Agents as the command line shows them: in a row, in full, as JSON, and what their programs tell, in human words.

All text here was written by a program that may be hostile: nothing of it reaches a terminal but through `safe`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard

import msgspec

from sennit.cli.output import clipped, moment, rfc3339, safe, size, span
from sennit.model.agent import AgentEvent, AgentUsage, AgentView
from sennit.sync.clock import boot_id, wall_us

HEAD: Final = ("task", "agent", "status", "for", "run", "tools", "tokens", "cost", "doing")
RIGHT: Final = frozenset({"task", "for", "run", "tools", "tokens", "cost"})

DOING_CHARS: Final = 70
_TAB: Final = 4
_TIME_S_MAX: Final = 4e9  # the year 2096

Process = Literal["none", "runs", "gone", "elsewhere"]


def is_here(view: AgentView) -> bool:
    """Whether the last run was on this host."""
    return view.host == socket.gethostname()


def process_of(view: AgentView) -> Process:
    """Return what is known of the process of the last run; one of another host cannot be seen from here."""
    from sennit.execute.agent_proc import stat_of

    if not view.pid or not view.is_live:
        return "none"
    if not is_here(view):
        return "elsewhere"
    if view.boot_id not in {"", boot_id()}:
        return "gone"
    stat = stat_of(view.pid)
    return "runs" if stat is not None and stat.ticks == view.started_ticks and not stat.is_dead else "gone"


# ---------------------------------------------------------------- in a row


def row(view: AgentView, now_us: int) -> list[object]:
    """Return the cells of `agents ls`."""
    since = span((now_us - view.since_us) / 1e6) if view.since_us else ""
    doing = f"✕ {view.error}" if view.error else view.doing
    tokens = view.usage.input_tokens + view.usage.output_tokens
    return [
        view.task_id,
        clipped(safe(view.agent), 24),
        view.status,
        since,
        view.run,
        view.tools,
        _count(tokens),
        cost_words(view.usage),
        clipped(doing, DOING_CHARS),
    ]


def cost_words(usage: AgentUsage) -> str:
    """Return what it cost for people; "" when the program does not say."""
    return "" if usage.cost_usd is None else f"${usage.cost_usd:,.2f}"


def _count(n: int) -> str:
    """Return a number of tokens in three digits or so: 999, 12k, 3.4M."""
    if n < 1000:
        return str(n)
    return f"{n / 1000:.0f}k" if n < 999_500 else f"{n / 1e6:.1f}M"


# ---------------------------------------------------------------- in full


def agent_json(view: AgentView) -> dict[str, Any]:
    """Return the keys of `sennit.agent/1`; a key may be added, none is taken away within version 1."""
    return {
        "schema": "sennit.agent/1",
        "task_id": view.task_id,
        "agent": view.agent,
        "adapter": view.adapter,
        "status": view.status,
        "live": view.is_live,
        "attempt": view.attempt,
        "run": view.run,
        "session_id": view.session_id,
        "model": view.model,
        "since_at": _at(view.since_us),
        "event_at": _at(view.event_us),
        "doing": view.doing,
        "error": view.error,
        "tools": view.tools,
        "input_tokens": view.usage.input_tokens,
        "output_tokens": view.usage.output_tokens,
        "cached_input_tokens": view.usage.cached_input_tokens,
        "cost_usd": view.usage.cost_usd,
        "host": view.host,
        "pid": view.pid,
        "process": process_of(view),
        "cwd": view.cwd,
        "repository": view.repository,
        "branch": view.branch,
        "worktree": view.worktree,
        "folder": view.folder,
    }


def _at(at_us: int) -> str | None:
    return rfc3339(at_us or None)


def in_full(view: AgentView, now_us: int) -> Iterator[str]:
    """Yield the lines of `agents show`; nothing in them moves the cursor."""
    for name, words in _facts(view, now_us):
        if words:
            yield safe(f"{name:<12} {words}")


def _facts(view: AgentView, now_us: int) -> Iterator[tuple[str, str]]:
    usage = view.usage
    since = f" for {span((now_us - view.since_us) / 1e6)}" if view.since_us else ""
    yield "task", str(view.task_id)
    yield "agent", f"{view.agent} ({view.adapter})" if view.adapter else view.agent
    yield "status", view.status + (since if view.is_live else f", {moment(view.since_us or None, now_us)}")
    yield "error", view.error
    yield "doing", view.doing
    yield "last event", f"{span((now_us - view.event_us) / 1e6)} ago" if view.event_us else ""
    yield "run", f"{view.run}, attempt {view.attempt}"
    yield "session", view.session_id
    yield "model", view.model
    yield "tools used", str(view.tools)
    yield "tokens", f"{usage.input_tokens:,} in ({usage.cached_input_tokens:,} cached), {usage.output_tokens:,} out"
    yield "cost", cost_words(usage)
    yield "process", _process_words(view)
    yield "cwd", view.cwd
    yield "repository", view.repository
    yield "branch", view.branch
    yield "worktree", view.worktree
    yield "folder", view.folder + _sizes(view)
    yield "see also", f"sennit agents tail {view.task_id}  |  sennit tasks get {view.task_id}"


def _process_words(view: AgentView) -> str:
    found = process_of(view)
    if found == "none":
        return f"none, it was on {view.host}" if view.host else "none"
    how = {"runs": "", "gone": ", gone", "elsewhere": ", not seen from here"}[found]
    return f"{view.pid} on {view.host}{how}"


def _sizes(view: AgentView) -> str:
    """Return how much it has written: `  (stdout 1.2 MiB, stderr 0 B)`."""
    if not view.folder or not is_here(view):
        return ""
    found = []
    for name in ("stdout", "stderr"):
        try:
            found.append(f"{name} {size(os.lstat(Path(view.folder) / f'{name}.log').st_size)}")
        except OSError:
            continue
    return f"  ({', '.join(found)})" if found else "  (not there)"


# ---------------------------------------------------------------- what it tells


def event_words(event: AgentEvent) -> str:
    """Return an event for people, safe to print; "" for one that says nothing to them."""
    from sennit.runtime.agent_board import one_line

    match event.kind:
        case "session":
            return safe(f"· session {event.session_id}" + (f", {event.model}" if event.model else ""))
        case "text":
            return lines_words(event.text)
        case "tool_begin":
            return safe(f"→ {one_line(event.tool, event.input)}")
        case "tool_end" if event.is_error:
            return safe(
                f"✕ {event.tool or 'the tool'} failed" + (f": {clipped(event.text, 200)}" if event.text else "")
            )
        case "retry":
            after = f", tries again in {span(event.retry_after_s)}" if _is_time(event.retry_after_s) else ""
            return safe(f"· its provider refused a call ({event.status or 'no status'}){after}")
        case "limit":
            until = (
                f", until {moment(round(event.resets_at_s * 1e6), wall_us())}" if _is_time(event.resets_at_s) else ""
            )
            return safe(f"· its provider's limit{until}")
        case "ask":
            return safe(f"? wants to use {one_line(event.tool, event.input)}")
        case "result":
            return lines_words(f"{'✕' if event.is_error else '✓'} {event.text}".rstrip())
        case "error":
            return lines_words(f"✕ {event.text}")
    return ""  # thinking, usage, tools that went well


def _is_time(seconds: float | None) -> TypeGuard[float]:
    """Whether this is a time that a calendar has; a program may say anything."""
    return seconds is not None and 0 <= seconds <= _TIME_S_MAX


def event_json(event: AgentEvent) -> dict[str, Any]:
    """Return what `sennit.agent_event/1` has of an event."""
    return {**msgspec.to_builtins(event), "kind": event.kind}


def line_words(line: bytes) -> str:
    r"""Return a line of a program as it is, safe to print; bytes that are no UTF-8 are shown as `\xff`."""
    return lines_words(line.decode(errors="backslashreplace"))


def lines_words(text: str) -> str:
    """Return text that may have lines and tabs, safe to print."""
    return "\n".join(safe(line.rstrip("\r").expandtabs(_TAB)) for line in text.split("\n"))

"""Leave for tools, as claude decides it without a terminal: PreToolUse hooks first, then the flags.

hook says allow | deny | ask | defer, or ends with 2 (deny) ─► that        ask is a denial: nobody can be asked
no hook has an opinion ─► allowed, unless the script is strict: then free tools, --permission-mode and --allowedTools decide
"""

from __future__ import annotations

import json
import os

from sennit.testing.fakeagent_shape import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FREE_TOOLS = frozenset({"Read", "Grep", "Glob"})  # need no leave
EDITS = frozenset({"Write", "Edit", "NotebookEdit"})  # --permission-mode acceptEdits gives leave


def leave(run: Run, call_id: str, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """Return `allow`, `deny` or `defer`, and why."""
    if not run.shape.has_hooks:
        return "allow", ""
    wanted = run.wanted
    for settings in wanted.settings:
        for entry in (settings.get("hooks") or {}).get("PreToolUse") or []:
            if _matches(entry.get("matcher", ""), tool):
                for hook in entry["hooks"]:
                    decision, reason = _ask(run, hook["command"], call_id, tool, arguments)
                    if decision:
                        return decision, reason
    if not run.script.get("strict") or wanted.mode == "bypassPermissions" or tool in FREE_TOOLS:
        return "allow", ""
    if (wanted.mode == "acceptEdits" and tool in EDITS) or any(rule.split("(")[0] == tool for rule in wanted.allowed):
        return "allow", ""
    return "deny", f"Claude requested permissions to use {tool}, but you haven't granted it yet."


def _matches(matcher: str, tool: str) -> bool:
    if matcher in {"", "*"}:
        return True
    import re  # noqa: PLC0415 - 5 ms of start, and most agents have no hooks

    return re.fullmatch(matcher, tool) is not None


def _ask(run: Run, command: str, call_id: str, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """Ask one hook; "" where it has no opinion."""
    import subprocess  # noqa: PLC0415 - 10 ms of start

    question = {
        "session_id": run.transcript.session_id,
        "transcript_path": run.transcript.path,
        "cwd": os.getcwd(),  # noqa: PTH109
        "permission_mode": run.wanted.mode,
        "hook_event_name": "PreToolUse",
        "tool_name": tool,
        "tool_input": arguments,
        "tool_use_id": call_id,
    }
    environ = {**os.environ, "CLAUDECODE": "1", "CLAUDE_PROJECT_DIR": os.getcwd()}  # noqa: PTH109
    asked = subprocess.run(
        ["/bin/sh", "-c", command], input=json.dumps(question).encode(), capture_output=True, env=environ, check=False
    )
    said = asked.stdout.decode(errors="replace")
    run.journal.note("hook", tool=tool, call_id=call_id, code=asked.returncode, said=said)
    if asked.returncode == 2:
        return "deny", f"PreToolUse:{tool} hook error: [{command}]: {asked.stderr.decode(errors='replace')}"
    try:
        answer = json.loads(said)["hookSpecificOutput"]
        decision, reason = str(answer["permissionDecision"]), str(answer.get("permissionDecisionReason", ""))
    except (ValueError, KeyError, TypeError):
        return "", ""
    return ("deny" if decision == "ask" else decision), reason

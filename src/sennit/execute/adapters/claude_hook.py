"""The program that claude asks before it uses a tool: may it, may it not, or shall the run end until a person has said so?

    claude ──{"tool_name", "tool_input", …}──► this ──► allow | deny | defer | nothing (claude's own rules decide)
                                                │
             run folder: approvals.json ────────┤     patterns of tools that need a person, and what people said
                         asked.jsonl, used-… ◄──┘     what was deferred, and leave that has been used up

It runs alone (`python -I -S claude_hook.py FOLDER`) with nothing but the standard library, once for each use of a tool that is
asked for. Whatever goes wrong in it refuses the tool: claude takes exit code 2 for a no, and any other failure for a yes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

APPROVALS: Final = "approvals.json"
ASKED: Final = "asked.jsonl"

REFUSED: Final = (
    "A person was asked for leave and refused it. Do not try to reach the same in another way: go on without it, or end "
    "and say why it would be needed."
)
REPEAT: Final = "This call was not run. Make the same call again, as the only one of your turn."
NOT_HERE: Final = (
    "This needs the leave of a person, and a subagent cannot ask for it. Do not try another way: end and report to the "
    "main agent the exact call that is needed, so that it makes it itself, as the only call of its turn."
)

# The part of a tool's input that a pattern in parentheses is about. Source: the permission rules of claude's documentation.
_SUBJECTS: Final = {
    "Bash": "command",
    "Edit": "file_path",
    "MultiEdit": "file_path",
    "NotebookEdit": "notebook_path",
    "Read": "file_path",
    "Skill": "skill",
    "WebFetch": "url",
    "WebSearch": "query",
    "Write": "file_path",
}
_PATTERN: Final = re.compile(r"([^()\s]+)(?:\((.*)\))?", re.DOTALL)
# One command of several on a line. Quotes are not looked at: more is asked for than must be, never less.
_COMMANDS: Final = re.compile(r"&&|\|\||[;|&\n()`{}]|\$\(")


def fingerprint(tool: str, given: object) -> str:
    """Return what is the same for the same call, made again."""
    told = json.dumps([tool, given], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def split_pattern(pattern: str) -> tuple[str, str] | None:
    """Return the tool and the part in parentheses of `Tool` or `Tool(glob)`, None if it is neither."""
    found = _PATTERN.fullmatch(pattern.strip())
    return (found.group(1), found.group(2) or "*") if found else None


def needs_leave(patterns: list[str], tool: str, given: dict[str, Any], cwd: str) -> bool:
    """Return whether one of the patterns is about this call. What cannot be judged needs leave."""
    for pattern in patterns:
        parts = split_pattern(pattern)
        if parts is None:
            return True
        name, glob = parts
        if not fnmatch.fnmatchcase(tool, name):
            continue
        subjects = _subjects(tool, given, cwd)
        if glob == "*" or not subjects or any(_matches(glob, subject) for subject in subjects):
            return True
    return False


def _subjects(tool: str, given: dict[str, Any], cwd: str) -> list[str]:
    """Return what a glob is matched with, nothing where it is of another type."""
    if tool not in _SUBJECTS:
        return [json.dumps(given)]
    subject = given.get(_SUBJECTS[tool])
    if not isinstance(subject, str):
        return []
    if tool == "Bash":
        return [subject, *(command.strip() for command in _COMMANDS.split(subject))]
    if _SUBJECTS[tool].endswith("_path"):
        path = os.path.normpath(os.path.join(cwd, subject))  # noqa: PTH118 - of another program, and not to be resolved
        return [subject, path, os.path.relpath(path, cwd or "/")]
    return [subject]


def _matches(glob: str, subject: str) -> bool:
    if glob.endswith(":*"):  # claude's own way to write a prefix
        start = glob.removesuffix(":*")
        return subject == start or subject.startswith(f"{start} ")
    return fnmatch.fnmatchcase(subject, glob)


def decide(folder: Path, asked: dict[str, Any]) -> dict[str, str] | None:
    """Return `permissionDecision` and its reason, None to have no opinion.

    Leave is given by the id of a call. Where claude loses the call or its result when it goes on (see `claude.py`), the id
    is `id#fingerprint`: leave for one call of the same tool with the same input, whatever its id.
    """
    told = json.loads((folder / APPROVALS).read_text(encoding="utf-8"))
    tool, given, call_id = str(asked["tool_name"]), dict(asked["tool_input"]), str(asked.get("tool_use_id") or "")
    if not needs_leave(list(told["approve"]), tool, given, str(asked.get("cwd") or "")):
        return None
    decisions = dict(told["decisions"])
    print_ = fingerprint(tool, given)
    if call_id in decisions:
        return _said(is_allowed=bool(decisions[call_id]))
    if f"{call_id}#{print_}" in decisions:
        return {"permissionDecision": "deny", "permissionDecisionReason": REPEAT}
    for key, is_allowed in decisions.items():
        if key.endswith(f"#{print_}") and _is_first_use(folder, key):
            return _said(is_allowed=bool(is_allowed))
    if asked.get("agent_id"):
        return {"permissionDecision": "deny", "permissionDecisionReason": NOT_HERE}
    with (folder / ASKED).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": call_id, "tool": tool, "input": given, "print": print_}) + "\n")
    return {"permissionDecision": "defer", "permissionDecisionReason": "A person is asked for leave."}


def _said(*, is_allowed: bool) -> dict[str, str]:
    if is_allowed:
        return {"permissionDecision": "allow", "permissionDecisionReason": "A person was asked and gave leave."}
    return {"permissionDecision": "deny", "permissionDecisionReason": REFUSED}


def _is_first_use(folder: Path, key: str) -> bool:
    """Use up one leave; False if it is used up already. Two hooks may ask at once."""
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        os.close(os.open(folder / f"used-{name}", os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def main() -> int:
    """Answer one question; 2 refuses."""
    try:
        decision = decide(Path(sys.argv[1]), json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not become a yes
        print(f"The program that asks people for leave has failed ({error!r}); do not use this tool.", file=sys.stderr)  # noqa: T201
        return 2
    if decision is not None:
        print(json.dumps({"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The tools of a fake agent: effects on files and repositories, each at most once per session.

    tool_use into the transcript ─► event ─► leave? ─► the effect ─► tool_result into the transcript ─► event
                              └── a kill here leaves it unknown whether the effect took place: `look_back`

What a careful agent would do on a resume is the default (`unanswered: "look"`): see whether the effect is there, and do it only if
it is not. `"repeat"` does it again, as a careless one would; `"skip"` never does.
"""

from __future__ import annotations

import os

from sennit.testing.fakeagent_leave import leave
from sennit.testing.fakeagent_parts import Ended
from sennit.testing.fakeagent_shape import Run
from sennit.testing.fakeagent_steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Call:
    """One use of a tool."""

    def __init__(self, key: str, step: dict[str, Any], call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        self.key = key
        self.step = step
        self.call_id = call_id
        self.tool = tool
        self.arguments = arguments


def use(steps: Steps, key: str, step: dict[str, Any]) -> None:
    """Use a tool: all of the drawing above.

    Raises:
        Ended: leave was deferred.
    """
    run = steps.run
    tool, arguments = _named(run, step)
    call = Call(
        key,
        step,
        f"toolu_{run.transcript.session_id[-8:]}_{key.replace('.', '_')}_{run.transcript.runs}",
        tool,
        arguments,
    )
    part = {"type": "tool_use", "id": call.call_id, "name": tool, "input": arguments}
    beside = {"type": "assistant", "message": {"role": "assistant", "content": [part], "stop_reason": "tool_use"}}
    run.transcript.note("tool_use", beside, key=key, call_id=call.call_id)
    run.shape.tool_begin(call.call_id, tool, arguments)
    steps.count()
    _go_on(steps, call)


def use_deferred(steps: Steps) -> None:
    """Use the tool for which leave was asked: the hooks are asked once more.

    Raises:
        Ended: they defer again.
    """
    transcript = steps.run.transcript
    key = transcript.deferred
    step = steps.todo[int(key.split(".")[1])]
    _go_on(steps, Call(key, step, transcript.begun[key], *_named(steps.run, step)))


def _go_on(steps: Steps, call: Call) -> None:
    """Ask for leave, then have the effect, or say that leave was refused.

    Raises:
        Ended: leave was deferred.
    """
    run = steps.run
    facts = {"key": call.key, "call_id": call.call_id, "do": call.step["do"], "tool": call.tool}
    decision, reason = leave(run, call.call_id, call.tool, call.arguments)
    if decision == "defer":
        run.transcript.note("deferred", key=call.key, call_id=call.call_id)
        run.journal.note("deferred", **facts)
        steps.result("", deferred={"id": call.call_id, "name": call.tool, "input": call.arguments})
        raise Ended(0)
    if decision == "deny":
        run.shape.denied(call.call_id, call.tool, call.arguments)
        run.journal.note("denied", **facts, reason=reason)
        output, code = reason, 1
    else:
        run.journal.note("begin", **facts)
        output, code = _effect(call.step)
        run.journal.note("did", **{**call.step, **facts, "code": code})
    content = [{"type": "tool_result", "tool_use_id": call.call_id, "content": output[:1000], "is_error": code != 0}]
    beside = {"type": "user", "message": {"role": "user", "content": content}}
    run.transcript.note("tool_result", beside, key=call.key, call_id=call.call_id)
    run.shape.tool_end(call.call_id, call.tool, call.arguments, output=output, code=code)


def look_back(steps: Steps) -> None:
    """Look at tool uses that were begun and never answered, and settle those whose effect is there."""
    policy = steps.run.script.get("unanswered", "look")
    for key, call_id in list(steps.run.transcript.begun.items()):
        if not key.startswith(steps.run.transcript.key_prefix):
            continue
        step = steps.todo[int(key.split(".")[1])]
        is_there = policy == "skip" or (policy == "look" and _is_there(step))
        steps.run.journal.note("unanswered", key=key, call_id=call_id, do=step["do"], is_there=is_there)
        if is_there:
            steps.run.transcript.note("tool_result", key=key, call_id=call_id)


def _named(run: Run, step: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the tool and its input, as this program would call it."""
    verb = step["do"]
    if verb == "tool":
        return str(step.get("tool", "Task")), dict(step.get("input") or {})
    tool = run.shape.tools[verb]
    match verb:
        case "append":
            return tool, {"command": f"printf '%s\\n' {_quoted(step['line'])} >> {_quoted(step['path'])}"}
        case "shell":
            return tool, {"command": step["command"]}
        case "commit":
            path, message = _quoted(step["path"]), _quoted(step["message"])
            return tool, {"command": f"git add -- {path} && git commit -m {message}"}
        case "read":
            return tool, {"file_path": step["path"]}
    return tool, {"file_path": step["path"], "content": step["content"]}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---------------------------------------------------------------- effects


def _effect(step: dict[str, Any]) -> tuple[str, int]:
    """Have the effect; return its output and exit code."""
    match step["do"]:
        case "append":
            fd = os.open(step["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(fd, step["line"].encode() + b"\n")
            os.close(fd)
            return "", 0
        case "write":
            _write(step["path"], step["content"])
            return f"File created successfully at: {step['path']}", 0
        case "read":
            try:
                with open(step["path"], encoding="utf-8") as file:  # noqa: PTH123
                    return file.read(), 0
            except OSError as error:
                return str(error), 1
        case "commit":
            return _commit(step)
        case "shell":
            return _run(["/bin/sh", "-c", step["command"]])
    return str(step.get("output", "")), int(bool(step.get("is_error")))


def _is_there(step: dict[str, Any]) -> bool:
    """Whether the effect can be seen; of a shell command nobody can tell, so it counts as done."""
    try:
        match step["do"]:
            case "append":
                with open(step["path"], encoding="utf-8") as file:  # noqa: PTH123
                    return step["line"] in file.read().splitlines()
            case "write":
                with open(step["path"], encoding="utf-8") as file:  # noqa: PTH123
                    return file.read() == str(step["content"])
            case "commit":
                return step["message"] in _run(["git", "log", "--format=%s", "-n", "200"])[0].splitlines()
            case "shell":
                return True
    except OSError:
        return False
    return False


def _write(path: str, content: str) -> None:
    if folder := os.path.dirname(path):  # noqa: PTH120 - pathlib costs 5 ms of start
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(content)


def _commit(step: dict[str, Any]) -> tuple[str, int]:
    _write(step["path"], step["content"])
    output, code = _run(["git", "add", "--", step["path"]])
    if code == 0:
        output, code = _run(["git", "commit", "-q", "-m", step["message"]])
    return output, code


def _run(argv: list[str]) -> tuple[str, int]:
    import subprocess  # noqa: PLC0415 - 10 ms of start, and most agents run nothing

    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace"), done.returncode

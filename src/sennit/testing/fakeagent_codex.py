"""How codex is spoken to, and how it speaks: `codex exec --json … -`, as version 0.169.0 does.

Seen with the real program against a server on loopback: the thread id is known from its first line on, usage counts the whole
thread, a limit is told in prose and in local time, and a TERM ends it as a signal.
"""

from __future__ import annotations

import json
import os
import time

from sennit.testing.fakeagent_parts import Options, Output, Refused, Wanted, new_uuid, read_stdin
from sennit.testing.fakeagent_shape import Shape, Usage
from sennit.testing.fakeagent_transcript import Transcript

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    "--json --skip-git-repo-check --ephemeral --ignore-user-config --ignore-rules --strict-config --oss --worktree --trust "
    "--approve-for-me --dangerously-bypass-approvals-and-sandbox --dangerously-bypass-hook-trust --last --all -h=--help"
)
VALUES = (
    "-c=--config --enable --disable -m=--model --local-provider -p=--profile -s=--sandbox -C=--cd --add-dir --thread-source "
    "--cyber-access-program --output-schema --color -o=--output-last-message"
)
REASONS = {429: "Too Many Requests", 401: "Unauthorized", 500: "Internal Server Error", 503: "Service Unavailable"}
RETRIES = 5  # its own default for streams


class Codex(Shape):
    """The shape of codex."""

    version = "codex-cli 0.169.0"
    config = "CODEX_HOME"
    tools = {"append": "shell", "shell": "shell", "commit": "shell", "read": "shell", "write": "apply_patch"}  # noqa: RUF012
    dies_of_term = True

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self.model = "gpt-fake-1"
        self._items = 0
        self._open: dict[str, str] = {}
        self._retries = RETRIES

    # ---------------------------------------------------------------- the command line

    def parse(self, argv: list[str]) -> Wanted:
        """Read the command line, and stdin where the prompt is there.

        Raises:
            Refused: as the real one refuses.
        """
        if argv[:1] != ["exec"]:
            raise Refused(1, "The fake agent has no terminal: use exec\n")
        try:
            options = Options(argv[1:], flags=FLAGS, values=VALUES, many="-i=--image")
        except KeyError as unknown:
            raise Refused(2, f"error: unexpected argument '{unknown.args[0]}' found\n") from None
        wanted = Wanted()
        wanted.is_json = options.has("--json")
        wanted.keeps = not options.has("--ephemeral")
        wanted.model = self.model = options.get("--model") or self.model
        wanted.has_schema = options.has("--output-schema")
        wanted.last_message = options.get("--output-last-message")
        for setting in options.found.get("--config", []):
            name, _, value = setting.partition("=")
            if name.endswith("stream_max_retries"):
                self._retries = int(value)
        if folder := options.get("--cd"):
            os.chdir(folder)
        words = options.rest
        if words[:1] == ["resume"]:
            wanted.is_resume = True
            wanted.session_id = words[1] if len(words) > 1 else ""
            words = words[2:]
        if not (options.has("--skip-git-repo-check") or _is_in_repository()):
            raise Refused(1, "Not inside a trusted directory and --skip-git-repo-check was not specified.\n")
        if words and words[0] != "-":
            # It reads stdin to its end all the same: an open pipe that nobody closes hangs it.
            self.out.raw(b"Reading additional input from stdin...\n", fd=2)
            more = read_stdin()
            wanted.prompt = words[0] + (f"\n\n<stdin>\n{more}</stdin>" if more else "")
        else:
            wanted.prompt = read_stdin()
        if not wanted.prompt.strip():
            raise Refused(1, "No prompt provided via stdin.\n")
        return wanted

    def find(self, wanted: Wanted) -> Transcript:
        """Return the transcript of the thread, new or to go on with.

        Raises:
            Refused: it is unknown.
        """
        root = os.environ[self.config] + "/sessions"
        if wanted.is_resume:
            ending = f"-{wanted.session_id}.jsonl"
            for folder, _, names in os.walk(root):
                for name in names:
                    if name.endswith(ending):
                        return Transcript(f"{folder}/{name}", wanted.session_id)
            what = f"no rollout found for thread id {wanted.session_id}"
            raise Refused(1, f"Error: thread/resume: thread/resume failed: {what} (code -32600)\n")
        session_id = new_uuid()
        now = time.gmtime()
        name = time.strftime("rollout-%Y-%m-%dT%H-%M-%S-", now) + f"{session_id}.jsonl"
        return Transcript(f"{root}{time.strftime('/%Y/%m/%d', now)}/{name}" if wanted.keeps else "", session_id)

    def retries_max(self) -> int:
        """Return `stream_max_retries` of -c."""
        return self._retries

    # ---------------------------------------------------------------- events

    def begin(self, transcript: Transcript, prompt: str | None) -> None:  # noqa: ARG002 - it does not repeat the prompt
        """Say which thread this is."""
        self.session_id = transcript.session_id
        self.out.event({"type": "thread.started", "thread_id": self.session_id})
        self.out.event({"type": "turn.started"})

    def say(self, text: str, *, is_thinking: bool = False) -> dict[str, Any]:
        """Say something."""
        item = {"id": self._item(), "type": "reasoning" if is_thinking else "agent_message", "text": text}
        self.out.event({"type": "item.completed", "item": item})
        return {"type": "response_item", "payload": item}

    def tool_begin(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """Begin to use a tool."""
        self._open[call_id] = self._item()
        self.out.event({"type": "item.started", "item": self._tool(call_id, tool, arguments, "in_progress")})

    def tool_end(self, call_id: str, tool: str, arguments: dict[str, Any], *, output: str, code: int) -> None:
        """End the use of a tool."""
        item = self._tool(call_id, tool, arguments, "failed" if code else "completed")
        if item["type"] == "command_execution":
            item.update(aggregated_output=output, exit_code=code)
        elif item["type"] == "mcp_tool_call":
            answer = {"content": [{"type": "text", "text": output}], "structured_content": None}
            item.update(error={"message": output}) if code else item.update(result=answer)
        self.out.event({"type": "item.completed", "item": item})

    def retry(self, attempt: int, delay_s: float, status: int) -> None:  # noqa: ARG002 - it does not tell the delay
        """Say that a call was refused and will be repeated."""
        message = f"Reconnecting... {attempt}/{self._retries} ({_last_status(status)})"
        self.out.event({"type": "error", "message": message})

    def refused_call(self, status: int, text: str) -> str:
        """Return the words of the failure."""
        if status == 401:
            return f"unexpected status 401 Unauthorized: {text}"
        return _last_status(status)

    def window(self, resets_at_s: int, *, is_rejected: bool, kind: str) -> str:  # noqa: ARG002 - it tells of no warning
        """Return the words of the failure: the time of the day, in this system's zone."""
        local = time.localtime(resets_at_s)
        hour = local.tm_hour % 12 or 12
        return f"You’ve hit your usage limit. Try again at {hour}:{local.tm_min:02} {'PM' if local.tm_hour >= 12 else 'AM'}."

    def result(
        self,
        text: str,
        *,
        is_error: bool,
        usage: Usage,
        before: list[int],
        status: int = 0,  # noqa: ARG002 - it stands in the words only
        structured: object = None,
        deferred: dict[str, Any] | None = None,  # noqa: ARG002 - it cannot
        duration_s: float = 0.0,  # noqa: ARG002 - it does not tell
    ) -> None:
        """End the turn."""
        if is_error:
            self.out.event({"type": "error", "message": text})
            self.out.event({"type": "turn.failed", "error": {"message": text}})
            return
        if structured is not None:
            self.say(json.dumps(structured))
        counted = [usage["input_tokens"], usage["cached_input_tokens"], usage["output_tokens"]]
        total = [int(one or 0) + other for one, other in zip(counted, before, strict=True)]
        told = {"input_tokens": total[0], "cached_input_tokens": total[1], "cache_write_input_tokens": 0}
        self.out.event(
            {"type": "turn.completed", "usage": {**told, "output_tokens": total[2], "reasoning_output_tokens": 0}}
        )

    def _item(self) -> str:
        self._items += 1
        return f"item_{self._items - 1}"

    def _tool(self, call_id: str, tool: str, arguments: dict[str, Any], status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._open[call_id]}
        if tool == "shell":
            command = arguments.get("command") or f"cat {arguments['file_path']}"
            item |= {
                "type": "command_execution",
                "command": f"/bin/bash -lc {json.dumps(command)}",
                "aggregated_output": "",
            }
            return {**item, "exit_code": None, "status": status}
        if tool == "apply_patch":
            path = os.path.abspath(arguments["file_path"])  # noqa: PTH100 - pathlib costs 5 ms of start
            return {**item, "type": "file_change", "changes": [{"path": path, "kind": "add"}], "status": status}
        item |= {"type": "mcp_tool_call", "server": "fake", "tool": tool, "arguments": arguments}
        return {**item, "result": None, "error": None, "status": status}


def _last_status(status: int) -> str:
    return f"exceeded retry limit, last status: {status} {REASONS.get(status, 'Unknown')}"


def _is_in_repository() -> bool:
    folder = os.getcwd()  # noqa: PTH109
    while folder != "/":
        if os.path.exists(f"{folder}/.git"):  # noqa: PTH110
            return True
        folder = os.path.dirname(folder)  # noqa: PTH120
    return False

"""How claude is spoken to, and how it speaks: `claude -p … --output-format stream-json --verbose`, as version 2.1.197 does.

Seen with the real program against a server on loopback: its flags, the order and the fields of its events, its exit codes,
its PreToolUse hooks, and that a session belongs to the folder it was started in.
"""

from __future__ import annotations

import json
import os

from sennit.testing.fakeagent_parts import Options, Output, Refused, Wanted, is_uuid, new_uuid, read_stdin, stamp
from sennit.testing.fakeagent_shape import Shape, Usage
from sennit.testing.fakeagent_transcript import Transcript

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    "-p=--print --verbose --bare --strict-mcp-config --fork-session --dangerously-skip-permissions --include-hook-events "
    "--allow-dangerously-skip-permissions --include-partial-messages --no-session-persistence --replay-user-messages "
    "--disable-slash-commands --brief --no-chrome --chrome --safe-mode --exclude-dynamic-system-prompt-sections "
    "-c=--continue -v=--version -h=--help --ax-screen-reader --ide"
)
VALUES = (
    "--output-format --input-format --session-id --permission-mode --settings --model --fallback-model --max-budget-usd "
    "--append-system-prompt --append-system-prompt-file --system-prompt --system-prompt-file --json-schema --agent --agents "
    "--effort -n=--name --setting-sources --debug-file --plugin-dir --plugin-url --max-turns"
)
MANY = (
    "--allowed-tools=--allowedTools --disallowed-tools=--disallowedTools --tools --mcp-config --add-dir --betas --file"
)
OPTIONAL = "-r=--resume -w=--worktree -d=--debug --prompt-suggestions --from-pr"
RETRIES = 10  # its default
TOOLS = {"append": "Bash", "shell": "Bash", "commit": "Bash", "write": "Write", "read": "Read"}


class Claude(Shape):
    """The shape of claude."""

    version = "2.1.197 (Claude Code)"
    config = "CLAUDE_CONFIG_DIR"
    tools = TOOLS
    has_hooks = True
    says_result = True

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self.model = "claude-fake-1"
        self._turns = 0
        self._denials: list[dict[str, Any]] = []

    # ---------------------------------------------------------------- the command line

    def parse(self, argv: list[str]) -> Wanted:
        """Read the command line, and stdin where the prompt is there.

        Raises:
            Refused: as the real one refuses.
        """
        try:
            options = Options(argv, flags=FLAGS, values=VALUES, many=MANY, optional=OPTIONAL)
        except KeyError as unknown:
            raise Refused(1, f"error: unknown option '{unknown.args[0]}'\n") from None
        if not options.has("--print"):
            raise Refused(1, "The fake agent has no terminal: use -p\n")
        wanted = Wanted()
        wanted.is_json = options.get("--output-format", "text") == "stream-json"
        if wanted.is_json and not options.has("--verbose"):
            raise Refused(1, "Error: When using --print, --output-format=stream-json requires --verbose\n")
        wanted.session_id = options.get("--resume") or options.get("--session-id")
        wanted.is_resume = options.has("--resume")
        wanted.is_fork = options.has("--fork-session")
        if options.has("--session-id") and not is_uuid(wanted.session_id):
            raise Refused(1, "Error: Invalid session ID. Must be a valid UUID.\n")
        wanted.keeps = not options.has("--no-session-persistence")
        wanted.model = options.get("--model") or self.model
        wanted.has_schema = options.has("--json-schema")
        wanted.mode = options.get("--permission-mode", "default")
        if options.has("--dangerously-skip-permissions"):
            wanted.mode = "bypassPermissions"
        wanted.allowed = tuple(name for text in options.found.get("--allowedTools", []) for name in text.split(","))
        if not options.has("--bare"):
            wanted.settings = [_settings(text) for text in options.found.get("--settings", [])]
        wanted.prompt = _prompt(options, wanted)
        self.model = wanted.model
        return wanted

    def find(self, wanted: Wanted) -> Transcript:
        """Return the transcript of the session that is wanted, new or to go on with.

        Raises:
            Refused: it is in use, or unknown.
        """
        config = os.environ[self.config]
        project = "".join(c if c.isalnum() else "-" for c in os.getcwd())  # noqa: PTH109
        folder = f"{config}/projects/{project}"
        session_id = wanted.session_id or new_uuid()
        found = Transcript(f"{folder}/{session_id}.jsonl" if wanted.keeps else "", session_id)
        if wanted.is_resume and not found.exists():
            self.session_id = session_id
            what = f"No conversation found with session ID: {session_id}"
            raise Refused(1, what + "\n", (self._lost(what),) if wanted.is_json else ())
        if not wanted.is_resume and found.exists():
            raise Refused(1, f"Error: Session ID {session_id} is already in use.\n")
        return found

    def without_prompt(self, transcript: Transcript) -> None:
        """Go on without a prompt, which only a deferred tool allows.

        Raises:
            Refused: none is deferred.
        """
        if not transcript.deferred:
            raise Refused(
                1,
                "Error: No deferred tool marker found in the resumed session. Either the session was not deferred, the marker "
                "is stale (tool already ran), or it exceeds the tail-scan window. Provide a prompt to continue the "
                "conversation.\n",
            )

    def retries_max(self) -> int:
        """Return CLAUDE_CODE_MAX_RETRIES."""
        return int(os.environ.get("CLAUDE_CODE_MAX_RETRIES") or RETRIES)

    # ---------------------------------------------------------------- events

    def begin(self, transcript: Transcript, prompt: str | None) -> None:  # noqa: ARG002 - it does not repeat the prompt
        """Say which session this is."""
        self.session_id = transcript.session_id
        self._event(
            {
                "type": "system",
                "subtype": "init",
                "cwd": os.getcwd(),  # noqa: PTH109
                "session_id": self.session_id,
                "tools": ["Bash", "Edit", "Read", "Write"],
                "mcp_servers": [],
                "model": self.model,
                "permissionMode": "default",
                "slash_commands": [],
                "apiKeySource": "ANTHROPIC_API_KEY" if os.environ.get("ANTHROPIC_API_KEY") else "none",
                "claude_code_version": self.version.split()[0],
                "output_style": "default",
            }
        )

    def say(self, text: str, *, is_thinking: bool = False) -> dict[str, Any]:
        """Say something; return what the transcript keeps."""
        self._turns += 1
        part = (
            {"type": "thinking", "thinking": text, "signature": ""} if is_thinking else {"type": "text", "text": text}
        )
        return self._assistant([part])

    def tool_begin(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """Begin to use a tool."""
        self._turns += 1
        self._assistant([{"type": "tool_use", "id": call_id, "name": tool, "input": arguments}])

    def tool_end(self, call_id: str, tool: str, arguments: dict[str, Any], *, output: str, code: int) -> None:  # noqa: ARG002
        """End the use of a tool."""
        content = [{"tool_use_id": call_id, "type": "tool_result", "content": output, "is_error": code != 0}]
        more = f"Error: {output}" if code else {"stdout": output, "stderr": "", "interrupted": False, "isImage": False}
        line = {"type": "user", "message": {"role": "user", "content": content}, "parent_tool_use_id": None}
        self._event({**line, "timestamp": stamp(), "tool_use_result": more})

    def denied(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """Remember for the result that leave was refused."""
        self._denials.append({"tool_name": tool, "tool_use_id": call_id, "tool_input": arguments})

    def retry(self, attempt: int, delay_s: float, status: int) -> None:
        """Say that a call was refused and will be repeated."""
        what = {429: "rate_limit", 401: "authentication_failed", 529: "overloaded"}.get(status, "server_error")
        self._event(
            {
                "type": "system",
                "subtype": "api_retry",
                "attempt": attempt,
                "max_retries": self.retries_max(),
                "retry_delay_ms": delay_s * 1000,
                "error_status": status,
                "error": what,
            }
        )

    def refused_call(self, status: int, text: str) -> str:
        """Say that the provider refuses for good; return the words of the result."""
        words = (
            "Invalid API key · Fix external API key"
            if status == 401
            else f"API Error: Request rejected ({status}) · {text}"
        )
        self._turns += 1
        kind = {429: "rate_limit", 401: "authentication_failed"}.get(status, "server_error")
        message = {"role": "assistant", "model": "<synthetic>", "content": [{"type": "text", "text": words}]}
        self._event({"type": "assistant", "message": message, "parent_tool_use_id": None, "error": kind})
        return words

    def window(self, resets_at_s: int, *, is_rejected: bool, kind: str) -> str:
        """Tell of the quota of a window; return the words of the result."""
        status = "rejected" if is_rejected else "allowed_warning"
        info = {"status": status, "resetsAt": resets_at_s, "rateLimitType": kind, "overageStatus": "rejected"}
        self._event({"type": "rate_limit_event", "rate_limit_info": {**info, "isUsingOverage": False}})
        return f"Claude AI usage limit reached|{resets_at_s}"

    def result(
        self,
        text: str,
        *,
        is_error: bool,
        usage: Usage,
        before: list[int],  # noqa: ARG002 - it counts each run anew
        status: int = 0,
        structured: object = None,
        deferred: dict[str, Any] | None = None,
        duration_s: float = 0.0,
    ) -> None:
        """Say the last word."""
        reason = "tool_deferred" if deferred else "completed"
        event = {
            "type": "result",
            "subtype": "success",
            "is_error": is_error,
            "api_error_status": status or None,
            "duration_ms": int(duration_s * 1000),
            "duration_api_ms": int(duration_s * 1000),
            "num_turns": self._turns,
            "result": text,
            "stop_reason": "tool_deferred" if deferred else "stop_sequence" if is_error else "end_turn",
            "session_id": self.session_id,
            "total_cost_usd": usage["cost_usd"] or 0,
            "usage": {
                "input_tokens": usage["input_tokens"],
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": usage["cached_input_tokens"],
                "output_tokens": usage["output_tokens"],
            },
            "modelUsage": {},
            "permission_denials": self._denials,
            "terminal_reason": reason,
        }
        if deferred:
            del event["api_error_status"]  # the real one leaves it out here
            event["deferred_tool_use"] = deferred
        if structured is not None:
            event["structured_output"] = structured
        self._event(event)

    def _lost(self, what: str) -> dict[str, Any]:
        return {
            "type": "result",
            "subtype": "error_during_execution",
            "duration_ms": 0,
            "is_error": True,
            "num_turns": 0,
            "stop_reason": None,
            "session_id": self.session_id,
            "total_cost_usd": 0,
            "usage": {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0},
            "permission_denials": [],
            "errors": [what],
        }

    def _assistant(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        message = {"id": f"msg_{new_uuid()[:8]}", "type": "message", "role": "assistant", "model": self.model}
        usage = {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        line = {"type": "assistant", "message": {**message, "content": content, "stop_reason": None, "usage": usage}}
        self._event({**line, "parent_tool_use_id": None})
        return line

    def _event(self, event: dict[str, Any]) -> None:
        self.out.event({**event, "session_id": self.session_id, "uuid": new_uuid()})


def _settings(text: str) -> dict[str, Any]:
    """Read --settings: a file, or JSON itself.

    Raises:
        Refused: it is neither.
    """
    try:
        if not text.lstrip().startswith("{"):
            with open(text, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs 5 ms of start
                text = file.read()
        loaded: dict[str, Any] = json.loads(text)
    except FileNotFoundError:
        raise Refused(1, f"Error processing settings: Settings file not found: {text}\n") from None
    except ValueError:
        raise Refused(1, "Error processing settings: Invalid JSON provided to --settings\n") from None
    return loaded


def _prompt(options: Options, wanted: Wanted) -> str | None:
    """Return the prompt: an argument, or all of stdin; None to go on without one.

    Raises:
        Refused: there is none, and it is no resume.
    """
    if options.rest:
        return options.rest[0]
    text = read_stdin()
    if options.get("--input-format") == "stream-json":
        said = [json.loads(line)["message"]["content"] for line in text.splitlines() if line.strip()]
        text = "\n".join(part if isinstance(part, str) else part[0]["text"] for part in said)
    if text.strip():
        return text
    if wanted.is_resume:
        return None
    raise Refused(1, "Error: Input must be provided either through stdin or as a prompt argument when using --print\n")

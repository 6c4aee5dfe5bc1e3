"""How gemini is spoken to, and how it speaks: `gemini -p … -o stream-json --skip-trust`, as version 0.61.0 does.

Seen with the real program against a server on loopback: refused calls are told on stderr only, an unknown or used session id
is exit 42, no way to log in is 41, and an error of the provider is the low byte of its status (401 gives 145).
"""

from __future__ import annotations

import os
import time

from sennit.testing.fakeagent_parts import Options, Output, Refused, Wanted, new_uuid, read_stdin, stamp
from sennit.testing.fakeagent_shape import Shape, Usage
from sennit.testing.fakeagent_transcript import Transcript

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    "-d=--debug --skip-trust -s=--sandbox -y=--yolo --acp --experimental-acp -l=--list-extensions --list-sessions --screen-reader "
    "--raw-output --accept-raw-output-risk -v=--version -h=--help"
)
VALUES = (
    "-m=--model -p=--prompt -i=--prompt-interactive --approval-mode --policy --admin-policy --session-file --session-id "
    "--delete-session -o=--output-format"
)
MANY = "--allowed-mcp-server-names --allowed-tools -e=--extensions --include-directories"
RETRIES = 10  # of its own; each is silent on stdout
FATAL_INPUT = 42


class Gemini(Shape):
    """The shape of gemini."""

    version = "0.61.0"
    config = "GEMINI_CLI_HOME"
    tools = {  # noqa: RUF012
        "append": "run_shell_command",
        "shell": "run_shell_command",
        "commit": "run_shell_command",
        "read": "read_file",
        "write": "write_file",
    }

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self.model = "gemini-fake-1"
        self._tool_calls = 0

    # ---------------------------------------------------------------- the command line

    def parse(self, argv: list[str]) -> Wanted:
        """Read the command line, and stdin, which is put before the prompt.

        Raises:
            Refused: as the real one refuses.
        """
        try:
            options = Options(argv, flags=FLAGS, values=VALUES, many=MANY, optional="-r=--resume -w=--worktree")
        except KeyError as unknown:
            raise Refused(1, f"Unknown argument: {unknown.args[0].lstrip('-')}\n") from None
        wanted = Wanted()
        wanted.is_json = options.get("--output-format", "text") == "stream-json"
        wanted.session_id = options.get("--resume") or options.get("--session-id")
        wanted.is_resume = options.has("--resume")
        wanted.model = self.model = options.get("--model") or self.model
        said = options.get("--prompt") or " ".join(options.rest)
        more = read_stdin()
        wanted.prompt = f"{more}\n\n\n{said}" if more and said else more or said
        if not wanted.prompt:
            raise Refused(
                FATAL_INPUT,
                "No input provided via stdin. Input can be provided by piping data into gemini or using --prompt.\n",
            )
        return wanted

    def find(self, wanted: Wanted) -> Transcript:
        """Return the transcript of the session, new or to go on with.

        Raises:
            Refused: it is in use, or unknown here: sessions belong to the folder they were started in.
        """
        project = "".join(c if c.isalnum() else "-" for c in os.getcwd())  # noqa: PTH109
        folder = f"{os.environ[self.config]}/.gemini/tmp/{project}/chats"
        session_id = wanted.session_id or new_uuid()
        try:
            known = [name for name in sorted(os.listdir(folder)) if name.endswith(f"-{session_id}.jsonl")]  # noqa: PTH208
        except FileNotFoundError:
            known = []
        if wanted.is_resume:
            if not known:
                what = f'Invalid session identifier "{session_id}".\n  Searched for sessions in {folder}.'
                raise Refused(FATAL_INPUT, f"Error resuming session: {what}\n")
            return Transcript(f"{folder}/{known[0]}", session_id)
        if known:
            what = f'Session ID "{session_id}" already exists. Use --resume to resume it, or provide a different ID.'
            raise Refused(FATAL_INPUT, f"Error starting session: {what}\n")
        name = time.strftime("session-%Y-%m-%dT%H-%M-", time.gmtime()) + f"{session_id}.jsonl"
        return Transcript(f"{folder}/{name}", session_id)

    def retries_max(self) -> int:
        """Return its own number: nothing sets it."""
        return RETRIES

    # ---------------------------------------------------------------- events

    def begin(self, transcript: Transcript, prompt: str | None) -> None:
        """Say which session this is, and repeat the prompt."""
        self.session_id = transcript.session_id
        self._event("init", session_id=self.session_id, model=self.model)
        self._event("message", role="user", content=prompt or "")

    def say(self, text: str, *, is_thinking: bool = False) -> dict[str, Any]:
        """Say something; thoughts are not told."""
        if not is_thinking:
            self._event("message", role="assistant", content=text, delta=True)
        return {"type": "gemini", "content": text}

    def tool_begin(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """Begin to use a tool."""
        self._tool_calls += 1
        self._event("tool_use", tool_name=tool, tool_id=call_id, parameters=arguments)

    def tool_end(self, call_id: str, tool: str, arguments: dict[str, Any], *, output: str, code: int) -> None:  # noqa: ARG002
        """End the use of a tool."""
        if code:
            self._event(
                "tool_result",
                tool_id=call_id,
                status="error",
                output=output,
                error={"type": "unknown", "message": output},
            )
        else:
            self._event("tool_result", tool_id=call_id, status="success", **({"output": output} if output else {}))

    def retry(self, attempt: int, delay_s: float, status: int) -> None:  # noqa: ARG002 - it does not tell the delay
        """Say on stderr that a call was refused: on stdout nothing is seen."""
        words = (
            f"Attempt {attempt} failed with status {status}. Retrying with backoff... _ApiError: {_error(status, '')}\n"
        )
        self.out.raw(words.encode(), fd=2)

    def refused_call(self, status: int, text: str) -> str:
        """Return the words of the result."""
        return f"[API Error: {_error(status, text)}]"

    def window(self, resets_at_s: int, *, is_rejected: bool, kind: str) -> str:  # noqa: ARG002 - it does not say when
        """Return the words of the result."""
        return "[API Error: You exceeded your current quota, please check your plan and billing details.]"

    def result(
        self,
        text: str,
        *,
        is_error: bool,
        usage: Usage,
        before: list[int],  # noqa: ARG002 - it counts each run anew
        status: int = 0,  # noqa: ARG002 - it stands in the words only
        structured: object = None,  # noqa: ARG002 - it knows no schema
        deferred: dict[str, Any] | None = None,  # noqa: ARG002 - it cannot
        duration_s: float = 0.0,
    ) -> None:
        """Say the last word, which holds no text."""
        read, cached, made = (
            int(usage[name] or 0) for name in ("input_tokens", "cached_input_tokens", "output_tokens")
        )
        stats = {
            "total_tokens": read + made,
            "input_tokens": read,
            "output_tokens": made,
            "cached": cached,
            "input": read - cached,
        }
        error = {"error": {"type": "unknown", "message": text}} if is_error else {}
        counts = {
            "duration_ms": int(duration_s * 1000),
            "tool_calls": self._tool_calls,
            "models": {self.model: dict(stats)},
        }
        self._event("result", status="error" if is_error else "success", **error, stats={**stats, **counts})

    def error_code(self, status: int) -> int:
        """Return the low byte of the status, 1 without one."""
        return status & 255 if status else 1

    def _event(self, kind: str, **facts: object) -> None:
        self.out.event({"type": kind, "timestamp": stamp(), **facts})


def _error(status: int, text: str) -> str:
    import json  # noqa: PLC0415 - loaded already; the name would shadow nothing

    return json.dumps({"error": {"code": status, "message": text}})

"""Gemini CLI as a task: how its program is started, and what its lines mean.

    new session      gemini -o stream-json --skip-trust --session-id UUID (ours)   < prompt
    after a crash    gemini -o stream-json --skip-trust -r UUID                    < what it is to be told

    init ─► session   message ─► text   tool_use ─► tool_begin   tool_result ─► tool_end   error ─► error   result ─► usage, result

Seen with gemini 0.61.0, the provider a server on loopback:

- The result holds no text: it is what the assistant said after its last tool. Usage counts the run, not the session.
- A call that the provider refuses (429, 5xx) is tried again for minutes, and stdout is silent meanwhile. stderr tells of each
  try; these lines are read as `retry`, and a run that `idle` ends in such a loop was limited.
- While it tries again it does not obey SIGTERM, for more than 30 s, and the work is done by a child of the process that was
  started: only a KILL of the whole tree ends it.
- Exit codes: 41 no way to log in, 42 an unknown session or one that is there already, 55 a folder that is not trusted;
  after an error of the provider the low byte of its HTTP status (401 gives 145).
- Sessions belong to the folder they were started in, below $GEMINI_CLI_HOME/.gemini/tmp.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from sennit.errors import SettingsError
from sennit.execute.adapters.base import AgentRun, Exit, Launch
from sennit.execute.adapters.checks import refuse_text_for_texts
from sennit.execute.adapters.lines import (
    LineReader,
    has_ended_well,
    part,
    read_object,
    text,
    usage_of,
    words_of,
)
from sennit.execute.adapters.troubles import resets_at_s, retry_after_s, status_in, trouble
from sennit.model.agent import AgentEvent, AgentUsage, RunEnd, RunOutcome
from sennit.sync.clock import wall_us

ApprovalMode = Literal["", "default", "auto_edit", "yolo", "plan"]

PASSES: Final = ("GEMINI_*", "GOOGLE_*", "NODE_EXTRA_CA_CERTS")
SECRETS: Final = ("GEMINI_API_KEY", "GOOGLE_API_KEY")

# What sennit says itself.
_OURS: Final = frozenset(
    [
        "-o",
        "--output-format",
        "-p",
        "--prompt",
        "-i",
        "--prompt-interactive",
        "-r",
        "--resume",
        "--session-id",
        "--session-file",
    ]
)
_UNAUTHORISED: Final = 41
_BAD_INPUT: Final = 42
# A call that was refused and will be repeated: "Attempt 3 failed with status 429. Retrying with backoff..."
_RETRY: Final = re.compile(rb"Attempt \d{1,4} failed(?: with status (\d{3}))?.{0,200}Retrying", re.DOTALL)
# Of one answer; more is cut at the front. The whole of it is in stdout.log.
TEXT_CHARS_MAX: Final = 4 << 20


class Gemini(msgspec.Struct, frozen=True, kw_only=True):
    """Gemini CLI, `gemini`, from the npm package @google/gemini-cli.

    It knows no tools that wait for a person without a process, and no schema for its result. Give its runs an `idle_s`: without
    it a provider that refuses all calls holds a slot for minutes.

    Attributes:
        program: the file to run, or the name that is looked for on PATH.
        model: "" is the program's own choice, which costs a call to another model first.
        approval_mode: what it may do unasked; nobody can be asked while it runs, so without leave a tool is refused.
            `auto_edit` lets it edit files, `yolo` everything: keep that to sandboxes. "" is what its settings say.
        mcp_servers: names of the MCP servers that it may use; None is all of its settings.
        folders: it may work in besides its own.
        trusts_folder: take the folder for trusted; without that, and without its settings saying so, it does not start.
        environ: set for the program.  environ_passes: let through from our own environment, besides `PASSES`.
        args: any other arguments.

    Raises:
        SettingsError: `args` holds what sennit says itself.
    """

    program: str = "gemini"
    model: str = ""
    approval_mode: ApprovalMode = ""
    mcp_servers: tuple[str, ...] | None = None
    folders: tuple[str, ...] = ()
    trusts_folder: bool = True
    environ: Mapping[str, str] = {}
    environ_passes: tuple[str, ...] = ()
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_text_for_texts(self)
        if said := sorted({arg.partition("=")[0] for arg in self.args} & _OURS):
            raise SettingsError(f"args holds {', '.join(said)}, which sennit says itself", fix="leave it out")

    @property
    def name(self) -> str:
        """Of the kind of program."""
        return "gemini"

    @property
    def passes(self) -> tuple[str, ...]:
        """Environment variables that it needs besides the usual ones."""
        return PASSES + self.environ_passes

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables among them whose values are never written down."""
        return SECRETS

    def new_session_id(self) -> str:
        """Return an id for a new session: the program takes a UUID."""
        return str(uuid.uuid4())

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start. The prompt goes in by stdin: an argument is bounded, and every user of the machine can read it.

        Raises:
            SettingsError: there is no session id.
        """
        if not run.session_id:
            raise SettingsError("a run of gemini needs a session id", fix="take one from new_session_id()")
        argv = [self.program, "-o", "stream-json", "--resume" if run.is_resume else "--session-id", run.session_id]
        if self.trusts_folder:
            argv.append("--skip-trust")
        if self.model:
            argv += ["--model", self.model]
        if self.approval_mode:
            argv += ["--approval-mode", self.approval_mode]
        if self.mcp_servers is not None:
            argv += ["--allowed-mcp-server-names", *(self.mcp_servers or ("none-at-all",))]  # a name that no server has
        if self.folders:
            argv += ["--include-directories", ",".join(self.folders)]
        prompt = run.prompt or "Go on."  # it takes no turn without one
        return Launch(argv=(*argv, *self.args), environ=dict(self.environ), stdin=prompt.encode("utf-8", "replace"))

    def reader(self, run: AgentRun) -> GeminiReader:
        """Return a reader for this run."""
        return GeminiReader(run)


class GeminiReader(LineReader):
    """Reads one run of gemini."""

    def __init__(self, run: AgentRun) -> None:
        super().__init__()
        self._session_id = run.session_id
        self._model = ""
        self._said = ""  # since the last tool
        self._last_word = ""  # that at the time of the result: what comes after it is of no account
        self._usage = AgentUsage()
        self._turns = 0
        self._is_talking = False
        self._result: dict[str, Any] | None = None
        self._error = ""
        self._refused = 0  # the status of the last call, while the program tries it again

    # ---------------------------------------------------------------- lines

    def feed_error(self, line: bytes) -> list[AgentEvent]:
        """Read one line of stderr: it alone tells of calls that are repeated."""
        self.last_words.add(line)
        found = _RETRY.search(line[:1000])
        if found is None:
            return []
        self._refused = int(found.group(1) or 503)
        return [AgentEvent(kind="retry", status=self._refused, text=f"status {self._refused}")]

    def _read(self, told: dict[str, Any]) -> list[AgentEvent]:
        match told.get("type"):
            case "init":
                self._session_id = text(told.get("session_id")) or self._session_id
                self._model = text(told.get("model"))
                return [AgentEvent(kind="session", session_id=self._session_id, model=self._model)]
            case "message" if told.get("role") == "assistant":
                return self._message(text(told.get("content")), is_more=told.get("delta") is True)
            case "tool_use":
                return self._tool(told)
            case "tool_result":
                self._refused = 0
                is_error = told.get("status") != "success"
                return [AgentEvent(kind="tool_end", call_id=text(told.get("tool_id")), is_error=is_error)]
            case "error":
                self._error = text(told.get("message"))
                return [AgentEvent(kind="error", text=self._error, is_error=told.get("severity") != "warning")]
            case "result":
                return self._end_of_turn(told)
            case _:
                return []

    def _message(self, said: str, *, is_more: bool) -> list[AgentEvent]:
        self._refused = 0
        self._turns += not (self._is_talking and is_more)
        self._said = (self._said + said)[-TEXT_CHARS_MAX:] if self._is_talking and is_more else said
        self._is_talking = True
        return [AgentEvent(kind="text", text=said)] if said else []

    def _tool(self, told: dict[str, Any]) -> list[AgentEvent]:
        self._refused = 0
        self._turns += not self._is_talking  # a message and the tools it asks for are one turn
        self._is_talking = False
        self._said = ""
        call_id, tool = text(told.get("tool_id")), text(told.get("tool_name"))
        return [AgentEvent(kind="tool_begin", call_id=call_id, tool=tool, input=told.get("parameters"))]

    def _end_of_turn(self, told: dict[str, Any]) -> list[AgentEvent]:
        self._result = told
        self._usage = usage_of(part(told, "stats"))
        is_error = told.get("status") != "success"
        words = self._last_word = text(part(told, "error").get("message")) if is_error else self._said
        return [
            AgentEvent(kind="usage", usage=self._usage),
            AgentEvent(kind="result", text=words, is_error=is_error),
        ]

    # ---------------------------------------------------------------- the end

    def end(self, exit: Exit) -> RunEnd:  # noqa: A002 - that is what it is
        """Judge the run."""
        told = self._result
        if told is None:
            return self._end_without_result(exit)
        if told.get("status") != "success":
            words = self._last_word or self._error or words_of(exit)
            return self._failed(words, _status(words))
        if not has_ended_well(exit):
            return self._ended("error", f"{words_of(exit)} after a result that was no error")
        return self._ended("success", self._last_word)

    def _end_without_result(self, exit: Exit) -> RunEnd:  # noqa: A002
        said = "\n".join(filter(None, [self._error, str(self.last_words)]))
        how = "\n".join(filter(None, [f"{words_of(exit)} without a result", said]))
        if exit.code == 0:
            return self._ended("no_result", "\n".join(filter(None, ["it ended without a result", said])))
        if exit.cause == "idle" and trouble("", self._refused) == "limited":
            return self._failed(how, self._refused)
        if exit.cause or exit.signal:
            return self._ended("error", how)
        if exit.code == _UNAUTHORISED:
            return self._ended("unauthorised", how)
        if exit.code == _BAD_INPUT:
            outcome = trouble(said)
            return self._ended(outcome if outcome in {"lost_session", "busy_session"} else _session_trouble(said), how)
        return self._failed(how, self._refused)

    def _failed(self, words: str, status: int) -> RunEnd:
        outcome = trouble(words, status)
        if outcome != "limited":
            return self._ended(outcome, words, status=status)
        reset_s = resets_at_s(words, now_s=wall_us() / 1e6)
        end = self._ended(outcome, words, status=status or 429)
        return msgspec.structs.replace(end, retry_after_s=retry_after_s(words), resets_at_s=reset_s)

    def _ended(self, outcome: RunOutcome, words: str, *, status: int = 0) -> RunEnd:
        return RunEnd(
            outcome=outcome,
            text=words,
            session_id=self._session_id,
            model=self._model,
            turns=self._turns,
            usage=self._usage,
            status=status,
        )


def _session_trouble(said: str) -> RunOutcome:
    """Return what exit 42 means, where its words are not those of other programs."""
    return "lost_session" if "Error resuming session" in said else "error"


def _status(words: str) -> int:
    """Return the HTTP status in "[API Error: {"error":{"code":401,…}}]", else one that the words speak of, else 0."""
    begin = words.find("{")
    told = read_object(words[begin : words.rfind("}") + 1].encode("utf-8", "replace")) if begin >= 0 else None
    code = part(told, "error").get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else status_in(words)

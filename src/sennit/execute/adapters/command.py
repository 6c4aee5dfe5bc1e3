"""Any program as an agent: an argv, the prompt in it or on stdin, and lines of which those that are JSON objects are events.

    Command(("aider", "--yes", "--message", "{prompt}"))
    Command(("my-agent", "--json"), needs_result=True, resume=("my-agent", "--json", "--go-on", "{session_id}"))

    {"type": "tool_begin", "tool": "edit", …}  ─► that event      {"text": "…"}   ─► text      {"session_id": "…"} ─► session
    {"result": "…", "is_error": false}         ─► result          {"error": "…"}  ─► error     {"usage": {…}}      ─► usage
    any other line                             ─► text

Success is exit 0, no error that was told without a result after it, and, where it is needed, a result.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, get_args

import msgspec

from sennit.errors import SettingsError
from sennit.execute.adapters.base import AgentRun, Exit, Launch
from sennit.execute.adapters.checks import refuse_text_for_texts
from sennit.execute.adapters.lines import (
    ARGUMENT_BYTES_MAX,
    LastWords,
    has_ended_well,
    number,
    part,
    read_object,
    text,
    usage_of,
    whole,
    words_of,
)
from sennit.model.agent import AgentEvent, AgentUsage, EventKind, RunEnd, RunOutcome

# Source: EX_TEMPFAIL of sysexits.h, "the user is invited to retry": what sennit itself exits with when it meets a limit.
TEMPORARY: Final = 75

_KINDS: Final[tuple[EventKind, ...]] = tuple(kind for kind in get_args(EventKind) if kind != "ask")
_KEYS: Final = frozenset({"type", "text", "result", "usage", "session_id", "error"})
_PLACES: Final = re.compile(r"\{(prompt|session_id|cwd|folder)\}")
# Of plain lines, for the result of a program that gives none: the last so many characters.
PLAIN_CHARS_MAX: Final = 64 << 10


class Command(msgspec.Struct, frozen=True):
    """Any program that works on a prompt and ends.

    Attributes:
        argv: what to run. `{prompt}`, `{session_id}`, `{cwd}` and `{folder}` (of the run, for its files) are replaced, also
            inside a word; nothing is ever given to a shell. Without `{prompt}` the prompt is written to stdin, then stdin
            ends. A prompt in argv is bounded (128 KiB) and every user of the machine can read it.
        resume: what to run to go on with a session after a crash; `{session_id}` is replaced. Without it an attempt after a
            crash begins anew. Where `argv` holds `{session_id}` too the id is ours, a UUID; else the program names its
            session in a line with `session_id`.
        needs_result: exit 0 without a line with a result is no success.
        label: what it is called in views and messages; "" is the name of the program.
        environ: set for the program.  environ_passes: let through from our own environment; `PREFIX_*` is all that begin so.
        environ_secrets: those among them whose values are never written down.

    Raises:
        SettingsError: argv is empty, or `resume` has no place for the session.
    """

    argv: tuple[str, ...]
    resume: tuple[str, ...] = ()
    needs_result: bool = False
    label: str = ""
    environ: Mapping[str, str] = {}
    environ_passes: tuple[str, ...] = ()
    environ_secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: object = self.argv
        if isinstance(given, str) or not self.argv or not self.argv[0]:
            raise SettingsError(
                f"argv is {self.argv!r}; it must name a program", fix='give a tuple: ("my-agent", "--yes")'
            )
        if self.resume and not any("{session_id}" in word for word in self.resume):
            raise SettingsError(
                "resume has no place for the session", fix='write "{session_id}" where the program takes the id'
            )
        refuse_text_for_texts(self)

    @property
    def name(self) -> str:
        """Of the kind of program."""
        return "command"

    @property
    def program(self) -> str:
        """The file to run, or the name that is looked for on PATH."""
        return self.argv[0]

    @property
    def passes(self) -> tuple[str, ...]:
        """Environment variables that it needs besides the usual ones."""
        return self.environ_passes

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables among them whose values are never written down."""
        return self.environ_secrets

    def new_session_id(self) -> str:
        """Return an id for a new session, "" where the program chooses it or has none."""
        is_ours = self.resume and any("{session_id}" in word for word in self.argv)
        return str(uuid.uuid4()) if is_ours else ""

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start.

        Raises:
            SettingsError: the prompt is too long for an argument, or a session is to be gone on with and `resume` is not given.
        """
        if run.is_resume and not self.resume:
            raise SettingsError(
                f"{self.program} is to go on with a session, and sennit does not know how", fix="give Command(resume=)"
            )
        words = self.resume if run.is_resume else self.argv
        # NUL ends an argument: the kernel refuses it.
        places = {"prompt": run.prompt.replace("\0", ""), "session_id": run.session_id}
        places |= {"cwd": str(run.cwd), "folder": str(run.folder)}
        argv = tuple(_PLACES.sub(lambda found: places[found.group(1)], word) for word in words)
        if any(len(word.encode("utf-8", "replace")) > ARGUMENT_BYTES_MAX for word in argv):
            raise SettingsError(
                f"the prompt is too long for an argument of {self.program}: more than {ARGUMENT_BYTES_MAX} bytes",
                fix="leave {prompt} out of argv, and it is written to stdin",
            )
        takes_stdin = not any("{prompt}" in word for word in words)
        prompt = run.prompt.encode("utf-8", "replace") if takes_stdin else None
        return Launch(argv=argv, environ=dict(self.environ), stdin=prompt)

    def reader(self, run: AgentRun) -> CommandReader:
        """Return a reader for this run."""
        return CommandReader(run, needs_result=self.needs_result, has_sessions=bool(self.resume))


class CommandReader:
    """Reads one run of any program.

    Args:
        has_sessions: a session that it names can be gone on with.
    """

    def __init__(self, run: AgentRun, *, needs_result: bool = False, has_sessions: bool = False) -> None:
        self.last_words = LastWords()
        self._needs_result = needs_result
        self._has_sessions = has_sessions
        self._session_id = run.session_id
        self._model = ""
        self._plain: list[str] = []
        self._plain_chars = 0
        self._said = ""
        self._usage = AgentUsage()
        self._turns = 0
        self._result: AgentEvent | None = None
        self._structured: Any = None
        self._error = ""
        self._limit: AgentEvent | None = None  # that was told last, with no result after it

    # ---------------------------------------------------------------- lines

    def feed(self, line: bytes) -> list[AgentEvent]:
        """Read one line of stdout."""
        told = read_object(line)
        if told is None or not (_KEYS & told.keys()):
            return self._plain_line(line)
        events = self._events(told)
        for event in events:
            self._note(event)
        return events

    def feed_error(self, line: bytes) -> list[AgentEvent]:
        """Keep a line of stderr; it is no event."""
        self.last_words.add(line)
        return []

    def to_say(self) -> bytes:
        """Return b"": nothing is written to it but the prompt."""
        return b""

    def _plain_line(self, line: bytes) -> list[AgentEvent]:
        words = line[:PLAIN_CHARS_MAX].decode("utf-8", "replace").rstrip("\r")
        self._plain.append(words)
        self._plain_chars += len(words) + 1
        while self._plain_chars > PLAIN_CHARS_MAX and len(self._plain) > 1:
            self._plain_chars -= len(self._plain.pop(0)) + 1
        return [AgentEvent(kind="text", text=words)] if words.strip() else []

    def _events(self, told: dict[str, Any]) -> list[AgentEvent]:
        """Return what an object tells: by its `type`, else by its keys, of which it may hold several."""
        kind = next((known for known in _KINDS if told.get("type") == known), None)
        events = []
        if kind == "session" or told.get("session_id"):
            events += self._typed("session", told)
        if kind == "usage" or isinstance(told.get("usage"), dict):
            events += self._typed("usage", told)
        if kind not in {None, "session", "usage"}:
            return events + self._typed(kind, told)
        if kind is None and told.get("text"):
            events += self._typed("text", told)
        if kind is None and "result" in told:
            return events + self._typed("result", told)
        if kind is None and told.get("error"):
            events += self._typed("error", told)
        return events

    def _typed(self, kind: EventKind, told: dict[str, Any]) -> list[AgentEvent]:
        match kind:
            case "session":
                session_id = text(told.get("session_id"))
                self._model = text(told.get("model")) or self._model
                if not (session_id and self._has_sessions):
                    return []
                return [AgentEvent(kind="session", session_id=session_id, model=self._model)]
            case "usage":
                usage = usage_of(part(told, "usage") or told, cost_usd=_cost(told))
                return [AgentEvent(kind="usage", usage=usage)]
            case "result":
                return self._result_of(told)
            case "error":
                words = _words(told.get("error")) or text(told.get("text")) or text(told.get("message"))
                return [AgentEvent(kind="error", text=words, is_error=True, status=whole(told.get("status")))]
            case _:
                return [
                    AgentEvent(
                        kind=kind,
                        text=text(told.get("text")),
                        call_id=text(told.get("call_id")),
                        tool=text(told.get("tool")),
                        input=told.get("input"),
                        is_error=told.get("is_error") is True,
                        status=whole(told.get("status")),
                        retry_after_s=number(told.get("retry_after_s")),
                        resets_at_s=number(told.get("resets_at_s")),
                    )
                ]

    def _result_of(self, told: dict[str, Any]) -> list[AgentEvent]:
        given = told["result"] if "result" in told else told.get("text")
        if not isinstance(given, str | None):
            self._structured = given
            given = msgspec.json.encode(given).decode()
        words = text(given) or _words(told.get("error"))
        self._turns = whole(told.get("turns"))
        is_error = told.get("is_error") is True or bool(told.get("error"))
        return [AgentEvent(kind="result", text=words, is_error=is_error, status=whole(told.get("status")))]

    def _note(self, event: AgentEvent) -> None:
        match event.kind:
            case "session":
                self._session_id = event.session_id
            case "usage":
                self._usage = event.usage or self._usage
            case "text":
                self._said = event.text
            case "error":
                self._error = event.text or "an error without words"
            case "limit":
                self._limit = event
            case "result":
                self._result, self._error = event, ""
                if not event.is_error:
                    self._limit = None

    # ---------------------------------------------------------------- the end

    def end(self, exit: Exit) -> RunEnd:  # noqa: A002 - that is what it is
        """Judge the run."""
        result, limit = self._result, self._limit
        if result is not None and not result.is_error and has_ended_well(exit):
            return self._ended("success", result.text)
        if not exit.cause and (limit is not None or exit.code == TEMPORARY or _is_limit(result)):
            return self._limited(limit or result, exit)
        if result is not None:
            words = result.text if result.is_error else f"{words_of(exit)} after a result that was no error"
            return self._ended("error", words or words_of(exit))
        if self._error:
            return self._ended("error", self._error)
        if exit.code != 0 or exit.cause:
            said = str(self.last_words) or self._text()
            return self._ended("error", "\n".join(filter(None, [words_of(exit), said])))
        if self._needs_result:
            return self._ended(
                "no_result", "\n".join(filter(None, ["it ended without a result", str(self.last_words)]))
            )
        return self._ended("success", self._text())

    def _text(self) -> str:
        return self._said or "\n".join(self._plain).strip()

    def _limited(self, told: AgentEvent | None, exit: Exit) -> RunEnd:  # noqa: A002
        end = self._ended("limited", (told.text if told else "") or self._error or words_of(exit), status=429)
        if told is None:
            return end
        return msgspec.structs.replace(
            end, status=told.status or 429, retry_after_s=told.retry_after_s, resets_at_s=told.resets_at_s
        )

    def _ended(self, outcome: RunOutcome, words: str, *, status: int = 0) -> RunEnd:
        return RunEnd(
            outcome=outcome,
            text=words,
            session_id=self._session_id,
            model=self._model,
            structured=self._structured if outcome == "success" else None,
            turns=self._turns,
            usage=self._usage,
            status=status,
        )


def _is_limit(result: AgentEvent | None) -> bool:
    return result is not None and result.is_error and result.status in {429, 529}


def _cost(told: dict[str, Any]) -> float | None:
    cost = number(part(told, "usage").get("cost_usd"))
    return number(told.get("cost_usd")) if cost is None else cost


def _words(error: object) -> str:
    """Return the words of an error: a string, or what an object calls its message."""
    return (
        text(error) or text(part(error).get("message")) or ("" if error in (None, False, True) else str(error)[:2000])
    )

"""Reads what claude writes: one JSON object a line, from `system/init` to `result`. Seen with claude 2.1.197.

    system/init ─► session      assistant ─► text, thinking, tool_begin, usage      user ─► tool_end
    system/api_retry ─► retry   rate_limit_event ─► limit                           result ─► usage, ask …, result

What looks like success and is none: `subtype: "success"` with `is_error: true` (any refusal of the provider), a call that was
deferred (`stop_reason: "tool_deferred"`), a result and then an exit code, no result at all. A process that is given a prompt
while a call is deferred writes two results: first that of the call, before or after `init`, then that of the prompt. Only
the last one ends the run, the usage is of both, and a call that is still deferred then is still asked for.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sennit.execute.adapters import claude_hook
from sennit.execute.adapters.base import AgentRun, Exit
from sennit.execute.adapters.lines import (
    LineReader,
    added,
    has_ended_well,
    number,
    part,
    parts,
    read_object,
    text,
    usage_of,
    whole,
    words_of,
)
from sennit.execute.adapters.troubles import resets_at_s, retry_after_s, told_by_stderr, trouble
from sennit.model.agent import AgentEvent, AgentUsage, RunEnd, RunOutcome, ToolAsk
from sennit.sync.clock import wall_us

# `error` of an assistant's message that stands for a refusal of the provider. Source: claude's own list of them.
_ERRORS: Final[dict[str, RunOutcome]] = {
    "authentication_failed": "unauthorised",
    "oauth_org_not_allowed": "unauthorised",
    "billing_error": "limited",
    "overloaded": "limited",
    "rate_limit": "limited",
}
# Made up by the program, for words of its own.
_SYNTHETIC: Final = "<synthetic>"
# A reset later than this many seconds since the epoch is told in milliseconds.
_SECONDS_MAX: Final = 1e11
# Of our own hook's notes; more than any turn asks for.
_ASKED_BYTES_MAX: Final = 4 << 20


class ClaudeReader(LineReader):
    """Reads one run of claude.

    Args:
        run: that is read; where its hook left notes of what it deferred.
        wants_structured: a schema was asked for.
    """

    def __init__(self, run: AgentRun, *, wants_structured: bool = False) -> None:
        super().__init__()
        self._run = run
        self._wants_structured = wants_structured
        self._session_id = run.session_id
        self._model = ""
        self._usage = AgentUsage()  # of results so far
        self._running = AgentUsage()  # of messages since the last result
        self._message: dict[str, tuple[str, AgentUsage]] = {}  # by who speaks (the agent, a subagent): the message now
        self._calls: list[str] = []  # of the agent's message now
        self._turns = 0
        self._result: dict[str, Any] | None = None
        self._error = ""
        self._asks: tuple[ToolAsk, ...] = ()
        self._goes_on = run.is_resume and bool(
            run.prompt
        )  # until `init`, when nothing deferred has been seen before it
        self._replays = False  # a deferred call has come first
        self._resets_at_s: float | None = None
        self._refused = 0  # the status of the last call, while the program tries it again

    # ---------------------------------------------------------------- lines

    def _read(self, told: dict[str, Any]) -> list[AgentEvent]:
        match told.get("type"):
            case "system":
                return self._system(told)
            case "assistant":
                return self._assistant(told)
            case "user":
                return self._user(told)
            case "rate_limit_event":
                return self._limit(part(told, "rate_limit_info"))
            case "result":
                return self._end_of_turn(told)
            case _:
                return []

    def _system(self, told: dict[str, Any]) -> list[AgentEvent]:
        match told.get("subtype"):
            case "init":
                self._goes_on = self._replays
                self._session_id = text(told.get("session_id")) or self._session_id
                self._model = text(told.get("model")) or self._model
                return [AgentEvent(kind="session", session_id=self._session_id, model=self._model)]
            case "api_retry":
                self._refused = whole(told.get("error_status"))
                delay_ms = number(told.get("retry_delay_ms"))
                return [
                    AgentEvent(
                        kind="retry",
                        text=text(told.get("error")),
                        status=self._refused,
                        retry_after_s=None if delay_ms is None else max(0.0, delay_ms / 1000),
                    )
                ]
            case _:
                return []

    def _assistant(self, told: dict[str, Any]) -> list[AgentEvent]:
        """Read a message of the model, of which each line brings one block."""
        message, speaker = part(told, "message"), text(told.get("parent_tool_use_id"))
        self._refused = 0
        events = []
        model = text(message.get("model"))
        if model == _SYNTHETIC:
            self._error = text(told.get("error")) or self._error
        elif model and not speaker:
            self._model = model
        message_id = text(message.get("id"))
        is_next = self._message.get(speaker, ("",))[0] != message_id
        if is_next and not speaker:
            self._calls.clear()
        for block in parts(message.get("content")):
            match block.get("type"):
                case "text" if told.get("error"):
                    events.append(AgentEvent(kind="error", text=text(block.get("text")), is_error=True))
                case "text":
                    events.append(AgentEvent(kind="text", text=text(block.get("text"))))
                case "thinking":
                    events.append(AgentEvent(kind="thinking", text=text(block.get("thinking"))))
                case "tool_use" | "server_tool_use" | "mcp_tool_use":
                    call_id = text(block.get("id"))
                    if not speaker:
                        self._calls.append(call_id)
                    tool, given = text(block.get("name")), block.get("input")
                    events.append(AgentEvent(kind="tool_begin", call_id=call_id, tool=tool, input=given))
        return events + self._usage_of_message(speaker, message_id, part(message, "usage"))

    def _usage_of_message(self, speaker: str, message_id: str, told: dict[str, Any]) -> list[AgentEvent]:
        """Count the usage of a message once, whatever number of lines repeats it."""
        usage = usage_of(told)
        before_id, before = self._message.get(speaker, ("", AgentUsage()))
        if before_id == message_id:
            if before == usage:
                return []
            self._running = AgentUsage(
                input_tokens=self._running.input_tokens - before.input_tokens,
                output_tokens=self._running.output_tokens - before.output_tokens,
                cached_input_tokens=self._running.cached_input_tokens - before.cached_input_tokens,
            )
        self._message[speaker] = (message_id, usage)
        if usage == AgentUsage():
            return []
        self._running = added(self._running, usage)
        return [AgentEvent(kind="usage", usage=added(self._usage, self._running))]

    def _user(self, told: dict[str, Any]) -> list[AgentEvent]:
        self._replays = self._goes_on
        return [
            AgentEvent(kind="tool_end", call_id=text(block.get("tool_use_id")), is_error=block.get("is_error") is True)
            for block in parts(part(told, "message").get("content"))
            if str(block.get("type")).endswith("tool_result")
        ]

    def _limit(self, info: dict[str, Any]) -> list[AgentEvent]:
        """Read how the quota of a subscription stands: `status` is `allowed`, `allowed_warning` or `rejected`."""
        at_s, status = number(info.get("resetsAt")), text(info.get("status"))
        if at_s is not None and at_s > _SECONDS_MAX:
            at_s /= 1000
        is_rejected = status == "rejected"
        if is_rejected:
            self._resets_at_s = at_s
        return [
            AgentEvent(
                kind="limit",
                text=" ".join(filter(None, [text(info.get("rateLimitType")), status])),
                is_error=is_rejected,
                status=429 if is_rejected else 0,
                resets_at_s=at_s,
            )
        ]

    def _end_of_turn(self, told: dict[str, Any]) -> list[AgentEvent]:
        self._result = told
        self._session_id = text(told.get("session_id")) or self._session_id
        self._turns += whole(told.get("num_turns"))
        # The tokens are those of the turn, the cost that of the process.
        self._usage = added(self._usage, usage_of(part(told, "usage")))
        cost = number(told.get("total_cost_usd"))
        if cost is not None:
            self._usage = msgspec.structs.replace(self._usage, cost_usd=cost)
        self._running, self._message = AgentUsage(), {}
        events = [AgentEvent(kind="usage", usage=self._usage)]
        is_error = _is_error(told)
        asks = () if is_error else self._asked(told)
        self._asks = asks or self._asks
        events += [AgentEvent(kind="ask", call_id=ask.call_id, tool=ask.tool, input=ask.input) for ask in asks]
        if self._goes_on and not is_error:  # the turn of the prompt comes next
            self._result, self._goes_on, self._replays = None, False, False
            return events
        return [*events, AgentEvent(kind="result", text=_words(told), is_error=is_error)]

    # ---------------------------------------------------------------- what it asks leave for

    def _asked(self, told: dict[str, Any]) -> tuple[ToolAsk, ...]:
        """Return what was deferred: the call that is named, and those before it in the turn, which are not."""
        last = part(told, "deferred_tool_use")
        if told.get("stop_reason") != "tool_deferred" or not last:
            return ()
        last_id, tool, given = text(last.get("id")), text(last.get("name")), last.get("input")
        if self._calls and self._calls[-1] != last_id:
            # A call after it had a result: its own would be lost to the model.
            last_id = f"{last_id}#{claude_hook.fingerprint(tool, given)}"
        asks = [
            ToolAsk(
                call_id=f"{text(note.get('id'))}#{text(note.get('print'))}",
                tool=text(note.get("tool")),
                input=note.get("input"),
            )
            for note in self._notes()
            if text(note.get("id")) in self._calls and text(note.get("id")) != text(last.get("id"))
        ]
        return (*asks, ToolAsk(call_id=last_id, tool=tool, input=given))

    def _notes(self) -> list[dict[str, Any]]:
        try:
            with (self._run.folder / claude_hook.ASKED).open("rb") as file:
                lines = file.read(_ASKED_BYTES_MAX).splitlines()
        except OSError:  # another's hook has deferred, not ours
            return []
        return [note for line in lines if (note := read_object(line)) is not None]

    # ---------------------------------------------------------------- the end

    def end(self, exit: Exit) -> RunEnd:  # noqa: A002 - that is what it is
        """Judge the run."""
        told = self._result
        if told is None:
            return self._end_without_result(exit)
        if _is_error(told):
            return self._failed(_words(told), whole(told.get("api_error_status")), text(told.get("subtype")))
        if not has_ended_well(exit):
            return self._ended("error", f"{words_of(exit)} after a result that was no error")
        if self._asks:
            return self._ended("asks", _words(told))
        if told.get("stop_reason") == "tool_deferred":
            return self._ended("error", "it deferred a call and does not say which")
        structured = told.get("structured_output")
        if self._wants_structured and structured is None:
            return self._ended("error", f"the result does not follow the schema that was asked for: {_words(told)}")
        return self._ended("success", _words(told), structured)

    def _end_without_result(self, exit: Exit) -> RunEnd:  # noqa: A002
        said = str(self.last_words)
        if exit.code == 0:
            return self._ended("no_result", "\n".join(filter(None, ["it ended without a result", said])))
        how = "\n".join(filter(None, [f"{words_of(exit)} without a result", said]))
        if exit.cause == "idle" and trouble("", self._refused) == "limited":
            return self._failed(how, self._refused, "")
        if exit.cause or exit.code is None:
            return self._ended("error", how)
        return self._ended(told_by_stderr(said), how)

    def _failed(self, words: str, status: int, subtype: str) -> RunEnd:
        outcome: RunOutcome = "error"
        if not subtype.startswith("error_max_"):  # bounds that we set
            outcome = trouble(words, status)
            if outcome == "error":
                outcome = _ERRORS.get(self._error, outcome)
        end = self._ended(outcome, words, status=status)
        if outcome != "limited":
            return end
        reset_s = self._resets_at_s if self._resets_at_s is not None else resets_at_s(words, now_s=wall_us() / 1e6)
        return self._ended(outcome, words, status=status, retry_after_s=retry_after_s(words), resets_at_s=reset_s)

    def _ended(
        self,
        outcome: RunOutcome,
        words: str,
        structured: Any = None,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
        resets_at_s: float | None = None,
    ) -> RunEnd:
        return RunEnd(
            outcome=outcome,
            text=words,
            session_id=self._session_id,
            model=self._model,
            structured=structured,
            turns=self._turns,
            usage=added(self._usage, self._running),
            status=status,
            retry_after_s=retry_after_s,
            resets_at_s=resets_at_s,
            asks=self._asks if outcome == "asks" else (),
        )


def _is_error(told: dict[str, Any]) -> bool:
    return told.get("is_error") is not False or told.get("subtype") != "success"


def _words(told: dict[str, Any]) -> str:
    """Return the result, or the errors."""
    errors = told.get("errors")
    said = [text(error) for error in errors] if isinstance(errors, list) else []
    return text(told.get("result")) or "; ".join(filter(None, said)) or text(told.get("subtype"))

"""Reads what codex writes: one JSON object a line, from `thread.started` to `turn.completed`. Seen with codex 0.169.0.

    thread.started ─► session     item.… agent_message ─► text, reasoning ─► thinking, any tool ─► tool_begin, tool_end
    error "Reconnecting…" ─► retry   any other ─► error     turn.completed ─► usage, result     turn.failed ─► result

A failure is told in prose only: `troubles` reads it, and with it the end of a used-up quota ("try again at 2:52 AM", local
time). The usage of a turn is the sum of its whole thread, of earlier processes too; it is made that of this run by what
`AgentRun.usage` says of before. Numbers of items (`item_3`) begin anew in every process.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sennit.execute.adapters.base import AgentRun, Exit
from sennit.execute.adapters.lines import LineReader, has_ended_well, part, text, usage_of, words_of
from sennit.execute.adapters.troubles import resets_at_s, retry_after_s, status_in, told_by_stderr, trouble
from sennit.model.agent import AgentEvent, AgentUsage, RunEnd, RunOutcome
from sennit.sync.clock import wall_us

# Items that are no use of a tool. Source: the item types of `codex exec --json` in its SDK.
_SAID: Final = frozenset({"agent_message", "reasoning", "error", "todo_list"})
# What is told of a tool's use, besides what it was used on.
_OUTCOMES: Final = frozenset({"aggregated_output", "error", "exit_code", "id", "result", "status", "type"})
_RETRIES: Final = "reconnecting"


class CodexReader(LineReader):
    """Reads one run of codex.

    Args:
        run: that is read.
        wants_structured: a schema was asked for.
    """

    def __init__(self, run: AgentRun, *, wants_structured: bool = False) -> None:
        super().__init__()
        self._wants_structured = wants_structured
        self._session_id = run.session_id
        self._before = run.usage if run.is_resume else AgentUsage()
        self._usage = AgentUsage()
        self._turns = 0
        self._text = ""  # the last message
        self._open: set[str] = set()  # items of tools that are in use
        self._completed = False
        self._failure: str | None = None
        self._error = ""
        self._refused = 0  # the status of the last call, while the program tries it again

    # ---------------------------------------------------------------- lines

    def _read(self, told: dict[str, Any]) -> list[AgentEvent]:
        match told.get("type"):
            case "thread.started":
                self._session_id = text(told.get("thread_id")) or self._session_id
                return [AgentEvent(kind="session", session_id=self._session_id)]
            case "turn.started":
                self._turns += 1
                self._completed, self._failure = False, None
                return []
            case "item.started" | "item.updated" | "item.completed" as kind:
                self._refused = 0
                return self._item(part(told, "item"), is_over=kind == "item.completed")
            case "turn.completed":
                self._completed = True
                self._usage = self._of_this_run(usage_of(part(told, "usage")))
                return [AgentEvent(kind="usage", usage=self._usage), AgentEvent(kind="result", text=self._text)]
            case "turn.failed":
                self._failure = text(part(told, "error").get("message")) or self._error or "the turn failed"
                return [AgentEvent(kind="result", text=self._failure, is_error=True)]
            case "error":
                return self._troubled(text(told.get("message")))
            case _:
                return []

    def _item(self, item: dict[str, Any], *, is_over: bool) -> list[AgentEvent]:
        kind, call_id = text(item.get("type")), text(item.get("id"))
        if kind not in _SAID:
            return self._tool(item, kind, call_id, is_over=is_over)
        if not is_over:
            return []
        match kind:
            case "agent_message":
                self._text = text(item.get("text"))
                return [AgentEvent(kind="text", text=self._text)]
            case "reasoning":
                return [AgentEvent(kind="thinking", text=text(item.get("text")))]
            case "error":  # a warning: the turn goes on
                return [AgentEvent(kind="error", text=text(item.get("message")))]
            case _:
                return []

    def _tool(self, item: dict[str, Any], kind: str, call_id: str, *, is_over: bool) -> list[AgentEvent]:
        """Return its beginning once, even where only its end is told."""
        events = []
        if call_id not in self._open:
            self._open.add(call_id)
            tool = kind
            if kind == "mcp_tool_call":
                tool = f"mcp__{text(item.get('server'))}__{text(item.get('tool'))}"
            given = {name: value for name, value in item.items() if name not in _OUTCOMES}
            events.append(AgentEvent(kind="tool_begin", call_id=call_id, tool=tool, input=given))
        if is_over:
            self._open.discard(call_id)
            is_error = item.get("status") in {"failed", "declined"} or bool(item.get("error"))
            events.append(AgentEvent(kind="tool_end", call_id=call_id, is_error=is_error))
        return events

    def _troubled(self, words: str) -> list[AgentEvent]:
        status = status_in(words)
        if words.lower().startswith(_RETRIES):
            self._refused = status
            return [AgentEvent(kind="retry", text=words, status=status, retry_after_s=retry_after_s(words))]
        self._error = words
        return [AgentEvent(kind="error", text=words, is_error=True, status=status)]

    def _of_this_run(self, total: AgentUsage) -> AgentUsage:
        before = self._before
        return AgentUsage(
            input_tokens=max(0, total.input_tokens - before.input_tokens),
            output_tokens=max(0, total.output_tokens - before.output_tokens),
            cached_input_tokens=max(0, total.cached_input_tokens - before.cached_input_tokens),
        )

    # ---------------------------------------------------------------- the end

    def end(self, exit: Exit) -> RunEnd:  # noqa: A002 - that is what it is
        """Judge the run."""
        if self._failure is not None:
            return self._failed(self._failure)
        if not self._completed:
            return self._end_without_result(exit)
        if not has_ended_well(exit):
            return self._ended("error", f"{words_of(exit)} after a turn that was complete")
        if not self._wants_structured:
            return self._ended("success", self._text)
        try:
            structured = msgspec.json.decode(self._text)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return self._ended("error", f"the result does not follow the schema that was asked for: {self._text}")
        return self._ended("success", self._text, structured=structured)

    def _end_without_result(self, exit: Exit) -> RunEnd:  # noqa: A002
        last_words = str(self.last_words)
        said = "\n".join(filter(None, [self._error, last_words]))
        if exit.code == 0:
            return self._ended("no_result", "\n".join(filter(None, ["it ended without a result", said])))
        how = "\n".join(filter(None, [f"{words_of(exit)} without a result", said]))
        if exit.cause == "idle" and trouble("", self._refused) == "limited":
            return self._ended("limited", how, status=self._refused)
        if exit.cause or exit.code is None:
            return self._ended("error", how)
        return self._failed(how, self._error) if self._error else self._ended(told_by_stderr(last_words), how)

    def _failed(self, words: str, meaning: str | None = None) -> RunEnd:
        """Return the end that the words of an error mean; `meaning` are those to go by, where they are not all."""
        meaning = words if meaning is None else meaning
        status = status_in(meaning)
        outcome = trouble(meaning, status)
        if outcome != "limited":
            return self._ended(outcome, words, status=status)
        return self._ended(
            outcome,
            words,
            status=status,
            retry_after_s=retry_after_s(meaning),
            resets_at_s=resets_at_s(meaning, now_s=wall_us() / 1e6),
        )

    def _ended(
        self,
        outcome: RunOutcome,
        words: str,
        *,
        structured: Any = None,
        status: int = 0,
        retry_after_s: float | None = None,
        resets_at_s: float | None = None,
    ) -> RunEnd:
        return RunEnd(
            outcome=outcome,
            text=words,
            session_id=self._session_id,
            structured=structured,
            turns=self._turns,
            usage=self._usage,
            status=status,
            retry_after_s=retry_after_s,
            resets_at_s=resets_at_s,
        )

"""One conversation with an ACP agent: JSON-RPC, a message a line, in both directions.

    _conversation  a generator: yields what we request, gets what is answered, and so reads like the protocol's own story
    _request       what the agent requests of us: permission (`acp_leave`), files (`acp_files`)
    _update        what it tells meanwhile ─► events

Nothing is done before it is asked for: files are touched in `to_say`, which nobody calls who only reads what an agent has
written before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from sennit._version import __version__
from sennit.execute.adapters.acp_files import FileDesk, FileRefused
from sennit.execute.adapters.acp_leave import Leave
from sennit.execute.adapters.acp_values import (
    Refusal,
    cut_request,
    is_id,
    present,
    storable,
    text_of,
    turn_usage,
    way_back,
)
from sennit.execute.adapters.base import AgentRun, Exit
from sennit.execute.adapters.lines import LineReader, has_ended_well, number, part, parts, text, words_of
from sennit.execute.adapters.troubles import resets_at_s, retry_after_s, status_in, trouble
from sennit.model.agent import AgentEvent, AgentUsage, EventKind, RunEnd, RunOutcome
from sennit.sync.clock import wall_us

__all__ = ["PROTOCOL_VERSION", "AcpReader"]

PROTOCOL_VERSION: Final = 1
TEXT_CHARS_MAX: Final = 1 << 20  # of the last message; what is longer is cut
CALLS_MAX: Final = 200  # that are known to be open; each with what it was told to be, up to a line
FILE_REQUESTS_MAX: Final = 64  # that wait for `to_say`

# Source: JSON-RPC 2.0, section 5.1, and the protocol's own two, schema 1.19, "ErrorCode".
_NO_METHOD, _WRONG, _REFUSED, _NO_LOGIN, _NOT_THERE = -32601, -32602, -32603, -32000, -32002

# Agents that take any refused read for a failure and so could create no file; an editor shows them an empty one.
# Seen with gemini 0.61.0: its protocol library rejects with a plain object, in which it looks for the text of an Error.
_EMPTY_WHEN_MISSING: Final = frozenset({"gemini-cli"})

# Agents that answer session/load before they have told the history. They are asked to pong until nothing comes in between.
# Seen with gemini 0.61.0.
_LATE_HISTORY: Final = frozenset({"gemini-cli"})
_PING: Final = "_sennit/ping"
PINGS_MAX: Final = 100

_GO_ON: Final = "Go on with what you were doing."


Talk = Generator[tuple[str, dict[str, Any]], dict[str, Any], None]


class AcpReader(LineReader):
    """Talks with one process and reads it. See `Acp` for the options."""

    def __init__(
        self,
        run: AgentRun,
        *,
        approve: str = "ask",
        files: str = "write",
        mode: str = "",
        auth_method: str = "",
        mcp_servers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self._run = run
        self._files = files
        self._mode = mode
        self._auth_method = auth_method
        self._mcp_servers = mcp_servers
        self._leave = Leave(approve, run.decisions)
        self._desk = FileDesk(run.cwd)
        self._out: list[bytes] = []
        self._todo: deque[Callable[[], None]] = deque(maxlen=FILE_REQUESTS_MAX)
        self._events: list[AgentEvent] = []
        self._session_id = run.session_id
        self._model = ""
        self._message = self._message_id = ""
        self._calls: dict[str, dict[str, Any]] = {}  # open ones, as told so far
        self._usage = AgentUsage()
        self._cost_usd = self._cost_before_usd = run.usage.cost_usd if run.is_resume else 0.0
        self._logins = self._agent = ""
        self._prompted = self._is_loading = False
        self._updates = 0
        self._end: RunEnd | None = None
        self._next_id = 0
        self._talk = self._conversation()
        self._say(next(self._talk))

    # ---------------------------------------------------------------- what we say

    def _conversation(self) -> Talk:
        """Hold the conversation; what an error of the agent means is found where it is thrown in."""
        told = yield "initialize", self._hello()
        version = told.get("protocolVersion")
        if version != PROTOCOL_VERSION:
            return self._finish(
                "error", f"it speaks version {version} of the protocol, and sennit speaks {PROTOCOL_VERSION}"
            )
        self._logins = ", ".join(filter(None, (text(method.get("id")) for method in parts(told.get("authMethods")))))
        self._agent = text(part(told, "agentInfo").get("name"))
        self._desk.is_empty_when_missing = self._agent in _EMPTY_WHEN_MISSING
        if self._auth_method:
            yield "authenticate", {"methodId": self._auth_method}
        where = {"cwd": str(self._run.cwd.absolute()), "mcpServers": list(self._mcp_servers)}
        if self._run.is_resume:
            method = way_back(part(told, "agentCapabilities"))
            if not method:
                return self._finish("lost_session", "this agent cannot go on with a session: it offers no session/load")
            self._is_loading = True
            session = yield method, {**where, "sessionId": self._run.session_id}
            self._is_loading = False
            if self._agent in _LATE_HISTORY:
                yield from self._history_over()
        else:
            session = yield "session/new", where
            self._session_id = text(session.get("sessionId"))
            if not self._session_id:
                return self._finish("error", "it has opened a session without an id")
        self._model = text(part(session, "models").get("currentModelId"))
        self._note("session", session_id=self._session_id, model=self._model)
        if self._mode:
            yield "session/set_mode", {"sessionId": self._session_id, "modeId": self._mode}
        self._prompted = True
        self._cost_before_usd = self._cost_usd
        prompt = [{"type": "text", "text": self._prompt()}]
        told = yield "session/prompt", {"sessionId": self._session_id, "prompt": prompt}
        return self._stopped(told)

    def _history_over(self) -> Talk:
        for _ in range(PINGS_MAX):
            seen = self._updates
            with suppress(Refusal):  # it knows no such method, and says so in its turn
                yield _PING, {}
            if seen == self._updates:
                return

    def _hello(self) -> dict[str, Any]:
        offers = {"readTextFile": self._files != "none", "writeTextFile": self._files == "write"}
        return {
            "protocolVersion": PROTOCOL_VERSION,
            "clientCapabilities": {"fs": offers, "terminal": False},
            "clientInfo": {"name": "sennit", "title": "Sennit", "version": __version__},
        }

    def _prompt(self) -> str:
        """Return what it is told; an empty prompt is a run in which only leave was given."""
        return text(self._run.prompt) or self._leave.words() or _GO_ON

    def _say(self, request: tuple[str, dict[str, Any]]) -> None:
        method, params = request
        self._send({"id": self._next_id, "method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        self._out.append(msgspec.json.encode({"jsonrpc": "2.0", **message}) + b"\n")

    def _answer(self, request_id: int | str, result: Any) -> None:
        self._send({"id": request_id, "result": result})

    def _deny(self, request_id: int | str, code: int, words: str) -> None:
        self._send({"id": request_id, "error": {"code": code, "message": words}})

    def to_say(self) -> bytes:
        """Return what is to be written now; reads and writes the files that were asked for."""
        while self._todo:
            self._todo.popleft()()
        said, self._out = b"".join(self._out), []
        return said

    # ---------------------------------------------------------------- what it says

    def feed(self, line: bytes) -> list[AgentEvent]:
        """Read one line of stdout."""
        if (request_id := cut_request(line)) is not None:
            self._deny(request_id, _WRONG, "this message is longer than 1 MiB")
            return []
        return super().feed(line)

    def _read(self, told: dict[str, Any]) -> list[AgentEvent]:
        method, message_id = told.get("method"), told.get("id")
        params = part(told, "params")
        if isinstance(method, str) and is_id(message_id):
            self._request(message_id, method, params)
        elif method == "session/update" and params.get("sessionId") == self._session_id:
            self._update(part(params, "update"))
        elif method is None and is_id(message_id) and message_id == self._next_id:
            self._answered(told)
        events, self._events = self._events, []
        return events

    def _answered(self, told: dict[str, Any]) -> None:
        """Go on with the conversation."""
        self._next_id += 1
        try:
            if "error" in told and told["error"] is not None:
                request = self._talk.throw(Refusal(part(told, "error")))
            else:
                request = self._talk.send(part(told, "result"))
        except StopIteration:
            return
        except Refusal as refusal:
            self._refused(refusal)
        else:
            self._say(request)

    def _note(self, kind: EventKind, **facts: Any) -> None:
        self._events.append(AgentEvent(kind=kind, **facts))

    # ---------------------------------------------------------------- requests of the agent

    def _request(self, request_id: int | str, method: str, params: dict[str, Any]) -> None:
        offered = {"fs/read_text_file": self._files != "none", "fs/write_text_file": self._files == "write"}
        if method == "session/request_permission" and self._prompted and params.get("sessionId") == self._session_id:
            self._permission(request_id, params)
        elif offered.get(method) and params.get("sessionId") == self._session_id:
            self._todo.append(lambda: self._file(request_id, method, params))
        elif method == "session/request_permission" or offered.get(method):
            self._deny(request_id, _WRONG, "this session is not under way")
        else:
            self._deny(request_id, _NO_METHOD, f"{text(method)[:100]} is not offered")

    def _permission(self, request_id: int | str, params: dict[str, Any]) -> None:
        call = part(params, "toolCall")
        call = {**self._calls.get(text(call.get("toolCallId")), {}), **present(call)}
        answer = self._leave.asked(call, parts(params.get("options")))
        if answer.is_allowed:  # some agents tell of the call nowhere else
            self._begin(text(call.get("toolCallId")), call)
        if answer.ask is not None:
            self._note("ask", call_id=answer.ask.call_id, tool=answer.ask.tool, input=answer.ask.input)
        if answer.cancels:
            self._send({"method": "session/cancel", "params": {"sessionId": self._session_id}})
        outcome = {"outcome": "selected", "optionId": answer.option} if answer.option else {"outcome": "cancelled"}
        self._answer(request_id, {"outcome": outcome})

    def _file(self, request_id: int | str, method: str, params: dict[str, Any]) -> None:
        """Read or write a file for the agent."""
        try:
            result = self._desk.answer(method, params)
        except FileRefused as refused:
            self._deny(request_id, _NOT_THERE if refused.is_missing else _REFUSED, refused.words)
        else:
            self._answer(request_id, result)

    # ---------------------------------------------------------------- updates

    def _update(self, told: dict[str, Any]) -> None:
        """Read what it tells; before the prompt this is the history of a loaded session, and no news."""
        self._updates += 1
        kind = told.get("sessionUpdate")
        if kind == "usage_update":
            return self._cost(part(told, "cost"))
        if not self._prompted or self._end is not None:
            return None
        match kind:
            case "agent_message_chunk":
                self._said(text_of(told), text(told.get("messageId")))
            case "user_message_chunk":  # history, or an echo: what it said before is not the answer
                self._message = self._message_id = ""
            case "agent_thought_chunk":
                self._note("thinking", text=text_of(told))
            case "plan":
                entries = [
                    f"{text(e.get('status')) or 'pending'}: {text(e.get('content'))}"
                    for e in parts(told.get("entries"))
                ]
                self._note("thinking", text="\n".join(entries))
            case "tool_call" | "tool_call_update":
                self._tool(told)
        return None

    def _said(self, words: str, message_id: str) -> None:
        if message_id != self._message_id:
            self._message, self._message_id = "", message_id
        self._message += words[: TEXT_CHARS_MAX - len(self._message)]
        self._note("text", text=words)

    def _tool(self, told: dict[str, Any]) -> None:
        """Follow one call from its beginning to its end."""
        call_id, status = text(told.get("toolCallId")), told.get("status")
        if call_id not in self._calls:
            if told.get("sessionUpdate") == "tool_call_update" and status in {"completed", "failed"}:
                return  # it has ended before, or was never begun
            self._begin(call_id, told)
        self._calls[call_id] |= present(told)
        if status in {"completed", "failed"}:
            del self._calls[call_id]
            self._note("tool_end", call_id=call_id, is_error=status == "failed")

    def _begin(self, call_id: str, told: dict[str, Any]) -> None:
        if call_id in self._calls:
            return
        self._message_id, self._message = "", ""  # what is said after it is another message
        while len(self._calls) >= CALLS_MAX:
            del self._calls[next(iter(self._calls))]
        self._calls[call_id] = {}
        tool = text(told.get("title")) or text(told.get("kind"))
        self._note("tool_begin", call_id=call_id, tool=tool, input=storable(told.get("rawInput")))

    def _cost(self, told: dict[str, Any]) -> None:
        """Note what the session has cost so far; what it had cost before this run is known if it was told before the prompt."""
        amount = number(told.get("amount"))
        if amount is None or told.get("currency") != "USD":
            return
        self._cost_usd = amount
        if self._prompted and self._cost_before_usd is not None:
            cost_usd = max(0.0, amount - self._cost_before_usd)
            self._usage = msgspec.structs.replace(self._usage, cost_usd=cost_usd)
            self._note("usage", usage=self._usage)

    # ---------------------------------------------------------------- the end

    def _stopped(self, told: dict[str, Any]) -> None:
        """The turn is over."""
        usage = turn_usage(told, self._usage.cost_usd)
        if usage is not None:
            self._usage = usage
            self._note("usage", usage=self._usage)
        reason = text(told.get("stopReason"))
        if self._leave.asks:
            return self._finish("asks", self._message)
        if reason == "end_turn":
            return self._finish("success", self._message)
        why = self._leave.trouble or f"it stopped: {reason or 'it does not say why'}"
        return self._finish("error", ". ".join(filter(None, [why, self._message])))

    def _refused(self, refusal: Refusal) -> None:
        """One of our requests was answered with an error, and there is no way on."""
        status = status_in(refusal.words)
        outcome = trouble(refusal.words, status)
        words = refusal.words
        if refusal.code == _NO_LOGIN and outcome in {"error", "unauthorised"}:
            outcome = "unauthorised"
            words += f"; it can be logged in with auth_method= {self._logins}" if self._logins else ""
        elif self._is_loading and outcome == "error":  # whatever the reason, a new session is the way on
            outcome = "lost_session"
        if self._leave.asks:  # some end a cancelled turn so
            return self._finish("asks", self._message)
        return self._finish(outcome, words, status=status)

    def _finish(self, outcome: RunOutcome, words: str, *, status: int = 0) -> None:
        is_limited = outcome == "limited"
        self._end = RunEnd(
            outcome=outcome,
            text=words,
            session_id=self._session_id,
            model=self._model,
            turns=int(self._prompted),
            usage=self._usage,
            status=status,
            retry_after_s=retry_after_s(words) if is_limited else None,
            resets_at_s=resets_at_s(words, now_s=wall_us() / 1e6) if is_limited else None,
            asks=self._leave.asks if outcome == "asks" else (),
        )
        self._note("result", text=words, is_error=outcome not in {"success", "asks"})

    def end(self, exit: Exit) -> RunEnd:  # noqa: A002 - that is what it is
        """Judge the run."""
        if self._end is None and self._leave.asks:  # it did not end the turn; what it wanted leave for is known
            self._finish("asks", self._message)
        if self._end is None:
            said = str(self.last_words)
            how = "\n".join(filter(None, [f"{words_of(exit)} before the end of its turn", said]))
            outcome: RunOutcome = "error" if exit.cause else "no_result" if exit.code == 0 else trouble(said)
            self._finish(outcome, how)
        assert self._end is not None  # noqa: S101 - one of the branches above has made it
        if self._end.outcome == "success" and not has_ended_well(exit):
            words = f"{words_of(exit)} after a turn that was no error"
            return msgspec.structs.replace(self._end, outcome="error", text=words)
        return self._end

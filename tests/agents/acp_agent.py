"""An ACP agent made with the official package, whose turns follow a script; and the nursery that forks one per run.

    ACP_SCRIPT='[["say", "hello"], ["ask", "c1", "execute", "Delete it", {"command": "rm x"}], ["stop", "end_turn"]]'

Importing the package takes a second of a core, so it is imported once. Sessions are files in ACP_SESSIONS.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import acp
from acp import schema

from sennit.execute.adapters.acp import Acp
from sennit.execute.adapters.base import AgentRun, Exit
from sennit.model.agent import AgentEvent, RunEnd
from tests.crash.nursery import ROOT, Nursery, nurse

OPTIONS = [
    schema.PermissionOption(option_id="always", name="Always", kind="allow_always"),
    schema.PermissionOption(option_id="once", name="Once", kind="allow_once"),
    schema.PermissionOption(option_id="no", name="No", kind="reject_once"),
]


class Scripted:
    """The agent: does what the script says in each turn."""

    def __init__(self) -> None:
        self._script = json.loads(os.environ.get("ACP_SCRIPT", "[]"))
        self._sessions = Path(os.environ["ACP_SESSIONS"])
        self._loads = "ACP_NO_LOAD" not in os.environ
        self._login = os.environ.get("ACP_LOGIN", "")
        self._cancelled = asyncio.Event()

    def on_connect(self, client: Any) -> None:
        self._client = client

    async def initialize(self, protocol_version: int, **_: Any) -> schema.InitializeResponse:
        login = schema.AuthMethodAgent(id=self._login, name="Log in")
        return schema.InitializeResponse(
            protocol_version=int(os.environ.get("ACP_VERSION", protocol_version)),
            agent_capabilities=schema.AgentCapabilities(load_session=self._loads),
            auth_methods=[login] if self._login else [],
        )

    async def authenticate(self, method_id: str, **_: Any) -> schema.AuthenticateResponse:
        if method_id == self._login:
            self._login = ""
        return schema.AuthenticateResponse()

    async def new_session(self, cwd: str, **_: Any) -> schema.NewSessionResponse:
        if self._login:
            raise acp.RequestError.auth_required()
        session_id = uuid.uuid4().hex
        (self._sessions / session_id).write_text(json.dumps([cwd]))
        return schema.NewSessionResponse(session_id=session_id)

    async def load_session(self, cwd: str, session_id: str, **_: Any) -> schema.LoadSessionResponse:
        file = self._sessions / session_id
        if not file.exists():
            raise acp.RequestError.resource_not_found(session_id)
        for line in json.loads(file.read_text()):
            await self._client.session_update(session_id, acp.update_agent_message_text(line))
        return schema.LoadSessionResponse()

    async def set_session_mode(self, mode_id: str, session_id: str, **_: Any) -> schema.SetSessionModeResponse:
        self._note(session_id, f"mode {mode_id}")
        return schema.SetSessionModeResponse()

    async def cancel(self, session_id: str, **_: Any) -> None:
        self._cancelled.set()

    async def prompt(self, prompt: list[Any], session_id: str, **_: Any) -> schema.PromptResponse:
        self._note(session_id, prompt[0].text)
        for act, *args in self._script:
            if self._cancelled.is_set():
                return schema.PromptResponse(stop_reason="cancelled")
            if act == "stop":
                usage = schema.Usage(input_tokens=10, output_tokens=5, cached_read_tokens=2, total_tokens=17)
                return schema.PromptResponse(stop_reason=args[0], usage=usage)
            await getattr(self, f"_{act}")(session_id, *args)
        return schema.PromptResponse(stop_reason="cancelled" if self._cancelled.is_set() else "end_turn")

    def _note(self, session_id: str, line: str) -> None:
        file = self._sessions / session_id
        file.write_text(json.dumps([*json.loads(file.read_text()), line]))

    # ------------------------------------------------------------ acts

    async def _say(self, session_id: str, text: str) -> None:
        await self._client.session_update(session_id, acp.update_agent_message_text(text))

    async def _think(self, session_id: str, text: str) -> None:
        await self._client.session_update(session_id, acp.update_agent_thought_text(text))

    async def _plan(self, session_id: str, *entries: str) -> None:
        plan = acp.update_plan([acp.plan_entry(entry) for entry in entries])
        await self._client.session_update(session_id, plan)

    async def _tool(self, session_id: str, call_id: str, *call: Any) -> None:
        title, kind, given, status = call
        start = acp.start_tool_call(call_id, title, kind=kind, status="in_progress", raw_input=given)
        await self._client.session_update(session_id, start)
        await self._client.session_update(session_id, acp.update_tool_call(call_id, status=status))

    async def _ask(self, session_id: str, call_id: str, kind: Any, title: str, given: Any) -> None:
        """Run a tool with leave: what a run of it would leave behind is a line in the session."""
        start = acp.start_tool_call(call_id, title, kind=kind, status="pending", raw_input=given)
        await self._client.session_update(session_id, start)
        call = schema.ToolCallUpdate(tool_call_id=call_id)
        answer = (await self._client.request_permission(session_id, call, OPTIONS)).outcome
        said = answer.option_id if answer.outcome == "selected" else "cancelled"
        self._note(session_id, f"{title}: {said}")
        if answer.outcome != "selected":
            await self._cancelled.wait()
        await self._say(session_id, f"{title}: {said}")

    async def _cost(self, session_id: str, amount: float) -> None:
        cost = schema.Cost(amount=amount, currency="USD")
        update = schema.UsageUpdate(session_update="usage_update", used=9, size=100, cost=cost)
        await self._client.session_update(session_id, update)

    async def _read(self, session_id: str, path: str, line: int | None = None, limit: int | None = None) -> None:
        await self._try(session_id, self._client.read_text_file(session_id, path, line=line, limit=limit))

    async def _write(self, session_id: str, path: str, content: str) -> None:
        await self._try(session_id, self._client.write_text_file(session_id, path, content))

    async def _terminal(self, session_id: str, command: str) -> None:
        await self._try(session_id, self._client.create_terminal(session_id, command))

    async def _try(self, session_id: str, call: Any) -> None:
        try:
            answer = await call
        except acp.RequestError as error:
            await self._say(session_id, f"[{error.code} {error}]")
        else:
            await self._say(session_id, f"[{getattr(answer, 'content', 'done')}]")

    async def _fail(self, _session_id: str, code: int, message: str) -> None:
        raise acp.RequestError(code, message)

    async def _die(self, _session_id: str, code: int) -> None:
        os._exit(code)


def run() -> None:
    """Be an agent on stdin and stdout."""
    asyncio.run(acp.run_agent(Scripted()))  # type: ignore[arg-type]  # without what it does not offer


# ---------------------------------------------------------------- the side of the test


class AgentNursery(Nursery):
    """Forks agents that have imported the package."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-m", "tests.agents.acp_agent", str(theirs.fileno())]
            self._process = subprocess.Popen(argv, cwd=ROOT, pass_fds=[theirs.fileno()])

    def talk(self, adapter: Acp, run: AgentRun, **environ: str) -> tuple[RunEnd, list[AgentEvent]]:
        """Run an agent to its end, as `run_agent` does: say what is to be said, and close stdin after the result."""
        stdin, our_end = os.pipe()
        their_out, stdout = os.pipe()
        folder = {"ACP_SESSIONS": str(run.folder), **{k: v for k, v in os.environ.items() if k != "ACP_SCRIPT"}}
        agent = self.start(
            "tests.agents.acp_agent:run", environ={**folder, **environ}, descriptors={0: stdin, 1: stdout}
        )
        os.close(stdin)
        os.close(stdout)
        reader, events = adapter.reader(run), []
        with os.fdopen(our_end, "wb", buffering=0) as said, os.fdopen(their_out, "rb") as lines:
            said.write(reader.to_say())
            for line in lines:
                told = reader.feed(line.rstrip(b"\n"))
                events += told
                if answer := reader.to_say():
                    said.write(answer)
                if any(event.kind == "result" for event in told):
                    said.close()
        code = agent.wait()
        return reader.end(Exit(code=code) if code >= 0 else Exit(signal=-code)), events


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    sys.exit(nurse(socket.socket(fileno=int(sys.argv[1])))())

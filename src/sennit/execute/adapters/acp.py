"""The Agent Client Protocol, version 1: one adapter for the programs that speak it over stdio (`gemini --acp`, …).

    initialize ─► [authenticate] ─► session/new | session/load ─► [session/set_mode] ─► session/prompt ─► its answer: the end
                                                                        │ session/update …
                                                                        └ session/request_permission, fs/*: answered

The program stays for one prompt; then its stdin is closed, and it ends. Source: the protocol's schema 1.19 and the prose of
agentclientprotocol.com, "Protocol"; tested against the official package `agent-client-protocol` 0.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from sennit.errors import SettingsError
from sennit.execute.adapters.acp_lines import AcpReader
from sennit.execute.adapters.base import AgentRun, Launch
from sennit.execute.adapters.checks import refuse_text_for_texts

__all__ = ["Acp", "Approve", "Files"]

Approve = Literal["ask", "allow", "deny"]
Files = Literal["write", "read", "none"]


class _Argv(msgspec.Struct, frozen=True):
    """What can be said without a name."""

    argv: tuple[str, ...]


class Acp(_Argv, frozen=True, kw_only=True):
    """A program that speaks the Agent Client Protocol.

    Leave for a tool (`approve`) is given when the agent requests permission, and an agent decides by itself what it
    requests: one that asks for nothing is not held back. With `ask` the request is answered as cancelled and the turn is
    cancelled, the process ends, and the run's outcome is `asks`. On the next run the session is loaded, the agent is told what
    was decided and to go on, and when it requests *the same* (kind of tool and input) again it is answered accordingly, once
    per decision and run, for that call only (`allow_once`, `reject_once`). So what is possible: waiting for days without a process,
    and an approval that holds for nothing but what was seen. What is not: to continue inside the cancelled turn. The model
    is asked anew, and may want something else; then people are asked again. What the turn had done before stays done. An agent
    that cannot load sessions ends as `lost_session` on the next run; in a new session its decisions hold all the same.

    Files are read and written for the agent only inside its folder and behind no symbolic link (`acp_files`), writes of more
    than a line of 1 MiB are refused; what its own tools do is not ours to see. Terminals are not offered.

    Attributes:
        argv: the program and its arguments.
        approve: what to answer when it requests permission: `ask` people, `allow` everything, `deny` everything.
        files: what it may do through us in its folder; `none` offers neither.
        mode: of the session, by the id that the agent gives it, such as `plan`; "" is the agent's own choice.
        auth_method: of those that the agent names; "" sends no `authenticate`, and an agent that wants it ends as
            `unauthorised` with their names.
        mcp_servers: for the session, in the protocol's form: {"name": …, "command": …, "args": […], "env": […]}.
        environ: set for the program.  passes: let through from our own environment; `PREFIX_*` is all that begin so.
        secrets: those among them whose values are never written down.

    Raises:
        SettingsError: `argv` is empty, or an option is none of its words.
    """

    approve: Approve = "ask"
    files: Files = "write"
    mode: str = ""
    auth_method: str = ""
    mcp_servers: tuple[Mapping[str, Any], ...] = ()
    environ: Mapping[str, str] = {}
    passes: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        argv: object = self.argv  # whatever somebody has passed
        if not isinstance(argv, list | tuple) or not argv or not all(isinstance(arg, str) for arg in argv):
            raise SettingsError(f"argv is {self.argv!r}", fix='give the program and its arguments: ("gemini", "--acp")')
        for name, said, words in (("approve", self.approve, get_args(Approve)), ("files", self.files, get_args(Files))):
            if said not in words:
                raise SettingsError(f"{name} is {said!r}", fix=f"it is one of {', '.join(words)}")
        refuse_text_for_texts(self)

    @property
    def name(self) -> str:
        """Of the kind of program."""
        return "acp"

    @property
    def program(self) -> str:
        """The file to run, or the name that is looked for on PATH."""
        return self.argv[0]

    def new_session_id(self) -> str:
        """Return "": the program chooses."""
        return ""

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start.

        Raises:
            SettingsError: a session is to be gone on with, and has no id.
        """
        if run.is_resume and not run.session_id:
            raise SettingsError("a session is to be resumed, and has no id", fix="begin a new one")
        return Launch(argv=tuple(self.argv), environ=self.environ, talks=True)

    def reader(self, run: AgentRun) -> AcpReader:
        """Return a reader for this run."""
        return AcpReader(
            run,
            approve=self.approve,
            files=self.files,
            mode=self.mode,
            auth_method=self.auth_method,
            mcp_servers=self.mcp_servers,
        )

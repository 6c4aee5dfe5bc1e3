"""The door as an MCP server of the official SDK: tools, and two kinds of resources.

tools        arguments.py             task://12        a task: state, arguments, result, attempts, questions, log
resources    shown.py                 thread://plan    a conversation: state, version, newest tasks
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

import mcp_types as types
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

from sennit._version import __version__
from sennit.errors import SennitError
from sennit.integrations.mcp.arguments import READ_ONLY, TOOLS, description, input_schema
from sennit.integrations.mcp.clients import Client
from sennit.integrations.mcp.door import Door, UnknownTool
from sennit.integrations.mcp.shown import task_shown, thread_shown

Context = ServerRequestContext[Any, Any]

INSTRUCTIONS: Final = """\
Tasks for agents, kept by sennit. Claim one with task_claim, work on it, end it with task_complete or task_fail. Pass the
`claim` that you got to every call about it. Call task_heartbeat while you work for longer than a minute or two: a claim of
which nothing is heard goes to somebody else, and what you write then is refused. Reserve files with lock_paths before you
change them. Ask people with ask_human, and leave what others should know with task_note."""

_JSON: Final = "application/json"
_TEMPLATES: Final = (
    types.ResourceTemplate(
        name="task",
        uri_template="task://{id}",
        description="A task: its state, arguments, result, attempts, questions and log.",
        mime_type=_JSON,
    ),
    types.ResourceTemplate(
        name="thread",
        uri_template="thread://{id}",
        description="A conversation: its state, its version and its newest tasks. The id is percent-encoded.",
        mime_type=_JSON,
    ),
)


class _Clients:
    """Whose request this is."""

    def __init__(self, door: Door, only: Client | None) -> None:
        self._door = door
        self._only = only
        self._sessions: dict[str, Client] = {}

    def of(self, context: Context) -> Client:
        """Return the client of a request; it leaves when its session ends."""
        if self._only is not None:
            return self._only
        # The context has no other way to its connection; exit_stack is there for what ends with it.
        connection = context.session._connection  # noqa: SLF001
        if connection.session_id is None:
            return self._door.crowd
        known = self._sessions.get(connection.session_id)
        if known is None:
            known = self._sessions[connection.session_id] = self._door.client(connection.session_id)
            connection.exit_stack.callback(self._left, connection.session_id)
        return known

    def _left(self, session_id: str) -> None:
        self._door.leave(self._sessions.pop(session_id))


def make_server(door: Door, *, only: Client | None = None) -> Server[Any]:
    """Return the server.

    Args:
        only: the one client there is (stdio); None: each session is one (HTTP).
    """
    clients = _Clients(door, only)
    tools = [
        types.Tool(
            name=name,
            description=description(kind),
            input_schema=input_schema(kind),
            annotations=types.ToolAnnotations(
                read_only_hint=name in READ_ONLY, destructive_hint=False, open_world_hint=False
            ),
        )
        for name, kind in TOOLS.items()
    ]

    async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            answer = await door.call(clients.of(context), params.name, params.arguments)
        except UnknownTool as error:
            raise MCPError(code=types.INVALID_PARAMS, message=str(error)) from None
        return types.CallToolResult(
            content=[types.TextContent(text=answer.text)], structured_content=answer.data, is_error=answer.is_error
        )

    async def list_resources(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[])

    async def list_templates(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=list(_TEMPLATES))

    async def read_resource(_: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        uri = str(params.uri)
        try:
            shown = await _shown(door, uri)
        except SennitError as error:
            raise MCPError(code=types.INVALID_PARAMS, message=str(error), data={"uri": uri}) from None
        text = msgspec.json.encode(shown).decode()
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, mime_type=_JSON, text=text)]
        )

    return Server(
        "sennit",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


async def _shown(door: Door, uri: str) -> dict[str, Any]:
    """Return what a URI names.

    Raises:
        SennitError: nothing.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "task" and rest.isdecimal() and len(rest) < 19:
        return await task_shown(door.store, int(rest))
    if scheme == "thread" and rest:
        return await thread_shown(door.store, unquote(rest))
    raise SennitError(f"there is no resource {uri}", fix="there are task://{id} and thread://{id}")

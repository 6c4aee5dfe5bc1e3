"""Tool calls that the fake provider's model makes, in each API's words: what a coding agent's program acts upon.

    FakeProvider(answer=lambda request: [ToolCall("Bash", {"command": "make"})] if is_first(request) else "It is made.")

Sources: "Tool use" of Anthropic's documentation, "Function calling" of OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

# What a call counts as in tokens, besides the text before it.
TOKENS: Final = 8


class ToolCall(msgspec.Struct, frozen=True):
    """One call that the model makes.

    Attributes:
        name: of the tool, one of those that the request offers.
        input: its arguments.
        call_id: of the call; "" makes one up, of the number of the request and of the call in it.
    """

    name: str
    input: Mapping[str, Any] = {}
    call_id: str = ""


# What a function that makes answers may return: a text, or the tools to call, after a text or not.
Said = str | Sequence[ToolCall | str]


def split(said: Said) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the text and the tool calls of what is to be answered."""
    if isinstance(said, str):
        return said, ()
    return "".join(part for part in said if isinstance(part, str)), tuple(
        part for part in said if isinstance(part, ToolCall)
    )


def _id(prefix: str, call: ToolCall, number: int, at: int) -> str:
    return call.call_id or f"{prefix}_{number:020x}{at:04x}"


def _arguments(call: ToolCall) -> str:
    return msgspec.json.encode(call.input).decode()


def message_block(call: ToolCall, number: int, at: int) -> dict[str, Any]:
    """Return the content block of Anthropic's messages."""
    return {"type": "tool_use", "id": _id("toolu", call, number, at), "name": call.name, "input": dict(call.input)}


def message_delta(call: ToolCall) -> dict[str, Any]:
    """Return the delta that brings its whole input in a stream."""
    return {"type": "input_json_delta", "partial_json": _arguments(call)}


def response_item(call: ToolCall, number: int, at: int) -> dict[str, Any]:
    """Return the output item of OpenAI's responses."""
    return {
        "type": "function_call",
        "id": f"fc_{number:020x}{at:04x}",
        "call_id": _id("call", call, number, at),
        "name": call.name,
        "arguments": _arguments(call),
        "status": "completed",
    }


def chat_call(call: ToolCall, number: int, at: int) -> dict[str, Any]:
    """Return the tool call of OpenAI's chat completions."""
    function = {"name": call.name, "arguments": _arguments(call)}
    return {"id": _id("call", call, number, at), "type": "function", "function": function}

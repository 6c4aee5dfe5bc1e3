"""Lines as claude 2.1.197 writes them, shortened to what is read."""

from __future__ import annotations

from typing import Any

USED = {"input_tokens": 10, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 0, "output_tokens": 5}
INIT = {"type": "system", "subtype": "init", "session_id": "s-1", "model": "claude-opus-4-8[1m]"}
RESULT = {
    "type": "result", "subtype": "success", "is_error": False, "api_error_status": None, "num_turns": 2,
    "result": "It is done.", "stop_reason": "end_turn", "session_id": "s-1", "total_cost_usd": 0.25, "usage": USED,
}  # fmt: skip


def said(*content: dict[str, Any], message_id: str = "msg_1", **fields: Any) -> dict[str, Any]:
    message = {"id": message_id, "role": "assistant", "model": "claude-opus-4-8", "content": content, "usage": USED}
    return {"type": "assistant", "message": message, "parent_tool_use_id": None, **fields}


def call(call_id: str, tool: str = "Bash", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": tool, "input": given}


def result_of(call_id: str, *, is_error: bool = False) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call_id, "content": "done", "is_error": is_error}
    return {"type": "user", "message": {"role": "user", "content": [block]}}


def deferred(call_id: str, **given: Any) -> dict[str, Any]:
    use = {"id": call_id, "name": "Bash", "input": given}
    return {**RESULT, "result": "", "stop_reason": "tool_deferred", "deferred_tool_use": use}

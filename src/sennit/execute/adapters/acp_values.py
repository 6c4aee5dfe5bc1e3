"""What the values of an ACP agent's messages mean: usage, capabilities, errors, text, ids; and a message that was cut."""

from __future__ import annotations

import re
from typing import Any, Final, TypeGuard

import msgspec

from sennit.execute.adapters.lines import part, text, usage_of, whole
from sennit.model.agent import AgentUsage

__all__ = ["Refusal", "cut_request", "is_id", "present", "storable", "text_of", "turn_usage", "way_back"]

# The start of a request that the tail has cut: it was longer than a line may be.
_CUT_HEAD: Final = re.compile(
    rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,18}|"[^"\\\x00-\x1f]{1,200}")\s*,\s*"method"'
)
_CUT_TAIL: Final = b"cut by sennit"
ID_CHARS_MAX: Final = 1000


class Refusal(Exception):
    """The agent has answered one of our requests with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = error.get("code") if isinstance(error.get("code"), int) else 0
        details = part(error, "data").get("details") or error.get("data")
        said = [text(error.get("message")), text(details)]
        self.words = ": ".join(dict.fromkeys(filter(None, said))) or f"error {self.code}"


def cut_request(line: bytes) -> int | str | None:
    """Return the id of a request that was too long for a line, None for any other line."""
    cut = _CUT_HEAD.match(line) if line.endswith(_CUT_TAIL) else None
    try:
        return None if cut is None else msgspec.json.decode(cut.group(1), type=int | str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def way_back(capabilities: dict[str, Any]) -> str:
    """Return how the agent goes on with a session, "" if it cannot."""
    if capabilities.get("loadSession") is True:
        return "session/load"
    return "session/resume" if isinstance(part(capabilities, "sessionCapabilities").get("resume"), dict) else ""


def is_id(value: object) -> TypeGuard[int | str]:
    """Return whether JSON-RPC takes this for an id, and it can be said back."""
    if isinstance(value, str):
        return len(value) <= ID_CHARS_MAX and text(value) == value
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def storable(value: Any) -> Any:
    """Return a value as it is, or a sentence in its place if JSON cannot hold it (numbers that are too long, half characters)."""
    try:
        msgspec.json.encode(value)
    except (OverflowError, RecursionError, TypeError, ValueError):
        return "[a value that cannot be written as JSON]"
    return value


def present(told: dict[str, Any]) -> dict[str, Any]:
    """Return what is said; null is nothing."""
    return {name: value for name, value in told.items() if value is not None}


def text_of(told: dict[str, Any]) -> str:
    """Return the text of a chunk; of an image or a sound what it is."""
    content = part(told, "content")
    return text(content.get("text")) if content.get("type") == "text" else f"[{text(content.get('type')) or 'nothing'}]"


def turn_usage(told: dict[str, Any], cost_usd: float | None) -> AgentUsage | None:
    """Return the usage that the answer to a prompt tells, None if it tells none.

    The total says whether what came from a cache, and thoughts, are counted apart. gemini 0.61.0 has a place of its own.
    """
    usage = part(told, "usage")
    if not usage:
        own = part(told, "_meta", "quota", "token_count")
        return usage_of(own, cost_usd=cost_usd) if own else None
    read, output, thought = (whole(usage.get(f"{kind}Tokens")) for kind in ("input", "output", "thought"))
    cached, made = whole(usage.get("cachedReadTokens")), whole(usage.get("cachedWriteTokens"))
    total = whole(usage.get("totalTokens"))
    if total >= read + output + thought + cached + made:
        read += cached + made
    if total >= read + output + thought:
        output += thought
    return AgentUsage(input_tokens=read, output_tokens=output, cached_input_tokens=cached, cost_usd=cost_usd)

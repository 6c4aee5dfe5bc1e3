"""What a request will ask of the limits: its model, and an estimate of its tokens.

    tokens = characters of what is sent / 4  +  max_tokens

Four characters a token is English in OpenAI's tokenizers (source: OpenAI, "What are tokens and how to count them").
The estimate is reserved, and settled with what was used: being wrong costs a moment, not a budget. An image or a
file counts IMAGE_TOKENS, not its base64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

CHARACTERS_PER_TOKEN: Final = 4
# About what a picture of 1024 by 1024 costs: 765 (OpenAI) to 1,400 (Anthropic).
IMAGE_TOKENS: Final = 1_000
_TOKENS_MAX: Final = 100_000_000
_DEPTH_MAX: Final = 50

# Where the families of requests keep what the model reads; the rest of a request are knobs.
_SENT: Final = ("messages", "input", "instructions", "system", "prompt", "tools", "contents", "systemInstruction")
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample")
# Keys whose text is not read by the model as text: base64, links to pictures, ids, signatures.
_BLOBS: Final = frozenset(
    {"image_url", "image", "file", "input_audio", "inlineData", "inline_data", "source", "fileData"}
)
_SKIPPED: Final = frozenset({"id", "call_id", "tool_call_id", "tool_use_id", "signature", "encrypted_content"})


class RequestFeedback(msgspec.Struct, kw_only=True, frozen=True):
    """What a request says of itself. `tokens` is the estimate, 0 when there is nothing to go by."""

    model: str = ""
    tokens: int = 0
    stream: bool = False


def read_request(body: bytes | str | Mapping[str, Any] | None) -> RequestFeedback:
    """Return what the body of a model call says; empty when it is none.

    Args:
        body: JSON, or its objects.
    """
    request = _loaded(body)
    if not isinstance(request, Mapping):
        return RequestFeedback()
    characters = sum(_characters(request.get(name)) for name in _SENT)
    model = request.get("model")
    return RequestFeedback(
        model=model[:200] if isinstance(model, str) else "",
        tokens=min(-(-characters // CHARACTERS_PER_TOKEN) + _asked_for(request), _TOKENS_MAX),
        stream=request.get("stream") is True,
    )


def _loaded(body: bytes | str | Mapping[str, Any] | None) -> object:
    if not isinstance(body, bytes | str):
        return body
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _asked_for(request: Mapping[str, Any]) -> int:
    config = request.get("generationConfig")
    asked = [request.get(name) for name in _LIMITS]
    asked.append(config.get("maxOutputTokens") if isinstance(config, Mapping) else None)
    return max((n for n in asked if isinstance(n, int) and not isinstance(n, bool) and n > 0), default=0)


def _characters(value: object, depth: int = 0) -> int:
    """Return how much text there is in what is sent; a picture counts as the text of as many tokens."""
    if isinstance(value, str):
        return len(value)
    if depth > _DEPTH_MAX:
        return 0
    if isinstance(value, list):
        return sum(_characters(item, depth + 1) for item in value)
    if not isinstance(value, Mapping):
        return 0
    total = 0
    for name, item in value.items():
        if name in _BLOBS:
            total += IMAGE_TOKENS * CHARACTERS_PER_TOKEN
        elif name not in _SKIPPED:
            total += _characters(item, depth + 1)
    return total

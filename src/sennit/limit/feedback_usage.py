"""How many tokens a call has used, as the four families of answers say it.

    OpenAI chat, embeddings    usage {prompt_tokens, completion_tokens}
    OpenAI responses           usage {input_tokens, output_tokens}
    Anthropic messages         usage {input_tokens, cache_creation_input_tokens, output_tokens}
    Gemini                     usageMetadata {promptTokenCount, candidatesTokenCount, thoughtsTokenCount}

Input that Anthropic read from its cache is not counted: it does not count against the input tokens per minute, and costs
a tenth. (Source: Anthropic, "Rate limits", cache-aware ITPM.) OpenAI's input counts whole, cached or not, and reasoning is
part of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sennit.limit.feedback_values import COUNT_MAX, count, number
from sennit.model.provider import Usage

_INPUT: Final = ("prompt_tokens", "input_tokens", "promptTokenCount")
_INPUT_MORE: Final = ("cache_creation_input_tokens", "toolUsePromptTokenCount")
_OUTPUT: Final = ("completion_tokens", "output_tokens", "candidatesTokenCount")
_OUTPUT_MORE: Final = ("thoughtsTokenCount",)
NANO: Final = 1_000_000_000


class _Answer(msgspec.Struct, frozen=True):
    """The few fields of an answer that matter; the rest, which is nearly all, is skipped without being built."""

    usage: msgspec.Raw = msgspec.Raw()
    usageMetadata: msgspec.Raw = msgspec.Raw()  # noqa: N815 - Gemini spells it so
    model: msgspec.Raw = msgspec.Raw()
    modelVersion: msgspec.Raw = msgspec.Raw()  # noqa: N815 - Gemini spells it so
    error: msgspec.Raw = msgspec.Raw()


_DECODE: Final = msgspec.json.Decoder(_Answer)


def usage_of(body: bytes | str | Mapping[str, Any]) -> Usage | None:
    """Return what an answer says it has used, or None.

    Args:
        body: the whole JSON answer, or its objects (`response.model_dump()`).
    """
    if isinstance(body, Mapping):
        return usage_in(body.get("usage")) or usage_in(body.get("usageMetadata"))
    return _read(body)[0]


def answer_of(body: bytes) -> tuple[Usage | None, str, bool]:
    """Return what an answer has used, the model that gave it ("" when it does not say), and whether it holds an error."""
    return _read(body)


def _read(body: bytes | str) -> tuple[Usage | None, str, bool]:
    try:
        answer = _DECODE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "", False
    usage = usage_in(_loaded(answer.usage)) or usage_in(_loaded(answer.usageMetadata))
    model = _loaded(answer.model) or _loaded(answer.modelVersion)
    return usage, model[:200] if isinstance(model, str) else "", bool(_loaded(answer.error))


def _loaded(raw: msgspec.Raw) -> object:
    return msgspec.json.decode(raw) if raw else None


def usage_in(usage: object) -> Usage | None:
    """Return the counts of a usage object, or None when it has none. A count that makes no sense is 0."""
    if not isinstance(usage, Mapping) or not any(count(usage.get(name)) is not None for name in (*_INPUT, *_OUTPUT)):
        return None
    cost = number(usage.get("cost"))  # OpenRouter: US dollars
    return Usage(
        input_tokens=_sum(usage, _INPUT, _INPUT_MORE),
        output_tokens=_sum(usage, _OUTPUT, _OUTPUT_MORE),
        cost_nano=round(cost * NANO) if cost is not None and cost * NANO < COUNT_MAX * NANO else 0,
    )


def _sum(usage: Mapping[str, Any], either: tuple[str, ...], more: tuple[str, ...]) -> int:
    first = next((found for name in either if (found := count(usage.get(name)))), 0)
    return first + sum(count(usage.get(name)) or 0 for name in more)


def latest(before: Usage | None, now: Usage | None) -> Usage | None:
    """Return the usage of a stream after one more event: counts are totals, and some events say 0 of what they do not know."""
    if before is None or now is None:
        return before or now
    return Usage(
        input_tokens=max(before.input_tokens, now.input_tokens),
        output_tokens=max(before.output_tokens, now.output_tokens),
        cost_nano=max(before.cost_nano, now.cost_nano),
    )

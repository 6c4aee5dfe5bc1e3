"""Anthropic's API: messages.

Sources: "Messages", "Streaming messages", "Errors" and "Rate limits" of its documentation; the SDK's types are what tests
hold the shapes to.
"""

from __future__ import annotations

from sennit.testing.provider_knobs import Knobs
from sennit.testing.provider_limits import Refusal
from sennit.testing.provider_shapes import Asked, BadRequest, Call, Streamed, event
from sennit.testing.provider_tools import message_block, message_delta

# Of each status: its type and message.
ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "The request could not be understood."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "The requested resource could not be found."),
    408: ("timeout_error", "The request timed out."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "Rate limited. Please try again later."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service unavailable"),
    529: ("overloaded_error", "Overloaded"),
}
DIMENSIONS = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "input": "input tokens per minute",
    "output": "output tokens per minute",
}


class Messages:
    """POST /v1/messages."""

    def check(self, asked: Asked) -> None:
        """Raise BadRequest without a model, messages or max_tokens."""
        for name, value in (("model", asked.model), ("messages", asked.messages), ("max_tokens", asked.max_tokens)):
            if not value:
                raise BadRequest(400, f"{name}: Field required")

    def body(self, call: Call) -> dict[str, object]:
        """Return the whole answer."""
        return {
            **_frame(call),
            "content": [
                *([{"type": "text", "text": call.text, "citations": None}] if call.words or not call.tools else []),
                *(message_block(tool, call.number, at) for at, tool in enumerate(call.tools)),
            ],
            "stop_reason": _stop_reason(call),
            **_usage(call, call.output_tokens),
        }

    def stream(self, call: Call, pieces: int) -> Streamed:
        """Return the answer as named events; usage stands in the first and in the last but one."""

        def told(kind: str, **data: object) -> bytes:
            return event({"type": kind, **data}, kind)

        begun = {**_frame(call), "content": [], "stop_reason": None, **_usage(call, 1)}
        head = told("message_start", message=begun)
        deltas, tail = [], b""
        if call.words or not call.tools:
            head += told("content_block_start", index=0, content_block={"type": "text", "text": ""}) + told("ping")
            deltas = [
                told("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
                for piece in call.pieces(pieces)
            ]
            tail = told("content_block_stop", index=0)
        for at, tool in enumerate(call.tools):
            index = at + bool(deltas)
            block = {**message_block(tool, call.number, at), "input": {}}
            tail += told("content_block_start", index=index, content_block=block)
            tail += told("content_block_delta", index=index, delta=message_delta(tool))
            tail += told("content_block_stop", index=index)
        ended: dict[str, object] = {"delta": {"stop_reason": _stop_reason(call), "stop_sequence": None}}
        if call.with_usage:
            ended["usage"] = {"output_tokens": call.output_tokens}
        tail += told("message_delta", **ended) + told("message_stop")
        return Streamed(head=head, deltas=deltas or [told("ping")], tail=tail)

    def error(self, status: int, message: str, *, number: int) -> dict[str, object]:
        """Return the body of an error answer."""
        kind, usual = ERRORS.get(status, ("api_error", "Something went wrong."))
        error = {"type": kind, "message": message or usual}
        return {"type": "error", "error": error, "request_id": _request_id(number)}

    def refusal(self, refusal: Refusal, knobs: Knobs, model: str, wall_s: float, *, number: int) -> dict[str, object]:
        """Return the body of an answer of the limits."""
        del model, wall_s
        if refusal.kind == "burst":
            if knobs.overload_status != 429:
                return self.error(knobs.overload_status, "", number=number)
            text = "Number of concurrent connections has exceeded your rate limit. Please try again later."
        elif refusal.kind == "minute":
            text = (
                f"This request would exceed the rate limit for your organization of {refusal.limit:,} "
                f"{DIMENSIONS[refusal.dimension]}."
            )
        else:
            text = "This request would exceed your account's rate limit. Please try again later."
        return self.error(429, text, number=number)

    def error_event(self, number: int) -> bytes:
        """Return the event of an error after the 200."""
        return event(self.error(529, "", number=number), "error")

    def headers(self, number: int) -> list[tuple[str, str]]:
        """Return the headers of every answer."""
        return [("request-id", _request_id(number)), ("anthropic-organization-id", "org-fake")]


def _request_id(number: int) -> str:
    return f"req_{number:024x}"


def _stop_reason(call: Call) -> str:
    if call.tools:
        return "tool_use"
    return "max_tokens" if call.is_cut else "end_turn"


def _frame(call: Call) -> dict[str, object]:
    return {
        "id": f"msg_{call.number:024x}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "stop_sequence": None,
    }


def _usage(call: Call, output_tokens: int) -> dict[str, object]:
    if not call.with_usage:
        return {}
    usage = {
        "input_tokens": call.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }
    return {"usage": usage}

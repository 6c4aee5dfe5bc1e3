"""OpenAI's two APIs: chat completions and responses.

Sources: the API reference for the objects, "Rate limits" and "Error codes" of its guides for headers and messages; the SDK's
types are what tests hold the shapes to. `usage_limit_reached` is what subscriptions answer (openai/codex).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sennit.testing.provider_headers import duration
from sennit.testing.provider_knobs import Knobs
from sennit.testing.provider_limits import Refusal
from sennit.testing.provider_shapes import Asked, BadRequest, Call, Streamed, event
from sennit.testing.provider_tools import chat_call, response_item

# Of each status: its type, code and message.
ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request could not be understood."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "You may not use this model."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    408: ("timeout", None, "The request timed out."),
    413: ("invalid_request_error", None, "The request is too large."),
    429: ("requests", "rate_limit_exceeded", "Too many requests."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The engine is currently overloaded, please try again later"),
    529: ("server_error", None, "The engine is currently overloaded, please try again later"),
}
QUOTA = "You exceeded your current quota, please check your plan and billing details."
DIMENSIONS = {
    "requests": ("requests per min (RPM)", "requests"),
    "tokens": ("tokens per min (TPM)", "tokens"),
    "input": ("input tokens per min (TPM)", "tokens"),
    "output": ("output tokens per min (TPM)", "tokens"),
}


def _error(kind: str, code: str | None, message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class OpenAI:
    """What both have: errors and headers."""

    def check(self, asked: Asked) -> None:
        """Raise BadRequest without a model."""
        if not asked.model:
            raise BadRequest(400, "you must provide a model parameter")

    def error(self, status: int, message: str, *, number: int) -> dict[str, object]:
        """Return the body of an error answer."""
        del number
        kind, code, usual = ERRORS.get(status, ("server_error", None, "Something went wrong."))
        return _error(kind, code, message or usual)

    def refusal(self, refusal: Refusal, knobs: Knobs, model: str, wall_s: float, *, number: int) -> dict[str, object]:
        """Return the body of an answer of the limits."""
        wait_s = refusal.wait_s or 0.0
        if refusal.kind == "burst":
            if knobs.overload_status != 429:
                return self.error(knobs.overload_status, "", number=number)
            text = f"Too many concurrent requests for {model}: limit {refusal.limit}. Please slow down."
            return _error("requests", "rate_limit_exceeded", text)
        if refusal.kind == "window" and knobs.window_style == "quota":
            return _error("insufficient_quota", "insufficient_quota", QUOTA)
        if refusal.kind == "window" and knobs.window_style == "usage_limit":
            resets = {"resets_at": math.ceil(wall_s + wait_s), "resets_in_seconds": math.ceil(wait_s)}
            text = "The usage limit has been reached"
            return {"error": {"type": "usage_limit_reached", "message": text, "plan_type": "plus", **resets}}
        per, kind = DIMENSIONS[refusal.dimension]
        per = "requests per day (RPD)" if refusal.kind == "window" else per
        text = (
            f"Rate limit reached for {model} in organization org-fake on {per}: Limit {refusal.limit}, "
            f"Used {refusal.used}, Requested {refusal.asked}. Please try again in {duration(wait_s)}."
        )
        return _error(kind, "rate_limit_exceeded", text)

    def error_event(self, number: int) -> bytes:
        """Return the event of an error after the 200."""
        return event(self.error(500, "", number=number))

    def headers(self, number: int) -> list[tuple[str, str]]:
        """Return the headers of every answer."""
        return [
            ("x-request-id", f"req_{number:032x}"),
            ("openai-organization", "org-fake"),
            ("openai-version", "2020-10-01"),
            ("openai-processing-ms", "1"),
        ]


class Chat(OpenAI):
    """POST /v1/chat/completions."""

    def check(self, asked: Asked) -> None:
        """Raise BadRequest without a model or messages."""
        super().check(asked)
        if not asked.messages:
            raise BadRequest(400, "Missing required parameter: 'messages'.")

    def body(self, call: Call) -> dict[str, object]:
        """Return the whole answer."""
        message: dict[str, object] = {"role": "assistant", "content": call.text, "refusal": None, "annotations": []}
        if call.tools:
            message["tool_calls"] = [chat_call(tool, call.number, at) for at, tool in enumerate(call.tools)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(call)}
        body: dict[str, object] = {**_chat_frame(call, "chat.completion"), "choices": [choice]}
        if call.with_usage:
            body["usage"] = _chat_usage(call)
        return body

    def stream(self, call: Call, pieces: int) -> Streamed:
        """Return the answer as chunks, the usage in a last one without choices."""
        frame = _chat_frame(call, "chat.completion.chunk")
        if call.usage_in_stream and call.with_usage:
            frame["usage"] = None

        def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return event({**frame, "choices": [choice]})

        calls = [{"index": at, **chat_call(tool, call.number, at)} for at, tool in enumerate(call.tools)]
        tail = chunk({"tool_calls": calls}) if calls else b""
        tail += chunk({}, _finish(call))
        if call.usage_in_stream and call.with_usage:
            tail += event({**frame, "choices": [], "usage": _chat_usage(call)})
        return Streamed(
            head=chunk({"role": "assistant", "content": "", "refusal": None}),
            deltas=[chunk({"content": piece}) for piece in call.pieces(pieces)],
            tail=tail + b"data: [DONE]\n\n",
        )


class Responses(OpenAI):
    """POST /v1/responses."""

    def body(self, call: Call) -> dict[str, object]:
        """Return the whole answer."""
        return _response(call, "incomplete" if call.is_cut else "completed", _items(call))

    def stream(self, call: Call, pieces: int) -> Streamed:
        """Return the answer as numbered events."""
        numbers = iter(range(1_000_000))
        place: dict[str, object] = {"item_id": f"msg_{call.number:032x}", "output_index": 0, "content_index": 0}

        def told(kind: str, **data: object) -> bytes:
            return event({"type": kind, "sequence_number": next(numbers), **data}, kind)

        begun = _response(call, "in_progress", [])
        if call.tools and not call.words:
            head = told("response.created", response=begun) + told("response.in_progress", response=begun)
            return Streamed(head, [self._tools(call, told, 0)], told("response.completed", response=self.body(call)))
        empty_item = {**_item(call), "status": "in_progress", "content": []}
        head = told("response.created", response=begun) + told("response.in_progress", response=begun)
        head += told("response.output_item.added", output_index=0, item=empty_item)
        head += told(
            "response.content_part.added", **place, part={"type": "output_text", "text": "", "annotations": []}
        )
        deltas = [
            told("response.output_text.delta", **place, delta=piece, logprobs=[]) for piece in call.pieces(pieces)
        ]
        tail = told("response.output_text.done", **place, text=call.text, logprobs=[])
        tail += told("response.content_part.done", **place, part=_part(call))
        tail += told("response.output_item.done", output_index=0, item=_item(call))
        tail += self._tools(call, told, 1)
        kind = "incomplete" if call.is_cut else "completed"
        tail += told(f"response.{kind}", response=_response(call, kind, _items(call)))
        return Streamed(head, deltas, tail)

    def _tools(self, call: Call, told: Callable[..., bytes], first: int) -> bytes:
        """Return the events of the calls of tools; `first` is the place of the first one in the output."""
        events = b""
        for at, tool in enumerate(call.tools):
            item = response_item(tool, call.number, at)
            begun = {**item, "arguments": "", "status": "in_progress"}
            place = {"item_id": item["id"], "output_index": first + at}
            events += told("response.output_item.added", output_index=first + at, item=begun)
            events += told("response.function_call_arguments.delta", **place, delta=item["arguments"])
            events += told("response.function_call_arguments.done", **place, arguments=item["arguments"])
            events += told("response.output_item.done", output_index=first + at, item=item)
        return events

    def error_event(self, number: int) -> bytes:
        """Return the event of an error after the 200."""
        del number
        kind, code, message = ERRORS[500]
        data = {"sequence_number": 4, "code": code or kind, "message": message, "param": None}
        return event({"type": "error", **data}, "error")


def _finish(call: Call) -> str:
    if call.tools:
        return "tool_calls"
    return "length" if call.is_cut else "stop"


def _chat_frame(call: Call, kind: str) -> dict[str, object]:
    return {
        "id": f"chatcmpl-{call.number:024x}",
        "object": kind,
        "created": call.created_s,
        "model": call.model,
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
    }


def _chat_usage(call: Call) -> dict[str, object]:
    return {
        "prompt_tokens": call.input_tokens,
        "completion_tokens": call.output_tokens,
        "total_tokens": call.input_tokens + call.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _part(call: Call) -> dict[str, object]:
    return {"type": "output_text", "text": call.text, "annotations": [], "logprobs": []}


def _item(call: Call) -> dict[str, object]:
    return {
        "type": "message",
        "id": f"msg_{call.number:032x}",
        "status": "incomplete" if call.is_cut else "completed",
        "role": "assistant",
        "content": [_part(call)],
    }


def _items(call: Call) -> list[dict[str, object]]:
    said = [_item(call)] if call.words or not call.tools else []
    return [*said, *(response_item(tool, call.number, at) for at, tool in enumerate(call.tools))]


def _response(call: Call, status: str, output: list[dict[str, object]]) -> dict[str, object]:
    is_over = status != "in_progress"
    usage = {
        "input_tokens": call.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": call.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": call.input_tokens + call.output_tokens,
    }
    return {
        "id": f"resp_{call.number:032x}",
        "object": "response",
        "created_at": call.created_s,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if is_over and call.with_usage else None,
    }

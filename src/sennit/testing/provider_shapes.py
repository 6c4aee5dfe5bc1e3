"""What all shapes of answers share: the request that was asked, the call that is answered, and the parts of a stream.

    bytes ─decode─► Asked ─tokens, text─► Call ─► one JSON body, or Streamed(head, deltas, tail) as server-sent events

The shapes themselves are in provider_openai and provider_anthropic.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

import msgspec

from sennit.testing.provider_knobs import Knobs
from sennit.testing.provider_limits import Refusal
from sennit.testing.provider_tools import TOKENS, Said, ToolCall

Api = Literal["chat", "responses", "messages"]

# Given the JSON of a request, of whichever API, it returns the text of the answer, or the tools that the model calls.
Answerer = Callable[[dict[str, Any]], Said]

# A rough token of English text is four characters. Source: OpenAI's help page "What are tokens and how to count them".
BYTES_PER_TOKEN: Final = 4
_WORD: Final = re.compile(r"\S+\s*")

WORDS: Final = ("seven ", "ships ", "sail ", "at ", "dawn ", "and ", "none ", "returns ", "before ", "the ", "tide. ")


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


class Asked(msgspec.Struct):
    """What the fake reads of a request, of whichever API; the rest is accepted and ignored."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    messages: list[msgspec.Raw] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None

    @property
    def tokens_max(self) -> int | None:
        """The most tokens the answer may have, None for any number."""
        given = [n for n in (self.max_tokens, self.max_completion_tokens, self.max_output_tokens) if n is not None]
        return min(given) if given else None


class Call(msgspec.Struct, kw_only=True):
    """One request and what will be answered.

    Attributes:
        words: the answer, a token each.
        tools: that it calls, after the words.
        is_cut: it ends where the request allowed no more.
        with_usage: the answer says what was used.  usage_in_stream: and so does its stream (OpenAI's include_usage).
    """

    number: int
    model: str
    is_stream: bool
    created_s: int
    input_tokens: int
    words: tuple[str, ...]
    tools: tuple[ToolCall, ...] = ()
    is_cut: bool = False
    with_usage: bool = True
    usage_in_stream: bool = False

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.words) + TOKENS * len(self.tools)

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.words).strip()

    def pieces(self, count: int) -> list[str]:
        """Return the text in so many pieces, or fewer when there are not as many words."""
        words = self.words or ("",)
        size = -(-len(words) // count)
        pieces = ["".join(words[at : at + size]) for at in range(0, len(words), size)]
        pieces[-1] = pieces[-1].rstrip()
        return pieces


class Streamed(msgspec.Struct, frozen=True):
    """An answer as server-sent events: what comes first, one event for each piece of text, what comes last."""

    head: bytes
    deltas: list[bytes]
    tail: bytes


class BadRequest(Exception):
    """The request is the client's fault; answered with `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Shape(Protocol):
    """One API, as its documentation describes it."""

    def check(self, asked: Asked) -> None:
        """Raise BadRequest if the real one would refuse the request."""

    def body(self, call: Call) -> dict[str, object]:
        """Return the whole answer, for JSON."""

    def stream(self, call: Call, pieces: int) -> Streamed:
        """Return the answer as events."""

    def error(self, status: int, message: str, *, number: int) -> dict[str, object]:
        """Return the body of an error answer; "" is the message the real one has for this status."""

    def refusal(self, refusal: Refusal, knobs: Knobs, model: str, wall_s: float, *, number: int) -> dict[str, object]:
        """Return the body of an answer of the limits."""

    def error_event(self, number: int) -> bytes:
        """Return the event of an error after the 200."""

    def headers(self, number: int) -> list[tuple[str, str]]:
        """Return the headers of every answer."""


_decoder = msgspec.json.Decoder(Asked)


def decode(body: bytes) -> Asked:
    """Return what is asked.

    Raises:
        BadRequest: it is no JSON object, or a field is of another type.
    """
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadRequest(400, f"We could not parse the JSON body of your request: {error}") from error


def call_of(
    asked: Asked,
    knobs: Knobs,
    *,
    number: int,
    body_bytes: int,
    created_s: int,
    text: str = "",
    tools: tuple[ToolCall, ...] = (),
) -> Call:
    """Return the call that answers `asked`: with `text` and `tools`, else with what the knobs say."""
    if tools:
        words = tuple(_WORD.findall(text))
    elif text or knobs.answer:
        words = tuple(_WORD.findall(text or knobs.answer))
    else:
        words = tuple(itertools.islice(itertools.cycle(WORDS), knobs.output_tokens))
    most = asked.tokens_max
    is_cut = most is not None and most < len(words)
    return Call(
        number=number,
        model=asked.model,
        is_stream=bool(asked.stream),
        created_s=created_s,
        input_tokens=knobs.input_tokens or max(1, body_bytes // BYTES_PER_TOKEN),
        words=words[:most] if is_cut else words,
        tools=tools,
        is_cut=is_cut,
        usage_in_stream=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def event(data: dict[str, object], name: str = "") -> bytes:
    """Return one server-sent event."""
    start = f"event: {name}\n".encode() if name else b""
    return start + b"data: " + msgspec.json.encode(data) + b"\n\n"

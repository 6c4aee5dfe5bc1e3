"""What a file of the workspace holds: a line that describes the value, then the value as such.

    {"kind":"text","key":"Notes"}
    Ann wants the report on Friday.

One file, so that a kill can leave no description without its value. Text and bytes are stored as they are, all other
values as JSON, and JSON is what comes back: a tuple as a list, a dataclass as a dict, bytes inside of it as base64, a
NaN as null.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal, get_args

import msgspec

from sennit.errors import PayloadError
from sennit.sync.plain import to_plain

__all__ = ["Kind", "decode", "decode_document", "encode", "encode_document", "encode_json"]

Kind = Literal["bytes", "json", "text"]

_SURROGATES: Final = "surrogatepass"  # a lone surrogate is no Unicode, and still what somebody gave us
_encoder: Final = msgspec.json.Encoder(enc_hook=to_plain)


def encode(value: Any, what: str) -> tuple[Kind, bytes]:
    """Return how a value is stored.

    Raises:
        PayloadError: it is neither text nor bytes and does not serialise to JSON.
    """
    match value:
        case str():
            return "text", value.encode("utf-8", _SURROGATES)
        case bytes() | bytearray() | memoryview():
            return "bytes", bytes(value)
    return "json", encode_json(value, what)


def encode_json(value: Any, what: str) -> bytes:
    """Return a value as one line of JSON.

    Raises:
        PayloadError: it does not serialise.
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        raise PayloadError(
            f"{what} does not serialise: {error}",
            why="values are stored as text, bytes or JSON",
            fix="give text, bytes, plain data, a dataclass, or a msgspec or pydantic model",
        ) from error


def decode(kind: Kind, content: bytes) -> Any:
    """Return the value of what `encode` has returned."""
    match kind:
        case "text":
            return content.decode("utf-8", _SURROGATES)
        case "bytes":
            return content
        case "json":
            return msgspec.json.decode(content)


def encode_document(key: str, kind: Kind) -> bytes:
    """Return the first line of a file."""
    # Not msgspec: it refuses the lone surrogates that a key may have.
    return json.dumps({"kind": kind, "key": key}, separators=(",", ":")).encode() + b"\n"


def decode_document(file: bytes, path: object) -> tuple[str, Any]:
    """Return key and value of a file.

    Raises:
        PayloadError: somebody else has written it.
    """
    head, _, content = file.partition(b"\n")
    try:
        fields = json.loads(head)
        if fields["kind"] not in get_args(Kind):
            raise ValueError(f"kind {fields['kind']!r}")  # noqa: TRY301 - reported with the rest
        return str(fields["key"]), decode(fields["kind"], content)
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(
            f"{path} is no document of a workspace: {error!r}",
            why="its first line says what the rest is; something else has written this file",
            fix="remove the file, and write it through the workspace",
        ) from error

"""What an agent says, made to fit into the store: what is too long is cut with a mark, and whole in the folder of its run.

A run that has succeeded is not to fail, or to be run again, because it had more to say than `payload_bytes_max`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.model.agent import RunEnd, ToolUse

__all__ = ["RESULT", "STRUCTURED", "fitting", "last_that_fit", "short_input"]

_log = logging.getLogger("sennit")

# In the folder of a run, when its result is too long for the store.
RESULT: Final = "result.txt"
STRUCTURED: Final = "structured.json"

# Of a tool's input: it is for people and for the agent, which has it in its own session.
_INPUT_CHARS_MAX: Final = 2_000
# Of one that a person is to decide on.
_ASKED_CHARS_MAX: Final = 20_000
# msgspec reads and writes as deep as the interpreter's stack has room, 1,000 in all; some of it is used already.
_DEPTH_MAX: Final = 200
# A character takes at most so many bytes in JSON: `\u0000`.
_CHAR_BYTES_MAX: Final = 6


def fitting(end: RunEnd, size_bytes_max: int, folder: Path | None) -> RunEnd:
    """Return an end that takes at most half of `size_bytes_max`: the result of the task holds it, and more."""
    most = size_bytes_max // 2
    if end.structured is not None and _is_deep(end.structured):
        end = msgspec.structs.replace(
            end, structured=None, text=end.text + "\n… its data is nested too deeply to be kept"
        )
    end = msgspec.structs.replace(
        end, asks=tuple(msgspec.structs.replace(ask, input=_short(ask.input, _ASKED_CHARS_MAX)) for ask in end.asks)
    )
    if len(msgspec.json.encode(end)) <= most:
        return end
    if end.asks:
        chars = min(_ASKED_CHARS_MAX, most // (2 * _CHAR_BYTES_MAX * len(end.asks)))
        asks = tuple(msgspec.structs.replace(ask, input=_short(ask.input, chars)) for ask in end.asks)
        end = msgspec.structs.replace(end, asks=asks)
    note, structured = "", msgspec.json.encode(end.structured)
    if len(structured) > most // 4:
        note += f"\n… the structured result has {len(structured):,} bytes{_kept(folder, STRUCTURED, structured)}"
        end = msgspec.structs.replace(end, structured=None)
    chars = most // (4 * _CHAR_BYTES_MAX)
    if len(end.text) > chars:
        note += f"\n… cut by sennit, {len(end.text):,} characters{_kept(folder, RESULT, end.text.encode('utf-8', 'replace'))}"
    return msgspec.structs.replace(end, text=end.text[:chars] + note)


def short_input(value: Any, size_bytes_max: int) -> Any:
    """Return a tool's input, or the beginning of its JSON."""
    return _short(value, min(_INPUT_CHARS_MAX, size_bytes_max // (4 * _CHAR_BYTES_MAX)))


def last_that_fit(uses: Sequence[ToolUse], size_bytes_max: int) -> tuple[ToolUse, ...]:
    """Return as many of the last as take a quarter of `size_bytes_max`."""
    left, kept = size_bytes_max // 4, 0
    for use in reversed(uses):
        left -= len(msgspec.json.encode(use))
        if left < 0:
            break
        kept += 1
    return tuple(uses[len(uses) - kept :])


def _short(value: Any, chars: int) -> Any:
    if _is_deep(value):
        return "… nested too deeply to be shown"
    text = msgspec.json.encode(value).decode()
    return value if len(text) <= chars else text[:chars] + "…"


def _is_deep(value: Any) -> bool:
    """Return whether lists and objects are nested so deeply that a reader with a full stack could not read them."""
    level = [value]
    for _ in range(_DEPTH_MAX):
        level = [
            part
            for item in level
            if isinstance(item, (dict, list))
            for part in (item.values() if isinstance(item, dict) else item)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return False
    return True


def _kept(folder: Path | None, name: str, content: bytes) -> str:
    if folder is None:
        return ""
    path = folder / name
    try:
        path.touch(mode=0o600)
        path.write_bytes(content)
    except OSError as error:
        _log.warning("the whole result of an agent could not be written: %s", error)
        return ", and could not be written"
    return f", whole in {path}"

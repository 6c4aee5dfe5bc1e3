"""What all adapters share in reading a program's lines: JSON that never raises, values of the right type, usage, how it ended.

    b'{"type": …}' ─read_object─► dict | None ─text, whole, number, part, parts─► values of the right type, or empty ones

A program's output is hostile or broken at times: cut in mid-line, a stack trace, JSON of another shape. Nothing here raises
because of it. What an error's words mean is in `troubles`.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.execute.adapters.base import Exit
from sennit.model.agent import AgentEvent, AgentUsage

# Linux takes no longer argument: 32 pages (MAX_ARG_STRLEN in include/uapi/linux/binfmts.h), with its last byte of 0.
ARGUMENT_BYTES_MAX: Final = 32 * 4096 - 1


def write_private(path: Path, words: str) -> Path:
    """Write a file for this user only, and return its full path.

    Raises:
        OSError: it could not be written.
    """
    path.touch(mode=0o600)
    path.write_text(words, encoding="utf-8", errors="replace")
    return path.absolute()


# ---------------------------------------------------------------- values out of JSON


def read_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that the line is, None if it is none."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def text(value: object) -> str:
    """Return a string, "" for anything else. Half surrogates, which no file and no store takes, become `?`."""
    if not isinstance(value, str):
        return ""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def number(value: object) -> float | None:
    """Return a finite number, None for anything else; true is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: object) -> int:
    """Return a whole number of at least 0, 0 for anything else."""
    found = number(value)
    return 0 if found is None else max(0, int(found))


def part(value: object, *path: str) -> dict[str, Any]:
    """Return the object at `path` inside `value`, {} where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def parts(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list, [] for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# ---------------------------------------------------------------- usage


def usage_of(told: dict[str, Any], *, cost_usd: float | None = None) -> AgentUsage:
    """Return the usage that a program tells, in the names of Anthropic (claude), OpenAI (codex) or of gemini.

    `input_tokens` counts all that was read. Anthropic's number leaves out what went through its cache, so it is added here;
    those of the others (`cached_input_tokens`, `cached`) hold it already.
    """
    read, made = whole(told.get("cache_read_input_tokens")), whole(told.get("cache_creation_input_tokens"))
    inside = whole(told.get("cached_input_tokens")) or whole(told.get("cached"))
    return AgentUsage(
        input_tokens=whole(told.get("input_tokens")) + read + made,
        output_tokens=whole(told.get("output_tokens")),
        cached_input_tokens=read or inside,
        cost_usd=cost_usd,
    )


def added(one: AgentUsage, other: AgentUsage) -> AgentUsage:
    """Return the sum; a cost that only one of them knows is that of both."""
    costs = [usage.cost_usd for usage in (one, other) if usage.cost_usd is not None]
    return AgentUsage(
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cached_input_tokens=one.cached_input_tokens + other.cached_input_tokens,
        cost_usd=sum(costs) if costs else None,
    )


# ---------------------------------------------------------------- the end


def has_ended_well(exit: Exit) -> bool:  # noqa: A002 - that is what it is
    """Return whether the exit lets a success be one: code 0, or our own end of a program that hung after its terminal event."""
    return exit.code == 0 or exit.cause == "linger"


def words_of(exit: Exit) -> str:  # noqa: A002 - that is what it is
    """Return how a process ended, as a phrase: "exit code 3", "ended by SIGKILL (memory)"."""
    if exit.code is not None:
        how = f"exit code {exit.code}"
    else:
        known = exit.signal in {known.value for known in signal.Signals}
        how = f"ended by {signal.Signals(exit.signal).name if known else f'signal {exit.signal}'}"
    return f"{how} ({exit.cause})" if exit.cause else how


class LastWords:
    """The last lines that a program wrote to stderr, or that were no event: often all that tells why it failed.

    Bounded: `LINES_MAX` lines of `LINE_BYTES_MAX`.
    """

    LINES_MAX: Final = 20
    LINE_BYTES_MAX: Final = 2000

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=self.LINES_MAX)

    def add(self, line: bytes) -> None:
        """Keep a line; an empty one is none."""
        if kept := line[: self.LINE_BYTES_MAX].strip():
            self._lines.append(kept)

    def __str__(self) -> str:
        return b"\n".join(self._lines).decode("utf-8", "replace")


class LineReader:
    """Half a `Reader`: splits off JSON, keeps the last words. An adapter of a program that writes JSON lines derives from it.

    `_read` gets each object, and never raises if it takes values out with the functions above.
    """

    def __init__(self) -> None:
        self.last_words = LastWords()

    def feed(self, line: bytes) -> list[AgentEvent]:
        """Read one line of stdout; what is no JSON object is kept with the last words."""
        told = read_object(line)
        if told is None:
            self.last_words.add(line)
            return []
        return self._read(told)

    def feed_error(self, line: bytes) -> list[AgentEvent]:
        """Keep a line of stderr; it is no event."""
        self.last_words.add(line)
        return []

    def to_say(self) -> bytes:
        """Return b"": nothing is written to it."""
        return b""

    def _read(self, told: dict[str, Any]) -> list[AgentEvent]:
        raise NotImplementedError

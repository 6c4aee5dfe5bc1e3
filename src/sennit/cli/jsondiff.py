"""What has changed from one JSON value to another, as operations of RFC 6902: done in order, they make the second.

    {"n": 1, "tags": ["a"]}  →  {"n": 2, "tags": ["a", "b"]}        ~ /n       1 → 2
                                                                    + /tags/1  "b"

An item that moved inside a list is shown as taken out and put in again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final, Literal

import msgspec

# Lists whose changed parts are longer than this together are compared item by item: matching takes the product.
MATCHED_ITEMS_MAX: Final = 2000

_MARKS: Final = {"add": "+", "remove": "-", "replace": "~"}


@dataclass(frozen=True, slots=True)
class Op:
    """One change. `path` is a JSON pointer (RFC 6901); `old` and `new` are the values before and after, if there are."""

    op: Literal["add", "remove", "replace"]
    path: str
    old: Any = None
    new: Any = None

    def as_json(self) -> dict[str, Any]:
        """Return the operation of RFC 6902, with the value before as `old`."""
        value = {} if self.op == "remove" else {"value": self.new}
        old = {} if self.op == "add" else {"old": self.old}
        return {"op": self.op, "path": self.path, **value, **old}

    def line(self, width: int) -> str:
        """Return it for people, values cut at `width` characters."""
        shown = [_short(value, width) for value in self._values()]
        return f"{_MARKS[self.op]} {self.path or '(the whole)'}  {' → '.join(shown)}"

    def _values(self) -> list[Any]:
        match self.op:
            case "add":
                return [self.new]
            case "remove":
                return [self.old]
            case "replace":
                return [self.old, self.new]


def diff(old: Any, new: Any, path: str = "") -> Iterator[Op]:
    """Yield the operations that make `new` of `old`; both are decoded JSON."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if key not in new:
                yield Op("remove", _below(path, key), old=old[key])
            else:
                yield from diff(old[key], new[key], _below(path, key))
        for key in new:
            if key not in old:
                yield Op("add", _below(path, key), new=new[key])
    elif isinstance(old, list) and isinstance(new, list):
        yield from _lists(old, new, path)
    elif not _same(old, new):
        yield Op("replace", path, old=old, new=new)


def summary(ops: Sequence[Op]) -> str:
    """Return how many of each kind: `+1 ~2`, or "" for none."""
    counts = {mark: sum(op.op == name for op in ops) for name, mark in _MARKS.items()}
    return " ".join(f"{mark}{n}" for mark, n in counts.items() if n)


def _lists(old: list[Any], new: list[Any], path: str) -> Iterator[Op]:
    """Compare lists; indices are those at the moment of each operation."""
    before, after = [_text(item) for item in old], [_text(item) for item in new]
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    a, b = before[head : len(old) - tail], after[head : len(new) - tail]
    if len(a) + len(b) > MATCHED_ITEMS_MAX:
        blocks = [(head, head + len(a), head, head + len(b))]
    else:
        found = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        blocks = [(head + i, head + i2, head + j, head + j2) for tag, i, i2, j, j2 in found if tag != "equal"]
    shift = 0
    for i, i_end, j, j_end in blocks:
        pairs = min(i_end - i, j_end - j)
        for n in range(pairs):
            yield from diff(old[i + n], new[j + n], _below(path, i + n + shift))
        for n in range(i + pairs, i_end):
            yield Op("remove", _below(path, i + pairs + shift), old=old[n])
        for n in range(j + pairs, j_end):
            yield Op("add", _below(path, n), new=new[n])
        shift += (j_end - j) - (i_end - i)


def _common(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """Return how many items both begin with."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def _below(path: str, key: str | int) -> str:
    return f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _same(old: Any, new: Any) -> bool:
    """Compare as JSON: for Python, 1 is True and 1.0."""
    return _text(old) == _text(new)


def _text(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _short(value: Any, width: int) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= width else f"{text[: width - 1]}… ({len(text):,} characters)"

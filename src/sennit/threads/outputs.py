"""The outputs of a thread: a list that only grows, of files that hold nothing but the data.

    00000001-report.md      the data, under a name that people and tools can read
    00000001~               what it is; written second, and by this the output is there

A kill between the two leaves data without a description: no output, and the next writer removes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.errors import UsageError
from sennit.threads.documents import Kind, decode
from sennit.threads.folders import Folder
from sennit.threads.names import readable

__all__ = ["Output", "add_output", "list_outputs", "read_output"]

_DIGITS: Final = 8
_ABOUT: Final = "~"


class Output(msgspec.Struct, kw_only=True, frozen=True):
    """One output of a thread. `path` is a file with nothing but the data; `workspace.output` reads it.

    Attributes:
        sequence: 1 for the first output of its thread, without gaps.
        at_us: wall clock, µs since the epoch.
    """

    sequence: int
    name: str
    kind: Kind
    size_bytes: int
    at_us: int
    task_id: int | None
    path: Path


class _About(msgspec.Struct):
    name: bytes  # base64 in the file: a name may be no Unicode
    kind: Kind
    size_bytes: int
    at_us: int
    task_id: int | None
    file: str


def add_output(folder: Folder, name: str, kind: Kind, content: bytes, *, task_id: int | None, at_us: int) -> Output:
    """Append one; the caller holds the lock of the thread."""
    names = folder.names()
    sequence = 1 + max((_sequence(n) for n in names if n.endswith(_ABOUT)), default=0)
    for left in (n for n in names if _sequence(n) >= sequence):
        folder.remove(left)
    number = f"{sequence:0{_DIGITS}}"
    file = f"{number}-{readable(name) or 'output'}"
    about = _About(
        name=name.encode("utf-8", "surrogatepass"),
        kind=kind,
        size_bytes=len(content),
        at_us=at_us,
        task_id=task_id,
        file=file,
    )
    folder.replace(file, content)
    folder.replace(number + _ABOUT, msgspec.json.encode(about))
    return _output(folder, sequence, about)


def list_outputs(folder: Folder) -> list[Output]:
    """Return all of them in order."""
    numbers = sorted(_sequence(name) for name in folder.names() if name.endswith(_ABOUT))
    return [output for number in numbers if (output := _look(folder, number)) is not None]


def read_output(folder: Folder | None, sequence: int) -> Any:
    """Return the data of one.

    Raises:
        UsageError: there is none with this number.
    """
    output = None if folder is None else _look(folder, sequence)
    content = None if folder is None or output is None else folder.read(output.path.name)
    if output is None or content is None:
        raise UsageError(f"the thread has no output {sequence}", fix="see workspace.outputs(thread_id)")
    return decode(output.kind, content)


def _look(folder: Folder, sequence: int) -> Output | None:
    content = folder.read(f"{sequence:0{_DIGITS}}{_ABOUT}")
    return None if content is None else _output(folder, sequence, msgspec.json.decode(content, type=_About))


def _output(folder: Folder, sequence: int, about: _About) -> Output:
    return Output(
        sequence=sequence,
        name=about.name.decode("utf-8", "surrogatepass"),
        kind=about.kind,
        size_bytes=about.size_bytes,
        at_us=about.at_us,
        task_id=about.task_id,
        path=folder.path / about.file,
    )


def _sequence(name: str) -> int:
    number = name[:_DIGITS]
    return int(number) if number.isdecimal() else 0

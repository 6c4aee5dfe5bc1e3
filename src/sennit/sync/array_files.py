"""numpy arrays in arguments and results: small ones inside the JSON, large ones as files by content, mapped read-only.

    array ─► below FILE_BYTES_MIN, or no folder ─► {"$sennit.array": {"npy": "base64…"}}
          └► file FOLDER/<hash>.npy, fsynced ────► {"$sennit.array": {"file": "/absolute/…", "dtype": …, "shape": …}}

A file is written once, under the hash of what is in it, and is there before the row that names it. Whoever reads it maps
it: nothing is copied, and nothing can be written to it. `carried` puts an array of somebody else (Ray's object store) in
the place of the file, and keeps what is encoded out of the folder for the caller to carry.

numpy is never imported here before somebody has an array.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sennit.errors import PayloadError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

__all__ = ["ARRAY", "FILE_BYTES_MIN", "Carried", "carried", "files_in", "is_array", "keep_in", "read", "write"]

ARRAY: Final = "$sennit.array"

FILE_BYTES_MIN: Final = 65_536
"""From this size on an array is a file: below it a file costs more (two fsyncs) than a third more JSON."""


@dataclass(slots=True)
class Carried:
    """Arrays that travel beside the JSON: path → array. `given` is looked at before the file, `taken` is not written."""

    folder: Path
    given: Mapping[str, Array]
    taken: dict[str, Array] = field(default_factory=dict)


@dataclass(slots=True)
class _Place:
    folder: Path | None = None


# One per process: the paths in what is stored are absolute, so a second app of this process reads all the same.
_place: Final = _Place()
_carried: ContextVar[Carried | None] = ContextVar("sennit-carried-arrays", default=None)


def keep_in(folder: Path | None) -> None:
    """Write the large arrays of this process into `folder` from now on; None: they go inside the JSON, too."""
    _place.folder = None if folder is None else folder.absolute()


def folder() -> Path | None:
    """Return where large arrays of this process go."""
    return _place.folder


@contextmanager
def carried(folder: Path, given: Mapping[str, Array]) -> Iterator[Carried]:
    """Read from `given` what is there, and collect large arrays that are encoded, instead of writing them."""
    here = Carried(folder, given)
    token = _carried.set(here)
    try:
        yield here
    finally:
        _carried.reset(token)


# ------------------------------------------------------------ writing


def is_array(value: Any) -> bool:
    """Return whether `value` is a numpy array; numpy need not be installed."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def plain_of(value: Array) -> dict[str, Any]:
    """Return the JSON form of an array; a large one is in its file when this returns.

    Raises:
        PayloadError: it holds Python objects.
        OSError: the file cannot be written.
    """
    if value.dtype.hasobject:
        raise PayloadError(
            f"an array of dtype {value.dtype} cannot be stored",
            why="it holds Python objects, and reading those back would run code",
            fix="use a dtype of numbers, booleans or fixed-size text, or a list",
        )
    here = _carried.get()
    home = here.folder if here is not None else _place.folder
    if home is None or value.nbytes < FILE_BYTES_MIN:
        return {ARRAY: {"npy": base64.b64encode(_npy(value)).decode("ascii")}}
    path = home / f"{digest(value)}.npy"
    if here is not None:
        here.taken[str(path)] = value
    else:
        write(path, value)
    return {ARRAY: {"file": str(path), "dtype": str(value.dtype), "shape": list(value.shape)}}


def digest(value: Array) -> str:
    """Return the name of an array: BLAKE2b over dtype, shape and elements in C order."""
    numpy = sys.modules["numpy"]
    ordered = numpy.asarray(value, order="C")
    taste = hashlib.blake2b(repr((ordered.dtype.descr, ordered.shape)).encode(), digest_size=20)
    taste.update(memoryview(ordered.reshape(-1).view(numpy.uint8)))
    return taste.hexdigest()


def write(path: Path, value: Array) -> None:
    """Write an array to the file that its hash names, unless it is there; durable and whole when this returns.

    Raises:
        OSError: it cannot be written.
    """
    import numpy as np  # noqa: PLC0415 - an extra

    if path.exists():
        os.utime(path)  # who clears files away by age sees that it is in use again
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
        try:
            np.save(file, np.asarray(value, order="C"), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)  # noqa: PTH105 - a name, not a path
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _npy(value: Array) -> bytes:
    import numpy as np  # noqa: PLC0415 - an extra

    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


# ------------------------------------------------------------ reading


def is_plain_array(value: Any) -> bool:
    """Return whether `value` is the JSON form of an array."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(ARRAY), dict)


def revived(value: dict[str, Any]) -> Array:
    """Return the array of its JSON form; one from a file is mapped and read-only.

    Raises:
        PayloadError: its file is not there, or is no array.
    """
    form = value[ARRAY]
    if "npy" in form:
        import numpy as np  # noqa: PLC0415 - an extra

        inside: Array = np.load(io.BytesIO(base64.b64decode(form["npy"])), allow_pickle=False)
        return inside
    here = _carried.get()
    if here is not None and form["file"] in here.given:
        return here.given[form["file"]]
    return read(Path(form["file"]))


def read(path: Path) -> Array:
    """Map the array in a file, read-only.

    Raises:
        PayloadError: the file is not there, or is no array.
    """
    import numpy as np  # noqa: PLC0415 - an extra

    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise PayloadError(
            f"the array {path} cannot be read: {error}",
            why="large arrays are files beside the store, and this process does not find this one",
            fix="on several machines let `array_folder` be a folder that all of them mount at the same path",
        ) from error


def files_in(payload: bytes) -> list[str]:
    """Return the paths of the arrays in a payload, each once."""
    if ARRAY.encode() not in payload:
        return []
    found: dict[str, None] = {}
    rest: list[Any] = [msgspec.json.decode(payload)]
    while rest:
        value = rest.pop()
        if is_plain_array(value):
            if isinstance(path := value[ARRAY].get("file"), str):
                found[path] = None
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return list(found)

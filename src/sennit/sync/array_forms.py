"""What a shared array is in JSON: where its memory is, which use of which block, its dtype and shape. 250 bytes.

{"$sennit.shared": {"pid": 4711, "fd": 12, "ino": 3532, "token": "9f…", "boot": "b2c1…", "block": 3, "generation": 7,
                    "offset": 4096, "size": 16781312, "dtype": "<f8", "shape": [1000, 8, 8]}}
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sennit.errors import ArrayInvalid, PayloadError, UsageError
from sennit.sync.clock import boot_id

if TYPE_CHECKING:
    import numpy as np

    Dtype = np.dtype[Any]

__all__ = ["SHARED", "Form", "Place", "checked", "form_in", "is_form", "need_numpy", "places_in", "this_boot"]

SHARED: Final = "$sennit.shared"

_BYTES_MAX: Final = 1 << 62


class Place(msgspec.Struct, frozen=True):
    """Where the memory of an array is: a block of a segment of a process, in one of its uses."""

    pid: int
    fd: int
    ino: int
    token: str
    block: int
    generation: int
    offset: int
    size: int
    boot: str


class Form(msgspec.Struct, frozen=True, omit_defaults=True):
    """A shared array as JSON. `place` is None for one without elements."""

    dtype: str | list[Any]
    shape: tuple[int, ...]
    place: Place | None = None
    readonly: bool = False

    def plain(self) -> dict[str, Any]:
        """Return what goes into JSON."""
        return {SHARED: msgspec.to_builtins(self)}

    def numpy_dtype(self) -> Dtype:
        """Return the dtype."""
        return _simple(self.dtype) if isinstance(self.dtype, str) else _decoded(self.dtype)


def need_numpy() -> ModuleType:
    """Return numpy.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import numpy as np  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            "shared arrays are numpy arrays, and numpy is not installed", fix="pip install 'sennit[numpy]'"
        ) from error
    return np


def checked(shape: int | Sequence[int], dtype: Any) -> tuple[tuple[int, ...], Dtype, int, str | list[Any]]:
    """Return shape, dtype, size in bytes and the dtype as JSON.

    Raises:
        ArrayInvalid: there is no such array, or its elements are Python objects.
        UsageError: numpy is not installed.
    """
    np = need_numpy()
    try:
        lengths = (operator.index(shape),) if not isinstance(shape, Sequence) else tuple(map(operator.index, shape))
        wanted: Dtype = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise ArrayInvalid(
            f"shape={shape!r}, dtype={dtype!r} is no array: {error}",
            fix="use a tuple of whole numbers and a dtype such as np.float64",
        ) from error
    if any(length < 0 for length in lengths):
        raise ArrayInvalid(f"shape={shape!r} has a negative length", fix="no length is below 0; 0 is an empty array")
    if len(lengths) > 32:  # what numpy 1 can have; numpy 2 has 64
        raise ArrayInvalid(f"shape={shape!r} has {len(lengths)} dimensions", fix="numpy arrays have 32 at most")
    coded = _coded(wanted)
    span_bytes = max(1, wanted.itemsize)  # numpy refuses one by its other lengths, too, when one is 0
    for length in lengths:
        span_bytes *= max(1, length)
    size_bytes = 0 if 0 in lengths else wanted.itemsize and span_bytes
    if span_bytes > _BYTES_MAX:
        raise ArrayInvalid(f"shape={shape!r} of {wanted} is more than there are addresses", fix="use a smaller shape")
    return lengths, wanted, size_bytes, coded


@lru_cache(maxsize=256)
def _coded(dtype: Dtype) -> str | list[Any]:
    """Return a dtype as JSON."""
    from numpy.lib.format import descr_to_dtype, dtype_to_descr  # noqa: PLC0415 - an extra

    if dtype.hasobject:
        raise ArrayInvalid(
            f"an array of dtype {dtype} cannot be shared",
            why="its elements are Python objects: addresses that mean something in one process only",
            fix="use numbers, booleans, fixed-size text (S10, U10) or a structured dtype of those",
        )
    coded: str | list[Any] = dtype_to_descr(dtype)  # type: ignore[no-untyped-call, unused-ignore]
    if descr_to_dtype(coded) != dtype:  # type: ignore[no-untyped-call, arg-type, unused-ignore]
        raise ArrayInvalid(
            f"an array of dtype {dtype} cannot be shared", why="it has no name that every process understands"
        )
    return coded


@lru_cache(maxsize=256)
def _simple(coded: str) -> Dtype:
    return _decoded(coded)


def _decoded(coded: str | list[Any]) -> Dtype:
    from numpy.lib.format import descr_to_dtype  # noqa: PLC0415 - an extra

    found: Dtype = descr_to_dtype(_tuples(coded))  # type: ignore[no-untyped-call, unused-ignore]
    return found


def _tuples(coded: Any, *, field: bool = False) -> Any:
    """Return what JSON made lists of as the tuples that numpy wants: fields are tuples, lists of fields are lists."""
    if not isinstance(coded, list):
        return coded
    if field:  # (name, dtype) or (name, dtype, shape)
        name, dtype, *shape = coded
        title = tuple(name) if isinstance(name, list) else name
        return (title, _tuples(dtype), *(tuple(part) for part in shape))
    return [_tuples(part, field=True) for part in coded]


def is_form(value: Any) -> bool:
    """Return whether `value` is the JSON form of a shared array."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(SHARED), dict)


def form_in(value: dict[str, Any]) -> Form:
    """Return the form in its JSON.

    Raises:
        PayloadError: it is none.
    """
    try:
        return msgspec.convert(value[SHARED], Form)
    except msgspec.ValidationError as error:
        raise PayloadError(f"this is no shared array: {error}", why="it was written by other code") from error


def places_in(payload: bytes) -> Iterator[dict[str, Any]]:
    """Yield the places of all shared arrays in JSON."""
    rest: list[Any] = [msgspec.json.decode(payload)]
    while rest:
        value = rest.pop()
        if is_form(value):
            if isinstance(place := value[SHARED].get("place"), dict):
                yield place
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, list):
            rest += value


@lru_cache(maxsize=1)
def this_boot() -> str:
    """Return what tells this run of this machine from all others."""
    return boot_id()[:13]

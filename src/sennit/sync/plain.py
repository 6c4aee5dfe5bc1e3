"""Values become JSON and come back as the type that was asked for.

Built on msgspec: its structs, dataclasses, TypedDicts, enums, datetimes and the rest of its types work as they are,
pydantic models, paths, numpy arrays (`array_files`) and shared arrays (`arrays`) through two hooks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final, Generic, TypeVar, get_origin

import msgspec

from sennit.errors import ArrayReleased, PayloadError, PayloadTooLarge, UsageError
from sennit.sync import array_files
from sennit.sync.array_forms import is_form
from sennit.sync.array_shared import SharedArray, from_form

T = TypeVar("T")

# What decoding can raise. A pydantic ValidationError is a ValueError.
UNREADABLE: Final = (msgspec.ValidationError, ValueError, NotImplementedError)


# msgspec names the format only of those that must have a time zone, and would let any text pass here.
_MOMENTS: Final = ((dt.datetime, "date-time"), (dt.time, "time"))


def to_plain(value: Any) -> Any:
    """Return a form msgspec can encode of a value it cannot; for pydantic models, paths and arrays.

    Raises:
        NotImplementedError: there is none.
    """
    if array_files.is_array(value):
        return array_files.plain_of(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, SharedArray):
        return _shared(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"values of type {type(value).__qualname__} do not serialise to JSON")


def _shared(value: SharedArray) -> dict[str, Any]:
    try:
        return value.plain()
    except (ArrayReleased, UsageError) as error:
        raise PayloadError(error.what, why=error.why, fix=error.fix) from error


def from_plain(wanted: type, value: Any) -> Any:
    """Return what JSON holds as a type msgspec does not know.

    Raises:
        NotImplementedError: it cannot be built.
    """
    if hasattr(wanted, "model_validate"):
        return wanted.model_validate(value)
    if array_files.is_plain_array(value):
        return array_files.revived(value)
    wanted = get_origin(wanted) or wanted  # NDArray[float64] is a generic ndarray
    if is_form(value):
        return from_form(wanted, value)
    if isinstance(value, wanted):
        return value
    if issubclass(wanted, PurePath) and isinstance(value, str):
        return wanted(value)
    raise NotImplementedError(f"cannot build {wanted.__qualname__} from JSON")


_encoder: Final = msgspec.json.Encoder(enc_hook=to_plain)


class Typed(Generic[T]):
    """JSON of one type: a msgspec struct, dataclass, TypedDict, pydantic model, or anything made of plain data.

    Raises:
        UsageError: `wanted` is no type that can be read from JSON.
    """

    def __init__(self, wanted: Callable[..., T]) -> None:
        self.wanted = wanted
        try:
            self._decoder: Any = msgspec.json.Decoder(wanted, dec_hook=from_plain)
        except (TypeError, NameError) as error:
            raise UsageError(
                f"type={wanted!r} cannot be read from JSON: {error}",
                fix="use a msgspec struct, a dataclass, a TypedDict, a pydantic model, or plain data",
            ) from error

    @property
    def name(self) -> str:
        """How messages call the type."""
        return getattr(self.wanted, "__qualname__", None) or repr(self.wanted)

    def encode(self, value: T, what: str, size_bytes_max: int) -> bytes:
        """Return `value` as JSON that `decode` accepts.

        Raises:
            PayloadError, PayloadTooLarge: it does not serialise, is no value of the type, or is too large.
        """
        try:
            data = _encoder.encode(value)
            self._decoder.decode(data)
        except (TypeError, OverflowError, *UNREADABLE) as error:
            raise PayloadError(
                f"{what} is no {self.name}: {error}",
                why="it is stored as JSON and read back as that type",
                fix=f"give a {self.name} of plain data",
            ) from error
        if len(data) > size_bytes_max:
            raise PayloadTooLarge(what, size_bytes=len(data), size_bytes_max=size_bytes_max)
        return data

    def decode(self, data: bytes | msgspec.Raw, what: str) -> T:
        """Return the value of stored JSON.

        Raises:
            PayloadError: it does not fit the type.
        """
        try:
            value: T = self._decoder.decode(data)
        except UNREADABLE as error:
            raise PayloadError(
                f"{what} does not fit {self.name}: {error}",
                why="it was stored by other code, or the type was changed since",
                fix="keep old data readable: give new fields a default",
            ) from error
        return value

    def schema(self) -> dict[str, Any] | None:
        """Return the JSON schema; None when there is none to hold a value to."""
        model_schema = getattr(self.wanted, "model_json_schema", None)
        if model_schema is not None:
            whole: dict[str, Any] = model_schema()
            return whole
        for moment, form in _MOMENTS:
            if self.wanted is moment:
                return {"type": "string", "format": form}
        models: dict[str, Any] = {}

        def schema_of(foreign: type) -> dict[str, Any]:
            if issubclass(foreign, PurePath):
                return {"type": "string"}
            part: dict[str, Any] = getattr(foreign, "model_json_schema", dict)()
            models.update(part.pop("$defs", {}))
            return part

        try:
            found = msgspec.json.schema(self.wanted, schema_hook=schema_of)
        except TypeError:
            return None
        if models:
            found.setdefault("$defs", {}).update(models)
        return found or None


@lru_cache(maxsize=512)
def _known(wanted: Callable[..., Any]) -> Typed[Any]:
    return Typed(wanted)


def typed(wanted: Callable[..., T]) -> Typed[T]:
    """Return the codec of a type; a known one again.

    Raises:
        UsageError: `wanted` is no type that can be read from JSON.
    """
    try:
        return _known(wanted)
    except TypeError:  # it has no hash
        return Typed(wanted)

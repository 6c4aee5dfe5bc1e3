"""Arguments and results become JSON and come back as what the handler's annotations say.

    submit(path, draft=handle) ─► {"path": "a.py", "draft": {"$sennit.parent": 0}} ─► typed arguments

Built on msgspec: its structs, dataclasses, TypedDicts, enums, datetimes and the rest of its types work as they are, and
pydantic models through two hooks. Never pickle: a payload is readable in any language, and reading it runs nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Final, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

import msgspec
from msgspec import UNSET, UnsetType

from sennit.errors import ArrayGone, PayloadError, PayloadTooLarge
from sennit.model.retry import NOT_A_RESULT, Returned
from sennit.model.task import Ref
from sennit.sync.array_forms import SHARED, places_in
from sennit.sync.array_shared import SharedArray, released_at_end
from sennit.sync.plain import from_plain, to_plain

PARENT: Final = "$sennit.parent"


@runtime_checkable
class HasRef(Protocol):
    """A handle, seen from here: an argument that will be the result of another task."""

    ref: Ref


class _Collector:
    """The encoder's hook for one payload: finds handles at any depth, at no cost for other values."""

    def __init__(self) -> None:
        self.parents: list[Ref] = []

    def __call__(self, value: Any) -> Any:
        if isinstance(value, HasRef):
            for n, known in enumerate(self.parents):
                if known is value.ref:
                    return {PARENT: n}
            self.parents.append(value.ref)
            return {PARENT: len(self.parents) - 1}
        return to_plain(value)


_plain_encoder: Final = msgspec.json.Encoder(enc_hook=to_plain)


def _lasting(value: Any) -> Any:
    """Return the JSON form of what means the same tomorrow: the contents of a shared array change under its address."""
    if isinstance(value, SharedArray):
        raise NotImplementedError("a shared array has an address and no content that is known")
    return to_plain(value)


def _raise_if_gone(error: Exception) -> None:
    """Raise what a hook raised for a shared array as it is: msgspec made it an error of types, which it is not."""
    if isinstance(error.__cause__, ArrayGone):
        raise error.__cause__ from None


class Codec:
    """The types of one function.

    Raises:
        PayloadError: the function takes `*args` or `**kwargs`, which have no names to store arguments under.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._name = name
        self._signature = inspect.signature(function)
        hints = _hints(function)
        self._positional: list[str] = []
        self._names: set[str] = set()
        self._required: set[str] = set()
        self._positional_only: list[str] = []
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for parameter in self._signature.parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise PayloadError(
                    f"handler {name!r} takes {parameter}",
                    why="a task stores its arguments by name, so that they survive a change of the function",
                    fix="give the handler named parameters; a list or dict parameter can hold the rest",
                )
            self._names.add(parameter.name)
            if parameter.kind is not parameter.KEYWORD_ONLY:
                self._positional.append(parameter.name)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional_only.append(parameter.name)
            wanted = hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                self._required.add(parameter.name)
                fields.append((parameter.name, wanted))
            else:
                fields.append((parameter.name, _or_unset(wanted), UNSET))
        self._arguments = msgspec.defstruct(f"{name}.arguments", fields, kw_only=True, forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(self._arguments, dec_hook=from_plain)
        self._result: Any = msgspec.json.Decoder(hints.get("return", Any), dec_hook=from_plain)

    # ------------------------------------------------------------ on the submitting side

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any], size_bytes_max: int) -> tuple[bytes, list[Ref]]:
        """Return the payload and the tasks whose results it needs.

        Raises:
            PayloadError: the arguments do not fit the signature or the annotations, or do not serialise.
            PayloadTooLarge: they take more than `size_bytes_max`.
        """
        collector = _Collector()
        try:
            payload = msgspec.json.encode(self._bind(args, kwargs), enc_hook=collector)
        except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
            raise PayloadError(
                f"the arguments of handler {self._name!r} cannot be stored: {error}",
                why="arguments travel as JSON to whichever process runs the task",
                fix="pass plain data, dataclasses, msgspec structs or pydantic models; open files and clients in the body",
            ) from error
        if len(payload) > size_bytes_max:
            what = f"the payload for handler {self._name!r}"
            raise PayloadTooLarge(what, size_bytes=len(payload), size_bytes_max=size_bytes_max)
        if not collector.parents:
            self._check(payload)
        return payload, collector.parents

    def key(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return what tells calls apart by their arguments, however those are passed: the same in every process.

        Raises:
            PayloadError: they do not fit the signature, do not serialise, or a handle is among them.
        """
        try:
            data = msgspec.json.encode(self._bind(args, kwargs), enc_hook=_lasting, order="sorted")
        except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
            raise PayloadError(
                f"a call of handler {self._name!r} has no cache key: {error}",
                why="a cached result is found by the arguments as JSON",
                fix="pass plain data, and arrays as numpy arrays",
            ) from error
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return name → value. `inspect`'s own `bind` is ten times slower and made for its error messages."""
        if len(args) <= len(self._positional):
            values = dict(zip(self._positional, args, strict=False))
            if not kwargs:
                if self._required <= values.keys():
                    return values
            elif self._names >= kwargs.keys() and values.keys().isdisjoint(kwargs):
                values.update(kwargs)
                if self._required <= values.keys():
                    return values
        self._signature.bind(*args, **kwargs)  # raises TypeError and says why
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def _check(self, payload: bytes) -> None:
        """Refuse at submit what the worker could not read."""
        try:
            self._decoder.decode(payload)
        except (msgspec.ValidationError, ValueError, NotImplementedError) as error:
            _raise_if_gone(error)
            raise PayloadError(
                f"the arguments do not fit handler {self._name}{self._signature}: {error}",
                fix="pass what its annotations say",
            ) from error

    # ------------------------------------------------------------ on the running side

    def decode(self, payload: bytes, parents: Sequence[bytes | None]) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments for the call, with parents' results filled in.

        Raises:
            PayloadError: they do not fit the handler as it is now.
        """
        try:
            if parents:
                plain = _fill(msgspec.json.decode(payload), parents)
                arguments = msgspec.convert(plain, self._arguments, str_keys=True, dec_hook=from_plain)
            else:
                arguments = self._decoder.decode(payload)
        except (msgspec.ValidationError, ValueError, NotImplementedError) as error:
            _raise_if_gone(error)
            raise PayloadError(
                f"the stored arguments do not fit handler {self._name}{self._signature}: {error}",
                why="the handler was changed after this task was submitted, or a parent returned another type",
                fix="keep old parameters readable (give new ones a default), then `sennit tasks retry`",
            ) from error
        values = {n: v for n in self._names if (v := getattr(arguments, n)) is not UNSET}
        return [values.pop(n) for n in self._positional_only if n in values], values

    def filled(self, payload: bytes, parents: Sequence[bytes | None]) -> bytes:
        """Return the payload with parents' results filled in, for a worker process that has only bytes."""
        return msgspec.json.encode(_fill(msgspec.json.decode(payload), parents)) if parents else payload

    def encode_result(self, value: Any, size_bytes_max: int) -> bytes:
        """Return a result as JSON.

        Raises:
            PayloadError, PayloadTooLarge: it does not serialise, or is too large.
        """
        return encode_value(value, f"the result of handler {self._name!r}", size_bytes_max)

    def decode_result(self, result: bytes) -> Any:
        """Return a result as the function's return annotation says.

        Raises:
            PayloadError: it does not fit.
        """
        try:
            return self._result.decode(result)
        except (msgspec.ValidationError, ValueError, NotImplementedError) as error:
            _raise_if_gone(error)
            raise PayloadError(
                f"the stored result of handler {self._name!r} does not fit its annotation: {error}"
            ) from error


def encode_value(value: Any, what: str, size_bytes_max: int) -> bytes:
    """Return any value as JSON.

    Raises:
        PayloadError, PayloadTooLarge: it does not serialise, or is too large.
    """
    try:
        encoded = _plain_encoder.encode(value)
    except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
        raise PayloadError(
            f"{what} cannot be stored: {error}",
            why="results travel as JSON to whichever process asks for them",
            fix="return plain data, dataclasses, msgspec structs or pydantic models",
        ) from error
    if len(encoded) > size_bytes_max:
        raise PayloadTooLarge(what, size_bytes=len(encoded), size_bytes_max=size_bytes_max)
    return encoded


def result_decoder(function: Callable[..., Any]) -> Callable[[bytes], Any]:
    """Return a decoder for what `function` is annotated to return; plain JSON without an annotation."""
    return msgspec.json.Decoder(_hints(function).get("return", Any), dec_hook=from_plain).decode


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations that can be resolved; one that cannot (a name for type checkers only) means Any."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {n: a for n, a in getattr(function, "__annotations__", {}).items() if not isinstance(a, str)}
    return {name: _decodable(_without_verdicts(hint)) for name, hint in hints.items()}


def _without_verdicts(hint: Any) -> Any:
    """Return `Review` for `Review | Retry`: a verdict ends the attempt and is never stored as a result."""
    kept = [part for part in get_args(hint) if part not in NOT_A_RESULT]
    if get_origin(hint) not in (Union, UnionType) or len(kept) == len(get_args(hint)):
        return hint
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - built from a tuple


def _decodable(hint: Any) -> Any:
    """Return the hint if msgspec can decode it, else Any."""
    if hint is type(None):
        return None
    try:
        msgspec.json.Decoder(hint, dec_hook=from_plain)
    except (TypeError, NameError):
        return Any
    return hint


def _or_unset(hint: Any) -> Any:
    """Return the hint for a parameter with a default, which need not be in the payload."""
    if hint is Any:
        return Any
    return _decodable(hint | UnsetType if hint is not None else None | UnsetType)


def _fill(value: Any, parents: Sequence[bytes | None]) -> Any:
    """Replace every placeholder by the parent's result."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(n := value.get(PARENT), int) and n < len(parents):
            result = parents[n]
            return None if result is None else msgspec.json.decode(result)
        return {key: _fill(item, parents) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, parents) for item in value]
    return value


_SHARED: Final = SHARED.encode()


@cache
def _codec_of(function: Callable[..., Any]) -> Codec:
    return Codec(function, getattr(function, "__qualname__", repr(function)))


def run_in_process(function: Callable[..., Any], payload: bytes) -> bytes:
    """Run a cpu body in a worker process: arguments in, result out, both JSON. Holds on shared arrays end with it."""
    codec = _codec_of(function)
    if _SHARED not in payload:
        return _own_arrays_stay(_called(codec, function, payload))
    try:
        with released_at_end():
            return _own_arrays_stay(_called(codec, function, payload))
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # the frames of the body refer to numpy views
        raise


def _called(codec: Codec, function: Callable[..., Any], payload: bytes) -> bytes:
    args, kwargs = codec.decode(payload, ())
    value = function(*args, **kwargs)
    if isinstance(value, NOT_A_RESULT):
        raise Returned(value)
    return codec.encode_result(value, sys.maxsize)


def _own_arrays_stay(result: bytes) -> bytes:
    """Refuse a result in the memory of this worker process, which ends when its pool of processes says so."""
    if _SHARED in result and any(place["pid"] == os.getpid() for place in places_in(result)):
        raise PayloadError(
            "a cpu body returned a shared array that it had acquired itself",
            why="its memory belongs to the worker process, and is gone when that ends or lets go",
            fix="acquire it where the task is submitted and pass it as an argument to write into, or return a numpy array",
        )
    return result

"""Words of a command line and lines of a file become calls of a handler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sennit.errors import PayloadError
from sennit.model.order import Priority
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Call, Handler

PRIORITIES: Final = [p.name.lower() for p in Priority]
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def call_of_words(handler: Handler, words: Sequence[str], options: SubmitOptions) -> Call:
    """Return the call that the words of a command line stand for.

    `name=value` is a named argument, anything else the next positional one; values are JSON, and what is not JSON is
    taken as text. A single JSON object names all arguments.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        named = _NAMED.fullmatch(word)
        if named:
            kwargs[named[1]] = _value(named[2])
        else:
            args.append(_value(word))
    if len(args) == 1 and not kwargs and isinstance(args[0], dict):
        args, kwargs = [], args[0]
    return _call(handler, args, kwargs, options)


def call_of_line(handler: Handler, line: str, number: int, options: SubmitOptions) -> Call:
    """Return the call that one line of a JSON Lines file stands for.

    An object names the arguments, an array lists them, anything else is the only one.

    Raises:
        PayloadError: the line is not JSON.
    """
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise PayloadError(
            f"line {number} is not JSON: {error}",
            fix='write one JSON value per line: {"path": "a.py"} names arguments, ["a.py"] lists them',
        ) from None
    match value:
        case dict():
            return _call(handler, (), value, options)
        case list():
            return _call(handler, value, {}, options)
        case _:
            return _call(handler, [value], {}, options)


def _value(word: str) -> Any:
    try:
        return msgspec.json.decode(word)
    except msgspec.DecodeError:
        return word


def _call(handler: Handler, args: Sequence[Any], kwargs: dict[str, Any], options: SubmitOptions) -> Call:
    return Call(handler, handler.options.replaced(options), args, kwargs)

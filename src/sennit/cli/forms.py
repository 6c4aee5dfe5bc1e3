"""JSON schemas for people: what an answer must look like in words, and how words become a value of that look.

    {"type": "object", "properties": {"to": {"type": "string"}, "n": {"type": "integer", "default": 1}}, …}

    to   text                      described
    n    a whole number (1)
    to: ann                        asked, field by field
    n [1]:
    --set n=2 --set to=bob         or changed, field by field

Whether a value fits its schema is not decided here but where the answer is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click
import msgspec

from sennit.cli.output import safe
from sennit.errors import UsageError

Schema = dict[str, Any]

YES: Final = frozenset({"y", "yes", "true"})
NO: Final = frozenset({"n", "no", "false"})

_WORDS: Final = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "yes or no",
    "null": "nothing",
    "array": "a list",
    "object": "an object",
}
_FORMATS: Final = {
    "date-time": "a moment, as 2026-11-21T13:05:00Z",
    "date": "a date, as 2026-11-21",
    "time": "a time, as 13:05:00",
    "uuid": "a UUID",
}
_LIMITS: Final = (
    ("minimum", "at least {}"), ("exclusiveMinimum", "more than {}"),
    ("maximum", "at most {}"), ("exclusiveMaximum", "less than {}"),
    ("minLength", "at least {} characters"), ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"), ("maxItems", "at most {} items"), ("pattern", "like {}"),
)  # fmt: skip


# ---------------------------------------------------------------- reading a schema


def resolved(schema: Schema, whole: Schema) -> Schema:
    """Return a schema without references at its top, and `X or nothing` as X."""
    for _ in range(64):  # a circle of references ends here; it describes nothing
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref.startswith("#/"):
            found: Any = whole
            for part in ref[2:].split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
            schema = {**found, **{key: value for key, value in schema.items() if key not in {"$ref", "$defs"}}}
            continue
        several = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        real = [one for one in several or () if one.get("type") != "null"]
        if len(real) != 1:
            break
        schema = {**{k: v for k, v in schema.items() if k not in {"anyOf", "oneOf", "allOf"}}, **real[0]}
    return schema


def is_optional(schema: Schema) -> bool:
    """True when null is an answer too."""
    return any(one.get("type") == "null" for key in ("anyOf", "oneOf") for one in schema.get(key, ()))


def fields_of(schema: Schema, whole: Schema) -> dict[str, Schema]:
    """Return name → schema of an object's fields; none for anything else."""
    return dict(resolved(schema, whole).get("properties", {}))


def choices_of(schema: Schema, whole: Schema) -> list[Any]:
    """Return the values of an enumeration; none for anything else."""
    found = resolved(schema, whole)
    return [found["const"]] if "const" in found else list(found.get("enum", ()))


def wants_text(schema: Schema, whole: Schema) -> bool:
    """True when nothing but text is an answer."""
    return resolved(schema, whole).get("type") == "string" and not is_optional(schema)


# ---------------------------------------------------------------- describing


def phrase(schema: Schema | None, whole: Schema | None = None) -> str:
    """Return what a schema allows, in a few words."""
    if not schema:
        return "anything"
    whole = schema if whole is None else whole
    found = resolved(schema, whole)
    choices = choices_of(schema, whole)
    if choices:
        said = f"one of {', '.join(_json(choice) for choice in choices)}"
    elif several := found.get("anyOf") or found.get("oneOf"):
        said = " or ".join(dict.fromkeys(phrase(one, whole) for one in several))
    else:
        said = _type(found, whole)
    said += "".join(f", {text.format(found[key])}" for key, text in _LIMITS if key in found)
    return f"{said}, or nothing" if is_optional(schema) else said


def _type(found: Schema, whole: Schema) -> str:
    kind = found.get("type", "")
    if kind == "string" and found.get("format") in _FORMATS:
        return _FORMATS[found["format"]]
    if kind == "array" and isinstance(items := found.get("items"), dict):
        return f"a list, each {phrase(items, whole)}"
    if kind == "object" and found.get("title"):
        return f"{found['title']} ({', '.join(fields_of(found, whole)) or 'no fields'})"
    if isinstance(kind, list):
        return " or ".join(_WORDS.get(one, str(one)) for one in kind)
    return _WORDS.get(kind, "anything")


def described(schema: Schema | None) -> list[tuple[str, str]]:
    """Return (field, words) of a form: one row per field, nested ones as `a.b`; a single row "" for a plain value."""
    if not schema:
        return [("", "anything")]
    rows = list(_rows(schema, schema, "", frozenset()))
    return rows or [("", phrase(schema))]


def _rows(schema: Schema, whole: Schema, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, str]]:
    required = resolved(schema, whole).get("required", ())
    for name, part in fields_of(schema, whole).items():
        found = resolved(part, whole)
        title = str(found.get("title", ""))
        said = phrase(part, whole)
        if name not in required:
            said += f"; default {_json(part['default'])}" if "default" in part else "; may be left out"
        if found.get("description") and "properties" not in found:
            said += f": {found['description']}"
        yield f"{prefix}{name}", said
        if title not in above:  # a type that holds itself is described once
            yield from _rows(part, whole, f"{prefix}{name}.", above | ({title} if title else set()))


# ---------------------------------------------------------------- words to values


def value_of(text: str, schema: Schema | None, whole: Schema | None = None) -> Any:
    """Return what a word of the command line, or of a form, stands for.

    Text where the schema wants text; y and n where it wants yes or no; else JSON, and what is not JSON is text.
    """
    whole = whole or schema or {}
    if schema and wants_text(schema, whole):
        return text
    found = resolved(schema or {}, whole)
    if found.get("type") == "boolean" and text.strip().lower() in YES | NO:
        return text.strip().lower() in YES
    if text in choices_of(schema or {}, whole):
        return text
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    # "12" where text or nothing is wanted
    only_text = found.get("type") == "string" and not isinstance(value, str) and value is not None
    return text if only_text else value


def text_of(word: str) -> str:
    """Return a word of the command line; `-` stands for what is on stdin."""
    return sys.stdin.read().removesuffix("\n") if word == "-" else word


def with_changes(value: Any, changes: Sequence[str], schema: Schema | None) -> Any:
    """Return a copy of `value` with each `a.b=VALUE` done; numbers are items of lists.

    Raises:
        UsageError: a change is not of this form, or there is no such place.
    """
    copy = msgspec.json.decode(msgspec.json.encode(value))
    for change in changes:
        path, separator, text = change.partition("=")
        if not separator or not path:
            raise UsageError(
                f"--set {change!r} is not NAME=VALUE", fix="for example --set subject=Hello or --set to.0=ann"
            )
        _set(copy, path.split("."), text, schema, path)
    return copy


def _set(inside: Any, names: list[str], text: str, schema: Schema | None, path: str) -> None:
    whole, part = schema or {}, schema or {}
    for depth, name in enumerate(names):
        part = _part(part, whole, name)
        key: str | int = name
        if isinstance(inside, list) and name.isdecimal() and int(name) < len(inside):
            key = int(name)
        elif not isinstance(inside, dict):
            where = ".".join(names[:depth]) or "the proposal"
            raise UsageError(
                f"--set {path}: {where} has no {name!r}",
                why=f"it is {msgspec.json.encode(inside).decode()[:80]}",
                fix="name fields that are there, or give the whole with --value JSON",
            )
        if depth == len(names) - 1:
            inside[key] = value_of(text, part or None, whole)
        else:
            inside = inside.setdefault(key, {}) if isinstance(inside, dict) else inside[key]


def _part(schema: Schema, whole: Schema, name: str) -> Schema:
    """Return the schema of a field or item; {} when nothing is said about it."""
    found = resolved(schema, whole)
    part = found.get("properties", {}).get(name)
    if part is None:
        part = found.get("items" if found.get("type") == "array" else "additionalProperties")
    return part if isinstance(part, dict) else {}


# ---------------------------------------------------------------- asking


def somebody_is_there() -> bool:
    """True when a question on the terminal can be read and answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_line(prompt: str) -> str:
    """Ask for a line on the terminal; stdout stays for data.

    Raises:
        click.Abort: the input has ended.
    """
    click.echo(safe(prompt), nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise click.Abort
    return line.rstrip("\n")


def asked(schema: Schema | None, ask: Callable[[str], str], *, proposal: Any = None, field: str = "") -> Any:
    """Ask for a value, an object field by field.

    Args:
        ask: shows a prompt and returns the line that was typed.
        proposal: what an empty line keeps, None for nothing.
    """
    return _asked(schema or {}, schema or {}, ask, proposal, field, required=True)


def _asked(schema: Schema, whole: Schema, ask: Callable[[str], str], kept: Any, field: str, *, required: bool) -> Any:
    parts = fields_of(schema, whole)
    if parts and not is_optional(schema):
        must = resolved(schema, whole).get("required", ())
        before = kept if isinstance(kept, dict) else {}
        value = dict(before)
        for name, part in parts.items():
            default = before.get(name, part.get("default"))
            label = f"{field}.{name}" if field else name
            got = _asked(part, whole, ask, default, label, required=name in must)
            if got is not None or name in must or name in before:
                value[name] = got
        return value
    hint = phrase(schema or None, whole)
    while True:
        default = "" if kept is None else f" [{kept if isinstance(kept, str) else _json(kept)}]"
        line = ask(f"{field}{' ' if field else ''}({hint}){default}: ")
        if line:
            return value_of(line, schema or None, whole)
        if kept is not None or not required or is_optional(schema) or wants_text(schema, whole):
            return "" if kept is None and wants_text(schema, whole) and required else kept


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()

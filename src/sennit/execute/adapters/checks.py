"""What every adapter refuses when it is made: one text where several are meant.

`approve="Bash"` would be the patterns B, a, s and h, none of which is a tool: Bash would run without leave.
"""

from __future__ import annotations

from functools import cache

import msgspec

from sennit.errors import SettingsError

__all__ = ["checked_texts", "refuse_text_for_texts"]


@cache
def _names_of_texts(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind) if "tuple[str" in str(field.type))


def refuse_text_for_texts(adapter: msgspec.Struct) -> None:
    """Look at the fields that hold several texts.

    Raises:
        SettingsError: one holds a single text, or something else than texts.
    """
    for name in _names_of_texts(type(adapter)):
        value = getattr(adapter, name)
        if value is not None:
            checked_texts(name, value)


def checked_texts(name: str, value: object) -> tuple[str, ...]:
    """Return several texts as they were given.

    Raises:
        SettingsError: it is a single text, or something else than texts.
    """
    if not isinstance(value, (tuple, list, set, frozenset)) or not all(isinstance(one, str) for one in value):
        raise SettingsError(
            f"{name} is {value!r}; it must be several texts",
            why="a single text would be taken for its letters",
            fix=f"write {name}=({value!r},)" if isinstance(value, str) else f'write {name}=("…", "…")',
        )
    return tuple(value)

"""Does this answer fit the question? Held against the JSON schema that the question brought along."""

from __future__ import annotations

import datetime as dt
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sennit.errors import AnswerInvalid
from sennit.model.thread import AskView

if TYPE_CHECKING:
    from jsonschema import FormatChecker

# A schema's `format` and the type that reads such a text; the body will read it the same way.
_FORMATS: Final = {
    "date-time": dt.datetime,
    "date": dt.date,
    "time": dt.time,
    "duration": dt.timedelta,
    "uuid": uuid.UUID,
}


def check_answer(ask: AskView, value: msgspec.Raw) -> None:
    """Accept an answer.

    Raises:
        AnswerInvalid: it is not JSON, or does not fit the schema; says where and what was expected.
    """
    try:
        plain = msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise _invalid(ask, f"it is not JSON: {error}") from error
    schema = ask.spec.schema
    if schema is None:
        return
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - 60 ms that only those pay who answer
    from jsonschema.exceptions import best_match  # noqa: PLC0415

    worst = best_match(Draft202012Validator(schema, format_checker=_format_checker()).iter_errors(plain))
    if worst is not None:
        where = "".join(f"[{part!r}]" for part in worst.absolute_path)
        raise _invalid(ask, f"{f'at {where}: ' if where else ''}{worst.message}")


def _invalid(ask: AskView, why: str) -> AnswerInvalid:
    return AnswerInvalid(
        f"the answer does not fit question {ask.id}: {ask.spec.question}",
        ask_id=ask.id,
        why=why,
        fix=f"answer as the question's schema says; see `sennit inbox show {ask.id}`. It is still open",
    )


@cache
def _format_checker() -> FormatChecker:
    from jsonschema import FormatChecker  # noqa: PLC0415

    checker = FormatChecker()

    def reads(wanted: type) -> Any:
        def check(value: object) -> bool:
            if isinstance(value, str):
                msgspec.convert(value, wanted)
            return True

        return check

    for name, wanted in _FORMATS.items():
        checker.checks(name, raises=msgspec.ValidationError)(reads(wanted))
    return checker

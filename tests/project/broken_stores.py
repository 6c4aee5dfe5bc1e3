"""SQLite stores that are broken on purpose, each in one place: what the counts of bench/killing.py must find.

    break_store("a stale end is accepted")      in a program that is thrown away
    monkeypatch.setattr(*change) for change in changes_of(…)      in a test

A change names a part of the real store (a statement, a move) and makes another one of it. One that no longer fits the
store raises, so a mutant cannot become the sound store unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from sennit.model.task import TaskSpec
from sennit.store import reception
from sennit.store.effects import Effects
from sennit.store.moves import claim, finish


class Change(NamedTuple):
    """`setattr(module, name, broken(getattr(module, name)))`."""

    module: ModuleType
    name: str
    broken: Callable[[Any], Any]


def _instead(old: str, new: str) -> Callable[[str], str]:
    def broken(sql: str) -> str:
        assert sql.count(old) == 1, f"the mutant does not fit any more: {old!r} in {sql!r}"
        return sql.replace(old, new)

    return broken


def _record_without_claim(_: str) -> str:
    return "UPDATE sennit_task SET state = 1, result = ?, done_us = ? WHERE id = ? AND ? > 0"


def _put_back_nowhere(_: Callable[..., None]) -> Callable[..., None]:
    def put_back(*_args: object, **_options: object) -> None:
        """Leave the task in no narrow table."""

    return put_back


def _submit_all_but_the_last(whole: Callable[..., list[int]]) -> Callable[..., list[int]]:
    def submit(connection: Any, effects: Effects, specs: Sequence[TaskSpec]) -> list[int]:
        """Acknowledge one more than is stored."""
        whole(connection, effects, specs[:-1])
        return [spec.ref.id for spec in specs]

    return submit


_NO_TOKEN = "? > 0"  # takes the place of a comparison with the attempt, with the same number of parameters

BROKEN: dict[str, list[Change]] = {
    "finish compares the task only, not the attempt": [
        Change(finish, "_RECORD", _instead("r.attempt = ?", _NO_TOKEN)),
        Change(finish, "_DROP_RUNNING", _instead("attempt = ?", _NO_TOKEN)),
    ],
    "finish asks nobody whether the attempt is held": [Change(finish, "_RECORD", _record_without_claim)],
    "an ended attempt stays held": [Change(finish, "_succeed", lambda succeed: partial(_still_held, succeed))],
    "the result is dropped": [Change(finish, "_RECORD", _instead("result = ?", "result = CAST(? AS BLOB) AND NULL"))],
    "a rescued task goes nowhere": [Change(finish, "put_back", _put_back_nowhere)],
    "submit forgets the last of a batch": [Change(reception, "submit", _submit_all_but_the_last)],
    "an attempt has the number of the one before": [
        Change(finish, "put_back", lambda put_back: partial(_one_attempt_less, put_back)),
    ],
    "an attempt does not get the saved steps": [Change(claim, "_STEPS", _instead("WHERE", "WHERE 0 AND"))],
}


def _still_held(succeed: Callable[..., list[bool]], connection: Any, effects: Effects, endings: Any) -> list[bool]:
    """Record in one transaction, let go in another that never comes."""
    of_claim = "SELECT * FROM sennit_running WHERE id = ? AND attempt = ?"
    held = [row for ending in endings for row in connection.execute(of_claim, ending.claim).fetchall()]
    accepted = succeed(connection, effects, endings)
    for row in held:
        connection.execute(f"INSERT INTO sennit_running VALUES ({','.join('?' * len(row))})", row)
    return accepted


def _one_attempt_less(put_back: Callable[..., None], *args: Any, counts: tuple[int, int, int], **options: Any) -> None:
    attempt, failures, crashes = counts
    put_back(*args, counts=(attempt - 1, failures, crashes), **options)


def changes_of(mutant: str) -> list[tuple[ModuleType, str, Any]]:
    """Return the arguments for `setattr`."""
    return [(module, name, broken(getattr(module, name))) for module, name, broken in BROKEN[mutant]]


def break_store(mutant: str) -> None:
    """Break the store of this process for good."""
    for module, name, broken in changes_of(mutant):
        setattr(module, name, broken)

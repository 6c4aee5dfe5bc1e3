"""Runs a body in a worker process that nobody has declared for it: it turned out to compute (see `execute.placement`).

    rehearse   before anything is moved: is the body found there, and is every part of its meaning the value it is here?
    run_moved  the same question once in each process, then the body

Its attempt stays in the parent. A body that asks for it after all, by a step, a submit, a thread, a heartbeat or a log
record, ends here and runs again where the attempt is: to do a step or say a line and forget it would be worse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from sennit.errors import ContextOutOfReach
from sennit.submit.afar import attempt_is_out_of_reach, out_of_reach
from sennit.submit.codec import run_in_process
from sennit.sync.meaning import Meaning, NoMeaning, meaning_of

__all__ = ["rehearse", "run_moved"]

DIGEST_BYTES: Final = 16

_known: dict[Callable[..., Any], bytes] = {}


def rehearse(function: Callable[..., Any], payload: bytes) -> bytes:
    """Compare what a body means here with `payload`, the parts that its parent has found, as JSON.

    Raises:
        ContextOutOfReach: it means something else; the text says what.
    """
    differs = _meaning(function).differs(msgspec.json.decode(payload, type=dict[str, str]))
    if differs:
        raise ContextOutOfReach(f"{differs} is not the same in a worker process")
    return b"{}"


def run_moved(function: Callable[..., Any], payload: bytes) -> bytes:
    """Run a body as `codec.run_in_process` does; before its payload comes the digest of what it means.

    Raises:
        ContextOutOfReach: it has asked for its attempt, or means something else here.
    """
    digest, payload = bytes(payload[:DIGEST_BYTES]), payload[DIGEST_BYTES:]
    if _known.get(function) != digest:
        if _meaning(function).digest() != digest:
            raise ContextOutOfReach("a part of it is not the same in a worker process")
        _known[function] = digest
    with out_of_reach(), _overheard():
        return run_in_process(function, payload)


def _meaning(function: Callable[..., Any]) -> Meaning:
    try:
        return meaning_of(function)
    except NoMeaning as no:
        raise ContextOutOfReach(f"in a worker process, {no}") from None


class _Listener(logging.Handler):
    """A record belongs to the attempt, and to the handlers of the parent."""

    def emit(self, record: logging.LogRecord) -> None:
        del record
        attempt_is_out_of_reach()


@contextmanager
def _overheard() -> Iterator[None]:
    """Let records from INFO on end the body, as `tasks logs` keeps those, also of loggers that are quiet by default."""
    root, listener = logging.getLogger(), _Listener(logging.INFO)
    level = root.level
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    root.addHandler(listener)
    try:
        yield
    finally:
        root.removeHandler(listener)
        root.setLevel(level)

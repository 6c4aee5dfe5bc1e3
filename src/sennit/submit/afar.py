"""In a worker process: a body that was moved there has no attempt, and one that asks for it ends.

with out_of_reach():  body ──► step, submit, thread, log record ──► ContextOutOfReach ──► it runs again where its attempt is
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sennit.errors import ContextOutOfReach

__all__ = ["attempt_is_out_of_reach", "out_of_reach"]

# Around a body that was moved: whether it has asked for its attempt.
_asked_afar: ContextVar[list[bool] | None] = ContextVar("sennit_asked_afar", default=None)


def attempt_is_out_of_reach() -> None:
    """Do nothing but in a body that was moved to another process: there it ends.

    Raises:
        ContextOutOfReach: this is one.
    """
    asked = _asked_afar.get()
    if asked is not None:
        asked.append(True)
        raise ContextOutOfReach


@contextmanager
def out_of_reach() -> Iterator[None]:
    """End the block if what is in it asks for the attempt, also if the body ate the exception.

    Raises:
        ContextOutOfReach: it was asked for.
    """
    asked: list[bool] = []
    token = _asked_afar.set(asked)
    try:
        yield
    finally:
        _asked_afar.reset(token)
        if asked:
            raise ContextOutOfReach

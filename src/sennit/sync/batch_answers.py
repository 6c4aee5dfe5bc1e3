"""From what a batch function returned, or raised, to the answer of each item. Written once, with no colour.

flow = answering(items, answers, split=…)
part = next(flow)                      call the function with `part` …
part = flow.send(results)              … and hand in what it returned,
part = flow.throw(error)               or raised; until StopIteration: `answers` is full

[a, b, c, d] raises ─► [a, b] ✓   [c, d] raises ─► [c] ✗   [d] ✓        with `split`: only c fails
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Generic, NamedTuple, TypeVar

from sennit.errors import BatchFailed

__all__ = ["Answer", "answering", "fill_in", "own"]

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=BaseException)


class Answer(NamedTuple, Generic[R]):
    """What one item gets: a value, or an error that is raised."""

    value: R | None
    error: Exception | None

    def get(self) -> R:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value] # without an error it is an R


Part = Generator[list[T], Any, None]


def answering(items: Sequence[T], answers: list[Answer[R] | None], *, split: bool) -> Part[T]:
    """Fill `answers`, as long as `items` and all None, as drawn above; in the order of the items.

    Args:
        split: when the function raises, call it again with each half, until the items that fail are alone.
    """
    yield from _part(items, answers, 0, len(items), split=split)


def _part(items: Sequence[T], answers: list[Answer[R] | None], start: int, end: int, *, split: bool) -> Part[T]:
    try:
        results = yield list(items[start:end])
        answers[start:end] = _answers(results, end - start)
    except Exception as error:  # noqa: BLE001 - it is the answer
        if split and end - start > 1:
            middle = (start + end) // 2
            yield from _part(items, answers, start, middle, split=True)
            yield from _part(items, answers, middle, end, split=True)
        else:
            answers[start:end] = [Answer(None, _raisable(each)) for each in own(error, end - start)]


def _answers(results: Any, count: int) -> list[Answer[Any]]:
    odd = isinstance(results, (str, bytes, Mapping, AbstractSet)) or not hasattr(results, "__iter__")
    if odd or not hasattr(results, "__len__"):
        wrong = BatchFailed(
            f"the batch function returned a {type(results).__name__} for {count} items",
            why="each item finds its result by its place",
            fix="return a list with one result per item, in their order",
        )
        return [Answer(None, each) for each in own(wrong, count)]
    if len(results) != count:
        wrong = BatchFailed(
            f"the batch function returned {len(results)} results for {count} items",
            why="nobody can tell which result belongs to which item",
            fix="return one result per item, in their order; an exception object stands for an item that failed",
        )
        return [Answer(None, each) for each in own(wrong, count)]
    seen: set[int] = set()
    found: list[Answer[Any]] = []
    for result in results:
        if isinstance(result, BaseException):
            error = _copied(result) if id(result) in seen else result
            seen.add(id(result))
            found.append(Answer(None, _raisable(error)))
        else:
            found.append(Answer(result, None))
    return found


def fill_in(answers: list[Answer[R] | None], stop: BaseException) -> None:
    """Answer the items that were not, because the function was stopped by what is no error of theirs."""
    for place, answer in enumerate(answers):
        if answer is None:
            answers[place] = Answer(None, _stopped_by(stop))


def own(error: E, count: int) -> list[E]:
    """Return as many exceptions: the one, and copies.

    Each caller raises its own: raising adds frames to the traceback of the object, in several OS threads at once.
    """
    return [error, *(_copied(error) for _ in range(count - 1))]


def _copied(error: E) -> E:
    """Return a copy with the same traceback and cause; the same object, if its class cannot be copied."""
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - an __init__ with arguments of its own
        twin = _remade(error)
    if type(twin) is not type(error) or twin is error:
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    if hasattr(error, "__notes__"):
        twin.__notes__ = list(error.__notes__)
    return twin.with_traceback(error.__traceback__)


def _remade(error: E) -> E:
    """Make it without calling `__init__`, from `args` and attributes."""
    try:
        twin = type(error).__new__(type(error), *error.args)
        twin.__dict__.update(error.__dict__)
    except Exception:  # noqa: BLE001 - then they share one
        return error
    return twin


def _raisable(error: BaseException) -> Exception:
    """Return what a caller may be given: not a cancellation, an exit or a StopIteration of somebody else."""
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    return _stopped_by(error)


def _stopped_by(stop: BaseException) -> BatchFailed:
    name = "cancelled" if isinstance(stop, asyncio.CancelledError) else f"ended by {type(stop).__name__}"
    failed = BatchFailed(
        f"the batch was {name} before this item had an answer",
        why=str(stop),
        fix="call again if the item may be done twice; it may have been done",
    )
    failed.__cause__ = stop
    return failed

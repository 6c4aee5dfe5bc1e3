"""Where a suspended task stands, cheap enough to be noted before every step.

A coroutine that awaits a coroutine is a chain; the place worth naming is the last link that is not asyncio's own.
Noted are the code object and the instruction, which cost nothing; the line number is worked out when somebody reads it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, CoroutineType
from typing import Any, Final, NamedTuple

__all__ = ["TRACE_STEPS", "Step", "Tape", "stack_of"]

TRACE_STEPS: Final = 60
ASYNCIO_DIR: Final = str(Path(asyncio.__file__).parent)


class Step(NamedTuple):
    """One line of a trace: what ran, or an event such as a kill.

    `code` and `instruction` are the place where a task goes on; an event has a `text` instead.
    """

    time_s: float
    process: str
    task: str
    text: str
    code: CodeType | None = None
    instruction: int = -1

    def __str__(self) -> str:
        what = self.text if self.code is None else _place(self.code, self.instruction)
        return f"{self.time_s:14.6f} s  {self.process:<12} {self.task:<12} {what}"


class Tape:
    """The last steps of a run. `on_step` hears of each one just before it is made."""

    __slots__ = ("_on_step", "_steps")

    def __init__(self, on_step: Callable[[Step], None] | None) -> None:
        self._on_step = on_step
        self._steps: deque[Step] = deque(maxlen=TRACE_STEPS)

    def add(self, step: Step) -> None:
        """Note a callback or an event."""
        self._steps.append(step)
        if self._on_step is not None:
            self._on_step(step)

    def add_task(self, time_s: float, process: str, task: asyncio.Task[Any]) -> None:
        """Note where a task goes on."""
        coroutine = task.get_coro()
        self.add(Step(time_s, process, task.get_name(), type(coroutine).__qualname__, *_place_of(coroutine)))

    def lines(self) -> tuple[str, ...]:
        """Return the last steps as text, oldest first."""
        return tuple(str(step) for step in self._steps)


def stack_of(coroutine: Any) -> str:
    """Return the whole chain of awaits, outermost first: `run (worker.py:88) → acquire (locks.py:112)`."""
    return " → ".join(_chain(coroutine)) or repr(coroutine)


def _place_of(coroutine: Any) -> tuple[CodeType | None, int]:
    """Return the innermost code outside asyncio that this coroutine is suspended in, and the instruction."""
    code, instruction = None, -1
    while type(coroutine) is CoroutineType:
        frame = coroutine.cr_frame
        if frame is None:
            break
        if code is None or not frame.f_code.co_filename.startswith(ASYNCIO_DIR):
            code, instruction = frame.f_code, frame.f_lasti
        coroutine = coroutine.cr_await
    return code, instruction


def _chain(coroutine: Any) -> Iterator[str]:
    while type(coroutine) is CoroutineType and coroutine.cr_frame is not None:
        yield _place(coroutine.cr_code, coroutine.cr_frame.f_lasti)
        coroutine = coroutine.cr_await


def _place(code: CodeType, instruction: int) -> str:
    line = code.co_firstlineno
    for start, end, line_at in code.co_lines():
        if start <= instruction < end and line_at is not None:
            line = line_at
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{line})"

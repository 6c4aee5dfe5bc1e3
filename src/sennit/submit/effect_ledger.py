"""The ledger of a task's effects: what is written of each, among the steps of its task, under the claim token.

    effect|KEY = result          effect-begun|N|KEY = who began it          effect-void|N|KEY = it did not take place

The store keeps the first value of a step and never another, so what can happen again has a number: an effect that is known
not to have taken place may be begun once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol, cast, get_type_hints
from weakref import WeakKeyDictionary

import msgspec

from sennit.errors import AttemptCancelled, UsageError
from sennit.submit.attempt import Attempt
from sennit.submit.codec import result_decoder
from sennit.sync.pending import Flow, got

__all__ = ["EffectState", "EffectView", "Ledger", "effects_of"]

EffectState = Literal["pending", "committed", "unknown", "void"]

_COMMITTED: Final = "effect|"
_BEGUN: Final = "effect-begun|"
_VOID: Final = "effect-void|"

LOOKS_MAX: Final = 3
"""So often a process that was stopped looks whether it is still held; the last look is a write that was accepted, too."""


class EffectView(msgspec.Struct, frozen=True, kw_only=True):
    """One effect of a task, as its ledger has it.

    Attributes:
        key: as it was given, or made of function, arguments and occurrence.  what: the function.
        state: `pending` is being done by the attempt that runs; `unknown` was begun by one that has ended; `void` was
            begun, and is known not to have taken place.
        begun: how often.  attempt: which one began it last.
    """

    key: str
    what: str
    state: EffectState
    begun: int = 1
    attempt: int = 1


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What is written of a beginning: who made it, of what."""

    attempt: int
    what: str


class _Leased(Protocol):
    """The part of the store that tells how long this process holds what it holds."""

    @property
    def lease_until_us(self) -> int: ...


_running: WeakKeyDictionary[Attempt, set[str]] = WeakKeyDictionary()
_running_lock = threading.Lock()


def effects_of(steps: Mapping[str, bytes], *, running: int = 0) -> list[EffectView]:
    """Return the effects among the steps of a task (`Claimed.steps`), by key. Pure.

    Args:
        running: the attempt that runs now, 0 when none does.
    """
    begun: dict[str, list[tuple[int, _Mark]]] = {}
    void: set[tuple[str, int]] = set()
    for step, value in steps.items():
        if step.startswith(_BEGUN):
            n, key = _parted(step, _BEGUN)
            begun.setdefault(key, []).append((n, msgspec.json.decode(value, type=_Mark)))
        elif step.startswith(_VOID):
            n, key = _parted(step, _VOID)
            void.add((key, n))
    views = []
    for key, marks in sorted(begun.items()):
        n, last = max(marks, key=lambda mark: mark[0])
        state: EffectState = "pending" if last.attempt == running else "unknown"
        if _COMMITTED + key in steps:
            state = "committed"
        elif (key, n) in void:
            state = "void"
        views.append(EffectView(key=key, what=last.what, state=state, begun=len(marks), attempt=last.attempt))
    return views


def _parted(step: str, prefix: str) -> tuple[int, str]:
    n, _, key = step.removeprefix(prefix).partition("|")
    return int(n), key


# ---------------------------------------------------------------- the ledger


class Ledger:
    """What is written of one effect, as this attempt knows it.

    Attributes:
        key: under which it is committed.  told: without the prefix.  shown: to people.
    """

    def __init__(self, attempt: Attempt, what: str, told: str, function: Callable[..., Any]) -> None:
        self._attempt = attempt
        self._steps = attempt.task.steps
        self._what = what
        self._function = function
        self.told = self.shown = told
        self.key = _COMMITTED + told
        self._n = 0  # of the next beginning
        while self._begun(self._n) in self._steps:
            self._n += 1

    def _begun(self, n: int) -> str:
        return f"{_BEGUN}{n}|{self.told}"

    @property
    def attempt(self) -> Attempt:
        """The attempt that is at it."""
        return self._attempt

    @property
    def what(self) -> str:
        """The function."""
        return self._what

    @property
    def committed(self) -> bytes | None:
        """The result, when it is known to have taken place."""
        return self._attempt.recall(self.key)

    def result(self) -> Any:
        """Return the committed result, as the function's return annotation says."""
        return result_decoder(self._function)(self.committed or b"null")

    @property
    def is_open(self) -> bool:
        """Whether it was begun, and nobody knows what came of it."""
        return self.last is not None and f"{_VOID}{self._n - 1}|{self.told}" not in self._steps

    @property
    def last(self) -> _Mark | None:
        """The last beginning."""
        mark = self._attempt.recall(self._begun(self._n - 1))
        return None if mark is None else msgspec.json.decode(mark, type=_Mark)

    def answer_type(self) -> Any:
        """Return the type of a person's answer: whether it took place, and with what result."""
        try:
            hint = get_type_hints(self._function).get("return", Any)
            fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
                ("done", bool),
                ("result", Any if hint is Any else hint | None, None),
            ]
            answer = msgspec.defstruct("EffectAnswer", fields, forbid_unknown_fields=True)
            msgspec.json.Decoder(answer)
        except (TypeError, NameError, AttributeError):  # a type that msgspec does not know: any JSON will do
            answer = msgspec.defstruct("EffectAnswer", [("done", bool), ("result", Any, None)])
        return answer

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around all of it: the same effect is not under way twice in one attempt."""
        with _running_lock:
            running = _running.setdefault(self._attempt, set())
            if self.key in running:
                raise UsageError(
                    f"effect {self.told!r} is under way in this attempt",
                    why="the same key is the same effect",
                    fix="give each its own key, or wait for the first",
                )
            running.add(self.key)
        try:
            yield
        finally:
            running.discard(self.key)

    def begin(self) -> Flow[None]:
        """Write it down as begun. When this returns the attempt is held, and nobody can have taken it over for a lapsed lease.

        Raises:
            AttemptCancelled: the attempt is not held any more.
        """
        mark, sure_until_us = self._begun(self._n), self._lease_until_us()
        try:
            yield from self._write(mark, _Mark(attempt=self._attempt.task.attempt, what=self._what))
        except Exception:  # the disk is full: it is not begun, and this attempt may try again
            self._steps.pop(mark, None)
            raise
        self._n += 1
        yield from self._look_again(mark, sure_until_us)

    def _look_again(self, mark: str, sure_until_us: int) -> Flow[None]:
        """Write the mark once more, to be refused, if the process has been stopped for so long that others may have the task.

        What counts is the lease from before the write: one that was renewed since may be that of a worker which was taken
        for dead, has lost its tasks, and was registered again.
        """
        store = self._attempt.store
        for _ in range(LOOKS_MAX):
            if not sure_until_us or store.now_us() < sure_until_us:
                return
            sure_until_us = self._lease_until_us()
            _must_be_held((yield from got(store.save_step(self._attempt.task.claim, mark, self._steps[mark]))))

    def _lease_until_us(self) -> int:
        return cast("_Leased", self._attempt.store).lease_until_us

    def commit(self, value: Any) -> Flow[None]:
        """Write down that it took place, and its result."""
        yield from self._write(self.key, value)

    def void(self, why: str) -> Flow[None]:
        """Write down that it did not take place."""
        yield from self._write(f"{_VOID}{self._n - 1}|{self.told}", {"attempt": self._attempt.task.attempt, "why": why})

    def _write(self, key: str, value: Any) -> Flow[None]:
        accepted = yield from got(self._attempt.remember(key, value, f"the ledger of effect {self._what}"))
        _must_be_held(accepted)


def _must_be_held(accepted: bool) -> None:  # noqa: FBT001 - the store's answer, as it comes
    if not accepted:
        raise AttemptCancelled("lease lost")

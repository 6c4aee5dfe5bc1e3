"""Is there an order in which these operations, one at a time, give the answers that were seen?

    process 1   ├── write, expected 3 ──► 4 ──┤
    process 2        ├── read ──► version 3 ──┤          yes: read, write
    process 3                                     ├── read ──► version 3 ──┤      no: the write was over before it began

An operation takes effect somewhere between its call and its answer. So the first of an order is one that was called
before any other had ended; take it, if its answer fits the state, and go on with the rest. What has been tried (which
operations are left, in which state) is not tried again.
Sources: Wing and Gong, "Testing and Verifying Concurrent Objects", 1993; the memo is Lowe's, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Register(NamedTuple):
    """The state of one thread: a version, its value, and which operations made which versions."""

    version: int = 0
    value: int = 0
    known: tuple[tuple[str, int], ...] = ()


class Call(NamedTuple):
    """One operation as its caller saw it; times are of one clock, which all processes share.

    Attributes:
        what: `read`; `write` makes `value` the next version if `expected` is the present one; `add` adds `value` to what
            is there, as often as it takes.
        version, result: what came back; of a conflict `result` is None and `version` the one it met.
    """

    what: str
    called_ns: int
    ended_ns: int
    expected: int = 0
    value: int = 0
    operation_id: str = ""
    version: int = 0
    result: int | None = None


def after(register: Register, call: Call) -> Register | None:
    """Return the state after `call` if its answer fits the state before; None if it does not."""
    version, value, known = register
    match call.what:
        case "read":
            return register if (call.version, call.result) == (version, value) else None
        case "add":
            fits = (call.version, call.result) == (version + 1, value + call.value)
            return Register(version + 1, value + call.value, known) if fits else None
    made = dict(known).get(call.operation_id) if call.operation_id else None
    if made is not None:
        return register if (call.result, call.version) == (call.value, made) else None
    if call.expected != version:
        return register if (call.result, call.version) == (None, version) else None
    if (call.result, call.version) != (call.value, version + 1):
        return None
    if call.operation_id:
        known = (*known, (call.operation_id, version + 1))
    return Register(version + 1, call.value, known)


def order_of(calls: Sequence[Call]) -> list[Call] | None:
    """Return an order that explains all answers, or None if there is none."""
    tried: set[tuple[frozenset[int], Register]] = set()
    path: list[tuple[frozenset[int], Register, list[int]]] = []
    left, register = frozenset(range(len(calls))), Register()
    taken: list[int] = []
    while left:
        first_end_ns = min(calls[n].ended_ns for n in left)
        may_be_next = [n for n in sorted(left) if calls[n].called_ns <= first_end_ns]
        path.append((left, register, may_be_next))
        step = _step(calls, path, taken, tried)
        if step is None:
            return None
        left, register = step
    return [calls[n] for n in taken]


def _step(
    calls: Sequence[Call],
    path: list[tuple[frozenset[int], Register, list[int]]],
    taken: list[int],
    tried: set[tuple[frozenset[int], Register]],
) -> tuple[frozenset[int], Register] | None:
    """Take the next operation that fits, going back where none does; None when all has been tried."""
    while path:
        left, register, candidates = path[-1]
        while candidates:
            n = candidates.pop()
            new = after(register, calls[n])
            if new is not None and (left - {n}, new) not in tried:
                tried.add((left - {n}, new))
                taken.append(n)
                return left - {n}, new
        path.pop()
        if taken:
            taken.pop()
    return None

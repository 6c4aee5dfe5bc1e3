"""What bodies of a simulated fleet do is data: a list of moves, drawn from the seed and stored as the task's argument.

[["step", 0], ["children", 2], ["gather", 0], ["retry", 3], ["work", 0.5]]

A move that ends the attempt does so when the task meets it for the first time; when the task runs again it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Unpack

import msgspec

from sennit.errors import AttemptSuspended, TaskError
from sennit.model.retry import Cancel, NotRetryable, Retry, RetryPolicy, Snooze
from sennit.model.task import Claimed
from sennit.submit.context import attempt_here, sleep, step
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Call, Registry
from sennit.testing.simaudit import Audit

__all__ = ["HERE", "QUEUES", "REGISTRY", "Here", "Move", "call", "children_of", "draw_moves"]

Move = tuple[str, float]
QUEUES: Final = ("a", "b")


@dataclass(frozen=True, slots=True)
class Here:
    """What a body finds in the process it runs in."""

    process: str
    slots: dict[str, int]
    audit: Audit
    submit: Callable[[list[Call]], list[Handle[Any]]]


HERE: Final[ContextVar[Here]] = ContextVar("sennit.testing.here")


async def act(moves: list[Move], inputs: list[Any]) -> Any:
    """Make one move after the other; the result names the task and the attempt."""
    here, task = HERE.get(), attempt_here("act").task
    with here.audit.body(here.process, task, inputs, slots=here.slots[task.queue]):
        return await _make_moves(here, task, moves)


async def _make_moves(here: Here, task: Claimed, moves: list[Move]) -> Any:
    handles: list[Handle[Any]] = []
    for n, (what, amount) in enumerate(moves):
        match what:
            case "work":
                await asyncio.sleep(amount)
            case "step":
                await step(compute, n)
            case "sleep":
                await sleep(amount)
            case "children":
                handles += here.submit([call([("work", amount)], queue=QUEUES[i % 2]) for i in range(int(amount))])
            case "wait" | "gather":
                with here.audit.waiting(here.process, task.claim):
                    await _wait_for(handles, at_once=what == "gather")
            case _ if here.audit.first_time(task.id, n):
                ending = _ending(what, amount)
                if ending is not None:
                    return ending
    return {"task": task.id, "attempt": task.attempt}


async def compute(n: int) -> str:
    """Compute one step; the audit watches that it is not done again once it is saved."""
    attempt = attempt_here("compute")
    result = f"step {n}"
    HERE.get().audit.step_runs(attempt.task.claim, msgspec.json.encode(result))
    await asyncio.sleep(0.1)
    return result


async def _wait_for(handles: list[Handle[Any]], *, at_once: bool) -> None:
    """Wait for children; how they ended is their own affair."""
    if at_once:
        for outcome in await asyncio.gather(*handles, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, TaskError):
                raise outcome
        return
    for handle in handles:
        try:
            await handle
        except TaskError:
            continue


def _ending(what: str, amount: float) -> Any:
    match what:
        case "retry":
            return Retry(amount)
        case "snooze":
            return Snooze(amount)
        case "cancel":
            return Cancel()
        case "fail":
            raise NotRetryable("drawn to fail")
        case "park":
            raise AttemptSuspended(reason="drawn to wait for an answer")
        case _:
            raise RuntimeError("drawn to raise")


REGISTRY: Final = Registry()
_HANDLER: Final = REGISTRY.register(act, name="act", retries=RetryPolicy(retries=4, delay_s=1.0, delay_s_max=8.0))

_MOVES: Final = ("work", "work", "step", "step", "sleep", "snooze", "retry", "raise", "family")
_LAST: Final = ("work",) * 12 + ("fail", "cancel", "park", "park")


def draw_moves(random: Random) -> list[Move]:
    """Draw what a body does."""
    moves: list[Move] = []
    for _ in range(random.randint(0, 3)):
        what = random.choice(_MOVES)
        if what == "family":
            moves += [("children", random.randint(1, 3)), (random.choice(("wait", "gather", "work")), 0.5)]
        else:
            moves.append((what, round(random.uniform(0, 4), 3)))
    moves.append((random.choice(_LAST), round(random.uniform(0, 4), 3)))
    return moves


def children_of(moves: list[Move]) -> int:
    """Return how many children these moves make."""
    return sum(int(amount) for what, amount in moves if what == "children")


def call(moves: list[Move], *, inputs: list[Handle[Any]] | None = None, **options: Unpack[SubmitOptions]) -> Call:
    """Return the call of a body that makes these moves."""
    return Call(_HANDLER, _HANDLER.options.replaced(options), (moves, inputs or []), {})

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
from sennit.model.agent import AgentView
from sennit.model.retry import Cancel, NotRetryable, Retry, RetryPolicy, Snooze
from sennit.model.task import Claim, Claimed
from sennit.submit.context import attempt_here, heartbeat, sleep, step
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Call, Registry
from sennit.testing.simaudit import Audit
from sennit.testing.simeffects import EFFECTS, pay_all, pay_all_sync
from sennit.testing.simpool import pause, when_given_up
from sennit.testing.simtalk import TALK, talk, talk_sync

__all__ = ["CHILD_KEYS", "HERE", "QUEUES", "REGISTRY", "Here", "Move", "call", "children_of", "draw_moves"]

Move = tuple[str, float]
QUEUES: Final = ("a", "b")


@dataclass(frozen=True, slots=True)
class Here:
    """What a body finds in the process it runs in."""

    process: str
    slots: dict[str, int]
    freezes: Callable[[], int]
    audit: Audit
    submit: Callable[[list[Call]], list[Handle[Any]]]
    note: Callable[[Claim, AgentView], object]


HERE: Final[ContextVar[Here]] = ContextVar("sennit.testing.here")


async def act(moves: list[Move], inputs: list[Any]) -> Any:
    """Make one move after the other; the result names the task and the attempt."""
    here, task = HERE.get(), attempt_here("act").task
    slots = here.slots[task.queue]
    with here.audit.body(here.process, task, inputs, slots=slots, is_sync=False, freezes=here.freezes):
        handles: list[Handle[Any]] = []
        for n, (what, amount) in enumerate(moves):
            match what:
                case "work":
                    await asyncio.sleep(amount)
                case "step":
                    await step(compute, n)
                case "long step":
                    await step(compute_long, n)
                case "sleep":
                    await sleep(amount)
                case "wait" | "gather":
                    with here.audit.waiting(here.process, task):
                        await _wait_for(handles, at_once=what == "gather")
                case _ if what in TALK:
                    await talk(here.audit, task, n, (what, amount))
                case _ if what in EFFECTS:
                    await pay_all(here.audit.effects, n, amount)
                case _:
                    ending = _move(here, task, handles, n, move=(what, amount))
                    if ending is not None:
                        return ending
        return {"task": task.id, "attempt": task.attempt}


def act_sync(moves: list[Move], inputs: list[Any]) -> Any:
    """Do what `act` does, blocking where that awaits."""
    here, task = HERE.get(), attempt_here("act_sync").task
    slots = here.slots[task.queue]
    with here.audit.body(here.process, task, inputs, slots=slots, is_sync=True, freezes=here.freezes):
        when_given_up(lambda: here.audit.is_given_up(here.process, task, freezes=here.freezes()))
        handles: list[Handle[Any]] = []
        for n, (what, amount) in enumerate(moves):
            match what:
                case "work":
                    pause(amount)
                case "step":
                    step(compute_sync, n).result()
                case "sleep":
                    sleep(amount).result()
                case "wait" | "gather":
                    with here.audit.waiting(here.process, task):
                        _block_for(handles)
                case _ if what in TALK:
                    talk_sync(here.audit, task, n, (what, amount))
                case _ if what in EFFECTS:
                    pay_all_sync(here.audit.effects, n, amount)
                case _:
                    ending = _move(here, task, handles, n, move=(what, amount))
                    if ending is not None:
                        return ending
        return {"task": task.id, "attempt": task.attempt}


def _move(here: Here, task: Claimed, handles: list[Handle[Any]], n: int, *, move: Move) -> Any:
    """Make the n-th move, which takes no time; return what ends the attempt, None when it goes on."""
    what, amount = move
    match what:
        case "children":
            handles += here.submit([child(amount, i) for i in range(int(amount))])
        case "keyed":
            handles += here.submit([call([("work", 0.5)], key=CHILD_KEYS[int(amount) % 2], queue=QUEUES[n % 2])])
        case "beat":
            heartbeat()
            here.audit.times.sign(task.claim, freezes=here.freezes())
        case _ if here.audit.first_time(task.id, n):
            return _ending(what, amount)
    return None


async def compute(n: int) -> str:
    """Compute one step; the audit watches that it is not done again once it is saved."""
    result = _begin_step(n)
    await asyncio.sleep(0.1)
    return _end_step(result)


async def compute_long(n: int) -> str:
    """Compute one long step."""
    result = _begin_step(n)
    await asyncio.sleep(0.5)
    return _end_step(result)


def compute_sync(n: int) -> str:
    """Compute one step of a sync body."""
    result = _begin_step(n)
    pause(0.1)
    return _end_step(result)


def _begin_step(n: int) -> str:
    result, here, claim = f"step {n}", HERE.get(), attempt_here("a step").task.claim
    here.audit.step_runs(claim, msgspec.json.encode(result))
    here.note(claim, AgentView(task_id=claim.task_id, agent="act", status="working", doing=result))
    return result


def _end_step(result: str) -> str:
    here = HERE.get()
    here.audit.times.sign(attempt_here("a step").task.claim, freezes=here.freezes())
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


def _block_for(handles: list[Handle[Any]]) -> None:
    for handle in handles:
        try:
            handle.result()
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
_RETRIES: Final = RetryPolicy(retries=4, delay_s=1.0, delay_s_max=8.0)
_HANDLERS: Final = {
    False: REGISTRY.register(act, name="act", retries=_RETRIES),
    True: REGISTRY.register(act_sync, name="act_sync", retries=_RETRIES),
}
_PREEMPTIBLE: Final = REGISTRY.register(act, name="act_preemptible", retries=_RETRIES, preemptible=True)

CHILD_KEYS: Final = ("c1", "c2")
"""Keys that bodies use too. What has one of them waits for nobody, so that nobody waits for himself."""

_MOVES: Final = ("work", "work", "step", "step", "sleep", "snooze", "retry", "raise", "family", "keyed", "beat")
_LAST: Final = ("work",) * 12 + ("fail", "cancel", "park", "park")


def draw_moves(random: Random) -> list[Move]:
    """Draw what a body does."""
    moves: list[Move] = []
    for _ in range(random.randint(0, 3)):
        what = random.choice(_MOVES)
        amount = round(random.uniform(0, 4), 3)
        match what:
            case "family":
                moves += [("children", random.randint(1, 3)), (random.choice(("wait", "gather", "work")), 0.5)]
            case "keyed":
                moves += [("keyed", amount), (random.choice(("wait", "work")), 0.5)]
            case _:
                moves.append((what, amount))
    moves.append((random.choice(_LAST), round(random.uniform(0, 4), 3)))
    return moves


def children_of(moves: list[Move]) -> int:
    """Return how many children without a key these moves make."""
    return sum(int(amount) for what, amount in moves if what == "children")


def child(amount: float, i: int) -> Call:
    """Return the call of a body's i-th child, which works for `amount` seconds."""
    return call([("work", amount)], is_sync=i % 3 == 1, queue=QUEUES[i % 2])


def call(
    moves: list[Move],
    *,
    inputs: list[Handle[Any]] | None = None,
    is_sync: bool = False,
    is_preemptible: bool = False,
    **options: Unpack[SubmitOptions],
) -> Call:
    """Return the call of a body that makes these moves; a preemptible one is async."""
    handler = _PREEMPTIBLE if is_preemptible else _HANDLERS[is_sync]
    return Call(handler, handler.options.replaced(options), (moves, inputs or []), {})

"""A budget is spent: the attempt fails, or asks a person for more and is suspended. Pure.

spent ─► on_exceeded="fail" ─► Failed (BudgetExceeded)
      └► on_exceeded="ask"  ─► Parked with one question ─► answered with a higher bound ─► the bound is raised,
                                                        │                                 the attempt given back
                                                        └► rejected or expired ─► Failed
"""

from __future__ import annotations

from typing import cast

import msgspec

from sennit.errors import BudgetExceeded
from sennit.model.provider import NANO, TOKENS_MAX, USD_MAX, Budget, BudgetScope, exceeded
from sennit.model.retry import NotRetryable
from sennit.model.task import Claimed, Ending, ErrorInfo, Failed, Parked
from sennit.model.thread import Answer, AskSpec

REASON = "budget"
_CAUSES_MAX = 50  # chains of causes may be circles


def spent(task: Claimed, error: BudgetExceeded) -> Ending | Budget:
    """Return what becomes of an attempt that may not spend more: its end, or the bound to raise first.

    The latter when this very question has been answered: a task that is claimed for no provider runs before that shows.
    """
    stored = task.steps.get(_key(error))
    if error.on_exceeded != "ask":
        return Failed(task.claim, _info(error))
    if stored is None:
        return Parked(task.claim, REASON, (_ask(error),))
    allowed = _allowed(msgspec.json.decode(stored, type=Answer))
    if allowed is None or allowed <= error.allowed:
        return Failed(task.claim, _info(error))
    # At least one more than before: a bound that is raised by less than that would only be asked for again.
    tokens, cost_nano = error.bounds
    if error.unit == "tokens":
        tokens = max(int(min(allowed, TOKENS_MAX)), tokens + 1)
    else:
        cost_nano = max(round(min(allowed, USD_MAX) * NANO), cost_nano + 1)
    return Budget(
        scope=cast("BudgetScope", error.scope),
        key=error.key,
        tokens_max=tokens,
        cost_nano_max=cost_nano,
        on_exceeded="ask",
    )


def hidden_in(error: BaseException) -> BudgetExceeded | None:
    """Return the spent budget that an exception is made of: a `TaskGroup` wraps it, and clients raise their own from it.

    None when there is none, or something else has failed besides.
    """
    if isinstance(error, BudgetExceeded):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [hidden_in(part) for part in error.exceptions]
        return found[0] if all(found) else None
    if isinstance(error, NotRetryable):  # the body has decided
        return None
    cause, depth = error.__cause__, 0
    while cause is not None and depth < _CAUSES_MAX:
        if isinstance(cause, BudgetExceeded):
            return cause
        cause, depth = cause.__cause__, depth + 1
    return None


def begin(task: Claimed) -> Ending | Budget:
    """Return what becomes of a task that was claimed with nothing left to spend; see `spent`."""
    if task.spent is None:
        raise AssertionError(f"task {task.id} has something left to spend")
    return spent(task, exceeded(task.spent, "" if task.permit is None else task.permit.provider))


def _key(error: BudgetExceeded) -> str:
    """Return the call site of the question: another one once the bound has been raised."""
    return f"budget|{error.scope}|{error.key}|{error.unit}|{error.allowed:.10g}"


def _ask(error: BudgetExceeded) -> AskSpec:
    is_tokens = error.unit == "tokens"
    proposal = 2 * max(error.allowed, error.spent)  # one that is spent already would only be asked for again
    return AskSpec(
        key=_key(error),
        question=f"{error.what}. Raise it to how many {error.unit}?",
        schema={
            "type": "integer" if is_tokens else "number",
            "exclusiveMinimum": error.allowed,
            "maximum": TOKENS_MAX if is_tokens else USD_MAX,
        },
        proposal=msgspec.Raw(msgspec.json.encode(int(proposal) if is_tokens else proposal)),
        allow_edit=True,
    )


def _allowed(answer: Answer) -> float | None:
    """Return the new bound; None when it was not given."""
    if answer.state != "answered" or not bytes(answer.value):
        return None
    return msgspec.json.decode(answer.value, type=float)


def _info(error: BudgetExceeded) -> ErrorInfo:
    return ErrorInfo(kind=type(error).__name__, message=error.what, fix=error.fix)

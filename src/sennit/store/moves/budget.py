"""Budgets: charged with what calls report, asked before one is begun.

usage ─► task, its thread, its handler, the provider, the fleet: each that has a budget, or whose kind has one each
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sennit.model.provider import Budget, BudgetScope, BudgetView, Usage, split_name
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves.outside import resume
from sennit.store.sql import statements

(
    _ANY, _ANY_SPENT, _TASK, _SPENT, _FOLLOW, _CHARGE, _SET, _SET_FOLLOWERS, _DELETE, _DELETE_FOLLOWERS, _LIST, _ONE,
    _PARKED,
) = statements("budget")  # fmt: skip
_EACH = ("task", "thread", "handler")

Name = tuple[BudgetScope, str]


def names(connection: Connection, provider: str, task_id: int | None) -> list[Name]:
    """Return the budgets that a call concerns, whether or not there are such: the narrowest first."""
    found: list[Name] = []
    row = None if task_id is None else connection.execute(_TASK, (task_id,)).fetchone()
    if row is not None:
        handler, thread_id = row
        found.append(("task", str(task_id)))
        if thread_id is not None:
            found.append(("thread", thread_id))
        found.append(("handler", handler))
    return [*found, ("provider", split_name(provider)[0]), ("fleet", "")]


def any_spent(connection: Connection) -> bool:
    """True when there is a budget of which nothing is left."""
    return bool(connection.execute(_ANY_SPENT).fetchone()[0])


def spent(connection: Connection, provider: str, task_id: int | None) -> BudgetView | None:
    """Return the budget that leaves nothing for a call, the narrowest first."""
    if not any_spent(connection):
        return None
    return spent_of(connection, names(connection, provider, task_id))


def spent_of(connection: Connection, names: Sequence[Name]) -> BudgetView | None:
    """Return the first of these budgets of which nothing is left."""
    for name in names:
        row = connection.execute(_SPENT, name).fetchone()
        if row is not None:
            return _view(row)
    return None


def charge(connection: Connection, effects: Effects, provider: str, task_id: int | None, usage: Usage | None) -> None:
    """Count what a call has used."""
    if usage is None or not connection.execute(_ANY).fetchone()[0]:
        return
    for name in names(connection, provider, task_id):
        if name[0] in _EACH:
            connection.execute(_FOLLOW, name)
        charged = connection.execute(_CHARGE, (usage.tokens, usage.cost_nano, *name)).fetchall()
        if charged and charged[0][0]:
            effects.for_calls().spent = True


def put(connection: Connection, effects: Effects, budget: Budget) -> BudgetView:
    """Set a budget, or delete one without bounds, and those that follow from it; resume the tasks that it had stopped."""
    name, bounds = (budget.scope, budget.key), (budget.tokens_max, budget.cost_nano_max, budget.on_exceeded)
    connection.execute(_SET, (*name, *bounds))
    row = connection.execute(_ONE, name).fetchone()
    if not budget.tokens_max and not budget.cost_nano_max:
        connection.execute(_DELETE, name)
        if not budget.key:
            connection.execute(_DELETE_FOLLOWERS, (budget.scope,))
    elif not budget.key:
        connection.execute(_SET_FOLLOWERS, (*bounds, budget.scope))
    effects.for_calls().spent = True  # it may be: nothing but a look
    for task_id, provider in connection.execute(_PARKED).fetchall():
        if spent(connection, provider, task_id) is None:
            resume(connection, effects, task_id)
    return _view(row)


def budgets(connection: Connection, scope: BudgetScope | None) -> list[BudgetView]:
    """Return the budgets by scope and key."""
    return [_view(row) for row in connection.execute(_LIST, (scope,))]


def _view(row: tuple[Any, ...]) -> BudgetView:
    scope, key, tokens_max, cost_nano_max, on_exceeded, tokens, cost_nano = row
    budget = Budget(
        scope=scope, key=key, tokens_max=tokens_max, cost_nano_max=cost_nano_max, on_exceeded=on_exceeded
    )  # fmt: skip
    return BudgetView(budget=budget, tokens=tokens, cost_nano=cost_nano)

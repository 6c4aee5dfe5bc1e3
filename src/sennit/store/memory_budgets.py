"""Budgets in the memory store: so much may be spent, and so much is.

    a report ─► usage ─► charged to: the task ─ its thread ─ its handler ─ the provider ─ the fleet
    a call, a claim ◄── refused by the first of these, in this order, of which nothing is left

A budget with the key "" of tasks, threads or handlers is one for each of them: whoever is charged gets a row of its own,
with the bounds of that one until it is given others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from sennit.model.provider import Budget, BudgetScope, BudgetView, Usage
from sennit.store.memory_row import Row

Name = tuple[BudgetScope, str]

_EACH: Final[tuple[BudgetScope, ...]] = ("task", "thread", "handler")


@dataclass(slots=True)
class Account:
    """What is spent of one budget.

    Attributes:
        bounds: None follows the budget of its scope that has no key.
    """

    bounds: Budget | None
    tokens: int = 0
    cost_nano: int = 0


class Budgets:
    """All budgets, by scope and key."""

    def __init__(self) -> None:
        self.accounts: dict[Name, Account] = {}

    # ------------------------------------------------------------ setting

    def put(self, budget: Budget) -> BudgetView:
        """Set the bounds of a budget; one without is deleted, and with it those that follow it."""
        name: Name = (budget.scope, budget.key)
        account = self.accounts.setdefault(name, Account(budget))
        account.bounds = budget
        view = BudgetView(budget=budget, tokens=account.tokens, cost_nano=account.cost_nano)
        if not budget.tokens_max and not budget.cost_nano_max:
            del self.accounts[name]
            if not budget.key:
                self._drop_followers(budget.scope)
        return view

    def _drop_followers(self, scope: BudgetScope) -> None:
        for name in [n for n, account in self.accounts.items() if n[0] == scope and account.bounds is None]:
            del self.accounts[name]

    def drop_task(self, task_id: int) -> None:
        """Forget the budget of a task that is deleted."""
        self.accounts.pop(("task", str(task_id)), None)

    # ------------------------------------------------------------ spending

    def charge(self, row: Row | None, provider: str, usage: Usage | None) -> None:
        """Count what a call has used."""
        if usage is None:
            return
        for name in _names(row, provider):
            if name not in self.accounts and name[0] in _EACH and (name[0], "") in self.accounts:
                self.accounts[name] = Account(None)
            account = self.accounts.get(name)
            if account is not None:
                account.tokens += usage.tokens
                account.cost_nano += usage.cost_nano

    def spent(self, row: Row | None, provider: str) -> BudgetView | None:
        """Return the budget that leaves nothing for a call, the narrowest first, or None."""
        for name in _names(row, provider):
            if name in self.accounts and (view := self._view(name)).is_exceeded:
                return view
        return None

    def spent_of_provider(self, provider: str) -> BudgetView | None:
        """Return the budget of a provider if it leaves nothing."""
        view = self._view(("provider", provider)) if ("provider", provider) in self.accounts else None
        return view if view is not None and view.is_exceeded else None

    # ------------------------------------------------------------ looking

    def views(self, scope: BudgetScope | None) -> list[BudgetView]:
        """Return the budgets, by scope and key."""
        return [self._view(name) for name in sorted(self.accounts) if scope in (None, name[0])]

    def _view(self, name: Name) -> BudgetView:
        account = self.accounts[name]
        return BudgetView(budget=self._bounds(name), tokens=account.tokens, cost_nano=account.cost_nano)

    def _bounds(self, name: Name) -> Budget:
        scope, key = name
        own = self.accounts[name].bounds
        if own is not None:
            return own
        default = self.accounts[scope, ""].bounds
        assert default is not None, f"a {scope} budget without a key follows another"  # noqa: S101
        return msgspec.structs.replace(default, key=key)


def _names(row: Row | None, provider: str) -> Iterator[Name]:
    if row is not None:
        yield "task", str(row.id)
        if row.spec.thread_id is not None:
            yield "thread", row.spec.thread_id
        yield "handler", row.spec.handler
    yield "provider", provider
    yield "fleet", ""

"""The contract, part 23: budgets; what is spent is counted, and nothing more is begun beyond them."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sennit.errors import BudgetExceeded
from sennit.model.lifecycle import State
from sennit.model.provider import Budget, BudgetScope, BudgetView, CallReport, Usage
from sennit.model.task import Parked
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_permits import pause
from sennit.testing.contract_tools import Rig, got

SCOPES: tuple[BudgetScope, ...] = ("fleet", "provider", "handler", "thread", "task")
USED = CallReport(usage=Usage(input_tokens=60, output_tokens=40, cost_nano=7))


def key_of(scope: str, task_id: int) -> str:
    """Return the key of the budget that concerns a task of handler `work`, thread `t` and provider `p`."""
    return {"fleet": "", "provider": "p", "handler": "work", "thread": "t", "task": str(task_id)}[scope]


def spent(rig: Rig) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (scope, key) → tokens and nano-dollars that are spent."""
    return {(v.budget.scope, v.budget.key): (v.tokens, v.cost_nano) for v in got(rig.store.budgets())}


class SetBudgetContract:
    """Docstrings of `set_budget` and `budgets`."""

    def test_a_budget_is_stored_for_all_processes(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        budget = Budget(scope="thread", key="t", tokens_max=9, cost_nano_max=7, on_exceeded="ask")

        assert got(rig.store.set_budget(budget)) == BudgetView(budget=budget)

        assert got(other.store.budgets()) == [BudgetView(budget=budget)]

    def test_budgets_are_listed_by_scope_and_key_or_those_of_one_scope(self, rig: Rig) -> None:
        for scope, key in (("thread", "b"), ("handler", "h"), ("thread", "a"), ("fleet", "")):
            rig.budget(scope, key, tokens=1)

        assert list(spent(rig)) == [("fleet", ""), ("handler", "h"), ("thread", "a"), ("thread", "b")]
        assert [view.budget.key for view in got(rig.store.budgets("thread"))] == ["a", "b"]

    def test_a_budget_that_is_changed_keeps_what_was_spent(self, rig: Rig) -> None:
        rig.budget("fleet", tokens=1000)
        rig.spend(tokens=30)

        view = rig.budget("fleet", cost_nano=5)

        assert (view.budget.tokens_max, view.budget.cost_nano_max, view.tokens) == (0, 5, 30)
        assert got(rig.store.budgets()) == [view]

    def test_the_budget_of_a_task_goes_with_the_task(self, rig: Rig, clock: VirtualClock) -> None:
        task = rig.start()
        rig.budget("task", str(task.id), tokens=5)
        rig.succeed(task)
        clock.advance(1)

        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 1

        assert got(rig.store.budgets()) == []

    def test_a_budget_without_bounds_is_deleted(self, rig: Rig) -> None:
        rig.provider()
        rig.budget("fleet", tokens=10)
        rig.spend(tokens=10)

        rig.budget("fleet")

        assert got(rig.store.budgets()) == []
        rig.give_back(rig.permit(), USED)
        assert got(rig.store.budgets()) == []

    @pytest.mark.parametrize("scope", SCOPES)
    @pytest.mark.parametrize("how", ["raised", "deleted"])
    def test_a_task_that_was_suspended_because_it_was_spent_is_ready_when_it_is_not_any_more(
        self, rig: Rig, scope: BudgetScope, how: str
    ) -> None:
        task = rig.start(provider="p", thread_id="t")
        key = key_of(scope, task.id)
        rig.budget(scope, key, tokens=10)
        rig.spend(tokens=10, task_id=task.id)
        assert rig.finish(Parked(task.claim, "budget")) == [True]
        other = rig.start()
        rig.finish(Parked(other.claim, "ask"))

        rig.budget(scope, key, tokens=10, cost_nano=10**9)
        assert rig.reason(task.id) == (State.SUSPENDED, "budget")
        rig.budget(scope, key, tokens=11 if how == "raised" else 0)

        assert rig.states(task.id, other.id) == [State.READY, State.SUSPENDED]

    def test_one_that_another_budget_holds_as_well_stays_suspended(self, rig: Rig) -> None:
        task = rig.start(provider="p", thread_id="t")
        for scope, key in (("fleet", ""), ("thread", "t")):
            rig.budget(scope, key, tokens=10)
        rig.spend(tokens=10, task_id=task.id)
        rig.finish(Parked(task.claim, "budget"))

        rig.budget("fleet", tokens=100)
        assert rig.state(task.id) is State.SUSPENDED
        rig.budget("thread", "t", tokens=100)

        assert rig.state(task.id) is State.READY


class ChargeContract:
    """Docstrings of `return_permit`, `report_call` and `Budget`: what is spent."""

    @pytest.mark.parametrize("how", ["its own permit", "a further permit", "a report"])
    def test_what_a_call_has_used_is_charged_to_all_budgets_that_it_concerns(self, rig: Rig, how: str) -> None:
        rig.provider(parallel=5)
        task = rig.start(provider="p/m", thread_id="t")
        mine = [(scope, key_of(scope, task.id)) for scope in SCOPES]
        others = [("provider", "q"), ("handler", "other"), ("thread", "u"), ("task", str(10**9))]
        for scope, key in (*mine, *others):
            rig.budget(scope, key, tokens=1000)

        match how:
            case "its own permit":
                assert got(rig.store.return_permit(task.id, USED))
            case "a further permit":
                rig.give_back(rig.permit(task_id=task.id), USED)
            case _:
                got(rig.store.report_call("p", USED, task_id=task.id))

        assert spent(rig) == dict.fromkeys(mine, (100, 7)) | dict.fromkeys(others, (0, 0))
        view = rig.pool()
        assert (view.input_tokens, view.output_tokens, view.cost_nano) == (60, 40, 7)

    def test_a_call_of_no_task_is_charged_to_its_provider_and_the_fleet(self, rig: Rig) -> None:
        rig.provider(parallel=5)
        task = rig.start(provider="p", thread_id="t")
        for scope in SCOPES:
            rig.budget(scope, key_of(scope, task.id), tokens=1000)

        rig.give_back(rig.permit(), USED)

        assert {scope for (scope, _), (tokens, _) in spent(rig).items() if tokens} == {"fleet", "provider"}

    def test_a_call_to_a_fallback_is_charged_to_the_fallback(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        rig.budget("provider", "a", tokens=1000)
        rig.budget("provider", "b", tokens=1000)
        pause(rig, clock, "a")

        rig.give_back(rig.permit("a"), USED)

        assert spent(rig) == {("provider", "a"): (0, 0), ("provider", "b"): (100, 7)}

    def test_a_call_that_was_not_made_costs_nothing(self, rig: Rig) -> None:
        rig.provider(parallel=5)
        rig.budget("fleet", tokens=10)

        rig.give_back(rig.permit(tokens=1000))
        rig.give_back(rig.permit(tokens=1000), CallReport())

        assert spent(rig) == {("fleet", ""): (0, 0)}

    @pytest.mark.parametrize("scope", ["handler", "thread", "task"])
    def test_a_budget_without_a_key_is_one_for_each(self, rig: Rig, scope: BudgetScope) -> None:
        rig.provider(parallel=5)
        one = rig.start(provider="p", thread_id="t", handler="work")
        two = rig.start(provider="p", thread_id="u", handler="play")
        rig.budget(scope, tokens=150)

        rig.spend(tokens=100, task_id=one.id)
        rig.spend(tokens=100, task_id=two.id)
        rig.spend(tokens=100, task_id=one.id)

        keys = {"handler": ("work", "play"), "thread": ("t", "u"), "task": (str(one.id), str(two.id))}[scope]
        assert spent(rig) == {(scope, ""): (0, 0), (scope, keys[0]): (200, 0), (scope, keys[1]): (100, 0)}
        with pytest.raises(BudgetExceeded):
            rig.permit(task_id=one.id)
        rig.permit(task_id=two.id)

    def test_what_each_has_follows_the_default_until_it_has_its_own(self, rig: Rig) -> None:
        rig.provider(parallel=5)
        tasks = [rig.start(provider="p", thread_id=thread_id) for thread_id in ("own", "follows")]
        rig.budget("thread", "own", tokens=500)
        rig.budget("thread", tokens=100)
        for task in tasks:
            rig.spend(tokens=200, task_id=task.id)
        rig.permit(task_id=tasks[0].id)
        with pytest.raises(BudgetExceeded):
            rig.permit(task_id=tasks[1].id)

        rig.budget("thread", tokens=300)
        rig.permit(task_id=tasks[1].id)

        rig.budget("thread", "follows", tokens=200)
        rig.budget("thread", tokens=10**6)
        with pytest.raises(BudgetExceeded):
            rig.permit(task_id=tasks[1].id)


class SpentContract:
    """Docstrings of `take_permit` and `Claimed.spent`: nothing more is begun."""

    @pytest.mark.parametrize("scope", SCOPES)
    @pytest.mark.parametrize("bound", ["tokens", "cost_nano"])
    def test_a_budget_that_is_spent_refuses_the_next_call(self, rig: Rig, scope: BudgetScope, bound: str) -> None:
        rig.provider(parallel=5)
        task = rig.start(provider="p", thread_id="t")
        key, some = key_of(scope, task.id), {bound: 9}
        first: dict[str, Any] = {bound: 10}
        rig.budget(scope, key, **first)
        rig.spend(**some, task_id=task.id)  # type: ignore[arg-type]
        rig.give_back(rig.permit(task_id=task.id))

        rig.spend(**some, task_id=task.id)  # type: ignore[arg-type]

        for wait in (True, False):
            with pytest.raises(BudgetExceeded) as refused:
                rig.permit(task_id=task.id, wait=wait)
            assert (refused.value.provider, refused.value.scope, refused.value.key) == ("p", scope, key)
        assert (rig.pool().in_use, rig.pool().waiting) == (1, 0)

    def test_the_budgets_of_provider_and_fleet_refuse_a_call_of_no_task_too(self, rig: Rig) -> None:
        for name in "pqr":
            rig.provider(name, parallel=5)
        rig.budget("provider", "p", tokens=10)
        rig.spend(tokens=10)
        with pytest.raises(BudgetExceeded, match="provider 'p'"):
            rig.permit("p/m")
        rig.permit("q")

        rig.budget("fleet", tokens=10)
        rig.spend(tokens=10, provider="q")

        with pytest.raises(BudgetExceeded, match="fleet"):
            rig.permit("r")

    def test_a_fallback_whose_budget_is_spent_does_not_stand_in(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider("a", fallbacks=("b", "c"))
        rig.provider("b")
        rig.provider("c")
        rig.budget("provider", "b", tokens=10)
        rig.spend(tokens=10, provider="b")
        pause(rig, clock, "a")

        assert rig.permit("a").provider == "c"

    def test_a_fallback_whose_budget_is_raised_stands_in_for_calls_that_wait(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        rig.budget("provider", "b", tokens=10)
        rig.spend(tokens=10, provider="b")
        pause(rig, clock, "a")
        waiting = rig.line_up("a")
        assert rig.waits(waiting)

        rig.budget("provider", "b", tokens=20)

        assert got(waiting).provider == "b"

    def test_a_call_that_waits_is_refused_when_its_budget_is_spent_meanwhile(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider()
        task = rig.start(provider="p", thread_id="t")
        rig.budget("thread", "t", tokens=10)
        waiting = [one.line_up(task_id=task.id) for one in (rig, other)]
        free = rig.line_up()
        assert rig.waits(waiting[0], free)
        assert other.waits(waiting[1])

        rig.spend(tokens=10, task_id=task.id)

        other.store.look()
        for ack in waiting:
            with pytest.raises(BudgetExceeded):
                got(ack)
        assert rig.waits(free)
        rig.succeed(task)
        assert got(free).provider == "p"

    def test_a_call_that_waits_is_refused_by_a_budget_that_is_lowered(self, rig: Rig) -> None:
        rig.provider()
        held = rig.permit()
        rig.budget("fleet", tokens=100)
        rig.spend(tokens=50)
        waiting = rig.line_up()
        assert rig.waits(waiting)

        rig.budget("fleet", tokens=50)

        with pytest.raises(BudgetExceeded):
            got(waiting)
        rig.give_back(held)
        assert rig.pool().in_use == 0

    @pytest.mark.parametrize("scope", SCOPES)
    def test_a_task_whose_budget_is_spent_is_claimed_without_a_permit_and_told(
        self, rig: Rig, scope: BudgetScope
    ) -> None:
        rig.provider(parallel=5)
        task_id = rig.put(provider="p", thread_id="t")
        key = key_of(scope, task_id)
        rig.budget(scope, key, tokens=10)
        rig.spend(tokens=10, task_id=task_id)

        task = rig.run(task_id)

        assert task.permit is None
        assert task.spent is not None
        assert (task.spent.budget.scope, task.spent.budget.key, task.spent.tokens) == (scope, key, 10)
        assert task.spent.is_exceeded
        assert rig.pool().in_use == 0

    def test_the_narrowest_budget_that_is_spent_is_told(self, rig: Rig) -> None:
        task_id = rig.put(provider="p", thread_id="t")
        told = []
        for scope in SCOPES:
            rig.budget(scope, key_of(scope, task_id), tokens=10)
        rig.spend(tokens=10, task_id=task_id)
        for scope in reversed(SCOPES):
            with pytest.raises(BudgetExceeded) as refused:
                rig.permit(task_id=task_id)
            told.append(refused.value.scope)
            rig.budget(scope, key_of(scope, task_id))

        assert told == ["task", "thread", "handler", "provider", "fleet"]

    def test_a_task_whose_budget_is_spent_needs_no_room(self, rig: Rig) -> None:
        rig.provider()
        rig.permit()
        others = [rig.put(provider="p", thread_id="u"), rig.put(provider="p")]
        spent_id = rig.put(provider="p", thread_id="t")
        rig.budget("thread", "t", tokens=10)
        assert rig.claim(9) == []
        rig.store.want("q", 2)

        rig.spend(tokens=10, task_id=spent_id)

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [spent_id])
        assert rig.states(*others) == [State.READY] * 2

    def test_a_task_without_a_provider_is_claimed_as_ever(self, rig: Rig) -> None:
        rig.budget("fleet", tokens=10)
        rig.spend(tokens=10)

        task = rig.start()

        assert (task.permit, task.spent) == (None, None)


class BudgetsContract(SetBudgetContract, ChargeContract, SpentContract):
    """All about budgets."""

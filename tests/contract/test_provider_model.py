"""Both stores, driven with the same calls to providers at the same times, give the same permits to the same.

`stores_side_by_side` has the machine for tasks; here it learns of providers, permits, reports, pauses and budgets.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sennit.errors import SennitError
from sennit.model.admission import Bounds
from sennit.model.provider import (
    BreakerSpec,
    Budget,
    BudgetView,
    CallReport,
    Permit,
    PermitRequest,
    ProviderSpec,
    Rates,
    Usage,
)
from sennit.model.task import Claimed, Parked
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import got
from tests.contract.stores_side_by_side import QUEUES, SECOND_US, THREADS, StoresMachine, agree, pick, seconds

NAMES = ("a", "b")
ASKED = ("a", "a", "a/m", "b", "b/m")  # when exactly one that is not known is declared is free

specs = st.builds(
    ProviderSpec,
    name=st.sampled_from(NAMES),
    rates=st.builds(Rates, parallel=st.integers(1, 3), rpm=st.sampled_from([0, 0, 30]), tpm=st.sampled_from([0, 0, 6000])),
    models=st.sampled_from([{}, {"m": Rates(parallel=1)}]),
    strategy=st.sampled_from(["fixed", "aimd", "gradient", "vegas"]),
    breaker=st.sampled_from([None, BreakerSpec(failures=2, open_s=8.0, probe_s=15.0)]),
    fallbacks=st.sampled_from([(), (), ("b",), ("b/m", "a")]),
)  # fmt: skip
reports = st.sampled_from(
    [
        None,
        CallReport(usage=Usage(input_tokens=60, output_tokens=40, cost_nano=7), duration_us=SECOND_US),
        CallReport(duration_us=SECOND_US),
        CallReport(outcome="throttled", status=429, pause="window", retry_after_s=9.0),
        CallReport(outcome="throttled", status=429, pause="burst"),
        CallReport(outcome="error", status=500),
        CallReport(outcome="error", status=500),
        CallReport(outcome="refused", status=400),
    ]
)
asking = st.fixed_dictionaries(
    {"provider": st.sampled_from(ASKED), "priority": st.integers(0, 3)},
    optional={"tokens": st.sampled_from([50, 900]), "wait": st.sampled_from([True, True, False])},
)
of_provider = st.fixed_dictionaries(
    {"queue": st.sampled_from(QUEUES), "priority": st.integers(0, 3), "provider": st.sampled_from(("", *ASKED))},
    optional={"thread_id": st.sampled_from(THREADS), "handler": st.sampled_from("hg"), "delay_us": seconds},
)
budgets = st.builds(
    Budget,
    scope=st.sampled_from(["fleet", "provider", "handler", "thread", "task"]),
    key=st.just(""),
    tokens_max=st.sampled_from([0, 100, 250]),
    cost_nano_max=st.sampled_from([0, 0, 14]),
)


def given(permit: Permit | None) -> tuple[Any, ...] | None:
    """Return what of a permit both stores must agree on."""
    if permit is None:
        return None
    return permit.id, permit.provider, permit.model, permit.fallback_for, permit.is_probe, permit.granted_us


def told(view: BudgetView | None) -> tuple[Any, ...] | None:
    """Return what of a spent budget both stores must agree on."""
    return None if view is None else (view.budget.scope, view.budget.key, view.tokens, view.cost_nano)


def taken(tasks: list[Claimed]) -> list[tuple[Any, ...]]:
    """Return what of claimed tasks both stores must agree on."""
    return [(task.id, task.attempt, given(task.permit), told(task.spent)) for task in tasks]


def became(ack: Ack[Permit]) -> object:
    """Return what became of a request: a permit, the name of an error, or nothing yet."""
    if not ack.done:
        return None
    try:
        return given(got(ack))
    except SennitError as error:
        return type(error).__name__


class ProvidersMachine(StoresMachine):
    """The same, with providers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, tuple[Ack[Permit], ...]]] = []  # process, id, the ack of each store

    @initialize(specs=st.lists(specs, max_size=2), parallel=st.integers(1, 2))
    def start(self, specs: list[ProviderSpec], parallel: int) -> None:
        self.open(Bounds(provider_parallel=parallel))
        for name in NAMES:
            self.declare(0, ProviderSpec(name=name, rates=Rates(parallel=parallel)))
        for spec in specs:
            self.declare(0, spec)

    def declare(self, process: int, spec: ProviderSpec) -> None:
        self.both(process, lambda store: store.declare_provider(spec))

    # ------------------------------------------------------------ providers

    @rule(process=st.integers(0, 1), spec=specs)
    def declare_anew(self, process: int, spec: ProviderSpec) -> None:
        self.declare(process, spec)

    @rule(
        process=st.integers(0, 1),
        name=st.sampled_from([*NAMES, "unknown"]),
        how=st.sampled_from(["isolate", "pause", "reset", "reset"]),
        for_us=seconds,
    )
    def steer(self, process: int, name: str, how: Any, for_us: int) -> None:
        until_us = self.clock.now_us() + for_us if how == "pause" else None
        self.both(process, lambda store: store.steer_provider(name, how, until_us=until_us))

    @rule(process=st.integers(0, 1), spec=specs)
    def forget_and_declare(self, process: int, spec: ProviderSpec) -> None:
        if self.both(process, lambda store: store.forget_provider(spec.name)) is True:
            self.declare(process, spec)

    # ------------------------------------------------------------ calls

    @rule(process=st.integers(0, 1), drawn=st.lists(asking, min_size=1, max_size=3), n=st.one_of(st.none(), pick))
    def ask(self, process: int, drawn: list[dict[str, Any]], n: int | None) -> None:
        task_id = None if n is None or not self.ids else self.ids[n % len(self.ids)]
        for options in drawn:
            permit_id, self.next_id = self.next_id, self.next_id + 1
            request = PermitRequest(id=permit_id, task_id=task_id, **options)
            acks = tuple(store.take_permit(request) for store in self.pairs[process])
            self.calls.append((process, permit_id, acks))
            self.both(
                process, lambda store: store.finish([])
            )  # in one transaction with the next the order would be free

    @precondition(lambda self: self.calls)
    @rule(n=pick, report=reports, by_another=st.sampled_from([False] * 7 + [True]))
    def give_back(self, n: int, report: CallReport | None, *, by_another: bool) -> None:
        process, permit_id, _ = self.calls[n % len(self.calls)]
        self.both(process ^ by_another, lambda store: store.return_permit(permit_id, report))

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick, report=reports)
    def give_back_of_claim(self, process: int, n: int, report: CallReport | None) -> None:
        task_id = self.claims[-1 - n % len(self.claims)].task_id
        self.both(process, lambda store: store.return_permit(task_id, report))

    @rule(process=st.integers(0, 1), asked=st.sampled_from(ASKED), report=reports, n=st.one_of(st.none(), pick))
    def report(self, process: int, asked: str, report: CallReport | None, n: int | None) -> None:
        task_id = None if n is None or not self.ids else self.ids[n % len(self.ids)]
        said = CallReport(outcome="timeout") if report is None else report
        self.both(process, lambda store: store.report_call(asked, said, task_id=task_id))

    # ------------------------------------------------------------ tasks

    @rule(process=st.integers(0, 1), tasks=st.lists(of_provider, min_size=1, max_size=4))
    def submit_with_provider(self, process: int, tasks: list[dict[str, Any]]) -> None:
        self.submit(process, lambda: [self.spec(**options) for options in tasks], batch=len(tasks))

    @rule(process=st.integers(0, 1), queue=st.sampled_from(QUEUES), n=st.integers(1, 4))
    def claim(self, process: int, queue: str, n: int) -> None:
        tasks = self.both(process, lambda store: store.claim(self.workers[process], queue, n), seen=taken)
        assert not isinstance(tasks, str)
        self.claims += [task.claim for task in tasks]

    # ------------------------------------------------------------ budgets

    @rule(process=st.integers(0, 1), budget=budgets, n=st.one_of(st.none(), pick))
    def set_budget(self, process: int, budget: Budget, n: int | None) -> None:
        keys = {
            "provider": NAMES,
            "handler": ("h", "g"),
            "thread": THREADS,
            "task": [str(i) for i in self.ids] or ["1"],
        }
        if budget.scope == "provider" or (n is not None and budget.scope != "fleet"):
            of = keys[budget.scope]
            budget = Budget(
                scope=budget.scope,
                key=of[(n or 0) % len(of)],
                tokens_max=budget.tokens_max,
                cost_nano_max=budget.cost_nano_max,
            )
        self.both(process, lambda store: store.set_budget(budget))

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick)
    def park_for_budget(self, process: int, n: int) -> None:
        ending = Parked(self.claims[-1 - n % len(self.claims)], "budget")
        self.both(process, lambda store: store.finish([ending]))

    # ------------------------------------------------------------ what always holds

    @rule(process=st.integers(0, 1), seconds=st.integers(0, 15))
    def time_passes(self, process: int, seconds: int) -> None:
        self.clock.advance(seconds)
        self.both(process, lambda store: store.fire(), seen=lambda _: None)  # a wake-up may be kept that is not needed

    @invariant()
    def both_know_the_same_of_providers(self) -> None:
        if self.pairs:
            self.both(0, lambda store: store.providers())
            self.both(0, lambda store: store.budgets())

    @invariant()
    def both_gave_the_same_permits(self) -> None:
        for process in range(len(self.pairs)):
            self.pairs[process][1].look()  # it may be that another process has given it
            self.both(process, lambda store: store.finish([]))  # and that was the last that is under way
        for _, permit_id, acks in self.calls:
            agree(*((permit_id, became(ack)) for ack in acks))


ProvidersMachine.TestCase.settings = settings(stateful_step_count=40, max_examples=40)
TestTheStoresAgreeOnProviders = ProvidersMachine.TestCase

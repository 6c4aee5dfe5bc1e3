"""The contract, part 20: permits come back; with a report, without one, and from the dead."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import pytest

from sennit.errors import PermitLost, ProviderBusy, StoreUnavailable
from sennit.model.provider import BreakerSpec, CallReport, PermitRequest, RateFeedback, Rates, Usage
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_permits import ERROR, pass_until
from sennit.testing.contract_tools import FULL_QUOTA, SECOND_US, Rig, got

ABSURD = [
    CallReport(usage=Usage(input_tokens=10**30, cost_nano=10**30)),
    CallReport(usage=Usage(input_tokens=2**63 - 1, output_tokens=2**63 - 1, cost_nano=2**63 - 1)),
    CallReport(usage=Usage(input_tokens=-(10**30))),
    CallReport(duration_us=10**400),
    CallReport(outcome="throttled", status=429, pause="window", retry_after_s=math.nan),
    CallReport(outcome="throttled", status=429, pause="burst", retry_after_s=-1e300),
    CallReport(outcome="throttled", status=429, pause="minute", retry_after_s=math.inf),
    CallReport(requests=RateFeedback(limit=1, remaining=-(10**40), reset_s=math.nan)),
]


class ReturnPermitContract:
    """Docstring of `return_permit` and `report_call`."""

    @pytest.mark.parametrize("report", [CallReport(), None])
    def test_a_permit_is_returned_once(self, rig: Rig, report: CallReport | None) -> None:
        rig.provider()
        permit = rig.permit()

        answers = [got(rig.store.return_permit(permit.id, report)) for _ in range(2)]

        assert answers == [True, False]
        assert rig.pool().in_use == 0

    @pytest.mark.parametrize("report", ABSURD, ids=[*"abcdefgh"])
    def test_no_report_keeps_a_permit_out_whatever_it_says(
        self, rig: Rig, clock: VirtualClock, report: CallReport
    ) -> None:
        rig.provider(rates=Rates(rpm=1000, tpm=1000), strategy="aimd", breaker=BreakerSpec())
        rig.budget("fleet", tokens=10**18, cost_nano=10**18)
        for _ in range(20):  # what is summed up would leave all integers
            rig.give_back(rig.permit(), report)
            got(rig.store.report_call("other", report))
            got(rig.store.steer_provider("p", "reset"))
            rig.budget("fleet")
            rig.budget("fleet", tokens=10**18, cost_nano=10**18)
            clock.advance(9 * 86_400)

        assert rig.pool().in_use == 0
        assert got(rig.store.budgets())[0].budget.scope == "fleet"

    def test_returning_what_is_not_held_changes_nothing(self, rig: Rig) -> None:
        before = rig.provider()

        assert not got(rig.store.return_permit(10**12, FULL_QUOTA))

        assert rig.pool() == before

    def test_nobody_returns_the_permit_of_another_process(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider()
        permit, waiting = rig.permit(), rig.line_up()

        assert not got(other.store.return_permit(permit.id, FULL_QUOTA))

        assert rig.waits(waiting)
        rig.give_back(permit)
        got(waiting)

    def test_a_request_that_waits_is_forgotten_and_its_ack_rejected(self, rig: Rig) -> None:
        rig.provider()
        held = rig.permit()
        permit_id, next_id = rig.store.take_ids(2)
        given_up = rig.store.take_permit(PermitRequest(id=permit_id, provider="p"))
        behind = rig.store.take_permit(PermitRequest(id=next_id, provider="p"))
        assert rig.waits(given_up, behind)

        assert got(rig.store.return_permit(permit_id))

        with pytest.raises(PermitLost):
            got(given_up)
        assert rig.pool().waiting == 1
        rig.give_back(held)
        assert got(behind).id == next_id

    def test_a_request_that_wants_too_much_and_is_forgotten_lets_those_behind_it_pass(self, rig: Rig) -> None:
        rig.provider(parallel=10, rates=Rates(tpm=6000))
        rig.permit(tokens=800)
        (permit_id,) = rig.store.take_ids(1)
        much = rig.store.take_permit(PermitRequest(id=permit_id, provider="p", tokens=400))
        little = rig.line_up(tokens=10)
        assert rig.waits(much, little)

        assert got(rig.store.return_permit(permit_id))

        assert got(little).provider == "p"

    def test_a_report_of_an_empty_quota_pauses_for_all_processes_until_its_reset(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider(parallel=5)
        end_us = clock.now_us() + 10 * SECOND_US

        rig.give_back(rig.permit(), FULL_QUOTA)

        waiting = [other.line_up() for _ in range(3)]
        assert other.waits(*waiting)
        view = other.pool()
        assert (view.reason, view.pause, view.throttled) == ("pause", "window", 1)
        assert view.closed_until_us is not None
        assert end_us <= view.closed_until_us < end_us + SECOND_US
        clock.advance(9.9)
        assert other.waits(*waiting)
        pass_until(other, clock, lambda: waiting[0].done, within_s=2)
        assert got(waiting[0]).is_probe
        assert other.waits(*waiting[1:])
        other.give_back(got(waiting[0]), CallReport())
        assert not any(got(ack).is_probe for ack in waiting[1:])

    def test_a_report_of_failures_opens_the_breaker_and_after_a_while_it_is_tried_again(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider(parallel=9, breaker=BreakerSpec(failures=2, open_s=20, half_open=1, successes=1))
        for _ in range(2):
            rig.give_back(rig.permit(), ERROR)
        assert (rig.pool().breaker, rig.pool().failed) == ("open", 2)
        waiting = [rig.line_up(), rig.line_up()]
        assert rig.waits(*waiting)

        pass_until(rig, clock, lambda: waiting[0].done, within_s=21)

        assert rig.waits(waiting[1])
        rig.give_back(got(waiting[0]), CallReport())
        assert got(waiting[1]).provider == "p"
        assert rig.pool().breaker == "closed"

    def test_a_report_moves_the_limit(self, rig: Rig) -> None:
        rig.provider(parallel=40, strategy="aimd")
        before = rig.pool().limit
        permits = [rig.permit() for _ in range(before)]

        rig.give_back(permits[0], CallReport(outcome="throttled", status=429, pause="burst"))

        assert rig.pool().limit < before

    def test_rates_let_so_many_calls_through_and_the_next_one_later(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider(parallel=100, rates=Rates(rpm=30))
        permits = []
        with suppress(ProviderBusy):
            while True:
                permits.append(rig.permit(wait=False))
        assert 0 < len(permits) <= 30
        waiting = rig.line_up()
        assert rig.waits(waiting)
        assert rig.pool().reason == "rate"

        pass_until(rig, clock, lambda: waiting.done, within_s=60)

        assert got(waiting).reason == "rate"

    def test_what_was_reserved_and_not_used_is_given_back(self, rig: Rig) -> None:
        rig.provider(parallel=9, rates=Rates(tpm=6000))
        held = rig.permit(tokens=800)
        waiting = rig.line_up(tokens=400)
        assert rig.waits(waiting)

        rig.give_back(held)

        assert got(waiting).provider == "p"

    def test_a_call_without_a_permit_teaches_the_same(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider()

        got(rig.store.report_call("p/m", FULL_QUOTA))

        assert (rig.pool().reason, rig.pool().in_use) == ("pause", 0)
        waiting = rig.line_up()
        assert rig.waits(waiting)
        pass_until(rig, clock, lambda: waiting.done, within_s=11)


class DeadCallerContract:
    """Docstrings of `take_permit` and of the module: what a process holds, and its death."""

    def test_a_process_that_dies_gives_back_what_it_holds(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        rig.provider(parallel=2)
        permits = [dead.permit(), dead.permit()]
        waiting = [rig.line_up() for _ in range(3)]
        assert rig.waits(*waiting)

        got(rig.store.rescue(dead.worker_id))

        assert [got(ack).provider for ack in waiting[:2]] == ["p", "p"]
        assert rig.waits(waiting[2])
        assert not got(dead.store.return_permit(permits[0].id, FULL_QUOTA))
        assert rig.pool().reason != "pause"

    def test_a_process_that_dies_no_longer_waits(self, open_rig: Callable[..., Rig]) -> None:
        rig, dead = open_rig(), open_rig()
        rig.provider()
        held = rig.permit()
        lost = dead.line_up(priority=0)
        assert dead.waits(lost)
        waiting = rig.line_up()

        got(rig.store.rescue(dead.worker_id))

        rig.give_back(held)
        got(waiting)
        dead.store.look()
        with pytest.raises(PermitLost):
            got(lost)
        assert rig.pool().waiting == 0

    def test_a_lapsed_lease_gives_permits_back(self, open_rig: Callable[..., Rig], clock: VirtualClock) -> None:
        rig, frozen = open_rig(), open_rig(lease_s=10)
        rig.provider()
        frozen.permit()
        waiting = rig.line_up()
        clock.advance(9)
        assert rig.waits(waiting)

        clock.advance(1)
        rig.fire()

        assert got(waiting).provider == "p"

    def test_one_that_was_taken_for_dead_and_lives_hears_that_it_no_longer_waits(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, frozen = open_rig(), open_rig(lease_s=10)
        rig.provider()
        rig.permit()
        lost = frozen.line_up()
        assert frozen.waits(lost)
        clock.advance(10)
        rig.fire()

        got(frozen.store.heartbeat(frozen.worker_id, frozen.lease_us))

        with pytest.raises(PermitLost):
            got(lost)

    def test_a_process_that_was_idle_and_takes_a_permit_has_a_fresh_lease(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, idle = open_rig(), open_rig(lease_s=10)
        rig.provider(parallel=2)
        clock.advance(20)

        idle.permit()
        rig.fire()

        assert rig.pool().in_use == 1

    def test_permits_that_were_reserved_by_a_dead_process_reserve_nothing_any_more(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig, dead = open_rig(), open_rig()
        rig.provider(parallel=9, rates=Rates(tpm=6000))
        dead.permit(tokens=800)
        waiting = rig.line_up(tokens=400)
        assert rig.waits(waiting)

        got(rig.store.rescue(dead.worker_id))

        assert got(waiting).provider == "p"

    def test_a_process_that_only_calls_gives_back_what_it_holds_when_it_closes(
        self, make_store: Callable[[], Store], rig: Rig
    ) -> None:
        rig.provider(parallel=2)
        store = make_store()
        ids = rig.store.take_ids(3)
        acks = [store.take_permit(PermitRequest(id=permit_id, provider="p")) for permit_id in ids]
        for ack in acks[:2]:
            got(ack)
        mine = rig.line_up(priority=3)
        assert rig.waits(mine)

        store.close()

        with pytest.raises(StoreUnavailable):
            got(acks[2])
        assert got(mine).provider == "p"
        assert (rig.pool().in_use, rig.pool().waiting) == (1, 0)


class ReportsContract(ReturnPermitContract, DeadCallerContract):
    """All about the way back."""

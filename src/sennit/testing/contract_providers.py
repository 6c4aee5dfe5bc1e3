"""The contract, part 21: what is known of providers, and steering them by hand."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import ProviderNotFound
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.provider import BreakerSpec, CallReport, ProviderSpec, Rates
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_permits import ERROR, all_done, pass_until, pause
from sennit.testing.contract_tools import FULL_QUOTA, Rig, got


class DeclareContract:
    """Docstrings of `declare_provider`, `providers` and `forget_provider`."""

    def test_what_is_declared_is_stored_and_holds_for_all_processes(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        spec = ProviderSpec(
            name="p", rates=Rates(parallel=4, tpm=1000), models={"m": Rates(rpm=7)}, fallbacks=("q",), idle_s=5
        )

        assert got(rig.store.declare_provider(spec)).spec == spec

        assert [view.spec for view in got(other.store.providers())] == [spec]

    def test_the_last_declaration_stands(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider(parallel=4)

        other.provider(parallel=2, fallbacks=("q",))

        assert (rig.pool().spec.parallel, rig.pool().spec.fallbacks, rig.pool().limit) == (2, ("q",), 2)

    def test_bounds_that_are_raised_let_those_in_that_wait(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider(parallel=1)
        rig.permit()
        call = other.line_up()
        assert other.waits(call)
        task_id = rig.put(provider="p")
        rig.store.want("q", 1)
        assert rig.state(task_id) is State.READY

        rig.provider(parallel=3)

        got(call)
        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [task_id])

    def test_what_was_learnt_is_kept_by_a_new_declaration(self, rig: Rig, clock: VirtualClock) -> None:
        breaker = BreakerSpec(failures=2)
        rig.provider("paused", parallel=4, rates=Rates(rpm=100))
        rig.provider("broken", parallel=4, breaker=breaker)
        pause(rig, clock, "paused")
        for _ in range(2):
            rig.give_back(rig.permit("broken"), ERROR)
        before = got(rig.store.providers())
        assert [view.reason for view in before] == ["breaker", "pause"]

        rig.provider("paused", parallel=5, rates=Rates(rpm=200))
        rig.provider("broken", parallel=5, breaker=breaker)

        after = got(rig.store.providers())
        assert [(v.reason, v.closed_until_us, v.failed) for v in after] == [
            (v.reason, v.closed_until_us, v.failed) for v in before
        ]

    def test_bounds_below_what_is_in_use_take_no_permit_away_and_none_is_given_until_it_is_back_under(
        self, rig: Rig
    ) -> None:
        rig.provider(parallel=4)
        permits = [rig.permit() for _ in range(4)]

        rig.provider(parallel=2)

        waiting = rig.line_up()
        for permit in permits[:2]:
            assert rig.waits(waiting)
            rig.give_back(permit, CallReport())
        assert rig.waits(waiting)
        assert rig.pool().in_use == 2
        rig.give_back(permits[2], CallReport())
        assert got(waiting).provider == "p"
        rig.give_back(permits[3], CallReport())
        assert rig.pool().in_use == 1

    def test_declaring_what_is_stored_already_changes_nothing(self, rig: Rig) -> None:
        rig.provider(parallel=4, strategy="aimd")
        rig.give_back(rig.permit(), FULL_QUOTA)
        before = rig.pool()

        assert rig.provider(parallel=4, strategy="aimd") == before

        assert rig.pool() == before

    def test_a_local_server_answers_one_call_at_a_time_whatever_its_bounds(self, rig: Rig) -> None:
        rig.provider(parallel=5, singleton=True)
        held, waiting = rig.permit(), rig.line_up()

        assert rig.waits(waiting)
        rig.give_back(held)
        got(waiting)

    def test_providers_are_listed_by_name_or_those_that_are_named(self, rig: Rig) -> None:
        for name in ("b", "c", "a"):
            rig.provider(name)

        assert [view.spec.name for view in got(rig.store.providers())] == ["a", "b", "c"]
        assert [view.spec.name for view in got(rig.store.providers(["c", "b"]))] == ["b", "c"]

    def test_a_provider_that_is_not_known_is_not_found(self, rig: Rig) -> None:
        rig.provider("a")

        with pytest.raises(ProviderNotFound) as missing:
            got(rig.store.providers(["a", "x"]))

        assert missing.value.provider == "x"
        with pytest.raises(ProviderNotFound):
            got(rig.store.steer_provider("x", "reset"))

    def test_a_view_counts_what_is_out_what_waits_and_what_is_ready(self, rig: Rig) -> None:
        rig.provider(parallel=2)
        rig.permit("p/m")
        rig.run(rig.put(provider="p"))
        rig.line_up()
        for provider in ("p", "p/m", "", "x"):
            rig.put(provider=provider)
        all_done(rig)

        view = rig.pool()

        assert (view.in_use, view.waiting, view.ready, view.reason) == (2, 1, 2, "limit")

    @pytest.mark.parametrize("bounds", [Bounds(provider_parallel=2)], indirect=True)
    @pytest.mark.parametrize("how", ["a call", "a report", "a task"])
    def test_one_that_was_never_declared_is_declared_by_its_first_use(self, rig: Rig, how: str) -> None:
        match how:
            case "a call":
                rig.give_back(rig.permit("new/m"))
            case "a report":
                got(rig.store.report_call("new/m", CallReport()))
            case _:
                rig.succeed(rig.run(rig.put(provider="new/m")))

        (view,) = got(rig.store.providers())
        assert (view.spec, view.in_use) == (ProviderSpec(name="new", rates=Rates(parallel=2)), 0)
        rig.permit("new")
        rig.permit("new")
        assert rig.waits(rig.line_up("new"))

    def test_a_provider_is_forgotten_with_all_that_was_learnt(self, rig: Rig) -> None:
        rig.provider()
        rig.give_back(rig.permit(), FULL_QUOTA)

        assert [got(rig.store.forget_provider("p")) for _ in range(2)] == [True, False]

        assert got(rig.store.providers()) == []
        assert rig.provider().reason == ""

    def test_one_that_is_in_use_or_waited_for_is_not_forgotten(self, rig: Rig) -> None:
        rig.provider()
        held = rig.permit()
        assert not got(rig.store.forget_provider("p"))
        task_id = rig.put(provider="p/m")
        rig.give_back(held)
        assert not got(rig.store.forget_provider("p"))
        got(rig.store.cancel([task_id]))
        got(rig.store.steer_provider("p", "isolate"))
        (call,) = [rig.line_up()]
        assert rig.waits(call)
        assert not got(rig.store.forget_provider("p"))
        assert rig.waits(call)


class SteerContract:
    """Docstring of `steer_provider`."""

    def test_one_that_is_isolated_gives_no_permit_until_it_is_reset(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider(breaker=BreakerSpec())
        assert got(rig.store.steer_provider("p", "isolate")).breaker == "isolated"
        call, task_id = other.line_up(), rig.put(provider="p")
        assert other.waits(call)
        clock.advance(86_400)
        assert other.waits(call)

        view = got(rig.store.steer_provider("p", "reset"))

        assert (view.breaker, view.closed_until_us) == ("closed", None)
        other.give_back(got(call))
        assert rig.run(task_id).permit is not None

    def test_one_that_has_no_breaker_can_be_isolated_too(self, rig: Rig) -> None:
        rig.provider(breaker=None)

        got(rig.store.steer_provider("p", "isolate"))

        assert rig.waits(rig.line_up())

    def test_one_that_is_paused_gives_no_permit_before_that_time(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider()
        pause(rig, clock, "p", for_s=60)
        assert rig.pool().reason == "pause"
        call = rig.line_up()
        clock.advance(59)
        assert rig.waits(call)

        pass_until(rig, clock, lambda: call.done, within_s=2)

        assert got(call).reason == "pause"

    def test_a_reset_lifts_a_pause_and_closes_the_breaker(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider("paused", parallel=3)
        rig.provider("broken", parallel=3, breaker=BreakerSpec(failures=1))
        pause(rig, clock, "paused")
        rig.give_back(rig.permit("broken"), ERROR)
        calls = [rig.line_up(name) for name in ("paused", "broken") for _ in range(2)]
        assert rig.waits(*calls)

        for name in ("paused", "broken"):
            got(rig.store.steer_provider(name, "reset"))

        assert [got(call).provider for call in calls] == ["paused", "paused", "broken", "broken"]

    @pytest.mark.parametrize("how", ["isolate", "pause"])
    def test_calls_that_are_on_their_way_go_on(self, rig: Rig, clock: VirtualClock, how: str) -> None:
        rig.provider(parallel=2)
        permit, task = rig.permit(), rig.start(provider="p")

        if how == "isolate":
            got(rig.store.steer_provider("p", "isolate"))
        else:
            pause(rig, clock, "p")

        assert (rig.pool().in_use, rig.state(task.id)) == (2, State.RUNNING)
        rig.give_back(permit, CallReport())
        rig.succeed(task)
        assert rig.pool().in_use == 0


class ProvidersContract(DeclareContract, SteerContract):
    """All about providers themselves."""

"""The contract, part 19: permits for calls; who gets one, and who waits."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import ProviderBusy
from sennit.model.order import Priority
from sennit.model.provider import BreakerSpec, CallReport, PermitRequest, Rates
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import SECOND_US, Rig, got, in_threads

ERROR = CallReport(outcome="error", status=500)


class PermitsContract:
    """Docstring of `take_permit`, and of the module: permits."""

    def test_a_permit_is_there_at_once_when_there_is_room(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider(parallel=2)

        permit = rig.permit("p/m", tokens=10)

        assert (permit.provider, permit.model, permit.is_probe) == ("p", "m", False)
        assert (permit.granted_us, permit.waited_us, permit.reason) == (clock.now_us(), 0, "")
        assert (rig.pool().in_use, rig.pool().waiting, rig.pool().granted) == (1, 0, 1)

    def test_no_more_permits_are_out_than_the_provider_has(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider(parallel=3)

        for one in (rig, other, rig):
            one.permit()

        late = [rig.line_up(), other.line_up()]
        assert rig.waits(late[0])
        assert other.waits(late[1])
        assert (rig.pool().in_use, rig.pool().waiting) == (3, 2)

    def test_many_that_take_and_return_at_once_never_hold_more_than_there_are(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rigs = open_rig(), open_rig()
        rigs[0].provider(parallel=3)
        held: list[int] = []
        most = [0]

        def call(k: int) -> None:
            rig = rigs[k % 2]
            for _ in range(15):
                permit = rig.permit()
                held.append(permit.id)
                most[0] = max(most[0], len(held))
                held.remove(permit.id)
                rig.give_back(permit, CallReport())

        in_threads(8, call)

        assert most[0] <= 3
        assert (rigs[0].pool().in_use, rigs[0].pool().waiting, rigs[0].pool().granted) == (0, 0, 120)

    def test_a_returned_permit_goes_to_the_call_that_waits_in_the_same_transaction(self, rig: Rig) -> None:
        rig.provider()
        held = rig.permit()
        waiting = rig.line_up()
        assert rig.waits(waiting)

        rig.give_back(held, CallReport())

        assert (rig.pool().in_use, rig.pool().waiting) == (1, 0)
        assert got(waiting).provider == "p"

    def test_a_permit_that_is_freed_in_one_process_wakes_the_call_that_waits_in_another(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider()
        held = rig.permit()
        waiting = other.line_up()
        assert other.waits(waiting)

        rig.give_back(held, CallReport())

        assert got(waiting).provider == "p"

    def test_calls_wait_by_priority_then_by_id(self, rig: Rig) -> None:
        rig.provider()
        held = rig.permit()
        priorities = [Priority.LOW, Priority.NORMAL, Priority.URGENT, Priority.NORMAL, Priority.URGENT]
        waiting = [rig.line_up(priority=p) for p in priorities]
        assert rig.waits(*waiting)

        for k in (2, 4, 1, 3, 0):
            rig.give_back(held)
            held = got(waiting[k])

        assert rig.pool().in_use == 1

    def test_of_calls_of_several_processes_the_one_that_came_first_goes_first_whatever_its_id(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig, other = open_rig(), open_rig()
        rig.provider()
        held = rig.permit()
        small_id, large_id = rig.store.take_ids(2)
        first = other.store.take_permit(PermitRequest(id=large_id, provider="p"))
        assert other.waits(first)  # its own store is asked: only then it stands in line
        clock.advance(1)
        second = rig.store.take_permit(PermitRequest(id=small_id, provider="p"))
        assert rig.waits(second)

        rig.give_back(held)
        other.store.look()

        assert got(first).id == large_id
        assert rig.waits(second)

    def test_a_call_that_wants_much_is_not_overtaken_by_a_smaller_one_behind_it(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider(parallel=10, rates=Rates(tpm=6000))
        rig.permit(tokens=800)
        much = rig.line_up(tokens=400)
        little, other_model = rig.line_up(tokens=10), rig.line_up("p/m", tokens=10)

        assert got(other_model).model == "m"
        assert rig.waits(much, little)
        pass_until(rig, clock, lambda: much.done and little.done, within_s=60)

    def test_a_permit_says_how_long_it_was_waited_for_and_for_what(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider()
        held = rig.permit()
        waiting = rig.line_up()
        assert rig.waits(waiting)
        clock.advance(3)

        rig.give_back(held)

        permit = got(waiting)
        assert (permit.waited_us, permit.reason, permit.granted_us) == (3 * SECOND_US, "limit", clock.now_us())

    # ------------------------------------------------------------ not waiting

    def test_a_request_that_does_not_wait_is_refused_when_there_is_none_now(self, rig: Rig) -> None:
        rig.provider()
        assert rig.permit(wait=False).provider == "p"

        with pytest.raises(ProviderBusy, match="limit") as refused:
            rig.permit(wait=False)

        assert (refused.value.provider, refused.value.reason) == ("p", "limit")
        assert refused.value.retry_after_s > 0
        assert (rig.pool().in_use, rig.pool().waiting) == (1, 0)

    def test_one_that_does_not_wait_is_told_when_a_pause_ends(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider()
        got(rig.store.steer_provider("p", "pause", until_us=clock.now_us() + 10 * SECOND_US))

        with pytest.raises(ProviderBusy, match="pause") as refused:
            rig.permit(wait=False)

        assert 10 <= refused.value.retry_after_s < 11

    def test_one_that_does_not_wait_does_not_overtake_one_that_does(self, rig: Rig) -> None:
        rig.provider(parallel=10, rates=Rates(tpm=6000))
        rig.permit(tokens=800)
        much = rig.line_up(tokens=400)

        with pytest.raises(ProviderBusy):
            rig.permit(tokens=10, wait=False)

        assert rig.waits(much)

    # ------------------------------------------------------------ models

    def test_a_model_has_a_limit_of_its_own_below_that_of_its_provider(self, rig: Rig) -> None:
        rig.provider(parallel=3, models={"m": Rates(parallel=1)})
        held = rig.permit("p/m")
        waiting = rig.line_up("p/m")

        others = [rig.permit("p/n"), rig.permit("p")]
        assert rig.waits(waiting)
        rig.give_back(held)
        assert got(waiting).model == "m"
        full = rig.line_up("p/n")
        assert rig.waits(full)
        rig.give_back(others[0])
        assert got(full).model == "n"

    # ------------------------------------------------------------ fallbacks

    def test_the_first_fallback_that_is_open_and_has_room_stands_in(self, rig: Rig, clock: VirtualClock) -> None:
        rig.provider("a", fallbacks=("b", "c/m", "d"))
        for name in "bcd":
            rig.provider(name)
        pause(rig, clock, "a")
        pause(rig, clock, "b")

        got_in = [rig.permit("a/big"), rig.permit("a")]

        assert [(p.provider, p.model) for p in got_in] == [("c", "m"), ("d", "")]
        waiting = rig.line_up("a")
        assert rig.waits(waiting)
        rig.give_back(got_in[1])
        assert got(waiting).provider == "d"

    def test_nobody_stands_in_for_one_that_is_merely_full(self, rig: Rig) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        held = rig.permit("a")
        waiting = rig.line_up("a")

        assert rig.waits(waiting)
        rig.give_back(held)
        assert got(waiting).provider == "a"

    def test_a_fallback_stands_in_while_the_breaker_is_open(self, rig: Rig) -> None:
        rig.provider("a", parallel=9, breaker=BreakerSpec(failures=2), fallbacks=("b",))
        rig.provider("b")
        for _ in range(2):
            rig.give_back(rig.permit("a"), ERROR)

        assert rig.permit("a").provider == "b"

    def test_who_asked_for_a_fallback_itself_comes_before_those_it_stands_in_for(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        held = rig.permit("b")
        pause(rig, clock, "a")
        stands_in, asked = rig.line_up("a", priority=0), rig.line_up("b", priority=3)
        assert rig.waits(stands_in, asked)

        rig.give_back(held)
        assert rig.waits(stands_in)
        rig.give_back(got(asked))

        permit = got(stands_in)
        assert (permit.provider, permit.fallback_for, got(asked).fallback_for) == ("b", "a", "")

    def test_a_call_that_waits_moves_to_the_fallback_when_its_provider_closes(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        rig.permit("a")
        waiting = rig.line_up("a")
        assert rig.waits(waiting)

        pause(rig, clock, "a")

        assert got(waiting).provider == "b"

    def test_a_call_that_waits_for_a_fallback_gets_its_own_provider_when_that_opens(
        self, rig: Rig, clock: VirtualClock
    ) -> None:
        rig.provider("a", fallbacks=("b",))
        rig.provider("b")
        rig.permit("b")
        pause(rig, clock, "a")
        waiting = rig.line_up("a")
        assert rig.waits(waiting)

        got(rig.store.steer_provider("a", "reset"))

        assert got(waiting).provider == "a"


def pause(rig: Rig, clock: VirtualClock, name: str, *, for_s: float = 10) -> None:
    """Pause a provider by hand."""
    got(rig.store.steer_provider(name, "pause", until_us=clock.now_us() + round(for_s * SECOND_US)))


def pass_until(rig: Rig, clock: VirtualClock, fact: Callable[[], bool], *, within_s: float) -> None:
    """Go from one time that `fire` names to the next until something holds, as the timer of a process does."""
    end_us = clock.now_us() + round(within_s * SECOND_US)
    due_us = all_done(rig)
    while not fact():
        assert due_us is not None, "it does not hold, and nothing is due any more"
        assert clock.now_us() < due_us <= end_us, f"next is due {(due_us - end_us) / SECOND_US:+} s from the end"
        clock.advance((due_us - clock.now_us()) / SECOND_US)
        due_us = all_done(rig)


def all_done(rig: Rig) -> int | None:
    """Do what is due, and return when the next is; acks that the first call resolved are resolved after the second."""
    rig.fire()
    return rig.fire()

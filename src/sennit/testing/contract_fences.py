"""The contract, part 24: locks in the store itself; writes that prove under which lock they were made."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sennit.errors import ConcurrentModificationError, Fenced
from sennit.model.lifecycle import State
from sennit.model.lock import Fence
from sennit.model.task import Succeeded
from sennit.model.thread import StateWrite
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_locks import Hand, LockBackendContract, Pass
from sennit.testing.contract_tools import SECOND_US, Rig, got


def write(
    expected: int, *fences: Fence, data: bytes = b"1", thread_id: str = "t", operation_id: str | None = None
) -> StateWrite:
    """Return a write that carries fences."""
    return StateWrite(thread_id=thread_id, expected=expected, data=data, fences=fences, operation_id=operation_id)


def foreign(token: int, *, shared: bool = False) -> Fence:
    """Return a fence of another server."""
    return Fence(name="redis:l", token=token, shared=shared)


class LocksContract(LockBackendContract):
    """Docstring of `store.protocol_locks`, about what a store adds: death, fences, retention."""

    @pytest.fixture
    def open_hand(self, make_store: Callable[[], Store]) -> Iterator[Callable[[], Hand]]:
        """Clients, that no worker has joined."""
        opened: list[Store] = []

        def open_hand() -> Hand:
            opened.append(store := make_store())

            def settle() -> None:
                store.look()
                got(store.fire())

            return Hand(store, settle)

        yield open_hand
        for store in opened:
            store.close()

    @pytest.fixture
    def time_passes(self, clock: VirtualClock, open_rig: Callable[..., Rig]) -> Pass:
        """Move the clock, and do in a process of its own what is due."""

        def time_passes(seconds: float) -> None:
            clock.advance(seconds)
            open_rig().fire()

        return time_passes

    # ------------------------------------------------------------ death and retention

    def test_a_process_that_is_known_to_be_dead_holds_nothing_and_waits_for_nothing(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        dead, other = open_rig(), open_rig()
        theirs, mine = Hand(dead.store, dict), Hand(other.store, dict)
        held, behind = theirs.take(), mine.take("second")
        theirs.line_up("second")
        waiting, last = mine.line_up(), mine.line_up("second")

        got(other.store.rescue(dead.worker_id))

        assert got(waiting).token > held.token
        mine.let_go(behind)
        assert got(last).token > behind.token

    def test_the_next_timer_is_when_a_lock_is_over_that_somebody_waits_for(
        self, open_rig: Callable[..., Rig], clock: VirtualClock
    ) -> None:
        rig = open_rig()
        hand = Hand(rig.store, dict)
        held = hand.take(ttl_s=5)
        assert rig.fire() is None
        hand.line_up(ttl_s=7)

        assert rig.fire() == held.until_us
        clock.advance(5)
        assert rig.fire() is None

    def test_tokens_grow_also_after_the_name_was_pruned(self, rig: Rig, clock: VirtualClock) -> None:
        hand = Hand(rig.store, dict)
        hand.let_go(hand.take())
        old = hand.take()
        hand.let_go(old)
        held = hand.take("held")
        clock.advance(5)
        hand.extend(held, 100)

        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        assert [seen.name for seen in got(rig.store.locks(["l", "held"]))] == ["held"]
        with pytest.raises(Fenced):
            rig.write(write(0, old.fence))
        assert hand.take().token > old.token

    # ------------------------------------------------------------ fences

    def test_a_write_under_a_lock_that_is_held_is_made(self, rig: Rig) -> None:
        grant = Hand(rig.store, dict).take()

        (view,) = rig.write(write(0, grant.fence))

        assert view.version == 1

    def test_a_write_is_refused_when_its_lock_has_a_newer_token(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        hand = Hand(rig.store, dict)
        old = hand.take()
        hand.let_go(old)
        new = Hand(other.store, dict).take(shared=True)

        with pytest.raises(Fenced) as fenced:
            rig.write(write(0), write(0, old.fence, thread_id="u"))

        assert (fenced.value.name, fenced.value.token, fenced.value.newest) == ("l", old.token, new.token)
        assert [rig.remembered(thread_id).version for thread_id in ("t", "u")] == [0, 0]

    def test_one_whose_time_is_over_may_still_write_while_nobody_has_taken_over(
        self, rig: Rig, time_passes: Pass
    ) -> None:
        hand = Hand(rig.store, dict)
        old = hand.take(ttl_s=1)
        time_passes(2)

        rig.write(write(0, old.fence))
        hand.take()

        with pytest.raises(Fenced):
            rig.write(write(1, old.fence))

    def test_a_seized_lock_fences_its_holder_off_also_when_nobody_waits(self, rig: Rig) -> None:
        old = Hand(rig.store, dict).take()
        got(rig.store.seize_lock("l"))

        with pytest.raises(Fenced):
            rig.write(write(0, old.fence))

    def test_those_who_share_it_do_not_fence_each_other_off(self, rig: Rig) -> None:
        hand = Hand(rig.store, dict)
        slots = [hand.take(shared=True, n_max=2) for _ in range(2)]

        for n, slot in enumerate([*slots, *slots]):
            rig.write(write(n, slot.fence))

        assert rig.remembered().version == 4

    def test_a_shared_fence_is_refused_when_that_grant_is_not_held_any_more(self, rig: Rig, time_passes: Pass) -> None:
        hand = Hand(rig.store, dict)
        released, lapsed = hand.take(shared=True), hand.take(shared=True, ttl_s=1)
        hand.let_go(released)
        time_passes(1)

        for grant in (released, lapsed):
            with pytest.raises(Fenced):
                rig.write(write(0, grant.fence))

    def test_a_fence_of_a_name_that_was_never_given_out_is_refused(self, rig: Rig) -> None:
        with pytest.raises(Fenced) as fenced:
            rig.write(write(0, Fence(name="nobody's", token=1)))

        assert fenced.value.newest == 0

    def test_all_fences_of_a_write_are_checked(self, rig: Rig) -> None:
        hand = Hand(rig.store, dict)
        old, other = hand.take(), hand.take("m")
        got(rig.store.seize_lock("l"))

        with pytest.raises(Fenced):
            rig.write(write(0, other.fence, old.fence))

    def test_a_foreign_fence_is_refused_when_an_earlier_write_has_carried_a_newer_token(self, rig: Rig) -> None:
        rig.write(write(0, foreign(7)))
        rig.write(write(1, foreign(7)))
        rig.write(write(2, foreign(9)))

        with pytest.raises(Fenced) as fenced:
            rig.write(write(3, foreign(8)))

        assert (fenced.value.name, fenced.value.newest) == ("redis:l", 9)

    def test_a_foreign_token_is_not_learnt_from_a_write_that_was_refused(self, rig: Rig) -> None:
        with pytest.raises(ConcurrentModificationError):
            rig.write(write(5, foreign(9)))

        (view,) = rig.write(write(0, foreign(3)))

        assert view.version == 1

    def test_foreign_tokens_survive_retention(self, rig: Rig, clock: VirtualClock) -> None:
        rig.write(write(0, foreign(9)))
        clock.advance(1000)
        got(rig.store.prune(before_us=clock.now_us(), limit=10))

        with pytest.raises(Fenced):
            rig.write(write(1, foreign(8)))

    def test_an_operation_that_is_known_is_no_write_and_needs_no_lock(self, rig: Rig) -> None:
        hand = Hand(rig.store, dict)
        old = hand.take()
        rig.write(write(0, old.fence, operation_id="o"))
        got(rig.store.seize_lock("l"))

        (view,) = rig.write(write(0, old.fence, operation_id="o"))

        assert view.version == 1

    def test_a_result_whose_writes_are_fenced_off_is_recorded_as_a_failure_of_that_kind(self, rig: Rig) -> None:
        old = Hand(rig.store, dict).take()
        task, other = rig.start(), rig.start()
        got(rig.store.seize_lock("l"))

        accepted = rig.finish(Succeeded(task.claim, b"1", writes=(write(0, old.fence),)), Succeeded(other.claim, b"2"))

        assert accepted == [True, True]
        assert rig.states(task.id, other.id) == [State.FAILED, State.SUCCEEDED]
        error = rig.view(task.id).error
        assert error is not None
        assert error.kind == "Fenced"
        assert rig.remembered().version == 0

    def test_a_result_whose_writes_carry_a_good_fence_is_a_success(self, rig: Rig) -> None:
        grant = Hand(rig.store, dict).take()
        task = rig.start()

        assert rig.finish(Succeeded(task.claim, b"1", writes=(write(0, grant.fence),))) == [True]

        assert (rig.state(task.id), rig.remembered().version) == (State.SUCCEEDED, 1)
        assert grant.until_us - grant.granted_us == 10 * SECOND_US

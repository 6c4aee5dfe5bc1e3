"""The contract, part 23: distributed locks; who holds one, who is next, and which token proves it.

`LockBackendContract` is for everything that gives out locks, `LocksContract` for what only a store can promise.
"""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest

from sennit.errors import LockLost, LockTimeout, StoreUnavailable
from sennit.model.lock import LockGrant, LockRequest, LockView
from sennit.store.protocol_locks import LockBackend
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import SECOND_US, got, in_threads


class Hand:
    """One process that takes locks: a backend, and short words for what tests do."""

    def __init__(self, backend: LockBackend, settle: Callable[[], object]) -> None:
        self.backend = backend
        self.settle = settle

    def ask(self, name: str = "l", *, ttl_s: float = 10, **options: Any) -> Ack[LockGrant]:
        """Ask, and do not wait for it."""
        (request_id,) = self.backend.take_ids(1)
        ttl_us = round(ttl_s * SECOND_US)
        request = LockRequest(**{"id": request_id, "name": name, "ttl_us": ttl_us, "owner": "me", **options})
        return self.backend.acquire_lock(request)

    def line_up(self, name: str = "l", **options: Any) -> Ack[LockGrant]:
        """Ask, and return when it stands in line."""
        before = len(self.view(name).waiting)
        ack = self.ask(name, **options)
        got(self.backend.give_up_lock(0))  # nobody's; calls are served in order
        assert self.view(name).waiting[before].token is None
        return ack

    def take(self, name: str = "l", **options: Any) -> LockGrant:
        """Take a lock."""
        return got(self.ask(name, **options))

    def let_go(self, grant: LockGrant) -> None:
        """Release it."""
        got(self.backend.release_lock(grant.name, grant.token))

    def extend(self, grant: LockGrant, ttl_s: float) -> LockGrant:
        """Extend it."""
        return got(self.backend.extend_lock(grant.name, grant.token, round(ttl_s * SECOND_US)))

    def view(self, name: str = "l") -> LockView:
        """Return what is known of a lock."""
        seen = got(self.backend.locks([name]))
        return seen[0] if seen else LockView(name=name, token=0)

    def waits(self, *acks: Ack[LockGrant]) -> bool:
        """Return whether none of these has an answer, after all has been heard and done that is to be."""
        self.settle()
        return not any(ack.done for ack in acks)


class Pass(Protocol):
    """Lets time pass, as the backend sees it."""

    def __call__(self, seconds: float) -> None:
        """Return when it has passed, and all that came due is done."""


class LockBackendContract:
    """Docstrings of `store.protocol_locks`, but for fences. Override `open_hand` and `time_passes`."""

    @pytest.fixture
    def open_hand(self) -> Callable[[], Hand]:
        """Open one more process; to be overridden."""
        raise NotImplementedError("override the fixture open_hand")

    @pytest.fixture
    def time_passes(self) -> Pass:
        """Let time pass; to be overridden."""
        raise NotImplementedError("override the fixture time_passes")

    @pytest.fixture
    def hand(self, open_hand: Callable[[], Hand]) -> Hand:
        """One process."""
        return open_hand()

    # ------------------------------------------------------------ holding

    def test_a_lock_that_is_free_is_held_at_once_for_its_time(self, hand: Hand) -> None:
        grant = hand.take(ttl_s=10)

        assert (grant.name, grant.shared, grant.waited_us) == ("l", False, 0)
        assert grant.until_us - grant.granted_us == 10 * SECOND_US
        (holder,) = hand.view().holders
        assert (holder.token, holder.owner, holder.until_us) == (grant.token, "me", grant.until_us)

    def test_one_that_holds_it_alone_keeps_all_others_waiting_in_any_process(
        self, open_hand: Callable[[], Hand]
    ) -> None:
        hand, other = open_hand(), open_hand()
        hand.take()

        late = [hand.line_up(), other.line_up(), other.line_up(shared=True)]

        assert hand.waits(*late[:1])
        assert other.waits(*late[1:])
        assert len(hand.view().waiting) == 3

    def test_locks_of_other_names_are_none_of_its_business(self, hand: Hand) -> None:
        hand.take("a")

        assert hand.take("b").name == "b"

    def test_whoever_asked_first_holds_it_first(self, open_hand: Callable[[], Hand]) -> None:
        hands = open_hand(), open_hand(), open_hand()
        held = hands[0].take()
        order = [1, 2, 0, 1, 0, 2]
        line = [(hands[k], hands[k].line_up()) for k in order]

        previous = hands[0]
        for k, (hand, ack) in enumerate(line):
            previous.let_go(held)
            held = got(ack)
            previous = hand
            assert not any(later.done for _, later in line[k + 1 :])

    def test_who_lets_go_wakes_the_next_in_another_process(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take()
        waiting = other.line_up()

        hand.let_go(held)

        assert got(waiting).token > held.token

    def test_readers_share_it_and_a_writer_waits_for_all_of_them(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        readers = [hand.take(shared=True), other.take(shared=True), hand.take(shared=True)]
        writer = other.line_up()

        hand.let_go(readers[0])
        other.let_go(readers[1])
        assert other.waits(writer)
        hand.let_go(readers[2])

        assert not got(writer).shared

    def test_a_reader_does_not_pass_a_writer_that_waits(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        reading = hand.take(shared=True)
        writer = other.line_up()
        late_readers = [hand.line_up(shared=True), hand.line_up(shared=True)]
        assert hand.waits(*late_readers)

        hand.let_go(reading)
        writing = got(writer)
        assert hand.waits(*late_readers)
        other.let_go(writing)

        assert [got(reader).shared for reader in late_readers] == [True, True]

    def test_a_semaphore_lets_n_in_and_no_more(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        slots = [one.take(shared=True, n_max=3) for one in (hand, other, hand)]
        late = [hand.line_up(shared=True, n_max=3), other.line_up(shared=True, n_max=3)]
        assert hand.waits(late[0])

        other.let_go(slots[1])

        assert got(late[0]).token > slots[2].token
        assert other.waits(late[1])
        assert len(hand.view().holders) == 3

    # ------------------------------------------------------------ not waiting

    def test_who_does_not_wait_is_refused_when_it_is_held_and_is_told_by_whom(self, hand: Hand) -> None:
        assert hand.take(wait=False, owner="the first").token

        with pytest.raises(LockTimeout, match="the first") as refused:
            hand.take(wait=False)

        assert refused.value.path == "l"
        assert hand.view().waiting == ()

    def test_who_does_not_wait_does_not_pass_one_that_does(self, hand: Hand) -> None:
        hand.take(shared=True)
        writer = hand.line_up()

        with pytest.raises(LockTimeout):
            hand.take(shared=True, wait=False)

        assert hand.waits(writer)

    # ------------------------------------------------------------ time

    def test_when_its_time_is_over_the_next_in_line_has_it(
        self, open_hand: Callable[[], Hand], time_passes: Pass
    ) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take(ttl_s=0.4)
        waiting = other.line_up()
        assert other.waits(waiting)

        time_passes(0.4)

        grant = got(waiting)
        assert grant.token > held.token
        assert grant.granted_us >= held.until_us
        assert grant.waited_us > 0

    def test_when_its_time_is_over_it_can_be_taken_by_who_did_not_wait(self, hand: Hand, time_passes: Pass) -> None:
        held = hand.take(ttl_s=0.2)
        time_passes(0.2)

        assert hand.view().holders == ()
        assert hand.take(wait=False).token > held.token

    def test_extended_it_is_held_longer(self, open_hand: Callable[[], Hand], time_passes: Pass) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take(ttl_s=0.4)
        waiting = other.line_up()

        extended = hand.extend(held, 60)
        time_passes(0.5)

        assert (extended.token, extended.granted_us) == (held.token, held.granted_us)
        assert extended.until_us - held.until_us > 50 * SECOND_US
        assert other.waits(waiting)
        hand.let_go(held)
        assert got(waiting).token > held.token

    def test_extended_to_an_earlier_time_it_is_over_earlier(
        self, open_hand: Callable[[], Hand], time_passes: Pass
    ) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take(ttl_s=1000)
        waiting = other.line_up()

        hand.extend(held, 0.3)
        assert other.waits(waiting)
        time_passes(0.3)

        assert got(waiting).token > held.token

    def test_after_its_time_it_cannot_be_extended_or_released_also_when_nobody_else_has_it(
        self, hand: Hand, time_passes: Pass
    ) -> None:
        held = hand.take(ttl_s=0.2)
        time_passes(0.2)

        with pytest.raises(LockLost) as lost:
            hand.extend(held, 10)
        with pytest.raises(LockLost):
            hand.let_go(held)

        assert (lost.value.name, lost.value.token) == ("l", held.token)

    def test_the_token_of_another_extends_and_releases_nothing(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        old = hand.take()
        hand.let_go(old)
        held = other.take()

        for lost in (old, LockGrant(name="l", token=held.token + 1, granted_us=0, until_us=0)):
            with pytest.raises(LockLost):
                hand.let_go(lost)
            with pytest.raises(LockLost):
                hand.extend(lost, 10)

        assert [holder.token for holder in hand.view().holders] == [held.token]

    # ------------------------------------------------------------ tokens

    def test_tokens_grow_over_all_holders_processes_and_restarts(self, open_hand: Callable[[], Hand]) -> None:
        tokens = []
        for _ in range(3):
            for options in ({}, {"shared": True}, {"shared": True, "n_max": 2}):
                hand = open_hand()
                grant = hand.take(**options)
                tokens.append(grant.token)
                hand.let_go(grant)

        assert tokens == sorted(set(tokens))

    def test_many_that_take_and_release_at_once_never_hold_it_together(self, open_hand: Callable[[], Hand]) -> None:
        hands = open_hand(), open_hand()
        inside: list[int] = []
        most, tokens = [0], []

        def work(k: int) -> None:
            hand = hands[k % 2]
            for _ in range(10):
                grant = hand.take(ttl_s=60)
                inside.append(grant.token)
                most[0] = max(most[0], len(inside))
                tokens.append(grant.token)
                inside.remove(grant.token)
                hand.let_go(grant)

        in_threads(6, work)

        assert most == [1]
        assert tokens == sorted(set(tokens))
        assert (len(tokens), hands[0].view().holders) == (60, ())

    # ------------------------------------------------------------ giving up

    def test_who_gives_up_stands_in_line_no_more(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take()
        gives_up, waits = other.line_up(), other.line_up()
        (first, _) = hand.view().waiting

        assert got(other.backend.give_up_lock(first.id)) is True

        with pytest.raises(LockLost):
            got(gives_up)
        hand.let_go(held)
        assert got(waits).token > held.token

    def test_a_grant_that_has_come_meanwhile_is_released(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take()
        (holder,) = hand.view().holders
        waiting = other.line_up()

        assert got(hand.backend.give_up_lock(holder.id)) is True

        assert got(waiting).token > held.token
        assert got(hand.backend.give_up_lock(holder.id)) is False

    def test_one_behind_a_writer_that_gives_up_goes_on_at_once(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        hand.take(shared=True)
        writer = other.line_up()
        reader = hand.line_up(shared=True)
        (first, _) = hand.view().waiting

        got(other.backend.give_up_lock(first.id))

        assert got(reader).shared
        assert writer.done

    def test_when_a_store_object_is_closed_what_it_held_and_waited_for_is_over(
        self, open_hand: Callable[[], Hand]
    ) -> None:
        hand, other = open_hand(), open_hand()
        held = hand.take()
        hand.take("second")
        mine = hand.line_up()
        waiting = other.line_up()

        hand.backend.close()

        assert got(waiting).token > held.token
        assert mine.done
        with pytest.raises(StoreUnavailable):
            got(mine)
        assert other.view("second").holders == ()

    # ------------------------------------------------------------ looking and seizing

    def test_locks_that_are_held_or_waited_for_are_listed_by_name(self, hand: Hand) -> None:
        held = hand.take("b")
        hand.line_up("b", owner="late")
        hand.take("a", shared=True, n_max=2)
        hand.let_go(over := hand.take("c"))

        listed = got(hand.backend.locks())

        assert [seen.name for seen in listed] == ["a", "b"]
        assert (listed[0].holders[0].shared, listed[0].holders[0].n_max) == (True, 2)
        assert ([h.token for h in listed[1].holders], [w.owner for w in listed[1].waiting]) == ([held.token], ["late"])
        (asked,) = got(hand.backend.locks(["c"]))
        assert (asked.token, asked.holders, asked.waiting) == (over.token, (), ())

    def test_a_lock_that_was_never_held_is_not_known(self, hand: Hand) -> None:
        assert got(hand.backend.locks(["nobody's"])) == []
        assert got(hand.backend.seize_lock("nobody's")) == 0

    def test_seized_it_is_taken_from_all_who_hold_it_and_the_next_has_it(self, open_hand: Callable[[], Hand]) -> None:
        hand, other = open_hand(), open_hand()
        slots = [hand.take(shared=True, n_max=2), other.take(shared=True, n_max=2)]
        waiting = other.line_up()

        assert got(hand.backend.seize_lock("l")) == 2

        assert got(waiting).token > slots[1].token + 1
        for slot in slots:
            with pytest.raises(LockLost):
                hand.let_go(slot)

    def test_seized_when_nobody_waits_its_token_is_old(self, hand: Hand) -> None:
        held = hand.take()

        got(hand.backend.seize_lock("l"))

        assert hand.view().token > held.token
        assert hand.view().holders == ()

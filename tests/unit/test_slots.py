"""Slots, driven at random beside the promise they keep: nothing is ever over-ordered, nothing is lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sennit.schedule.slots import Slots


class SlotsMachine(RuleBasedStateMachine):
    """A dispatcher in small: keeps the standing order, claims for it, and has bodies that wait and end."""

    @initialize(sizes=st.fixed_dictionaries({"a": st.integers(0, 3), "b": st.integers(1, 3)}))
    def begin(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.slots = Slots(sizes)
        self.order = Counter(self.slots.all_free())
        self.active: list[str] = []
        self.waiting: list[str] = []
        self.held_back = False

    def raise_order(self, queue: str, n: int) -> None:
        if not self.held_back:
            self.order[queue] += n

    @precondition(lambda self: not self.held_back)
    @rule()
    def the_order_is_cancelled(self) -> None:
        self.held_back = True
        self.order.clear()

    @precondition(lambda self: self.held_back)
    @rule()
    def what_is_free_is_ordered_again(self) -> None:
        self.held_back = False
        self.order = Counter(self.slots.unordered())

    @precondition(lambda self: self.order.total())
    @rule(chance=st.integers(0, 10**6))
    def a_task_is_claimed(self, chance: int) -> None:
        queue = sorted(self.order.elements())[chance % self.order.total()]
        self.order[queue] -= 1
        self.slots.hold(queue)
        self.active.append(queue)

    @precondition(lambda self: self.active)
    @rule(chance=st.integers(0, 10**6))
    def a_body_ends(self, chance: int) -> None:
        queue = self.active.pop(chance % len(self.active))
        self.raise_order(queue, self.slots.free(queue))

    @precondition(lambda self: self.active)
    @rule(chance=st.integers(0, 10**6))
    def a_body_begins_to_wait(self, chance: int) -> None:
        queue = self.active.pop(chance % len(self.active))
        self.waiting.append(queue)
        self.raise_order(queue, self.slots.lend(queue))

    @precondition(lambda self: self.waiting)
    @rule(chance=st.integers(0, 10**6))
    def a_body_goes_on(self, chance: int) -> None:
        queue = self.waiting.pop(chance % len(self.waiting))
        self.active.append(queue)
        self.slots.take_back(queue)

    @invariant()
    def nothing_is_negative(self) -> None:
        for queue, kept in self.slots.statistics().items():
            assert min(kept.held, kept.lent, kept.owed, self.order[queue]) >= 0

    @invariant()
    def the_books_say_what_runs(self) -> None:
        for queue, kept in self.slots.statistics().items():
            assert kept.slots == self.sizes[queue]
            assert kept.lent == self.waiting.count(queue)
            assert kept.held == self.active.count(queue) + kept.lent
        assert self.slots.held == len(self.active) + len(self.waiting)

    @invariant()
    def what_is_ordered_and_held_never_exceeds_the_slots_lent_or_not(self) -> None:
        if self.held_back:
            return
        for queue, kept in self.slots.statistics().items():
            assert self.order[queue] + kept.held == kept.slots + kept.lent + kept.owed
            assert self.order[queue] <= kept.slots

    @invariant()
    def no_slot_is_lost(self) -> None:
        if self.held_back:
            return
        for queue, kept in self.slots.statistics().items():
            if not kept.held:
                assert self.order[queue] == kept.slots
                assert kept.owed == 0


TestSlots = SlotsMachine.TestCase


def test_a_queue_is_added_once() -> None:
    slots = Slots({"a": 1})

    assert slots.add("b", 2)
    assert not slots.add("b", 5)
    assert slots.serves("b")
    assert not slots.serves("c")
    assert slots.all_free() == {"a": 1, "b": 2}

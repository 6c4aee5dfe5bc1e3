"""Slots that load takes away and gives back, at random: never more on order than allowed, and none lost at the end."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sennit.schedule.slots import Slots


class ScaledSlots(RuleBasedStateMachine):
    """A dispatcher in small. While `cancelling`, nothing is ordered; then all is ordered anew."""

    @initialize(sizes=st.fixed_dictionaries({"a": st.integers(0, 12), "b": st.integers(1, 3)}))
    def begin(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.slots = Slots(sizes)
        self.order = Counter(self.slots.all_free())
        self.active: list[str] = []
        self.waiting: list[str] = []
        self.cancelling = False

    def raise_order(self, queue: str, n: int) -> None:
        if not self.cancelling:
            self.order[queue] += n

    @rule(multiplier=st.sampled_from([0.05, 0.1, 0.343, 0.49, 0.7, 0.9, 1.0]))
    def load_changes(self, multiplier: float) -> None:
        if self.slots.scale(multiplier):
            self.cancelling = True

    @precondition(lambda self: self.cancelling)
    @rule()
    def the_order_is_made_anew(self) -> None:
        self.cancelling = False
        self.order = Counter(self.slots.unordered())

    @precondition(lambda self: not self.cancelling)
    @rule(queue=st.sampled_from(["a", "b"]))
    def an_urgent_task_finds_no_slot(self, queue: str) -> None:
        if self.order[queue] == 0 and self.slots.extend(queue):
            self.order[queue] += 1

    @precondition(lambda self: self.order.total())
    @rule(chance=st.integers(0, 10**6))
    def a_task_is_claimed(self, chance: int) -> None:
        """Also while the order is being cancelled: the word of it is on its way."""
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
    def one_slot_is_always_allowed_and_never_more_than_there_are(self) -> None:
        for queue, kept in self.slots.statistics().items():
            assert min(self.sizes[queue], 1) <= kept.allowed <= kept.slots == self.sizes[queue]

    @invariant()
    def the_books_balance_between_two_orders(self) -> None:
        if self.cancelling:
            return
        for queue, kept in self.slots.statistics().items():
            assert self.order[queue] + kept.held == kept.allowed + kept.lent + kept.owed
            assert self.order[queue] <= kept.slots

    @invariant()
    def who_runs_beyond_what_is_allowed_is_named(self) -> None:
        beyond = self.slots.beyond()
        for queue, kept in self.slots.statistics().items():
            assert (queue in beyond) == (self.active.count(queue) > kept.allowed)

    def teardown(self) -> None:
        """When load has gone and all bodies have ended, every slot is on order again."""
        if not hasattr(self, "slots"):
            return
        for queue in self.active + self.waiting:
            self.slots.free(queue)
        for queue in self.waiting:
            self.slots._lent[queue] -= 1
        self.slots.scale(1.0)
        assert self.slots.unordered() == {queue: n for queue, n in self.sizes.items() if n}


TestScaledSlots = ScaledSlots.TestCase


def test_fewer_slots_take_effect_as_bodies_end() -> None:
    slots = Slots({"a": 10})
    for _ in range(10):
        slots.hold("a")

    assert slots.scale(0.7)
    assert slots.unordered() == {}

    assert [slots.free("a") for _ in range(5)] == [0, 0, 0, 1, 1]


def test_a_change_too_small_for_a_slot_changes_no_order() -> None:
    slots = Slots({"a": 1, "b": 2})

    assert slots.scale(0.7)
    assert not slots.scale(0.5)
    assert not slots.scale(0.05)
    assert slots.scale(1.0)


def test_an_urgent_task_gets_back_what_load_has_taken_and_no_more() -> None:
    slots = Slots({"a": 3, "b": 3})
    assert not slots.extend("a")
    slots.scale(0.05)

    assert [slots.extend("a") for _ in range(3)] == [True, True, False]
    assert not slots.extend("unknown")

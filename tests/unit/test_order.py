"""The ready order: priorities age, and nothing starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.model.order import HANDICAP_US, Priority, order_us

times_us = st.integers(0, 2**52)
priorities = st.sampled_from(Priority)


@given(now_us=times_us, waited_us=st.integers(0, 2**40), old=priorities, new=priorities)
def test_who_has_waited_longer_than_the_head_start_goes_first(
    now_us: int, waited_us: int, old: Priority, new: Priority
) -> None:
    mine = order_us(old, now_us=now_us)
    theirs = order_us(new, now_us=now_us + waited_us)

    assert (mine < theirs) is (waited_us > HANDICAP_US[old] - HANDICAP_US[new])


@given(now_us=times_us, priority=priorities)
def test_a_place_is_now_and_the_handicap_of_the_priority(now_us: int, priority: Priority) -> None:
    assert order_us(priority, now_us=now_us) == now_us + HANDICAP_US[priority]


@given(times=st.lists(times_us, min_size=2, max_size=30), priority=priorities)
def test_tasks_of_one_priority_go_in_the_order_in_which_they_became_ready(times: list[int], priority: Priority) -> None:
    places = [order_us(priority, now_us=now_us) for now_us in sorted(times)]

    assert places == sorted(places)


def test_priorities_of_one_moment_go_in_their_order() -> None:
    places = [order_us(priority, now_us=0) for priority in Priority]

    assert places == sorted(places)
    assert len(set(places)) == len(Priority)


def test_a_low_task_of_ten_minutes_ago_goes_before_an_urgent_one_of_now() -> None:
    ten_minutes_us = 600_000_001

    assert order_us(Priority.LOW, now_us=0) < order_us(Priority.URGENT, now_us=ten_minutes_us)


@pytest.mark.parametrize("word", ["high", "HIGH", "High", Priority.HIGH])
def test_a_priority_may_be_a_word(word: Priority | str) -> None:
    assert Priority.parse(word) is Priority.HIGH


@pytest.mark.parametrize("word", ["highest", "", "1"])
def test_another_word_is_refused_with_those_there_are(word: str) -> None:
    with pytest.raises(ValueError, match="urgent, high, normal, low"):
        Priority.parse(word)

"""The ready order: priorities age, threads share, and nothing starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.model.order import HANDICAP_US, THREAD_QUANTUM_US, Priority, next_tag_us, order_us

times_us = st.integers(0, 2**52)
priorities = st.sampled_from(Priority)


@given(now_us=times_us, waited_us=st.integers(0, 2**40), old=priorities, new=priorities)
def test_who_has_waited_longer_than_the_head_start_goes_first(
    now_us: int, waited_us: int, old: Priority, new: Priority
) -> None:
    mine = order_us(old, now_us=now_us)
    theirs = order_us(new, now_us=now_us + waited_us)

    assert (mine < theirs) is (waited_us > HANDICAP_US[old] - HANDICAP_US[new])


@given(now_us=times_us, tag_us=times_us, priority=priorities)
def test_a_place_is_never_before_now_nor_before_the_threads_turn(now_us: int, tag_us: int, priority: Priority) -> None:
    place_us = order_us(priority, now_us=now_us, tag_us=tag_us)

    assert place_us >= now_us + HANDICAP_US[priority]
    assert place_us >= tag_us


def test_priorities_of_one_moment_go_in_their_order() -> None:
    places = [order_us(priority, now_us=0) for priority in Priority]

    assert places == sorted(places)
    assert len(set(places)) == len(Priority)


def test_a_low_task_of_ten_minutes_ago_goes_before_an_urgent_one_of_now() -> None:
    ten_minutes_us = 600_000_001

    assert order_us(Priority.LOW, now_us=0) < order_us(Priority.URGENT, now_us=ten_minutes_us)


def test_a_thread_that_hands_in_thousands_queues_behind_itself() -> None:
    tag_us, busy = 0, []
    for _ in range(1000):
        busy.append(order_us(Priority.NORMAL, now_us=0, tag_us=tag_us))
        tag_us = next_tag_us(tag_us, now_us=0)

    newcomer = order_us(Priority.NORMAL, now_us=2 * THREAD_QUANTUM_US)

    assert busy == sorted(busy)
    assert sum(place < newcomer for place in busy) == 2


@given(tag_us=times_us, now_us=times_us)
def test_a_tag_only_grows_and_an_idle_thread_saves_nothing_up(tag_us: int, now_us: int) -> None:
    after_us = next_tag_us(tag_us, now_us=now_us)

    assert after_us > tag_us
    assert after_us > now_us


@given(gaps_us=st.lists(st.integers(0, 10 * THREAD_QUANTUM_US), min_size=2, max_size=30))
def test_tasks_of_one_thread_keep_their_order(gaps_us: list[int]) -> None:
    now_us = tag_us = 0
    places = []
    for gap_us in gaps_us:
        now_us += gap_us
        places.append(order_us(Priority.NORMAL, now_us=now_us, tag_us=tag_us))
        tag_us = next_tag_us(tag_us, now_us=now_us)

    assert places == sorted(places)


@pytest.mark.parametrize("word", ["high", "HIGH", "High", Priority.HIGH])
def test_a_priority_may_be_a_word(word: Priority | str) -> None:
    assert Priority.parse(word) is Priority.HIGH


@pytest.mark.parametrize("word", ["highest", "", "1"])
def test_another_word_is_refused_with_those_there_are(word: str) -> None:
    with pytest.raises(ValueError, match="urgent, high, normal, low"):
        Priority.parse(word)

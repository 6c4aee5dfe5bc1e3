"""Dependencies of one batch: sorted when they can be, refused with the circle when not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import CyclicDependency
from sennit.model.graph import order_batch, parents_outside

# Edges from anywhere to anywhere, circles and strangers included.
graphs = st.dictionaries(st.integers(0, 12), st.sets(st.integers(0, 15), max_size=4), max_size=13)
# Edges only to smaller ids: no circle by construction.
acyclic = graphs.map(lambda graph: {task: {p for p in parents if p < task} for task, parents in graph.items()})


@given(parents=acyclic)
def test_every_task_comes_once_and_after_its_parents(parents: dict[int, set[int]]) -> None:
    order = order_batch(parents)

    assert sorted(order) == sorted(parents)
    place = {task: n for n, task in enumerate(order)}
    assert all(place[p] < place[task] for task, group in parents.items() for p in group if p in parents)


@given(parents=graphs)
def test_a_batch_is_ordered_or_its_circle_is_shown(parents: dict[int, set[int]]) -> None:
    try:
        order = order_batch(parents)
    except CyclicDependency as error:
        circle = error.cycle
        assert circle[0] == circle[-1]
        assert all(parent in parents[task] for parent, task in pairwise(circle))
    else:
        assert sorted(order) == sorted(parents)


@given(parents=graphs)
def test_strangers_are_the_parents_that_are_not_in_the_batch(parents: dict[int, set[int]]) -> None:
    strangers = parents_outside(parents)

    assert strangers.isdisjoint(parents)
    assert strangers | parents.keys() >= set().union(*parents.values())


def test_a_task_cannot_wait_for_itself() -> None:
    with pytest.raises(CyclicDependency, match="7 → 7"):
        order_batch({7: [7]})


def test_the_circle_is_named_and_the_rest_of_the_batch_is_not() -> None:
    with pytest.raises(CyclicDependency) as refused:
        order_batch({1: [], 2: [1, 4], 3: [2], 4: [3], 5: [4]})

    assert set(refused.value.cycle) == {2, 3, 4}
    assert "remove one" in refused.value.fix


def test_a_chain_deeper_than_the_stack_is_sorted() -> None:
    depth = 20_000

    assert order_batch({n: [n - 1] for n in range(depth, 0, -1)}) == list(range(1, depth + 1))

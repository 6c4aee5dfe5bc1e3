"""Dependencies inside one batch: refuse circles and strangers before anything is stored.

Across batches no circle can arise: a dependency names a task that is already stored, and a stored task never gains
parents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush

from sennit.errors import CyclicDependency


def parents_outside(parents: Mapping[int, Iterable[int]]) -> set[int]:
    """Return the parent ids that are not in the batch itself; the store must know them."""
    inside = parents.keys()
    return {p for group in parents.values() for p in group if p not in inside}


def order_batch(parents: Mapping[int, Iterable[int]]) -> list[int]:
    """Return the ids of a batch, each after its parents in the batch, and otherwise in the order they came.

    Args:
        parents: task id → ids it waits for; ids outside the batch are ignored.

    Raises:
        CyclicDependency: with the circle in `cycle`.
    """
    inside = parents.keys()
    if all(p not in inside for group in parents.values() for p in group):
        return list(inside)
    sorter = TopologicalSorter({i: [p for p in group if p in inside] for i, group in parents.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise CyclicDependency(tuple(error.args[1])) from None
    ids = list(inside)
    place = {i: n for n, i in enumerate(ids)}
    ordered: list[int] = []
    free: list[int] = []
    while sorter.is_active():
        for i in sorter.get_ready():
            heappush(free, place[i])
        ordered.append(ids[heappop(free)])
        sorter.done(ordered[-1])
    return ordered

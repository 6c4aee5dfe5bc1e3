"""What routes mean where stores are looked at: who may run a task, who goes before it, what operators see."""

from __future__ import annotations

from collections.abc import Sequence

from sennit.model.route import fits, parts_of, route_words
from sennit.model.task import RouteView, WorkerInfo


def no_worker(route: str) -> str:
    """Return why a ready task waits that no living worker may run."""
    return f"no worker with {route_words(route)}"


def is_rival(other: str, route: str, queue: str, workers: Sequence[WorkerInfo]) -> bool:
    """Return whether a task of route `other` that stands before one of `route` is claimed before it.

    So it is when a worker that may run the one may run the other, too. Without such a worker: if one that comes for
    `route` will.
    """
    if other == route:
        return True
    able = [worker for worker in workers if worker.may_run(route, queue)]
    return any(worker.may_run(other) for worker in able) if able else fits(other, *parts_of(route))


def route_view(queue: str, route: str, *, live: int, ready: int, workers: Sequence[WorkerInfo]) -> RouteView:
    """Return the open tasks of one route as others see them."""
    needs, version = parts_of(route)
    able = sum(worker.may_run(route, queue) for worker in workers)
    return RouteView(queue=queue, needs=needs, version=version, live=live, ready=ready, workers=able)

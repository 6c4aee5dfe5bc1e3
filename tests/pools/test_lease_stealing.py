"""Real processes: one claims a heap of work ahead and is stuck, another comes later, takes its share, and the first is killed.

first   2 slots   endless endless │ held ahead: 0 1 2 3 4 5 …  19
second  1 slot    ◄── 0, 1, 2, 3 (waits at the gate) ──┘           kill -9 of the first ─► 4 … 19 are ready, uncrashed
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sennit import App
from sennit.model.lifecycle import State
from tests.crash.fleet import Fleet, fleet, values
from tests.crash.nursery import Forked, Nursery
from tests.pools.stealing_program import handlers

N, AT_GATE = 20, 3


def start(some: Fleet, nursery: Nursery, **environ: str) -> Forked:
    journal = {some.journal.writer: some.journal.writer}
    process = nursery.start("tests.pools.stealing_program:run", environ=some._environ(environ), descriptors=journal)
    some.forked.append(process)
    return process


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    fresh: Callable[..., str] = request.getfixturevalue("fresh_database")
    return fresh()


def test_a_process_that_comes_later_takes_its_share_and_a_kill_counts_only_what_had_begun(
    url: str, tmp_path: Path, nursery: Nursery
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    app = App(url, durability="normal")
    endless, short = handlers(app)
    with fleet(url, SENNIT_CLAIM_AHEAD="32", SENNIT_LEASE_S="3600") as some:
        stuck = [endless.submit(), endless.submit()]
        heap = [short.submit(n, str(gate) if n == AT_GATE else "") for n in range(N)]
        app.store.log([]).result()  # after all that was handed in before
        first = start(some, nursery, SENNIT_SLOTS="2")
        some.journal.wait_for("start", 2)
        assert {view.state for view in app.store.tasks().result()} == {State.RUNNING}  # held, all of them

        second = start(some, nursery, SENNIT_SLOTS="1", SENNIT_CLAIM_AHEAD="0")
        some.journal.wait_for("start", where=lambda r: r.note == str(AT_GATE))
        first.kill()
        with gate.open("w"):
            assert values(heap) == list(range(N))
        assert values(stuck) == ["done by another"] * 2

        starts = some.journal.of("start")
        views = {view.id: view for view in app.store.tasks().result()}
        ledger = app.store.ledger().result()
        assert app.store.verify().result() == []
        app.close()

    claims = [(r.task_id, r.attempt) for r in starts]
    assert len(claims) == len(set(claims)) == N + 4
    assert {r.pid for r in starts if r.note} == {second.pid}
    assert [r.note for r in starts if r.note] == [str(n) for n in range(N)]  # in their order
    assert [views[handle.id].crashes for handle in (*stuck, *heap)] == [1, 1] + [0] * N
    assert [views[handle.id].failures for handle in heap] == [0] * N
    assert (ledger.live, ledger.failed, ledger.crashed, ledger.missing) == (0, 0, 2, 0)

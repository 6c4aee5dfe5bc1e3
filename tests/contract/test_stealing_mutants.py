"""The rules of sql/sqlite/ahead.sql, each broken in turn: then a body runs twice, or somebody who lost it writes.

Two processes share what one has claimed ahead, on SQLite and on PostgreSQL. The same day finds nothing with the true words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg
import pytest

from sennit.model.task import Claim, Claimed, Succeeded
from sennit.store.moves import ahead
from sennit.store.postgres import PostgresStore
from sennit.store.protocol import Store
from sennit.store.sql import Statement
from sennit.store.sqlite import SqliteStore
from sennit.store.wakeup import Hint
from sennit.testing.contract_tools import Rig, got, running_loop

N: Final = 24


@pytest.fixture(params=["sqlite", "postgres"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "tasks.db", durability="normal")
    url: str = request.getfixturevalue("postgres_url")
    return lambda: PostgresStore(url)


@pytest.fixture
def rigs(make_store: Callable[[], Store]) -> Iterator[list[Rig]]:
    with running_loop() as loop, closing(make_store()) as full, closing(make_store()) as idle:
        yield [Rig(full, loop), Rig(idle, loop)]


def steal(rig: Rig) -> list[Claimed]:
    return got(rig.store.steal(rig.worker_id, "q", 4))


def held_by(rig: Rig) -> set[Claim]:
    held = got(rig.store.heartbeat(rig.worker_id, rig.lease_us))
    return set(held)


def begin_one(rig: Rig) -> None:
    before = len(rig.heard.claimed)
    rig.store.want("q", 1)
    rig.heard.wait_for(lambda: len(rig.heard.claimed) > before)


def share(full: Rig, idle: Rig) -> Counter[str]:
    """Both hold some, and begin them one after the other; the second takes over in between; then all is compared."""
    findings: Counter[str] = Counter()
    stolen: list[Claimed] = []
    for rig, n in ((idle, 2), (full, N)):
        rig.submit(*(rig.spec() for _ in range(n)))
        rig.store.want_ahead("q", n)
        begin_one(rig)
    for rig in (full, full, idle, idle):
        stolen.extend(steal(idle))
        begin_one(rig)
    begun = [task.id for task in (*full.heard.claimed, *idle.heard.claimed, *stolen)]
    findings["begun twice"] += len(begun) - len(set(begun))
    held = [held_by(rig) for rig in (full, idle)]
    findings["not held"] += sum(task.claim not in held[0] for task in full.heard.claimed)
    findings["not held"] += sum(task.claim not in held[1] for task in (*idle.heard.claimed, *stolen))
    late = [Succeeded(Claim(task.id, 1), b"0") for task in stolen]  # as the first holder would have it
    findings["a late end is accepted"] += sum(map(bool, full.finish(*late)))
    return +findings


BEGIN, STEAL = "_BEGIN", "_STEAL"
MUTANTS: Final = [
    ("a steal keeps the attempt", STEAL, ("attempt = attempt + 1", "attempt = attempt"), "a late end is accepted"),
    ("a steal leaves the mark", STEAL, ("is_ahead = 0", "is_ahead = 1"), "begun twice"),
    ("a steal takes what has begun", STEAL, ("s.is_ahead = 1 AND ", ""), "begun twice"),
    ("a steal leaves the worker", STEAL, ("worker_id = :worker_id, ", ""), "not held"),
    ("what begins stays marked", BEGIN, ("is_ahead = 0", "is_ahead = 1"), "begun twice"),
    ("what begins may be anybody's", BEGIN, ("s.worker_id = :worker_id", ":worker_id = :worker_id"), "not held"),
]


def test_sharing_what_is_held_ahead_runs_each_task_once(rigs: list[Rig]) -> None:
    assert share(*rigs) == {}


def test_others_are_rung_when_a_process_first_holds_some_and_not_when_it_holds_more(
    rigs: list[Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looked before found nothing ready and nothing held; whoever has had room since took what there was."""
    full, idle = rigs
    idle.store.want("q", 1)
    assert held_by(idle) == held_by(idle) == set()  # behind them the others know that it has room
    full.submit(*(full.spec() for _ in range(12)))
    idle.heard.wait_for(lambda: len(idle.heard.claimed) == 1)  # they go on knowing
    rings: list[int] = []
    held: list[int] = []
    ears = full.store.ears  # type: ignore[attr-defined]  # of a store with rows
    ring = ears.ring

    def noted(others: list[str], hints: int) -> None:
        rings.append(hints)
        ring(others, hints)

    monkeypatch.setattr(ears, "ring", noted)
    full.store.want_ahead("q", 4)

    for n in (1, 3):
        before = len(full.heard.claimed)
        full.store.want("q", n)
        full.heard.wait_for(lambda before=before, n=n: len(full.heard.claimed) == before + n)  # type: ignore[misc]
        held.append(len(held_by(full)))  # after whatever was rung
        held.append(sum(bool(hints & Hint.READY) for hints in rings))

    assert held == [5, 1, 8, 1]


@pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("name", "change", "finding"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_broken_rule_is_found(
    rigs: list[Rig], monkeypatch: pytest.MonkeyPatch, name: str, change: tuple[str, str], finding: str
) -> None:
    """The words are the same for PostgreSQL, where they run under the whole pen."""
    true = getattr(ahead, name)
    assert true.count(change[0]) == 1, f"{name} has changed"
    monkeypatch.setattr(ahead, name, Statement(true.replace(*change)))

    assert finding in share(*rigs)


FUNCTION: Final = [
    ("what begins stays marked", ("SET is_ahead = 0, started_us", "SET is_ahead = 1, started_us"), "begun twice"),
    (
        "what begins may be anybody's",
        ("r.worker_id = p_worker ORDER BY r.order_us, r.id LIMIT p_n", "true LIMIT p_n"),
        "not held",
    ),
]


@pytest.mark.parametrize(("change", "finding"), [m[1:] for m in FUNCTION], ids=[m[0] for m in FUNCTION])
def test_a_broken_rule_of_the_function_that_claims_is_found(
    fresh_database: Callable[..., str], change: tuple[str, str], finding: str
) -> None:
    url = fresh_database()
    with (
        running_loop() as loop,
        closing(PostgresStore(url)) as full,
        closing(PostgresStore(url)) as idle,
    ):
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute("SELECT pg_get_functiondef('sennit_claim'::regproc)").fetchone()
            assert row is not None
            assert row[0].count(change[0]) == 1, "sennit_claim has changed"
            connection.execute(row[0].replace(*change).encode())

        assert finding in share(Rig(full, loop), Rig(idle, loop))

"""Which findings follow from which facts, and in what order."""

from __future__ import annotations

from typing import Any

import pytest

from sennit.observe.profile.facts import (
    BlockFacts,
    CopyFacts,
    Facts,
    FunctionFacts,
    GilFacts,
    LockFacts,
    PickleFacts,
    PoolFacts,
)
from sennit.observe.profile.findings import findings
from sennit.observe.profile.sizing import knee, rate

QUIET = GilFacts(1000, 0.0001, 0.001)
LOUD = GilFacts(1000, 0.005, 0.02)


def facts(**given: Any) -> Facts:
    plain: dict[str, Any] = {
        "command": ["job.py"],
        "cores": 4,
        "has_gil": True,
        "elapsed_s": 10.0,
        "cpu_s": 5.0,
        "watched_s": 0.0,
        "memory_bytes_max": 100_000_000,
        "gil": QUIET,
    }
    return Facts(**plain | given)


def function(**given: Any) -> FunctionFacts:
    plain: dict[str, Any] = {
        "name": "job:score",
        "kind": "cpu",
        "holds_gil": True,
        "calls": 100,
        "ran_s": 4.0,
        "cpu_s": 4.0,
        "runq_s": 0.0,
        "queued_s": 0.0,
        "locked_s": 0.0,
        "importable": True,
    }
    return FunctionFacts(**plain | given)


def pool(**given: Any) -> PoolFacts:
    plain: dict[str, Any] = {
        "name": "ThreadPoolExecutor",
        "made_at": "job.py:1 in main",
        "workers_max": 2,
        "calls": 100,
        "queued_s": 400.0,
        "cpu_s": 0.1,
        "blocked_s": 9.9,
        "locked_s": 0.0,
        "holding_s": 0.0,
        "busy_s": [5.0, 5.0],
        "active_s": 5.0,
        "backlog_s": 4.0,
    }
    return PoolFacts(**plain | given)


def test_a_program_without_a_fault_has_no_findings() -> None:
    assert findings(facts(functions=[function(kind="io", cpu_s=0.0)], pools=[pool(queued_s=0.0)])) == []


def test_the_largest_gain_comes_first_and_small_ones_not_at_all() -> None:
    found = findings(
        facts(
            blocks=[BlockFacts("task main", ["job.py:3 in main"], 4, 2.0, 1.0), BlockFacts("tiny", [], 1, 0.06, 0.06)],
            locks=[LockFacts("job.py:9 in f", 1, 100, 50, 4.0, 0.5, 2)],
            copies=[CopyFacts("bytes", 10_000_000, 8)],
        )
    )

    assert [round(f.share, 2) for f in found] == [0.70, 0.20, 0.20]
    assert "several times" in found[0].what
    assert found[0].gain_bytes == 70_000_000
    assert {f.gain_s for f in found[1:]} == {2.0}
    assert any("job.py:3 in main" in f.what for f in found)


@pytest.mark.parametrize(
    ("given", "environment", "is_found"),
    [
        ({}, {}, True),
        ({"holds_gil": None}, {"gil": LOUD}, True),
        ({"holds_gil": None}, {"gil": QUIET}, False),
        ({"holds_gil": False}, {"gil": LOUD}, False),
        ({"kind": "io"}, {"gil": LOUD}, False),
        ({}, {"cores": 1}, False),
        ({}, {"has_gil": False}, False),
    ],
)
def test_python_that_computes_in_os_threads_is_sent_to_processes_where_those_would_help(
    given: dict[str, Any],
    environment: dict[str, Any],
    is_found: bool,  # noqa: FBT001 - a case
) -> None:
    found = findings(facts(functions=[function(**given)], **environment))

    assert bool(found) is is_found
    if is_found:
        assert found[0].gain_s == pytest.approx(4.0 * 3 / 4)
        assert "cpu=True" in found[0].attempt


def test_a_function_that_processes_cannot_import_is_to_move_first() -> None:
    (found,) = findings(facts(functions=[function(importable=False)]))

    assert "top level of a module" in found.attempt


@pytest.mark.parametrize(
    ("given", "is_found"),
    [
        ({}, True),
        ({"workers_max": 8}, False),  # it never started the others
        ({"queued_s": 1.0}, False),
        ({"locked_s": 5.0}, False),  # more of them would stand in front of the same lock
        ({"cpu_s": 9.9, "blocked_s": 0.1, "holding_s": 9.9}, False),  # they would wait for the GIL
    ],
)
def test_a_pool_is_too_small_only_when_more_os_threads_would_do_more(given: dict[str, Any], is_found: bool) -> None:  # noqa: FBT001 - a case
    found = findings(facts(pools=[pool(**given)]))

    assert ["too small" in f.what for f in found] == [True] * is_found


def test_a_pool_gains_at_most_the_time_in_which_calls_stood_in_its_queue() -> None:
    (found,) = findings(facts(pools=[pool(active_s=9.0, backlog_s=1.0)]))

    assert 0.9 < found.gain_s < 1.0


def test_a_pool_whose_calls_wait_for_os_threads_of_a_library_is_not_too_small() -> None:
    """BLAS computes in its own: to Python such a call looks like waiting."""
    assert findings(facts(pools=[pool()], foreign_s=9.9, cores=2)) == []


def test_a_pool_that_took_calls_one_by_one_is_uneven_and_no_worse_for_it() -> None:
    assert findings(facts(pools=[pool(queued_s=0.0, busy_s=[0.1, 0.1, 0.1, 2.0], workers_max=4)])) == []


def test_a_block_by_sennit_itself_is_nothing_to_change() -> None:
    assert findings(facts(blocks=[BlockFacts("task App.start", ["migrate.py:1"], 1, 2.0, 2.0, is_sennit=True)])) == []


def test_small_messages_are_not_sent_to_shared_memory() -> None:
    assert findings(facts(pickles=[PickleFacts("job.py:7 in main", 100, 50_000, 1.5)])) == []


@pytest.mark.parametrize(
    ("contended", "longest_s", "is_found"),
    [(1, 0.02, False), (1, 0.5, True), (10, 0.02, True), (10, 0.002, False), (200, 0.002, True)],
)
def test_a_lock_whose_holder_was_put_aside_once_is_not_contended(
    contended: int,
    longest_s: float,
    is_found: bool,  # noqa: FBT001 - a case
) -> None:
    found = findings(facts(locks=[LockFacts("job.py:9 in f", 1, 1000, contended, 0.6, longest_s, 2)]))

    assert bool(found) is is_found


def test_an_uneven_pool_is_named_with_what_the_busiest_did_beyond_the_mean() -> None:
    (found,) = findings(facts(pools=[pool(queued_s=0.0, busy_s=[1.0, 1.0, 1.0, 5.0], workers_max=4)]))

    assert found.gain_s == pytest.approx(3.0)
    assert "unevenly" in found.what


def test_what_is_pickled_counts_by_the_seconds_that_it_took() -> None:
    (found,) = findings(facts(pickles=[PickleFacts("job.py:7 in main", 10, 400_000_000, 1.5)]))

    assert found.gain_s == 1.5
    assert "400 MB" in found.what
    assert "SharedArrayPool" in found.attempt


def test_a_gain_is_never_longer_than_the_run() -> None:
    (found,) = findings(facts(blocks=[BlockFacts("task main", ["x"], 1, 99.0, 99.0)]))

    assert found.gain_s == 10.0
    assert found.share == 1.0


@pytest.mark.parametrize(
    ("need", "bends_at"),
    [
        ({"cpu_s": 0.0, "blocked_s": 0.01, "cores": 4, "holds_gil": False}, 32),
        ({"cpu_s": 0.01, "blocked_s": 0.0, "cores": 4, "holds_gil": True}, 1),
        ({"cpu_s": 0.01, "blocked_s": 0.0, "cores": 4, "holds_gil": False}, 4),
        ({"cpu_s": 0.01, "blocked_s": 0.03, "cores": 4, "holds_gil": False}, 16),
        ({"cpu_s": 0.01, "blocked_s": 0.03, "cores": 4, "holds_gil": True}, 4),
    ],
)
def test_the_curve_bends_where_cores_or_the_gil_are_used_up(need: dict[str, Any], bends_at: int) -> None:
    assert knee(**need) == bends_at
    assert rate(bends_at, **need) == pytest.approx(rate(32, **need), rel=0.002)

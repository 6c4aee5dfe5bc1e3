"""What docs/explanation/very-large-fleets.md says of a fleet of many databases is what its simulations find.

Each protocol is run as it is, where it must keep its promise, and broken in ways that look harmless, where the same count
must find it out.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "very_large.py"
MODULES = ("block_leases", "cells", "fleet_arithmetic", "shards")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The scripts of bench/, by name, for this test only."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    before = set(sys.modules)
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
    yield modules
    for name in set(sys.modules) - before:
        if str(ROOT / "bench") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "names", [["inputs", "scales", "bounds", "ids"], ["balance", "growth"], ["edges", "move"], ["limits"], ["faults"]]
)
def test_the_page_shows_what_the_simulation_prints(names: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check", *names],
        capture_output=True,
        text=True,
        check=False,
        env=with_sources(),
    )

    assert (done.returncode, done.stderr) == (0, "")


def with_sources() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src")}


# ---------------------------------------------------------------- where threads live


def test_a_map_of_few_shards_becomes_one_of_many_without_moving_anything(bench: dict[str, Any]) -> None:
    shard_of = bench["shards"].shard_of

    wrong = [name for name in range(1000) if shard_of(name, bits=12) >> 4 != shard_of(name, bits=8)]

    assert wrong == []


def test_a_thread_has_the_same_shard_on_every_machine(bench: dict[str, Any]) -> None:
    """Python's own hash is salted per process; this one must not be."""
    found = [bench["shards"].shard_of("acme", "release-9"), bench["shards"].shard_of("acme", "release-10")]

    assert found == [3924, 85]


@pytest.mark.parametrize("shards", [256, 4096])
def test_one_more_primary_takes_its_share_and_no_more(bench: dict[str, Any], shards: int) -> None:
    grown = bench["shards"].grown(shards, 16)

    assert grown.moved == pytest.approx(1 / 17, rel=0.1)
    assert grown.moved_by_modulo > 0.9


# ---------------------------------------------------------------- edges and moves between databases


def test_edges_across_databases_release_each_child_once_after_all_its_parents(bench: dict[str, Any]) -> None:
    for day in bench["cells"].edges_days():
        assert (day.stuck, day.early, day.twice) == (0, 0, 0)
        assert day.crossing > 500


def test_each_broken_form_of_the_edges_is_found_out(bench: dict[str, Any]) -> None:
    cells = bench["cells"]

    sound_looking = [
        broken
        for broken in cells.EDGES_BROKEN[1:]
        if not any(day.stuck + day.early + day.twice for day in cells.edges_days(broken))
    ]

    assert sound_looking == []


def test_a_shard_moves_under_writes_and_nothing_is_lost(bench: dict[str, Any]) -> None:
    for day in bench["cells"].move_days():
        assert (day.lost, day.same_id_twice) == (0, 0)
        assert day.sent_again > 0
        assert day.refused_while_moving > 0


def test_each_broken_form_of_a_move_is_found_out(bench: dict[str, Any]) -> None:
    cells = bench["cells"]

    sound_looking = [broken for broken in cells.MOVE_BROKEN[1:] if not any(day.lost for day in cells.move_days(broken))]

    assert sound_looking == []


# ---------------------------------------------------------------- one limit for many


def test_a_limit_that_is_leased_in_blocks_is_never_granted_twice(bench: dict[str, Any]) -> None:
    leases = bench["block_leases"]

    worst = max(day.at_once for day in leases.days(leases.Day(faults=True, for_s=600.0)))

    assert worst == leases.LIMIT  # it is used to the full, and no further


@pytest.mark.parametrize("broken", ["cells do not fence", "lent before it is given back", "old answers count"])
def test_each_broken_form_of_the_leases_is_found_out(bench: dict[str, Any], broken: str) -> None:
    leases = bench["block_leases"]

    worst = max(day.at_once for day in leases.days(leases.Day(faults=True, for_s=600.0, broken=broken)))

    assert worst > leases.LIMIT


def test_a_greedy_database_does_not_starve_the_modest_when_blocks_are_leased(bench: dict[str, Any]) -> None:
    leases = bench["block_leases"]
    greedy = leases.Day(greedy=True)

    by_row = leases.Fleet(replace(greedy, way="a row per call")).run()
    by_block = leases.Fleet(greedy).run()

    assert by_block.modest_p95_s < by_row.modest_p95_s / 10


def test_fair_shares_give_the_modest_all_they_want_and_the_others_the_same(bench: dict[str, Any]) -> None:
    fair_shares = bench["block_leases"].fair_shares

    assert fair_shares([5, 200, 0, 70], 100) == [5, 48, 0, 47]
    assert sum(fair_shares([1, 1, 1], 100)) == 100

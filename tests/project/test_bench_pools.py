"""The benchmarks of pools: every case runs in a tiny size and gives figures, and the verdicts are right on made-up ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from sennit.cli.bench_pools import NAMES, cases, check_words
from sennit.cli.main import main
from sennit.cli.pool_cases.bodies import heavy_tail
from sennit.cli.pool_cases.measure import Bound, Case, Sides, judge, measure
from sennit.cli.pool_cases.rivals import SharedQueueExecutor, ended, in_static_parts, one_by_one
from sennit.cli.pool_cases.threads import rate_per_s, reached_s

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = {name for name, module in NAMES.items() if module in {"processes", "arrays"}}


# ---------------------------------------------------------------- verdicts


def made_up(figures: dict[str, list[float]], bound: Bound, *, more_is_better: bool = False) -> tuple[bool | None, str]:
    check = judge(bound, figures, more_is_better=more_is_better)
    return check.holds, check.verdict


def test_a_ratio_is_taken_within_the_rounds_so_a_slow_round_does_not_count() -> None:
    figures = {"ours": [1.0, 100.0, 1.0], "theirs": [1.0, 100.0, 1.0]}
    check = judge(Bound(what="", side="ours", against=("theirs",), at_most=1.2), figures, more_is_better=False)

    assert (check.value, check.lowest, check.highest) == (1.0, 1.0, 1.0)
    assert check.verdict == "holds"


def test_rounds_that_disagree_are_told_whichever_way_the_median_lies() -> None:
    bound = Bound(what="", side="ours", against=("theirs",), at_most=1.2)
    theirs = [1.0, 1.0, 1.0]

    assert made_up({"ours": [1.0, 1.1, 1.3], "theirs": theirs}, bound) == (True, "holds, in 2 of 3 rounds")
    assert made_up({"ours": [1.0, 1.3, 1.4], "theirs": theirs}, bound) == (False, "misses, in 2 of 3 rounds")
    assert made_up({"ours": [1.3, 1.3, 1.4], "theirs": theirs}, bound) == (False, "misses")


def test_the_best_of_several_is_the_one_with_the_best_median() -> None:
    figures = {"ours": [9.0, 9.0], "fixed, 1": [10.0, 1.0], "fixed, 2": [8.0, 8.0], "other": [1000.0, 1000.0]}
    bound = Bound(what="", side="ours", against=("fixed*",), at_least=0.95)

    more = judge(bound, figures, more_is_better=True)
    less = judge(bound, figures, more_is_better=False)

    assert (more.against, more.value, more.holds) == ("fixed, 2", 9 / 8, True)
    assert less.against == "fixed, 1"


def test_a_bound_on_the_figure_itself_needs_nobody_else() -> None:
    assert made_up({"ours": [0.0, 0.0]}, Bound(what="", side="ours", at_most=0)) == (True, "holds")
    assert made_up({"ours": [0.0, 3.0, 2.0]}, Bound(what="", side="ours", at_most=0))[0] is False


def test_what_could_not_be_measured_neither_holds_nor_misses() -> None:
    alone = judge(Bound(what="x", side="ours", against=("loky",), at_most=1), {"ours": [1.0]}, more_is_better=False)

    assert check_words(alone) == ["x", "≤ 1 ×", "-", "", "not measured"]


def test_sides_take_turns_and_one_that_fails_is_told_and_left_out() -> None:
    order: list[str] = []

    def sides(stack: ExitStack, scale: float) -> Sides:
        def side(name: str) -> float:
            order.append(name)
            if name == "c" and order.count("c") == 2:
                raise OSError("gone")
            return 1.0

        return {name: lambda name=name: side(name) for name in "abc"} | {"loky": "not here"}

    outcome = measure(Case(name="x", what="", unit="s", sides=sides, rounds=3))

    assert order == ["a", "b", "c", "b", "c", "a", "a", "b"]
    assert outcome.figures == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert (outcome.missing, outcome.failed) == ({"loky": "not here"}, {"c": "OSError: gone"})


def test_a_rate_is_reached_at_the_end_of_the_first_window_that_has_it() -> None:
    slow = [0.1 * n for n in range(1, 11)]  # 10 a second until 1 s
    fast = [1.0 + 0.01 * n for n in range(1, 101)]  # then 100 a second

    reached = reached_s(slow + fast, per_s=95, window_s=0.2, until_s=9.0)

    assert 1.18 <= reached <= 1.2
    assert reached_s(slow, per_s=95, window_s=0.2, until_s=9.0) == 9.0
    assert rate_per_s(slow + fast, after_s=1.005, before_s=1.505) == 100


def test_heavy_tailed_sizes_have_the_mean_they_are_asked_for_and_few_of_them_are_much_of_it() -> None:
    sizes = heavy_tail(1_000, mean=3.0, seed=1)

    assert sizes == heavy_tail(1_000, mean=3.0, seed=1)
    assert sum(sizes) / 1_000 == pytest.approx(3.0)
    assert sum(sorted(sizes)[-100:]) > sum(sizes) / 3


# ---------------------------------------------------------------- rivals


def test_the_shared_queue_runs_everything_and_hands_errors_to_their_futures() -> None:
    with ended(SharedQueueExecutor(2)) as pool:
        assert [pool.submit(divmod, n, 3).result() for n in range(5)] == [divmod(n, 3) for n in range(5)]
        assert isinstance(pool.submit(divmod, 1, 0).exception(), ZeroDivisionError)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_static_split_runs_every_job_once(parts: int) -> None:
    done: list[int] = []
    with ended(SharedQueueExecutor(parts)) as pool:
        in_static_parts(pool, [lambda n=n: done.append(n) for n in range(10)], parts)  # type: ignore[misc]  # mypy infers no default

    assert sorted(done) == list(range(10))


def test_a_job_that_fails_makes_a_run_fail() -> None:
    def fail() -> None:
        raise OSError("no")

    with ended(SharedQueueExecutor(1)) as pool, pytest.raises(OSError, match="no"):
        one_by_one(pool, [fail])


# ---------------------------------------------------------------- everything runs


@pytest.mark.parametrize("name", sorted(NAMES.keys() - PROCESSES))
def test_each_case_of_this_process_gives_a_figure_for_each_side(name: str) -> None:
    (case,) = cases([name])

    outcome = measure(case, scale=0.01, rounds=1)

    assert outcome.name == name
    assert outcome.failed == {}
    assert outcome.figures
    assert all(value >= 0 for values in outcome.figures.values() for value in values)
    assert {check.what for check in outcome.checks} == {bound.what for bound in case.bounds}
    assert all(check.holds is not None for check in outcome.checks)


@pytest.mark.parametrize("name", ["process_1ms", "array_send"])
def test_cases_with_processes_give_figures_and_leave_no_os_thread(name: str) -> None:
    before = set(threading.enumerate())
    (case,) = cases([name])

    outcome = measure(case, scale=0.01, rounds=1)

    assert outcome.failed == {}
    assert len(outcome.figures) >= 4
    assert not [os_thread for os_thread in threading.enumerate() if os_thread not in before and not os_thread.daemon]


def test_the_command_writes_json_with_figures_bounds_and_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pools", "--only", "overhead_burst", "--scale", "0.01", "--rounds", "2", "--json"]) == 0

    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert (facts["schema"], facts["case"]) == ("sennit.pools/1", "overhead_burst")
    assert [len(figure["rounds"]) for figure in facts["figures"]] == [2] * 4
    assert {bound["verdict"].split(",")[0] for bound in facts["bounds"]} <= {"holds", "misses"}
    assert facts["cores"] >= 1


def test_the_table_says_of_each_bound_whether_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pools", "--only", "batcher", "--scale", "0.01", "--rounds", "1"]) == 0

    printed = capsys.readouterr().out
    assert "direct call" in printed
    assert "≤ 100" in printed
    assert "verdict" in printed


def test_a_quick_run_of_the_thorough_form_has_the_old_designs_and_writes_its_page(tmp_path: Path) -> None:
    page, history = tmp_path / "page.md", tmp_path / "history.jsonl"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    argv = [sys.executable, str(ROOT / "bench" / "run.py"), "pools", "--quick", "--only", "maps", "sizes", "registry"]
    argv += ["--markdown", str(page), "--json", str(history)]

    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    text = page.read_text(encoding="utf-8")
    assert done.stdout.strip() in text
    assert "old: 16 dicts, 16 RLocks" in text
    assert "Time for each operation against one lock" in text
    assert [case["case"] for case in json.loads(history.read_text(encoding="utf-8"))["cases"]] == [
        "registry", "maps_1", "maps_8", "sizes",
    ]  # fmt: skip

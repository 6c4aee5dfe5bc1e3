"""`sennit bench ab`: the list of switches, the verdicts on made-up figures, and one real run in a tiny size."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from sennit.cli.ab_workloads import WORKLOADS
from sennit.cli.bench_ab import SWITCHES, compare, interval
from sennit.cli.main import main
from sennit.model.settings import Settings


def verdict(off: list[float], on: list[float], unit: str = "ms") -> str:
    return compare("switch", "workload", unit, off, on).verdict


# ---------------------------------------------------------------- the list


def test_without_a_switch_it_lists_them_all_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ab"]) == 0

    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "switch"
    assert [row.split()[0] for row in rows] == [switch.name for switch in SWITCHES]
    assert "writer_batch_max 1 | 512" in rows[0]


def test_every_switch_is_made_of_settings_that_take_both_values_and_of_workloads_there_are() -> None:
    knobs = {knob.name for knob in fields(Settings)}
    for switch in SWITCHES:
        assert set(switch.settings) <= knobs
        for is_on in (False, True):
            Settings.of(switch.side(is_on=is_on))
        assert switch.workloads
        assert set(switch.workloads) <= set(WORKLOADS)
        assert switch.kind in {"optimisation", "choice"}


def test_an_unknown_switch_is_an_error_that_names_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ab", "hand_ovr"]) == 2

    said = capsys.readouterr().err
    assert "there is no switch 'hand_ovr'" in said
    assert "did you mean hand_over?" in said


def test_a_name_that_is_near_to_none_gets_the_whole_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ab", "xyz"]) == 2

    said = capsys.readouterr().err
    assert all(switch.name in said for switch in SWITCHES)


# ---------------------------------------------------------------- verdicts


def test_rounds_that_disagree_show_no_difference() -> None:
    assert verdict([1.0] * 9, [0.9, 1.1, 0.95, 1.05, 1.0, 0.9, 1.1, 0.8, 1.2]) == "no difference beyond noise"


def test_a_clear_difference_is_told_with_its_size_whichever_way_is_better() -> None:
    assert verdict([2.0] * 9, [1.0] * 9) == "better with it, 2.00 ×"
    assert verdict([2.0] * 9, [1.0] * 9, unit="per s") == "worse with it, 2.00 ×"


def test_one_round_that_was_disturbed_does_not_hide_a_difference() -> None:
    assert verdict([2.0] * 9, [1.0] * 8 + [50.0]) == "better with it, 2.00 ×"


def test_few_rounds_prove_nothing() -> None:
    assert verdict([2.0] * 3, [1.0] * 3) == "looks better with it, 2.00 ×, but 3 rounds are too few to say so"


def test_a_difference_of_a_percent_is_no_reason_to_choose() -> None:
    assert verdict([1.01] * 9, [1.0] * 9) == "better with it, 1.01 ×: a difference, and too small to choose by"


@pytest.mark.parametrize(("n", "cut", "sure"), [(6, 1, 0.96875), (9, 2, 0.9609375), (15, 4, 0.96484375)])
def test_the_interval_is_that_of_the_sign_test(n: int, cut: int, sure: float) -> None:
    values = [float(k) for k in range(1, n + 1)]

    low, high, sureness = interval(values)
    assert (low, high) == (cut, n + 1 - cut)
    assert sureness == pytest.approx(sure)


# ---------------------------------------------------------------- a run


def test_a_tiny_run_measures_both_sides_on_a_real_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ab", "hand_over", "--rounds", "2", "--scale", "0.01", "--json"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["workload"] for line in lines] == ["latency", "chain", "throughput"]
    for line in lines:
        assert (line["schema"], line["switch"], line["rounds"]) == ("sennit.ab/1", "hand_over", 2)
        assert line["low"] <= line["ratio"] <= line["high"]
        assert min(line["rounds_off"] + line["rounds_on"]) > 0


def test_the_table_ends_with_a_sentence_for_each_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ab", "log_capture", "--rounds", "1", "--scale", "0.001"]) == 0

    printed = capsys.readouterr().out
    assert "throughput (no-op async tasks, submit to recorded): " in printed
    assert "log_capture is off by default" in printed

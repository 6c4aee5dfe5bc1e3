"""`sennit bench limits`: a table, JSON and plots of what the governor makes of simulated providers."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from sennit.cli import bench_limits
from sennit.cli.main import main
from sennit.model.provider import STRATEGIES
from sennit.testing.governorsim import SCENARIOS

SHORT = ("bench", "limits", "--minutes", "17", "--ceiling", "50", "--provider", "window")


def test_json_says_for_each_strategy_what_was_done_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--json"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["schema"], line["provider"], line["strategy"]) for line in lines] == [
        ("sennit.limits/1", "window", strategy) for strategy in STRATEGIES
    ]
    for line in lines[1:]:
        assert line["sent_in_pause"] == 0
        assert 0.8 <= line["of_oracle"] <= 1.0
        assert line["throttled_share"] <= 0.02


def test_the_table_has_a_row_for_each_strategy_and_says_what_was_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SHORT) == 0

    head, *rows, _, last = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["provider", "strategy"]
    assert [next(word for word in row.split() if word in STRATEGIES) for row in rows] == list(STRATEGIES)
    assert last == "simulated: 17 minutes without the first 5, 1 seed, ceiling 50"


def test_a_plot_is_a_small_picture_of_800_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--plot", str(tmp_path / "new" / "folder")]) == 0

    (picture,) = (tmp_path / "new" / "folder").iterdir()
    data = picture.read_bytes()
    assert picture.name == "limits-window.png"
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20]) == (800,)  # the width stands in the first chunk
    assert len(data) < 60_000


def test_a_plot_without_matplotlib_says_what_to_install_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sennit.cli.bench_plots", raising=False)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)

    assert main(["bench", "limits", "--plot", str(tmp_path)]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert 'pip install "sennit[plot]"' in err
    assert list(tmp_path.iterdir()) == []


def test_every_scenario_can_be_chosen_by_its_name() -> None:
    assert tuple(scenario.slug for scenario in SCENARIOS) == bench_limits.NAMES


def test_options_of_the_other_bench_before_it_are_refused_and_not_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--scale", "2", "limits"]) == 2

    assert "before `limits`" in capsys.readouterr().err

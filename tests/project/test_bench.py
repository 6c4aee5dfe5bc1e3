"""The benchmark itself works: a short run prints its tables, and writes its history and its page. No timing is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench" / "run.py"


def run_bench(*options: str) -> str:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    argv = [sys.executable, str(BENCH), *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_quick_run_measures_remembers_and_writes_its_page(tmp_path: Path) -> None:
    history, page = tmp_path / "history.jsonl", tmp_path / "benchmarks.md"
    cases = ["bulk", "children", "throughput_worker"]

    printed = run_bench(
        "--rounds", "1", "--quick", "--workloads", *cases, "--json", str(history), "--markdown", str(page)
    )

    (line,) = history.read_text(encoding="utf-8").splitlines()
    figures = {
        answer["case"]: answer["figures"] for answer in json.loads(line)["answers"] if answer["side"] == "sennit"
    }
    assert figures.keys() == {"fsync", *cases}
    assert figures["bulk"]["missing"] == 0
    assert figures["children"]["joined_early"] == 0
    assert figures["throughput_worker"]["tasks_per_s"] > 0
    assert printed.strip() in page.read_text(encoding="utf-8")


def test_the_last_run_of_a_history_can_be_printed_again(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    printed = run_bench("--rounds", "1", "--quick", "--workloads", "fsync", "--json", str(history))

    again = run_bench("--json", str(history), "--table")

    assert again == printed

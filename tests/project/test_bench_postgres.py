"""The benchmark on PostgreSQL works: a short run on a server of its own prints its tables. No timing is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_on_postgres_measures_and_remembers(tmp_path: Path) -> None:
    history, page = tmp_path / "history.jsonl", tmp_path / "page.md"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    cases = ["pg_bulk", "pg_drain_graph"]
    argv = [sys.executable, str(ROOT / "bench" / "run.py"), "postgres", "--rounds", "1", "--quick"]
    argv += ["--workloads", *cases, "--json", str(history), "--markdown", str(page)]

    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (line,) = history.read_text(encoding="utf-8").splitlines()
    answers = {(one["side"], one["case"]): one["figures"] for one in json.loads(line)["answers"]}
    assert answers["sennit", "pg_bulk"]["missing"] == 0
    assert answers["sennit", "pg_drain_graph"]["server_cpu_us"] > 0
    assert answers["raw", "pg_bulk"]["tasks_per_s"] > 0
    assert done.stdout.strip() in page.read_text(encoding="utf-8")

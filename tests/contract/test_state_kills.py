"""What an attempt writes to threads and its success are one fact: killed before any statement, all is there or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "killed_at_each_statement.py"
SOUND = {"verify": [], "balanced": True}
BEFORE = SOUND | {
    "state": "running", "version": 0, "other": 0, "child": "missing", "dependant": "waiting", "next": "waiting",
}  # fmt: skip
AFTER = {
    "finish": SOUND | {
        "state": "succeeded", "version": 1, "other": 1, "child": "ready", "dependant": "ready", "next": "ready",
    },
    "early": BEFORE | {"version": 1, "other": 1},
}  # fmt: skip


@pytest.mark.parametrize("how", ["finish", "early"])
def test_killed_before_any_statement_of_a_write_all_is_there_or_nothing(tmp_path: Path, how: str) -> None:
    argv = [sys.executable, str(PROGRAM), str(tmp_path), how]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert run.returncode == 0, run.stderr
    seen: list[dict[str, Any]] = [json.loads(line) for line in run.stdout.splitlines()]

    *deaths, end = ({k: v for k, v in line.items() if k != "died"} for line in seen)

    assert end == AFTER[how]
    assert [line["died"] for line in seen] == [*[True] * len(deaths), False]
    assert len(deaths) >= 5  # BEGIN, what it writes, COMMIT
    done = [death == AFTER[how] for death in deaths]
    assert [death for death, whole in zip(deaths, done, strict=True) if not whole and death != BEFORE] == []
    assert done == sorted(done), "once it is there it stays"

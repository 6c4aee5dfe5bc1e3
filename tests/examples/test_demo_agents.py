"""The agents of the demo: their program is the fake one, nothing of theirs stays, and without them the rest goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.examples.demo_runs import LINE, demo, environ_of

# A kernel or a Python that was built without it.
WITHOUT_MEMFD = "import os, sys; del os.memfd_create; from sennit.cli.main import main; sys.exit(main())"
REAL = "#!/bin/sh\ntouch {marker}\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    for n in range(2):
        (root / f"part_{n}.py").write_text(f"def part_{n}(a):\n    return a or {n}\n", encoding="utf-8")
    return root


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}


def test_no_real_agent_is_started_and_neither_the_tree_nor_the_home_is_touched(tree: Path, tmp_path: Path) -> None:
    for name in ("bin", "home", "temp"):
        (tmp_path / name).mkdir()
    for name in ("claude", "codex"):
        (tmp_path / "bin" / name).write_text(REAL.format(marker=tmp_path / "started"), encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
        (tmp_path / "home" / f".{name}").mkdir()
    before = times(tree), times(tmp_path / "home")
    environ = {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{tmp_path / 'bin'}:{environ_of()['PATH']}",
        "TMPDIR": str(tmp_path / "temp"),
        "CLAUDE_CONFIG_DIR": str(tmp_path / "home" / ".claude"),
    }

    done = demo(tree, "--fast", "--yes", "--json", "--out", tmp_path / "out", **environ)

    facts = msgspec.json.decode(done.stdout)
    assert done.returncode == 0, done.stderr
    assert facts["agents"] == {"agents": 1, "tools": 2, "runs": 2, "resumed": 1, "repeated": 0}
    assert not (tmp_path / "started").exists()
    assert (times(tree), times(tmp_path / "home")) == before
    assert [list((tmp_path / "home" / name).iterdir()) for name in (".claude", ".codex")] == [[], []]
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_system_that_cannot_run_agents_runs_the_rest_and_says_so_once(tree: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", WITHOUT_MEMFD, "demo", str(tree), "--fast", "--yes", "--out", str(tmp_path / "out")]

    done = subprocess.run(argv, env=environ_of(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    line = LINE.fullmatch(done.stdout)
    assert done.returncode == 0, done.stderr
    assert line is not None, done.stdout
    assert (line["tasks"], line["agents"]) == (str(1 + 1 + 2 * 2 + 1 + 1), "0")
    assert (line["lost"], line["duplicated"]) == ("0", "0")
    assert done.stderr.count("agents") == 1
    assert "without coding agents: " in done.stderr
    assert "Coding agents" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")

"""Runs of the demo as a stranger starts them, on a small tree that has all a report can show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LINE = re.compile(
    r"(?P<tasks>\d+) tasks, (?P<agents>\d+) agents?, (?P<kills>\d+) kills?, (?P<rescued>\d+) rescued, (?P<retries>\d+) retr(?:y|ies), "
    r"(?P<asked>\d+ humans?) asked, (?P<lost>\d+) lost, (?P<duplicated>\d+) duplicated, (?P<seconds>[\d.]+) s, "
    r"(?P<outcome>report|not published, draft): (?P<report>.+)\n"
)
COPIED = "".join(f"    total += prices[{n}] * counts[{n}]\n" for n in range(8))


def shop(folder: Path) -> Path:
    """Make three packages of four small modules each; `shop/tangled.py` holds the one complicated function."""
    root = folder / "shop"
    for package in (root, root / "cart", root / "till"):
        package.mkdir(parents=True)
        for n in range(4):
            text = f'"""Part {n}."""\n\n\ndef part_{n}(a):\n    """Return `a`."""\n    return a or {n}\n'
            (package / f"part_{n}.py").write_text(text, encoding="utf-8")
    branches = "".join(f"    if a == {n}:\n        return {n}\n" for n in range(13))
    (root / "tangled.py").write_text(f"def tangled(a):\n{branches}    return a\n", encoding="utf-8")
    for name in ("cart", "till"):
        function = f"def {name}_sum(prices, counts, total):\n{COPIED}    return total\n"
        (root / name / "copied.py").write_text(function, encoding="utf-8")
    return root


def argv_of(command: str, *args: object) -> list[str]:
    return [sys.executable, "-m", "sennit", command, *map(str, args)]


def environ_of(**environ: str) -> dict[str, str]:
    """Return our environment without what would change a run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "SENNIT_"))}
    return kept | environ


def demo(*args: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end; nobody is at a keyboard."""
    argv = argv_of("demo", *args)
    return subprocess.run(
        argv, env=environ_of(**environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@contextmanager
def started(
    tree: Path, tmp_path: Path, *args: str, until: str = "first result"
) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start a demo whose temporary files are below `tmp_path/temp`; yield it and its workers once it has said `until`."""
    (tmp_path / "temp").mkdir()
    argv = argv_of("demo", tree, "--no-kill", "--out", tmp_path / "out", *args)
    env = environ_of(TMPDIR=str(tmp_path / "temp"))
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        next(line for line in running.stderr if until in line)
        yield running, psutil.Process(running.pid).children()

"""A program that has set no logging up sees its warnings on stderr, also while an app keeps the records of bodies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging

from sennit import App

app = App("sqlite:///fleet.db")
log = logging.getLogger("mine")


@app.task
def body() -> None:
    log.warning("from a body")
    log.info("too quiet")


log.warning("before")
with app:
    log.warning("while it works")
    body.submit().result()
    logging.getLogger("mine").addHandler(logging.NullHandler())
    log.warning("handled by somebody")
log.warning("handled by somebody, after")
"""


def test_warnings_reach_stderr_as_without_sennit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=50
    )

    assert done.stderr.splitlines() == ["before", "while it works", "from a body"]

"""A program that is read from stdin has no file that a worker process could import: its cpu bodies fail with a word about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from sennit import App, TaskFailed

app = App("sqlite:///fleet.db", cpu_slots=1)


@app.task(cpu=True)
def body() -> int:
    return 1


if __name__ == "__main__":
    with app:
        try:
            body.submit().result()
        except TaskFailed as error:
            print(error.kind, error.message)
"""


def test_a_cpu_body_of_a_program_from_stdin_says_to_save_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=PROGRAM, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=50
    )

    assert done.stdout == (
        "UnknownHandler no worker process can be started: the main program '<stdin>' is not a file\n"
    )
    assert done.stderr == ""

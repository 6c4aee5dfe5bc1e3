"""A step has the same name in the process that runs its file as a script and in one that imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
from functools import partial
from sennit.submit.context import _named

def call_model(): ...

class Client:
    def call(self): ...

names = [_named(call_model), _named(partial(call_model)), _named(Client().call), _named(len)]
if __name__ == "__main__":
    print(*names)
"""


def test_a_step_of_a_script_is_named_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "fleet.py").write_text(SCRIPT)

    def said(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    as_script = said("fleet.py")

    assert as_script == "fleet.call_model fleet.call_model fleet.Client.call builtins.len"
    assert said("-c", "import fleet; print(*fleet.names)") == as_script

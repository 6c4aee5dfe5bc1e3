"""Commands in process: what they print, and with which exit code they end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sennit import Handle
from sennit.cli.main import main


class Run:
    """Runs commands. `code` is the exit code of the last one, `err` what it said on stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.code = 0
        self.err = ""

    def __call__(self, *words: str) -> str:
        """Return what a command writes to stdout."""
        self.code = main(words)
        out, self.err = self._capsys.readouterr()
        return out

    def json(self, *words: str) -> list[dict[str, Any]]:
        """Return the objects a command writes with --json."""
        return [json.loads(line) for line in self(*words, "--json").splitlines()]

    def asked(self, handle: Handle[Any]) -> str:
        """Wait for the question of a task; return its id."""
        (found,) = self.json("tasks", "wait", str(handle.id), "--or-asked")
        assert self.code == 5
        return str(found["id"])

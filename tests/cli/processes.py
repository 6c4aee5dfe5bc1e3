"""The types of the fixtures that run `sennit` as a real process."""

from __future__ import annotations

import subprocess
from typing import Protocol


class Sennit(Protocol):
    """Runs a command to its end."""

    def __call__(self, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]: ...


class Start(Protocol):
    """Starts a command that goes on; it is killed when the test ends."""

    def __call__(self, *words: str) -> subprocess.Popen[str]: ...

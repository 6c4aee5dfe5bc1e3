"""The types of the fixtures that run `sennit` as a real process, and one on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Sennit(Protocol):
    """Runs a command to its end."""

    def __call__(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]: ...


def sennit(*words: str) -> int:
    """Be `sennit` with these words, in a process that the nursery has forked."""
    from sennit.cli.main import main

    return main(words)


class Start(Protocol):
    """Starts a command that goes on; it is killed when the test ends."""

    def __call__(self, *words: str) -> subprocess.Popen[str]: ...


class Terminal:
    """What somebody in front of a command sees and types."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self.process = process

    def read_until(self, text: str) -> str:
        """Return what is shown up to and with `text`."""
        seen = b""
        while text.encode() not in seen:
            try:
                seen += os.read(self._descriptor, 4096)
            except OSError as error:  # nobody has the other end any more
                raise AssertionError(f"it ended without {text!r}: {seen.decode()}") from error
        return seen.decode()

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._descriptor, f"{line}\n".encode())


@contextmanager
def on_terminal(folder: Path, environment: dict[str, str], *words: str) -> Iterator[Terminal]:
    """Run a command on a terminal of its own; it has ended after the block."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "sennit", *words]
    with subprocess.Popen(argv, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            yield Terminal(ours, process)
        except BaseException:
            process.kill()
            raise
    os.close(ours)

"""What an agent writes goes into two files: without its secrets, and no more of it than is allowed.

    stdout ─► redactor ─┐             ┌─► stdout.log
                        ├─► ceiling ──┤                  both together: `bytes_max`
    stderr ─► redactor ─┘             └─► stderr.log

Standard library only: the keeper uses it.
"""

# ruff: noqa: PTH118 - the path is bytes
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from sennit.execute.agent_redact import Redactor

__all__ = ["DISK", "OUTPUT", "Capture"]

OUTPUT: Final = "output"
DISK: Final = "disk"


class Capture:
    """The two files of one run.

    Args:
        folder: exists.
        secrets: values that are not written.
        bytes_max: in both files; 0 is no bound.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(self, folder: bytes, secrets: Sequence[str], bytes_max: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._files = {
            name: os.open(os.path.join(folder, name.encode() + b".log"), flags, 0o600) for name in ("stdout", "stderr")
        }
        self._redactors = {name: Redactor(secrets) for name in self._files}
        self._left = bytes_max or None
        self._trouble = ""

    def write(self, name: str, data: bytes) -> str:
        """Write what was read from `stdout` or `stderr`; return DISK or OUTPUT from when it cannot be written, else ""."""
        if not self._trouble:
            self._put(self._files[name], self._redactors[name].feed(data))
        return self._trouble

    def close(self) -> str:
        """Write what was held back, and close; return what went wrong, if anything has."""
        for name, file in self._files.items():
            held = self._redactors[name].end()
            if not self._trouble:
                self._put(file, held)
            try:
                os.close(file)
            except OSError:  # a network's disk may tell it only now
                self._trouble = self._trouble or DISK
        return self._trouble

    def _put(self, file: int, data: bytes) -> None:
        if self._left is not None and len(data) > self._left:
            data, self._trouble = data[: self._left], OUTPUT
        view = memoryview(data)
        try:
            while view:
                count = os.write(file, view)
                view = view[count:]
                if self._left is not None:
                    self._left -= count
        except OSError:
            self._trouble = DISK

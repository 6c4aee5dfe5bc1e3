"""A process for tests of shared arrays: it runs lines of code that it is sent, and answers with what they leave in `out`.

child = Child(nursery)
child.run("out = open_form(given).array[0].item()", form)
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from pathlib import Path
from typing import Any

from tests.crash.nursery import Forked, Nursery

SOCKET = 3


class ChildError(Exception):
    """The code raised; the text begins with the name of the exception."""


class Child:
    """One such process."""

    def __init__(self, nursery: Nursery) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process: Forked = nursery.start("tests.pools.array_child:serve", descriptors={SOCKET: theirs.fileno()})
        self.pid = self.process.pid
        self._answers = self._socket.makefile("r")

    def send(self, code: str, given: Any = None) -> None:
        """Have it run `code`, and do not wait for the end."""
        self._socket.sendall(json.dumps([code, given]).encode() + b"\n")

    def answer(self) -> Any:
        """Return what the code has left in `out`."""
        line = self._answers.readline()
        if not line:
            raise ChildError("the process has ended")
        kind, value = json.loads(line)
        if kind == "error":
            raise ChildError(value)
        return value

    def run(self, code: str, given: Any = None) -> Any:
        """Have it run `code` with `given`, and return what that leaves in `out`."""
        self.send(code, given)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()

    def close(self) -> None:
        """End it."""
        self._answers.close()
        self._socket.close()
        self.process.kill()


def serve() -> None:
    """In the child: run what comes in."""
    import numpy as np

    from sennit.sync import array_holds, array_segments, arrays

    space: dict[str, Any] = {"np": np, "os": os, "arrays": arrays, "array_holds": array_holds}
    space |= {"array_segments": array_segments, "open_form": arrays.open_form, "pss_bytes": pss_bytes}
    space |= {"SharedArrayPool": arrays.SharedArrayPool, "open_files": open_files, "sennit_maps": sennit_maps}
    with socket.socket(fileno=SOCKET) as asked, asked.makefile("r") as lines:
        for line in lines:
            code, space["given"] = json.loads(line)
            space["out"] = None
            try:
                exec(code, space)
                answer = ["ok", space["out"]]
            except Exception as error:  # noqa: BLE001 - the test gets it, whatever it is
                traceback.clear_frames(error.__traceback__)
                answer = ["error", f"{type(error).__name__}: {error}"]
            asked.sendall(json.dumps(answer).encode() + b"\n")


def open_files() -> list[str]:
    """Return what the descriptors of this process lead to, without the one that reads this."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except FileNotFoundError:  # the one that lists the folder
            continue
    return sorted(found)


def sennit_maps() -> list[str]:
    """Return the shared arrays that are mapped into this process."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:sennit-" in line]


def pss_bytes() -> int:
    """Return the proportional share of this process in shared arrays: a page of two processes counts half in each."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = "memfd:sennit-" in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total

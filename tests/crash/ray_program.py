"""The fleet of the Ray tests, imported by agents, by Ray workers and by the test.

Bodies write what they do into one journal, a line per write, and a held body goes on when the file `go` is there: all in
a folder that every machine sees.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sennit import App

app = App()


def note(folder: str, what: str, n: int) -> None:
    """Write one line: what, number, address of this machine, monotonic time."""
    line = f"{what} {n} {address()} {time.monotonic():.6f}\n"
    descriptor = os.open(Path(folder) / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def address() -> str:
    """Return the address that this machine would send from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.77.0.9", 9))
        return str(probe.getsockname()[0])


@app.task(cpu=True)
def fill(n: int, rows: int) -> NDArray[np.float64]:
    return np.full((rows, 1000), float(n))


@app.task(cpu=True)
def inspect(arrays: list[np.ndarray]) -> tuple[float, bool, str]:
    """Return the sum, whether any could be written to, and where this ran."""
    return float(sum(a.sum() for a in arrays)), any(a.flags.writeable for a in arrays), address()


@app.task(cpu=True)
def refuse(n: int) -> None:
    raise ValueError(f"no to {n}")


@app.task(cpu=True)
def hold(n: int, folder: str) -> int:
    note(folder, "begin", n)
    while not (Path(folder) / "go").exists():
        time.sleep(0.05)
    note(folder, "end", n)
    return n


@app.task(cpu=True)
def forever(n: int, folder: str) -> None:
    note(folder, "begin", n)
    while True:
        time.sleep(1.0)


@app.task
async def wait(n: int, folder: str) -> int:
    note(folder, "await", n)
    while not (Path(folder) / "go").exists():  # noqa: ASYNC110 - two processes share only files
        await asyncio.sleep(0.05)
    return n


@app.task(queue="plain")
async def echo(n: int) -> int:
    return n

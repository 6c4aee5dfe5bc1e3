"""How soon a line that an agent writes is read, while a hundred are tailed at once; and what a flood costs.

    python bench/agents_tail.py            about five seconds

    one other process ── line with its time ──► 100 files ── inotify ──► 100 tails on one event loop

`rows` gives the figures to bench/agents.py.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from sennit.execute.agent_output import tail

FILES: Final = 100
LINES: Final = 4_000
PAUSE_S: Final = 0.0005  # between lines: 2,000 a second at most, far more than a hundred agents say
FLOOD_BYTES: Final = 100 * 1024 * 1024

WRITER: Final = """
import os, sys, time
folder, files, lines, pause_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
opened = [os.open(f"{folder}/{n}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for n in range(files)]
for n in range(lines):
    os.write(opened[n * 7919 % files], b"%d\\n" % time.monotonic_ns())
    time.sleep(pause_s)
"""


async def latencies_ms(folder: Path, *, files: int = FILES, lines: int = LINES) -> list[float]:
    """Return, sorted, how long each line took from its write to its reader."""
    complete = asyncio.get_running_loop().create_future()
    found: list[float] = []

    async def read(n: int) -> None:
        lines = tail(folder / f"{n}.log", until=complete)
        found.extend([(time.monotonic_ns() - int(line)) / 1e6 async for line in lines])

    readers = [asyncio.create_task(read(n)) for n in range(files)]
    await asyncio.sleep(0)
    argv = [sys.executable, "-c", WRITER, str(folder), str(files), str(lines), str(PAUSE_S)]
    writer = await asyncio.create_subprocess_exec(*argv)
    await writer.wait()
    complete.set_result(None)
    await asyncio.gather(*readers)
    return sorted(found)


async def flood(path: Path, *, n_bytes: int = FLOOD_BYTES) -> tuple[float, float]:
    """Return CPU seconds of reading that many bytes of lines of 200 bytes, and by how many MiB memory grew at most."""
    line = b"x" * 199 + b"\n"
    with path.open("wb") as file:
        for _ in range(n_bytes // (1024 * len(line))):
            file.write(line * 1024)
    complete = asyncio.get_running_loop().create_future()
    complete.set_result(None)
    peak_kib, cpu_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    async for _ in tail(path, until=complete):
        pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib
    return time.process_time() - cpu_s, grown / 1024


def rows() -> list[tuple[str, str, str]]:
    """Return (what, figure, aim)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cpu_s = time.process_time()
        found = asyncio.run(latencies_ms(folder))
        cpu_us = (time.process_time() - cpu_s) / len(found) * 1e6
        flood_s, grown_mib = asyncio.run(flood(folder / "flood.log"))
    p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
    assert len(found) == LINES, f"{LINES - len(found)} lines were lost"
    return [
        (f"tail latency, {FILES} files at once, p50", f"{p50:.2f} ms", "< 50 ms"),
        (f"tail latency, {FILES} files at once, p99", f"{p99:.2f} ms", "< 50 ms"),
        (f"tail latency, {FILES} files at once, longest of {LINES:,}", f"{found[-1]:.2f} ms", "< 50 ms"),
        ("CPU per line that comes alone", f"{cpu_us:.0f} µs", ""),
        ("100 MiB read, lines of 200 bytes", f"{flood_s:.2f} CPU-s", ""),
        ("memory grown by that", f"{grown_mib:.1f} MiB", "flat"),
    ]


if __name__ == "__main__":
    for what, figure, aim in rows():
        sys.stdout.write(f"{what:<60} {figure:>12}  {aim}\n")

"""A worker process of tests/crash/fleet.py on a machine whose wall clock is an hour ahead."""

from __future__ import annotations

import time

AHEAD_S = 3600
wall_s, wall_ns = time.time, time.time_ns
time.time = lambda: wall_s() + AHEAD_S
time.time_ns = lambda: wall_ns() + AHEAD_S * 1_000_000_000

if __name__ == "__main__":
    from tests.crash.fleet import run

    run()

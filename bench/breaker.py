"""What a circuit breaker costs when all goes well, and what a refusal costs as a value and as an exception.

    python bench/breaker.py [--json]

Each figure is the median of several rounds, in µs per call, with the loop's own cost taken off; the target is below 3 µs
for a call that is let through and succeeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Final

from sennit.errors import CircuitOpen
from sennit.limit.breaker_live import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS: Final = 20_000
ROUNDS: Final = 15
SUCCESS_US_MAX: Final = 3.0


def success(breaker: Breaker) -> Callable[[range], None]:
    def run(calls: range) -> None:
        for _ in calls:
            permit = breaker.try_acquire()
            if permit:
                permit.settle("ok")

    return run


def guarded(breaker: Breaker) -> Callable[[range], None]:
    def run(calls: range) -> None:
        for _ in calls:
            with breaker.guard():
                pass

    return run


def refused_as_value(breaker: Breaker) -> Callable[[range], None]:
    def run(calls: range) -> None:
        for _ in calls:
            if not breaker.try_acquire():
                pass

    breaker.trip()
    return run


def refused_as_exception(breaker: Breaker) -> Callable[[range], None]:
    def run(calls: range) -> None:
        for _ in calls:
            try:
                with breaker.guard():
                    pass
            except CircuitOpen:
                pass

    breaker.trip()
    return run


def nothing(calls: range) -> None:
    for _ in calls:
        pass


def per_call_us(run: Callable[[range], None]) -> float:
    calls, took_ns = range(CALLS), []
    for _ in range(ROUNDS):
        before_ns = time.perf_counter_ns()
        run(calls)
        took_ns.append(time.perf_counter_ns() - before_ns)
    return statistics.median(took_ns) / CALLS / 1e3


def measured() -> dict[str, float]:
    windowed = {"rate": 0.5, "slow_rate": 0.5, "slow_s": 60.0}
    runs = {
        "success, 5 in a row (default)": success(Breaker()),
        "success, window with rates": success(Breaker(**windowed)),  # type: ignore[arg-type]  # two are counts, none of these
        "success, with breaker.guard()": guarded(Breaker()),
        "refused, as a value": refused_as_value(Breaker(open_s=1e6)),
        "refused, as an exception": refused_as_exception(Breaker(open_s=1e6)),
    }
    empty_us = per_call_us(nothing)
    return {name: per_call_us(run) - empty_us for name, run in runs.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    figures = measured()
    if parser.parse_args().json:
        print(json.dumps(figures))
    else:
        for name, us in figures.items():
            print(f"{name:32} {us:6.2f} µs")
    return int(figures["success, 5 in a row (default)"] >= SUCCESS_US_MAX)


if __name__ == "__main__":
    raise SystemExit(main())

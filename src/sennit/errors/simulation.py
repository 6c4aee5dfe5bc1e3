"""A simulated run shows a fault."""

from __future__ import annotations

from sennit.errors.base import SennitError


class SimulationError(SennitError, AssertionError):
    """A run under `sennit.testing.SimLoop` shows a fault of the code under test."""

    code = "S900"


class Deadlock(SimulationError):
    """Every task waits, no timer is set, and the main one is not done. `waiting` has a line for each."""

    code = "S901"

    def __init__(self, waiting: tuple[str, ...]) -> None:
        super().__init__(
            "nothing can run any more; these tasks wait:\n    " + "\n    ".join(waiting),
            fix="find who should have woken them: a lost notification, a lock of a killed process, a frozen one",
        )
        self.waiting = waiting


class OsThreadDeadlock(SimulationError):
    """No OS thread of a schedule can go on.

    Attributes:
        cycle: a line for each that waits for a lock of the next one; empty if a wake-up was lost instead.
        waiting: a line for every one that waits.
    """

    code = "S906"

    def __init__(self, cycle: tuple[str, ...], waiting: tuple[str, ...]) -> None:
        found = "a cycle of locks:" if cycle else "no cycle of locks, so a wake-up is missing:"
        if len(cycle) == 1:
            found = "a lock was acquired twice, or it is a signal that nobody gave:"
        super().__init__(
            f"no OS thread can go on; {found}\n    " + "\n    ".join(cycle or waiting),
            fix="take the locks in one order everywhere"
            if cycle
            else "find who should have notified or released, and whether the waiter looked at its condition under the lock",
        )
        self.cycle = cycle
        self.waiting = waiting


class StepLimit(SimulationError):
    """The run took more steps than it was allowed."""

    code = "S902"

    def __init__(self, step_limit: int) -> None:
        super().__init__(
            f"the run is not done after {step_limit} steps",
            why="a loop without a wait (a poll) never lets virtual time go on",
            fix="look at the last steps of the trace, or raise step_limit",
        )
        self.step_limit = step_limit


class UnhandledError(SimulationError):
    """A background task or a callback raised and nobody looked; the cause is `__cause__`."""

    code = "S903"


class BrokenPromise(SimulationError):
    """A simulated fleet lost, repeated or held up work; the message says which promise is broken."""

    code = "S905"


class SeedFailed(SimulationError):
    """One seed of a scenario fails.

    Attributes:
        seed: which one.  reproduction: the command that shows it again.  trace: its last steps, a line each.
    """

    code = "S904"

    def __init__(self, what: str, *, seed: int, reproduction: str, trace: tuple[str, ...], why: str = "") -> None:
        super().__init__(what, why=why, fix=reproduction)
        self.seed = seed
        self.reproduction = reproduction
        self.trace = trace

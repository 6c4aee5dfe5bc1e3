"""Run one scenario under many seeds; a seed that fails becomes a one-line command.

    async def scenario(random: Random, loop: SimLoop) -> None: ...

    def test_no_schedule_loses_a_task() -> None:
        run_seeds(scenario, range(2_000))

When the scenario returns, its world ends: what still waits is dropped, as at a power cut. A failing seed is run once
more before it is reported. If that run takes another path, something beside the seed decides, and the report says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from sennit.errors import SeedFailed, UsageError
from sennit.testing.seededloop import STEP_LIMIT
from sennit.testing.simloop import SimLoop
from sennit.testing.trace import Step

__all__ = ["Explored", "Run", "Scenario", "play", "run_seeds"]

Scenario = Callable[[Random, SimLoop], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one seed did: `error` is None if it passed; the trace has its last 60 steps."""

    seed: int
    steps: int
    time_s: float
    trace: tuple[str, ...]
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What `run_seeds` has covered: seeds, steps and virtual seconds over all of them."""

    seeds: int
    steps: int
    time_s: float


def play(
    scenario: Scenario,
    seed: int,
    *,
    step_limit: int = STEP_LIMIT,
    stall_probability: float = 0.0,
    on_step: Callable[[Step], None] | None = None,
) -> Run:
    """Run a scenario under one seed and return what happened, an error included.

    The scenario's own `Random` is another one than the loop's: a choice more in it does not change the schedule's.
    """
    loop = SimLoop(seed, step_limit=step_limit, stall_probability=stall_probability, on_step=on_step)
    error: BaseException | None = None
    try:
        loop.run_until_complete(scenario(Random(f"scenario {seed}"), loop))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:  # noqa: BLE001  # it is the result, cancellation included
        error = raised
    finally:
        loop.close()
    trace = () if error is None else loop.trace()
    return Run(seed=seed, steps=loop.steps, time_s=loop.time(), trace=trace, error=error)


def run_seeds(
    scenario: Scenario, seeds: Iterable[int], *, step_limit: int = STEP_LIMIT, stall_probability: float = 0.0
) -> Explored:
    """Run a scenario under each seed.

    Args:
        scenario: a function of a module, so that a command can name it.
        step_limit, stall_probability: as of `SimLoop`.

    Raises:
        SeedFailed: the first seed that fails, with its reproduction and the tail of its trace.
        UsageError: no command could name this scenario.
    """
    name = scenario_name(scenario)
    count, steps, time_s = 0, 0, 0.0
    for seed in seeds:
        run = play(scenario, seed, step_limit=step_limit, stall_probability=stall_probability)
        if run.error is not None:
            again = play(scenario, seed, step_limit=step_limit, stall_probability=stall_probability)
            raise _failure(name, run, again, step_limit, stall_probability) from run.error
        count, steps, time_s = count + 1, steps + run.steps, time_s + run.time_s
    return Explored(seeds=count, steps=steps, time_s=time_s)


def _failure(name: str, run: Run, again: Run, step_limit: int, stall_probability: float) -> SeedFailed:
    hash_seed = os.environ.get("PYTHONHASHSEED", "random")
    command = f"python -m sennit.testing.simulate {name} --seed {run.seed}"
    if hash_seed != "random":
        command = f"PYTHONHASHSEED={hash_seed} {command}"
    if step_limit != STEP_LIMIT:
        command += f" --step-limit {step_limit}"
    if stall_probability:
        command += f" --stall-probability {stall_probability}"
    same = (again.steps, again.trace) == (run.steps, run.trace)
    return SeedFailed(
        f"{name} fails with seed {run.seed}: {type(run.error).__name__}: {run.error}\n"
        f"  last of {run.steps} steps:\n    " + "\n    ".join(run.trace),
        why=""
        if same
        else "unclear: the same seed took another path when run again, so something beside it decides "
        "(the order of a set, id(), the real time, state kept between runs)",
        seed=run.seed,
        reproduction=command,
        trace=run.trace,
    )


def scenario_name(scenario: Scenario) -> str:
    """Return `package.module:function`, or `file.py:function` for a module outside any package.

    Raises:
        UsageError: it is not a plain function of a module.
    """
    function: str = getattr(scenario, "__qualname__", "")
    module = sys.modules.get(scenario.__module__)
    if module is None or getattr(module, function, None) is not scenario:
        raise UsageError(
            f"{scenario!r} is not a function of a module",
            why="a failing seed is reported as a command, which has to name the scenario",
            fix="define it at the top of its module, not in a function or class",
        )
    if module.__file__ is None or module.__package__:
        return f"{scenario.__module__}:{function}"
    path = Path(module.__file__).resolve()
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{function}"

"""Run one scenario under one seed and print each step as it is made.

    python -m sennit.testing.simulate tests/simulate/test_store.py:scenario --seed 1307

A scenario is `package.module:function` or `path/to/file.py:function`. The exit code is 0 if it passes and 1 if not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sennit.errors import UsageError
from sennit.testing.seededloop import STEP_LIMIT
from sennit.testing.seeds import Scenario, play
from sennit.testing.trace import Step

__all__ = ["load_scenario", "main"]


def load_scenario(name: str) -> Scenario:
    """Import `module:function` or `file.py:function`; a file finds the modules beside it, as a script does.

    Raises:
        UsageError: there is no such thing.
    """
    place, _, function = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        scenario: Scenario = getattr(module, function)
    except (ImportError, OSError, AttributeError, ValueError) as error:
        raise UsageError(
            f"no scenario {name!r}", why=str(error), fix="name it as module:function or path/to/file.py:function"
        ) from error
    return scenario


def _load_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 passed, 1 failed, 2 no such scenario."""
    parser = argparse.ArgumentParser(prog="python -m sennit.testing.simulate", description=__doc__.split("\n", 1)[0])
    parser.add_argument("scenario", help="package.module:function or path/to/file.py:function")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--step-limit", type=int, default=STEP_LIMIT, help="default: %(default)s")
    parser.add_argument("--stall-probability", type=float, default=0.0, help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        scenario = load_scenario(options.scenario)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    run = play(
        scenario,
        options.seed,
        step_limit=options.step_limit,
        stall_probability=options.stall_probability,
        on_step=_print_step,
    )
    if run.error is not None:
        sys.stdout.flush()
        traceback.print_exception(run.error)
    outcome = "passed" if run.error is None else f"failed: {type(run.error).__name__}: {run.error}"
    sys.stdout.write(f"seed {run.seed} {outcome}\n{run.steps} steps, {run.time_s:g} virtual seconds\n")
    return 0 if run.error is None else 1


def _print_step(step: Step) -> None:
    sys.stdout.write(f"{step}\n")


if __name__ == "__main__":
    sys.exit(main())

"""One case of one side in a process of its own: `python run_case.py MODULE CASE [quick]` prints the figures as JSON.

The side is imported, never `__main__`: workers find its handlers under the same module name. What the worker processes
of the side must know goes through the environment: BENCH_DIR (a fresh folder), BENCH_SLOTS and BENCH_DURABILITY.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from typing import TYPE_CHECKING

from cases import case_named

if TYPE_CHECKING:
    from harness import Side


def main(module: str, name: str, size: str = "") -> None:
    """Print the figures; `{}` when the side has nothing to say about the case."""
    case = case_named(name)
    if size == "quick":
        case = case.quick()
    with tempfile.TemporaryDirectory(prefix="sennit-bench-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"BENCH_DIR": folder, "BENCH_SLOTS": str(case.slots), "BENCH_DURABILITY": case.durability}
        side: Side = importlib.import_module(module).SIDE
        print(json.dumps(side[name](case) if name in side else {}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A machine that is too busy, for the tests of load control, and not for those that run beside them.

The loops are as nice as can be. Whoever waits for a core counts as pressure, nice or not, but they make nobody wait.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sennit.limit.cgroups import affinity_cpus

LOOP = "import os\nos.nice(19)\nwhile True: pass"


@contextmanager
def busy(*, per_core: int = 3) -> Iterator[None]:
    """Run so many busy loops per core meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(per_core * affinity_cpus())]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()

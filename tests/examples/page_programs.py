"""Programs of the documentation's pages, in a process that was forked from one that has imported sennit already.

    a script of the page ──────────────────────────────────────► nursery ── fork ──► it runs as `__main__`
    `sennit tasks ls` in a shell of the page ── page_client.py ──┘

Most of what a page costs is the start of interpreters. What these show a program is what a fresh interpreter shows it:
its folder first in `sys.path` and not this project's, a `__main__` of its own that was read from its file, no
`sennit.x` that it has not imported. What goes on (`sennit worker`) and what watches an interpreter starts as it does for
everybody.
"""

from __future__ import annotations

import builtins
import multiprocessing.process
import os
import sys
from pathlib import Path
from types import ModuleType

import sennit

ROOT = Path(__file__).resolve().parents[2]
STARTED_FOR_REAL = ("worker", "profile", "doctor")


def script(path: str, *argv: str) -> None:
    """Be `python path argv…`."""
    forget_what_others_imported()
    sys.argv = [path, *argv]
    multiprocessing.process.ORIGINAL_DIR = str(Path.cwd())  # type: ignore[attr-defined]  # where children look for `path`
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.modules["nursery_main"], sys.modules["__main__"] = sys.modules["__main__"], main
    exec(compile(Path(path).read_bytes(), path, "exec"), main.__dict__)


def script_alone(path: str) -> None:
    """The same, and leader of a group: with it ends what it has started."""
    os.setsid()
    script(path)


def command(*words: str) -> int:
    """Be `sennit words…`."""
    forget_what_others_imported()
    from sennit.cli.main import main

    return main(words)


def forget_what_others_imported() -> None:
    """Take away what a fresh interpreter has not."""
    sys.path[:] = [folder for folder in sys.path if folder not in {"", str(ROOT)}]
    for name in [name for name, value in vars(sennit).items() if isinstance(value, ModuleType)]:
        delattr(sennit, name)

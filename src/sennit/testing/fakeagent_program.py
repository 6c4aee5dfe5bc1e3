"""The program behind `FakeAgent`: the standard library only, and ready in about 25 ms.

    python -I -S fakeagent_program.py FOLDER [the arguments that claude, codex or gemini would get]

FOLDER holds `script.json` (what to do) and `log.jsonl` (what was done). It imports no sennit package: two empty packages stand
in for `sennit` and `sennit.testing`, so that the modules next to it load by their own names, compiled, and nothing else does.
"""

from __future__ import annotations

import os
import sys
import types


def launch() -> None:
    """Run the fake agent and end this process."""
    testing = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 10 ms of start
    for name, folder in (("sennit", os.path.dirname(testing)), ("sennit.testing", testing)):  # noqa: PTH120
        package = types.ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package
    from sennit.testing.fakeagent_run import main  # noqa: PLC0415 - only now can it be found

    main(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    launch()

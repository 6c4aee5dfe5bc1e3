"""The coding agents of a run: one audits each of the largest packages. Their program is the fake one, and no other.

    analyses of the package ─► brief ─► program: reads files with its tool ─► at the gate ─► reads one more ─► its verdict
                                                                                  └─ kill -9 ─► the same session goes on

A fake agent has no model: it does what its prompt says, line by line. The verdict is written here, from what was measured.
It speaks and keeps its sessions as `claude` does, so all of sennit that is about agents is at work but the model.

Where the run is to lose a worker, an agent waits at its gate until that has happened (see auditors.py). Then a kill finds
it between two uses of a tool, and what it did before can be told from what it did after.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sennit.cli.demo.analysis import COMPLEXITY_MAX
from sennit.cli.demo.digest import location, plural
from sennit.cli.demo.plan import Plan, PlannedFile, PlannedPackage
from sennit.cli.demo.records import SEVERITIES, Audit, FileReport, Record
from sennit.execute.adapters.claude import Claude
from sennit.runtime.agent_words import Prompt
from sennit.testing.fakeagent import PROGRAM, read, say, touch, wait_for

if TYPE_CHECKING:
    from sennit.execute.adapters.base import AgentRun, Launch
    from sennit.model.agent import AgentResult

AUDITS_MAX: Final = 6
READS_MAX: Final = 4
# What the program takes for a step of its own, in any line of its prompt.
_STEP: Final = "fake: "


class Auditing(Record, frozen=True):
    """How packages are audited.

    Attributes:
        folder: of the program, its log and its sessions.
        waits: agents wait at their gates for the kill.
    """

    folder: str
    waits: bool = False


class Auditor(Claude, frozen=True, kw_only=True):
    """Claude with the fake agent for a program: a real one is never started, nor are the user's sessions and keys touched."""

    @property
    def passes(self) -> tuple[str, ...]:
        """No variable of anybody's real agent."""
        return ()

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start: the fake program, whose folder is the one it works in."""
        as_claude = super().launch(run)
        argv = (sys.executable, "-I", "-S", str(PROGRAM), str(run.cwd), *as_claude.argv[1:])
        environ = {**as_claude.environ, "CLAUDE_CONFIG_DIR": str(run.cwd / "config")}
        return msgspec.structs.replace(as_claude, argv=argv, environ=environ)


def audited(tree: Plan) -> tuple[PlannedPackage, ...]:
    """Return the packages that are audited: those with most files, in order of the tree."""
    ranked = sorted(
        tree.packages,
        key=lambda package: (-len(package.files), -sum(file.size_bytes for file in package.files), package.name),
    )
    chosen = {package.name for package in ranked[:AUDITS_MAX]}
    return tuple(package for package in tree.packages if package.name in chosen)


def gate(auditing: Auditing, worker_pid: int) -> Path:
    """Return the file that lets the agents go on whose sessions that worker has begun."""
    return Path(auditing.folder) / f"go-{worker_pid}"


def arrived(auditing: Auditing, worker_pid: int) -> Path:
    """Return the file by which the agent of a worker says that it waits."""
    return Path(auditing.folder) / f"at-{worker_pid}"


def brief(package: PlannedPackage, reports: Sequence[FileReport | None], auditing: Auditing) -> Prompt:
    """Write the prompt: what to do in words, then each step for a program without a model."""
    measured = [report for report in reports if report is not None]
    chosen = _telling(package, measured)
    steps = [read(file.file) for file in chosen]
    if auditing.waits:
        pid = os.getpid()
        before = max(len(steps) - 1, 0)
        steps[before:before] = [touch(arrived(auditing, pid)), wait_for(gate(auditing, pid))]
    steps.append(say(verdict(package.name, measured, n_read=len(chosen))))
    name = " ".join(package.name.split())  # one line: what stands at the start of one could be taken for a step
    text = (
        f"Audit the package {name}: {plural(len(package.files), 'file')}. Read the "
        f"{plural(len(chosen), 'file')} with the most findings, change nothing, and say what to look at first.\n\n"
    )
    lines = "\n".join(f"{_STEP}{json.dumps(step)}" for step in steps)  # in ASCII: a path may hold what ends a line
    return Prompt(text=text + lines, cwd=auditing.folder)


def verdict(package: str, reports: Sequence[FileReport], *, n_read: int) -> str:
    """Say in a few sentences what to look at first, from what was measured."""
    functions = [(report.path, function) for report in reports for function in report.functions]
    knots = sorted(
        (pair for pair in functions if pair[1].complexity > COMPLEXITY_MAX),
        key=lambda pair: (-pair[1].complexity, pair[0], pair[1].line),
    )
    counts = Counter(finding.severity for report in reports for finding in report.findings)
    told = [plural(counts[severity], severity) for severity in SEVERITIES if counts[severity]]
    parts = [f"Read {n_read} of {plural(len(reports), 'file')} of `{package}`: {', '.join(told) or 'no finding'}."]
    if knots:
        path, worst = knots[0]
        parts.append(
            f"{len(knots)} of {plural(len(functions), 'function')} "
            f"{'is' if len(knots) == 1 else 'are'} above complexity {COMPLEXITY_MAX}; look at `{worst.name}` "
            f"({location(path, worst.line)}, {worst.complexity}) first."
        )
    elif functions:
        parts.append(f"None of {plural(len(functions), 'function')} is above complexity {COMPLEXITY_MAX}.")
    worst_file = max(reports, key=lambda report: len(report.findings), default=None)
    if worst_file is not None and worst_file.findings:
        parts.append(f"No file has more findings than `{worst_file.path}`: {len(worst_file.findings)}.")
    return " ".join(parts)


def audits_of(packages: Iterable[str], results: Iterable[AgentResult | None]) -> tuple[Audit, ...]:
    """Return what the agents said, of those that came to an end."""
    return tuple(
        Audit(
            package=package,
            text=result.text,
            task_id=result.task_id,
            session_id=result.session_id,
            runs=result.runs,
        )
        for package, result in zip(packages, results, strict=True)
        if result is not None
    )


def _telling(package: PlannedPackage, reports: Iterable[FileReport]) -> list[PlannedFile]:
    """Return the files with most findings that can be read, the largest of those that are alike first."""
    n = {report.path: len(report.findings) for report in reports}
    ranked = sorted(package.files, key=lambda file: (-n.get(file.path, 0), -file.size_bytes, file.path))
    chosen: list[PlannedFile] = []
    for file in ranked:
        if len(chosen) < READS_MAX and _is_text(Path(file.file)):
            chosen.append(file)
    return chosen


def _is_text(file: Path) -> bool:
    """Tell whether the program's tool can read it."""
    try:
        file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True

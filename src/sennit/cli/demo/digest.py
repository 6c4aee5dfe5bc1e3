"""The figures both reports show, counted once: totals, the most complex functions, packages, lanes of the timeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from sennit.cli.demo.question import in_words
from sennit.cli.demo.records import (
    SEVERITIES,
    AgentsUse,
    Attempt,
    Finding,
    FunctionFacts,
    ModelUse,
    PackageState,
    PackageSummary,
    Pause,
    Review,
    RunReport,
)


class Totals(NamedTuple):
    """Sums over all files."""

    files: int
    lines: int
    code_lines: int
    functions: int
    classes: int
    findings: int
    todos: int
    reviews: int


class PackageView(NamedTuple):
    """One package with what belongs to it; findings with the gravest first."""

    name: str
    summary: PackageSummary | None
    state: PackageState | None
    files: int
    findings: list[Finding]
    reviews: list[Review]


class WorkerLanes(NamedTuple):
    """One worker process: its attempts, laid out so that no two in one lane overlap; `killed_s` None if it lived."""

    pid: int
    lanes: list[list[Attempt]]
    killed_s: float | None


def totals(run: RunReport) -> Totals:
    """Add up the run."""
    files = run.files
    return Totals(
        files=len(files),
        lines=sum(file.lines for file in files),
        code_lines=sum(file.code_lines for file in files),
        functions=sum(len(file.functions) for file in files),
        classes=sum(len(file.classes) for file in files),
        findings=sum(len(file.findings) for file in files),
        todos=sum(file.todos for file in files),
        reviews=len(run.reviews),
    )


def most_complex(run: RunReport, *, n_max: int) -> list[tuple[str, FunctionFacts]]:
    """Return path and function of the `n_max` most complex functions."""
    found = [(file.path, function) for file in run.files for function in file.functions]
    return sorted(found, key=lambda pair: (-pair[1].complexity, pair[0], pair[1].line))[:n_max]


def findings_by_kind(run: RunReport) -> list[tuple[Finding, int]]:
    """Return an example and the count of each kind of finding, the gravest first, then the most frequent."""
    counts = Counter(finding.kind for file in run.files for finding in file.findings)
    examples = {finding.kind: finding for file in run.files for finding in file.findings}
    ranked = sorted(counts, key=lambda kind: (SEVERITIES.index(examples[kind].severity), -counts[kind], kind))
    return [(examples[kind], counts[kind]) for kind in ranked]


def packages(run: RunReport) -> list[PackageView]:
    """Return every package that has a file, in order of name."""
    summaries = {summary.name: summary for summary in run.packages}
    states = {state.package: state for state in run.states}
    names = sorted({package_of(file.path) for file in run.files})
    return [
        PackageView(
            name=name,
            summary=summaries.get(name),
            state=states.get(name),
            files=sum(package_of(file.path) == name for file in run.files),
            findings=sorted(
                (finding for file in run.files if package_of(file.path) == name for finding in file.findings),
                key=lambda finding: (SEVERITIES.index(finding.severity), finding.path, finding.line),
            ),
            reviews=sorted(
                (review for review in run.reviews if package_of(review.path) == name), key=lambda review: review.path
            ),
        )
        for name in names
    ]


def package_of(path: str) -> str:
    """Return the directory a reported path stands in."""
    return PurePosixPath(path).parent.as_posix()


def location(path: str, line: int) -> str:
    """Return `path:line`, or the path alone for what is true of the whole file."""
    return f"{path}:{line}" if line else path


def workers(run: RunReport) -> list[WorkerLanes]:
    """Lay the attempts out by worker process, in the order the processes came up."""
    killed = {kill.worker_pid: kill.at_s for kill in run.kills}
    by_pid: dict[int, list[list[Attempt]]] = {}
    for attempt in sorted(run.attempts, key=lambda attempt: (attempt.start_s, attempt.task_id)):
        lanes = by_pid.setdefault(attempt.worker_pid, [])
        free = next((lane for lane in lanes if lane[-1].end_s <= attempt.start_s), None)
        if free is None:
            lanes.append([attempt])
        else:
            free.append(attempt)
    return [WorkerLanes(pid, lanes, killed.get(pid)) for pid, lanes in by_pid.items()]


def is_sound(run: RunReport) -> bool:
    """Tell whether the ledger balances and nobody contradicts it."""
    return run.ledger.balances and not run.problems


def verdict(run: RunReport) -> str:
    """Say in one line whether every task is accounted for once."""
    if is_sound(run):
        return "Nothing was lost, nothing was accepted twice."
    what = "Store, journal and report do not agree."
    if not run.ledger.balances:
        what = f"The ledger does not balance: {run.ledger.lost} lost, {run.ledger.duplicated} duplicated."
    first = f" First of {plural(len(run.problems), 'problem')}: {run.problems[0]}." if run.problems else ""
    return what + first


def standing(run: RunReport) -> str:
    """Say whether this is a report or a draft, and who has decided that."""
    what = "Published" if run.published else "Draft, not published"
    if run.approval is None:
        return f"{what}: no question was answered."
    asked = f"asked at {run.approval.asked_s:.1f} s, decided at {run.approval.closed_s:.1f} s"
    return f"{what}: {in_words(run.approval)} ({asked})."


def tallied(state: PackageState) -> str:
    """Say in one line what the thread of a package keeps."""
    tally = state.tally
    parts = [f"version {state.version}", f"{plural(len(tally.files), 'file')} reviewed"]
    parts += [f"{n:,} {kind}" for kind, n in sorted(tally.findings.items(), key=lambda pair: (-pair[1], pair[0]))]
    if tally.worst is not None:
        worst = tally.worst
        parts.append(f"most complex `{worst.name}` ({location(worst.path, worst.line)}, {worst.complexity})")
    return " · ".join(parts)


def equation(run: RunReport) -> str:
    """Write the ledger out as the sum it must be."""
    book = run.ledger
    sign = "=" if book.submitted == book.succeeded + book.failed + book.cancelled + book.live else "≠"
    return (
        f"{book.submitted} submitted {sign} {book.succeeded} succeeded + {book.failed} failed"
        f" + {book.cancelled} cancelled + {book.live} live"
    )


def model_words(use: ModelUse) -> str:
    """Say in one line how the limits of the model were kept."""
    if use.highest is None:
        parts = [
            plural(use.calls, "call"),
            f"{use.throttled:,} answered 429",
            f"{use.limit:,} at once allowed at the end",
        ]
    else:
        found = f" (found by {plural(use.too_many, 'refused call')})" if use.too_many else ""
        parts = [f"highest concurrency {use.highest}{found}", _pauses(use.pauses)]
    parts.append(f"{plural(use.attempts_lost, 'attempt')} lost")
    if use.cost_usd:
        parts.append(f"{use.cost_usd:.2f} USD{' (made-up prices)' if use.ours else ''}")
    return f"{use.name}: {', '.join(parts)}"


def agents_words(use: AgentsUse) -> str:
    """Say in one line what the coding agents took, and how they came through the kill."""
    went_on = "1 went on with its session" if use.resumed == 1 else f"{use.resumed} went on with their sessions"
    return (
        f"agents: {use.agents} done, {plural(use.tools, 'tool use')} in {plural(use.runs, 'run')}, "
        f"{went_on} after a kill, {plural(use.repeated, 'tool use')} repeated"
    )


def _pauses(pauses: Sequence[Pause]) -> str:
    if not pauses:
        return "no pause"
    lengths = " and ".join(f"{pause.seconds:.1f} s" for pause in pauses)
    calls = plural(sum(pause.calls for pause in pauses), "request")
    return f"{plural(len(pauses), 'pause')} of {lengths}, {calls} in {'it' if len(pauses) == 1 else 'them'}"


def model_facts(use: ModelUse) -> list[tuple[str, str]]:
    """Return the figures of the model's provider, each with what it is of."""
    return [
        (f"{use.calls:,}", "calls"),
        (f"{use.throttled:,}", "answered 429"),
        (f"{use.limit:,}", f"at once allowed at the end, of {use.ceiling:,}"),
        (f"{use.input_tokens:,}", "tokens in"),
        (f"{use.output_tokens:,}", "tokens out"),
    ]


def plural(number: int, noun: str) -> str:
    """Return "1 file", "12,706 lines"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

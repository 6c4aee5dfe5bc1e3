"""What the thread of a package knows: each accepted review adds its file, and nothing is added twice.

    review of a file ──update──┐
    review of a file ──update──┼─► thread "package:x": Tally ◄──update── summarise, the task of the thread
    review of a file ──update──┘

Reviews run beside each other in several processes and write to the same state. Each update commits with the result of
its attempt or not at all, so at the end a tally must hold exactly the files whose reviews were accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sennit.cli.demo.records import Discrepancies, FileReport, PackageState, PackageSummary, Tally, Worst


def thread_of(package: str) -> str:
    """Return the id of a package's thread."""
    return f"package:{package}"


def with_file(report: FileReport, tally: Tally) -> Tally:
    """Return the tally with one more file."""
    kinds = Counter(tally.findings) + Counter(finding.kind for finding in report.findings)
    return Tally(
        files=(*tally.files, report.path),
        findings=dict(sorted(kinds.items())),
        worst=_worse(tally.worst, _worst_of(report)),
        summary=tally.summary,
    )


def with_summary(text: str, tally: Tally) -> Tally:
    """Return the tally with the package's summary."""
    return Tally(files=tally.files, findings=tally.findings, worst=tally.worst, summary=text)


def _worst_of(report: FileReport) -> Worst | None:
    found = max(report.functions, key=lambda function: (function.complexity, -function.line), default=None)
    return None if found is None else Worst(report.path, found.line, found.name, found.complexity)


def _worse(one: Worst | None, other: Worst | None) -> Worst | None:
    """Return the more complex of two, the same whatever their order."""
    known = [worst for worst in (one, other) if worst is not None]
    return min(known, key=lambda worst: (-worst.complexity, worst.path, worst.line), default=None)


# ---------------------------------------------------------------- the stocktaking


class Accepted(NamedTuple):
    """What the others say of one package.

    Attributes:
        reviews: path → id of the task whose review was accepted, by the rows of the store.
        summarised: whether its summary was, by the same.
        files: path → what the report holds of it; None when there is no report.
        summary: what the report holds.
    """

    reviews: Mapping[str, int]
    summarised: bool
    files: Mapping[str, FileReport] | None
    summary: PackageSummary | None


def compare(state: PackageState, accepted: Accepted) -> Discrepancies:
    """Hold the state of a package's thread against what the others say."""
    return Discrepancies(
        lost=tuple(_lost(state, accepted)),
        twice=tuple(_twice(state, accepted)),
        wrong=(*_wrong_sums(state, accepted), *_wrong_summary(state, accepted)),
    )


def _lost(state: PackageState, accepted: Accepted) -> list[str]:
    known, thread = set(state.tally.files), thread_of(state.package)
    return [
        f"lost: thread {thread} does not count {path}, whose review (task {task_id}) was accepted"
        for path, task_id in accepted.reviews.items()
        if path not in known
    ]


def _twice(state: PackageState, accepted: Accepted) -> list[str]:
    thread, counts = thread_of(state.package), Counter(state.tally.files)
    twice = [f"duplicated: thread {thread} counts {path} {n} times" for path, n in counts.items() if n > 1]
    strangers = sorted(counts.keys() - accepted.reviews.keys())
    return twice + [f"duplicated: thread {thread} counts {path}, whose review was not accepted" for path in strangers]


def _wrong_sums(state: PackageState, accepted: Accepted) -> list[str]:
    """Say where version and sums are not those of the files that the thread counts."""
    thread, tally = thread_of(state.package), state.tally
    attempts = len(accepted.reviews) + accepted.summarised
    wrong = []
    if state.version != attempts:
        wrong.append(f"thread {thread} is at version {state.version}, and {attempts} attempts changed it")
    if accepted.files is not None:
        due = tally_of(accepted.files[path] for path in tally.files if path in accepted.files)
        if tally.findings != due.findings:
            wrong.append(f"thread {thread} counts the findings {tally.findings}, and the report {due.findings}")
        if tally.worst != due.worst:
            wrong.append(f"thread {thread} says {tally.worst} is the most complex function, and the report {due.worst}")
    return wrong


def _wrong_summary(state: PackageState, accepted: Accepted) -> list[str]:
    thread, summary, n = thread_of(state.package), accepted.summary, len(accepted.reviews)
    wrong = []
    if summary is not None and summary.reviewed != n:
        wrong.append(f"the summary of thread {thread} saw {summary.reviewed} reviews, and {n} were accepted")
    if summary is not None and summary.text != state.tally.summary:
        wrong.append(f"the summary that thread {thread} keeps is not the one in the report")
    return wrong


def tally_of(reports: Iterable[FileReport]) -> Tally:
    """Return the tally of some files, counted by one hand."""
    tally = Tally()
    for report in reports:
        tally = with_file(report, tally)
    return tally

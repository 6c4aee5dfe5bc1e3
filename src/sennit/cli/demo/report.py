"""The report of a run as Markdown; `render_html` makes the same report a page.

Text from files and from the model is escaped: a source tree must not be able to write its own report.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sennit.cli.demo.digest import (
    PackageView,
    agents_words,
    equation,
    findings_by_kind,
    location,
    model_words,
    most_complex,
    packages,
    plural,
    standing,
    tallied,
    totals,
    verdict,
    workers,
)
from sennit.cli.demo.page import render_html
from sennit.cli.demo.records import RunReport
from sennit.cli.demo.tally import thread_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["RunReport", "render_html", "render_markdown"]

_FUNCTIONS_MAX: Final = 10
_DUPLICATES_MAX: Final = 20
_FINDINGS_MAX: Final = 200
_SPECIAL: Final = re.compile(r"([\\<>\[\]|*_#])")


def render_markdown(run: RunReport) -> str:
    """Write the report as GitHub-flavoured Markdown."""
    parts = [
        *_head(run),
        *_run(run),
        *_waited(run),
        *_agents(run),
        *_functions(run),
        *_kinds(run),
        *_duplicates(run),
        "## Package by package",
        *(line for package in packages(run) for line in _package(package)),
        *_made(run),
    ]
    return "\n\n".join(parts) + "\n"


def _head(run: RunReport) -> list[str]:
    sums, book = totals(run), run.ledger
    return [
        f"# {_text(run.title)}, read by a fleet{'' if run.published else ' (draft)'}",
        (
            f"{plural(sums.files, 'file')}, {plural(sums.lines, 'line')}, {plural(sums.findings, 'finding')}, "
            f"{plural(sums.reviews, 'review')}. {_text(run.started_at)}."
        ),
        (
            f"**{_text(verdict(run))}** {plural(book.submitted, 'task')}, {plural(len(run.kills), 'kill')} (-9), "
            f"{book.rescued} rescued, {book.retries} retried, {book.rate_limited} rate limited (429), "
            f"{plural(1 if run.approval else 0, 'human')} asked, {book.failed} failed, {book.lost} lost, "
            f"{book.duplicated} duplicated, {book.seconds:.1f} s."
        ),
        _text(standing(run)),
        f"Ledger: {equation(run)}.",
    ]


def _run(run: RunReport) -> list[str]:
    rows = []
    for worker in workers(run):
        attempts = [attempt for lane in worker.lanes for attempt in lane]
        fate = "stopped with the run" if worker.killed_s is None else f"killed with -9 at {worker.killed_s:.2f} s"
        busy_s = sum(attempt.end_s - attempt.start_s for attempt in attempts)
        rows.append((str(worker.pid), str(len(attempts)), f"{busy_s:.2f}", fate))
    if not rows:
        return []
    return ["## Workers", _table(("process", "attempts", "task seconds", "end"), rows)]


def _waited(run: RunReport) -> list[str]:
    rows = [(_text(waited.reason), str(waited.tasks), f"{waited.seconds:.2f}") for waited in run.waited]
    told = [] if run.use is None else [f"Provider {_text(model_words(run.use))}."]
    return ["## What tasks waited for", _table(("what", "tasks", "task seconds"), rows), *told] if rows else []


def _agents(run: RunReport) -> list[str]:
    if run.agents is None:
        return []
    rows = [(f"`{_code(audit.package)}`", str(audit.runs), _prose(audit.text)) for audit in run.audits]
    table = [_table(("package", "runs", "what its auditor says"), rows)] if rows else []
    told = (
        f"{_text(agents_words(run.agents))}. Their program is a fake one without a model: what they say was measured."
    )
    return ["## Coding agents", *table, told]


def _functions(run: RunReport) -> list[str]:
    rows = [
        (
            f"`{_code(function.name)}`",
            f"`{_code(location(path, function.line))}`",
            str(function.complexity),
            str(function.lines),
        )
        for path, function in most_complex(run, n_max=_FUNCTIONS_MAX)
    ]
    return ["## Most complex functions", _table(("function", "where", "complexity", "lines"), rows)] if rows else []


def _kinds(run: RunReport) -> list[str]:
    rows = [(finding.severity, finding.kind, str(count)) for finding, count in findings_by_kind(run)]
    return ["## Findings", _table(("severity", "kind", "count"), rows)] if rows else []


def _duplicates(run: RunReport) -> list[str]:
    if not run.duplicates:
        return []
    blocks = [
        f"- {plural(block.code_lines, 'line')} of code: "
        + ", ".join(f"`{_code(place.path)}:{place.line}-{place.line_end}`" for place in block.places)
        for block in run.duplicates[:_DUPLICATES_MAX]
    ]
    return ["## Duplicate blocks", "\n".join((*blocks, *_more(len(run.duplicates) - _DUPLICATES_MAX, "block")))]


def _package(package: PackageView) -> list[str]:
    lines = [f"### {_text(package.name)}"]
    if package.summary:
        lines.append(_prose(package.summary.text))
    if package.state:
        lines.append(f"Thread `{_code(thread_of(package.name))}`: {_prose(tallied(package.state))}.")
    found = [
        f"- {finding.severity}: `{_code(location(finding.path, finding.line))}` {_prose(finding.message)}"
        for finding in package.findings[:_FINDINGS_MAX]
    ]
    if found:
        lines.append("\n".join((*found, *_more(len(package.findings) - _FINDINGS_MAX, "finding"))))
    lines.extend(f"**{_text(review.path)}.** {_prose(review.text)}" for review in package.reviews)
    return lines


def _made(run: RunReport) -> list[str]:
    left_out = f" {plural(run.files_left_out, 'smaller file')} left out." if run.files_left_out else ""
    return [
        "## How this was made",
        (
            f"`{_code(run.command)}` read `{_code(run.root)}` with {_text(run.made_with)}; "
            f"reviews by {_text(run.model)}.{left_out}"
        ),
    ]


def _more(number: int, noun: str) -> list[str]:
    return [f"- and {plural(number, noun)} more"] if number > 0 else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Escape what Markdown or HTML would read as markup, and keep it on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Make text safe between backticks, also inside a table."""
    return " ".join(text.split()).replace("`", "'").replace("|", r"\|")


def _prose(text: str) -> str:
    """Escape all but `code` between single backticks."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:
        return _text(text).replace("`", "'")
    return "".join(f"`{_code(part)}`" if index % 2 else _SPECIAL.sub(r"\\\1", part) for index, part in enumerate(parts))

"""The report of a run as one HTML page that needs nothing else: no network, no script, no font.

A content security policy in the page itself refuses every load, and every text that comes from a file, from the
model or from the command line goes through `escape`.
"""

from __future__ import annotations

import math
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from sennit.cli.demo.analysis import COMPLEXITY_MAX
from sennit.cli.demo.digest import (
    PackageView,
    agents_words,
    equation,
    findings_by_kind,
    is_sound,
    location,
    model_facts,
    model_words,
    most_complex,
    packages,
    plural,
    standing,
    tallied,
    totals,
    verdict,
)
from sennit.cli.demo.tally import thread_of
from sennit.cli.demo.timeline import render_timeline

if TYPE_CHECKING:
    from sennit.cli.demo.records import Duplicate, Finding, Review, RunReport, Severity

_FUNCTIONS_MAX: Final = 10
_DUPLICATES_MAX: Final = 20
_FINDINGS_MAX: Final = 200
_SIGNS: Final[dict[Severity, str]] = {"error": "✕", "warning": "▲", "note": "○"}
_KINDS: Final = {
    "syntax-error": "does not parse",
    "undecodable": "cannot be decoded",
    "bare-except": "bare except",
    "mutable-default": "mutable default argument",
    "complex": f"complexity over {COMPLEXITY_MAX}",
    "long-function": "long function",
    "many-parameters": "many parameters",
    "missing-docstring": "no docstring",
    "todo": "to-do comment",
}
_CODE: Final = re.compile(r"`([^`\n]+)`")
_BULLET: Final = re.compile(r"^\s*[-*•]\s+")


def render_html(run: RunReport) -> str:
    """Write the report as one self-contained page."""
    style = files("sennit.cli.demo").joinpath("page.css").read_text(encoding="utf-8")
    sections = (
        _ledger(run),
        _timeline(run),
        _waited(run),
        _agents(run),
        _functions(run),
        _kinds(run),
        _duplicates(run),
        _packages(run),
        _made(run),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(run.title)}: sennit demo {'report' if run.published else 'draft'}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{_header(run)}\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _header(run: RunReport) -> str:
    sums = totals(run)
    figures = (
        ("files", sums.files),
        ("lines", sums.lines),
        ("functions", sums.functions),
        ("findings", sums.findings),
        ("duplicate blocks", len(run.duplicates)),
        ("reviews", sums.reviews),
    )
    tiles = "".join(f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in figures)
    return (
        f'<header><p class="eyebrow">{_braid()}sennit demo</p><h1>{escape(run.title)}, <em>read by a fleet</em></h1>'
        f'<p class="when">{escape(run.started_at)} · {escape(run.made_with)}</p>'
        f'<p class="{"when" if run.published else "draft"}">{escape(standing(run))}</p>'
        f'<dl class="tiles">{tiles}</dl></header>'
    )


def _ledger(run: RunReport) -> str:
    book = run.ledger
    facts = (
        (book.submitted, "tasks", ""),
        *([(run.agents.agents, "coding agents", "")] if run.agents else []),
        (len(run.kills), "killed -9", ""),
        (book.rescued, "rescued", ""),
        (book.retries, "retried", ""),
        (book.rate_limited, "rate limited", ""),
        *([(1, "human asked", "")] if run.approval else []),
        *([(book.failed, "failed", "bad")] if book.failed else []),
        (book.lost, "lost", "good" if not book.lost else "bad"),
        (book.duplicated, "duplicated", "good" if not book.duplicated else "bad"),
        (f"{book.seconds:.1f}", "seconds", ""),
    )
    items = "".join(f'<li class="{kind}"><b>{number}</b> {name}</li>' for number, name, kind in facts)
    state, sign = ("balanced", "✓") if is_sound(run) else ("unbalanced", "✕")
    return (
        f'<section class="ledger {state}" aria-label="Ledger"><h2><span aria-hidden="true">{sign}</span> {escape(verdict(run))}'
        f'</h2><ul class="facts">{items}</ul><p class="equation">{equation(run)}</p></section>\n'
    )


def _timeline(run: RunReport) -> str:
    drawn = render_timeline(run)
    if not drawn:
        return ""
    killed = len(run.kills)
    story = "Each bar is one attempt at one task."
    if run.approval:
        story += " The question to a person waited in the database, and no worker held its task."
    if killed:
        story += (
            f" {'A worker process was' if killed == 1 else f'{killed} worker processes were'} killed in the middle; "
        )
        story += (
            "what it held was taken up by the others." if killed == 1 else "what they held was taken up by the others."
        )
    return _section("The run", f"<p>{story}</p>{drawn}")


def _waited(run: RunReport) -> str:
    if not run.waited:
        return ""
    most = max(waited.seconds for waited in run.waited)
    rows = "".join(
        f'<tr><td>{escape(waited.reason)}</td><td class="number">{waited.tasks:,}</td>'
        f'<td class="number">{waited.seconds:,.2f} s</td><td class="meter wide">{_meter(waited.seconds, most)}</td></tr>'
        for waited in run.waited
    )
    return _section(
        "What tasks waited for",
        "<p>All tasks together; while it waited, a task held no worker.</p>"
        '<table><thead><tr><th>what</th><th class="number">tasks</th><th class="number">time</th>'
        f'<th class="wide"></th></tr></thead><tbody>{rows}</tbody></table>{_model(run)}',
    )


def _model(run: RunReport) -> str:
    """Show what the provider of the model calls has counted; waits for its limit and its pauses are in the table."""
    if run.use is None:
        return ""
    items = "".join(f"<li><b>{number}</b> {escape(name)}</li>" for number, name in model_facts(run.use))
    return (
        '<p class="model">All workers share one provider, and nobody has told them how many calls at once it takes. '
        f'Provider {escape(model_words(run.use))}.</p><ul class="facts">{items}</ul>'
    )


def _agents(run: RunReport) -> str:
    """Show what the coding agents said, and how they came through the kill."""
    if run.agents is None:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(audit.package)}</code></td><td>{_inline(audit.text)}</td>"
        f'<td class="number">{audit.runs:,}</td></tr>'
        for audit in run.audits
    )
    return _section(
        "Coding agents",
        "<p>Each of the largest packages was audited by a coding agent: a process of its own, with a session that another "
        "process can go on with. The program is a fake one, which speaks as claude does and has no model: it reads files, "
        f"and what it says was measured. {escape(agents_words(run.agents)).capitalize()}.</p>"
        "<table><thead><tr><th>package</th><th>what its auditor says</th>"
        f'<th class="number">runs</th></tr></thead><tbody>{rows}</tbody></table>',
    )


def _functions(run: RunReport) -> str:
    ranked = most_complex(run, n_max=_FUNCTIONS_MAX)
    if not ranked:
        return ""
    top = ranked[0][1].complexity
    rows = "".join(
        f"<tr><td><code>{escape(function.name)}</code><small>{escape(location(path, function.line))}</small></td>"
        f'<td class="number">{function.complexity}</td><td class="meter wide">{_meter(function.complexity, top)}</td>'
        f'<td class="number">{function.lines}</td></tr>'
        for path, function in ranked
    )
    return _section(
        "Most complex functions",
        f"<p>McCabe’s count of independent paths; above {COMPLEXITY_MAX} he would have had it split.</p>"
        '<table><thead><tr><th>function</th><th class="number">complexity</th><th class="wide"></th>'
        f'<th class="number">lines</th></tr></thead><tbody>{rows}</tbody></table>',
    )


def _kinds(run: RunReport) -> str:
    kinds = findings_by_kind(run)
    if not kinds:
        return _section("Findings", "<p>None. Not one.</p>")
    most = max(count for _, count in kinds)
    rows = "".join(
        f"<tr><td>{_severity(finding.severity)}</td><td>{escape(_KINDS.get(finding.kind, finding.kind))}</td>"
        f'<td class="number">{count:,}</td><td class="meter wide">{_meter(count, most)}</td></tr>'
        for finding, count in kinds
    )
    return _section(
        "Findings",
        '<table><thead><tr><th>severity</th><th>what</th><th class="number">count</th><th class="wide"></th></tr>'
        f"</thead><tbody>{rows}</tbody></table>",
    )


def _duplicates(run: RunReport) -> str:
    if not run.duplicates:
        return ""
    rows = "".join(_duplicate(block) for block in run.duplicates[:_DUPLICATES_MAX])
    more = _more(len(run.duplicates) - _DUPLICATES_MAX, "block")
    return _section(
        "Duplicate blocks",
        "<p>The same code, token for token, in more than one place; blanks and comments do not count.</p>"
        '<table><thead><tr><th class="number">lines</th><th>places</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{more}",
    )


def _duplicate(block: Duplicate) -> str:
    places = "".join(f"<small>{escape(place.path)}:{place.line}–{place.line_end}</small>" for place in block.places)
    return f'<tr><td class="number">{block.code_lines}</td><td>{places}</td></tr>'


def _packages(run: RunReport) -> str:
    views = packages(run)
    articles = "".join(_package(view, opened=index == 0) for index, view in enumerate(views))
    return _section("Package by package", articles) if articles else ""


def _package(view: PackageView, *, opened: bool) -> str:
    summary = f"<p>{_inline(view.summary.text)}</p>" if view.summary else f"<p>{plural(view.files, 'file')}.</p>"
    if view.state:
        thread = f"thread <code>{escape(thread_of(view.name))}</code>"
        summary += f'<p class="quiet">{thread}: {_inline(tallied(view.state))}</p>'
    reviews = "".join(_review(review) for review in view.reviews)
    rows = "".join(_finding(finding) for finding in view.findings[:_FINDINGS_MAX])
    parts = [f'<article class="package"><h3>{escape(view.name)}</h3>{summary}']
    if reviews:
        parts.append(_details(plural(len(view.reviews), "review"), f'<div class="reviews">{reviews}</div>', opened))
    if rows:
        table = (
            "<table><thead><tr><th>severity</th><th>where and what</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>{_more(len(view.findings) - _FINDINGS_MAX, 'finding')}"
        )
        parts.append(_details(plural(len(view.findings), "finding"), table, opened and len(view.findings) <= 40))
    return "".join((*parts, "</article>"))


def _review(review: Review) -> str:
    tokens = f" · {review.prompt_tokens + review.completion_tokens:,} tokens" if review.completion_tokens else ""
    return (
        f'<div class="review"><h4>{escape(review.path)}</h4>{_blocks(review.text)}'
        f'<p class="quiet">{escape(review.model)}{tokens}</p></div>'
    )


def _finding(finding: Finding) -> str:
    return (
        f"<tr><td>{_severity(finding.severity)}</td><td>{_inline(finding.message)}"
        f"<small>{escape(location(finding.path, finding.line))}</small></td></tr>"
    )


def _made(run: RunReport) -> str:
    left_out = ""
    if run.files_left_out:
        left_out = f" The {plural(run.files_left_out, 'smallest file')} beyond the limit were left out."
    return _section(
        "How this was made",
        f"<pre>$ {escape(run.command)}</pre><p>Every file of <code>{escape(run.root)}</code> became an analysis task "
        f"and a review task, every package a summary and a thread, whose state its reviews have counted up beside each "
        f"other, and this page was the last task.{left_out} Findings are measured "
        f"from the syntax tree; reviews are by {escape(run.model)}. Tasks ran in worker processes that share one "
        "SQLite file, and the ledger above was counted from that file.</p>",
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n"


def _details(title: str, body: str, opened: bool) -> str:  # noqa: FBT001 - private, and reads as a word where called
    return f"<details{' open' if opened else ''}><summary>{title}</summary>{body}</details>"


def _more(number: int, noun: str) -> str:
    return f'<p class="quiet">and {plural(number, noun)} more</p>' if number > 0 else ""


def _severity(severity: Severity) -> str:
    return f'<span class="tag {severity}"><i aria-hidden="true">{_SIGNS[severity]}</i> {severity}</span>'


def _meter(value: float, most: float) -> str:
    return f'<span style="width:{100 * value / most if most else 0:.0f}%"></span>'


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _blocks(text: str) -> str:
    """Render a model's text: paragraphs, bullets and code words; all other markup shows as it was written."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.split("\n")
        if all(_BULLET.match(line) for line in lines):
            items = "".join(f"<li>{_inline(_BULLET.sub('', line))}</li>" for line in lines)
            blocks.append(f"<ul>{items}</ul>")
        else:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "".join(blocks)


def _braid() -> str:
    """Draw three strands over and under each other: what a sennit is."""
    pieces = []
    for strand in range(3):
        for step in range(18):
            turn = [math.tau * ((step + part) / 9 + strand / 3) for part in (0.0, 0.5, 1.0)]
            x = [4.0 * (step + part) + 4 for part in (0.0, 0.5, 1.0)]
            y = [10 + 6 * math.sin(angle) for angle in turn]
            middle = 2 * y[1] - (y[0] + y[2]) / 2  # the control point that puts the curve through y[1]
            path = f"M{x[0]:.1f} {y[0]:.1f}Q{x[1]:.1f} {middle:.1f} {x[2]:.1f} {y[2]:.1f}"
            pieces.append(
                (math.cos(2 * turn[1]), f'<path class="under" d="{path}"/><path class="s{strand}" d="{path}"/>')
            )
    drawn = "".join(piece for _, piece in sorted(pieces))
    return f'<svg class="braid" viewBox="0 0 80 20" aria-hidden="true">{drawn}</svg>'

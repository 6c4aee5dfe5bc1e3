"""The question to the model, and the demo's own answer to it.

`messages_for` writes the question: the measured facts as one line of JSON, then the source. `compose` reads it back
and answers from those facts alone, so the local model server says nothing that is not true of the file, and says the
same thing each time.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from sennit.cli.demo.analysis import COMPLEXITY_MAX, analyse
from sennit.cli.demo.records import ClassFacts, Finding, FunctionFacts, PackageSummary, Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sennit.cli.demo.records import FileReport

# About 8,000 tokens: small enough for any model, and most files fit.
SOURCE_CHARS_MAX: Final = 32_000
CLASS_LINES_LARGE: Final = 300
_NAMES_MAX: Final = 3
_FINDINGS_MAX: Final = 20
_SEAM_COMPLEXITY_MIN: Final = 5

_SYSTEM: Final = (
    "You review Python code for its maintainer. Answer in at most 120 words of plain prose: what the file is, "
    "its most complex place and how to split it, real defects, what is undocumented. Refer to names and lines."
)
_FACTS: Final = "Measured facts: "
_FENCE: Final = re.compile(r"```python\n(.*)\n```", re.DOTALL)


class Facts(Record, frozen=True):
    """What a review is about; a digest of one FileReport."""

    path: str
    lines: int
    code_lines: int
    about: str = ""
    functions: int = 0
    classes: int = 0
    public: int = 0
    undocumented: tuple[str, ...] = ()
    knottiest: FunctionFacts | None = None
    longest: FunctionFacts | None = None
    largest_class: ClassFacts | None = None
    findings: tuple[Finding, ...] = ()


def facts_of(report: FileReport) -> Facts:
    """Pick what is worth a word from a report."""
    named: list[FunctionFacts | ClassFacts] = [*report.functions, *report.classes]
    public = [found for found in named if found.public]
    telling = [finding for finding in report.findings if finding.kind != "missing-docstring"]
    return Facts(
        path=report.path,
        lines=report.lines,
        code_lines=report.code_lines,
        about=report.about,
        functions=len(report.functions),
        classes=len(report.classes),
        public=len(public),
        undocumented=tuple(found.name for found in public if not found.documented),
        knottiest=max(report.functions, key=lambda function: (function.complexity, function.lines), default=None),
        longest=max(report.functions, key=lambda function: function.lines, default=None),
        largest_class=max(report.classes, key=lambda found: found.lines, default=None),
        findings=tuple(telling[:_FINDINGS_MAX]),
    )


def messages_for(report: FileReport, source: str) -> list[dict[str, str]]:
    """Write the chat messages that ask for a review of one file; a long source is cut at a line."""
    shown = source
    if len(source) > SOURCE_CHARS_MAX:
        shown = source[:SOURCE_CHARS_MAX].rpartition("\n")[0] + "\n# (the rest of the file is left out)"
    facts = msgspec.json.encode(facts_of(report)).decode()
    content = f"Review {report.path}.\n{_FACTS}{facts}\n\n```python\n{shown}\n```"
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]


def compose(messages: Sequence[Mapping[str, str]]) -> str:
    """Answer a question of `messages_for`; any other text is taken as source and measured first."""
    prompt = "\n".join(message["content"] for message in messages if message.get("role") == "user")
    facts = _facts_in(prompt)
    if facts is None:
        fenced = _FENCE.search(prompt)
        facts = facts_of(analyse("snippet.py", fenced[1] if fenced else prompt))
    broken = next((finding for finding in facts.findings if finding.severity == "error"), None)
    if broken:
        where = f" (line {broken.line})" if broken.line else ""
        return f"Python cannot read `{facts.path}`{where}: {broken.message}. Nothing else can be said before that."
    sentences = (_shape(facts), _knot(facts), _bulk(facts), _defects(facts), _documentation(facts), _advice(facts))
    return " ".join(sentence for sentence in sentences if sentence)


def summarise(package: str, reports: Sequence[FileReport]) -> PackageSummary:
    """Put one package into figures and two sentences."""
    findings = [finding for report in reports for finding in report.findings]
    lines = sum(report.lines for report in reports)
    largest = max(reports, key=lambda report: report.lines, default=None)
    ranked = sorted(
        ((function, report.path) for report in reports for function in report.functions),
        key=lambda pair: (-pair[0].complexity, pair[1], pair[0].line),
    )
    text = f"{_count(len(reports), 'file')}, {_count(lines, 'line')}, {_count(len(findings), 'finding')}."
    if largest and len(reports) > 1:
        text += f" `{largest.path}` holds {_percent(largest.lines, lines)} of it."
    if ranked and ranked[0][0].complexity > COMPLEXITY_MAX:
        function, path = ranked[0]
        text += f" The most complex function is `{function.name}` ({path}:{function.line}, {function.complexity})."
    elif ranked:
        text += f" No function is above complexity {ranked[0][0].complexity}."
    return PackageSummary(package, files=len(reports), lines=lines, findings=len(findings), text=text)


def _facts_in(prompt: str) -> Facts | None:
    _, marker, rest = prompt.partition(_FACTS)
    if not marker:
        return None
    try:
        return msgspec.json.decode(rest.partition("\n")[0], type=Facts)
    except msgspec.DecodeError:
        return None  # somebody's own text that happens to hold the marker


def _shape(facts: Facts) -> str:
    if not facts.code_lines:
        return f"`{facts.path}` holds no code."
    parts = [
        _count(number, noun) for number, noun in ((facts.classes, "class"), (facts.functions, "function")) if number
    ]
    holds = " and ".join(parts) or "plain statements"
    opening = f"{holds} in {_count(facts.lines, 'line')}, {_percent(facts.code_lines, facts.lines)} of them code."
    if facts.about:
        return f"By its own words: “{facts.about.rstrip('.')}”. {_capital(opening)}"
    return _capital(opening)


def _knot(facts: Facts) -> str:
    knot = facts.knottiest
    if knot is None or knot.complexity < _SEAM_COMPLEXITY_MIN:
        return "It is straight-line code: no function branches more than a handful of times." if knot else ""
    text = _vary(
        facts,
        (
            f"`{knot.name}` (line {knot.line}) is the knot, with complexity {knot.complexity} in {knot.lines} lines",
            f"No function branches more than `{knot.name}` at line {knot.line}: complexity {knot.complexity}",
            f"Read `{knot.name}` (line {knot.line}) first; at complexity {knot.complexity} it decides the most",
        ),
    )
    if knot.complexity > COMPLEXITY_MAX and knot.seam_line:
        text += f"; the {knot.seam_lines}-line block at line {knot.seam_line} is the natural piece to lift out"
    longest = facts.longest
    if longest and longest.name != knot.name and longest.lines > knot.lines:
        text += f". The longest is `{longest.name}` ({longest.lines} lines, complexity {longest.complexity})"
    return text + "."


def _bulk(facts: Facts) -> str:
    big = facts.largest_class
    if big is None or big.lines < CLASS_LINES_LARGE:
        return ""
    text = f"`{big.name}` alone takes {big.lines} lines and {_count(big.methods, 'method')}"
    if big.lines * 2 > facts.lines:
        return f"{text}: the file is mostly this class."
    return f"{text}, {_percent(big.lines, facts.lines)} of the file: a candidate for a module of its own."


def _defects(facts: Facts) -> str:
    told = {
        "bare-except": "a bare `except:` that swallows even Ctrl-C",
        "mutable-default": "a mutable default shared between calls",
    }
    parts = [f"{told[finding.kind]} at line {finding.line}" for finding in facts.findings if finding.kind in told]
    if not parts:
        return ""
    more = f" (and {len(parts) - _NAMES_MAX} more like these)" if len(parts) > _NAMES_MAX else ""
    return f"To fix: {', '.join(parts[:_NAMES_MAX])}{more}."


def _documentation(facts: Facts) -> str:
    missing = facts.undocumented
    if not facts.public:
        return ""
    if not missing:
        return "" if facts.public == 1 else f"All {facts.public} public names have docstrings."
    names = ", ".join(f"`{name}`" for name in missing[:_NAMES_MAX]) + (", …" if len(missing) > _NAMES_MAX else "")
    share = f"{len(missing)} of {facts.public} public name{'s' if facts.public > 1 else ''}"
    return f"{share} {'has' if len(missing) == 1 else 'have'} no docstring ({names})."


def _advice(facts: Facts) -> str:
    kinds = {finding.kind for finding in facts.findings}
    if kinds & {"bare-except", "mutable-default"}:
        return "The defects are one-line changes; take them first."
    if "complex" in kinds and facts.knottiest:
        return f"If there is time for one thing: give `{facts.knottiest.name}` tests, then split it."
    if "long-function" in kinds and facts.longest:
        return f"Length, not logic, is what to cut: start with `{facts.longest.name}`."
    return "Nothing here asks for attention first." if facts.code_lines else ""


def _vary(facts: Facts, phrases: Sequence[str]) -> str:
    """Choose by the file's path, so that a page of reviews does not read like one form filled in many times."""
    return phrases[zlib.crc32(facts.path.encode("utf-8", "replace")) % len(phrases)]


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f}\N{NO-BREAK SPACE}%"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

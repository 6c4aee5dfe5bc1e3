"""What can be said of one Python file without running it.

Pure: text in, `FileReport` out; a file that does not parse is a report with a finding, never an exception.

Cyclomatic complexity is McCabe's count of simple predicates plus one. Predicates are: `if` and `elif`, a conditional
expression, each loop, each `except`, each further operand of `and`/`or`, each `for` and `if` of a comprehension, each
`case` but a plain `case _`, and a guard. `else`, `finally`, `with` and `assert` add no path of their own. A nested
function or class counts for itself, not for the function around it; a lambda counts for the function around it.
Source: T. J. McCabe, "A Complexity Measure", IEEE Transactions on Software Engineering SE-2(4), 1976.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from sennit.cli.demo.clones import fingerprints_of
from sennit.cli.demo.records import ClassFacts, FileReport, Finding, Fingerprint, FunctionFacts, Severity
from sennit.cli.demo.source import count_lines, parse, read_source, scan, with_unix_newlines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Source: McCabe 1976, section VI: modules above 10 were to be split or justified.
COMPLEXITY_MAX: Final = 10
# Source: G. J. Holzmann, "The Power of Ten", IEEE Computer 39(6), 2006, rule 4: a printed page, about 60 lines.
FUNCTION_LINES_MAX: Final = 60
# Source: S. McConnell, Code Complete, 2nd edition, section 7.5: about seven.
PARAMETERS_MAX: Final = 7

SEVERITY: Final[dict[str, Severity]] = {
    "syntax-error": "error",
    "undecodable": "error",
    "bare-except": "warning",
    "mutable-default": "warning",
    "complex": "warning",
    "long-function": "warning",
    "many-parameters": "warning",
    "missing-docstring": "note",
    "todo": "note",
}

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_ScopeNode = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_PREDICATES: Final = frozenset((ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler))
_BLOCKS: Final = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
_MUTABLE: Final = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_MUTABLE_CALLS: Final = frozenset(("list", "dict", "set", "bytearray", "defaultdict", "deque", "OrderedDict"))
_SEAM_LINES_MIN: Final = 5
_ABOUT_CHARS_MAX: Final = 160
_MARKER: Final = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b[:\s]*(.*)")


def analyse_file(file: Path, *, path: str) -> FileReport:
    """Read and analyse one file; `path` is how the report names it.

    Raises:
        OSError: the file cannot be read.
    """
    source = read_source(file)
    report = analyse(path, source.text)
    if not source.problem:
        return report
    finding = Finding(path, 0, "undecodable", source.problem, SEVERITY["undecodable"])
    return FileReport(path=path, lines=report.lines, code_lines=report.code_lines, findings=(finding,))


def analyse(path: str, source: str) -> FileReport:
    """Measure one file. Linear in its size; 10,000 lines take well below a second."""
    text = with_unix_newlines(source)
    try:
        module = parse(text)
    except SyntaxError as error:
        return _broken(path, text, error)
    return _Analysis(path, text, module).report()


def fingerprints(source: str) -> tuple[Fingerprint, ...]:
    """Hash every window of code lines, in order (see clones); none for text that does not parse."""
    return analyse("", source).fingerprints


def _broken(path: str, text: str, error: SyntaxError) -> FileReport:
    finding = Finding(path, error.lineno or 0, "syntax-error", error.msg or str(error), SEVERITY["syntax-error"])
    return FileReport(path=path, lines=count_lines(text), code_lines=len(scan(text).code_lines), findings=(finding,))


@dataclass(frozen=True, slots=True)
class _Scope:
    """A body still to be read: `public` when its own name and all names around it are."""

    node: _ScopeNode
    name: str
    public: bool


class _Analysis:
    """One reading of one file. The walk keeps its own stack: source may nest deeper than Python may recurse."""

    def __init__(self, path: str, text: str, module: ast.Module) -> None:
        self._path = path
        self._text = text
        self._module = module
        self._functions: list[FunctionFacts] = []
        self._classes: list[ClassFacts] = []
        self._findings: list[Finding] = []
        self._docstrings_at: set[tuple[int, int]] = set()
        self._import_lines: set[int] = set()

    def report(self) -> FileReport:
        scopes = [_Scope(self._module, "", _is_public_module(self._path))]
        while scopes:
            scopes.extend(self._read(scopes.pop()))
        scanned = scan(self._text, docstrings_at=frozenset(self._docstrings_at))
        todos = self._read_comments(scanned.comments)
        return FileReport(
            path=self._path,
            lines=count_lines(self._text),
            code_lines=len(scanned.code_lines),
            about=_first_sentence(ast.get_docstring(self._module)),
            functions=tuple(sorted(self._functions, key=lambda function: function.line)),
            classes=tuple(sorted(self._classes, key=lambda found: found.line)),
            findings=tuple(sorted(self._findings, key=lambda finding: (finding.line, finding.kind))),
            todos=todos,
            fingerprints=fingerprints_of(scanned, passed_over=self._import_lines),
        )

    def _read(self, scope: _Scope) -> list[_Scope]:
        """Take down one scope and return the scopes directly inside it."""
        documented = self._note_docstring(scope.node)
        complexity, seam = 1, (0, 0)
        inner: list[_Scope] = []
        in_function = isinstance(scope.node, _FunctionNode)
        lines_max = _lines(scope.node) * 2 // 3 if isinstance(scope.node, _FunctionNode) else 0
        for node in _own_nodes(scope.node):
            complexity += _predicates(node)
            if isinstance(node, _SCOPES):
                public = scope.public and not in_function and not node.name.startswith("_")
                inner.append(_Scope(node, f"{scope.name}.{node.name}".lstrip("."), public))
            elif isinstance(node, _BLOCKS) and max(seam[1], _SEAM_LINES_MIN - 1) < _lines(node) <= lines_max:
                seam = (node.lineno, _lines(node))
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import_lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            elif isinstance(node, ast.ExceptHandler) and _swallows_all(node):
                self._find(node.lineno, "bare-except", "a bare `except:` also catches KeyboardInterrupt and SystemExit")
        self._record(scope, documented=documented, complexity=complexity, seam=seam, inner=inner)
        return inner

    def _record(
        self, scope: _Scope, *, documented: bool, complexity: int, seam: tuple[int, int], inner: list[_Scope]
    ) -> None:
        match scope.node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() as node:
                facts = FunctionFacts(
                    name=scope.name,
                    line=node.lineno,
                    lines=_lines(node),
                    complexity=complexity,
                    parameters=_count_parameters(node),
                    public=scope.public and not _is_accessory(node),
                    documented=documented,
                    seam_line=seam[0],
                    seam_lines=seam[1],
                )
                self._functions.append(facts)
                self._judge_function(facts, node)
            case ast.ClassDef() as node:
                methods = sum(isinstance(found.node, _FunctionNode) for found in inner)
                found = ClassFacts(scope.name, node.lineno, _lines(node), methods, scope.public, documented)
                self._classes.append(found)
                if found.public and not documented:
                    self._find(node.lineno, "missing-docstring", f"class `{scope.name}` has no docstring")
            case ast.Module(body=body):
                if scope.public and body and not documented:
                    self._find(1, "missing-docstring", "the module has no docstring")

    def _judge_function(self, facts: FunctionFacts, node: _FunctionNode) -> None:
        name, line = f"`{facts.name}`", facts.line
        if facts.complexity > COMPLEXITY_MAX:
            self._find(line, "complex", f"{name} has complexity {facts.complexity} (over {COMPLEXITY_MAX})")
        if facts.lines > FUNCTION_LINES_MAX:
            self._find(line, "long-function", f"{name} is {facts.lines} lines long (over {FUNCTION_LINES_MAX})")
        if facts.parameters > PARAMETERS_MAX:
            self._find(line, "many-parameters", f"{name} takes {facts.parameters} parameters (over {PARAMETERS_MAX})")
        if facts.public and not facts.documented:
            self._find(line, "missing-docstring", f"{name} has no docstring")
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None and _is_mutable(default):
                message = f"{name} has the mutable default `{ast.unparse(default)[:40]}`, shared by all its calls"
                self._find(default.lineno, "mutable-default", message)

    def _note_docstring(self, node: _ScopeNode) -> bool:
        """Tell whether the body opens with a docstring, and remember where it stands."""
        match node.body[:1]:
            case [ast.Expr(value=ast.Constant(value=str(text)) as found)]:
                self._docstrings_at.add((found.lineno, found.col_offset))
                return bool(text.strip())
        return False

    def _read_comments(self, comments: list[tuple[int, str]]) -> int:
        todos = 0
        for line, comment in comments:
            if marker := _MARKER.search(comment):
                todos += 1
                self._find(line, "todo", f"{marker[1]}: {marker[2].strip()[:120] or '(no text)'}")
        return todos

    def _find(self, line: int, kind: str, message: str) -> None:
        self._findings.append(Finding(self._path, line, kind, message, SEVERITY[kind]))


def _own_nodes(scope: _ScopeNode) -> Iterator[ast.AST]:
    """Yield the nodes of this body in source order; functions and classes in it are yielded, not entered."""
    stack: list[ast.AST] = list(reversed(scope.body))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _SCOPES):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _predicates(node: ast.AST) -> int:
    if type(node) in _PREDICATES:
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        wildcard = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
        return (not wildcard) + (node.guard is not None)
    return 0


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _count_parameters(node: _FunctionNode) -> int:
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    implicit = bool(positional) and positional[0].arg in {"self", "cls"}
    return len(positional) - implicit + len(args.kwonlyargs) + (args.vararg is not None) + (args.kwarg is not None)


def _is_accessory(node: _FunctionNode) -> bool:
    """Tell whether another function of the same name carries the docstring: overloads, setters, deleters."""
    names = (
        decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
        for decorator in node.decorator_list
    )
    return any(name in {"overload", "override", "setter", "deleter"} for name in names)


def _is_mutable(default: ast.expr) -> bool:
    if isinstance(default, ast.Call):
        called = default.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return name in _MUTABLE_CALLS
    return isinstance(default, _MUTABLE)


def _swallows_all(handler: ast.ExceptHandler) -> bool:
    """Tell whether this is a bare `except:` that does not raise what it caught again."""
    last = handler.body[-1]
    return handler.type is None and not (isinstance(last, ast.Raise) and last.exc is None)


def _is_public_module(path: str) -> bool:
    """Tell whether docstrings are due. Source: pydocstyle, whose default leaves out test_*.py and private modules."""
    stem = PurePosixPath(path).stem
    return not stem.startswith(("_", "test_")) or stem in {"__init__", "__main__"}


def _first_sentence(docstring: str | None) -> str:
    paragraph = " ".join((docstring or "").strip().partition("\n\n")[0].split())
    return textwrap.shorten(re.split(r"(?<=[.!?]) ", paragraph)[0], _ABOUT_CHARS_MAX, placeholder=" …")

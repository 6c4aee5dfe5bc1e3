"""Tests about the project itself: rules that a reader relies on and no linter knows.

Style and layers are ruff's and import-linter's (pyproject.toml); here is what needs our own eyes, and that the
reference pages name everything there is. Each test reports all that breaks its rule at once.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import sennit
from sennit import errors
from sennit.model.lifecycle import State
from sennit.model.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "sennit"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
REFERENCE = ROOT / "docs" / "reference"

LINES_MAX = 450
NAMES_MAX = 30
CLOCK = PACKAGE / "sync" / "clock.py"
WALL_CLOCK_CALLS = {"time.sleep", "time.time", "time.time_ns"}
DRIVERS = {"sqlite3", "psycopg", "redis"}

# Built from halves, or this file would break its own rule.
REGISTRY_HOSTS = [
    left + right
    for left, right in [
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("registry.npm", "js.org"),
        ("index", "-url"),
        ("--find", "-links"),
    ]
]
HOME_FOLDER = re.compile(r"/(?:home|Users)/(?!you/|me/)\w+/|(?<![\w.-])/[r]oot/")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for such an expression, or "" for any other."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if dotted(value):
            return f"{dotted(value)}.{name}"
        case _:
            return ""


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name of a module stands for: `{"sleep": "time.sleep", "t": "time"}`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname or alias.name: alias.name for alias in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, full dotted name) of every name and attribute, imports resolved."""
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := dotted(node)):
            head, _, rest = name.partition(".")
            yield node.lineno, ".".join(filter(None, [names.get(head, head), rest]))


def committed_files() -> list[Path]:
    """Return the files git tracks or would add, so that a slip shows before the commit."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("this is no git checkout: there are no committed files to look at")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


# ---------------------------------------------------------------- modules


def test_every_module_opens_with_its_idea() -> None:
    silent = [relative(path) for path in MODULES if not ast.get_docstring(parse(path))]

    assert silent == []


def test_no_module_hides_two_ideas() -> None:
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}

    assert {name: count for name, count in lines.items() if count > LINES_MAX} == {}


def test_only_the_clock_reads_the_wall_clock_and_a_sleep_says_why() -> None:
    """A sleep is for what nobody can tell us, such as a server that is back; the line above it says so: `# sleep: …`."""
    found = []
    for path in MODULES:
        if path == CLOCK:
            continue
        text = path.read_text(encoding="utf-8")
        above = ["", *text.splitlines()]
        for line, name in uses(ast.parse(text, filename=str(path))):
            if name in WALL_CLOCK_CALLS and not (name == "time.sleep" and "# sleep: " in above[line - 1]):
                found.append(f"{relative(path)}:{line} {name}")

    assert found == []


def test_database_drivers_are_imported_outside_the_store_only_as_types() -> None:
    """import-linter lets `submit` name the caller's connection; this holds it to `if TYPE_CHECKING:`."""
    found = []
    for path in MODULES:
        if (PACKAGE / "store") in path.parents:
            continue
        tree = parse(path)
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
            for statement in node.body
            for inner in ast.walk(statement)
        }
        found += [
            f"{relative(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in typing_only
            if DRIVERS & {name.partition(".")[0] for name in imported_names(node).values()}
        ]

    assert found == []


def test_the_public_names_exist_and_are_few() -> None:
    missing = [name for name in sennit.__all__ if not hasattr(sennit, name)]

    assert missing == []
    assert len(sennit.__all__) <= NAMES_MAX


def test_every_sql_file_starts_with_its_name_and_its_move() -> None:
    silent = [
        relative(path)
        for path in sorted(PACKAGE.rglob("*.sql"))
        if not path.read_text(encoding="utf-8").startswith(f"-- {path.stem.replace('_', ' ')}: ")
    ]

    assert silent == []


# ---------------------------------------------------------------- tests


class Sleeps(ast.NodeVisitor):
    """Collects the sleeps of a test file that are not the work of a handler.

    The body of a task may take its time, that is what it stands for; a test waits for facts.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.names = imported_names(tree)
        self.lines: list[int] = []
        self.visit(tree)

    def visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
        if not any(dotted(decorator).endswith(".task") for decorator in decorators):
            self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_function  # noqa: N815 - names given by ast

    def visit_Call(self, node: ast.Call) -> None:
        head, _, rest = dotted(node.func).partition(".")
        name = ".".join(filter(None, [self.names.get(head, head), rest]))
        yields_only = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        if name in {"time.sleep", "asyncio.sleep"} and not yields_only:
            self.lines.append(node.lineno)
        self.generic_visit(node)


def test_no_test_sleeps() -> None:
    """Not counted: bodies, child programs, virtual time (tests/simulate), and a line that says why: `# sleep: …`."""
    found = []
    for path in TESTS:
        if path.name.startswith("test_") and path.parent.name != "simulate":
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{relative(path)}:{n}" for n in Sleeps(parse(path)).lines if "# sleep: " not in lines[n - 1]]

    assert found == []


# ---------------------------------------------------------------- files


def test_no_committed_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in committed_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        strings = [*REGISTRY_HOSTS, f"{ROOT}/"]
        found += [f"{relative(path)}: {string}" for string in strings if string in text]
        found += [f"{relative(path)}: {match.group()}" for match in HOME_FOLDER.finditer(text)]

    assert found == []


def test_every_dependency_of_the_project_is_pinned_without_a_host() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    odd = [line for line in lines if line and not re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line)]

    assert odd == []


# ---------------------------------------------------------------- the reference names everything


def missing_from(page: str, names: list[str]) -> list[str]:
    """Return the names that do not stand in docs/reference/`page` as `code`."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return [name for name in names if f"`{name}`" not in text]


def error_classes(base: type[errors.SennitError] = errors.SennitError) -> Iterator[type[errors.SennitError]]:
    yield base
    for derived in base.__subclasses__():
        yield from error_classes(derived)


def command_lines(command: click.Command, path: str) -> Iterator[str]:
    """Yield `sennit tasks ls` and so on for every command below `command`; groups themselves are no commands."""
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command, info_name=path)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None and not found.hidden:
            yield from command_lines(found, f"{path} {name}")


def test_every_setting_is_in_the_reference() -> None:
    assert missing_from("settings.md", [field.name for field in dataclasses.fields(Settings)]) == []


def test_every_error_and_its_code_is_in_the_reference() -> None:
    ours = [error for error in error_classes() if error.__module__ == errors.__name__]

    assert missing_from("errors.md", [name for error in ours for name in (error.__name__, error.code)]) == []


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in error_classes() if error.__module__ == errors.__name__]

    assert sorted(codes) == sorted(set(codes))


def test_every_task_state_is_in_the_reference() -> None:
    assert missing_from("states.md", [state.value for state in State]) == []


def test_every_command_is_in_the_reference() -> None:
    module = importlib.import_module("sennit.cli.main")
    roots = [value for value in vars(module).values() if isinstance(value, click.Group)]

    commands = sorted({line for root in roots for line in command_lines(root, "sennit")})

    assert commands
    assert missing_from("cli.md", commands) == []

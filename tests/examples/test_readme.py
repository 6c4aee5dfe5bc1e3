"""Every code block of README.md and docs/ runs, in the order of its page, in a folder of its own.

    ```python             run as a script; with the first line `# name.py` it is only saved, and a later block uses it
    ```sh                 run by a shell; with lines that start with `$ `, those are the commands, and the rest is what
                          they print: every line shown must be printed, whatever its numbers and spaces
    <!-- not run: why --> before a block: it is only checked to be Python

What a page starts in the background ends with the page. What ends by itself is forked from a process that has imported
sennit (page_programs.py); what goes on starts as it does for everybody.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

from tests.crash.nursery import Nursery
from tests.examples.page_programs import STARTED_FOR_REAL

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN_MAX = 6
README_LINES_MAX = 150
BLOCK_S_MAX = 40.0  # on a busy machine; alone, none takes five seconds

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>python|sh)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE_NAME = re.compile(r"# (?P<name>[\w.-]+\.(?:py|toml))\n")


class Block(NamedTuple):
    """One fenced block; `reason` says why it is not run, or is empty."""

    line: int
    language: str
    text: str
    reason: str

    @property
    def file_name(self) -> str:
        """The name in the first line, or empty."""
        named = _FILE_NAME.match(self.text) if self.language == "python" else None
        return named["name"] if named else ""

    @property
    def commands(self) -> str:
        """What the shell is given."""
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ ")) or self.text

    @property
    def shown(self) -> list[str]:
        """The output as the page shows it."""
        lines = self.text.splitlines() if self.language == "sh" and self.commands != self.text else []
        return [line for line in lines if line.strip() and not line.startswith("$ ")]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, m.start("language")) + 1, m["language"], m["text"], m["reason"] or "")
        for m in _BLOCK.finditer(text)
    ]


def without_numbers(line: str) -> str:
    """Return a line with 0 for each number, `0s` for `4m12s`, and one form for moments.

    On a busy machine an age has minutes, and at ten to midnight what comes in ten minutes has a date.
    """
    moments = re.sub(r"\b(\d{4}-\d\d-\d\d \d\d:\d\d|\d\d:\d\d:\d\d)\b", "00:00:00", line)
    seconds = re.sub(r"\b\d+[mhd]\d\d[smh]\b", "0s", moments)
    return " ".join(re.sub(r"\d[\d.,]*", "0", seconds).split())


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


PAGES_WITH_BLOCKS = [page for page in PAGES if any(not block.reason for block in blocks_of(page))]


BACKGROUND_PYTHON = re.compile(r"^python [^\n]*[^&\n]&(?!&)", re.MULTILINE)
# What a shell of the page finds as `python` and `sennit`: "$0" is the tool itself.
FORKED = """#!/bin/sh
case "$1" in
    {for_real}) exec {python} {arguments} "$@" ;;
    *) exec {python} -I -S {client} {socket} "$0" {what} "$@" ;;
esac
"""


def ends_within(pid: int, seconds: float) -> bool:
    """Wait for the end of a process that need not be our child."""
    ended = os.pidfd_open(pid)
    try:
        return bool(select.select([ended], [], [], seconds)[0])
    finally:
        os.close(ended)


class Folder:
    """A temporary folder in which a page's blocks run, with `python` and `sennit` on the PATH."""

    def __init__(self, path: Path, nursery: Nursery) -> None:
        self.path = path / "page"
        self.path.mkdir()
        self._nursery = nursery
        tools = path / "bin"
        tools.mkdir()
        for name, arguments, what, for_real in (
            ("python", "", "script", "-*"),
            ("sennit", "-m sennit", "command", "|".join(STARTED_FOR_REAL)),
        ):
            tool = tools / name
            text = FORKED.format(
                for_real=for_real,
                python=sys.executable,
                arguments=arguments,
                client=Path(__file__).with_name("page_client.py"),
                socket=nursery.descriptor,
                what=what,
            )
            tool.write_text(text, encoding="utf-8")
            tool.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SENNIT_")}
        self._environ = kept | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
        }
        self._groups: list[int] = []

    def run(self, block: Block) -> tuple[int, str]:
        """Run one block; return the exit code and all it printed."""
        name = block.file_name or f"line_{block.line}.py"
        if block.language == "python":
            (self.path / name).write_text(block.text, encoding="utf-8")
            if block.file_name:
                return 0, ""
        output = self.path.parent / f"output-{block.line}"  # a file: a background process may hold it open
        with output.open("wb") as file:
            code = self._run_script(name, file) if block.language == "python" else self._run_shell(block.commands, file)
        return code, output.read_text(encoding="utf-8", errors="replace")

    def _run_script(self, name: str, output: BinaryIO) -> int:
        call, given = "tests.examples.page_programs:script_alone", {1: output.fileno(), 2: output.fileno()}
        process = self._nursery.start(call, name, folder=self.path, environ=self._environ, descriptors=given)
        self._groups.append(process.pid)
        if not ends_within(process.pid, BLOCK_S_MAX):
            process.kill()
            raise TimeoutError(f"{name} ran for more than {BLOCK_S_MAX:.0f} s")
        return process.wait()

    def _run_shell(self, commands: str, output: BinaryIO) -> int:
        assert not BACKGROUND_PYTHON.search(commands), "`$!` would be the pid of the client: start this one for real"
        process = subprocess.Popen(
            ["sh", "-e", "-c", commands],
            cwd=self.path,
            env=self._environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[self._nursery.descriptor],
        )
        self._groups.append(process.pid)
        return process.wait(BLOCK_S_MAX)

    def close(self) -> None:
        """End what is still running."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path, nursery: Nursery) -> Iterator[Folder]:
    some = Folder(tmp_path, nursery)
    yield some
    some.close()


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=page_name)
def test_every_block_of_the_page_runs(page: Path, folder: Folder) -> None:
    for block in blocks_of(page):
        if block.reason:
            continue

        code, output = folder.run(block)

        printed = {without_numbers(line) for line in output.splitlines()}
        assert code == 0, f"{page_name(page)}:{block.line} ended with {code}:\n{output}"
        missing = [line for line in block.shown if without_numbers(line) not in printed]
        assert missing == [], f"{page_name(page)}:{block.line} does not print these; it printed:\n{output}"


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=page_name)
def test_every_saved_file_is_used_by_a_later_block(page: Path) -> None:
    blocks = blocks_of(page)

    unused = [
        block.file_name
        for n, block in enumerate(blocks)
        if block.file_name and not any(Path(block.file_name).stem in later.text for later in blocks[n + 1 :])
    ]

    assert unused == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_that_are_not_run_are_at_least_python(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.text, f"{page_name(page)}:{block.line}", "exec")


def test_few_blocks_are_not_run() -> None:
    not_run = [
        f"{page_name(page)}:{block.line} {block.reason}" for page in PAGES for block in blocks_of(page) if block.reason
    ]

    assert len(not_run) <= NOT_RUN_MAX, not_run


def test_a_fence_without_a_language_that_runs_says_what_it_is() -> None:
    """`text`, `toml`, `sql` and `console` are shown, `python` and `sh` run; a bare fence hides which was meant."""
    bare = []
    for page in PAGES:
        opens = True
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                if opens and line.removeprefix("```") not in {"python", "sh", "text", "toml", "sql"}:
                    bare.append(f"{page_name(page)}:{number} {line}")
                opens = not opens

    assert bare == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= README_LINES_MAX

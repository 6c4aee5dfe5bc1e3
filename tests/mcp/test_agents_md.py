"""`sennit init`: a block of our own in somebody else's file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from sennit.cli.init import BEGIN, BLOCK, END, snippets, write_block
from sennit.cli.main import cli
from sennit.errors import UsageError
from sennit.integrations.mcp.arguments import TOOLS


def test_a_file_is_made_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "AGENTS.md"

    assert write_block(path) == "written"
    first = path.read_bytes()
    assert first.decode() == f"{BEGIN}\n{BLOCK}\n{END}\n"
    assert write_block(path) == "unchanged"
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", ["", "\n"])
def test_what_is_around_the_block_is_left_alone(tmp_path: Path, newline: str, ending: str) -> None:
    path = tmp_path / "AGENTS.md"
    path.write_bytes(f"# Ours{newline}{newline}Be kind: ü.{ending.replace(chr(10), newline)}".encode())
    path.chmod(0o640)
    before = path.read_bytes()

    assert write_block(path) == "written"
    assert path.read_bytes().startswith(before)
    after = path.read_bytes() + f"more{newline}".encode()
    path.write_bytes(after.replace(b"## Tasks", b"## An older text"))
    assert write_block(path) == "updated"
    assert path.read_bytes() == after
    assert path.stat().st_mode & 0o777 == 0o640
    assert newline == "\r\n" or b"\r" not in after


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_marks_that_are_not_a_pair_are_refused_and_nothing_is_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "AGENTS.md"
    path.write_text(text)

    with pytest.raises(UsageError, match="marks"):
        write_block(path)
    assert path.read_text() == text


def test_a_link_stays_a_link_and_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "docs.md"
    target.write_text("ours\n")
    (tmp_path / "AGENTS.md").symlink_to(target)
    assert write_block(tmp_path / "AGENTS.md") == "written"
    assert (tmp_path / "AGENTS.md").is_symlink()
    assert target.read_text().startswith("ours\n")

    (tmp_path / "binary").write_bytes(b"\xff\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        write_block(tmp_path / "binary")


def test_the_command_finds_the_repository_and_says_how_to_add_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")

    done = CliRunner().invoke(cli, ["init", "--agents-md", "--db", "sqlite:///fleet.db"])

    assert done.exit_code == 0, done.output
    assert (tmp_path / "AGENTS.md").exists()
    assert "written" in done.output
    assert "claude mcp add sennit -- sennit mcp --db sqlite:///fleet.db" in done.output


def test_the_line_for_config_toml_is_toml() -> None:
    (line,) = [line for line in snippets("sqlite:///x.db") if "config.toml" in line]

    server = tomllib.loads(line.partition("config.toml: ")[2])["mcp_servers"]["sennit"]

    assert server == {"command": "sennit", "args": ["mcp", "--db", "sqlite:///x.db"], "required": True}


def test_the_block_names_no_tool_that_there_is_not() -> None:
    named = {word.strip("`.,:;()") for word in BLOCK.split() if "_" in word and word.startswith(("`", "(`"))}

    assert {word for word in named if word.startswith(("task_", "lock_", "ask_", "await_", "state_"))} <= TOOLS.keys()
    assert {"task_claim", "task_complete", "task_fail", "lock_paths"} <= named

"""What the command line says of a database that is damaged, foreign, newer or not there."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.processes import Sennit


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_verify_names_a_task_that_is_nowhere_and_exits_1(sennit: Sennit, folder: Path) -> None:
    task_id = sennit("run", "fleet:app", "double", "1").stdout.strip()
    change(folder / "fleet.db", "DELETE FROM sennit_ready")

    people = sennit("verify")
    program = sennit("verify", "--json")

    assert people.returncode == program.returncode == 1
    assert f"task {task_id} is open and in 0 narrow tables" in people.stdout
    found = json.loads(program.stdout)
    assert found["sound"] is False
    assert any(f"task {task_id} " in sentence for sentence in found["broken"])


def test_verify_names_a_ledger_that_does_not_balance(sennit: Sennit, folder: Path) -> None:
    sennit("run", "fleet:app", "double", "1")
    change(folder / "fleet.db", "UPDATE sennit_ledger SET n = n + 1 WHERE name = 'submitted'")

    done = sennit("verify")

    assert done.returncode == 1
    assert "✕ 1 missing" in done.stdout


def test_verify_and_check_find_a_damaged_page(sennit: Sennit, folder: Path) -> None:
    sennit("run", "fleet:app", "double", "1")
    path = folder / "fleet.db"
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    path.write_bytes(content)

    assert sennit("db", "check").returncode == 1
    assert sennit("verify").returncode == 1


@pytest.mark.parametrize("words", [("status",), ("tasks", "ls"), ("run", "fleet:app", "double", "1")])
def test_a_file_that_is_no_database_is_an_error_with_what_why_and_fix(
    sennit: Sennit, folder: Path, words: tuple[str, ...]
) -> None:
    (folder / "fleet.db").write_bytes(b"not a database, but long enough to look at" * 100)

    done = sennit(*words)

    assert done.returncode == 69
    first, why, fix = done.stderr.splitlines()
    assert first.startswith("error[S403]")
    assert why.startswith("  why  ")
    assert fix.startswith("  fix  ")


def test_a_database_of_another_program_is_left_as_it_is(sennit: Sennit, folder: Path) -> None:
    change(folder / "fleet.db", "CREATE TABLE mine (x)")
    before = (folder / "fleet.db").read_bytes()

    done = sennit("status")

    assert done.returncode == 69
    assert "has no tables of sennit" in done.stderr
    assert (folder / "fleet.db").read_bytes() == before


def test_a_database_of_a_newer_sennit_is_refused(sennit: Sennit, folder: Path) -> None:
    sennit("db", "init")
    change(folder / "fleet.db", "PRAGMA user_version = 999")

    done = sennit("tasks", "ls")

    assert done.returncode == 78
    assert "error[S405]" in done.stderr
    assert "upgrade sennit" in done.stderr

"""`sennit providers budget`: set, seen, raised and lifted, while the tasks of a worker in another process wait for it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sennit import App
from tests.cli.processes import Sennit, Start
from tests.unit.command_line import Run

SPENDERS = """
from sennit import App

app = App("sqlite:///fleet.db")
model = app.provider("model", parallel=3, prices={"m": (1.0, 1.0)})


@app.task(provider=model)
async def spend(tokens: int) -> int:
    async with model.slot() as call:
        call.used(input_tokens=tokens, model="m")
    return tokens
"""


@pytest.fixture
def spenders(folder: Path, start: Start) -> subprocess.Popen[str]:
    """A worker whose tasks cost something."""
    (folder / "spenders.py").write_text(SPENDERS, encoding="utf-8")
    process = start("worker", "spenders:app")
    assert process.stderr is not None
    assert "serves" in process.stderr.readline()
    return process


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def run(sennit: Sennit, tokens: int) -> str:
    return sennit("run", "spenders:app", "spend", str(tokens)).stdout.strip()


def test_a_spent_budget_fails_what_comes_and_raising_it_lets_a_retry_through(
    sennit: Sennit, spenders: subprocess.Popen[str]
) -> None:
    (budget,) = lines(sennit("providers", "budget", "fleet", "--tokens", "100", "--json").stdout)
    assert (budget["tokens_max"], budget["tokens"], budget["on_exceeded"]) == (100, 0, "fail")
    assert sennit("tasks", "wait", run(sennit, 100)).returncode == 0

    late = run(sennit, 1)
    assert sennit("tasks", "wait", late).returncode == 1
    shown = sennit("tasks", "get", late).stdout
    assert "BudgetExceeded: the budget of the fleet is spent: 100 of 100 tokens" in shown
    assert "budget   fleet  $0.0001, 100 of 100 tokens  spent" in sennit("status").stdout

    sennit("providers", "budget", "fleet", "--tokens", "1000")
    sennit("tasks", "retry", late)
    assert sennit("tasks", "wait", late).returncode == 0


def test_a_spent_budget_that_asks_puts_a_question_into_the_inbox_and_raising_it_by_hand_answers_it(
    sennit: Sennit, spenders: subprocess.Popen[str]
) -> None:
    sennit("providers", "budget", "provider", "model", "--usd", "0.0001", "--ask")
    assert sennit("tasks", "wait", run(sennit, 100)).returncode == 0
    held = run(sennit, 1)

    (question,) = lines(sennit("tasks", "wait", held, "--or-asked", "--json").stdout)
    assert "the budget of provider 'model' is spent" in question["question"]
    shown = sennit("tasks", "get", held).stdout
    assert f"waits for    question {question['id']}" in shown
    sennit("providers", "budget", "provider", "model", "--usd", "1")

    assert sennit("tasks", "wait", held).returncode == 0
    assert "nothing waits for you" in sennit("inbox").stdout
    (task,) = lines(sennit("tasks", "get", held, "--json").stdout)
    assert task["waited_s"].keys() & {"budget", "human"}


# ---------------------------------------------------------------- in process


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with App() as app:
        app.ledger().result()
    return Run(capsys)


def test_what_is_not_named_stays_and_lifting_removes_all(cli: Run) -> None:
    assert cli("providers", "budget") == "no budget is set\n"
    cli("providers", "budget", "fleet", "--usd", "5", "--ask")
    (budget,) = cli.json("providers", "budget", "fleet", "--tokens", "7")
    assert (budget["usd_max"], budget["tokens_max"], budget["on_exceeded"]) == (5.0, 7, "ask")
    (budget,) = cli.json("providers", "budget", "fleet", "--usd", "0", "--fail")
    assert (budget["usd_max"], budget["tokens_max"], budget["on_exceeded"]) == (0.0, 7, "fail")

    assert cli("providers", "budget", "fleet", "--lift") == "the budget of fleet is lifted\n"
    assert cli.json("providers", "budget") == []
    assert cli.code == 0


def test_budgets_are_listed_by_scope_and_key_and_no_more_than_asked_for(cli: Run) -> None:
    for n in range(4):
        cli("providers", "budget", "thread", f"t{n}", "--tokens", "5")
    cli("providers", "budget", "task", "--usd", "0.5")
    cli("providers", "budget", "handler", "evil\x1b[2J", "--usd", "0.5")

    assert "each task" in cli("providers", "budget")
    assert "\x1b" not in cli("providers", "budget")
    assert [found["key"] for found in cli.json("providers", "budget", "thread")] == ["t0", "t1", "t2", "t3"]
    assert [found["key"] for found in cli.json("providers", "budget", "thread", "t2")] == ["t2"]
    assert len(cli.json("providers", "budget", "--limit", "2")) == 2
    assert "2 of 6; more with --limit" in cli.err

"""`sennit providers` and `sennit proxy` with numbers that are none: a usage error, and the database stays readable."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit import App
from tests.unit.command_line import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = App(durability="normal")
    app.provider("p", parallel=2)
    app.store.now_us()
    yield app
    app.close()


@pytest.mark.parametrize(
    "words",
    [
        "set p --idle-s nan",
        "set p --idle-s inf",
        "set p --breaker failures=0",
        "set p --breaker failures=1.5",
        "set p --breaker open_s=0",
        "set p --breaker window_s=0",
        "set p --breaker rate=5",
        "set p --model opus:rpm=0.5",
        "test p --timeout-s nan",
        "budget provider a/b --tokens 5",
    ],
)
def test_a_number_that_cannot_be_is_a_usage_error_and_spoils_nothing(run: Run, words: str) -> None:
    run("providers", *words.split())
    assert run.code == 2
    assert "p" in run("providers", "ls")


def test_a_budget_of_next_to_nothing_is_kept(run: Run) -> None:
    run("providers", "budget", "fleet", "--usd", "1e-10")
    assert "fleet" in run("providers", "budget")


def test_a_proxy_whose_port_is_taken_says_so(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run("proxy", "--upstream", "openai=http://127.0.0.1:1", "--port", port)
    assert run.code == 78
    assert "cannot listen" in run.err


def test_a_proxy_with_two_upstreams_of_one_name_is_refused(run: Run) -> None:
    run("proxy", "--upstream", "openai=http://a", "--upstream", "openai=http://b")
    assert run.code == 78
    assert "same name" in run.err

"""A folder with an app in it, and `sennit` as a real process there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Sennit, Start
from tests.crash.nursery import Nursery

FLEET = '''
from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from sennit import App

app = App("sqlite:///fleet.db")
log = logging.getLogger("fleet")


@app.task
async def double(n: int) -> int:
    return 2 * n


@app.task
def bad(why: str) -> None:
    raise ValueError(why)


@app.task(queue="llm")
async def ask(question: str) -> str:
    return question.upper()


async def appearance(name: str) -> None:
    while not Path(name).exists():
        await asyncio.sleep(0.01)


@app.task
async def until(name: str) -> str:
    """Say that it has started (to whoever reads the pipe), and run until a file appears."""
    log.info("waiting for %s", name)
    await asyncio.to_thread(Path(name + ".started").write_text, "")
    await appearance(name)
    log.info("found %s", name)
    return name


@app.task
def blocked(name: str) -> None:
    """A sync body that nothing can interrupt for a while."""
    Path(name + ".started").write_text("")
    time.sleep(8)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.py").write_text(FLEET, encoding="utf-8")
    return tmp_path


@pytest.fixture
def environment() -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SENNIT_")}
    return {**mine, "SENNIT_DB": "sqlite:///fleet.db", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def sennit(folder: Path, environment: dict[str, str], nursery: Nursery) -> Sennit:
    """Forked, which takes a tenth of the time: what goes on (`start`), and how a command starts, are tested for real."""

    def call(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return nursery.run("tests.cli.processes:sennit", *words, folder=folder, environ=environment, text=text)

    return call


@pytest.fixture
def start(folder: Path, environment: dict[str, str]) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def call(*words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "sennit", *words]
        process = subprocess.Popen(
            argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def worker(start: Start) -> subprocess.Popen[str]:
    """A worker that has joined the store."""
    process = start("worker", "fleet:app")
    assert process.stderr is not None
    assert "serves" in process.stderr.readline()
    return process

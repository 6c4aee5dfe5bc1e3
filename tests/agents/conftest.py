"""Run folders for tests of supervision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.programs import Runs


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Makes what a supervisor spawns; see tests/agents/programs.py."""
    made = Runs(tmp_path)
    yield made
    made.close()

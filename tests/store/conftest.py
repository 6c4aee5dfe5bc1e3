"""A store with something in every table, filled once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.houses import duplicate, fill


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with something in every table; its processes are dead."""
    folder = tmp_path_factory.mktemp("house")
    fill(f"sqlite:///{folder}/fleet.db", folder)
    return folder / "fleet.db"


@pytest.fixture
def here(filled: Path, tmp_path: Path) -> str:
    """The URL of such a file, for one test."""
    return duplicate(filled, tmp_path / "here.db")

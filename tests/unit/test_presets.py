"""A profile is a set of defaults: it yields to everything that was said in so many words, and says where it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sennit.cli.main import main
from sennit.errors import SettingsError
from sennit.model.admission import Bounds
from sennit.model.settings import PROFILES, Settings
from sennit.runtime.config import Loaded, load
from sennit.runtime.stores import open_store

FIGURES = {
    "small": {"threads_max": 20, "thread_memory_bytes_max": 50_000_000, "queue_max": 100, "provider_parallel": 10},
    "medium": {"threads_max": 100, "thread_memory_bytes_max": 30_000_000, "queue_max": 500, "provider_parallel": 20},
    "large": {"threads_max": 200, "thread_memory_bytes_max": 20_000_000, "queue_max": 1000, "provider_parallel": 50},
}

every_profile = pytest.mark.parametrize("profile", FIGURES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory below which no settings lie."""
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "sennit.toml").write_text("")
    return tmp_path


def loaded(folder: Path, environ: Mapping[str, str] | None = None, **keywords: Any) -> Loaded:
    return load(keywords, environ=environ or {}, folder=folder)


def shown(settings: Settings, names: Mapping[str, int]) -> dict[str, int]:
    return {name: getattr(settings, name) for name in names}


@every_profile
def test_a_profile_sets_its_figures_and_nothing_else(folder: Path, profile: str) -> None:
    found = loaded(folder, profile=profile)

    assert shown(found.settings, FIGURES[profile]) == FIGURES[profile]
    others = {name: origin for name, origin in found.origins.items() if name not in FIGURES[profile]}
    assert others.pop("profile") == "keyword"
    assert set(others.values()) == {"default"}


def test_without_a_profile_there_are_no_bounds(folder: Path) -> None:
    found = loaded(folder)

    settings = found.settings
    assert (settings.threads_max, settings.queue_max, settings.thread_memory_bytes_max) == (0, 0, 0)
    assert set(found.origins.values()) == {"default"}


@every_profile
def test_the_origin_of_its_values_is_the_profile(folder: Path, profile: str) -> None:
    found = loaded(folder, profile=profile)

    assert {found.origins[name] for name in FIGURES[profile]} == {f"profile {profile}"}


@every_profile
@pytest.mark.parametrize("name", FIGURES["small"])
@pytest.mark.parametrize("source", ["keyword", "environment", "sennit.toml", "pyproject.toml"])
def test_every_other_source_overrides_the_profile(folder: Path, profile: str, name: str, source: str) -> None:
    environ, keywords = {}, {}
    match source:
        case "keyword":
            keywords[name] = 7
        case "environment":
            environ[f"SENNIT_{name.upper()}"] = "7"
        case "sennit.toml":
            (folder / source).write_text(f"{name} = 7")
        case _:
            (folder / source).write_text(f"[tool.sennit]\n{name} = 7")

    found = loaded(folder, environ, profile=profile, **keywords)

    assert shown(found.settings, FIGURES[profile]) == FIGURES[profile] | {name: 7}
    assert found.origins[name].endswith(source)


def test_zero_in_so_many_words_lifts_a_bound_of_the_profile(folder: Path) -> None:
    assert loaded(folder, profile="small", queue_max=0).settings.queue_max == 0


def test_a_profile_may_come_from_any_source_and_the_strongest_counts(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.sennit]\nprofile = "small"')
    assert loaded(folder).settings.threads_max == 20
    (folder / "sennit.toml").write_text('profile = "medium"')
    assert loaded(folder).settings.threads_max == 100
    assert loaded(folder, {"SENNIT_PROFILE": "large"}).settings.threads_max == 200
    assert loaded(folder, {"SENNIT_PROFILE": "large"}, profile="").settings.threads_max == 0


@pytest.mark.parametrize("wrong", ["huge", 3, ["small"]])
def test_an_unknown_profile_is_refused_with_those_there_are(folder: Path, wrong: object) -> None:
    with pytest.raises(SettingsError, match="profile must be") as refused:
        loaded(folder, profile=wrong)
    if isinstance(wrong, str):
        assert "small, medium, large" in refused.value.what


@every_profile
def test_a_profile_sets_only_settings_within_their_bounds(profile: str) -> None:
    Settings.of(PROFILES[profile])


def test_config_show_says_which_profile_a_value_is_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SENNIT_PROFILE", "small")
    monkeypatch.setenv("SENNIT_QUEUE_MAX", "7")

    assert main(["config", "show", "--origin"]) == 0
    table = capsys.readouterr().out
    assert main(["config", "show", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert any(line.split() == ["threads_max", "20", "threads", "profile", "small"] for line in table.splitlines())
    origins = {line["name"]: line["origin"] for line in lines}
    assert origins["threads_max"] == "profile small"
    assert origins["queue_max"] == "environment"


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_the_store_enforces_what_the_settings_say(folder: Path, kind: str) -> None:
    url = "memory://" if kind == "memory" else f"sqlite:///{folder}/fleet.db"

    store: Any = open_store(url, loaded(folder, profile="small", state_versions=7).settings)

    bounds = store._bounds if kind == "memory" else store.bounds
    store.close()
    assert bounds == Bounds(threads_max=20, state_versions=7)

"""Where settings come from: keyword > SENNIT_* in the environment > sennit.toml > [tool.sennit] > profile > default.

The file is the nearest one upwards from the working directory. The profile is itself a setting and may come from any
source; what it sets yields to everything that was said in so many words. Every value remembers its origin, for
`sennit config show`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sennit.errors import SettingsError
from sennit.limit.prices import Prices
from sennit.model.route import checked_labels
from sennit.model.settings import PROFILES, Settings

PREFIX = "SENNIT_"
# Read elsewhere: the store's URL, the number of cores, and where tests find servers.
# Variables that are no settings: what the command line reads, what agents are given, and all that tests are told.
_OTHERS = {"SENNIT_DB", "SENNIT_CPUS", "SENNIT_JSON", "SENNIT_AGENT_NONCE", "SENNIT_FAKE_AGENT", "SENNIT_MCP_TOKEN"}
_TESTS = "SENNIT_TEST_"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, for each name where its value came from, and the prices of `[prices]`."""

    settings: Settings
    origins: dict[str, str]
    prices: Prices


def load(keywords: Mapping[str, Any], *, environ: Mapping[str, str], folder: Path) -> Loaded:
    """Merge all sources.

    Raises:
        SettingsError: an unknown name, an unreadable file, or a value out of its bounds.
    """
    values: dict[str, Any] = {}
    prices: dict[str, Any] = {}
    origins = {f.name: "default" for f in fields(Settings)}
    for source, found in (*_files(folder), ("environment", _environment(environ)), ("keyword", _said(keywords))):
        _flatten_cluster(found, source)
        prices |= _table(found.pop("prices", {}), source)
        values |= found
        origins |= dict.fromkeys(found, source)
    profile = values.get("profile")
    if isinstance(profile, str) and profile in PROFILES:  # any other is refused below, like every wrong value
        given = {name: value for name, value in PROFILES[profile].items() if name not in values}
        values |= given
        origins |= dict.fromkeys(given, f"profile {profile}")
    return Loaded(Settings.of(values), origins, Prices.of_config(prices))


def _said(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords without those that are None: `App(cluster=None)` says nothing."""
    return {name: value for name, value in keywords.items() if value is not None}


def _flatten_cluster(found: dict[str, Any], source: str) -> None:
    """Turn the table `[cluster]` of a file into settings: `address` is `cluster`, `token_path` is `cluster_token_path`."""
    table = found.get("cluster")
    if isinstance(table, dict):
        del found["cluster"]
        unknown = table.keys() - {"address", "token_path"}
        if unknown:
            raise SettingsError(f"[cluster] in {source} has no {min(unknown)!r}", fix="it has address and token_path")
        found |= {"cluster" if name == "address" else f"cluster_{name}": value for name, value in table.items()}


def _table(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f"prices in {source} is no table", fix='write [prices] and lines "model" = { input = 3.0, output = 15.0 }'
        )
    return value


def _files(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return what files say, the weaker first."""
    found = []
    for name, keys in (("pyproject.toml", ("tool", "sennit")), ("sennit.toml", ())):
        path = next((p for f in (folder, *folder.parents) if (p := f / name).is_file()), None)
        if path is None:
            continue
        try:
            table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, OSError) as error:
            raise SettingsError(f"cannot read {path}: {error}", fix="mend the file, or move it away") from error
        for key in keys:
            table = table.get(key, {})
        if table:
            found.append((str(path), dict(table)))
    return found


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    kinds = {f.name: type(f.default) for f in fields(Settings)}
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _OTHERS or variable.startswith(_TESTS):
            continue
        name = variable.removeprefix(PREFIX).lower()
        found[name] = _parsed(variable, text, kinds.get(name, str))
    return found


def _parsed(variable: str, text: str, kind: type) -> Any:
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() in words:
            return words[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise SettingsError(f"{variable}={text!r} is not a {kind.__name__}")


def plain_labels(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as the other sources have them: labels as one text."""
    labels = settings.get("labels")
    return (
        settings
        if labels is None or isinstance(labels, str)
        else settings | {"labels": ",".join(checked_labels(labels, of_worker=True))}
    )


def checked_queues(queues: Mapping[str, Any]) -> dict[str, int]:
    """Return queue → slots as they were given.

    Raises:
        SettingsError: slots are no whole number of at least 0.
    """
    for name, slots in queues.items():
        if not isinstance(slots, int) or slots < 0:
            raise SettingsError(f"queue {name!r} has {slots!r} slots; it must be a whole number of at least 0")
    return dict(queues)

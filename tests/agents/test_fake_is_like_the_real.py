"""The fake agents against the real programs: the same events in the same order, and no field that the real ones do not have.

The model of the real one is a fake provider on loopback, told to do what the script of the fake one says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.adapters.base import Adapter
from sennit.execute.adapters.claude import Claude
from sennit.execute.adapters.codex import Codex
from sennit.testing.fakeagent import FakeAgent, append, is_limited, say
from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import Said, ToolCall
from tests.agents.fakes import FakeDesk, Seen
from tests.agents.real_programs import ALONE, program

COMMAND = "printf '%s\\n' 'one' >> 'notes.txt'"
KEYS = {"ANTHROPIC_API_KEY": "any", "OPENAI_API_KEY": "any", "CODEX_API_KEY": "any"}


class Script:
    """A model that uses one tool, then says that it is done."""

    def __init__(self, tool: str, argument: str) -> None:
        self._answers: list[Said] = [[ToolCall(tool, {argument: COMMAND})], "All done."]

    def __call__(self, request: dict[str, Any]) -> Said:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def fields(seen: Seen) -> dict[tuple[str, ...], set[str]]:
    """Return the fields of each kind of line, inner objects included, in the order in which the kinds were first seen."""
    found: dict[tuple[str, ...], set[str]] = {}
    for line in seen.lines:
        told = json.loads(line)
        item = told.get("item", {})
        if item.get("type") == "error":
            continue  # codex warns of a model that it does not know
        kind = tuple(filter(None, [told["type"], told.get("subtype"), item.get("type")]))
        found.setdefault(kind, set()).update(paths(told))
    return found


def paths(value: object, at: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields; what a tool is given is not looked into."""
    if isinstance(value, dict) and not at.endswith((".input", ".arguments", "modelUsage")):
        for name, inner in value.items():
            yield from paths(inner, f"{at}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from paths(value[0], f"{at}[]")
    else:
        yield at


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as serving:
        yield serving


def compared(
    folder: Path, real: Adapter, fake: Adapter, environ: dict[str, str], prompts: Sequence[str] = ("do it",)
) -> list[Seen]:
    """Return what the real and the fake one wrote at each prompt; all went on in one session."""
    found = []
    for name, adapter in (("real", real), ("fake", fake)):
        desk = FakeDesk(folder / name, adapter, {**ALONE, **KEYS, **environ})
        found += [desk.run(prompt, resume=number > 0) for number, prompt in enumerate(prompts)]
    return found


def assert_alike(real: Seen, fake: Seen) -> None:
    assert (fake.end.outcome, fake.end.status, fake.exit) == (real.end.outcome, real.end.status, real.exit)
    ours, theirs = fields(fake), fields(real)
    assert list(ours) == list(theirs)
    assert {kind: names - theirs[kind] for kind, names in ours.items() if names - theirs[kind]} == {}


def test_claude_uses_a_tool_and_ends(tmp_path: Path) -> None:
    path = program("claude", "SENNIT_TEST_CLAUDE")
    with FakeProvider(answer=Script("Bash", "command")) as provider:
        agent = FakeAgent(tmp_path / "bin").does(append("notes.txt", "one"), say("All done."))
        options: dict[str, Any] = {"config_folder": str(tmp_path / "config"), "tools_allowed": ("Bash",)}

        real, fake = compared(
            tmp_path,
            Claude(program=path, **options),
            Claude(program=agent.program, **options),
            {"ANTHROPIC_BASE_URL": provider.url},
        )

    assert_alike(real, fake)
    assert fake.end.text == real.end.text
    assert [event.kind for event in fake.events] == [event.kind for event in real.events]


def test_claude_meets_a_limit(tmp_path: Path, provider: FakeProvider) -> None:
    path = program("claude", "SENNIT_TEST_CLAUDE")
    provider.inject("status_429", 10)
    agent = FakeAgent(tmp_path / "bin").does(is_limited(429, "slow down"))
    config = str(tmp_path / "config")

    real, fake = compared(
        tmp_path,
        Claude(program=path, config_folder=config),
        Claude(program=agent.program, config_folder=config),
        {"ANTHROPIC_BASE_URL": provider.url},
    )

    assert (fake.end.outcome, fake.end.status, fake.exit) == (real.end.outcome, real.end.status, real.exit)
    assert [event.kind for event in fake.events] == [event.kind for event in real.events]


def test_codex_uses_a_tool_and_ends(tmp_path: Path) -> None:
    path = program("codex", "SENNIT_TEST_CODEX")
    with FakeProvider(answer=Script("exec_command", "cmd")) as provider:
        agent = FakeAgent(tmp_path / "bin", "codex").does(append("notes.txt", "one"), say("All done."))
        agent.otherwise(say("All done."))
        options: dict[str, Any] = {"base_url": provider.url + "/v1", "sandbox": "danger-full-access", "model": "any"}
        homes = [tmp_path / "home1", tmp_path / "home2"]
        for home in homes:
            home.mkdir()

        real, real_again, fake, fake_again = compared(
            tmp_path,
            Codex(program=path, home=str(homes[0]), **options),
            Codex(program=agent.program, home=str(homes[1]), **options),
            {},
            ("do it", "more"),
        )

    assert_alike(real, fake)
    assert_alike(real_again, fake_again)
    assert fake_again.end.session_id == fake.end.session_id


def test_codex_meets_a_limit(tmp_path: Path, provider: FakeProvider) -> None:
    path = program("codex", "SENNIT_TEST_CODEX")
    provider.inject("status_429", 10)
    agent = FakeAgent(tmp_path / "bin", "codex").does(is_limited(429, "slow down"))
    options: dict[str, Any] = {"base_url": provider.url + "/v1", "home": str(tmp_path), "model": "any"}

    real, fake = compared(tmp_path, Codex(program=path, **options), Codex(program=agent.program, **options), {})

    assert_alike(real, fake)

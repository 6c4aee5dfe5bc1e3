"""examples/code_team.py: parts are built beside each other, reviewed, approved by a person, and merged; or left, when not."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from examples import code_team
from sennit import App
from tests.runtime.provider_facts import on_a_loop


def log(repository: Path) -> list[str]:
    done = subprocess.run(["git", "log", "--format=%s"], cwd=repository, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def files(repository: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in repository.glob("*.txt")}


@pytest.mark.parametrize("yes", [True, False], ids=["approved", "rejected"])
def test_what_the_team_has_built_is_merged_when_a_person_says_so(yes: bool, tmp_path: Path) -> None:  # noqa: FBT001
    repository = code_team.new_repository(tmp_path / "repository")

    @on_a_loop
    async def go() -> None:
        with closing(App(f"sqlite:///{tmp_path}/team.db")) as app:
            team = code_team.Rehearsal(app, repository, tmp_path)
            async with app:
                handle = team.task.submit("greet people")
                question = await anext(aiter(app.inbox().watch()))
                assert question.text == "Merge 2 of 2 parts?"
                await (question.approve() if yes else question.reject())
                told = await handle
        assert len(told) == 2
        assert all(("merged" if yes else "left in") in line for line in told)

    go()
    assert files(repository) == ({"hello.txt": "say hello\n", "bye.txt": "say goodbye\n"} if yes else {})
    assert ("hello.txt: say hello" in log(repository)) is yes


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(code_team.main(["greet people", "--yes"]))
    assert capsys.readouterr().out.count("merged") == 2


def test_a_plan_is_the_lines_that_begin_with_a_dash() -> None:
    assert code_team.parts_of("Here you are:\n- a.py: add\n-no\n- b.py: sub\n") == ["a.py: add", "b.py: sub"]

"""Agents' tasks on bad days: questions in rounds, quotas that are not used up, results that are too long, files of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sennit import App, RetryPolicy, TaskFailed
from sennit.agents import AgentResult, Claude, Command, Prompt
from sennit.model.agent import AgentEvent, RunEnd
from sennit.model.lifecycle import State
from sennit.runtime.agent_calls import is_refusal
from sennit.runtime.agent_fit import RESULT, STRUCTURED, fitting, short_input
from sennit.testing.fakeagent import (
    FakeAgent,
    append,
    dies,
    reaches_window,
    say,
    touch,
    usage,
    uses,
    wait_for,
)  # fmt: skip
from tests.agents.facts import until
from tests.runtime.provider_facts import on_a_loop, seen

AT_ONCE = RetryPolicy(retries=3, delay_s=0.0)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with closing(App(f"sqlite:///{tmp_path}/fleet.db")) as made:
        yield made


@pytest.fixture
def fake(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "fake")


def agent(app: App, fake: FakeAgent, *, approve: tuple[str, ...] = (), **how: Any) -> Any:
    declare: Any = app.agent
    how = {"retries": AT_ONCE, "cwd": fake.folder, "environ": fake.environ} | how
    return declare("worker", Claude(program=fake.program, approve=approve), **how)


def says(*lines: str) -> list[str]:
    """Return a program that says these lines of JSON."""
    return ["sh", "-c", 'printf "%s\\n" "$@"', "sh", *lines]


async def so_far(look: Callable[[], Awaitable[Any]], fact: Callable[[Any], object]) -> Any:
    """Look at the store until it is so; return what was seen."""
    async with asyncio.timeout(30):
        while True:
            found = await look()
            if fact(found):
                return found
            await asyncio.sleep(0)


# ---------------------------------------------------------------- questions


@on_a_loop
async def test_each_question_is_put_once_however_many_rounds_there_are(
    app: App, fake: FakeAgent, tmp_path: Path
) -> None:
    fake.does(
        append(tmp_path / "out", "one"), append(tmp_path / "out", "two"), append(tmp_path / "out", "three"), say("ok")
    )
    worker = agent(app, fake, approve=("Bash",))
    seen_ids = []
    async with app:
        handle = worker.submit("do it")
        for _ in range(3):
            (question,) = await so_far(app.inbox().list, lambda views: views)
            seen_ids.append(question.id)
            await app.inbox().approve(question.id)
        result = await handle
    assert len(set(seen_ids)) == 3
    assert (tmp_path / "out").read_text() == "one\ntwo\nthree\n"
    assert (result.text, result.runs, result.unknown) == ("ok", 4, ())


# ---------------------------------------------------------------- limits


def test_a_quota_that_is_not_used_up_is_no_refusal() -> None:
    assert not is_refusal(AgentEvent(kind="limit", text="five_hour allowed", resets_at_s=4e9))
    assert is_refusal(AgentEvent(kind="limit", text="five_hour rejected", status=429, is_error=True, resets_at_s=4e9))
    assert is_refusal(AgentEvent(kind="retry", status=529))
    assert not is_refusal(AgentEvent(kind="text", text="limit"))


@on_a_loop
async def test_a_quota_that_is_told_and_not_used_up_pauses_nobody(app: App) -> None:
    model = app.provider("anthropic", parallel=4)
    told = '{"type":"limit","text":"allowed","resets_at_s":4000000000}'
    worker = app.agent(
        "worker",
        Command(tuple(says(told, '{"type":"result","result":"fine"}')), needs_result=True),
        cwd="/",
        provider=model,
    )
    async with app:
        assert (await worker.submit("a")).text == "fine"
        view = await seen(model, lambda v: v.in_use == 0)
    assert view.reason != "pause"


@on_a_loop
async def test_a_limit_whose_end_has_passed_is_not_run_into_again_at_once(app: App, fake: FakeAgent) -> None:
    fake.does(reaches_window(resets_in_s=-3600), say("after it"))
    worker = agent(app, fake, retries=0)
    async with app:
        handle = worker.submit("do it")
        await until(lambda: len(fake.events("end")) == 1)
        await so_far(handle.view, lambda view: view.state is State.SCHEDULED)
        assert (await handle).text == "after it"


# ---------------------------------------------------------------- what is used is counted


@on_a_loop
async def test_what_an_interrupted_run_has_used_is_counted(app: App, fake: FakeAgent, tmp_path: Path) -> None:
    fake.does(
        usage(input_tokens=1000, output_tokens=10),
        uses("Grep", {"pattern": "x"}),
        touch(tmp_path / "here"),
        wait_for(tmp_path / "go"),
    )
    model = app.provider("anthropic", parallel=4)
    worker = agent(app, fake, provider=model)
    async with app:
        handle = worker.submit("do it")
        await until((tmp_path / "here").exists)
        await handle.cancel("no more")
        view = await seen(model, lambda v: v.input_tokens > 0)
    assert view.input_tokens > 0


# ---------------------------------------------------------------- what is too long


@on_a_loop
async def test_a_result_that_is_too_long_for_the_store_is_cut_and_whole_in_the_folder(tmp_path: Path) -> None:
    long = "line of the result\n" * 10_000
    fake = FakeAgent(tmp_path / "fake").does(say(long))
    app = App(f"sqlite:///{tmp_path}/fleet.db", payload_bytes_max=65_536)
    worker = agent(app, fake)
    async with app:
        result = await worker.submit("do it")
    app.close()
    assert result.text.startswith("line of the result\n")
    assert "cut by sennit" in result.text
    assert len(result.text) < 32_768
    assert (Path(result.folder) / RESULT).read_text() == long
    assert len(fake.runs()) == 1


@on_a_loop
async def test_data_that_is_too_long_for_the_store_is_told_and_kept_beside(tmp_path: Path) -> None:
    app = App(f"sqlite:///{tmp_path}/fleet.db", payload_bytes_max=65_536)
    result_line = '{"type":"result","result":[' + ",".join(["12345"] * 20_000) + "]}"
    (tmp_path / "said").write_text(result_line + "\n")
    worker = app.agent("worker", Command(("cat", str(tmp_path / "said")), needs_result=True), cwd="/")
    async with app:
        result = await worker.submit("do it")
    app.close()
    assert result.structured is None
    assert "the structured result has 120,001 bytes" in result.text
    assert (Path(result.folder) / STRUCTURED).stat().st_size == 120_001


# ---------------------------------------------------------------- hostile output


HOSTILE = {
    "a call id that is no word": {"call_id": "a|b\0" + "x" * 50_000, "tool": "T", "input": {"a": "\0"}},
    "a deep input": {"call_id": "a", "tool": "T", "input": "DEEP"},
    "a number without end": {"call_id": "a", "tool": "T", "input": "NUMBER"},
    "a name without end": {"call_id": "a", "tool": "\0" * 100_000, "input": None},
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_a_program_says_of_its_tools_does_not_end_its_task(
    said: dict[str, Any], app: App, tmp_path: Path
) -> None:
    line = json.dumps({"type": "tool_begin", **said})
    line = line.replace('"DEEP"', "[" * 400 + "]" * 400).replace('"NUMBER"', "9" * 4000)
    lines = [
        line,
        json.dumps({"type": "tool_end", "call_id": said["call_id"]}),
        '{"a":"\\ud800"}',
        "\udcff\0[",
        '{"type":"result","result":"fine"}',
    ]
    (tmp_path / "said").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")

    @on_a_loop
    async def go() -> None:
        worker = app.agent("worker", Command(("cat", str(tmp_path / "said")), needs_result=True), cwd="/", retries=0)
        async with app:
            result = await worker.submit("do it")
        assert (result.text, result.tools) == ("fine", 1)
        (view,) = await app.store.agents()
        assert view.status == "done"

    go()


def test_what_is_nested_too_deeply_is_not_kept() -> None:
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    assert short_input(deep, 1 << 20) == "… nested too deeply to be shown"
    kept = fitting(RunEnd(outcome="success", text="fine", structured=deep), 1 << 20, None)
    assert (kept.structured, kept.text) == (None, "fine\n… its data is nested too deeply to be kept")
    assert short_input({"a": [{"b": 1}]}, 1 << 20) == {"a": [{"b": 1}]}


# ---------------------------------------------------------------- sessions and prompts


@on_a_loop
async def test_two_tasks_on_one_session_work_one_after_the_other(
    app: App, fake: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sennit.runtime.agent_sessions.PATIENCE_S", 0.05)
    monkeypatch.setattr("sennit.runtime.agent_body.SESSION_AGAIN_S", 0.05)
    fake.does(say("hello")).does(touch(tmp_path / "here"), wait_for(tmp_path / "go"), say("second")).does(say("third"))
    worker = agent(app, fake, retries=0)
    async with app:
        first = await worker.submit("one")
        second = worker.submit("two", resume=first)
        await until((tmp_path / "here").exists)
        third = worker.submit("three", resume=first)
        await so_far(third.view, lambda view: "in use" in (view.reason or ""))
        (tmp_path / "go").touch()
        assert [(await second).text, (await third).text] == ["second", "third"]
    assert len(fake.sessions()) == 1
    assert fake.prompts() == ["one", "two", "three"]


@on_a_loop
async def test_one_that_is_cut_off_before_it_did_anything_is_told_its_task_again(app: App, fake: FakeAgent) -> None:
    fake.does(say("hello")).does(dies(), say("done"))
    worker = agent(app, fake)
    async with app:
        first = await worker.submit("one")
        second = await worker.submit("the other task", resume=first)
    assert second.text == "done"
    told = str(fake.prompts()[-1])
    assert "Go on with the task" in told
    assert told.endswith("in case it did not reach you:\n\nthe other task")


# ---------------------------------------------------------------- folders


@on_a_loop
async def test_what_an_earlier_store_with_the_same_ids_has_left_is_not_read_as_a_result(tmp_path: Path) -> None:
    texts = []
    for said in ("first", "second"):
        app = App("memory://", agent_folder=str(tmp_path / "runs"))
        worker = app.agent("worker", ["echo", said], cwd="/")
        async with app:
            result = await worker.submit("do it")
        texts.append((result.task_id, result.text.strip()))
        app.close()
    assert texts[0][0] == texts[1][0]
    assert [text for _, text in texts] == ["first", "second"]


@on_a_loop
async def test_a_folder_that_is_a_file_is_told(app: App, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    worker = app.agent("worker", ["true"], cwd=tmp_path / "file", retries=0)
    async with app:
        with pytest.raises(TaskFailed, match="cannot work in"):
            await worker.submit("do it")


# ---------------------------------------------------------------- the app


def test_an_app_is_entered_twice_and_from_code_without_a_loop(app: App, fake: FakeAgent) -> None:
    worker = agent(app, fake)
    for _ in range(2):
        with app:
            result = worker.submit("do it").result()
            assert isinstance(result, AgentResult)
    assert app.agent_statistics().done == 2


def test_an_agent_runs_in_a_harness(app: App, fake: FakeAgent) -> None:
    fake.does(dies(), say("fine"))
    worker = agent(app, fake)
    with app.testing() as harness:
        handle = worker.submit("do it")
        harness.drain()
        assert handle.result().text == "fine"


@on_a_loop
async def test_prompts_are_unicode_and_longer_than_an_argument_may_be(app: App, fake: FakeAgent) -> None:
    long = "a prompt with \N{DROMEDARY CAMEL} and \0 in it " * 10_000
    worker = agent(app, fake, prompt=lambda: Prompt(text=long))
    async with app:
        assert (await worker.submit()).text == "done"
        said = app.agent("said", ["echo", "{prompt}"], cwd="/", retries=0)
        with pytest.raises(TaskFailed):
            await said.submit(long)
    assert fake.prompts() == [long]

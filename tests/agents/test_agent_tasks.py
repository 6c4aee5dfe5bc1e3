"""Agents as tasks: what a run gives, how it fails, and what the next one is told. Real processes, fake agents."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sennit import App, RetryPolicy, TaskCancelled, TaskFailed
from sennit.agents import AgentResult, AgentView, Ceilings, Claude, Codex, Command, Gemini, Prompt
from sennit.errors import SettingsError
from sennit.model.lifecycle import State
from sennit.testing.fakeagent import (
    FakeAgent,
    append,
    dies,
    ends,
    exits,
    fails,
    floods,
    hangs,
    ignores_term,
    leaks,
    leaves_daemon,
    prints_nothing,
    reaches_window,
    refuses,
    say,
    shell,
    touch,
    usage,
    uses,
    wait_for,
)  # fmt: skip
from tests.agents.facts import alive, until
from tests.agents.fakes import SHAPES
from tests.runtime.provider_facts import on_a_loop, seen

AT_ONCE = RetryPolicy(retries=3, delay_s=0.0)
ADAPTERS: dict[str, Callable[..., Any]] = {"claude": Claude, "codex": Codex, "gemini": Gemini}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with closing(App(f"sqlite:///{tmp_path}/fleet.db")) as made:
        yield made


@pytest.fixture
def fake(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "fake")


def all_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def agent(app: App, fake: FakeAgent, **how: Any) -> Any:
    how = {"retries": AT_ONCE, "cwd": fake.folder, "environ": fake.environ} | how
    declare: Any = app.agent
    return declare("worker", ADAPTERS[fake.shape](program=fake.program), **how)


async def view_of(app: App, fact: Callable[[AgentView], object]) -> AgentView:
    """Wait until what the store says of the only agent is so."""
    async with asyncio.timeout(30):
        while True:
            views = await app.store.agents()
            if views and fact(views[0]):
                return views[0]
            await asyncio.sleep(0)


# ---------------------------------------------------------------- a run that goes well


@pytest.mark.parametrize("shape", SHAPES)
def test_an_agent_gives_its_last_word_and_what_it_took(shape: Any, app: App, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fake = FakeAgent(tmp_path / "fake", shape).does(
        append(tmp_path / "out" / "file", "one"), usage(input_tokens=100, output_tokens=7), say("done it")
    )

    @on_a_loop
    async def go() -> None:
        worker = agent(app, fake)
        async with app:
            result = await worker.submit("do it")
        (view,) = await app.store.agents()
        assert (result.text, result.agent, result.runs, result.tools) == ("done it", "worker", 1, 1)
        assert (result.usage.input_tokens, result.usage.output_tokens) == (100, 7)
        assert result.session_id == fake.sessions()[0]
        assert (view.status, view.task_id, view.session_id, view.adapter) == (
            "done",
            result.task_id,
            result.session_id,
            shape,
        )
        assert all_in(tmp_path / "out") == b"one\n"
        assert b"done it" in all_in(Path(result.folder))
        assert fake.prompts() == ["do it"]
        assert app.agent_statistics().done == 1

    go()


@on_a_loop
async def test_any_command_is_an_agent(app: App) -> None:
    echo = app.agent("echo", ["sh", "-c", 'echo first; echo "$1"', "sh", "{prompt}"], cwd="/")
    async with app:
        result = await echo.submit("a text; with $(words)")
    assert result.text.splitlines()[-1] == "a text; with $(words)"


@on_a_loop
async def test_results_of_others_stand_below_the_prompt_and_are_waited_for(app: App, fake: FakeAgent) -> None:
    fake.does(say("use a queue")).does(say("built"))
    worker = agent(app, fake)
    async with app:
        plan = worker.submit("plan it")
        built = worker.submit("build it", context=[plan.as_argument(), "be brief"])
        assert (await built).text in {"built", "use a queue"}  # a session each: both are at their first turn
    assert fake.prompts()[0] == "plan it"
    assert fake.prompts()[1] == "build it\n\n--- 1: worker ---\nuse a queue\n\n--- 2 ---\nbe brief"


@on_a_loop
async def test_a_session_goes_on_in_another_task(app: App, fake: FakeAgent) -> None:
    fake.does(say("hello")).does(say("and again"))
    worker = agent(app, fake)
    async with app:
        first = await worker.submit("greet")
        second = await worker.submit("once more", resume=first)
    assert (second.text, second.session_id) == ("and again", first.session_id)
    assert len(fake.sessions()) == 1


@on_a_loop
async def test_a_prompt_function_gives_submit_its_parameters(app: App, fake: FakeAgent) -> None:
    def fix(issue: int, title: str = "none") -> Prompt:
        return Prompt(text=f"fix #{issue}: {title}")

    worker = agent(app, fake, prompt=fix)
    async with app:
        assert isinstance(await worker.submit(7, title="typo"), AgentResult)
    assert fake.prompts() == ["fix #7: typo"]


# ---------------------------------------------------------------- one that does not


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([fails("no way"), exits(0)], "error"),
        ([exits(0)], "no_result"),
        ([ends("fine"), exits(3)], "error"),
        ([refuses(1, "Invalid API key · Please run /login")], ""),
        ([prints_nothing(), exits(0)], "no_result"),
    ],
    ids=["exit 0 with an error result", "no result", "exit 3 after a result", "no credential", "prints nothing"],
)
def test_what_is_no_success_is_none(steps: list[Any], outcome: str, app: App, fake: FakeAgent) -> None:
    fake.otherwise(*steps)

    @on_a_loop
    async def go() -> None:
        worker = agent(app, fake, retries=0)
        async with app:
            with pytest.raises(TaskFailed) as failed:
                await worker.submit("do it")
        (view,) = await app.store.agents()
        assert view.status == "failed"
        assert view.error
        assert "agent worker failed" in str(failed.value)

    go()


@on_a_loop
async def test_a_missing_program_is_told_and_never_a_success(app: App, tmp_path: Path) -> None:
    worker = app.agent("worker", Claude(program=str(tmp_path / "nowhere" / "claude")), retries=0, cwd=tmp_path)
    async with app:
        with pytest.raises(TaskFailed, match="nowhere/claude"):
            await worker.submit("do it")


@pytest.mark.parametrize(
    ("ceilings", "steps", "cause"),
    [
        (Ceilings(idle_s=0.3, term_s=0.2), [hangs()], "said nothing for idle_s"),
        (Ceilings(wall_s=0.3, term_s=0.2), [ignores_term(), hangs()], "ran longer than wall_s"),
        (Ceilings(output_bytes_max=200_000), [floods(1_000_000), hangs()], "wrote more than output_bytes_max"),
    ],
    ids=["idle", "wall", "output"],
)
def test_a_ceiling_ends_the_whole_tree(
    ceilings: Ceilings, steps: list[Any], cause: str, app: App, fake: FakeAgent
) -> None:
    fake.does(leaves_daemon(), *steps)

    @on_a_loop
    async def go() -> None:
        worker = agent(app, fake, retries=0, ceilings=ceilings)
        async with app:
            with pytest.raises(TaskFailed, match=cause):
                await worker.submit("do it")
            assert app.agent_statistics().running == {}
        assert not alive(*fake.left_behind())

    go()


@on_a_loop
async def test_one_that_hangs_after_its_result_has_succeeded(app: App, fake: FakeAgent) -> None:
    fake.does(ends("all is well"), hangs())
    worker = agent(app, fake, ceilings=Ceilings(linger_s=0.1, term_s=0.2))
    async with app:
        assert (await worker.submit("do it")).text == "all is well"


@on_a_loop
async def test_a_cancelled_task_ends_its_agent(app: App, fake: FakeAgent, tmp_path: Path) -> None:
    fake.does(leaves_daemon(), touch(tmp_path / "here"), hangs())
    worker = agent(app, fake)
    async with app:
        handle = worker.submit("do it")
        await until((tmp_path / "here").exists)
        await handle.cancel("not wanted")
        with pytest.raises(TaskCancelled):
            await handle
        await until(lambda: not app.agent_statistics().running)
        (run,) = fake.runs()
        assert not alive(run.pid, *fake.left_behind())
    assert (await app.store.agents())[0].status == "failed"


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("shape", SHAPES)
def test_one_that_dies_goes_on_with_its_session_and_repeats_nothing(shape: Any, app: App, tmp_path: Path) -> None:
    fake = FakeAgent(tmp_path / "fake", shape).does(
        append(tmp_path / "out", "one"), dies(), append(tmp_path / "out", "two"), say("both")
    )

    @on_a_loop
    async def go() -> None:
        worker = agent(app, fake)
        async with app:
            result = await worker.submit("do it")
        assert (result.text, result.runs) == ("both", 2)
        assert (tmp_path / "out").read_text() == "one\ntwo\n"
        assert len(fake.sessions()) == 1
        assert "Go on with the task" in str(fake.prompts()[1])

    go()


@on_a_loop
async def test_a_tool_that_was_begun_and_never_answered_is_told_and_shown(
    app: App, fake: FakeAgent, tmp_path: Path
) -> None:
    fake.does(shell(f"touch {tmp_path}/begun; kill -9 $PPID"), say("I looked"))
    worker = agent(app, fake)
    async with app:
        result = await worker.submit("do it")
    assert [use.tool for use in result.unknown] == ["Bash"]
    assert "nobody knows whether they took effect" in str(fake.prompts()[1])
    assert "kill -9" in str(fake.prompts()[1])


@pytest.mark.parametrize(
    ("on_retry", "step", "runs"),
    [("resume", dies(), 3), ("restart", fails("once"), 2)],  # cut off, unknown to the program, anew; failed, anew
    ids=["lost", "restart"],
)
def test_a_session_that_is_begun_anew_is_told_to_look_around(
    on_retry: str, step: Any, runs: int, fake: FakeAgent, tmp_path: Path
) -> None:
    fake.does(touch(tmp_path / "here"), wait_for(tmp_path / "go"), step)

    @on_a_loop
    async def go() -> None:
        app = App(f"sqlite:///{tmp_path}/fleet.db")
        worker = agent(app, fake, on_retry=on_retry)
        async with app:
            handle = worker.submit("do it")
            await until((tmp_path / "here").exists)
            (before,) = fake.sessions()
            fake.forgets_all()
            fake.otherwise(say("found it"))
            (tmp_path / "go").touch()
            result = await handle
        assert (result.text, result.runs) == ("found it", runs)
        assert result.session_id not in {"", before}
        assert "look at the state of the working folder first" in str(fake.prompts()[-1])
        assert str(fake.prompts()[-1]).endswith("do it")

    go()


# ---------------------------------------------------------------- limits


@on_a_loop
async def test_a_quota_pauses_the_provider_and_costs_no_attempt(app: App, fake: FakeAgent) -> None:
    fake.does(reaches_window(resets_in_s=2), say("after it"))
    model = app.provider("anthropic", parallel=4)
    worker = agent(app, fake, provider=model, retries=0)
    async with app:
        handle = worker.submit("do it")
        paused = await seen(model, lambda v: v.reason == "pause")
        result = await handle
        row = await handle.view()
    assert paused.pause == "window"
    assert (result.text, len(fake.sessions())) == ("after it", 1)
    assert (row.failures, row.crashes) == (0, 0)


@on_a_loop
async def test_tokens_and_cost_are_counted_for_the_provider(app: App, fake: FakeAgent) -> None:
    fake.does(usage(input_tokens=1000, output_tokens=10, cost_usd=0.25), say("ok"))
    model = app.provider("anthropic", parallel=4)
    worker = agent(app, fake, provider=model)
    async with app:
        await worker.submit("do it")
        view = await seen(model, lambda v: v.in_use == 0)
    assert (view.input_tokens, view.output_tokens, view.cost_nano) == (1000, 10, 250_000_000)


@on_a_loop
async def test_a_limit_without_a_provider_is_slept_through(app: App, fake: FakeAgent) -> None:
    fake.does(reaches_window(resets_in_s=1), say("after it"))
    worker = agent(app, fake, retries=0)
    async with app:
        handle = worker.submit("do it")
        assert (await handle).text == "after it"


@on_a_loop
async def test_no_more_agents_run_than_the_setting_says(app: App, fake: FakeAgent, tmp_path: Path) -> None:
    app.use(agents_max=2)
    fake.otherwise(wait_for(tmp_path / "go"), say("ok"))
    worker = agent(app, fake)
    async with app:
        handles = worker.map(["a", "b", "c", "d"])
        await until(lambda: len(fake.runs()) >= 2)
        statistics = app.agent_statistics()
        (tmp_path / "go").touch()
        await handles
    assert (sum(statistics.running.values()), statistics.agents_max) == (2, 2)


# ---------------------------------------------------------------- what others see


@on_a_loop
async def test_what_it_does_is_seen_while_it_does_it(app: App, fake: FakeAgent, tmp_path: Path) -> None:
    fake.does(uses("Grep", {"pattern": "TODO"}), wait_for(tmp_path / "go"), say("ok"))
    worker = agent(app, fake)
    async with app:
        handle = worker.submit("look")
        view = await view_of(app, lambda v: v.tools == 1)
        os.kill(view.pid, signal.SIGCONT)  # it is its process
        (tmp_path / "go").touch()
        await handle
    assert (view.status, view.agent, view.doing) == ("working", "worker", "Grep TODO")


@on_a_loop
async def test_secrets_are_in_no_file(app: App, fake: FakeAgent) -> None:
    fake.does(leaks("ANTHROPIC_API_KEY"), say("ok"))
    secret = "sk-ant-" + "a1b2c3d4" * 4
    worker = agent(app, fake, environ={**fake.environ, "ANTHROPIC_API_KEY": secret})
    async with app:
        result = await worker.submit("leak it")
    written = all_in(Path(result.folder))
    assert b"***" in written
    assert secret.encode() not in written


# ---------------------------------------------------------------- wrong use


def test_wrong_options_are_refused_where_they_are_made(app: App) -> None:
    with pytest.raises(SettingsError, match="no worktree"):
        app.agent("a", Claude(), on_success="merge")
    with pytest.raises(SettingsError, match="isolate='docker'"):
        app.agent("b", Claude(), isolate="docker")  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="at_once=0"):
        app.agent("c", Claude(), at_once=0)
    with pytest.raises(SettingsError, match="for an adapter"):
        app.agent("d", "claude -p")
    with pytest.raises(SettingsError, match="several texts"):
        Claude(approve="Bash")  # type: ignore[arg-type]  # each letter a pattern, and Bash would run unasked
    with pytest.raises(SettingsError, match="several texts"):
        app.agent("d", Claude(), secrets="sesame")
    with pytest.raises(SettingsError, match="for an adapter"):
        app.agent("d", Claude)  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="cannot be called"):
        app.agent("", Claude())
    with pytest.raises(SettingsError, match="approve_s=-1"):
        app.agent("d", Claude(), approve_s=-1)
    app.agent("e", Claude())
    with pytest.raises(SettingsError, match="two agents"):
        app.agent("e", Codex())
    assert app.served_queues()["agents"] == app.settings.agents_max


@on_a_loop
async def test_a_folder_that_is_not_there_is_told(app: App, tmp_path: Path) -> None:
    worker = app.agent("worker", Command(("true",)), cwd=tmp_path / "nowhere", retries=0)
    async with app:
        handle = worker.submit("do it")
        with pytest.raises(TaskFailed, match="cannot work in"):
            await handle
    view = await app.handle(handle.id).view()
    assert view.state is State.FAILED

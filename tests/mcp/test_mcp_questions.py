"""Questions of agents: asked without ending the claim, answered in the inbox, awaited across restarts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sennit.integrations.mcp.clients import Bounds
from sennit.integrations.mcp.door import Options
from sennit.model.lifecycle import State
from sennit.store.protocol import Store
from sennit.threads.inbox import Inbox
from tests.mcp.conftest import OpenDoor, Serve
from tests.mcp.test_mcp_claims import refusal, said, until_waiting
from tests.mcp.wire import call


def test_an_answer_from_the_inbox_ends_the_wait_and_the_claim_goes_on(serve: Serve, store: Store) -> None:
    server, other_server = serve(), serve()
    inbox = Inbox(lambda: store)

    async def main() -> None:
        async with server.client() as client, other_server.client() as other:
            await call(client, "task_create", title="one")
            token = (await call(client, "task_claim"))["claim"]
            asked = await call(
                client, "ask_human", claim=token, question="Which one?", choices=["a", "b"], context={"n": 1}
            )
            assert (asked["state"], asked["claim"]) == ("open", token)
            (question,) = await inbox.list()
            assert (question.id, question.text, question.context) == (asked["ask"], "Which one?", {"n": 1})

            waits = [
                asyncio.create_task(call(client, "await_answer", ask=asked["ask"], wait_s=50, claim=token)),
                asyncio.create_task(call(other, "await_answer", ask=asked["ask"], wait_s=50)),
            ]
            await call(other, "task_ready")
            await inbox.respond(asked["ask"], "b", by="ada")
            for answer in await asyncio.gather(*waits):
                assert (answer["state"], answer["answer"], answer["by"]) == ("answered", "b", "ada")
            await call(client, "task_complete", claim=token, result="b")

    asyncio.run(main())


def test_a_question_outlives_the_server_and_is_asked_once(serve: Serve, store: Store) -> None:
    killed, fresh = serve(), None
    inbox = Inbox(lambda: store)

    async def ask_and_die() -> int:
        async with killed.client("legacy") as client:
            await call(client, "task_create", title="one")
            token = (await call(client, "task_claim"))["claim"]
            asked = await call(client, "ask_human", claim=token, question="Go?", yes_no=True)
            killed.process.kill()
        ask: int = asked["ask"]
        return ask

    async def go_on(ask: int) -> None:
        assert fresh is not None
        async with fresh.client() as client:
            claim = await call(client, "task_claim", wait_s=50)
            again = await call(client, "ask_human", claim=claim["claim"], question="Go?", yes_no=True)
            assert again["ask"] == ask, "the same question of the same task"
            answer = await call(client, "await_answer", ask=ask, wait_s=50)
            assert (answer["state"], answer["answer"]) == ("denied", False)
            assert answer["reason"] == "not on a Friday"

    ask = asyncio.run(ask_and_die())
    inbox.reject(ask, reason="not on a Friday").result()
    fresh = serve()
    asyncio.run(go_on(ask))


def test_a_question_of_no_task_is_a_task_that_ends_with_its_answer(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            asked = await said(
                door, client, "ask_human", question="How many?", schema={"type": "integer", "minimum": 1}
            )
            view = await door.store.ask(asked["ask"])
            waiting = asyncio.create_task(said(door, client, "await_answer", ask=asked["ask"], wait_s=50))
            await Inbox(lambda: door.store).respond(asked["ask"], 3)
            assert (await waiting)["answer"] == 3
            outcome = await door.store.watch(view.task_id)
            assert outcome.state == State.SUCCEEDED
            assert (await said(door, client, "await_answer", ask=asked["ask"], wait_s=0))["answer"] == 3

    asyncio.run(main())


@pytest.mark.parametrize(("more", "state", "answer"), [({}, "expired", None), ({"default": "blue"}, "expired", "blue")])
def test_a_question_that_nobody_answers_expires(
    open_door: OpenDoor, more: dict[str, Any], state: str, answer: str | None
) -> None:
    """The server fires the deadline itself: there is no other worker."""

    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            asked = await said(door, client, "ask_human", question="Colour?", expires_s=0.05, **more)
            got = await said(door, client, "await_answer", ask=asked["ask"], wait_s=50)
            assert (got["state"], got["answer"]) == (state, answer)

    asyncio.run(main())


def test_a_wait_that_is_over_says_open_and_many_waits_are_one_watch_of_the_store(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door(Options(bounds=Bounds(waits_max=2))) as door:
            client = door.client("one")
            asked = await said(door, client, "ask_human", question="Go?")
            for _ in range(3):
                got = await said(door, client, "await_answer", ask=asked["ask"], wait_s=0.01)
                assert (got["state"], got.get("answer")) == ("open", None)
            waits = [
                asyncio.create_task(door.call(client, "await_answer", {"ask": asked["ask"], "wait_s": 50}))
                for _ in "ab"
            ]
            while client.waits < 2:
                await door.store.counts()
            error = await refusal(door, client, "await_answer", ask=asked["ask"], wait_s=50)
            assert "calls wait already" in error["what"]
            assert (await refusal(door, client, "task_claim"))["what"] == error["what"], "they share the bound"
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
            await until_waiting(door, 0)
            assert client.waits == 0

    asyncio.run(main())

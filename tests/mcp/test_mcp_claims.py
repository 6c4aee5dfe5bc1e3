"""Claims through a door in this process, over a real database: who gets what, for how long, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sennit.integrations.mcp.clients import Bounds, Client
from sennit.integrations.mcp.desk import Desk
from sennit.integrations.mcp.door import Answer, Door, Options
from sennit.model.lifecycle import State
from sennit.store.protocol import Store
from tests.mcp.conftest import OpenDoor
from tests.mcp.wire import PATIENCE_S

SHORT = Options(claim_lease_s=1.0)


async def said(door: Door, client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return what a tool answers, which is no error."""
    async with asyncio.timeout(PATIENCE_S):
        answer = await door.call(client, tool, arguments)
    assert not answer.is_error, answer.text
    return answer.data


async def refusal(door: Door, client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return why a tool refuses."""
    answer: Answer = await door.call(client, tool, arguments)
    assert answer.is_error, answer.data
    error: dict[str, Any] = answer.data["error"]
    assert error["what"]
    assert error["fix"]
    return error


def with_arguments(**tools: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return tools with what each is called with, beside the claim."""
    return tools


async def until_waiting(door: Door, n: int) -> None:
    """Wait until so many calls wait; each look takes as long as a read of the store."""
    while door.desk.statistics().waiting != n:
        await door.store.counts()


def test_many_clients_never_get_the_same_task(open_door: OpenDoor, store: Store) -> None:
    async def main() -> None:
        async with open_door() as one, open_door() as two:
            clients = [(door, door.client(str(n))) for n in range(4) for door in (one, two)]
            claims = [asyncio.create_task(said(door, client, "task_claim", wait_s=50)) for door, client in clients * 3]
            for n in range(24):
                await said(one, one.crowd, "task_create", title=str(n))
            got = [claim["task"] for claim in await asyncio.gather(*claims)]
            assert len(set(got)) == 24

    asyncio.run(main())
    assert store.verify().result() == []
    assert {task.state for task in store.tasks().result()} == {State.READY}, "closing gave all of them back"


def test_a_waiting_claim_is_one_order_and_is_served_when_a_task_becomes_ready(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            waiting = asyncio.create_task(said(door, client, "task_claim", wait_s=50))
            await until_waiting(door, 1)
            assert door.desk.statistics().ordered["external"] == 1
            first = (await said(door, door.crowd, "task_create", title="first"))["task"]
            second = (await said(door, door.crowd, "task_create", title="second"))["task"]
            claim = await waiting
            assert claim["task"] == first
            assert door.desk.statistics().ordered.get("external", 0) == 0, "nobody waits, nothing is ordered"
            assert (await door.store.task(second)).state == State.READY

    asyncio.run(main())


def test_a_claim_that_finds_nothing_in_time_leaves_no_order_behind(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            claim = await said(door, client, "task_claim", wait_s=0.01)
            assert claim["claim"] is None
            while door.desk.statistics().ordered.get("external"):
                await door.store.ledger()  # the cancellation is a write before it
            task = (await said(door, client, "task_create", title="later"))["task"]
            assert (await door.store.task(task)).state == State.READY
            assert (await said(door, client, "task_claim", wait_s=0))["task"] == task

    asyncio.run(main())


def test_what_comes_when_the_call_was_cancelled_is_given_back(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            for _ in range(20):
                waiting = asyncio.create_task(door.call(client, "task_claim", {"wait_s": 50}))
                await until_waiting(door, 1)
                task = (await said(door, door.crowd, "task_create", title="one"))["task"]
                waiting.cancel()  # in the moment in which it is served
                await asyncio.wait({waiting})
                if waiting.cancelled():
                    assert not client.held
                    claim = await said(door, client, "task_claim", wait_s=50)
                else:
                    claim = waiting.result().data
                assert claim["task"] == task
                await said(door, client, "task_complete", claim=claim["claim"])
            assert (await door.store.verify()) == []

    asyncio.run(main())


def test_a_claim_of_several_queues_takes_one_task_only(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door(Options(queues=("a", "b"))) as door:
            client = door.client("one")
            waiting = asyncio.create_task(said(door, client, "task_claim", wait_s=50))
            await until_waiting(door, 1)
            for queue in ("b", "a"):
                await said(door, door.crowd, "task_create", title=queue, queue=queue)
            assert (await waiting)["queue"] == "b"
            assert len(client.held) == 1
            assert (await said(door, client, "task_claim", queue="a", wait_s=50))["queue"] == "a"
            assert "serves" not in (await refusal(door, client, "task_claim", queue="c"))["what"]

    asyncio.run(main())


def test_a_claim_of_which_nothing_is_heard_is_given_back_and_its_token_is_stale(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door(SHORT) as door:
            silent, other = door.client("silent"), door.client("other")
            task = (await said(door, silent, "task_create", title="one", thread_id="plan"))["task"]
            old = (await said(door, silent, "task_claim"))["claim"]
            await said(door, silent, "task_note", claim=old, text="half done")
            new = await said(door, other, "task_claim", wait_s=50)
            assert (new["task"], new["attempt"], new["failures"]) == (task, 2, 0)
            assert new["notes"] == ["half done"]
            for tool, more in with_arguments(
                task_heartbeat={},
                task_complete={},
                task_fail={"error": "no"},
                task_note={"text": "no"},
                task_create={"title": "no"},
                ask_human={"question": "no?"},
                lock_paths={"paths": ["no"]},
                release_paths={},
                state_update={"state": {}, "expected_version": 0},
            ).items():
                error = await refusal(door, silent, tool, claim=old, **more)
                assert (error["code"], error["task_id"], error["attempt"]) == ("S310", task, 1)
                assert "attempt 2" in error["why"]
            await said(door, other, "task_complete", claim=new["claim"])
            ledger = await door.store.ledger()
            assert (ledger.submitted, ledger.succeeded, ledger.crashed) == (1, 1, 0)

    asyncio.run(main())


def test_any_call_with_the_token_moves_the_lease_on(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            await said(door, client, "task_create", title="one", thread_id="plan")
            token = (await said(door, client, "task_claim"))["claim"]
            (held,) = client.held
            for tool, more in with_arguments(
                task_heartbeat={},
                task_note={"text": "on it"},
                state_get={},
                lock_paths={"paths": ["a"]},
                release_paths={},
                task_create={"title": "child"},
            ).items():
                before = held.lapse
                assert (await said(door, client, tool, claim=token, **more))["claim"] == token
                assert before is not None
                assert before.cancelled()
                assert held.lapse is not None
                assert not held.lapse.cancelled()

    asyncio.run(main())


def test_the_store_refuses_what_a_server_that_was_taken_for_dead_still_writes(
    open_door: OpenDoor, store: Store
) -> None:
    """The server believes that it holds the claim; the transaction of the write says otherwise."""

    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            task = (await said(door, client, "task_create", title="one", thread_id="plan"))["task"]
            token = (await said(door, client, "task_claim"))["claim"]
            (worker,) = [w for w in await store.workers() if "external" in w.queues]
            door.desk.on_stop = lambda claims: None  # type: ignore[method-assign]  # the news does not reach it
            assert await store.rescue(worker.id) == 1
            for tool, more in with_arguments(
                task_note={"text": "no"},
                task_create={"title": "no"},
                state_update={"state": {}, "expected_version": 0},
                ask_human={"question": "no?"},
                task_complete={},
            ).items():
                assert (await refusal(door, client, tool, claim=token, **more))["code"] == "S310", tool
            assert not client.held, "the last one told the server"
            assert (await store.task(task)).state == State.READY
            assert (await store.ledger()).submitted == 1

    asyncio.run(main())


def test_a_task_that_is_cancelled_takes_the_claim_away(open_door: OpenDoor, store: Store) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            task = (await said(door, client, "task_create", title="one"))["task"]
            token = (await said(door, client, "task_claim"))["claim"]
            await store.cancel([task], reason="not wanted")
            while client.held:  # told by the ear of its store
                await door.store.counts()
            error = await refusal(door, client, "task_complete", claim=token)
            assert f"task {task} is cancelled" in error["why"]

    asyncio.run(main())


def test_a_failed_task_is_tried_again_as_often_as_it_says_and_giving_back_counts_nothing(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            task = (await said(door, client, "task_create", title="one", retries=1))["task"]
            claim = await said(door, client, "task_claim")
            back = await said(door, client, "task_fail", claim=claim["claim"], error="not mine", give_back=True)
            assert back["outcome"] == "given back"
            claim = await said(door, client, "task_claim", wait_s=50)
            assert (claim["failures"], claim["notes"]) == (0, ["given back: not mine"])
            first = await said(door, client, "task_fail", claim=claim["claim"], error="no network")
            assert first["outcome"] == "will be tried again"
            claim = await said(door, client, "task_claim", wait_s=50)  # this server fires the timer itself
            assert claim["failures"] == 1
            second = await said(door, client, "task_fail", claim=claim["claim"], error="no network")
            assert second["outcome"] == "failed"
            view = await door.store.task(task)
            assert view.error is not None
            assert (view.state, view.error.kind, view.error.message) == (State.FAILED, "AgentFailed", "no network")

    asyncio.run(main())


def test_children_are_created_once_by_their_key_and_unknown_dependencies_are_refused(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door(SHORT) as door:
            client = door.client("one")
            await said(door, client, "task_create", title="parent")
            token = (await said(door, client, "task_claim"))["claim"]
            child = await said(door, client, "task_create", title="child", key="step-1", claim=token)
            again = await said(door, client, "task_create", title="another word for it", key="step-1", claim=token)
            assert again["task"] == child["task"]
            error = await refusal(door, client, "task_create", title="x", depends_on=[10**9])
            assert error["code"] == "S204"
            assert (await refusal(door, client, "task_create", title=""))["what"]

    asyncio.run(main())


def test_state_is_written_at_the_version_that_was_read_or_not_at_all(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            client = door.client("one")
            await said(door, client, "task_create", title="one", thread_id="plan/1")
            token = (await said(door, client, "task_claim"))["claim"]
            read = await said(door, client, "state_get", claim=token)
            assert (read["version"], read["state"], read["thread_id"]) == (0, {}, "plan/1")
            write = {"claim": token, "state": {"n": 1}, "expected_version": 0}
            assert (await said(door, client, "state_update", **write))["version"] == 1
            error = await refusal(door, client, "state_update", **write)
            assert (error["expected"], error["actual"]) == (0, 1)
            assert (await said(door, client, "state_get", thread_id="plan/1"))["state"] == {"n": 1}
            assert "no conversation" in (await refusal(door, client, "state_get"))["what"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("task_claim", {"wait_s": 56}),
        ("task_claim", {"wait_s": "soon"}),
        ("task_claim", {"wait_s": float("nan")}),
        ("task_heartbeat", {}),
        ("task_heartbeat", {"claim": "12"}),
        ("task_heartbeat", {"claim": "1.1.x" * 100}),
        ("task_complete", {"claim": None}),
        ("task_create", {"title": "x", "priority": "asap"}),
        ("task_create", {"title": "x", "depends_on": [0]}),
        ("task_create", {"title": "x", "thread_id": "a\0b"}),
        ("task_create", {"title": "x" * 201}),
        ("state_get", {"thread_id": ""}),
        ("await_answer", {"ask": 999}),
        ("ask_human", {"question": "?", "yes_no": True, "choices": ["a"]}),
        ("ask_human", {"question": "?", "schema": {"type": "nonsense"}}),
        ("ask_human", {"question": "?", "schema": {"$ref": "http://127.0.0.1:1/schema"}}),
        ("ask_human", {"question": "?", "expires_s": 5, "yes_no": True, "default": "maybe"}),
    ],
)
def test_wrong_arguments_are_told_and_change_nothing(open_door: OpenDoor, tool: str, arguments: dict[str, Any]) -> None:
    async def main() -> None:
        async with open_door() as door:
            await refusal(door, door.client("one"), tool, **arguments)
            assert (await door.store.ledger()).submitted == 0

    asyncio.run(main())


def test_one_client_cannot_take_what_is_for_all(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door(Options(bounds=Bounds(claims_max=3, waits_max=2, calls_max=8))) as door:
            greedy, modest = door.client("greedy"), door.client("modest")
            calls = [asyncio.create_task(door.call(greedy, "task_claim", {"wait_s": 50})) for _ in range(100)]
            await until_waiting(door, 2)
            done, waiting = await asyncio.wait(calls, timeout=0)
            assert (len(done), len(waiting)) == (98, 2)
            assert all("one client may have" in call.result().text for call in done)
            assert door.desk.statistics().ordered["external"] == 2
            for n in range(6):
                await said(door, door.crowd, "task_create", title=str(n))
            await asyncio.wait(calls)
            assert len(greedy.held) == 2
            assert (await said(door, greedy, "task_claim"))["claim"]
            assert "tasks are held" in (await refusal(door, greedy, "task_claim"))["what"]
            assert (await said(door, modest, "task_claim"))["claim"]
            door.leave(greedy)
            assert not greedy.held

    asyncio.run(main())


def test_payloads_have_the_size_that_the_settings_allow(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door(payload_bytes_max=2000) as door:
            client, large = door.client("one"), "x" * 3000
            assert (await refusal(door, client, "task_create", title="x", data=large))["size_bytes_max"] == 2000
            await said(door, client, "task_create", title="one", thread_id="plan")
            token = (await said(door, client, "task_claim"))["claim"]
            for tool, more in with_arguments(
                task_complete={"result": large},
                task_fail={"error": large},
                task_note={"text": large},
                ask_human={"question": large},
                state_update={"state": {"x": large}, "expected_version": 0},
            ).items():
                assert (await refusal(door, client, tool, claim=token, **more))["size_bytes_max"] == 2000
            await said(door, client, "task_complete", claim=token)

    asyncio.run(main())


def test_an_idle_desk_holds_no_claim_and_waits_for_nobody(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with open_door() as door:
            desk: Desk = door.desk
            stats = desk.statistics()
            assert (stats.held, stats.waiting, stats.lapsed, stats.surplus) == (0, 0, 0, 0)
            assert set(stats.ordered) == {"sennit.asks"}

    asyncio.run(main())

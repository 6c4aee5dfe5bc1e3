"""Reserved paths: a folder stands for what is in it, and a claim that ends lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sennit.integrations.mcp.clients import Client
from sennit.integrations.mcp.door import Door
from tests.mcp.conftest import OpenDoor
from tests.mcp.test_mcp_claims import refusal, said


@asynccontextmanager
async def two_claims(open_door: OpenDoor) -> AsyncIterator[tuple[Door, Client, list[str]]]:
    async with open_door() as door:
        client = door.client("one")
        for title in "ab":
            await said(door, client, "task_create", title=title)
        yield door, client, [(await said(door, client, "task_claim"))["claim"] for _ in "ab"]


def test_a_folder_and_what_is_in_it_are_not_reserved_by_two(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with two_claims(open_door) as (door, client, (a, b)):
            locked = await said(door, client, "lock_paths", claim=a, paths=["src/api", "./docs/", "src/api/x.py"])
            assert locked["locked"] == ["docs", "src/api"]
            for paths in (["src/api"], ["src/api/x.py"], ["src"], ["."], ["free", "docs/index.md"]):
                error = await refusal(door, client, "lock_paths", claim=b, paths=paths)
                assert error["code"] == "S331", paths
            assert (await said(door, client, "lock_paths", claim=b, paths=["src/ap", "free"]))["locked"] == [
                "free",
                "src/ap",
            ]
            more = await said(door, client, "lock_paths", claim=a, paths=["web"])
            assert more["locked"] == ["docs", "src/api", "web"]
            assert "no reservation" in (await refusal(door, client, "release_paths", claim=a, reservation="x"))["what"]
            released = await said(door, client, "release_paths", claim=a, reservation=locked["reservation"])
            assert released["released"] == ["docs", "src/api"]
            assert "src/api" in (await said(door, client, "lock_paths", claim=b, paths=["src/api"]))["locked"]
            assert (await refusal(door, client, "lock_paths", claim=b, paths=["web"]))["code"] == "S331"

    asyncio.run(main())


def test_a_claim_has_what_it_has_already_and_does_not_wait_for_itself(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with two_claims(open_door) as (door, client, (a, _)):
            for paths in (["src"], ["src"], ["src/api", "src"]):
                assert (await said(door, client, "lock_paths", claim=a, paths=paths))["locked"] == ["src"]
            await said(door, client, "lock_paths", claim=a, paths=["docs/a"])
            assert "already" in (await refusal(door, client, "lock_paths", claim=a, paths=["docs"]))["what"]
            assert sorted((await said(door, client, "release_paths", claim=a))["released"]) == ["docs/a", "src"]

    asyncio.run(main())


def test_the_next_one_waits_until_the_claim_ends_in_whatever_way(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with two_claims(open_door) as (door, client, (a, b)):
            await said(door, client, "lock_paths", claim=a, paths=["src"])
            waiting = asyncio.create_task(said(door, client, "lock_paths", claim=b, paths=["src/x.py"], wait_s=50))
            while client.waits < 1:
                await door.store.counts()
            assert not waiting.done()
            await said(door, client, "task_complete", claim=a)
            assert (await waiting)["locked"] == ["src/x.py"]
            door.leave(client)
            other = door.client("other")
            claim = (await said(door, other, "task_claim", wait_s=50))["claim"]
            assert (await said(door, other, "lock_paths", claim=claim, paths=["."], wait_s=50))["locked"] == ["."]

    asyncio.run(main())


def test_a_wait_that_is_over_has_reserved_nothing(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with two_claims(open_door) as (door, client, (a, b)):
            await said(door, client, "lock_paths", claim=a, paths=["z"])
            error = await refusal(door, client, "lock_paths", claim=b, paths=["a", "z"], wait_s=0.05)
            assert error["code"] == "S331"
            assert (await said(door, client, "lock_paths", claim=a, paths=["a"]))["locked"] == ["a", "z"]

    asyncio.run(main())


def test_paths_lead_nowhere_else(open_door: OpenDoor) -> None:
    async def main() -> None:
        async with two_claims(open_door) as (door, client, (a, _)):
            for path in ("..", "/etc/passwd", "src/../../x", "a\0b", "*.py", ".git/config"):
                assert (await refusal(door, client, "lock_paths", claim=a, paths=[path]))["code"] == "S100", path
            here = str(door.options.root.resolve() / "src")
            assert (await said(door, client, "lock_paths", claim=a, paths=[here]))["locked"] == ["src"]
            deep = "/".join(["folder"] * 60)
            assert deep in (await said(door, client, "lock_paths", claim=a, paths=[deep]))["locked"]

    asyncio.run(main())

"""`effect` in bodies: what is done once, what is done again, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sennit import App, RetryPolicy, TaskFailed, ask
from sennit.errors import OutcomeUnknown, UsageError
from sennit.submit.context import current
from sennit.submit.effects import NOT_DONE, EffectView, effect, effect_token, effects_of
from sennit.sync.pending import Pending

WAIT_S = 30.0
RETRIES = RetryPolicy(retries=3, delay_s=0.0)


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    with App(url, durability="normal") as app:
        yield app


class Receipt(msgspec.Struct):
    n: int
    token: str = ""


class Refused(Exception):
    pass


class World:
    """What took place, and what goes wrong before or after it."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.fails: list[BaseException] = []  # after it
        self.refuses: list[BaseException] = []  # before it

    def pay(self, n: int) -> Receipt:
        if self.refuses:
            raise self.refuses.pop()
        self.paid.append(n)
        if self.fails:
            raise self.fails.pop()
        return Receipt(n, effect_token())

    async def pay_later(self, n: int) -> Receipt:
        await asyncio.sleep(0)
        return self.pay(n)


@pytest.fixture
def world() -> World:
    return World()


def views() -> list[EffectView]:
    attempt = current()
    assert attempt is not None
    return effects_of(attempt.task.steps, running=attempt.task.attempt)


def answered(app: App, task_id: int, value: Any) -> str:
    """Answer the question of a task when it is there; return what it asked."""
    question = next(q for q in app.inbox().watch() if q.view.task_id == task_id and q.view.state == "open")
    app.inbox().respond(question.id, value).result()
    return question.text


# ---------------------------------------------------------------- done once


def test_an_attempt_that_fails_after_an_effect_does_not_repeat_it_in_either_colour(app: App, world: World) -> None:
    @app.task(retries=RETRIES)
    async def in_async() -> list[int]:
        receipts = [await effect(world.pay_later, 1), await effect(world.pay_later, 1), await effect(world.pay, 2)]
        if len(world.paid) < 7 and current().task.attempt == 1:  # type: ignore[union-attr]
            raise RuntimeError
        return [receipt.n for receipt in receipts]

    @app.task(retries=RETRIES)
    def in_sync() -> list[int]:
        receipts = [effect(world.pay, 3).result(), effect(world.pay, n=4).result()]
        if current().task.attempt == 1:  # type: ignore[union-attr]
            raise RuntimeError
        return [receipt.n for receipt in receipts]

    assert in_async.submit().result(WAIT_S) == [1, 1, 2]
    assert in_sync.submit().result(WAIT_S) == [3, 4]
    assert world.paid == [1, 1, 2, 3, 4]


def test_the_same_key_is_the_same_effect(app: App, world: World) -> None:
    @app.task
    async def body() -> list[Receipt]:
        return [await effect(world.pay, 1, key="rent"), await effect(world.pay, 1, key="rent")]

    first, second = body.submit().result(WAIT_S)

    assert first == second
    assert world.paid == [1]


def test_the_same_key_is_not_under_way_twice(app: App, world: World) -> None:
    @app.task
    async def body() -> None:
        await asyncio.gather(effect(world.pay_later, 1, key="rent"), effect(world.pay_later, 1, key="rent"))

    with pytest.raises(TaskFailed, match="under way"):
        body.submit().result(WAIT_S)
    assert len(world.paid) <= 1


def test_the_token_of_an_effect_is_its_own_and_stays(app: App, world: World) -> None:
    world.refuses.append(Refused())
    tokens: list[str] = []

    def pay(n: int) -> int:
        tokens.append(effect_token())
        return world.pay(n).n

    @app.task(retries=RETRIES)
    def body() -> None:
        effect(pay, 1, not_done=(Refused,)).result()
        effect(pay, 1, not_done=(Refused,)).result()

    body.submit().result(WAIT_S)

    assert tokens[0] == tokens[1] != tokens[2]
    with pytest.raises(UsageError):
        effect_token()


def test_outside_of_a_body_it_is_just_called(world: World) -> None:
    assert effect(lambda n: n + 1, 1, key="x").result() == 2
    assert asyncio.run(_awaited(effect(world_free_double, 2))) == 4


async def world_free_double(n: int) -> int:
    return 2 * n


async def _awaited(pending: Pending[int]) -> int:
    return await pending


# ---------------------------------------------------------------- nobody knows


def test_what_raised_is_not_done_again_and_ends_the_task_with_what_to_do(app: App, world: World) -> None:
    world.fails.append(ConnectionError("no answer"))

    @app.task(retries=RETRIES)
    def body() -> None:
        effect(world.pay, 1, key="rent").result()

    handle = body.submit()
    with pytest.raises(TaskFailed, match="rent") as failed:
        handle.result(WAIT_S)

    view = handle.view().result()
    assert view.error is not None
    assert (view.error.kind, view.attempt, world.paid) == ("OutcomeUnknown", 2, [1])
    assert "check=" in str(failed.value)


def test_an_exception_that_proves_that_nothing_took_place_lets_it_be_done_again(app: App, world: World) -> None:
    world.refuses += [Refused(), Refused()]

    @app.task(retries=RETRIES)
    def body() -> list[EffectView]:
        effect(world.pay, 1, key="rent", not_done=(Refused,)).result()
        return views()

    [view] = body.submit().result(WAIT_S)

    assert (view.state, view.begun, view.attempt, world.paid) == ("committed", 3, 3, [1])


@pytest.mark.parametrize("took_place", [True, False])
def test_a_check_finds_out(app: App, world: World, took_place: bool) -> None:  # noqa: FBT001 - a parameter
    (world.fails if took_place else world.refuses).append(ConnectionError("no answer"))

    async def was_paid(n: int) -> Any:
        return Receipt(n, "found") if n in world.paid else NOT_DONE

    @app.task(retries=RETRIES)
    async def body() -> Receipt:
        return await effect(world.pay, 1, check=was_paid)

    receipt = body.submit().result(WAIT_S)

    assert (receipt.n, receipt.token == "found", world.paid) == (1, took_place, [1])


@pytest.mark.parametrize("took_place", [True, False])
def test_a_person_finds_out(app: App, world: World, took_place: bool) -> None:  # noqa: FBT001 - a parameter
    (world.fails if took_place else world.refuses).append(ConnectionError("no answer"))

    @app.task(retries=RETRIES)
    def body() -> Receipt:
        return effect(world.pay, 1, on_unknown="ask").result()

    handle = body.submit()
    answer: dict[str, Any] = {"done": True, "result": {"n": 1, "token": "said"}} if took_place else {"done": False}
    question = answered(app, handle.id, answer)

    receipt = handle.result(WAIT_S)
    assert (receipt.n, receipt.token == "said", world.paid) == (1, took_place, [1])
    assert "World.pay take place?" in question


def test_what_a_person_said_of_one_try_does_not_count_for_the_next(app: App, world: World) -> None:
    world.refuses += [ConnectionError("two"), ConnectionError("one")]

    @app.task(retries=RETRIES)
    def body() -> int:
        return effect(world.pay, 1, on_unknown="ask").result().n

    handle = body.submit()
    first = answered(app, handle.id, {"done": False})
    second = answered(app, handle.id, {"done": False})

    assert handle.result(WAIT_S) == 1
    assert ("Attempt 1 " in first, "Attempt 1 " in second) == (True, False)


def test_a_person_who_will_not_say_leaves_it_unknown(app: App, world: World) -> None:
    world.fails.append(ConnectionError("no answer"))

    @app.task(retries=RETRIES)
    def body() -> None:
        effect(world.pay, 1, on_unknown="ask").result()

    handle = body.submit()
    question = next(q for q in app.inbox().watch() if q.view.task_id == handle.id and q.view.state == "open")
    app.inbox().reject(question.id).result()

    with pytest.raises(TaskFailed, match="nobody knows"):
        handle.result(WAIT_S)


def test_what_may_happen_twice_does_and_the_ledger_says_so(app: App, world: World) -> None:
    world.fails.append(ConnectionError("no answer"))

    @app.task(retries=RETRIES)
    def body() -> list[EffectView]:
        effect(world.pay, 1, key="ping", on_unknown="repeat").result()
        return views()

    [view] = body.submit().result(WAIT_S)

    assert (view.state, view.begun, world.paid) == ("committed", 2, [1, 1])


def test_a_body_may_catch_what_nobody_knows(app: App, world: World) -> None:
    world.fails.append(ConnectionError("no answer"))

    @app.task
    def body() -> list[EffectView]:
        with pytest.raises(ConnectionError):
            effect(world.pay, 1, key="rent").result()
        with pytest.raises(OutcomeUnknown, match="rent"):
            effect(world.pay, 1, key="rent").result()
        return views()

    [view] = body.submit().result(WAIT_S)
    assert (view.state, world.paid) == ("pending", [1])


# ---------------------------------------------------------------- misuse


def test_an_effect_does_not_wait_for_a_person_while_it_is_begun(app: App) -> None:
    @app.task
    def body() -> None:
        effect(lambda: ask("Sure?").result()).result()

    with pytest.raises(TaskFailed, match="waits for somebody"):
        body.submit().result(WAIT_S)


def test_an_async_effect_in_a_sync_body_has_not_begun(app: App, world: World) -> None:
    @app.task
    def body() -> list[EffectView]:
        with pytest.raises(UsageError, match="async"):
            effect(world.pay_later, 1).result()
        return views()

    [view] = body.submit().result(WAIT_S)
    assert (view.state, world.paid) == ("void", [])


@pytest.mark.parametrize(
    "options", [{"key": ""}, {"key": "a\0b"}, {"key": "x" * 300}, {"check": 1}, {"on_unknown": "hope"},
                {"check": len, "on_unknown": "ask"}],
)  # fmt: skip
def test_options_without_a_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        effect(len, "x", **options)


def test_the_list_of_effects_knows_what_is_unknown() -> None:
    mark = b'{"attempt": 1, "what": "f"}'
    steps = {
        "effect-begun|0|a|b": mark, "effect|a|b": b"1", "effect-begun|0|c": mark, "effect-void|0|c": b"{}",
        "effect-begun|1|c": b'{"attempt": 2, "what": "f"}', "effect-begun|0|d": mark, "effect-void|0|d": b"{}", "f|1#0": b"2",
    }  # fmt: skip

    assert [(v.key, v.state, v.begun) for v in effects_of(steps, running=2)] == [
        ("a|b", "committed", 1), ("c", "pending", 2), ("d", "void", 1),
    ]  # fmt: skip
    assert [v.state for v in effects_of(steps)] == ["committed", "unknown", "void"]

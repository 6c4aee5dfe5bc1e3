"""What a review of the PostgreSQL store has found, each as the test that failed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.rows import dict_row

from sennit.errors import StoreError, UsageError
from sennit.model.lifecycle import State
from sennit.model.task import Failed, LogLine, Succeeded, TaskSpec
from sennit.store.operations import Beside
from sennit.store.postgres import PostgresStore
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import BOOM, Rig, got, running_loop


class PostgresRig(Rig):
    """A rig whose store is known to be of this kind."""

    store: PostgresStore


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with running_loop() as running:
        yield running


@pytest.fixture
def open_store(postgres_url: str) -> Iterator[Callable[..., PostgresStore]]:
    with ExitStack() as stack:

        def opened(url: str = postgres_url, **options: Any) -> PostgresStore:
            store = PostgresStore(url, durability="normal", **options)
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def new_rig(open_store: Callable[..., PostgresStore], loop: asyncio.AbstractEventLoop) -> Callable[..., PostgresRig]:
    return lambda **options: PostgresRig(open_store(**options), loop, lease_s=60)


def in_one_batch(store: PostgresStore, *calls: Callable[[], Ack[Any]]) -> list[Ack[Any]]:
    """Make calls while the writer is held, so that it finds them all at once."""
    begun, go = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert go.wait(30)

    held = store.put(hold)
    assert begun.wait(30)
    acks = [call() for call in calls]
    go.set()
    got(held)
    return acks


def has_claimed(rig: Rig, task_id: int) -> bool:
    return any(task.id == task_id for task in rig.heard.claimed)


def test_a_task_reaches_the_only_worker_that_serves_its_queue(new_rig: Callable[..., PostgresRig]) -> None:
    others = [new_rig() for _ in range(5)]
    for other in others:
        other.store.want("other", 1)
    mine, sender = new_rig(), new_rig()
    mine.store.want("q", 20)
    for _ in range(10):
        task_id = sender.put()
        mine.heard.wait_for(partial(has_claimed, mine, task_id))


def test_a_task_reaches_the_worker_that_has_room_when_others_had_room_before(
    new_rig: Callable[..., PostgresRig],
) -> None:
    sender = new_rig()
    busy = [new_rig() for _ in range(4)]
    for rig in busy:
        rig.store.want("q", 1)
    for _ in range(4):
        sender.put()
    for rig in busy:
        rig.heard.wait_for(lambda heard=rig.heard: len(heard.claimed) == 1)  # type: ignore[misc]
    free = new_rig()
    free.store.want("q", 1)
    sender.hear_all()
    sender.put()
    free.heard.wait_for(lambda: len(free.heard.claimed) == 1)


def test_an_operation_that_is_refused_leaves_the_others_of_its_batch_alone(new_rig: Callable[..., PostgresRig]) -> None:
    rig = new_rig()
    task = rig.start()
    good, bad, huge, odd = (
        rig.spec(),
        rig.spec(thread_id="a\0b"),
        rig.spec(delay_us=2**63 - 1),
        rig.spec(handler="\ud800"),
    )
    acks = in_one_batch(
        rig.store,
        lambda: rig.store.submit([good]),
        lambda: rig.store.submit([bad]),
        lambda: rig.store.submit([huge]),
        lambda: rig.store.submit([odd]),
        lambda: rig.store.finish([Succeeded(task.claim, b"1")]),
    )
    assert got(acks[0]) == [good.ref.id]
    for ack in acks[1:4]:
        with pytest.raises(Exception) as caught:
            got(ack)
        assert not isinstance(caught.value, psycopg.Error), caught.value
    assert got(acks[4]) == [True]
    rig.check()


def test_a_refused_statement_in_a_long_batch_that_has_the_pen_concerns_its_operation_only(
    new_rig: Callable[..., PostgresRig],
) -> None:
    rig = new_rig()
    specs = [rig.spec(key=f"k{n}", delay_us=2**63 - 1 if n == 5 else 0) for n in range(200)]
    acks = in_one_batch(rig.store, *(lambda s=s: rig.store.submit([s]) for s in specs))
    for n, ack in enumerate(acks):
        if n == 5:
            with pytest.raises(StoreError):
                got(ack)
        else:
            assert got(ack) == [specs[n].ref.id]
    rig.check()


def test_lines_with_characters_that_the_database_refuses_are_kept(new_rig: Callable[..., PostgresRig]) -> None:
    rig = new_rig()
    task = rig.start()
    got(rig.store.log([LogLine(task_id=task.id, attempt=1, at_us=1, level="info", text="a\0b\ud800c")]))
    (line,) = got(rig.store.logs(task.id))
    assert line.text.startswith("a")
    assert line.text.endswith("c")


def test_the_same_child_twice_in_a_batch_is_one_child(new_rig: Callable[..., PostgresRig]) -> None:
    rig = new_rig()
    task = rig.start()
    one, two = (rig.spec(parent_id=task.id, child_key="k") for _ in range(2))
    free = rig.spec()
    acks = in_one_batch(
        rig.store,
        lambda: rig.store.add_children(task.claim, [one]),
        lambda: rig.store.add_children(task.claim, [two]),
        lambda: rig.store.submit([free]),
    )
    assert got(acks[0]) == got(acks[1])
    assert got(acks[2]) == [free.ref.id]
    rig.check()


def test_leaving_that_had_to_be_tried_twice_takes_the_row_away(
    new_rig: Callable[..., PostgresRig], postgres_url: str
) -> None:
    rig, other = new_rig(), new_rig()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("""
            CREATE SEQUENCE review_tries;
            CREATE FUNCTION review_refuse() RETURNS trigger LANGUAGE plpgsql AS $f$
            BEGIN
              IF nextval('review_tries') = 1 THEN RAISE EXCEPTION 'once more' USING ERRCODE = '40001'; END IF;
              RETURN NULL;
            END $f$;
            CREATE CONSTRAINT TRIGGER review_refuse AFTER INSERT ON sennit_fate DEFERRABLE INITIALLY DEFERRED
              FOR EACH ROW EXECUTE FUNCTION review_refuse();
        """)
        try:
            got(rig.store.leave())
        finally:
            connection.execute(
                "DROP TRIGGER review_refuse ON sennit_fate; DROP FUNCTION review_refuse; DROP SEQUENCE review_tries"
            )
        assert [w.id for w in got(other.store.workers())] == [other.worker_id]


class TestInTheTransactionOfTheCaller:
    def test_its_own_types_stay_as_they_were(self, new_rig: Callable[..., PostgresRig], postgres_url: str) -> None:
        rig = new_rig()
        with psycopg.connect(postgres_url) as connection:
            connection.execute("CREATE TEMP TABLE mine (is_paid boolean, price numeric)")
            rig.store.submit_in(connection, [rig.spec()])
            connection.execute("INSERT INTO mine VALUES (%s, 1.5)", (True,))
            assert connection.execute("SELECT price FROM mine").fetchone() == (Decimal("1.5"),)

    def test_rows_may_be_dicts(self, new_rig: Callable[..., PostgresRig], postgres_url: str) -> None:
        rig = new_rig()
        with psycopg.connect(postgres_url, row_factory=dict_row) as connection:
            ids = rig.store.submit_in(connection, [rig.spec(key="k", thread_id="t")])
        assert rig.state(ids[0]) is State.READY

    @pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
    def test_a_parent_that_ended_after_its_snapshot_is_not_waited_for(
        self, new_rig: Callable[..., PostgresRig], postgres_url: str, level: psycopg.IsolationLevel
    ) -> None:
        rig = new_rig()
        parent = rig.start()
        with psycopg.connect(postgres_url) as connection:
            connection.isolation_level = level
            connection.execute("SELECT count(*) FROM sennit_task")
            rig.succeed(parent)
            with pytest.raises(UsageError):
                rig.store.submit_in(connection, [rig.spec(after=[parent.id])])
            connection.rollback()

    def test_without_a_transaction_it_is_refused(self, new_rig: Callable[..., PostgresRig], postgres_url: str) -> None:
        rig = new_rig()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            with pytest.raises(UsageError):
                rig.store.submit_in(connection, [rig.spec()])
            with connection.transaction():
                (task_id,) = rig.store.submit_in(connection, [rig.spec()])
        assert rig.state(task_id) is State.READY

    def test_an_async_connection_is_refused(self, new_rig: Callable[..., PostgresRig], postgres_url: str) -> None:
        rig = new_rig()

        async def attempt() -> None:
            async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
                with pytest.raises(UsageError):
                    rig.store.submit_in(connection, [rig.spec()])  # type: ignore[arg-type]

        asyncio.run(attempt())

    def test_pipeline(self, new_rig: Callable[..., PostgresRig], postgres_url: str) -> None:
        rig = new_rig()
        with psycopg.connect(postgres_url) as connection, connection.pipeline(), pytest.raises(UsageError):
            rig.store.submit_in(connection, [rig.spec(key="k", thread_id="t")])


@pytest.mark.parametrize("password", ["sec%zzret", "sec ret", "[secret"])
def test_no_error_shows_the_password(postgres_url: str, password: str) -> None:
    parts = urlsplit(postgres_url)
    url = urlunsplit(parts._replace(netloc=f"{parts.username}:{password}@127.0.0.1:1"))
    with pytest.raises(StoreError) as caught:
        PostgresStore(url, patience_s=0.0)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_no_error_of_a_callers_transaction_shows_the_password(
    new_rig: Callable[..., PostgresRig], postgres_url: str
) -> None:
    parts = urlsplit(postgres_url)
    rig = new_rig(url=urlunsplit(parts._replace(netloc=parts.netloc.replace("@", ":secret@", 1))))
    with psycopg.connect(postgres_url) as connection, pytest.raises(StoreError) as caught:
        rig.store.submit_in(connection, [rig.spec(handler="a\0")])
    assert "secret" not in str(caught.value)


def test_ends_and_submits_of_two_processes_that_count_in_one_shard_do_not_deadlock(
    new_rig: Callable[..., PostgresRig], postgres_url: str
) -> None:
    one, two = new_rig(), new_rig()
    for rig in (one, two):
        rig.store._writer._shard = 7  # type: ignore[attr-defined]  # one in 63 pairs of processes

    def deadlocks() -> int:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
            assert row is not None
            return int(row[0])

    def hand_in(specs: list[TaskSpec], acks: list[Ack[Any]]) -> None:
        acks.extend(two.store.submit([spec]) for spec in specs)

    before = deadlocks()
    for _ in range(40):
        tasks = [one.start() for _ in range(3)]
        acks: list[Ack[Any]] = []
        other = threading.Thread(target=hand_in, args=([two.spec(after=[t.id], queue="y") for t in tasks], acks))
        other.start()
        mine = in_one_batch(
            one.store,
            *(lambda: one.store.submit([one.spec(queue="x")]) for _ in range(20)),
            *(lambda t=t: one.store.finish([Succeeded(t.claim, b"1")]) for t in tasks),
        )
        other.join()
        for ack in (*mine, *acks):
            got(ack)
    assert deadlocks() == before


def test_a_batch_that_is_larger_than_the_buffers_of_the_connection_is_sent(new_rig: Callable[..., PostgresRig]) -> None:
    rig = new_rig()
    specs = [rig.spec(payload=b"x" * 1_000_000, thread_id=str(n % 3)) for n in range(40)]
    keyed = [rig.spec(payload=b"x" * 1_000_000, key=str(n)) for n in range(40)]
    for batch in (specs, keyed):
        for ack in in_one_batch(rig.store, *(lambda s=s: rig.store.submit([s]) for s in batch)):
            got(ack)


def test_an_order_that_was_served_in_a_batch_that_is_run_again_is_not_lost(new_rig: Callable[..., PostgresRig]) -> None:
    rig = new_rig()
    rig.store.want("q", 3)
    rig.hear_all()
    first, refused, last = rig.spec(), rig.spec(key="k", delay_us=2**63 - 1), rig.spec()
    acks = in_one_batch(
        rig.store,
        lambda: rig.store.submit([first]),
        lambda: rig.store.submit([refused]),
        lambda: rig.store.submit([last]),
    )
    got(acks[0])
    got(acks[2])
    rig.put()
    rig.heard.wait_for(lambda: len(rig.heard.claimed) == 3)


def test_an_order_is_served_that_came_just_before_a_batch_that_is_run_again(
    new_rig: Callable[..., PostgresRig],
) -> None:
    rig = new_rig()
    ended, ready = rig.start(), rig.put()
    refused = rig.spec(key="k", delay_us=2**63 - 1)
    orders = iter([{"q": 1}])

    def order(*_: object) -> None:
        for want in orders:  # the first time, from another OS thread as it were; its own call is behind this batch
            rig.store.finish([Failed(ended.claim, BOOM)], want=want)

    acks = in_one_batch(rig.store, lambda: rig.store.put(order), lambda: rig.store.submit([refused]))

    got(acks[0])
    with pytest.raises(StoreError):
        got(acks[1])
    rig.heard.wait_for(lambda: has_claimed(rig, ready))


def test_an_order_is_served_that_comes_while_the_order_is_taken(
    new_rig: Callable[..., PostgresRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is ready wants a permit: a transaction that shares the pen passes it on, if it knows the order to be new."""
    rig = new_rig()
    rig.provider()
    rig.store.want("q", 1)
    rig.hear_all()  # behind it all know that there is room in this queue, and need not be told
    plain = rig.put()
    rig.heard.wait_for(lambda: has_claimed(rig, plain))
    ready = rig.put(provider="p")
    rig.hear_all()
    order = rig.store._desk.order
    take, orders = order.take, iter([1])

    def taken(queues: Iterable[str] | None) -> dict[str, int]:
        for n in orders:
            rig.store.want("q", n)
        return take(queues)

    monkeypatch.setattr(order, "take", taken)
    got(rig.store.put(Beside(lambda *_: None)))

    rig.heard.wait_for(lambda: has_claimed(rig, ready))


def test_a_task_that_a_process_died_about_to_take_is_taken_by_another(
    new_rig: Callable[..., PostgresRig], postgres_url: str
) -> None:
    sender, rig = new_rig(), new_rig()
    rig.store.want("q", 1)
    rig.hear_all()
    begun, go = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert go.wait(30)

    held = rig.store.put(Beside(hold))
    assert begun.wait(30)
    task_id = sender.put()
    with psycopg.connect(postgres_url) as dying:
        dying.execute("SELECT 1 FROM sennit_ready WHERE id = %s FOR UPDATE", (task_id,))
        go.set()
        got(held)
        got(rig.store.heartbeat(rig.worker_id, rig.lease_us))
        assert rig.heard.claimed == []
        dying.rollback()
    got(rig.store.rescue(10**9))
    rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [task_id])

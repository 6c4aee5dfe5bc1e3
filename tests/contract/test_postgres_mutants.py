"""The rules of sql/postgres/migrations/0006_hot.sql, each broken in turn: then tasks are lost or doubled, and we see it.

    true function ──pg_get_functiondef──► one rule taken out ──CREATE OR REPLACE──► hammer ──► findings

A hammer is a few hundred rounds of transactions that meet; the same hammers find nothing with the true functions. A deferred
trigger makes every transaction last some milliseconds longer at its end, with and without the rule.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

import psycopg
import pytest

from sennit.errors import StoreError
from sennit.model.task import Ref, Succeeded, TaskSpec
from sennit.store.postgres import PostgresStore
from sennit.testing.contract_tools import Rig, got, in_threads, running_loop

ROUNDS: Final = 24
CLIENTS: Final = 4
LONGER_S: Final = 0.004

Findings = Counter[str]
Hammer = Callable[[str], Findings]


class Clients:
    """Stores of their own, each a worker, that meet at a barrier."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        loop = stack.enter_context(running_loop())
        self.url = url
        self.rigs = [Rig(stack.enter_context(closing(PostgresStore(url))), loop) for _ in range(CLIENTS)]
        self.meet = threading.Barrier(CLIENTS)
        self.findings: Findings = Counter()

    def all_at_once(self, work: Callable[[int, Rig], object]) -> None:
        """Let each do its part of a round; what a store refuses is a finding."""

        def part(k: int) -> None:
            try:
                work(k, self.rigs[k])
            except StoreError as error:
                self.findings[type(error).__name__] += 1

        in_threads(CLIENTS, part)

    def drain(self) -> None:
        """Run everything there is to its end; what is left then is lost, what two run at once is doubled."""
        first = self.rigs[0]
        with psycopg.connect(self.url, autocommit=True) as reader:
            while tasks := first.claim(1000):
                doubled = reader.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM sennit_running AS r JOIN sennit_task AS t USING (id)"
                    " WHERE t.thread_id IS NOT NULL GROUP BY t.thread_id HAVING count(*) > 1) AS x"
                ).fetchone()
                self.findings["doubled"] += 0 if doubled is None else doubled[0]
                first.finish(*[Succeeded(task.claim, b"") for task in tasks])
        self.findings["lost"] += got(first.store.ledger()).live
        self.findings["unsound"] += len(got(first.store.verify()))


@contextmanager
def clients(url: str) -> Iterator[Clients]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION test_longer() RETURNS trigger LANGUAGE plpgsql AS"
            f" $f$ BEGIN PERFORM pg_sleep({LONGER_S}); RETURN NULL; END $f$".encode()
        )
        for table, on in (("sennit_task", "INSERT OR UPDATE"), ("sennit_running", "INSERT")):
            connection.execute(
                f"CREATE CONSTRAINT TRIGGER test_longer AFTER {on} ON {table} DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION test_longer()".encode()
            )
    with ExitStack() as stack:
        yield Clients(url, stack)


# ---------------------------------------------------------------- hammers


def claim_together(url: str) -> Findings:
    """All take two tasks of one queue at a time until there are none. A key that is violated is a task taken twice."""
    n_each, seen = 2, Counter[tuple[int, int]]()
    findings: Findings = Counter()
    with ExitStack() as stack:
        rig = Rig(stack.enter_context(closing(PostgresStore(url))), stack.enter_context(running_loop()))
        rig.submit(*[rig.spec() for _ in range(10 * ROUNDS)])

        def taker(_: int) -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                for _ in range(ROUNDS):
                    try:
                        with connection.transaction():
                            connection.execute("SELECT set_config('sennit.now_us', '1', true)")
                            rows = connection.execute(
                                "SELECT id, attempt FROM sennit_claim(%s, 'q', %s) WHERE id IS NOT NULL",
                                (rig.worker_id, n_each),
                            ).fetchall()
                    except psycopg.Error as error:
                        findings[type(error).__name__] += 1
                        continue
                    seen.update(rows)
                    findings["over-claimed"] += max(0, len(rows) - n_each)

        in_threads(CLIENTS, taker)
    assert seen
    findings["doubled"] += sum(n - 1 for n in seen.values())
    return findings


def submit_while_the_parent_ends(url: str) -> Findings:
    """One ends a task, the others hand in tasks that depend on it."""
    with clients(url) as some:
        for _ in range(ROUNDS):
            parent = some.rigs[0].start()

            def part(k: int, rig: Rig, *, claim: Any = parent.claim) -> None:
                if k == 0:
                    rig.finish(Succeeded(claim, b""))
                else:
                    rig.submit(child(rig, claim.task_id))

            some.all_at_once(part)
        some.drain()
        return some.findings


def child(rig: Rig, *parents: int, thread_id: str | None = None) -> TaskSpec:
    (task_id,) = rig.store.take_ids(1)
    refs = tuple(Ref(i) for i in parents)
    return TaskSpec(ref=Ref(task_id), handler="work", queue="q", payload=b"", parents=refs, thread_id=thread_id)


def end_the_parents_of_the_same(url: str) -> Findings:
    """Each ends two of eight tasks on which the same four depend."""
    with clients(url) as some:
        first = some.rigs[0]
        for _ in range(ROUNDS // 4):
            parents = [first.start() for _ in range(2 * CLIENTS)]
            first.submit(*[child(first, *[p.id for p in parents]) for _ in range(4)])

            def part(k: int, rig: Rig, *, tasks: Any = parents) -> None:
                rig.finish(*[Succeeded(task.claim, b"") for task in (tasks[k], tasks[-1 - k])])

            some.all_at_once(part)
        some.drain()
        return some.findings


def queue_up_on_a_thread(url: str) -> Findings:
    """One ends the first task of a thread, the others hand in more."""
    with clients(url) as some:
        for n in range(ROUNDS):
            first = some.rigs[0].start(thread_id=f"t{n}")

            def part(k: int, rig: Rig, *, claim: Any = first.claim, thread_id: str = f"t{n}") -> None:
                if k == 0:
                    rig.finish(Succeeded(claim, b""))
                else:
                    rig.submit(child(rig, thread_id=thread_id))

            some.all_at_once(part)
        some.drain()
        return some.findings


HAMMERS: list[Hammer] = [
    claim_together,
    submit_while_the_parent_ends,
    end_the_parents_of_the_same,
    queue_up_on_a_thread,
]


@pytest.mark.parametrize("hammer", HAMMERS)
def test_the_true_functions_lose_and_double_nothing(fresh_database: Callable[..., str], hammer: Hammer) -> None:
    assert not +hammer(fresh_database())


# ---------------------------------------------------------------- mutants

# A plan that asks for the rows of a claim once for each row of the table: statistics may lead there any day.
WAYS: Final = (
    "hashjoin",
    "mergejoin",
    "hashagg",
    "sort",
    "material",
    "memoize",
    "indexscan",
    "indexonlyscan",
    "bitmapscan",
)

EARLY: Final = "SELECT array_agg(e.child) INTO early FROM sennit_edge AS e WHERE e.parent = ANY (p_ids);"

# What is broken, in which function, what is replaced by what there, and the hammer that finds it.
MUTANTS: list[tuple[str, str, list[tuple[str, str]], Hammer]] = [
    (
        "claims do not lock what they take",
        "sennit_claim",
        [("FOR UPDATE SKIP LOCKED", "")],
        claim_together,
    ),
    (
        "a claim counts its limit wherever the planner puts it",
        "sennit_claim",
        [
            (
                "(DELETE FROM sennit_ready AS r WHERE r.ctid = ANY (ARRAY (SELECT n.ctid FROM next AS n)))",
                (
                    "(DELETE FROM sennit_ready AS r WHERE r.id IN (SELECT n.id FROM sennit_ready AS n WHERE n.queue = p_queue"
                    " LIMIT p_n FOR UPDATE SKIP LOCKED) RETURNING r.id, r.attempt, r.failures, r.crashes, r.order_us)"
                ),
            ),
            ("now_us FROM next AS n\n", "now_us FROM taken AS n\n"),
            ("SET enable_seqscan TO 'off'", " ".join(f"SET enable_{way} TO 'off'" for way in WAYS)),
        ],
        claim_together,
    ),
    (
        "a submit does not lock its parents",
        "sennit_submit",
        [("t.state = 0 OFFSET 0 FOR SHARE", "t.state = 0 OFFSET 0")],
        submit_while_the_parent_ends,
    ),
    (
        "an end reads the edges before it has the lock of its task",
        "sennit_finish",
        [
            ("\nBEGIN\n", f"\n  early bigint[];\nBEGIN\n  {EARLY}\n"),
            ("WHERE e.parent = i.id OFFSET 0", "WHERE e.parent = i.id AND e.child = ANY (early) OFFSET 0"),
        ],
        submit_while_the_parent_ends,
    ),
    (
        "what depends on several ends is counted without a lock",
        "sennit_finish",
        [("WHERE w.id = l.id OFFSET 0 FOR UPDATE", "WHERE w.id = l.id OFFSET 0")],
        end_the_parents_of_the_same,
    ),
    (
        "the line of a thread is changed without the lock of the thread",
        "sennit_hold_threads",
        [("PERFORM pg_advisory_xact_lock(1397640789, h)", "NULL")],
        queue_up_on_a_thread,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("function", "changes", "hammer"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_broken_rule_loses_or_doubles_tasks(
    fresh_database: Callable[..., str], function: str, changes: list[tuple[str, str]], hammer: Hammer
) -> None:
    url = fresh_database()
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT pg_get_functiondef(%s::regproc)", (function,)).fetchone()
        assert row is not None
        text = row[0]
        for true, false in changes:
            assert text.count(true) == 1, f"{function} has changed: {true!r}"
            text = text.replace(true, false)
        connection.execute(text.encode())

    assert +hammer(url)

"""The plain case of many operations at once, side by side with other writers.

    BEGIN, pen (shared) ─► threads ─► steps, notes ─► submits ─► ends ─► what touches nobody else ─► claims ─► COMMIT
          └────────────── one round trip, as far as nobody has to ask in between ──────────────┘    one more

What is plain is said by `takes`, and by the functions of sql/postgres/migrations/0006_hot.sql, which know more: when one of
them finds something that is not, the transaction is undone and run again under the whole pen, one statement after the other.

Who must be rung is kept in rows (`hears`): a process that has free slots, or waits for results, says so once, under the whole
pen, so that nobody is in the middle of something when it does. It takes that back when it was rung for nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from sennit.errors import StoreError, SubmitError
from sennit.model.graph import order_batch
from sennit.model.lifecycle import State
from sennit.model.order import ready_us
from sennit.model.task import Claimed, Outcome, Succeeded, TaskSpec
from sennit.store.effects import Effects
from sennit.store.moves.submit import is_fan_out
from sennit.store.operations import AddChildren, Beside, Finish, Look, NoteAgent, SaveStep, Submit
from sennit.store.postgres_arrays import blobs, numbers, texts
from sennit.store.postgres_desk import PostgresDesk
from sennit.store.postgres_follow import FOLLOWERS
from sennit.store.postgres_server import PostgresServer
from sennit.store.postgres_wire import Undecided, Unplaced, Wire
from sennit.store.wakeup import Hint
from sennit.store.writer import Item, Settled, Writer
from sennit.sync.ack import LoopCall, resolve_all

NOT_PLAIN: Final = "SN001"  # what the functions raise
_SHARDS: Final = 64
_PART: Final = 1000
_LEASED, _RENEWED, _LANES, _BLOCKED, _AHEAD = 1, 2, 4, 8, 16
_COLUMNS: Final = (
    "bigint", "text", "text", "bigint", "text", "bigint", "text", "text", "bytea", "bytea", "bigint", "bigint", "bigint",
    "bigint", "text", "text", "bigint", "bigint", "bigint", "bigint",
)  # fmt: skip
_WRITTEN: Final[dict[str, Callable[[Any], str]]] = {"bigint": numbers, "text": texts, "bytea": blobs}
_SUBMIT: Final = f"SELECT * FROM sennit_submit({', '.join(f'%s::{kind}[]' for kind in _COLUMNS)}, %s)"  # noqa: S608 - of our own words
_RANGE: Final = "SELECT sennit_submit_range(%s, %s, %s, %s, %s::bytea[], %s, %s, %s)"
_FINISH: Final = "SELECT * FROM sennit_finish(%s::bigint[], %s::bigint[], %s::bytea[], %s, %s)"
_STEPS: Final = "SELECT * FROM sennit_save_steps(%s::bigint[], %s::bigint[], %s::text[], %s::bytea[])"
_NOTES: Final = "SELECT * FROM sennit_note_agents(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::bytea[])"
_SAVES: Final[tuple[tuple[type[SaveStep | NoteAgent], str], ...]] = ((SaveStep, _STEPS), (NoteAgent, _NOTES))
_CLAIM: Final = "SELECT * FROM sennit_claim(%s, %s, %s, %s)"
_HOLD: Final = "SELECT sennit_must_hold(%s::bigint[], %s::bigint[])"
_LOCK: Final = "SELECT sennit_hold_tasks(%s::bigint[], %s::bigint[])"
# Tasks before the ledger, which a submit counts in first: whoever has the same shard may wait for one of these.
_LOCK_ENDS: Final = "SELECT count(*) FROM (SELECT 1 FROM sennit_task WHERE id = ANY (%s::bigint[]) ORDER BY id FOR NO KEY UPDATE) AS held"
_WRITES: Final = (
    "SELECT sennit_write_states(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::text[], %s)"
)
_THREADS: Final = "SELECT sennit_hold_threads(%s::bigint[], %s::text[])"
_REFUSED: Final = "SELECT sennit_count(%s, 'refused', %s)"


class NotPlain(Exception):
    """This batch has to be run one statement after the other."""


class Sent(NamedTuple):
    """What is on its way to the server, to be read in this order."""

    saved: list[tuple[Any, list[tuple[SaveStep | NoteAgent, Any]]]]
    followers: Any
    submits: Any
    ends: Any


class HotWriter(Writer[Effects]):
    """A writer that runs plain operations many at once."""

    def __init__(self, wire: Wire, server: PostgresServer, desk: PostgresDesk, *, pen: Any, batch_max: int) -> None:
        self._desk = desk
        self._server = server
        self._wire = wire
        self._shard = random.randrange(1, _SHARDS)
        super().__init__(wire, server, pen=pen, batch=desk, batch_max=batch_max)

    def _commit(self, todo: list[Item]) -> tuple[list[Settled], list[LoopCall]]:
        """Commit the plain ones and the others of a batch each in a transaction of their own, in order."""
        groups: list[list[Item]] = []
        kind = None
        for item in todo:
            plain = self._desk.is_calm and self._takes(item[0])
            if plain is not kind:
                groups.append([])
                kind = plain
            groups[-1].append(item)
        for group in groups[:-1]:
            resolve_all(*super()._commit(group))
        return super()._commit(groups[-1])

    def _transact(self, todo: list[Item]) -> tuple[list[Settled], list[Effects]]:
        try:
            return self._transact_somehow(todo)
        except Undecided:
            self._desk.doubt()
            raise

    def _transact_somehow(self, todo: list[Item]) -> tuple[list[Settled], list[Effects]]:
        if self._desk.is_calm and all(self._takes(operation) for operation, _ in todo):
            try:
                return self._transact_hot(todo)
            except NotPlain:
                pass
            except Exception as error:
                if self._wire.has_committed or self._server.is_passing(error) or isinstance(error, StoreError):
                    raise
                # NOT_PLAIN, or something was refused: alone it is known whose it was.
            self._server.roll_back(self._wire)
            self._desk.begin_again()
        return self._transact_alone(todo)

    def _transact_alone(self, todo: list[Item]) -> tuple[list[Settled], list[Effects]]:
        """Run the moves one after the other, and wait only for the answers they look at."""
        done: tuple[list[Settled], list[Effects]] | None = None
        try:
            with self._wire.open_for_many(is_lazy=True):
                done = super()._transact(todo)
        except Unplaced:
            # Once more, with every answer awaited: then it is known whose statement was refused.
            self._server.roll_back(self._wire)
            self._desk.begin_again()
            return super()._transact(todo)
        except psycopg.OperationalError:
            if done is None or not self._wire.has_committed:
                raise
        return done

    # ------------------------------------------------------------ what is plain

    def _takes(self, operation: Any) -> bool:
        match operation:
            case Submit(specs=specs):
                return all(map(self._is_plain, specs))
            case Finish(endings=endings):
                return all(self._is_plain_end(ending) for ending in endings)
            case AddChildren(specs=specs):
                return all(map(self._is_plain, specs))
            case Look():
                return self._desk.hears & Hint.DONE != 0 and self._desk.members.worker is not None
            case SaveStep() | NoteAgent() | Beside():
                return True
            case _:
                return False

    def _is_plain(self, spec: TaskSpec) -> bool:
        if spec.entry is not None or spec.key is not None:
            return False
        return spec.thread_id is None or not self._desk.has_thread_bound

    def _is_plain_end(self, ending: Any) -> bool:
        if not isinstance(ending, Succeeded) or any(write.fences for write in ending.writes):
            return False
        if not all(map(self._is_plain, ending.children)):
            return False
        task_id = ending.claim.task_id
        if task_id in self._desk.with_permit:
            return False
        return not self._desk.has_thread_bound or not self._desk.is_threaded(task_id)

    # ------------------------------------------------------------ one transaction

    def _transact_hot(self, todo: list[Item]) -> tuple[list[Settled], list[Effects]]:
        settled: list[Settled] = []
        effects: list[Effects] = []
        try:
            with self._wire.open_for_many() as connection:
                self._do_all(connection, todo, settled, effects)
        except psycopg.OperationalError:
            if not self._wire.has_committed:
                raise
        return settled, effects

    def _do_all(
        self, connection: psycopg.Connection[Any], todo: list[Item], settled: list[Settled], all_effects: list[Effects]
    ) -> None:
        desk, wire = self._desk, self._wire
        saves = [(op, ack) for op, ack in todo if isinstance(op, (SaveStep, NoteAgent))]
        submits = [(op, ack) for op, ack in todo if isinstance(op, (Submit, AddChildren))]
        ends = [(op, ack) for op, ack in todo if isinstance(op, Finish)]
        others = [(op, ack) for op, ack in todo if isinstance(op, Beside)]
        wire.send_begin()
        effects = desk.effects_at(0)
        sent = self._send(connection, saves, submits, ends, effects)
        claims = [] if others else self._send_claims(connection, is_fresh=bool(submits))
        wire.wait_for_answers()
        effects.now_us = wire.read_begin()
        settled += self._read_saved(sent.saved)
        if sent.followers is not None:
            desk.ring_followers([address for (address,) in sent.followers.fetchall()])
        settled += self._read_submits(sent.submits, submits, ends, effects)
        settled += self._read_ends(sent.ends, ends, effects)
        all_effects.append(effects)
        for operation, ack in others:
            effect = desk.effects()
            settled.append((ack, _do(operation, wire, effect), None))
            all_effects.append(effect)
        if others:
            claims = self._send_claims(connection, is_fresh=bool(submits))
            wire.wait_for_answers()
        self._read_claims(claims, effects)
        desk.finish_hot(wire, all_effects, refused=lambda n: connection.execute(_REFUSED, (self._shard, n)))
        wire.execute("COMMIT")

    def _send(
        self,
        connection: psycopg.Connection[Any],
        saves: Sequence[tuple[SaveStep | NoteAgent, Any]],
        submits: Sequence[tuple[Submit | AddChildren, Any]],
        ends: Sequence[tuple[Finish, Any]],
        effects: Effects,
    ) -> Sent:
        endings = _successes(ends)
        claims = [ending.claim for ending in endings]
        if len({claim.task_id for claim in claims}) < len(claims):
            raise NotPlain
        batches = [op.specs for op, _ in submits] + [e.children for e in endings if e.children]
        threaded = [claim.task_id for claim in claims if self._desk.is_threaded(claim.task_id)]
        writes = [(e.claim.task_id, write) for e in endings for write in e.writes]
        thread_ids = list({s.thread_id for specs in batches for s in specs if s.thread_id is not None})
        thread_ids += [write.thread_id for _, write in writes]
        if threaded or thread_ids:
            connection.execute(_THREADS, (threaded, thread_ids))
        parents = [p.id for specs in batches for s in specs for p in s.parents]
        if parents and claims:
            connection.execute(_LOCK, ([claim.task_id for claim in claims], parents))
        elif batches and claims:
            connection.execute(_LOCK_ENDS, ([claim.task_id for claim in claims],))
        holders = [op.claim for op, _ in submits if isinstance(op, AddChildren)]
        holders += [e.claim for e in endings if e.children or e.writes]
        if holders:
            connection.execute(_HOLD, ([c.task_id for c in holders], [c.attempt for c in holders]))
        if writes:
            rows = [(i, w.thread_id, w.name, w.expected, w.data, w.operation_id) for i, w in writes]
            keep = max(1, self._desk.state_versions)
            connection.execute(_WRITES, [*(list(column) for column in zip(*rows, strict=True)), keep])
        sent_saves = [
            (connection.execute(sql, [list(column) for column in zip(*(op.row for op, _ in ops), strict=True)]), ops)
            for kind, sql in _SAVES
            if (ops := [(op, ack) for op, ack in saves if isinstance(op, kind)])
        ]
        notes = any(isinstance(op, NoteAgent) for op, _ in saves)
        sent_followers = connection.execute(FOLLOWERS) if notes else None
        loose: list[TaskSpec] = []
        for specs in batches:
            if len(specs) > 1 and is_fan_out(specs) and len({(s.options, s.crashes_max) for s in specs}) == 1:
                for begin in range(0, len(specs), _PART):  # the server works on one while the next is written
                    self._send_range(connection, specs[begin : begin + _PART], effects)
            else:
                loose += _in_order(specs)
        sent_submits = connection.execute(_SUBMIT, self._columns(loose)) if loose else None
        sent_ends = None
        if claims:
            columns = (
                numbers(c.task_id for c in claims), numbers(c.attempt for c in claims), blobs(e.result for e in endings)
            )  # fmt: skip
            sent_ends = connection.execute(_FINISH, (*columns, len(threaded), self._shard))
        return Sent(sent_saves, sent_followers, sent_submits, sent_ends)

    def _send_range(self, connection: psycopg.Connection[Any], specs: Sequence[TaskSpec], effects: Effects) -> None:
        first = specs[0]
        connection.execute(
            _RANGE,
            (
                first.ref.id, first.handler, first.queue, int(first.priority), blobs(s.payload for s in specs), first.options,
                first.crashes_max, self._shard,
            ),
        )  # fmt: skip
        effects.became_ready(first.queue, first.priority)
        self._desk.became_ready(first.queue, len(specs))

    def _columns(self, specs: Sequence[TaskSpec]) -> list[Any]:
        """Return the arguments of sennit_submit."""
        rows = [
            (
                s.ref.id, s.handler, s.queue, int(s.priority), s.thread_id, s.parent_id, s.child_key, s.on_parent_failed,
                s.payload, s.options, s.crashes_max, s.delay_us, s.deadline_us, s.queue_timeout_us, s.provider, s.route,
                len(s.parents),
            )
            for s in specs
        ]  # fmt: skip
        edges = [(p.id, s.ref.id, pos) for s in specs for pos, p in enumerate(s.parents)]
        columns: list[tuple[Any, ...]] = [
            *zip(*rows, strict=True),
            *(zip(*edges, strict=True) if edges else ((), (), ())),
        ]
        written = [_WRITTEN[kind](column) for kind, column in zip(_COLUMNS, columns, strict=True)]
        return [*written, self._shard]

    def _send_claims(self, connection: psycopg.Connection[Any], *, is_fresh: bool) -> list[tuple[str, int, Any]]:
        """Claim for the standing order, and ahead, unless `is_fresh`: what just became ready is for those with a slot."""
        claims = []
        for queue, n in self._desk.take_orders().items():
            n_ahead = self._desk.order.ahead(queue)
            beyond = (0 if is_fresh else n_ahead) if n_ahead else -1
            claims.append((queue, n, connection.execute(_CLAIM, (self._desk.members.id, queue, n, beyond))))
        return claims

    # ------------------------------------------------------------ reading what came back

    @staticmethod
    def _read_saved(saved: Sequence[tuple[Any, list[tuple[SaveStep | NoteAgent, Any]]]]) -> list[Settled]:
        settled: list[Settled] = []
        for sent, ops in saved:
            held = set(sent.fetchall())
            for op, ack in ops:
                kept = op.row[:2] in held
                if not kept:
                    op.desk.refused += 1
                settled.append((ack, kept, None))
        return settled

    def _read_submits(
        self,
        sent: Any,
        submits: Sequence[tuple[Submit | AddChildren, Any]],
        ends: Sequence[tuple[Finish, Any]],
        effects: Effects,
    ) -> list[Settled]:
        found = {} if sent is None else self._note(sent.fetchall(), effects)["found"]
        if found:
            children = [s for e in _successes(ends) for s in e.children]
            for spec in [s for op, _ in submits for s in op.specs] + children:
                spec.ref.id = found.get(spec.ref.id, spec.ref.id)
        settled: list[Settled] = []
        for op, ack in submits:
            settled.append((ack, [spec.ref.id for spec in op.specs], None))
        return settled

    def _read_ends(self, sent: Any, ends: Sequence[tuple[Finish, Any]], effects: Effects) -> list[Settled]:
        if sent is None:
            return []
        noted = self._note(sent.fetchall(), effects)
        if noted["cold"]:
            raise NotPlain
        accepted = noted["ok"]
        effects.ended += accepted
        outcomes = {
            e.claim.task_id: Outcome(State.SUCCEEDED, e.claim.attempt, e.result, None)
            for e in _successes(ends)
            if e.claim.task_id in accepted
        }
        self._desk.have_ended(outcomes)
        settled: list[Settled] = []
        for op, ack in ends:
            verdicts = [e.claim.task_id in accepted for e in op.endings]
            self._desk.refused += verdicts.count(False)
            settled.append((ack, verdicts, None))
        return settled

    def _note(self, rows: Sequence[tuple[str, Any, str, int]], effects: Effects) -> dict[str, dict[int, int]]:
        """Take note of what became ready and due; return the rest by what it is."""
        noted: dict[str, dict[int, int]] = {"found": {}, "ok": {}, "cold": {}}
        for what, number, word, n in rows:
            match what:
                case "ready" | "urgent":
                    effects.ready.add(word)
                    self._desk.became_ready(word, number)
                    if n:
                        self._desk.some_are_for_others(word)
                    if what == "urgent":
                        effects.urgent.add(word)
                case "due":
                    effects.due(number)
                case _:
                    noted[what][number] = n
        return noted

    def _read_claims(self, claims: Sequence[tuple[str, int, Any]], effects: Effects) -> None:
        for queue, n, sent in claims:
            (_, facts, more, urgent, held, *_), *rows = sent.fetchall()
            tasks = [_claimed(queue, row) for row in rows]
            self._desk.took(
                queue, n, tasks,
                leased=bool(facts & _LEASED), renewed=bool(facts & _RENEWED), lanes=bool(facts & _LANES),
                blocked=bool(facts & _BLOCKED), is_ready=queue in effects.ready, now_us=effects.now_us,
            )  # fmt: skip
            if more > 0:
                self._desk.note_ahead(queue, 0 if held else more, is_urgent=urgent > 0)
            if facts & _AHEAD:
                self._desk.others_hold_what_is_wanted()
            effects.claimed |= bool(tasks)
            effects.renewed |= bool(facts & _RENEWED)


def _do(operation: Beside[Any], wire: Wire, effects: Effects) -> Any:
    """Run an operation; one that raises is to undo only itself, which takes a savepoint."""
    try:
        return operation(wire, effects)
    except psycopg.Error:
        raise
    except Exception as error:
        raise NotPlain from error


def _successes(ends: Sequence[tuple[Finish, Any]]) -> list[Succeeded]:
    """Return the endings: only successes are plain."""
    return [ending for op, _ in ends for ending in op.endings if isinstance(ending, Succeeded)]


def _in_order(specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Return a batch with every parent before its dependants."""
    if not any(s.parents for s in specs):
        return list(specs)
    by_id = {s.ref.id: s for s in specs}
    try:
        return [by_id[i] for i in order_batch({s.ref.id: [p.id for p in s.parents] for s in specs})]
    except SubmitError:
        raise NotPlain from None  # whoever has handed it in is told, and nobody else


def _claimed(queue: str, row: tuple[Any, ...]) -> Claimed:
    (
        task_id, order_us, attempt, failures, crashes, handler, payload, options, thread_id, created_us, deadline_us,
        _, priority, results, keys, steps,
    ) = row  # fmt: skip
    return Claimed(
        id=task_id, attempt=attempt, failures=failures, crashes=crashes, handler=handler, queue=queue, payload=payload,
        options=options, thread_id=thread_id, created_us=created_us, deadline_us=deadline_us, priority=priority,
        ready_us=ready_us(priority, order_us=order_us), parents=tuple(results or ()),
        steps=dict(zip(keys or (), steps or (), strict=True)),
    )  # fmt: skip

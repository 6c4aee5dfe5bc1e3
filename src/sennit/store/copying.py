"""Moving house: a store, live tasks included, into another one of any kind.

    target shut (`arriving`) ─► source: pen ─► rows streamed ─► digests equal ─► what ran is given back ─► `verify` ─► target commits
                                             ─► source shut (`moved`) ─► target opened

At every moment at most one of the two can be worked with, wherever the process is killed: the target's rows are one
transaction, and it stays shut until the source is. Run again, it goes on from there: with the opening when the source is
shut already, else from the beginning. With `keep` the source is only read, of one moment, beside those who work: a fork.

The rows are compared by count and digest, read back from the target; then attempts that ran, whose processes are not
there, are ready again and have used nothing up, and what those processes held is free.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Final

from sennit.errors import SennitError, StoreCorrupt, StoreError, StoreUnavailable, UsageError
from sennit.model.task import Claim, GivenBack, Ledger, WorkerInfo
from sennit.store.copying_sides import LEDGER, Row, Side, Tables, Tally
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moved import Closing, closing_of
from sennit.store.moves import lock, look, over
from sennit.store.moves.entry import known_bounds
from sennit.store.moves.finish import finish

# What one kind of database counts for itself: `rows` leaves it out, and it begins anew on the other side.
OF_ONE_KIND: Final = {LEDGER: frozenset({"shard"}), "sennit_worker": frozenset({"hears", "hungry"})}
WORKERS: Final = "sennit_worker"
BATCH_ROWS: Final = 10_000
NUL_SHOWN: Final = "\N{SYMBOL FOR NULL}"

_SHOWN_MAX: Final = 5
_RUNNING: Final = "SELECT id, attempt FROM sennit_running ORDER BY id"
_PROCESSES: Final = """
SELECT id FROM sennit_worker UNION SELECT worker_id FROM sennit_permit UNION SELECT worker_id FROM sennit_lock_line ORDER BY 1
"""
_GONE: Final = ("DELETE FROM sennit_worker", "DELETE FROM sennit_stop", "DELETE FROM sennit_blocked")

Say = Callable[[str, int], object]


def _nobody(_step: str, _n: int) -> None:
    pass


@dataclass(slots=True)
class Copied:
    """What was done.

    Attributes:
        rows, digests: table → how many rows, and their digest, the same on both sides.
        given_back: attempts that are ready again.
        replaced: texts in which the character NUL became a visible one, for PostgreSQL has no place for it.
        resumed: the rows were there already, and only the opening was left.
    """

    ledger: Ledger
    rows: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    given_back: int = 0
    replaced: int = 0
    resumed: bool = False


def copy(source: Side, target: Side, *, keep: bool = False, say: Say = _nobody) -> Copied:
    """Move what is in `source` into `target`, which must be empty or left unfinished by a copy of the same source.

    Args:
        keep: leave the source open. Whoever works on both does what is live twice.
        say: told (table, rows so far) and of each step (its name, 0) as it begins.

    Raises:
        UsageError: they are the same, or processes use the source.
        StoreMoved: one of them is shut, for another reason than an unfinished copy between these two.
        StoreUnavailable: the target is not empty.
        StoreCorrupt: the source breaks a promise, or what came back from the target differs.
    """
    if source.identity == target.identity:
        raise UsageError(f"{source.name} cannot be copied into itself", fix="name another target")
    if (done := _finished(source, target, keep=keep, say=say)) is not None:
        return done
    mark = Closing(why="arriving", other=source.name, copy=secrets.token_hex(8), at_us=source.now_us())
    was_shut = _claim(source, target, mark, keep=keep, say=say)
    may_be_stored = False
    try:
        say("reading", 0)
        source.begin(alone=not keep)
        if not keep:
            _refuse_used(source)
        copied = _copy_rows(source, target, mark, keep=keep, say=say)
        may_be_stored = True
        say("committing the target", 0)
        target.commit()
        if keep:
            source.roll_back()
            return copied
        say("shutting the source", 0)
        source.shut(Closing(why="moved", other=target.name, copy=mark.copy, at_us=mark.at_us))
        source.commit()
    except BaseException as error:
        source.roll_back()
        target.roll_back()
        if not may_be_stored and not was_shut:
            with suppress(StoreError):  # it stays shut then; the same command goes on
                _write(target, target.open_again)  # nothing has come: it is as it was
        raise _explained(error, source, target) from error
    say("opening the target", 0)
    _write(target, target.open_again)
    say("done", 0)
    return copied


def _explained(error: BaseException, source: Side, target: Side) -> BaseException:
    """Return the store's own error for one of a driver; which end it came from is told by the driver, or it is the target."""
    if isinstance(error, SennitError):
        return error
    return target.explain(error) or source.explain(error) or error


def _write(side: Side, act: Callable[[], object]) -> None:
    side.begin(alone=True)
    try:
        act()
        side.commit()
    except BaseException as error:
        side.roll_back()
        raise _explained(error, side, side) from error


# ---------------------------------------------------------------- who may


def _finished(source: Side, target: Side, *, keep: bool, say: Say) -> Copied | None:
    """Open a target that is whole, when the source is shut already and nobody has said so; else None.

    Raises:
        StoreMoved: the source has moved elsewhere, or is itself an unfinished copy.
    """
    mine, theirs = closing_of(source.connection), closing_of(target.connection)
    if mine is None:
        return None
    if mine.why == "moved" and theirs is not None and theirs.why == "arriving" and theirs.copy == mine.copy:
        say("opening the target", 0)
        _write(target, target.open_again)
        say("done", 0)
        return Copied(look.ledger(target.connection), resumed=True)
    if keep and mine.why == "moved":
        return None  # a fork of what was there when it moved
    raise mine.error(source.name)


def _claim(source: Side, target: Side, mark: Closing, *, keep: bool, say: Say) -> bool:
    """Shut the target, so that nobody begins to work there; return whether an earlier copy had done so.

    Raises:
        StoreMoved: it waits for another source, or has moved.
        StoreUnavailable: it is not empty.
        UsageError: processes use the source.
    """
    if not keep:
        _refuse_used(source)
    theirs = closing_of(target.connection)
    if theirs is not None:
        if theirs.why != "arriving" or theirs.other != source.name:
            raise theirs.error(target.name)
        return True
    say("shutting the target", 0)

    def shut() -> None:
        _refuse_filled(target)
        target.shut(mark)

    _write(target, shut)
    return False


def _refuse_used(source: Side) -> None:
    if (closing := closing_of(source.connection)) is not None:  # another copy was faster
        raise closing.error(source.name)
    living = source.living()
    if living:
        shown = ", ".join(map(_who, living[:_SHOWN_MAX]))
        raise UsageError(
            f"{len(living)} {'process uses' if len(living) == 1 else 'processes use'} {source.name}: {shown}",
            why="what they run, and what they hand in from now on, would be lost to the copy",
            fix="stop them (a worker on another machine that was killed counts until its lease lapses), or make a fork: --keep",
        )


def _who(worker: WorkerInfo) -> str:
    return f"{worker.role} {worker.id} (pid {worker.pid} on {worker.host}, {worker.running} running)"


def _refuse_filled(target: Side) -> None:
    tables = target.tables()
    filled = [name for name in tables if name not in {LEDGER, WORKERS} and next(_head(target, name), None) is not None]
    if filled or any(n for _, n in list(target.rows(LEDGER, ("name", "n")))):
        raise StoreUnavailable(
            f"{target.name} is not empty: it has rows in {', '.join(filled) or LEDGER}",
            why="two stores cannot be joined: both count their tasks from 1",
            fix="name a new file, or a new database (createdb)",
        )
    if living := target.living():
        raise UsageError(f"{_who(living[0])} uses {target.name}", fix="stop it first")


def _head(side: Side, table: str) -> Iterator[Row]:
    yield from side.connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall()  # noqa: S608 - a name of ours


# ---------------------------------------------------------------- the rows


def _copy_rows(source: Side, target: Side, mark: Closing, *, keep: bool, say: Say) -> Copied:
    """Fill the target in one transaction; it stays shut unless `keep`, when this was all."""
    broken = look.verify(source.connection)
    if broken:
        raise StoreCorrupt(
            f"{source.name} breaks {len(broken)} of its promises: {broken[0]}",
            why="a copy would break them too",
            fix=f"look at them: sennit verify --db {source.name}",
        )
    ledger = look.ledger(source.connection)
    target.begin(alone=True)
    if closing_of(target.connection) is None:  # another copy was faster
        _refuse_filled(target)
    target.open_again()
    target.clear()
    copied = Copied(ledger)
    for table, columns in shared(source.tables(), target.tables(), source.name, target.name).items():
        out = Tally()
        # Closed at once when the other end fails: a statement that is half read holds its connection up.
        with closing(source.rows(table, columns)) as read:
            plain = _without_nul(read, copied) if target.plain_text and not source.plain_text else read
            target.fill(table, columns, out.of(_told(plain, table, say)))
        back = Tally()
        with closing(target.rows(table, columns)) as read:
            for row in read:
                back.add(row)
        if (back.n, back.digest) != (out.n, out.digest):
            raise _differs(target, f"{table} has {back.n:,} rows there and {out.n:,} here, or others")
        copied.rows[table], copied.digests[table] = out.n, out.digest
        say(table, out.n)
    facts = source.meta()
    target.put_meta(facts)
    if target.meta() != facts:
        raise _differs(target, "what is known of the store is not the same")
    target.end_filling(source.floors(source.tables()))
    say("settling", 0)
    copied.given_back = settle(target.connection, max(source.now_us(), target.now_us()))
    broken = look.verify(target.connection)
    if broken or look.ledger(target.connection) != ledger:
        raise _differs(target, broken[0] if broken else "the ledgers are not the same")
    if not keep:
        target.shut(mark)
    return copied


def _differs(target: Side, how: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"what was written to {target.name} is not what was read: {how}",
        why="a disk, a driver, or a bug of ours",
        fix="nothing was changed; check the target's disk, then report it",
    )


def shared(ours: Tables, theirs: Tables, here: str, there: str) -> dict[str, list[str]]:
    """Return the tables and columns that both sides have; in one order, so that digests are the same wherever they are taken.

    Raises:
        StoreError: one side has something that the other has no place for.
    """
    odd = sorted(set(ours) ^ set(theirs))
    for table in set(ours) & set(theirs):
        odd += [
            f"{table}.{name}" for name in (set(ours[table]) ^ set(theirs[table])) - OF_ONE_KIND.get(table, frozenset())
        ]
    if odd:
        raise StoreError(
            f"{here} and {there} do not have the same columns: {', '.join(odd)}",
            why="they are of different versions of sennit, or somebody has changed them",
            fix="bring both to this version: sennit db migrate",
        )
    return {table: sorted(set(columns) - OF_ONE_KIND.get(table, frozenset())) for table, columns in ours.items()}


def _without_nul(rows: Iterable[Row], copied: Copied) -> Iterator[Row]:
    for row in rows:
        if any(type(value) is str and "\0" in value for value in row):
            copied.replaced += 1
            yield tuple(value.replace("\0", NUL_SHOWN) if type(value) is str else value for value in row)
        else:
            yield row


def _told(rows: Iterable[Row], table: str, say: Say) -> Iterator[Row]:
    for n, row in enumerate(rows, 1):
        yield row
        if n % BATCH_ROWS == 0:
            say(table, n)


# ---------------------------------------------------------------- nobody is there yet


def settle(connection: Connection, now_us: int) -> int:
    """Make what ran ready again, at its old place and with nothing used up; free what processes held.

    Returns how many attempts were given back. None of the processes in the rows can be at this store.
    """
    effects = Effects(now_us, known_bounds(connection))
    claims = [Claim(*row) for row in connection.execute(_RUNNING).fetchall()]
    finish(connection, effects, [GivenBack(claim) for claim in claims])
    processes = [process for (process,) in connection.execute(_PROCESSES).fetchall()]
    for process in processes:
        over.free_worker(connection, effects, process)
    lock.free(connection, effects, processes)
    for statement in _GONE:
        connection.execute(statement)
    return len(claims)

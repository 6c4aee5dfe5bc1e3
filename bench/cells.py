"""Two protocols between databases, tried under faults: edges that cross them, and a shard that moves.

    python bench/cells.py             about three seconds; the same figures every time

    cell A: parent ends, its edges become outbox rows, one transaction     cell B: the child waits, need = 2
            outbox ── release(parent, child) ──► B: delete the edge row; if it was there, need - 1; at 0: ready
            ◄── done ── only now A deletes its outbox row

Nothing of this is built into sennit, where an edge and both its ends are in one database. Messages are lost, doubled and
reordered, cells die between a message and their commit. Each protocol is also run broken, in the ways that look harmless:
a check that finds nothing there would prove nothing here. The page docs/explanation/very-large-fleets.md quotes the tables.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from report import drawn

CELLS: Final = 4
TASKS: Final = 2_000
PARENTS_MAX: Final = 3
CROSSING: Final = 0.3  # of the edges
LOST, DOUBLED = 0.2, 0.2
SEEDS: Final = (1, 2, 3, 4, 5)

AGAIN: Final = 0.002  # how often, per thing that happens, a cell sends its outbox again

Row = tuple[str, int, int]  # (what, parent, child)

EDGES_BROKEN: Final = (
    "",
    "a counter without edge rows",
    "the outbox row goes when it is sent",
    "who registers is not told of a parent that has ended",
    "the outbox is written after the commit",
)


@dataclass(slots=True)
class Database:
    """What is durable in one cell; everything else is gone when it dies."""

    need: dict[int, int] = field(default_factory=dict)  # waiting tasks
    edges: set[tuple[int, int]] = field(default_factory=set)  # open edges to tasks of this cell: (parent, child)
    remote: set[tuple[int, int]] = field(default_factory=set)  # edges from tasks of this cell to those of others
    outbox: set[Row] = field(default_factory=set)  # for other cells
    ended: set[int] = field(default_factory=set)


class EdgesDay(NamedTuple):
    """What came of one run; the first three must be 0."""

    stuck: int
    early: int
    twice: int
    crossing: int
    messages_per_edge: float


class Edges:
    """Tasks with parents in any cell, until nothing moves any more."""

    def __init__(self, seed: int, broken: str = "") -> None:
        self.random = Random(seed)
        self.broken = broken
        self.cells = [Database() for _ in range(CELLS)]
        self.home = [self.random.randrange(CELLS) for _ in range(TASKS)]
        self.parents = [self._parents_of(task) for task in range(TASKS)]
        self.ready: list[int] = []
        self.starts: Counter[int] = Counter()
        self.wire: list[tuple[int, str, int, int]] = []  # (to, what, parent, child)
        self.messages = self.early = 0

    def _parents_of(self, task: int) -> set[int]:
        """Return parents that were submitted shortly before, most of them in the same cell."""
        found: set[int] = set()
        for _ in range(self.random.randint(0, PARENTS_MAX) if task else 0):
            near = range(max(0, task - 50), task)
            same = [one for one in near if self.home[one] == self.home[task]]
            found.add(self.random.choice(near if self.random.random() < CROSSING or not same else same))
        return found

    def run(self) -> EdgesDay:
        """Submit everything, do one thing at random at a time, and let retries go on until nothing is left to retry."""
        submitted = 0
        while True:
            choices = ["submit"] * (submitted < TASKS) + ["end"] * bool(self.ready) + ["deliver"] * 4 * bool(self.wire)
            if not choices or self.random.random() < AGAIN:
                if not choices and not any(cell.outbox for cell in self.cells):
                    break
                choices = ["send again"]
            match self.random.choice(choices):
                case "submit":
                    self.submit(submitted)
                    submitted += 1
                case "end":
                    self.end(self.ready.pop(self.random.randrange(len(self.ready))))
                case "deliver":
                    self.deliver(*self.wire.pop(self.random.randrange(len(self.wire))))
                case _:
                    self.send_again()
        crossing = sum(self.home[one] != self.home[task] for task in range(TASKS) for one in self.parents[task])
        return EdgesDay(
            stuck=TASKS - len(self.starts),
            early=self.early,
            twice=sum(times - 1 for times in self.starts.values()),
            crossing=crossing,
            messages_per_edge=self.messages / crossing,
        )

    # ---------------------------------------------------------------- each is one transaction of one cell

    def submit(self, task: int) -> None:
        """Store a task with its edges; parents elsewhere are told by the outbox."""
        cell = self.cells[self.home[task]]
        open_here = {one for one in self.parents[task] if self.home[one] != self.home[task] or one not in cell.ended}
        cell.need[task] = len(open_here)
        cell.edges |= {(one, task) for one in open_here}
        self._send(cell, {("register", one, task) for one in open_here if self.home[one] != self.home[task]})
        self._ready_if_free(task)

    def end(self, task: int) -> None:
        """Record the end of a task, release its children here, and put those elsewhere into the outbox."""
        cell = self.cells[self.home[task]]
        cell.ended.add(task)
        for edge in [edge for edge in cell.edges if edge[0] == task]:
            self._release(*edge)
        far = {edge for edge in cell.remote if edge[0] == task}
        cell.remote -= far
        if self.broken == "the outbox is written after the commit" and self.random.random() < 0.01:
            return  # it died between the two
        self._send(cell, {("release", *edge) for edge in far})

    def send_again(self) -> None:
        """Send what the outbox of some cell still has: nobody has said that it came."""
        cell = self.random.choice(self.cells)
        self._send(cell, cell.outbox)

    def deliver(self, to: int, what: str, parent: int, child: int) -> None:
        """Handle one message in one transaction, or die before its commit: then nothing has happened."""
        if self.random.random() < 0.05:
            return
        cell = self.cells[to]
        match what:
            case "register":
                if parent not in cell.ended:
                    cell.remote.add((parent, child))
                elif self.broken != "who registers is not told of a parent that has ended":
                    self._send(cell, {("release", parent, child)})
                self._post(self.home[child], "registered", parent, child)
            case "release":
                self._release(parent, child)
                self._post(self.home[parent], "released", parent, child)
            case "registered":
                cell.outbox.discard(("register", parent, child))
            case "released":
                cell.outbox.discard(("release", parent, child))

    def _release(self, parent: int, child: int) -> None:
        cell = self.cells[self.home[child]]
        known = (parent, child) in cell.edges
        cell.edges.discard((parent, child))
        if child in cell.need and (known or self.broken == "a counter without edge rows"):
            cell.need[child] -= 1
            self._ready_if_free(child)

    def _ready_if_free(self, task: int) -> None:
        need = self.cells[self.home[task]].need
        if need[task] <= 0:
            del need[task]
            self.starts[task] += 1
            self.early += any(one not in self.cells[self.home[one]].ended for one in self.parents[task])
            self.ready.append(task)

    def _send(self, cell: Database, rows: set[Row]) -> None:
        """Put rows into the outbox, in the transaction that is under way, and send them after it."""
        cell.outbox |= rows
        for what, parent, child in sorted(rows):
            self._post(self.home[parent if what == "register" else child], what, parent, child)
        if self.broken == "the outbox row goes when it is sent":
            cell.outbox -= rows

    def _post(self, to: int, what: str, parent: int, child: int) -> None:
        self.messages += 1
        if self.random.random() >= LOST:
            self.wire += [(to, what, parent, child)] * (2 if self.random.random() < DOUBLED else 1)


# ---------------------------------------------------------------- a shard moves

MOVE_BROKEN: Final = (
    "",
    "a cell takes whatever comes",
    "the map changes before the copy",
    "the receiver's ids go on from where its own were",
)
ROUTERS: Final = 20
WRITES: Final = 3_000
MOVES: Final = 12
COPY_WRITES: Final = 40  # so many writes are tried while a shard is copied


class MoveDay(NamedTuple):
    """What came of one run; the first two must be 0."""

    lost: int
    same_id_twice: int
    sent_again: float
    refused_while_moving: float


class Moving:
    """One shard that moves from cell to cell, while routers with maps of different age write to it.

        map v1: A owns it ─► v2: A has closed it, nobody writes ─► copied ─► B's ids go on above A's ─► v3: B owns it

    The cell decides, in the transaction of the write: it takes a write only for a shard that it owns. A router's map
    only says whom to ask first.
    """

    def __init__(self, seed: int, broken: str = "") -> None:
        self.random = Random(seed)
        self.broken = broken
        self.rows: list[dict[int, int]] = [{} for _ in range(CELLS)]  # of this shard, per cell: id -> what was written
        self.sequence = [self.random.randrange(1, 500) for _ in range(CELLS)]
        self.owner: int | None = 0
        self.maps = [0] * ROUTERS
        self.accepted: dict[int, int] = {}  # what was written -> id
        self.given: set[int] = set()
        self.twice = self.refused = self.again = 0

    def run(self) -> MoveDay:
        """Write, move, write while it moves; look at the end at what is there."""
        move_at = set(self.random.sample(range(WRITES), MOVES))
        for number in range(WRITES):
            self.write(number)
            if number in move_at:
                self.move(number)
        here = self.rows[self.owner or 0]
        lost = sum(here.get(task) != number for number, task in self.accepted.items())
        tried = len(self.accepted) + self.refused
        return MoveDay(lost, self.twice, self.again / len(self.accepted), self.refused / tried)

    def write(self, number: int) -> bool:
        """Let some router store one task: at the cell its map names, then at the one it is told of."""
        router = self.random.randrange(ROUTERS)
        cell = self.maps[router]
        if self.broken != "a cell takes whatever comes" and cell != self.owner:
            if self.owner is None:
                self.refused += 1  # nobody owns it for a moment: the router waits for the next version
                return False
            self.again += 1
            cell = self.maps[router] = self.owner
        self.sequence[cell] += 1
        task = self.sequence[cell]
        self.twice += task in self.given
        self.given.add(task)
        self.rows[cell][task] = number
        self.accepted[number] = task
        return True

    def move(self, number: int) -> None:
        """Move the shard to another cell."""
        old = self.owner or 0
        new = self.random.choice([cell for cell in range(CELLS) if cell != old])
        copy = dict(self.rows[old])
        self.owner = new if self.broken == "the map changes before the copy" else None
        for extra in range(COPY_WRITES):
            self.write(WRITES + number * COPY_WRITES + extra)
        if self.broken != "the receiver's ids go on from where its own were":
            self.sequence[new] = max(self.sequence[new], self.sequence[old])
        self.rows[new] = copy
        self.owner = new
        if self.broken == "a cell takes whatever comes":
            self.maps[self.random.randrange(ROUTERS)] = new  # maps are read again some time


def edges_days(broken: str = "") -> list[EdgesDay]:
    """Run the edges under each seed."""
    return [Edges(seed, broken).run() for seed in SEEDS]


def move_days(broken: str = "") -> list[MoveDay]:
    """Move the shard about under each seed."""
    return [Moving(seed, broken).run() for seed in SEEDS]


def edges_table() -> str:
    """Return the sums over the seeds: the protocol as it is, and broken."""
    rows = [["edges across cells", "stuck", "started early", "started twice", "messages per edge"]]
    for broken in EDGES_BROKEN:
        found = edges_days(broken)
        sums = [f"{sum(one[place] for one in found):,}" for place in range(3)]
        rows.append(
            [broken or "as it is", *sums, f"{sum(one.messages_per_edge for one in found) / len(found):.1f}"],
        )
    return drawn(rows)


def move_table() -> str:
    """Return the sums over the seeds: the protocol as it is, and broken."""
    rows = [["a shard moves", "acknowledged and lost", "an id given twice", "sent again", "refused while it moves"]]
    for broken in MOVE_BROKEN:
        found = move_days(broken)
        again, refused = (
            f"{100 * sum(shares) / len(found):.1f} %"
            for shares in ([one.sent_again for one in found], [one.refused_while_moving for one in found])
        )
        lost, twice = (f"{sum(one[place] for one in found):,}" for place in range(2))
        rows.append([broken or "as it is", lost, twice, again, refused])
    return drawn(rows)


if __name__ == "__main__":
    print(edges_table(), move_table(), sep="\n\n")

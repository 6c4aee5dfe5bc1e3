"""One provider limit for a fleet of many databases: a row per call, a fixed split, or blocks that are leased.

    python bench/block_leases.py      about five seconds; the same figures every time

    cell ── "I hold 7 and could use 12" ──► bank      every tick, numbered, one at a time
         ◄── "have 9 until then" ──────────           from what nobody holds, to a max-min fair share

A *cell* is one database with its nodes, the *bank* the one that keeps the limit. Nothing of this is built into sennit,
which has one database and a row per call. The page docs/explanation/very-large-fleets.md quotes the tables.

Why nothing is granted twice: the bank lowers what it has booked for a cell only to what that cell itself says it holds,
in its newest report; a cell takes an answer only to its newest report; and a cell that has had no answer for
`FENCE_SHARE` of a lease ends its calls before the bank books its block back. Max-min fairness: Bertsekas and Gallager,
Data Networks, 6.5.2.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from random import Random
from statistics import fmean, median
from typing import Final, Literal

from report import drawn

Way = Literal["a row per call", "a fixed split", "leased blocks"]

LIMIT: Final = 100
CELLS: Final = 20
CALL_S: Final = 8.0
DELAY_S: Final = (0.001, 0.010)  # one way, between a cell and the bank
FENCE_SHARE: Final = 0.9  # a cell's clock may run a tenth slower than the bank's
WARM_S: Final = 30.0  # the use of the limit counts from here on
HOT_S: Final = 60.0  # so long the same cells have most of the work
GREEDY: Final = 2.0  # times the whole limit, wanted by one cell
MODEST: Final = 0.5  # times the whole limit, wanted by all the others together
GREEDY_WEIGHTS: Final = (GREEDY, *[MODEST / (CELLS - 1)] * (CELLS - 1))


@dataclass(frozen=True, kw_only=True)
class Day:
    """What is simulated.

    Attributes:
        load: calls that arrive, as a share of what the limit lets through.
        greedy: one cell wants far more than the limit, the others half of their share.
        faults: a cell is cut off, or dies, every `fault_s`.
        broken: how the protocol is broken on purpose; "" is the sound one.
    """

    way: Way = "leased blocks"
    load: float = 1.2
    call_s: float = CALL_S
    tick_s: float = 1.0
    lease_s: float = 15.0
    for_s: float = 180.0
    seed: int = 1
    greedy: bool = False
    faults: bool = False
    fault_s: float = 10.0
    broken: Literal["", "cells do not fence", "lent before it is given back", "old answers count"] = ""


@dataclass(slots=True)
class Cell:
    """One database and its nodes, as far as this limit goes."""

    waiting: deque[float] = field(default_factory=deque)
    out: set[int] = field(default_factory=set)  # calls that are on their way
    held: int = 0
    target: int = 0
    report: int = 0
    sent_s: float = 0.0
    answered: bool = True
    fence_s: float = float("inf")
    cut_off_s: float = 0.0  # until then no message passes
    down_s: float = 0.0  # until then it does nothing
    waits_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a day; waits are of calls that have begun."""

    use: float
    at_once: int
    bank_per_s: float
    wait_mean_s: float
    wait_p95_s: float
    wait_worst_cell_s: float
    modest_p95_s: float
    ended: int


def fair_shares(wanted: list[int], limit: int) -> list[int]:
    """Return the max-min fair shares: nobody gets more than it wants while another gets less than both could have.

    What nobody wants is shared out evenly on top, so that a call that arrives between two ticks can begin.
    """
    shares, left = [0] * len(wanted), limit
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for done, cell in enumerate(order):
        shares[cell] = min(wanted[cell], left // (len(order) - done))
        left -= shares[cell]
    for turn in range(left):
        shares[order[turn % len(order)]] += 1
    return shares


class Fleet:
    """A discrete-event simulation of one day."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self.random = Random(day.seed)
        self.now_s = 0.0
        self.cells = [Cell() for _ in range(CELLS)]
        self.booked = [0] * CELLS
        self.lapses_s = [0.0] * CELLS
        self.heard = [0] * CELLS
        self.wanted = [0] * CELLS
        self.line: deque[int] = deque()  # a row per call: whose turn it is
        self.bank_requests = self.ended = self.at_once = 0
        self._busy_s = self._since_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._out = 0
        self._weights = [(place + 1) ** -1.1 for place in range(CELLS)]
        self._hot_until_s = 0.0

    def at(self, time_s: float, what: Callable[[], None]) -> None:
        """Let `what` happen then."""
        heapq.heappush(self._events, (time_s, next(self._number), what))

    def run(self) -> Outcome:
        """Run the day."""
        self.at(0.0, self.arrive)
        for number, cell in enumerate(self.cells):
            match self.day.way:
                case "a fixed split":
                    cell.held = cell.target = LIMIT // CELLS
                case "leased blocks":
                    self.at(self.random.uniform(0, self.day.tick_s), partial(self.tick, number))
                case "a row per call":
                    pass
        if self.day.faults:
            self.at(self.day.fault_s, self.fault)
        self.at(WARM_S, self.warm)
        while self._events and self._events[0][0] <= self.day.for_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self._count(0)
        return self._outcome()

    # ---------------------------------------------------------------- calls

    def arrive(self) -> None:
        """One call is wanted in some cell."""
        if self.now_s >= self._hot_until_s:
            self._hot_until_s += HOT_S
            self.random.shuffle(self._weights)
        load = GREEDY + MODEST if self.day.greedy else self.day.load
        (number,) = self.random.choices(range(CELLS), GREEDY_WEIGHTS if self.day.greedy else self._weights)
        self.cells[number].waiting.append(self.now_s)
        if self.day.way == "a row per call":
            self.line.append(number)
        self.begin(number)
        self.at(self.now_s + self.random.expovariate(load * LIMIT / self.day.call_s), self.arrive)

    def begin(self, number: int) -> None:
        """Begin what may begin: in this cell, or in whichever has waited longest."""
        if self.day.way == "a row per call":
            while self.line and self._out < LIMIT:
                self._begin_one(self.line.popleft())
            return
        cell = self.cells[number]
        while cell.waiting and len(cell.out) < cell.held and cell.down_s <= self.now_s:
            self._begin_one(number)

    def _begin_one(self, number: int) -> None:
        cell, call = self.cells[number], next(self._number)
        cell.waits_s.append(self.now_s - cell.waiting.popleft())
        cell.out.add(call)
        self._count(+1)
        self.bank_requests += self.day.way == "a row per call"
        # A lognormal duration of this mean, as model calls have them.
        self.at(self.now_s + self.day.call_s * self.random.lognormvariate(-0.18, 0.6), partial(self.end, number, call))

    def end(self, number: int, call: int) -> None:
        """The call is over, unless it was ended before."""
        cell = self.cells[number]
        if call not in cell.out:
            return
        cell.out.remove(call)
        self._count(-1)
        self.ended += 1
        self.bank_requests += self.day.way == "a row per call"
        if cell.held > cell.target and self.day.way == "leased blocks":
            cell.held -= 1  # it has more than its share: others learn of it with the next report
        self.begin(number)

    def stop(self, number: int) -> None:
        """End all calls of a cell; they are made again later."""
        cell = self.cells[number]
        cell.waiting.extendleft([self.now_s] * len(cell.out))
        self._count(-len(cell.out))
        cell.out.clear()
        cell.held = cell.target = 0

    # ---------------------------------------------------------------- blocks

    def tick(self, number: int) -> None:
        """Report to the bank; a report without an answer is given up by the next one."""
        cell = self.cells[number]
        self.at(self.now_s + self.day.tick_s, partial(self.tick, number))
        if cell.down_s > self.now_s:
            return
        if cell.held > cell.target:
            cell.held = max(len(cell.out), cell.target)
        cell.report += 1
        report, held, wanted, sent_s = cell.report, cell.held, len(cell.out) + len(cell.waiting), self.now_s
        self._send(number, partial(self.book, number, report, held, wanted, sent_s))

    def book(self, number: int, report: int, held: int, wanted: int, sent_s: float) -> None:
        """The bank: take back what lapsed and what is given back, then lend what is free."""
        if report <= self.heard[number]:
            return
        self.bank_requests += 1
        self.heard[number], self.wanted[number] = report, wanted
        for other in range(CELLS):
            if self.booked[other] and self.lapses_s[other] <= self.now_s:
                self.booked[other] = self.wanted[other] = 0
        self.booked[number] = min(held, self.booked[number])  # a block that has lapsed is not revived by its report
        target = fair_shares(self.wanted, LIMIT)[number]
        free = LIMIT - sum(self.booked)
        if self.day.broken == "lent before it is given back":
            free = LIMIT - sum(min(*pair) for pair in zip(self.booked, fair_shares(self.wanted, LIMIT), strict=True))
        if target > self.booked[number]:
            self.booked[number] += min(max(free, 0), target - self.booked[number])
        self.lapses_s[number] = self.now_s + self.day.lease_s
        granted = self.booked[number]
        self._send(number, partial(self.granted, number, report, granted, min(target, granted), sent_s))

    def granted(self, number: int, report: int, granted: int, target: int, sent_s: float) -> None:
        """The answer has come."""
        cell = self.cells[number]
        stale = report != cell.report and self.day.broken != "old answers count"
        if stale or cell.down_s > self.now_s:
            return
        cell.held, cell.target = granted, target
        if granted < len(cell.out):  # the block had lapsed: what was begun with it ends
            self.stop(number)
        cell.fence_s = sent_s + FENCE_SHARE * self.day.lease_s
        if self.day.broken != "cells do not fence":
            self.at(cell.fence_s, partial(self.fence, number))
        self.begin(number)

    def fence(self, number: int) -> None:
        """No answer for most of a lease: whoever holds the bank may lend this block to others."""
        if self.now_s >= self.cells[number].fence_s:
            self.stop(number)

    def _send(self, number: int, arrives: Callable[[], None]) -> None:
        """Carry a message between the bank and a cell; in a day of faults some are lost, some come late or twice."""
        cell = self.cells[number]
        if cell.cut_off_s > self.now_s or (self.day.faults and self.random.random() < 0.02):
            return
        copies = 2 if self.day.faults and self.random.random() < 0.1 else 1
        for _ in range(copies):
            late_s = 4 * self.day.tick_s if self.day.faults and self.random.random() < 0.2 else 0.0
            self.at(self.now_s + self.random.uniform(*DELAY_S) + self.random.random() * late_s, arrives)

    # ---------------------------------------------------------------- faults and figures

    def fault(self) -> None:
        """Cut one cell off for one to three leases, or let it die and come back."""
        self.at(self.now_s + self.day.fault_s, self.fault)
        number = self.random.randrange(CELLS)
        cell = self.cells[number]
        if self.random.random() < 0.5:
            cell.cut_off_s = self.now_s + self.day.lease_s * self.random.uniform(1, 3)
            return
        self.stop(number)
        cell.report += 1  # a life of its own: answers to the one before are not for it
        cell.down_s = self.now_s + self.random.uniform(1, 2 * self.day.lease_s)

    def warm(self) -> None:
        """From here on the use counts."""
        self._count(0)
        self._busy_s = 0.0

    def _count(self, change: int) -> None:
        self._busy_s += self._out * (self.now_s - self._since_s)
        self._since_s = self.now_s
        self._out += change
        self.at_once = max(self.at_once, self._out)

    def _outcome(self) -> Outcome:
        waits_s = sorted(wait_s for cell in self.cells for wait_s in cell.waits_s)
        modest_s = sorted(wait_s for cell in self.cells[1:] for wait_s in cell.waits_s)
        return Outcome(
            use=self._busy_s / (self.now_s - WARM_S) / LIMIT,
            at_once=self.at_once,
            bank_per_s=self.bank_requests / self.now_s,
            wait_mean_s=fmean(waits_s),
            wait_p95_s=waits_s[int(0.95 * len(waits_s))],
            wait_worst_cell_s=max(fmean(cell.waits_s) for cell in self.cells if cell.waits_s),
            modest_p95_s=modest_s[int(0.95 * len(modest_s))],
            ended=self.ended,
        )


SEEDS: Final = (1, 2, 3)


def days(day: Day) -> list[Outcome]:
    """Run a day under each seed."""
    return [Fleet(replace(day, seed=seed)).run() for seed in SEEDS]


def _row(name: str, crowded: list[Outcome], calm: list[Outcome], greedy: list[Outcome]) -> list[str]:
    return [
        name,
        f"{100 * median(one.use for one in crowded):.1f} %",
        str(max(one.at_once for one in crowded)),
        f"{median(one.bank_per_s for one in crowded):.0f}",
        f"{median(one.wait_mean_s for one in calm):.2f} s",
        f"{median(one.wait_p95_s for one in calm):.1f} s",
        f"{median(one.modest_p95_s for one in greedy):.1f} s",
    ]


def ways_table() -> str:
    """Return each way under load 120 % (use, most at once, requests), 80 % (waits), and with a greedy cell."""
    rows = [["way", "use", "most at once", "requests/s", "wait", "wait p95", "p95 beside a greedy cell"]]
    variants: list[tuple[str, Day]] = [
        ("a row per call", Day(way="a row per call")),
        ("a fixed split", Day(way="a fixed split")),
        *((f"leased blocks, tick {tick_s:g} s", Day(tick_s=tick_s)) for tick_s in (0.5, 1.0, 5.0)),
        ("a row per call, calls of 1 s", Day(way="a row per call", call_s=1.0, for_s=90.0)),
        ("leased blocks, tick 1 s, calls of 1 s", Day(call_s=1.0, for_s=90.0)),
    ]
    for name, day in variants:
        rows.append(_row(name, days(day), days(replace(day, load=0.8)), days(replace(day, greedy=True))))
    return drawn(rows)


def faults_table() -> str:
    """Return the sound protocol and its broken forms on bad days."""
    rows = [["protocol", f"most at once (limit {LIMIT})", "use"]]
    for broken in ("", "cells do not fence", "lent before it is given back", "old answers count"):
        found = days(Day(faults=True, for_s=600.0, broken=broken))
        use = 100 * median(one.use for one in found)
        rows.append([broken or "as it is", str(max(one.at_once for one in found)), f"{use:.1f} %"])
    return drawn(rows)


if __name__ == "__main__":
    print(ways_table(), faults_table(), sep="\n\n")

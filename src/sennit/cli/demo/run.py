"""The director of the demo: it makes the place, starts the crew, hands in one task and watches the rest follow.

    place (temporary, or --db) ─► workers ─► model ─► plan ─► … 40 % … kill -9, quota used up … 100 % ─► stock ─► report
                                                       ├─► question ─► person ─► answer ──────────┤
                                                       └─► agents ─► at their gates ─► go on ─────┘

The director is a plain client: it learns what happens by awaiting handles, and never looks at a clock to do so. It
forks the workers (see crew.py), so nothing before them may start an OS thread.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import sennit
from sennit.cli.demo import fleet, journal
from sennit.cli.demo.audit import audited
from sennit.cli.demo.auditors import Auditors, with_ends
from sennit.cli.demo.crew import Crew, crew
from sennit.cli.demo.fleet import PlannedTask, Reading
from sennit.cli.demo.model import Model, model_of
from sennit.cli.demo.person import Person
from sennit.cli.demo.place import Place, place_for
from sennit.cli.demo.plan import Plan, plan
from sennit.cli.demo.question import approval_of, asking
from sennit.cli.demo.records import Approval, Kill, ModelUse, RunReport
from sennit.cli.demo.stock import Stock, planned_labels, take_stock
from sennit.cli.progress import Progress
from sennit.errors import UsageError
from sennit.model.lifecycle import State
from sennit.model.task import Outcome
from sennit.sync.clock import monotonic_s, uptime_us

FILES_MAX = 400
KILL_AT = 0.4
# The quota ends between these two, when all files are analysed. What the killed worker held has been taken up then, and
# workers that compute begin calls by the handful: nothing can hold back those that are on their way when the quota ends.
EXHAUST_AT, EXHAUST_BY = 0.5, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asked for.

    Attributes:
        db: file for the database, which is kept; None for a temporary one.
        out: folder for the report.
        kill: whether a worker is killed on the way.
        somebody: whether the question can be answered at this terminal.
        yes: answer it with yes at once.
        command: how the report says it was made.
    """

    root: Path
    out: Path
    command: str
    workers: int = 3
    seed: int = 7
    fast: bool = False
    keep: bool = False
    db: Path | None = None
    kill: bool = True
    somebody: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True)
class Screen:
    """Where the live side goes: `say` writes a line that stays, `live` replaces the last one. None is nowhere."""

    say: Callable[[str], None] | None = None
    live: Callable[[str], None] | None = None

    def tell(self, text: str) -> None:
        """Write a line that stays."""
        if self.say is not None:
            self.say(text)

    def bar(self, total: int) -> Progress:
        """Return the bar of a run of `total` tasks."""
        return Progress(total, clock_s=monotonic_s, live=self.live, say=self.tell)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run went; `report` is a draft unless it is published."""

    stock: Stock
    kills: tuple[Kill, ...]
    first_result_s: float
    report: Path
    approval: Approval | None = None
    use: ModelUse | None = None

    def line(self) -> str:
        """Return the run in one line."""
        book, n_kills = self.stock.ledger, len(self.kills)
        failed = f", {book.failed + book.cancelled} failed" if self.stock.failures else ""
        n_agents = 0 if self.stock.agents is None else self.stock.agents.agents
        return (
            f"{book.submitted} tasks, {n_agents} {'agent' if n_agents == 1 else 'agents'}, {n_kills} {'kill' if n_kills == 1 else 'kills'}, {book.rescued} rescued, "
            f"{book.retries} {'retry' if book.retries == 1 else 'retries'}{failed}, {self.asked()}, {book.lost} lost, "
            f"{book.duplicated} duplicated, {book.seconds:.1f} s, {self._outcome()}: {self.report}"
        )

    def asked(self) -> str:
        """Return how many questions went to people; that nobody has answered is said elsewhere."""
        n = len(self.stock.asked)
        return f"{n} {'human' if n == 1 else 'humans'} asked"

    def _outcome(self) -> str:
        return "report" if self.stock.published else "not published, draft"

    @property
    def exit_code(self) -> int:
        """0 when all that was planned has succeeded exactly once and everything balances, else 1.

        A no is an answer like any other: all has gone well, and the report stays a draft.
        """
        return 0 if self.stock.sound else 1

    def facts(self) -> dict[str, Any]:
        """Return the run for --json."""
        book = self.stock.ledger
        return {
            "tasks": book.submitted,
            "succeeded": book.succeeded,
            "failed": book.failed,
            "cancelled": book.cancelled,
            "live": book.live,
            "kills": len(self.kills),
            "rescued": book.rescued,
            "retries": book.retries,
            "rate_limited": book.rate_limited,
            "lost": book.lost,
            "duplicated": book.duplicated,
            "seconds": round(book.seconds, 3),
            "first_result_s": round(self.first_result_s, 3),
            "sound": self.stock.sound,
            "problems": self.stock.problems,
            "failures": self.stock.failures,
            "waited_s": {waited.reason: round(waited.seconds, 3) for waited in self.stock.waited},
            "asked": len(self.stock.asked),
            "approval": self.approval and msgspec.structs.asdict(self.approval),
            "published": self.stock.published,
            "agents": self.stock.agents and msgspec.structs.asdict(self.stock.agents),
            "model": self.use and msgspec.structs.asdict(self.use),
            "report": str(self.report),
        }


def run(request: Request, screen: Screen, *, started_us: int) -> Result:
    """Run the demo.

    Args:
        started_us: when somebody began to wait for it, uptime.

    Raises:
        UsageError: there is nothing to read, nowhere to write, or the database holds tasks already.
        SennitError: a worker process ended by itself; the store or the model server cannot be opened.
    """
    tree = plan(request.root, files_max=FILES_MAX)
    _make_folder(request.out)
    with ExitStack() as stack:
        place = stack.enter_context(place_for(request.db, keep=request.keep))
        hands = stack.enter_context(crew(place.url, n=request.workers, log=place.log))
        model = stack.enter_context(
            model_of(workers=request.workers, n_files=len(tree.files), seed=request.seed, fast=request.fast)
        )
        fleet.app.use(place.url)
        stack.callback(fleet.app.close)
        if request.db is not None:
            _refuse_used(place)
        director = _Director(request, place, screen, started_us=started_us, hands=hands, model=model)
        asyncio.run(director.direct(tree))
        if request.keep or request.db:
            screen.tell(f"kept: {place}")
        return _conclude(director, tree, model)


# ---------------------------------------------------------------- what is refused


def _make_folder(folder: Path) -> None:
    fix = "choose another with --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", fix=fix) from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write to the folder {folder}", fix=fix)


def _refuse_used(place: Place) -> None:
    """The ledger must count this run and nothing else, or it proves nothing."""
    submitted = fleet.app.ledger().result().submitted
    if submitted or place.journal.exists():
        raise UsageError(
            f"{place.database} holds {submitted} tasks already",
            why="the demo counts every task of its database, so it wants one of its own",
            fix="name a new one, as in --db sqlite:///new.db, or leave --db out",
        )


# ---------------------------------------------------------------- the run


class _Director:
    """One run, from the first worker to the last result."""

    def __init__(
        self, request: Request, place: Place, screen: Screen, *, started_us: int, hands: Crew, model: Model
    ) -> None:
        self.request = request
        self.place = place
        self.started_us = started_us
        self.first_us = 0
        self.ended_us = 0
        self.killed_us = hands.killed_us
        self._hands = hands
        self._model = model
        self._screen = screen
        self._asking = asking(somebody=request.somebody, fast=request.fast)
        self._person = Person(
            asking=self._asking,
            at_keyboard=request.somebody,
            yes=request.yes,
            fast=request.fast,
            url=place.url,
            tell=screen.tell,
        )
        self._to_kill = request.kill and request.workers > 1  # the last worker has nobody to take over
        self._to_exhaust = True
        self.auditors = Auditors(
            place.agents,
            pids=[process.pid for process in hands.processes],
            waits=self._to_kill,
            tell=screen.tell,
        )
        self._audits = 0  # that have not ended
        self._done = self._total = 0
        self._news = asyncio.Event()

    def since_start_s(self, at_us: int) -> float:
        return (at_us - self.started_us) / 1e6

    async def direct(self, tree: Plan) -> None:
        """Run the fleet to its end, or to the first worker that ends by itself."""
        self._screen.tell(f"{len(tree.files)} files of {tree.title}, {self.request.workers} worker processes")
        for path in tree.unreadable:
            self._screen.tell(f"left out, it cannot be read: {path}")
        await self.auditors.prepare()
        with_agents = self.auditors.auditing is not None
        self._audits = len(audited(tree)) if with_agents else 0
        bar = self._screen.bar(len(planned_labels(tree, agents=with_agents)))
        following = asyncio.create_task(self._follow(bar))
        others = [
            self._hands.watch(),
            self._person.attend(fleet.app.inbox()),
            self.auditors.watch(self._news.set),
            self._lose_one(),
        ]
        running = {following, *map(asyncio.create_task, others)}
        try:
            waiting = running
            while not following.done():
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in ended - {following}:
                    task.result()
            await following
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            bar.close()
            await self._hands.dismiss()

    async def _follow(self, bar: Progress) -> None:
        """Hand in the plan and see every task end."""
        root = str(self.request.root.resolve())
        environ = {**self._model.environ, **self.auditors.environ}
        self._hands.start(environ, n=1)
        planned = await fleet.plan.submit(
            root, FILES_MAX, self._asking, self.auditors.auditing, str(self.place.journal)
        )
        self._hands.start(environ)  # now there is something to do for more than one
        self._total = len(planned.tasks) + 1
        computing = sum(task.kind == "analyse" for task in planned.tasks)
        bar.advance(ok=True)
        for ending in asyncio.as_completed([_end_of(task) for task in planned.tasks]):
            task, outcome = await ending
            bar.advance(ok=outcome.state is State.SUCCEEDED)
            if not self.first_us:
                self.first_us = uptime_us()
                after_s = self.since_start_s(self.first_us)
                self._screen.tell(f"first result after {after_s:.2f} s: {task.kind} {task.label}")
            computing -= task.kind == "analyse"
            self._audits -= task.kind == "audit"
            self._done = bar.done
            self._news.set()
            if not self._to_kill:
                await self._use_up(calm=not computing)
        self.ended_us = uptime_us()

    async def _lose_one(self) -> None:
        """Kill a worker when `KILL_AT` of the tasks have ended, and one of them has an agent that waits at its gate."""
        while self._to_kill:
            await self._news.wait()
            self._news.clear()
            at_gate = self.auditors.at_gate()
            if not self._total or self._done < KILL_AT * self._total or (self._audits and not at_gate):
                continue
            killed = await self._hands.kill_one(fleet.app.store, first=at_gate)
            if killed is not None:
                self._to_kill = False
                an_agent = ", an agent among them" if killed.pid in at_gate else ""
                self._screen.tell(
                    f"kill -9 {killed.pid} after {self._done} of {self._total} tasks: it held {killed.held}{an_agent}"
                )
            self.auditors.let_go(but=0 if killed is None else killed.pid)

    async def _use_up(self, *, calm: bool) -> None:
        """A little after the kill, when it is calm, use up the model's quota, once."""
        if self._to_exhaust and self._done >= (EXHAUST_AT if calm else EXHAUST_BY) * self._total:
            (provider,) = await fleet.model.view()
            if provider.reason == "pause":
                return  # a call too many: nobody would notice the quota before all begin again at once
            self._to_exhaust = False
            said = await self._model.exhaust()
            if said:
                self._screen.tell(said)


async def _end_of(task: PlannedTask) -> tuple[PlannedTask, Outcome]:
    return task, await fleet.app.store.watch(task.task_id)


# ---------------------------------------------------------------- the end


def _conclude(run: _Director, tree: Plan, model: Model) -> Result:
    """Take stock and write the report: as a draft, which becomes the report when it is published."""
    from sennit.cli.demo.report import render_html, render_markdown

    entries = journal.read(run.place.journal)
    seconds = run.since_start_s(run.ended_us)
    folder = None if run.auditors.auditing is None else run.place.agents
    stock = asyncio.run(take_stock(fleet.app.store, tree, entries, seconds=seconds, agents=folder))
    offset_us = (
        fleet.app.store.now_us() - uptime_us()
    )  # the store's clock and ours differ by a number that does not change
    entries = with_ends(entries, stock.rows, handler=fleet.auditor.name, offset_us=offset_us)
    kills = tuple(Kill(pid, run.since_start_s(at_us)) for pid, at_us in run.killed_us.items())
    approval = _approval(stock, run, offset_us)
    use = None if stock.provider is None else model.use(stock.provider, stock.rows)
    reading = stock.reading or Reading((), (), (), ())
    written = RunReport(
        title=tree.title,
        root=tree.root,
        command=run.request.command,
        started_at=datetime.now(UTC).astimezone().strftime("%Y-%m-%d %H:%M"),
        made_with=f"sennit {sennit.__version__}, Python {platform.python_version()}",
        model=model.says,
        ledger=stock.ledger,
        files=reading.files,
        duplicates=reading.duplicates,
        reviews=reading.reviews,
        packages=reading.packages,
        attempts=tuple(
            journal.attempts(entries, started_us=run.started_us, ended_us=run.ended_us, killed_us=run.killed_us)
        ),
        kills=kills,
        approval=approval,
        published=stock.published,
        states=stock.states,
        audits=reading.audits,
        agents=stock.agents,
        use=use,
        waited=stock.waited,
        files_left_out=tree.files_left_out,
        problems=stock.problems,
    )
    page = _written(run.request.out, written.published, md=render_markdown(written), html=render_html(written))
    first_result_s = run.since_start_s(run.first_us)
    return Result(stock=stock, kills=kills, first_result_s=first_result_s, report=page, approval=approval, use=use)


def _approval(stock: Stock, run: _Director, offset_us: int) -> Approval | None:
    """Return what became of the question."""
    closed = (approval_of(view, lambda at_us: run.since_start_s(at_us - offset_us)) for view in stock.asked)
    return next(filter(None, closed), None)


def _written(folder: Path, published: bool, **texts: str) -> Path:  # noqa: FBT001 - one caller, which names it
    """Write the draft and publish it by giving it its name; a report from before survives a no. Return the page."""
    name = "draft"
    for suffix, text in texts.items():
        (folder / f"draft.{suffix}").write_text(text, encoding="utf-8")
    if published:
        name = "report"
        for suffix in texts:
            (folder / f"draft.{suffix}").replace(folder / f"report.{suffix}")
    return folder / f"{name}.html"

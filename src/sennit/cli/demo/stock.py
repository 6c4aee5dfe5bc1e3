"""The stocktaking at the end of a run: what was planned, against the store's rows, the report and the journal.

    planned (read from the tree again) ─┐
    rows and ledger of the store ───────┤
    states of the packages' threads ────┼─► Stock: lost, duplicated, rescued, and every discrepancy as a sentence
    the question and its answer ────────┤
    the report's own contents ──────────┤
    the log of the agents' program ─────┤
    the journal the bodies wrote ───────┘

No witness is asked about itself: what the store counts is compared with what the bodies noted, what it calls
succeeded with what arrived in the report and in the threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sennit.cli.demo import auditors, fleet, question, tally
from sennit.cli.demo.audit import audited
from sennit.cli.demo.fleet import Planned, PlannedTask, Reading
from sennit.cli.demo.journal import Entry
from sennit.cli.demo.plan import Plan
from sennit.cli.demo.records import AgentsUse, Discrepancies, Ledger, PackageState, Tally, Waited
from sennit.cli.demo.tally import Accepted, thread_of
from sennit.cli.waits import ordered
from sennit.model.lifecycle import State
from sennit.model.provider import ProviderView
from sennit.model.task import Ledger as StoreLedger
from sennit.model.task import TaskView
from sennit.model.thread import AskView
from sennit.store.protocol import Store

_ROWS_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What was found.

    Attributes:
        problems: every discrepancy, as a sentence.
        failures: what failed or was cancelled, those with the same error together.
        reading: the result of the report task; None when it has none.
        states: of the packages' threads, in order of the tree.
        asked: every question there was.
        rows: the tasks.
        provider: of the model calls; None when nobody has declared it.
        waited: for how long tasks waited, by what for.
    """

    ledger: Ledger
    problems: tuple[str, ...]
    failures: tuple[str, ...]
    reading: Reading | None
    states: tuple[PackageState, ...]
    asked: tuple[AskView, ...]
    rows: tuple[TaskView, ...] = ()
    provider: ProviderView | None = None
    waited: tuple[Waited, ...] = ()
    agents: AgentsUse | None = None

    @property
    def published(self) -> bool:
        """True when there is a report, and somebody has said yes to it."""
        return self.reading is not None and self.reading.approved

    @property
    def sound(self) -> bool:
        """True when all that was planned has succeeded exactly once and all witnesses agree."""
        return self.ledger.balances and not self.problems and not self.failures


def planned_labels(tree: Plan, *, agents: bool) -> set[tuple[str, str]]:
    """Return (kind, label) of every task that reading this tree takes, with or without agents."""
    per_file = {(kind, file.path) for file in tree.files for kind in ("analyse", "review")}
    per_package = {("summarise", package.name) for package in tree.packages}
    per_package |= {("audit", package.name) for package in audited(tree) if agents}
    return {(kind, tree.title) for kind in ("plan", "approve", "report")} | per_file | per_package


async def take_stock(
    store: Store, tree: Plan, entries: Sequence[Entry], *, seconds: float, agents: Path | None
) -> Stock:
    """Compare all witnesses of a run that has ended.

    Args:
        agents: the folder of the agents' program; None when none was to run.

    Raises:
        StoreError: the store cannot be read.
    """
    rows = {row.id: row for row in await store.tasks(limit=_ROWS_MAX)}
    counted, broken = await store.ledger(), await store.verify()
    tasks = await _planned_tasks(store, tree, rows)
    reading = await _reading(store, tasks)
    states = [await _state(store, package.name) for package in tree.packages]
    asked = await store.asks(states=(), limit=_ROWS_MAX)
    heard = await _heard(store, tasks, rows)
    log = [] if agents is None else auditors.logged(agents)
    audits = () if reading is None else reading.audits
    found = [
        Discrepancies(
            lost=tuple(_lost(planned_labels(tree, agents=agents is not None), tasks, rows, reading)),
            twice=tuple(_duplicated(tasks, rows, reading, counted, entries)),
            wrong=tuple(_contradictions(rows, entries)),
        ),
        *(tally.compare(state, _accepted(tree, state.package, tasks, rows, reading)) for state in states),
        auditors.compare(audits, log),
        question.compare(asked, heard, published=None if reading is None else reading.approved),
    ]
    lost = [sentence for witness in found for sentence in witness.lost]
    twice = [sentence for witness in found for sentence in witness.twice]
    wrong = [sentence for witness in found for sentence in witness.wrong]
    unbalanced = [] if counted.balanced else [f"the ledger does not balance: {counted.missing} tasks are missing"]
    ledger = Ledger(
        submitted=counted.submitted,
        succeeded=counted.succeeded,
        failed=counted.failed,
        cancelled=counted.cancelled,
        live=counted.live,
        retries=counted.retried,
        rescued=counted.crashed,
        rate_limited=sum(entry.outcome == "rate_limited" for entry in entries),
        lost=len(lost),
        duplicated=len(twice),
        seconds=seconds,
    )
    return Stock(
        ledger=ledger,
        problems=(*broken, *unbalanced, *lost, *twice, *wrong),
        failures=tuple(_failures(tasks, rows)),
        reading=reading,
        states=tuple(states),
        asked=tuple(asked),
        rows=tuple(rows.values()),
        provider=next((view for view in await store.providers() if view.spec.name == fleet.model.name), None),
        waited=await _waited(store, rows),
        agents=None if agents is None else auditors.use_of(audits, log),
    )


async def _waited(store: Store, rows: Iterable[int]) -> tuple[Waited, ...]:
    """Return the waits of all tasks together."""
    tasks: Counter[str] = Counter()
    total_us: Counter[str] = Counter()
    for ack in [store.waits(task_id) for task_id in rows]:
        waits = await ack
        tasks.update(waits.keys())
        total_us.update(waits)
    return tuple(Waited(reason, tasks[reason], us / 1e6) for reason, us in ordered(total_us).items())


async def _planned_tasks(store: Store, tree: Plan, rows: dict[int, TaskView]) -> list[PlannedTask]:
    """Return what was submitted: the plan tasks, and what they say they have submitted."""
    tasks = []
    for row in rows.values():
        if row.handler == fleet.plan.name:
            tasks.append(PlannedTask("plan", tree.title, row.id))
            result = (await store.task(row.id)).result
            if result is not None:
                tasks += msgspec.json.decode(result, type=Planned).tasks
    return tasks


async def _reading(store: Store, tasks: Iterable[PlannedTask]) -> Reading | None:
    for task in tasks:
        if task.kind == "report":
            result = (await store.task(task.task_id)).result
            return None if result is None else msgspec.json.decode(result, type=Reading)
    return None


async def _state(store: Store, package: str) -> PackageState:
    view = await store.state(thread_of(package))
    kept = Tally() if view.data is None else msgspec.json.decode(view.data, type=Tally)
    return PackageState(package, view.version, kept)


def _accepted(
    tree: Plan, package: str, tasks: Iterable[PlannedTask], rows: dict[int, TaskView], reading: Reading | None
) -> Accepted:
    """Return what the rows and the report say of one package."""
    paths = {file.path for planned in tree.packages if planned.name == package for file in planned.files}
    done = [task for task in tasks if task.task_id in rows and rows[task.task_id].state is State.SUCCEEDED]
    return Accepted(
        reviews={task.label: task.task_id for task in done if task.kind == "review" and task.label in paths},
        summarised=any(task.kind == "summarise" and task.label == package for task in done),
        files=None if reading is None else {file.path: file for file in reading.files if file.path in paths},
        summary=next((made for made in reading.packages if made.name == package), None) if reading else None,
    )


async def _heard(store: Store, tasks: Iterable[PlannedTask], rows: dict[int, TaskView]) -> dict[int, bool | None]:
    """Return task that asks → the answer it has succeeded with."""
    heard: dict[int, bool | None] = {}
    for task in tasks:
        if task.kind == "approve" and task.task_id in rows:
            result = (await store.task(task.task_id)).result
            heard[task.task_id] = None if result is None else msgspec.json.decode(result, type=bool)
    return heard


def _delivered(reading: Reading) -> Counter[tuple[str, str]]:
    """Return how often the report holds the result of each task."""
    return Counter(
        [
            *(("analyse", file.path) for file in reading.files),
            *(("review", review.path) for review in reading.reviews),
            *(("summarise", package.name) for package in reading.packages),
            *(("audit", audit.package) for audit in reading.audits),
        ]
    )


def _lost(
    planned: Iterable[tuple[str, str]],
    tasks: Iterable[PlannedTask],
    rows: dict[int, TaskView],
    reading: Reading | None,
) -> list[str]:
    """Say which tasks of the plan have no ending, or succeeded and did not reach the report."""
    ids = {(task.kind, task.label): task.task_id for task in tasks}
    delivered = None if reading is None else _delivered(reading)
    lost: list[str] = []
    for kind, label in sorted(planned):
        row = rows.get(ids.get((kind, label), 0))
        if row is None:
            lost.append(f"lost: {kind} {label} is not in the store")
        elif row.state.live:
            lost.append(f"lost: {kind} {label} (task {row.id}) has not ended, it is {row.state}")
        elif kind in {"plan", "approve", "report"} or row.state is not State.SUCCEEDED or delivered is None:
            continue
        elif not delivered[kind, label]:
            lost.append(f"lost: {kind} {label} (task {row.id}) succeeded and is not in the report")
    return lost


def _duplicated(
    tasks: Sequence[PlannedTask],
    rows: dict[int, TaskView],
    reading: Reading | None,
    counted: StoreLedger,
    entries: Sequence[Entry],
) -> list[str]:
    """Say what was submitted, accepted, delivered or run once too often."""
    labels = Counter((task.kind, task.label) for task in tasks)
    twice = [f"duplicated: {kind} {label} was submitted {n} times" for (kind, label), n in labels.items() if n > 1]
    strangers = rows.keys() - {task.task_id for task in tasks}
    twice += [
        f"duplicated: task {task_id} ({rows[task_id].handler}) was never planned" for task_id in sorted(strangers)
    ]
    if reading is not None:
        delivered = _delivered(reading)
        twice += [
            f"duplicated: {kind} {label} is {n} times in the report" for (kind, label), n in delivered.items() if n > 1
        ]
    succeeded = {row.id: row.attempt for row in rows.values() if row.state is State.SUCCEEDED}
    surplus = counted.succeeded - counted.pruned - len(succeeded)
    twice += [f"duplicated: a success beyond the {len(succeeded)} tasks that have one was accepted"] * max(0, surplus)
    again = {entry.task_id for entry in entries if entry.attempt > succeeded.get(entry.task_id, entry.attempt)}
    twice += [f"duplicated: task {task_id} ran again after its result was accepted" for task_id in sorted(again)]
    return twice


def _contradictions(rows: dict[int, TaskView], entries: Sequence[Entry]) -> list[str]:
    """Say where the journal and the store disagree about attempts. Of the end of an audit its program tells, not a body."""
    entries = [entry for entry in entries if entry.kind != "audit"]
    ended = {(entry.task_id, entry.attempt): entry.outcome for entry in entries if entry.outcome != "started"}
    last = {entry.task_id: entry.attempt for entry in sorted(entries, key=lambda entry: entry.attempt)}
    found = [
        f"task {row.id} succeeded with attempt {row.attempt}, and no body says so"
        for row in rows.values()
        if row.state is State.SUCCEEDED and row.handler != fleet.auditor.name
        if ended.get((row.id, row.attempt)) != "succeeded"
    ]
    found += [
        f"attempt {entry.attempt} of task {entry.task_id} died and was not taken up again"
        for entry in entries
        if (entry.task_id, entry.attempt) not in ended and last[entry.task_id] == entry.attempt
    ]
    return found


def _failures(tasks: Iterable[PlannedTask], rows: dict[int, TaskView]) -> list[str]:
    """Say what failed, once per kind and error, with one example."""
    alike: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        row = rows.get(task.task_id)
        if row is not None and row.state in {State.FAILED, State.CANCELLED}:
            error = str(row.state) if row.error is None else f"{row.error.kind}: {row.error.message}"
            if row.error is not None and row.error.fix:
                error = f"{error} ({row.error.fix})"
            alike.setdefault((task.kind, error), []).append(task.label)
    return [
        f"{kind} of {labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''}: {error}"
        for (kind, error), labels in alike.items()
    ]

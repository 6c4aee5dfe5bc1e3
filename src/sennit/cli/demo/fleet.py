"""The demo's fleet: seven handlers and the graph they form. A worker process needs nothing but this module.

    plan ─┬─► approve (asks a person, and waits without a worker) ────────────────────────┐
          └─► analyse (per file) ┬► review (per file, asks the model) ─┬──────────────────┼─► report
                                 │    └─update─► thread of its package └─► summarise ─────┤
                                 └► auditor (a coding agent, per large package)  (per package, in its thread)

plan submits all the others as its children: they exist when it has succeeded, all or none. Files are read beside each
other, so their tasks are of no thread. What belongs to the package is the state of its thread (see tally.py): each
review changes it from outside, together with its result, and the summary, a task of the thread, reads it.

All calls to the model go through one provider, `model`: how many there may be at once, in all processes together, is
found out from how they go. A review is claimed when there is room for its call, so that none waits with a worker.

An auditor is a program of its own (see audit.py), of which each worker runs one at a time. It needs what was measured and
no review: so some are at work when a worker is killed.

Where the model is, each process reads from its own environment: a key has no place in a database.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sennit import App, Handle, NotRetryable, RetryPolicy, ask, step, thread
from sennit.cli.demo import plan as planning
from sennit.cli.demo import review as reviewing
from sennit.cli.demo.analysis import analyse_file
from sennit.cli.demo.audit import Auditing, Auditor, audited, audits_of, brief
from sennit.cli.demo.client import ChatReply, ModelUnavailable, chat, endpoint_from
from sennit.cli.demo.clones import duplicates
from sennit.cli.demo.digest import package_of, plural
from sennit.cli.demo.journal import begun, journalled
from sennit.cli.demo.plan import PlannedFile, PlannedPackage
from sennit.cli.demo.question import Asking
from sennit.cli.demo.records import Audit, Duplicate, FileReport, Finding, PackageSummary, Record, Review, Tally
from sennit.cli.demo.source import read_source
from sennit.cli.demo.tally import thread_of, with_file, with_summary
from sennit.errors import UsageError
from sennit.model.agent import AgentResult
from sennit.runtime.agent_words import Prompt

# A model call waits, so a worker holds many; parsing computes, and two at once keep one core busy between reads.
REVIEWS_PER_WORKER = 8
ANALYSES_PER_WORKER = 2
MODEL_TIMEOUT_S = 30.0
# More than any crew has places for: what bounds the calls is what the model bears.
MODEL_CALLS_MAX = 64
# The model that the demo brings itself, and what a million tokens of it would cost, input and output, in US dollars:
# made up, and of the size that the small models of 2025 cost.
MODEL = "sennit-demo-reviewer"
PRICES = {MODEL: (0.25, 2.0)}

T = TypeVar("T")

app = App(
    queues={"analyse": ANALYSES_PER_WORKER, "review": REVIEWS_PER_WORKER, "default": 2},
    payload_bytes_max=64 * 1024 * 1024,  # the report task returns all findings of a tree
    drain_s=0.5,  # the director stops the workers when all is done, or when nobody wants the rest
)

# Without a breaker: who has given the demo an endpoint that is down wants to hear so, and not to wait until it is up.
model = app.provider("model", parallel=MODEL_CALLS_MAX, prices=PRICES, breaker=None)


class PlannedTask(Record, frozen=True):
    """One task of the graph; `label` is the file, the package or the title."""

    kind: str
    label: str
    task_id: int


class Planned(Record, frozen=True):
    """What `plan` has submitted."""

    tasks: tuple[PlannedTask, ...]


class Reading(Record, frozen=True):
    """Everything the fleet found out; what is missing belongs to tasks that failed.

    Attributes:
        approved: whether it may be published.
    """

    files: tuple[FileReport, ...]
    duplicates: tuple[Duplicate, ...]
    reviews: tuple[Review, ...]
    packages: tuple[PackageSummary, ...]
    audits: tuple[Audit, ...] = ()
    approved: bool = False


@app.task
def plan(root: str, files_max: int, asking: Asking, auditing: Auditing | None, journal: str) -> Planned:
    """List the files and submit the rest of the graph; without `auditing` no agent runs."""
    found = planning.plan(Path(root), files_max=files_max)
    with journalled(journal, "plan", found.title):
        tasks: list[PlannedTask] = []

        def added(kind: str, label: str, handle: Handle[Any]) -> Handle[Any]:
            tasks.append(PlannedTask(kind, label, handle.id))
            return handle

        # Lists of handles; as arguments they stand for the lists of their results.
        analyses: list[Any] = []
        reviews: list[Any] = []
        summaries: list[Any] = []
        audits: dict[str, Any] = {}
        by_agents = audited(found) if auditing is not None else ()
        smallest = found.smallest
        for package in found.packages:
            of_package: list[Any] = []
            reviews_of_package: list[Any] = []
            for file in package.files:
                how = analyse.options(priority="high") if file is smallest else analyse  # somebody waits for a sign
                analysis = added("analyse", file.path, how.submit(file, journal))
                of_package.append(analysis)
                reviewed = review.submit(file, analysis.as_argument(), journal)
                reviews_of_package.append(added("review", file.path, reviewed))
            last = summarise.options(thread_id=thread_of(package.name), after=reviews_of_package)
            summaries.append(added("summarise", package.name, last.submit(package.name, of_package, journal)))
            if auditing is not None and package in by_agents:
                agent = auditor.submit(package, of_package, auditing, journal)
                audits[package.name] = added("audit", package.name, agent)
            analyses += of_package
            reviews += reviews_of_package
        sizes = {"files": len(found.files), "packages": len(found.packages)}
        answer = added("approve", found.title, approve.submit(found.title, sizes, asking, journal))
        may_publish: Any = answer
        joined = report.submit(
            analyses,
            reviews,
            summaries,
            dict(audits),
            approved=may_publish,
            title=found.title,
            journal=journal,
        )
        added("report", found.title, joined)
    return Planned(tuple(tasks))


@app.task(queue="analyse")
def analyse(file: PlannedFile, journal: str) -> FileReport:
    """Measure one file. One that cannot be read is a finding, not a failure: the rest of the tree still counts."""
    with journalled(journal, "analyse", file.path):
        try:
            return analyse_file(Path(file.file), path=file.path)
        except OSError as error:
            finding = Finding(file.path, 0, "unreadable", f"cannot be read: {error.strerror}", "error")
            return FileReport(path=file.path, lines=0, code_lines=0, findings=(finding,))


# A 429 is no failure: the attempt is given back, and the task claimed again when the provider takes calls.
@app.task(
    queue="review",
    provider=model,
    retries=RetryPolicy(retries=2, delay_s=0.4),
    timeout_s=MODEL_TIMEOUT_S + 10,
)
async def review(file: PlannedFile, measured: FileReport, journal: str) -> Review:
    """Ask the model what it thinks of one file, and count the file in its package's thread.

    The model's answer is a step: a crash after it does not pay twice. The count commits with the result.
    """
    with journalled(journal, "review", file.path):
        messages = reviewing.messages_for(measured.slim(), _source_of(file))
        try:
            reply = await step(ask_model, messages)
        except ModelUnavailable as error:
            if error.retryable:
                raise
            raise NotRetryable(str(error)) from error
        package = thread(thread_of(package_of(file.path)), Tally)
        await package.update(partial(with_file, measured.slim()))
        return Review(file.path, reply.text, reply.model, reply.prompt_tokens, reply.completion_tokens)


@app.task(options={"on_parent_failed": "run"})
def summarise(package: str, reports: list[FileReport | None], journal: str) -> PackageSummary:
    """Put one package into a sentence or two, from those of its files that could be analysed, and close its thread."""
    with journalled(journal, "summarise", package):
        made = reviewing.summarise(package, _present(reports))
        tally = thread(type=Tally).update(partial(with_summary, made.text)).result()
        return msgspec.structs.replace(made, reviewed=len(tally.files))


def brief_auditor(
    package: PlannedPackage, measured: list[FileReport | None], auditing: Auditing, journal: str
) -> Prompt:
    """Note that an attempt to audit a package begins, and write the prompt of its agent."""
    begun(journal, "audit", package.name)
    return brief(package, measured, auditing)


# One at a time in each worker: an agent is a process that computes for itself.
auditor = app.agent(
    "auditor",
    Auditor(),
    prompt=brief_auditor,
    at_once=1,
    retries=RetryPolicy(retries=2, delay_s=0.4),
    options={"on_parent_failed": "run"},
)


@app.task
async def approve(title: str, sizes: dict[str, int], asking: Asking, journal: str) -> bool:
    """Ask a person whether the report may be published. Until somebody answers, no worker holds this task."""
    with journalled(journal, "approve", title):
        return await ask(
            f"Publish the report of {plural(sizes['files'], 'file')}?",
            bool,
            context={"read": title, **sizes},
            expires_s=asking.expires_s,
            on_expire="default",
            default=asking.silence,
        )


@app.task(options={"on_parent_failed": "run"})
def report(
    files: list[FileReport | None],
    reviews: list[Review | None],
    packages: list[PackageSummary | None],
    audits: dict[str, AgentResult | None],
    *,
    approved: bool | None,
    title: str,
    journal: str,
) -> Reading:
    """Join everything, look for code that stands in more than one place, and note whether it may be published."""
    with journalled(journal, "report", title):
        measured = _present(files)
        return Reading(
            files=tuple(file.slim() for file in measured),
            duplicates=tuple(duplicates(measured)),
            reviews=tuple(_present(reviews)),
            packages=tuple(_present(packages)),
            audits=audits_of(audits.keys(), audits.values()),
            approved=approved is True,
        )


async def ask_model(messages: list[dict[str, str]]) -> ChatReply:
    """Make one call to the endpoint this process's environment names.

    Raises:
        RateLimited, ModelUnavailable: see `client.chat`.
        UsageError: the environment names none.
    """
    endpoint = endpoint_from(os.environ)
    if endpoint is None:
        raise UsageError("OPENAI_BASE_URL is not set", fix="start workers through `sennit demo`, or set it")
    return await chat(model.slot(), endpoint, messages, timeout_s=MODEL_TIMEOUT_S)


def _source_of(file: PlannedFile) -> str:
    try:
        return read_source(Path(file.file)).text
    except OSError:
        return ""  # `analyse` has put it into the report that the model gets


def _present(values: Sequence[T | None]) -> list[T]:
    return [value for value in values if value is not None]

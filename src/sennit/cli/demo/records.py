"""What the tasks of the demo hand to each other: JSON-able values, nothing else.

    plan ─► FileReport (one per file) ─┬─► Review (one per file) ─► PackageSummary ─┬─► RunReport
                                       │        └─ counted in ─► Tally (one per package, the state of its thread)
                                       └─► Audit (one per large package) ───────────┘

Every record is a frozen msgspec.Struct, so each can be the argument or the result of a task. `omit_defaults`
keeps them small in the store.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note"]
Outcome = Literal["succeeded", "failed", "rate_limited", "suspended", "killed", "cancelled"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all records."""


# ---------------------------------------------------------------- one file


class Finding(Record, frozen=True):
    """One thing to look at. `line` counts from 1; 0 is the file as a whole."""

    path: str
    line: int
    kind: str
    message: str
    severity: Severity


class FunctionFacts(Record, frozen=True):
    """A function or method, with its dotted name inside the module.

    Attributes:
        lines: from `def` to the last line, decorators left out.
        parameters: without `self` and `cls`.
        seam_line: where its largest inner block starts, a natural first cut; 0 when there is none.
    """

    name: str
    line: int
    lines: int
    complexity: int
    parameters: int
    public: bool
    documented: bool
    seam_line: int = 0
    seam_lines: int = 0


class ClassFacts(Record, frozen=True):
    """A class; `methods` counts the functions written directly in its body."""

    name: str
    line: int
    lines: int
    methods: int
    public: bool
    documented: bool


class Fingerprint(Record, frozen=True, array_like=True):
    """The hash (48 bits) of one window of code lines, and the lines of the file it spans."""

    line: int
    line_end: int
    digest: int


class FileReport(Record, frozen=True):
    """All that is measured of one file.

    Attributes:
        code_lines: lines that hold more than blanks, comments and docstrings.
        about: first sentence of the module's docstring, or "".
        fingerprints: about 25 bytes of JSON per code line; `slim` leaves them out.
    """

    path: str
    lines: int
    code_lines: int
    about: str = ""
    functions: tuple[FunctionFacts, ...] = ()
    classes: tuple[ClassFacts, ...] = ()
    findings: tuple[Finding, ...] = ()
    todos: int = 0
    fingerprints: tuple[Fingerprint, ...] = ()

    def slim(self) -> FileReport:
        """Return the same report without fingerprints, for whoever does not look for duplicates."""
        return msgspec.structs.replace(self, fingerprints=())


# ---------------------------------------------------------------- across files


class Place(Record, frozen=True):
    """A range of lines in a file, both ends included."""

    path: str
    line: int
    line_end: int


class Duplicate(Record, frozen=True):
    """The same `code_lines` lines of code, in two or more places."""

    code_lines: int
    places: tuple[Place, ...]


class Review(Record, frozen=True):
    """What the model said of one file."""

    path: str
    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Audit(Record, frozen=True):
    """What a coding agent said of one package, and in how many runs of its session."""

    package: str
    text: str
    task_id: int
    session_id: str
    runs: int = 1


class AgentsUse(Record, frozen=True):
    """What the coding agents of a run took.

    Attributes:
        tools: uses of a tool, each counted once.  repeated: how often one took place again. Both by the program's own log.
        runs: processes.  resumed: agents that went on with their session in another one.
    """

    agents: int
    tools: int
    runs: int
    resumed: int = 0
    repeated: int = 0


class PackageSummary(Record, frozen=True):
    """One directory of the tree in figures and a sentence or two.

    Attributes:
        reviewed: how many reviews its thread had counted when this was written.
    """

    name: str
    files: int
    lines: int
    findings: int
    text: str
    reviewed: int = 0


class Worst(Record, frozen=True):
    """The most complex function of a package."""

    path: str
    line: int
    name: str
    complexity: int


class Tally(Record, frozen=True):
    """The state of a package's thread: each accepted review adds its file, and the summary comes last.

    Attributes:
        files: paths, in the order their reviews were accepted; one that is missing or there twice gives itself away.
        findings: by kind, of these files.
    """

    files: tuple[str, ...] = ()
    findings: dict[str, int] = {}
    worst: Worst | None = None
    summary: str = ""


class PackageState(Record, frozen=True):
    """A package's thread as it was found at the end; one version for each attempt that changed it."""

    package: str
    version: int
    tally: Tally


# ---------------------------------------------------------------- one run


class Attempt(Record, frozen=True):
    """One execution of one task; times in seconds since the run began."""

    task_id: int
    kind: str
    label: str
    worker_pid: int
    attempt: int
    start_s: float
    end_s: float
    outcome: Outcome


class Kill(Record, frozen=True):
    """A worker process that was killed with -9, `at_s` seconds after the run began."""

    worker_pid: int
    at_s: float


class Approval(Record, frozen=True):
    """What a person was asked, and what became of it; times in seconds since the run began.

    Attributes:
        state: "expired" when nobody answered; then `approved` is what was said beforehand to count as the answer.
        by: who answered, as they said.
    """

    question: str
    approved: bool
    state: Literal["answered", "denied", "expired"]
    by: str = ""
    reason: str = ""
    asked_s: float = 0.0
    closed_s: float = 0.0


class Waited(Record, frozen=True):
    """For how long `tasks` of the tasks waited for one thing, all together."""

    reason: str
    tasks: int
    seconds: float


class Pause(Record, frozen=True):
    """A time in which the model took no calls, and how many it got all the same, after the one that was told so first."""

    seconds: float
    calls: int


class ModelUse(Record, frozen=True):
    """What the provider of the model calls counted, and what the model itself has seen, where it is the demo's own.

    Attributes:
        limit: calls at once that were allowed at the end; found out, below `ceiling`.
        calls: that were let through.  throttled: that were answered 429.
        attempts_lost: of tasks that call the model: those that failed, for whatever reason.
        cost_usd: 0 when nobody has said what the model costs.
        highest: the most calls at once that the demo's own model has seen; None of any other, which nobody can ask.
        too_many: calls that it refused because they were one too many at once.
        pauses: that it has called for.
    """

    name: str
    limit: int
    ceiling: int
    calls: int
    throttled: int = 0
    attempts_lost: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    highest: int | None = None
    too_many: int = 0
    pauses: tuple[Pause, ...] = ()

    @property
    def ours(self) -> bool:
        """True when it was the demo's own model, whose prices are made up."""
        return self.highest is not None


class Discrepancies(Record, frozen=True):
    """What a witness says is missing, was done once too often, or is otherwise not as others say; as sentences."""

    lost: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


class Ledger(Record, frozen=True):
    """The count that must balance: submitted = succeeded + failed + cancelled + live.

    Attributes:
        rescued: attempts that died with their worker; their tasks ran again elsewhere.
        rate_limited: attempts that were given back because the model answered 429; they count as no retry.
    """

    submitted: int
    succeeded: int
    failed: int = 0
    cancelled: int = 0
    live: int = 0
    retries: int = 0
    rescued: int = 0
    rate_limited: int = 0
    lost: int = 0
    duplicated: int = 0
    seconds: float = 0.0

    @property
    def balances(self) -> bool:
        """True when every submitted task is accounted for once."""
        ended = self.succeeded + self.failed + self.cancelled + self.live
        return self.submitted == ended and self.lost == 0 and self.duplicated == 0


class RunReport(Record, frozen=True):
    """All that `render_markdown` and `render_html` need.

    Attributes:
        title: what was read, such as "click".   root: its path, as the user gave it.
        started_at: local time in words a reader takes as it stands, such as "2026-03-01 14:05".
        made_with: versions, such as "sennit 0.1.0, Python 3.11.7".
        model: who reviewed, such as "gpt-4o-mini" or "the demo's local model server".
        files_left_out: how many files the plan passed over because of its limit.
        approval: None when nobody was asked, or the question was never closed.
        states: one per package.
        audits: of the packages that an agent has read.  agents: None when none was to run.
        use: of the model; None when its provider was never heard of.
        waited: by what was waited for.
        problems: where the stocktaking found that store, journal and report disagree, as sentences.
    """

    title: str
    root: str
    command: str
    started_at: str
    made_with: str
    model: str
    ledger: Ledger
    files: tuple[FileReport, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    reviews: tuple[Review, ...] = ()
    packages: tuple[PackageSummary, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    kills: tuple[Kill, ...] = ()
    approval: Approval | None = None
    published: bool = False
    states: tuple[PackageState, ...] = ()
    audits: tuple[Audit, ...] = ()
    agents: AgentsUse | None = None
    use: ModelUse | None = None
    waited: tuple[Waited, ...] = ()
    files_left_out: int = 0
    problems: tuple[str, ...] = ()

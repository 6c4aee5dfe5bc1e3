"""A task at each stage of its way: handed in, claimed, ended, looked at.

    TaskSpec ──submit──► (stored) ──claim──► Claimed ──body──► an Ending ──finish──► Outcome

All are plain values. `Claim` is the claim token: attempts only grow, so the pair (id, attempt) names one attempt for
ever, and a store accepts an ending only while exactly that pair is in its `running` table.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from sennit.errors import SubmitError
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.provider import BudgetView, Permit
from sennit.model.retry import CRASHES_MAX
from sennit.model.route import fits
from sennit.model.thread import AskSpec, StateWrite

OnParentFailed = Literal["fail", "run", "cancel"]
OnConflict = Literal["existing", "reject", "replace"]


class Ref:
    """The id of a task that is being handed in.

    The id is final unless the spec has a `key`: then the store may find the task exists, and sets the id of that one
    here, before it stores anything that was submitted later. So dependants hold the Ref, not the number.
    """

    __slots__ = ("id",)

    def __init__(self, id: int) -> None:  # noqa: A002 - the word of the whole code base
        self.id = id

    def __repr__(self) -> str:
        return f"Ref({self.id})"


class Claim(NamedTuple):
    """The claim token: which task, which attempt."""

    task_id: int
    attempt: int


class TaskSpec(msgspec.Struct, kw_only=True, gc=False):
    """What a submitter hands in.

    Attributes:
        payload: the arguments by name, a JSON object; `{"$sennit.parent": n}` stands for the result of `parents[n]`.
        parents: tasks that must end first, no duplicates.
        key: at most one retained task per (handler, key); `on_conflict` says what a second submit does.
        delay_us: start no earlier than this after all parents are done.
        queue_timeout_us, deadline_us: counted from submit; 0 is none. The first ends with the first claim.
        options: JSON of per-call overrides that the worker reads (`TaskOptions`), or None.
        child_key: set when a running attempt submits: the same attempt, run again, finds its child by it.
        entry: under which conditions it may enter; None is always.
        provider: `name` or `name/model` of the provider its calls go to; "" is none. It is claimed with a permit.
        route: what it needs of its worker (`model.route`); "" is nothing.
    """

    ref: Ref
    handler: str
    queue: str
    payload: bytes
    priority: int = Priority.NORMAL
    parents: tuple[Ref, ...] = ()
    on_parent_failed: OnParentFailed = "fail"
    thread_id: str | None = None
    key: str | None = None
    on_conflict: OnConflict = "existing"
    delay_us: int = 0
    queue_timeout_us: int = 0
    deadline_us: int = 0
    crashes_max: int = CRASHES_MAX
    options: bytes | None = None
    parent_id: int | None = None
    child_key: str | None = None
    entry: Entry | None = None
    provider: str = ""
    route: str = ""


class TaskOptions(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Per-call overrides that travel with the task, because the worker needs them. None is "as the handler says"."""

    retries: int | None = None
    timeout_s: float | None = None
    idle_timeout_s: float | None = None


class Claimed(msgspec.Struct, kw_only=True):
    """One attempt, handed to a worker together with all it needs to run.

    Attributes:
        failures, crashes: of earlier attempts; counted apart.
        priority: a `Priority`, as its number.
        ready_us: store clock, when it became ready as far as its place in the order tells; None is unknown.
        parents: results of the parents in order, JSON; None for a parent that did not succeed.
        steps: finished steps of earlier attempts, by key.
        deadline_us: store clock, the total deadline, or None.
        permit: for its first call, when it has a provider and budget for it.
        spent: the budget that leaves nothing for it; such a task is claimed without a permit, only to be told.
    """

    id: int
    attempt: int
    handler: str
    queue: str
    payload: bytes
    created_us: int
    failures: int = 0
    crashes: int = 0
    priority: int = Priority.NORMAL
    ready_us: int | None = None
    thread_id: str | None = None
    options: bytes | None = None
    parents: tuple[bytes | None, ...] = ()
    steps: dict[str, bytes] = {}
    deadline_us: int | None = None
    permit: Permit | None = None
    spent: BudgetView | None = None

    @property
    def claim(self) -> Claim:
        """The claim token of this attempt."""
        return Claim(self.id, self.attempt)


class ErrorInfo(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Why an attempt or a task ended badly, in a form that needs no pickle.

    Attributes:
        kind: type name of the exception, or a policy word: `crash`, `poison`, `deadline`, `queue_timeout`,
            `parent_failed`, `parent_cancelled`, `cancelled`, `shed`, `interrupted`, `handler_missing`.
    """

    kind: str
    message: str = ""
    traceback: str = ""
    fix: str = ""

    @classmethod
    def of_refusal(cls, error: SubmitError) -> ErrorInfo:
        """Return why an attempt failed whose children the store refused."""
        return cls(kind=type(error).__name__, message=f"its children were refused: {error.what}", fix=error.fix)


# ---------------------------------------------------------------- how an attempt ends


class Succeeded(msgspec.Struct, frozen=True, tag=True):
    """The body returned. The result, its children, what it wrote to threads and the end of the attempt commit together."""

    claim: Claim
    result: bytes
    children: tuple[TaskSpec, ...] = ()
    writes: tuple[StateWrite, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It failed and is not tried again."""

    claim: Claim
    error: ErrorInfo


class Retried(msgspec.Struct, frozen=True, tag=True):
    """It failed and is tried again at `due_us` (store clock); counts as a failure."""

    claim: Claim
    due_us: int
    error: ErrorInfo


class Slept(msgspec.Struct, frozen=True, tag=True):
    """It goes on at `due_us`: a durable sleep or a snooze; counts as nothing."""

    claim: Claim
    due_us: int
    reason: str = "sleep"


class Parked(msgspec.Struct, frozen=True, tag=True):
    """It goes on when somebody resumes it or one of `asks` is answered; holds no slot meanwhile."""

    claim: Claim
    reason: str
    asks: tuple[AskSpec, ...] = ()


class GivenBack(msgspec.Struct, frozen=True, tag=True):
    """The worker stops and hands the task back to its old place in the order; counts as nothing."""

    claim: Claim


class Preempted(msgspec.Struct, frozen=True, tag=True):
    """It made room for a more urgent task and goes on from its finished steps; as if ready from now; counts as nothing."""

    claim: Claim


class Crashed(msgspec.Struct, frozen=True, tag=True):
    """The process that ran the body died under it; counts as a crash, the last allowed one is poison."""

    claim: Claim
    error: ErrorInfo


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """The handler itself said the task is not wanted any more."""

    claim: Claim
    reason: str = ""


Ending = Succeeded | Failed | Retried | Slept | Parked | GivenBack | Preempted | Crashed | Cancelled


# ---------------------------------------------------------------- what others see


class Outcome(msgspec.Struct, frozen=True):
    """How a task ended: `state` is one of the three ended states."""

    state: State
    attempt: int = 0
    result: bytes | None = None
    error: ErrorInfo | None = None


class TaskView(msgspec.Struct, kw_only=True, frozen=True):
    """One task as the CLI and the API show it. Times are store clock, µs since the epoch.

    Attributes:
        reason: what a task that does not run waits for; of one that no living worker may run, `no worker with …`; of one
            that a process holds and has not begun, `ahead`.
        route: what it needs of its worker (`model.route`); "" is nothing.
    """

    id: int
    handler: str
    queue: str
    state: State
    priority: Priority = Priority.NORMAL
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    thread_id: str | None = None
    key: str | None = None
    parent_id: int | None = None
    created_us: int
    due_us: int | None = None
    started_us: int | None = None
    done_us: int | None = None
    waiting_for: int = 0
    worker_id: int | None = None
    reason: str = ""
    provider: str = ""
    route: str = ""
    result: bytes | None = None
    error: ErrorInfo | None = None
    payload: bytes = b""


class AttemptView(msgspec.Struct, kw_only=True, frozen=True):
    """One attempt that did not succeed; the successful one is on the task itself."""

    attempt: int
    outcome: str
    worker_id: int | None = None
    started_us: int | None = None
    ended_us: int | None = None
    error: ErrorInfo | None = None


class LogLine(msgspec.Struct, kw_only=True, frozen=True):
    """One log record made inside a body."""

    task_id: int
    attempt: int
    at_us: int
    level: str
    text: str
    seq: int = 0


class WorkerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """One process that has joined the store.

    Attributes:
        role: `worker` claims tasks; `client` only submits and waits.
        queues: queue → slots.
        expire_us: its lease, store clock.
        home: the place, on its machine, in which its neighbours see whether it lives.
        labels: what tasks may need of it, in order.
        version: of its code; "" is none. Tasks may be pinned to it.
        fenced: how often it had to stop what it ran because it could not renew its lease.
        drains: it takes no more tasks, and ends when what it runs has.
        listening: it hears what other machines tell it; else it looks by itself every second.
    """

    id: int
    pid: int
    host: str
    boot_id: str
    home: str = ""
    role: Literal["worker", "client"] = "worker"
    queues: dict[str, int] = {}
    bell: str = ""
    started_us: int = 0
    expire_us: int = 0
    running: int = 0
    labels: tuple[str, ...] = ()
    version: str = ""
    fenced: int = 0
    drains: bool = False
    listening: bool = True

    def may_run(self, route: str, queue: str | None = None) -> bool:
        """Return whether it claims tasks of this route, and of this queue if one is given."""
        serves = self.role == "worker" and (queue is None or queue in self.queues)
        return serves and fits(route, self.labels, self.version)


class RouteView(msgspec.Struct, kw_only=True, frozen=True):
    """Open tasks of one queue that need the same of their worker.

    Attributes:
        needs: the labels.  version: the code they are pinned to, "" if they are not.
        live: how many are open.  ready: how many of these wait for a slot of such a worker.
        workers: how many living workers may run them.
    """

    queue: str
    needs: tuple[str, ...] = ()
    version: str = ""
    live: int = 0
    ready: int = 0
    workers: int = 0


class Ledger(msgspec.Struct, kw_only=True, frozen=True):
    """The count that must balance. `live` is counted from the rows, the others are kept by each transaction."""

    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    live: int = 0
    retried: int = 0
    crashed: int = 0
    refused: int = 0
    pruned: int = 0

    @property
    def missing(self) -> int:
        """Tasks that were accepted and are nowhere; 0, always. Negative: some ended twice."""
        return self.submitted - self.succeeded - self.failed - self.cancelled - self.live

    @property
    def balanced(self) -> bool:
        """True when nothing is missing and nothing is there twice."""
        return self.missing == 0


def encode(value: Any) -> bytes:
    """Encode one of this module's values as JSON."""
    return msgspec.json.encode(value)

"""Every exception of sennit, drawn as one tree.

    SennitError                       code, what, why, fix; `exit_code` is what the CLI returns
    ├─ SettingsError (ValueError)     a knob is unknown or out of its bounds
    ├─ UsageError (RuntimeError)      the API was called where it cannot work
    ├─ SubmitError                    nothing was stored
    │  ├─ UnknownHandler (LookupError)
    │  ├─ PayloadError (TypeError)
    │  │  ├─ PayloadTooLarge
    │  │  └─ ArrayGone (LookupError) the memory of a shared array is not there any more
    │  ├─ UnknownDependency (LookupError)
    │  ├─ CyclicDependency (ValueError)
    │  ├─ DuplicateKey (ValueError)
    │  ├─ ThreadBusy                  on_busy="reject", and the thread has an open task
    │  └─ QueueFull                   `retry_after_s` says when to come back
    ├─ TaskError                      one task, by `task_id`
    │  ├─ TaskNotFound (LookupError)
    │  ├─ TaskFailed                  the handler raised, or a policy ended it
    │  ├─ TaskCancelled
    │  └─ ResultTimeout (TimeoutError)
    ├─ AskError                       one question, by `ask_id`
    │  ├─ AskNotFound (LookupError)
    │  ├─ AskClosed                   it was decided, has expired, or its task has ended
    │  ├─ AskStale                    it has changed since the version somebody looked at
    │  ├─ AnswerInvalid (ValueError)  the answer does not fit the question
    │  ├─ AskDenied                   in the body: somebody said no
    │  └─ AskExpired (TimeoutError)   in the body: nobody said anything in time
    ├─ ThreadNotFound (LookupError)   no task, state or config of this thread_id
    ├─ ConcurrentModificationError (RuntimeError) a versioned value is not at the version it was changed from
    ├─ LockTimeout (TimeoutError)     a lock is held by somebody else; says by whom
    ├─ LockOrderError (RuntimeError)  two orders of taking locks form a cycle
    ├─ LockDeadlock (RuntimeError)    waiting for this lock would never end; names the cycle
    ├─ LockLost (RuntimeError)        a distributed lock is not held any more
    ├─ Fenced (RuntimeError)          a write came under a lock that somebody else has by now
    ├─ WorkspaceTooLarge (ValueError) a value is over the workspace's ceiling
    ├─ StateTooLarge (ValueError)     a thread's state and config are over thread_memory_bytes_max
    ├─ ArrayInvalid (ValueError)      no shared array can have this shape, dtype or size
    ├─ ArraysExhausted (TimeoutError) a pool of shared arrays had no room in time; says who holds what
    ├─ SharedMemoryFull (MemoryError) the system refuses the memory
    ├─ ArrayReleased (RuntimeError)   a shared array was used or released after its release
    ├─ LimitError                     a call may not be made now, by `provider`
    │  ├─ ProviderNotFound (LookupError)
    │  ├─ ProviderBusy                no room, and the caller did not want to wait; `retry_after_s`
    │  ├─ CircuitOpen                 too many calls have failed; `retry_after_s`
    │  ├─ BudgetExceeded              of a task, thread, handler, provider or the fleet
    │  └─ PermitLost                  its process was taken for dead
    ├─ AgentError (RuntimeError)      a coding agent's program, by `agent`
    │  ├─ AgentMissing (LookupError)  it is not installed here
    │  ├─ AgentUnsupported            this system lacks what supervision needs
    │  ├─ AgentFailed                 it ended without success; `outcome` says how
    │  ├─ AgentLimited                its provider refuses calls for now
    │  ├─ SessionBusy                 another process works on the session
    │  ├─ OutcomeUnknown              an effect was begun, and nobody knows whether it took place
    │  └─ WorktreeError               git could not make, merge or remove a worktree
    ├─ BatchError (RuntimeError)      a call through a Batcher, or a subscription
    │  ├─ BatchFailed                 the batch function did not answer each item
    │  ├─ BatcherFull                 as many wait as may
    │  ├─ BatcherClosed               nothing more is taken
    │  └─ SubscriberTooSlow           it was too far behind, and has ended
    ├─ PoolBroken (RuntimeError)      an executor's initializer has failed
    ├─ PoolQueueFull (RuntimeError)   an executor with a bounded queue, on_full="raise"
    ├─ LeaseLost                      this attempt is no longer ours; its writes are refused
    ├─ BodyFailed                     a body raised in a worker process
    ├─ WorkerCrashed                  a worker process ended without an answer
    ├─ ClusterUnavailable (ConnectionError) the Ray cluster cannot be reached
    ├─ StoreError (OSError)           the durable backend
    │  ├─ StoreUnavailable            cannot be opened, read-only, or closed
    │  │  ├─ StoreLocked
    │  │  └─ StoreMoved               to another URL: `sennit db copy`
    │  ├─ StoreCorrupt
    │  ├─ StoreFull
    │  └─ SchemaMismatch              written by a newer sennit, or not migrated
    └─ SimulationError (AssertionError) a simulated run shows a fault (sennit.testing)
       ├─ Deadlock                    all tasks wait and no timer is set
       ├─ OsThreadDeadlock            no OS thread of a schedule can go on; names the cycle
       ├─ StepLimit                   too many steps: a livelock
       ├─ UnhandledError              a background task or callback raised and nobody looked
       ├─ BrokenPromise               a simulated fleet did what must never happen
       └─ SeedFailed                  one seed of a scenario; `fix` is the line that shows it again

    Interrupted (BaseException)       unwinds a body; user code must not eat it
    ├─ AttemptCancelled               cancel, time-out or lost lease reached the body
    ├─ AttemptSuspended               the task goes on later (sleep, ask)
    ├─ AttemptHeldBack                its provider is paused; the task goes on after that
    ├─ AttemptPreempted               an urgent task takes the slot; the task goes on after it
    └─ ContextOutOfReach              a body that was moved to a process needs its attempt; it runs again where that is

What went wrong is the message; `why` and `fix` are sentences a caller can act on, and `code` names an
offline page (docs/reference/errors.md).
"""

from __future__ import annotations

from sennit.errors.agents import (
    AgentError,
    AgentFailed,
    AgentLimited,
    AgentMissing,
    AgentUnsupported,
    OutcomeUnknown,
    SessionBusy,
    WorktreeError,
)
from sennit.errors.arrays import ArrayGone, ArrayInvalid, ArrayReleased, ArraysExhausted, SharedMemoryFull
from sennit.errors.base import SennitError, SettingsError, UsageError
from sennit.errors.batch import BatcherClosed, BatcherFull, BatchError, BatchFailed, SubscriberTooSlow
from sennit.errors.limits import (
    BudgetExceeded,
    CircuitOpen,
    LimitError,
    PermitLost,
    ProviderBusy,
    ProviderNotFound,
)
from sennit.errors.pools import PoolBroken, PoolQueueFull
from sennit.errors.process import BodyFailed, ClusterUnavailable, WorkerCrashed
from sennit.errors.shared import (
    ConcurrentModificationError,
    Fenced,
    LockDeadlock,
    LockLost,
    LockOrderError,
    LockTimeout,
    StateTooLarge,
    WorkspaceTooLarge,
)
from sennit.errors.simulation import (
    BrokenPromise,
    Deadlock,
    OsThreadDeadlock,
    SeedFailed,
    SimulationError,
    StepLimit,
    UnhandledError,
)
from sennit.errors.store import (
    SchemaMismatch,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreMoved,
    StoreUnavailable,
)
from sennit.errors.submit import (
    CyclicDependency,
    DuplicateKey,
    PayloadError,
    PayloadTooLarge,
    QueueFull,
    SubmitError,
    ThreadBusy,
    UnknownDependency,
    UnknownHandler,
)
from sennit.errors.task import (
    AnswerInvalid,
    AskClosed,
    AskDenied,
    AskError,
    AskExpired,
    AskNotFound,
    AskStale,
    LeaseLost,
    ResultTimeout,
    TaskCancelled,
    TaskError,
    TaskFailed,
    TaskNotFound,
    ThreadNotFound,
)
from sennit.errors.unwinding import (
    AttemptCancelled,
    AttemptHeldBack,
    AttemptPreempted,
    AttemptSuspended,
    ContextOutOfReach,
    Interrupted,
)

__all__ = [
    "AgentError",
    "AgentFailed",
    "AgentLimited",
    "AgentMissing",
    "AgentUnsupported",
    "AnswerInvalid",
    "ArrayGone",
    "ArrayInvalid",
    "ArrayReleased",
    "ArraysExhausted",
    "AskClosed",
    "AskDenied",
    "AskError",
    "AskExpired",
    "AskNotFound",
    "AskStale",
    "AttemptCancelled",
    "AttemptHeldBack",
    "AttemptPreempted",
    "AttemptSuspended",
    "BatchError",
    "BatchFailed",
    "BatcherClosed",
    "BatcherFull",
    "BodyFailed",
    "BrokenPromise",
    "BudgetExceeded",
    "CircuitOpen",
    "ClusterUnavailable",
    "ConcurrentModificationError",
    "ContextOutOfReach",
    "CyclicDependency",
    "Deadlock",
    "DuplicateKey",
    "Fenced",
    "Interrupted",
    "LeaseLost",
    "LimitError",
    "LockDeadlock",
    "LockLost",
    "LockOrderError",
    "LockTimeout",
    "OsThreadDeadlock",
    "OutcomeUnknown",
    "PayloadError",
    "PayloadTooLarge",
    "PermitLost",
    "PoolBroken",
    "PoolQueueFull",
    "ProviderBusy",
    "ProviderNotFound",
    "QueueFull",
    "ResultTimeout",
    "SchemaMismatch",
    "SeedFailed",
    "SennitError",
    "SessionBusy",
    "SettingsError",
    "SharedMemoryFull",
    "SimulationError",
    "StateTooLarge",
    "StepLimit",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreMoved",
    "StoreUnavailable",
    "SubmitError",
    "SubscriberTooSlow",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "TaskNotFound",
    "ThreadBusy",
    "ThreadNotFound",
    "UnhandledError",
    "UnknownDependency",
    "UnknownHandler",
    "UsageError",
    "WorkerCrashed",
    "WorkspaceTooLarge",
    "WorktreeError",
]

# They are known by the name under which they are imported, also in tracebacks and in what pickle stores.
for _name in __all__:
    globals()[_name].__module__ = __name__

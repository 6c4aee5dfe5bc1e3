"""The tools by name: what each takes, as a type. JSON schemas, descriptions and docs/reference/mcp.md are drawn from here.

The docstring of a type is what the agent reads about the tool, so it says when to use it and what comes back.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from sennit.execute.path_names import PATHS_MAX
from sennit.model.thread import THREAD_ID_CHARS_MAX

# Clients give up after 60 s unless told otherwise (the default of the SDKs and of codex): below that, with time to answer.
WAIT_S_MAX: Final = 55.0
LISTED_MAX: Final = 50
DEPENDENCIES_MAX: Final = 1000

Token = Annotated[str, Meta(description="The `claim` that task_claim has returned, as it is.", max_length=100)]
WaitS = Annotated[
    float, Meta(description=f"How long to wait, in seconds, at most {WAIT_S_MAX:g}; 0 asks once.", ge=0, le=WAIT_S_MAX)
]
TaskId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Text = Annotated[str, Meta(min_length=1)]
ThreadId = Annotated[
    str, Meta(description="The conversation.", min_length=1, max_length=THREAD_ID_CHARS_MAX)
]  # what else it must not have is checked where it is used


class Arguments(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of the arguments of all tools."""


class TaskReady(Arguments):
    """List tasks that are ready to be claimed, newest first, and count those of each queue.

    Only looks: use task_claim to get one, which also waits for one.
    """

    queue: Annotated[str, Meta(description="Only of this queue.")] | None = None
    limit: Annotated[int, Meta(ge=1, le=LISTED_MAX)] = 20


class TaskClaim(Arguments):
    """Claim the next task, waiting for one if there is none. Nobody else gets it while you hold it.

    Returns `claim` (a token: pass it to every other call about this task), `title`, `instructions`, `arguments`, the results
    of the tasks it depended on, and the notes that earlier attempts have left. `claim` is null if no task came in time: call
    again. You hold it for `lease_s` seconds from your last call with the token: call task_heartbeat while you work longer, and
    end it with task_complete or task_fail.
    """

    queue: Annotated[str, Meta(description="Only of this queue; default: any that this server serves.")] | None = None
    wait_s: WaitS = 30.0


class TaskHeartbeat(Arguments):
    """Say that you are still working on a claimed task; call it at least every `lease_s` / 3 seconds while you do."""

    claim: Token


class TaskComplete(Arguments):
    """End a claimed task as done. Tasks that depend on it are released with its result."""

    claim: Token
    result: Annotated[Any, Meta(description="Any JSON; what those who depend on the task get.")] = None


class TaskFail(Arguments):
    """End a claimed task as not done.

    It is tried again if it has retries left. With `give_back` it goes back to its queue for somebody else and counts as no
    failure: for a task that you cannot do, or have no time for.
    """

    claim: Token
    error: Annotated[str, Meta(description="What went wrong, for whoever looks at it.", min_length=1)]
    retry: Annotated[bool, Meta(description="False: it would fail again, do not try.")] = True
    give_back: bool = False


class TaskCreate(Arguments):
    """Create a task for an agent, to run after those it depends on. Returns its id.

    With your `claim` it becomes a child of your task, and one with the same `key` is created once however often you are restarted.
    """

    title: Annotated[str, Meta(min_length=1, max_length=200)]
    instructions: str = ""
    data: Annotated[Any, Meta(description="Any JSON, handed to whoever claims it.")] = None
    depends_on: Annotated[
        list[TaskId],
        Meta(
            description="Ids of tasks that must succeed first; their results are handed in.",
            max_length=DEPENDENCIES_MAX,
        ),
    ] = []
    on_dependency_failed: Annotated[
        Literal["fail", "run", "cancel"], Meta(description="What becomes of it when one of those does not succeed.")
    ] = "fail"
    queue: Annotated[str, Meta(description="Default: the first that this server serves.")] | None = None
    priority: Literal["low", "normal", "high", "urgent"] = "normal"
    retries: Annotated[int, Meta(description="Further attempts after a failure.", ge=0, le=100)] = 0
    thread_id: ThreadId | None = None
    key: Annotated[str, Meta(description="A name under which it exists once.", min_length=1, max_length=200)] | None = (
        None
    )
    claim: Token | None = None


class TaskNote(Arguments):
    """Leave a note on a claimed task: what you found out, decided or did.

    It is in the task's log at once, and whoever claims the task after you gets all notes.
    """

    claim: Token
    text: Text


class AskHuman(Arguments):
    """Ask a person; returns the number of the question at once. Your claim goes on: work on something else, or await_answer.

    The same question of the same task is asked once.
    """

    question: Text
    yes_no: Annotated[bool, Meta(description="The answer is true or false.")] = False
    choices: Annotated[list[str], Meta(description="The answer is one of these.", max_length=100)] = []
    schema: (
        Annotated[dict[str, Any], Meta(description="JSON schema of the answer, for any other shape. Default: text.")]
        | None
    ) = None
    context: Annotated[Any, Meta(description="Any JSON that is shown with it.")] = None
    expires_s: Annotated[float, Meta(description="Until when it can be answered.", gt=0, le=1e10)] | None = None
    default: Annotated[Any, Meta(description="The answer if it expires.")] = None
    assignee: str = ""
    claim: Token | None = None


class AwaitAnswer(Arguments):
    """Wait for the answer to a question that ask_human has asked.

    Returns `state`: `answered` (and `answer`), `denied`, `expired`, `void`, or still `open`: then call again.
    """

    ask: TaskId
    wait_s: WaitS = 30.0
    claim: Annotated[Token | None, Meta(description="With it the wait counts as a heartbeat.")] = None


class LockPaths(Arguments):
    """Reserve files or folders, so that no other agent changes them: a folder stands for all that is in it.

    All of them or none. They are yours until release_paths, or until the claim ends in whatever way. Returns `reservation` and
    all paths that you have.
    """

    claim: Token
    paths: Annotated[
        list[Text], Meta(description="In the repository; they need not exist.", min_length=1, max_length=PATHS_MAX)
    ]
    wait_s: WaitS = 0.0


class ReleasePaths(Arguments):
    """Give up reserved paths: of one reservation, or all of the claim."""

    claim: Token
    reservation: (
        Annotated[str, Meta(description="As lock_paths has returned it; default: all.", max_length=100)] | None
    ) = None


class StateGet(Arguments):
    """Return the state of a conversation and its version; by default that of the claimed task."""

    thread_id: ThreadId | None = None
    claim: Token | None = None


class StateUpdate(Arguments):
    """Replace the state of a conversation, if it is at `expected_version`; else nothing is written and the error has the version.

    Read it with state_get, change it, write it back with the version that you have read.
    """

    claim: Token
    state: Annotated[dict[str, Any], Meta(description="The whole new state.")]
    expected_version: Annotated[int, Meta(description="As state_get has returned it; 0 if there is none.", ge=0)]
    thread_id: ThreadId | None = None


TOOLS: Final[dict[str, type[Arguments]]] = {
    "task_ready": TaskReady,
    "task_claim": TaskClaim,
    "task_heartbeat": TaskHeartbeat,
    "task_complete": TaskComplete,
    "task_fail": TaskFail,
    "task_create": TaskCreate,
    "task_note": TaskNote,
    "ask_human": AskHuman,
    "await_answer": AwaitAnswer,
    "lock_paths": LockPaths,
    "release_paths": ReleasePaths,
    "state_get": StateGet,
    "state_update": StateUpdate,
}

# Those that change nothing.
READ_ONLY: Final = frozenset({"task_ready", "await_answer", "state_get"})


def input_schema(kind: type[Arguments]) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments, in one piece."""
    _, components = msgspec.json.schema_components([kind])
    schema: dict[str, Any] = components[kind.__name__]
    schema.pop("title", None)
    schema.pop("description", None)
    return schema


def description(kind: type[Arguments]) -> str:
    """Return what agents read about a tool."""
    lines = (kind.__doc__ or "").strip().splitlines()
    return "\n".join(line.strip() for line in lines)

"""What is known of a coding agent: a program that works on a prompt, supervised as the body of a task. Pure values.

    starting ─first event─► working ◄─► waiting (for its provider, a person) ─► done | failed
                               ▲└──nothing said for a while──► idle ─┘

One *session* is one conversation of the program: it keeps it itself, under an id, and can go on with it in another process.
One *run* is one process that works on it. A task that is attempted again goes on with its session in a new run.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from sennit.errors import SettingsError

AgentStatus = Literal["starting", "working", "waiting", "idle", "done", "failed"]
ENDED: Final = frozenset({"done", "failed"})

EventKind = Literal[
    "session",  # the program has named its session: `session_id`
    "text",  # it said something: `text`
    "thinking",
    "tool_begin",  # it begins to use a tool: `call_id`, `tool`, `input`
    "tool_end",  # and has: `call_id`, `is_error`
    "usage",  # tokens so far: `usage`, in all of this run
    "retry",  # its provider refused a call and it will try again by itself: `status`, `retry_after_s`
    "limit",  # its provider's quota: `resets_at_s`
    "ask",  # it wants a person's leave: `call_id`, `tool`, `input`
    "result",  # the terminal event; what comes after it is of no account
    "error",  # `text`
]

# How a run ended, once its process has. Only `success` is a result.
#   error         it said so, or its exit code did
#   no_result     exit 0 without a terminal event: never taken for success
#   limited       its provider's limit or quota; `retry_after_s` or `resets_at_s` where it says
#   asks          it waits for leave to use tools (`asks`), with no process
#   lost_session  it does not know the session it was to go on with
#   busy_session  somebody else works on the session
#   unauthorised  no credential, or a wrong one
#   cut_off       its supervisor ended before it did (no adapter says so)
RunOutcome = Literal[
    "success", "error", "no_result", "limited", "asks", "lost_session", "busy_session", "unauthorised", "cut_off"
]


class AgentUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens and money. `cost_usd` is what the program itself says, None when it does not."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cost_usd: float | None = None


class AgentEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that an agent's program told of itself, in the words that all adapters share."""

    kind: EventKind
    text: str = ""
    session_id: str = ""
    model: str = ""
    call_id: str = ""
    tool: str = ""
    input: Any = None
    is_error: bool = False
    usage: AgentUsage | None = None
    status: int = 0
    retry_after_s: float | None = None
    resets_at_s: float | None = None  # wall clock, s since the epoch


class ToolAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the agent wants to use, and may only with a person's leave."""

    call_id: str
    tool: str
    input: Any = None


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of which nobody knows whether it was used: the program began, and its process ended before the answer."""

    call_id: str
    tool: str
    input: Any = None


class RunEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How one run ended, as its adapter reads it from the events and the exit.

    Attributes:
        text: the result when it is a success, else what went wrong, in the program's own words.
        structured: the result as data, where the program was asked for a schema.
        turns: of the conversation, in this run.
        asks: with `asks`, what leave is wanted for.
    """

    outcome: RunOutcome
    text: str = ""
    session_id: str = ""
    model: str = ""
    structured: Any = None
    turns: int = 0
    usage: AgentUsage = AgentUsage()
    status: int = 0
    retry_after_s: float | None = None
    resets_at_s: float | None = None
    asks: tuple[ToolAsk, ...] = ()
    duration_s: float = 0.0  # of the process; no adapter sets it


class AgentResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the task of an agent gives: the last word of the program, and what it took.

    Attributes:
        runs: processes it took, 1 when nothing went wrong.
        tools: how many tool uses were completed.
        unknown: tool uses that a crash left without an answer; the agent was told of them when it went on.
        branch, commits, merged, repository: of its worktree; "" and 0 without one.  worktree: where it still is, "" when it is gone.
        note: what was to become of the branch and could not be done, and why.
        folder: of the last run, with all that the program wrote.
    """

    text: str
    agent: str = ""
    task_id: int = 0
    session_id: str = ""
    model: str = ""
    structured: Any = None
    turns: int = 0
    runs: int = 1
    tools: int = 0
    usage: AgentUsage = AgentUsage()
    duration_s: float = 0.0
    unknown: tuple[ToolUse, ...] = ()
    branch: str = ""
    commits: int = 0
    merged: bool = False
    worktree: str = ""
    repository: str = ""
    note: str = ""
    folder: str = ""


class AgentView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One agent as people see it: the last run of one task. Kept by the store, one per task.

    Attributes:
        agent: the handler's name.  adapter: `claude`, `codex`, ….
        pid, started_ticks, host, boot_id: of the process; a pid alone names nobody.
        since_us: of the status.  event_us: of the last event. Both store clock.
        doing: the last thing it said or the tool it uses, one line.
        folder: of this run, on that host: stdout.log, stderr.log.
    """

    task_id: int
    agent: str
    adapter: str = ""
    status: AgentStatus = "starting"
    attempt: int = 1
    run: int = 1
    session_id: str = ""
    model: str = ""
    pid: int = 0
    started_ticks: int = 0
    host: str = ""
    boot_id: str = ""
    since_us: int = 0
    event_us: int = 0
    doing: str = ""
    tools: int = 0
    usage: AgentUsage = AgentUsage()
    cwd: str = ""
    branch: str = ""
    worktree: str = ""
    repository: str = ""
    folder: str = ""
    error: str = ""

    @property
    def is_live(self) -> bool:
        """Whether a process of it may be there."""
        return self.status not in ENDED


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may take; 0 is no bound.

    Attributes:
        wall_s: in all.  idle_s: without an event.
        memory_bytes_max: resident, the whole tree of processes.
        output_bytes_max: stdout and stderr together.
        linger_s: after the terminal event until the program ends by itself: CLIs are known to hang there.
        term_s: after TERM until KILL.
    """

    wall_s: float = 0.0
    idle_s: float = 600.0
    memory_bytes_max: int = 0
    output_bytes_max: int = 1 << 30
    linger_s: float = 10.0
    term_s: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 0", fix="0 is no bound")

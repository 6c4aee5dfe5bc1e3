"""Coding agents: programs that run as bodies of tasks."""

from __future__ import annotations

from sennit.errors.base import SennitError


class AgentError(SennitError, RuntimeError):
    """A coding agent's program has not done its task; `agent` says whose."""

    code = "S360"

    def __init__(self, what: str, *, agent: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.agent = agent


class AgentMissing(AgentError, LookupError):
    """The program is not installed here, or cannot be run; nothing was started."""

    code = "S361"
    exit_code = 127


class AgentUnsupported(AgentError):
    """This system lacks what supervision needs (Linux)."""

    code = "S362"


class AgentFailed(AgentError):
    """The run ended without success: the program said so, or said nothing.

    Attributes:
        outcome: `error`, `no_result`, `lost_session`, `busy_session`, `unauthorised`, or the ceiling it met.
        folder: of the run, with what it wrote.
    """

    code = "S363"

    def __init__(self, what: str, *, agent: str, outcome: str, folder: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what, agent=agent, why=why, fix=fix)
        self.outcome = outcome
        self.folder = folder


class AgentLimited(AgentError):
    """Its provider refuses calls for now: the attempt is given back, and nobody is to blame.

    Attributes:
        retry_after_s: when it says so.
    """

    code = "S364"
    exit_code = 75

    def __init__(self, what: str, *, agent: str, retry_after_s: float | None = None) -> None:
        super().__init__(what, agent=agent, fix="the fleet waits until its provider takes calls again")
        self.retry_after_s = retry_after_s


class SessionBusy(AgentError):
    """Another process works on this session of the program; two would mix their turns."""

    code = "S365"
    exit_code = 75


class OutcomeUnknown(AgentError):
    """An effect was begun by an attempt that crashed, and nobody knows whether it took place; it is not repeated.

    Attributes:
        key: of the effect.
    """

    code = "S366"

    def __init__(self, key: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(f"nobody knows whether {key!r} took place", why=why, fix=fix)
        self.key = key


class WorktreeError(AgentError):
    """git could not make, merge or remove a worktree; what is in it is untouched."""

    code = "S367"

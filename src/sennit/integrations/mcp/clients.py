"""One client of the MCP server: what it may do at once, and what it holds.

A client is one connection: the program at the other end of stdin and stdout, or one HTTP session. Requests of the revision
of MCP that has no sessions (2026-07-28) cannot be told apart; over HTTP they are one client together, with wider bounds.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sennit.errors import LeaseLost, UsageError
from sennit.model.task import Claim, Claimed

if TYPE_CHECKING:
    import asyncio

_SECRET_BYTES: Final = 9
_DIGITS_MAX: Final = 18

# Of the one client that stands for all without a session.
MANY: Final = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may do at once.

    Attributes:
        claims_max: tasks it may hold, or wait for.
        waits_max: calls that may wait for a task or an answer.
        calls_max: calls of any kind that may be under way.
    """

    claims_max: int = 8
    waits_max: int = 4
    calls_max: int = 32

    def __mul__(self, n: int) -> Bounds:
        return Bounds(self.claims_max * n, self.waits_max * n, self.calls_max * n)


@dataclass(eq=False, slots=True)
class Client:
    """What one client has and does now.

    Attributes:
        held: its claims.
        is_gone: it will not hear any answer.
    """

    name: str
    bounds: Bounds
    held: set[Held] = field(default_factory=set)
    claiming: int = 0
    waits: int = 0
    calls: int = 0
    is_gone: bool = False

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Count a call while it is under way.

        Raises:
            UsageError: there are as many as there may be.
        """
        if self.calls >= self.bounds.calls_max:
            raise _too_many("calls are under way", self.calls, self.bounds.calls_max, "wait for the answers to some")
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    @contextmanager
    def waiting(self, *, claims: bool = True) -> Iterator[None]:
        """Count a call that may wait; with `claims`, one for a task.

        Raises:
            UsageError: there are as many as there may be, or it holds as many tasks as it may.
        """
        if self.waits >= self.bounds.waits_max:
            raise _too_many("calls wait already", self.waits, self.bounds.waits_max, "wait for one of them to return")
        taken = len(self.held) + self.claiming
        if claims and taken >= self.bounds.claims_max:
            why = "complete or fail one of them first, or give one back with task_fail and give_back"
            raise _too_many("tasks are held or being claimed", taken, self.bounds.claims_max, why)
        self.waits += 1
        self.claiming += claims
        try:
            yield
        finally:
            self.waits -= 1
            self.claiming -= claims


@dataclass(eq=False, slots=True)
class Held:
    """One claim of one client.

    Attributes:
        token: what the client shows for it: `task.attempt.secret`. The secret keeps others from writing by guessing.
        notes: how many the task has.
    """

    task: Claimed
    token: str
    client: Client
    lapse: asyncio.TimerHandle | None = None
    notes: int = 0
    is_ending: bool = False
    is_over: bool = False

    @property
    def claim(self) -> Claim:
        """The claim token of the store."""
        return self.task.claim


def new_token(claim: Claim) -> str:
    """Return the token of a new claim."""
    return f"{claim.task_id}.{claim.attempt}.{secrets.token_urlsafe(_SECRET_BYTES)}"


def stale(token: str) -> LeaseLost | UsageError:
    """Return what to say of a token that is not one of a claim that is held."""
    task_id, _, rest = token.partition(".")
    attempt, _, _ = rest.partition(".")
    if all(part.isdecimal() and len(part) <= _DIGITS_MAX for part in (task_id, attempt)):
        return LeaseLost(int(task_id), int(attempt))
    return UsageError(
        "this is no claim token", why="one is what task_claim has returned as `claim`", fix="pass it on as it is"
    )


def _too_many(what: str, n: int, n_max: int, fix: str) -> UsageError:
    return UsageError(
        f"{n} {what}, and one client may have {n_max}", why="one client must not take what is for all", fix=fix
    )

"""Locks in the memory store: a line per name, in which only the first is let through.

acquire ─► waiting, in the order of asking ──serve──► held, by token ─► released | over | seized | its process is gone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sennit.errors import Fenced, LockLost, LockTimeout
from sennit.model.lock import Fence, LockGrant, LockHolder, LockRequest, LockView, fits
from sennit.sync.ack import Ack

Settled = tuple[Ack[Any], Any, BaseException | None]


@dataclass(slots=True, eq=False)
class Wish:
    """Somebody who waits, or holds: then `grant` says so.

    Attributes:
        seat: the process, whatever it is registered as.
    """

    request: LockRequest
    seat: object
    asked_us: int
    grant: LockGrant | None = None
    ack: Ack[LockGrant] = field(default_factory=Ack)

    def seen(self) -> LockHolder:
        """Return what people see of it."""
        request, grant = self.request, self.grant
        return LockHolder(
            id=request.id,
            owner=request.owner,
            shared=request.shared,
            n_max=request.n_max,
            token=None if grant is None else grant.token,
            since_us=self.asked_us if grant is None else grant.granted_us,
            until_us=None if grant is None else grant.until_us,
        )


@dataclass(slots=True)
class Line:
    """One name: its newest token, who holds it (by token), and who waits."""

    token: int
    used_us: int
    held: dict[int, Wish] = field(default_factory=dict)
    waiting: list[Wish] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        """True while somebody holds it or waits for it."""
        return bool(self.held or self.waiting)

    def until_us(self) -> int | None:
        """Return when the first holder's time is over."""
        return min((_grant(wish).until_us for wish in self.held.values()), default=None)


class Locks:
    """All names. `settled` are acks to resolve after the transaction."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.settled: list[Settled] = []
        self._floor = 0

    # ------------------------------------------------------------ asking and letting go

    def ask(self, request: LockRequest, seat: object, *, now_us: int) -> Ack[LockGrant]:
        """Put a wish in line, and serve the line.

        Raises:
            LockTimeout: it does not wait, and did not get it at once.
        """
        line = self.lines.setdefault(request.name, Line(self._floor, now_us))
        line.used_us = now_us
        wish = Wish(request, seat, now_us)
        line.waiting.append(wish)
        self.serve(request.name, now_us=now_us)
        if wish.grant is None and not request.wait:
            line.waiting.remove(wish)
            owner = ", ".join(held.request.owner for held in line.held.values()) or "nobody"
            raise LockTimeout(request.name, timeout_s=0.0, owner=owner)
        return wish.ack

    def serve(self, name: str, *, now_us: int) -> None:
        """Let all through that come first and fit."""
        line = self.lines[name]
        for token, wish in list(line.held.items()):
            if _grant(wish).until_us <= now_us:
                del line.held[token]
        while line.waiting:
            wish = line.waiting[0]
            request = wish.request
            all_shared = all(held.request.shared for held in line.held.values())
            if not fits(shared=request.shared, n_max=request.n_max, held=len(line.held), all_shared=all_shared):
                return
            line.waiting.pop(0)
            line.token, line.used_us = line.token + 1, now_us
            wish.grant = LockGrant(
                name=name,
                token=line.token,
                shared=request.shared,
                granted_us=now_us,
                until_us=now_us + request.ttl_us,
                waited_us=now_us - wish.asked_us,
            )
            line.held[line.token] = wish
            self.settled.append((wish.ack, wish.grant, None))

    def extend(self, name: str, token: int, ttl_us: int, *, now_us: int) -> LockGrant:
        """Hold it until `ttl_us` from now.

        Raises:
            LockLost: it is not held any more.
        """
        wish, was = self._held(name, token, now_us=now_us)
        wish.grant = LockGrant(
            name=name,
            token=token,
            shared=was.shared,
            granted_us=was.granted_us,
            until_us=now_us + ttl_us,
            waited_us=was.waited_us,
        )
        return wish.grant

    def release(self, name: str, token: int, *, now_us: int) -> None:
        """Let go.

        Raises:
            LockLost: it is not held any more.
        """
        self._held(name, token, now_us=now_us)
        del self.lines[name].held[token]
        self.serve(name, now_us=now_us)

    def give_up(self, request_id: int, *, now_us: int) -> bool:
        """Take a wish out of its line, or release its grant; False when there is no such one."""
        return self._drop(lambda wish: wish.request.id == request_id, now_us=now_us) > 0

    def seize(self, name: str, *, now_us: int) -> int:
        """Take it away from all who hold it; return how many did."""
        line = self.lines.get(name)
        if line is None:
            return 0
        n = len(line.held)
        line.held.clear()
        line.token += 1
        self.serve(name, now_us=now_us)
        return n

    def _held(self, name: str, token: int, *, now_us: int) -> tuple[Wish, LockGrant]:
        line = self.lines.get(name)
        wish = None if line is None else line.held.get(token)
        if wish is None or _grant(wish).until_us <= now_us:
            raise LockLost(name, token)
        return wish, _grant(wish)

    # ------------------------------------------------------------ time and death

    def expire(self, *, now_us: int) -> None:
        """Pass on what was held for too long and somebody waits for."""
        for name, line in self.lines.items():
            if line.waiting:
                self.serve(name, now_us=now_us)

    def next_due(self) -> list[int]:
        """Return when the locks that somebody waits for are over."""
        dues = [line.until_us() for line in self.lines.values() if line.waiting]
        return [due_us for due_us in dues if due_us is not None]

    def drop_seat(self, seat: object, *, now_us: int) -> None:
        """A process is dead: it holds nothing and waits for nothing."""
        self._drop(lambda wish: wish.seat is seat, now_us=now_us)

    def abandon(self, seat: object, *, now_us: int) -> list[Ack[Any]]:
        """A process closes its store; return the acks of its wishes."""
        wishes = [wish for line in self.lines.values() for wish in line.waiting if wish.seat is seat]
        self._drop(lambda wish: wish.seat is seat, now_us=now_us, tell=False)
        return [wish.ack for wish in wishes]

    def _drop(self, is_over: Callable[[Wish], bool], *, now_us: int, tell: bool = True) -> int:
        dropped = 0
        for name, line in self.lines.items():
            gone = [wish for wish in (*line.held.values(), *line.waiting) if is_over(wish)]
            if not gone:
                continue
            line.held = {token: wish for token, wish in line.held.items() if wish not in gone}
            line.waiting = [wish for wish in line.waiting if wish not in gone]
            lost = LockLost(name, 0, why="it was given up while it waited, or this process was taken for dead")
            self.settled += [(wish.ack, None, lost) for wish in gone if tell and wish.grant is None]
            self.serve(name, now_us=now_us)
            dropped += len(gone)
        return dropped

    def prune(self, *, before_us: int) -> None:
        """Forget names that nobody has used since; new tokens of them will be greater all the same."""
        for name, line in list(self.lines.items()):
            if line.used_us < before_us and not line.is_used and not Fence(name=name, token=0).is_foreign:
                self._floor = max(self._floor, line.token)
                del self.lines[name]

    # ------------------------------------------------------------ looking

    def views(self, names: Iterable[str], *, now_us: int) -> list[LockView]:
        """Return locks by name: those of `names`, or all that are held or waited for."""
        asked = set(names)
        found = []
        for name in sorted(asked or self.lines):
            line = self.lines.get(name)
            if line is None:
                continue
            held = [wish.seen() for _, wish in sorted(line.held.items()) if _grant(wish).until_us > now_us]
            waiting = [wish.seen() for wish in line.waiting]
            if asked or held or waiting:
                found.append(LockView(name=name, token=line.token, holders=tuple(held), waiting=tuple(waiting)))
        return found


class Fences:
    """The fences of one transaction: all are checked before anything is changed; `learn` ends it."""

    def __init__(self, locks: Locks, *, now_us: int) -> None:
        self._locks = locks
        self._now_us = now_us
        self._learnt: dict[str, int] = {}

    def check(self, fences: Iterable[Fence]) -> None:
        """Refuse what was written under a lock that is lost.

        Raises:
            Fenced: one of them is old.
        """
        for fence in fences:
            line = self._locks.lines.get(fence.name)
            newest = self._learnt.get(fence.name, 0 if line is None else line.token)
            if fence.is_foreign:
                is_old = newest > fence.token
                self._learnt[fence.name] = max(newest, fence.token)
            elif fence.shared:
                wish = None if line is None else line.held.get(fence.token)
                is_old = wish is None or _grant(wish).until_us <= self._now_us
            else:
                is_old = newest != fence.token
            if is_old:
                raise Fenced(fence.name, fence.token, newest=newest)

    def learn(self) -> None:
        """The writes are made: remember the foreign tokens they have carried."""
        for name, token in self._learnt.items():
            line = self._locks.lines.setdefault(name, Line(token, self._now_us))
            line.token, line.used_us = token, self._now_us


def _grant(wish: Wish) -> LockGrant:
    if wish.grant is None:
        raise AssertionError("a wish that waits has no grant")
    return wish.grant

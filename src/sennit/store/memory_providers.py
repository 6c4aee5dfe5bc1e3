"""Providers in the memory store: `limit.governor` says how much room each has; here it is given away.

    take_permit ─► a line of calls ──serve──► (room? else, if it is closed: a fallback?) ──► a permit
    a task that is ready ───────────claim───► the same, with no call of its line before it ──► a permit with its id

`serve` runs at the end of each transaction, before the standing orders, and before each claim: whatever has freed a permit,
calls that wait come first. It goes through them in order; one that finds nothing keeps all others of its line waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from sennit.errors import PermitLost, ProviderBusy, ProviderNotFound
from sennit.limit import governor
from sennit.limit.governor import GovernorState
from sennit.model.provider import (
    BudgetView,
    CallReport,
    Permit,
    PermitRequest,
    ProviderSpec,
    Rates,
    WaitReason,
    exceeded,
    split_name,
)
from sennit.store.memory_budgets import Budgets
from sennit.store.memory_permits import Held, Permits, Place, Waiting
from sennit.store.memory_row import Row
from sennit.sync.ack import Ack

# What is told to who does not wait, when only a report can make room.
_RETRY_S = 1.0


@dataclass(slots=True)
class Known:
    """One provider: what is declared of it and what was learnt."""

    spec: ProviderSpec
    state: GovernorState


class Found(NamedTuple):
    """Where a call may go: to `place`, or nowhere now, because of `reason`, which may change at `wake_us` by itself."""

    place: Place | None
    reason: WaitReason = ""
    wake_us: int | None = None


class Providers:
    """All providers, their permits and the budgets.

    Args:
        find_row: returns a task by id, or None.

    Attributes:
        now_us: when this transaction happens.
        held: who was wanted and had no room, as it was asked for → why, and since when.
        parallel: what an unknown provider is declared with by the process whose transaction it is.
        blocked: lines in which a call waits, and what the first of it waits for.
        settled: what is to be told after the transaction.
    """

    def __init__(self, find_row: Callable[[int], Row | None]) -> None:
        self.known: dict[str, Known] = {}
        self.permits = Permits()
        self.budgets = Budgets()
        self.now_us = 0
        self.parallel = 0
        self.blocked: dict[Place, WaitReason] = {}
        self.held: dict[str, tuple[WaitReason, int]] = {}
        self.settled: list[tuple[Ack[Permit], Any, BaseException | None]] = []
        self._find_row = find_row

    def begin(self, *, now_us: int, parallel: int) -> None:
        """Begin a transaction."""
        self.now_us, self.parallel = now_us, parallel

    # ------------------------------------------------------------ what is known

    def find(self, name: str) -> Known:
        """Return a provider.

        Raises:
            ProviderNotFound: not known.
        """
        if name not in self.known:
            raise ProviderNotFound(name)
        return self.known[name]

    def use(self, name: str) -> Known:
        """Return a provider; one that is not known is declared."""
        if name not in self.known:
            self.known[name] = self._unknown(name)
        return self.known[name]

    def _unknown(self, name: str) -> Known:
        spec = ProviderSpec(name=name, rates=Rates(parallel=self.parallel))
        return Known(spec, governor.fresh(spec, self.now_us))

    def declare(self, spec: ProviderSpec) -> None:
        """Store what is declared of a provider; what was learnt is fitted into it."""
        known = self.known.get(spec.name)
        if known is None:
            self.known[spec.name] = Known(spec, governor.fresh(spec, self.now_us))
        elif known.spec != spec:
            governor.redeclare(known.spec, spec, known.state, self.now_us)
            known.spec = spec

    # ------------------------------------------------------------ is there room?

    def seek(self, asked: str, *, tokens: int = 0, is_alone: bool = False) -> Found:
        """Say where a call to `asked` may go now; `blocked` lines are not for it, unless `is_alone`."""
        place = split_name(asked)
        blocked = {} if is_alone else self.blocked
        if place in blocked:
            return Found(None, blocked[place])
        room = self._room(place, tokens)
        if room.n > 0:
            return Found(place)
        return self._stand_in(place[0], room, tokens, blocked) if room.is_closed else Found(None, *room[1:3])

    def _stand_in(self, name: str, room: governor.Room, tokens: int, blocked: Collection[Place]) -> Found:
        """Say which fallback gives a permit to a call whose provider is closed."""
        wakes = [room.wake_us]
        for fallback in self.known[name].spec.fallbacks:
            there = split_name(fallback)
            other = self._room(there, tokens)
            if other.n > 0 and there not in blocked and self.budgets.spent_of_provider(there[0]) is None:
                return Found(there)
            wakes.append(other.wake_us)
        return Found(None, room.reason, min((wake_us for wake_us in wakes if wake_us is not None), default=None))

    def _room(self, place: Place, tokens: int) -> governor.Room:
        name, model = place
        known = self.known.get(name) or self._unknown(name)
        return governor.room(
            known.spec,
            known.state,
            self.now_us,
            in_use=self.permits.in_use(name),
            model=model,
            model_in_use=self.permits.in_use(name, model),
            tokens=tokens,
        )

    def wakes(self, tasks: Iterator[str]) -> Iterator[int]:
        """Yield when somebody who is held back may find room though nothing happens; `tasks`: whom ready tasks ask for."""
        calls = [(waiting.request.provider, waiting.request.tokens) for waiting in self.permits.waiting.values()]
        for asked, tokens in sorted({*calls, *((asked, 0) for asked in tasks)}):
            found = self.seek(asked, tokens=tokens, is_alone=True)
            if found.wake_us is not None:
                yield found.wake_us

    # ------------------------------------------------------------ given

    def _grant(self, place: Place, waiting: Waiting) -> Permit:
        name, model = place
        known, request = self.use(name), waiting.request
        mark = governor.grant(
            known.spec,
            known.state,
            self.now_us,
            in_use=self.permits.in_use(name),
            model=model,
            tokens=request.tokens,
        )
        waited_us = self.now_us - waiting.since_us
        row = self._task(request.task_id)
        if waited_us and row is not None:
            row.note_wait(waiting.reason, waited_us)
        permit = Permit(
            id=request.id,
            provider=name,
            model=model,
            fallback_for="" if place == waiting.line else request.provider,
            is_probe=mark.is_probe,
            granted_us=self.now_us,
            waited_us=waited_us,
            reason=waiting.reason if waited_us else "",
        )
        self.permits.held[permit.id] = Held(permit, mark, waiting.holder, request.task_id)
        return permit

    def line_up(self, request: PermitRequest, *, holder: int) -> Ack[Permit]:
        """Put a call in line, and see at once whether it can go; one that does not wait goes, or is refused."""
        self.use(split_name(request.provider)[0])
        waiting = self.permits.waiting[request.id] = Waiting(request, holder, self.now_us)
        self.serve()
        if not request.wait and request.id in self.permits.waiting:
            self._refuse(waiting)
            self.serve()  # it has kept nobody waiting
        return waiting.ack

    def _refuse(self, waiting: Waiting) -> None:
        request, name = waiting.request, waiting.line[0]
        wake_us = self.seek(request.provider, tokens=request.tokens, is_alone=True).wake_us
        retry_after_s = _RETRY_S if wake_us is None else (wake_us - self.now_us) / 1_000_000
        self._reject(waiting, ProviderBusy(name, reason=waiting.reason, retry_after_s=retry_after_s))

    def serve(self) -> None:
        """Give the room there is to the calls that wait, in order; refuse those whose budget is spent.

        Calls whose provider is closed come after all that have asked for the one that is to stand in.
        """
        for waiting in self.permits.in_line():
            spent = self.budgets.spent(self._task(waiting.request.task_id), waiting.line[0])
            if spent is not None:
                self._reject(waiting, exceeded(spent, waiting.line[0]))
        self.blocked = {}
        closed = [waiting for waiting in self.permits.in_line() if not self._serve_one(waiting)]
        lines = {waiting.line: waiting.reason for waiting in self.permits.waiting.values()}
        stuck: set[Place] = set()
        for waiting in closed:
            room = self._room(waiting.line, waiting.request.tokens)
            if waiting.line in stuck or not room.is_closed:
                continue
            found = self._stand_in(waiting.line[0], room, waiting.request.tokens, lines)
            if found.place is not None:
                self._let_go(waiting, found.place)
            else:
                stuck.add(waiting.line)
        self.blocked = {waiting.line: waiting.reason for waiting in reversed(self.permits.in_line())}

    def _serve_one(self, waiting: Waiting) -> bool:
        """Let a call go to its own provider; False, and its line is blocked, when there is no room."""
        request, line = waiting.request, waiting.line
        if line not in self.blocked:
            room = self._room(line, request.tokens)
            if room.n > 0:
                self._let_go(waiting, line)
                return True
            self.blocked[line] = room.reason
        waiting.reason = self.blocked[line]
        return False

    def _let_go(self, waiting: Waiting, place: Place) -> None:
        del self.permits.waiting[waiting.request.id]
        self.settled.append((waiting.ack, self._grant(place, waiting), None))

    def _reject(self, waiting: Waiting, error: BaseException) -> None:
        del self.permits.waiting[waiting.request.id]
        self.settled.append((waiting.ack, None, error))

    def _task(self, task_id: int | None) -> Row | None:
        return None if task_id is None else self._find_row(task_id)

    # ------------------------------------------------------------ tasks

    def may_go(self, row: Row) -> Found | BudgetView | None:
        """Say with which permit a ready task may be claimed, or which budget it is to be told of; None: not now."""
        if not row.spec.provider:
            return Found(None)
        self.use(split_name(row.spec.provider)[0])
        found = self.seek(row.spec.provider)
        spent = self.spent(row)
        if spent is None and found.place is None:
            _, since_us = self.held.get(row.spec.provider, ("", self.now_us))
            self.held[row.spec.provider] = found.reason, since_us
            return None
        return spent or found

    def spent(self, row: Row) -> BudgetView | None:
        """Return the budget that leaves nothing for a task, or None."""
        return self.budgets.spent(row, split_name(row.spec.provider)[0])

    def grant_task(self, row: Row, place: Place, *, holder: int) -> Permit:
        """Return the permit with which a task is claimed."""
        request = PermitRequest(id=row.id, provider=row.spec.provider, priority=row.spec.priority, task_id=row.id)
        reason, since_us = self.held.get(row.spec.provider, ("", self.now_us))
        return self._grant(place, Waiting(request, holder, max(since_us, row.ready_us), reason))

    def look_who_is_held(self) -> None:
        """A claim is over: what has room left is not held back any more."""
        for asked in [asked for asked in self.held if self.seek(asked).place is not None]:
            del self.held[asked]

    def reason(self, row: Row) -> str:
        """Return what a ready task is held back for, and by whom; "" when its provider, or one that stands in, has room."""
        if not row.spec.provider:
            return ""
        found = self.seek(row.spec.provider)
        return "" if found.place is not None else f"{found.reason} {split_name(row.spec.provider)[0]}"

    # ------------------------------------------------------------ freed

    def give_back(self, permit_id: int, report: CallReport | None, *, holder: int) -> bool:
        """Take a permit back, or a request that waits; False when this process has no such one."""
        waiting, held = self.permits.waiting.get(permit_id), self.permits.held.get(permit_id)
        if waiting is not None and waiting.holder == holder:
            self._reject(waiting, PermitLost(waiting.line[0]))
            return True
        if held is None or held.holder != holder:
            return False
        self._release(held, report)
        if report is not None:
            self.budgets.charge(self._task(held.task_id), held.permit.provider, report.usage)
        return True

    def end_attempt(self, task_id: int) -> None:
        """The attempt of a task has ended, and with it all its calls."""
        self._drop(lambda owned: owned.task_id == task_id)

    def drop_holder(self, holder: int) -> None:
        """A process has died: what it holds is free, and it no longer waits."""
        self._drop(lambda owned: owned.holder == holder)

    def _drop(self, is_over: Callable[[Held | Waiting], bool]) -> None:
        for waiting in [w for w in self.permits.waiting.values() if is_over(w)]:
            self._reject(waiting, PermitLost(waiting.line[0]))
        for held in [h for h in self.permits.held.values() if is_over(h)]:
            self._release(held, None)

    def abandon(self, holder: int, *, is_gone: bool) -> list[Ack[Any]]:
        """A process closes its store: it no longer waits; what it holds is free if nobody else will find it dead."""
        waits = [w for w in self.permits.waiting.values() if w.holder == holder]
        for waiting in waits:
            del self.permits.waiting[waiting.request.id]
        if is_gone:
            self.drop_holder(holder)
        return [waiting.ack for waiting in waits]

    def _release(self, held: Held, report: CallReport | None) -> None:
        known = self.known[held.permit.provider]
        in_use = self.permits.in_use(held.permit.provider)
        governor.settle(known.spec, known.state, held.mark, report, self.now_us, in_use=in_use)
        del self.permits.held[held.permit.id]

    def learn(self, asked: str, report: CallReport, task_id: int | None) -> None:
        """Learn from a call that had no permit."""
        name, model = split_name(asked)
        known, in_use = self.use(name), self.permits.in_use(name)
        report = report if report.model else msgspec.structs.replace(report, model=model)
        governor.settle(known.spec, known.state, None, report, self.now_us, in_use=in_use)
        self.budgets.charge(self._task(task_id), name, report.usage)

"""Results that came too late for the state they write to: made anew, from what is stored now.

    finish ──None──► moved ─► read, apply the body's functions again, in order ─► the same result with new writes ─► finish
                       └──► the 20th time: ConcurrentModificationError is the attempt's error

The body itself does not run again. Attempts of this process that are late for the same state come one after the other, or
of a hundred that end together one would win each round and the others be late again. The functions of an async body run on the loop, those of a sync body in an OS thread of
the pool, where the body ran.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from sennit.errors import ConcurrentModificationError
from sennit.execute.body import Body, Scope
from sennit.execute.pool import BodyPool
from sennit.execute.verdict import Judge
from sennit.model.task import Claim, Claimed, Ending, Succeeded
from sennit.sync.pending import run, run_blocking

REBASES_MAX: Final = 20

Again = Callable[[Ending], None]
Chain = tuple[str, str]


class _Kept:
    """An attempt whose result is on its way to the store."""

    __slots__ = ("body", "ending", "line", "rebases", "scope", "task")

    def __init__(self, task: Claimed, body: Body, scope: Scope, ending: Succeeded) -> None:
        self.task = task
        self.body = body
        self.scope = scope
        self.ending = ending
        self.rebases = 0
        self.line: Chain | None = None


class Rebases:
    """Belongs to the worker's event loop."""

    def __init__(self, judge: Judge, pool: BodyPool) -> None:
        self._judge = judge
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._kept: dict[Claim, _Kept] = {}
        self._lines: dict[Chain, deque[tuple[_Kept, Again]]] = {}  # the first of each is being made anew, or stored
        self._running: set[asyncio.Task[None]] = set()

    def keep(self, task: Claimed, body: Body, scope: Scope, ending: Succeeded) -> None:
        """Note an attempt that writes to threads, until it is settled."""
        self._kept[task.claim] = _Kept(task, body, scope, ending)

    def settled(self, claim: Claim) -> None:
        """Forget an attempt: its end is recorded, or refused for good."""
        kept = self._kept.pop(claim, None)
        if kept is None or kept.line is None:
            return
        line = self._lines[kept.line]
        line.popleft()
        if line:
            self._begin(*line[0])
        else:
            del self._lines[kept.line]

    def moved(self, claim: Claim, again: Again) -> None:
        """Make the ending of an attempt anew and call `again` with it."""
        kept = self._kept[claim]
        kept.rebases += 1
        if kept.line is None:
            late = kept.ending.writes[0]
            kept.line = (late.thread_id, late.name)
            line = self._lines.setdefault(kept.line, deque())
            line.append((kept, again))
            if line[0][0] is not kept:
                return
        self._begin(kept, again)

    def _begin(self, kept: _Kept, again: Again) -> None:
        if kept.body.kind == "async":
            rebasing = self._loop.create_task(self._rebase(kept, again))
            self._running.add(rebasing)
            rebasing.add_done_callback(self._running.discard)
        else:
            self._pool.submit(lambda: run_blocking(kept.scope.rebase()), partial(self._rebased_there, kept, again))

    async def _rebase(self, kept: _Kept, again: Again) -> None:
        error: BaseException | None = None
        try:
            await run(kept.scope.rebase())
        except BaseException as raised:  # noqa: BLE001 - the verdict names it
            error = raised
        self._rebased(kept, again, error)

    def _rebased_there(self, kept: _Kept, again: Again, _nothing: None, error: BaseException | None) -> None:
        self._rebased(kept, again, error)

    def _rebased(self, kept: _Kept, again: Again, error: BaseException | None) -> None:
        writes, late = kept.scope.writes(), kept.ending.writes[0]
        if error is None and writes and kept.rebases > REBASES_MAX:
            error = ConcurrentModificationError(late.thread_id, expected=late.expected, actual=writes[0].expected)
        if error is not None:
            again(self._judge.error(kept.task, kept.body.retry, error))
        else:
            kept.ending = msgspec.structs.replace(kept.ending, writes=writes)
            again(kept.ending)
